"""Encoders on a CUDA device against the CPU. Run by `pytest -m gpu` where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae
from tests.kit import write_sae

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device; run there by pytest -m gpu"
    ),
]


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_the_device_selects_what_the_cpu_selects(tmp_path: Path, architecture: str) -> None:
    folder = str(write_sae(tmp_path, architecture, 64, 1024, k=16))
    torch.set_float32_matmul_precision("highest")
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    here, there = load_sae(folder).encode(x), load_sae(folder, "cuda").encode(x.cuda())
    np.testing.assert_array_equal(there.indptr, here.indptr)
    np.testing.assert_array_equal(there.indices, here.indices)
    np.testing.assert_allclose(there.data, here.data, rtol=1e-5, atol=1e-6)


def test_ties_of_topk_go_to_the_lowest_feature_on_the_device(tmp_path: Path) -> None:
    weights = {"W_enc": np.ones((4, 64), np.float32), "b_enc": np.zeros(64, np.float32)}
    folder = str(write_sae(tmp_path, "topk", 4, 64, k=5, weights=weights, apply_b_dec_to_input=False))
    found = load_sae(folder, "cuda").encode(torch.ones(3, 4, device="cuda"))
    np.testing.assert_array_equal(found.indices.reshape(3, 5), np.tile(np.arange(5), (3, 1)))
