"""Encoders on a CUDA device against the CPU. Run by `pytest -m gpu` where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae
from pipeline.saes.encoding.control import ControlEncoder, ControlTally
from pipeline.saes.encoding.device import DeviceSelection
from schemas.errors import ShardError
from schemas.values import SparseFeatures
from tests.kit import write_sae
from tests.saes.golden.check import CASES, DATA, assert_equals_golden, spec_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device; run there by pytest -m gpu"
    ),
]

ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "abstopk")


def draw_x(rows: int = 300, d_model: int = 64) -> torch.Tensor:
    torch.set_float32_matmul_precision("highest")
    return torch.randn(rows, d_model, generator=torch.Generator().manual_seed(0))


def assert_same(there: SparseFeatures, here: SparseFeatures, **tolerance: float) -> None:
    np.testing.assert_array_equal(there.indptr, here.indptr)
    np.testing.assert_array_equal(there.indices, here.indices)
    np.testing.assert_allclose(there.data, here.data, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation that waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_device_selects_what_the_cpu_selects(tmp_path: Path, architecture: str) -> None:
    folder = str(write_sae(tmp_path, architecture, 64, 1024, k=16))
    x = draw_x()
    here, there = load_sae(folder).encode(x), load_sae(folder, "cuda").encode(x.cuda())
    assert here.nnz > 300
    assert_same(there, here)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_waits_for_the_device_before_a_result_is_requested(tmp_path: Path, architecture: str) -> None:
    encoder = load_sae(str(write_sae(tmp_path, architecture, 64, 1024, k=16)), "cuda", block=(128, 1024))
    x = draw_x().cuda()
    expected = encoder.encode(x)  # also warms up what allocates and waits once
    with no_waiting():
        pending = [encoder.submit(x) for _ in range(3)]
    for item in pending:
        assert_same(item.result(), expected, rtol=0, atol=0)


def test_buffers_that_overflow_are_made_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init: Any = DeviceSelection.__init__
    monkeypatch.setattr(DeviceSelection, "__init__", lambda self, rule: init(self, rule, first_capacity=1))
    folder = str(write_sae(tmp_path, "jumprelu", 64, 1024))
    assert_same(load_sae(folder, "cuda").encode(draw_x().cuda()), load_sae(folder).encode(draw_x()))


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_bfloat16_factors_give_what_the_cpu_gives_with_them(tmp_path: Path, architecture: str) -> None:
    folder = str(write_sae(tmp_path, architecture, 64, 1024, k=16))
    x = draw_x()
    here, there = (load_sae(folder, device, "bfloat16").encode(x.to(device)) for device in ("cpu", "cuda"))
    assert_same(there, here, rtol=1e-4, atol=1e-5)


def test_ties_of_topk_go_to_the_lowest_feature_on_the_device(tmp_path: Path) -> None:
    weights = {"W_enc": np.ones((4, 64), np.float32), "b_enc": np.zeros(64, np.float32)}
    folder = str(write_sae(tmp_path, "topk", 4, 64, k=5, weights=weights, apply_b_dec_to_input=False))
    result = load_sae(folder, "cuda").encode(torch.ones(3, 4, device="cuda"))
    np.testing.assert_array_equal(result.indices.reshape(3, 5), np.tile(np.arange(5), (3, 1)))


def test_a_row_that_is_not_finite_is_named_when_the_result_is_requested(tmp_path: Path) -> None:
    x = draw_x()
    x[17, 5] = torch.nan
    pending = load_sae(str(write_sae(tmp_path, "standard", 64, 1024)), "cuda").submit(x.cuda())
    with pytest.raises(ShardError, match="row 17"):
        pending.result()


@pytest.mark.parametrize("case", CASES)
def test_every_format_gives_on_the_device_what_its_own_package_gave(case: str) -> None:
    torch.set_float32_matmul_precision("highest")
    assert_equals_golden(DATA / case, spec_of(case), device="cuda")


@pytest.mark.parametrize("kind", ["random_encoder", "shuffled_rows"])
def test_a_control_adds_up_on_the_device_without_waiting_what_the_cpu_adds_up(
    tmp_path: Path, kind: Any
) -> None:
    folder, limits = str(write_sae(tmp_path, "jumprelu", 64, 1024)), (0.0, 0.1)
    x, norms = draw_x(), torch.rand(300, generator=torch.Generator().manual_seed(1))
    encoders = [ControlEncoder(load_sae(folder, device), kind, 3) for device in ("cpu", "cuda")]
    here, there = (ControlTally(encoder, limits) for encoder in encoders)
    on_device, norms_on_device = x.cuda(), norms.cuda()
    there.add(on_device, norms_on_device)  # also warms up what allocates and waits once
    with no_waiting():
        there.add(on_device, norms_on_device)
    for _ in range(2):
        here.add(x, norms)
    a, b = there.sums(), here.sums()
    assert np.abs(a.n_active - b.n_active).max() <= 2  # an activation that only just is one
    for name in ("total", "squares", "largest"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5)
    assert (a.l0.sum(axis=1) == 600).all()
