"""Logits after any rows, and gradients of them with respect to what is put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kit import write_tiny_gpt2, write_tiny_llama
from tests.models.reference import LENGTHS, causal_model, each_alone, load, make_batch

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", params=[write_tiny_gpt2, write_tiny_llama], ids=["gpt2", "llama"])
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("model"))


def test_logits_of_any_rows_are_those_of_the_model_itself_and_of_the_last_ones_too(folder):
    model, batch = load(folder, HOOK), make_batch()
    reference = causal_model(folder)
    expected = each_alone(batch, lambda ids: reference(ids).logits[0])
    rows = np.array([19, 0, 9, 9, 16])  # the last of each context among them
    result = model.logits_at(batch, rows)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected[rows], rtol=1e-4, atol=1e-4)


def test_gradients_of_what_is_put_in_are_those_of_finite_differences(folder):
    model, batch = load(folder, HOOK), make_batch()
    ends = np.cumsum(LENGTHS) - 1
    added = torch.zeros(int(LENGTHS.sum()), 16, requires_grad=True)
    weights = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def total(shift: torch.Tensor, gradients: bool) -> torch.Tensor:
        logits = model.logits_at(batch, ends, {HOOK: lambda x: x + shift}, gradients=gradients)
        return (logits * weights).sum()

    (slope,) = torch.autograd.grad(total(added, True), added)
    assert slope.abs().max() > 0.01
    rng = np.random.default_rng(0)
    for row in (0, 9, 12, 19):
        direction = torch.zeros_like(added)
        direction[row] = torch.from_numpy(rng.standard_normal(16).astype(np.float32))
        step = 1e-2
        with torch.no_grad():
            difference = total(step * direction, False) - total(-step * direction, False)
        assert float(difference) / (2 * step) == pytest.approx(
            float((slope * direction).sum()), rel=0.02, abs=0.02
        )
    model.logits_at(batch, ends)  # what was kept on the way does not disturb the next pass
