"""On a GPU models give what they give on the CPU, and nothing waits in a forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit import write_tiny_gpt2, write_tiny_llama
from tests.models.reference import load, make_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WRITERS = {"gpt2": write_tiny_gpt2, "llama": write_tiny_llama}
HOOKS = ["blocks.1.attn.hook_z", "blocks.1.hook_resid_post"]


@pytest.fixture(scope="module", params=WRITERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = WRITERS[request.param](tmp_path_factory.mktemp("model"))
    return load(folder, *HOOKS), load(folder, *HOOKS, device="cuda")


def test_x_and_losses_are_those_of_the_cpu(pair: tuple[Any, Any]) -> None:
    cpu, gpu = pair
    expected = cpu.forward(make_batch())
    for hook, x in gpu.forward(make_batch()).items():
        assert x.is_cuda
        torch.testing.assert_close(x.cpu(), expected[hook], rtol=1e-4, atol=1e-4)
    for replace in (None, {HOOKS[1]: torch.tanh}, {HOOKS[0]: torch.zeros_like}):
        result = gpu.losses(make_batch(), replace)
        torch.testing.assert_close(result.cpu(), cpu.losses(make_batch(), replace), rtol=1e-4, atol=1e-4)


def test_the_same_batch_gives_the_same_bits_again(pair: tuple[Any, Any]) -> None:
    first, again = (pair[1].forward(make_batch())[HOOKS[1]] for _ in range(2))
    assert torch.equal(first, again)
