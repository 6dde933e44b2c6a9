"""What holds for every SAE and every x: rows do not see each other, and the same cut gives the same bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.saes import load_sae
from pipeline.saes.encoding.encoder import Encoder
from tests.fixtures.store import to_dense
from tests.kit import write_sae
from tests.saes.reference import reference

ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "abstopk")
D_MODEL, D_SAE, K = 20, 150, 6
NEAR = 2e-6
"""Two float32 sums of 20 products of about 1 differ by less."""

Dense = np.ndarray[Any, Any]

FOLDERS = tempfile.TemporaryDirectory()


@pytest.fixture(scope="module", autouse=True)
def _cleaned() -> Iterator[None]:
    yield
    FOLDERS.cleanup()


@cache
def folder_of(architecture: str) -> Path:
    return write_sae(Path(FOLDERS.name) / architecture, architecture, D_MODEL, D_SAE, k=K)


@cache
def encoder_of(architecture: str, block: tuple[int, int] = (1024, 1024)) -> Encoder:
    return load_sae(str(folder_of(architecture)), block=block)


def draw_x(seed: int, rows: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-1, 2, (rows, 1))
    return torch.from_numpy((scale * rng.standard_normal((rows, D_MODEL))).astype(np.float32))


def margins(architecture: str, x: torch.Tensor) -> Dense:
    """How far each pre-activation lies from where it would begin or cease to fire, float64 [N, D_SAE]."""
    w = {name: array.astype(np.float64) for name, array in encoder_of(architecture).weights().items()}
    product = (x.numpy().astype(np.float64) - w["b_dec"]) @ w["W_enc"]
    if architecture == "gated":
        magnitude = product * np.exp(w["r_mag"]) + w["b_mag"]
        return np.minimum(np.abs(magnitude), np.abs(product + w["b_gate"]))
    pre = product + w["b_enc"]
    if architecture in ("topk", "abstopk"):
        key = np.abs(pre) if architecture == "abstopk" else pre
        ordered = np.sort(key, axis=1)
        return np.minimum(np.abs(key - ordered[:, -K, None]), np.abs(key - ordered[:, -K - 1, None]))
    return np.abs(pre - w.get("threshold", 0))


def assert_equal_but_for_rounding(architecture: str, result: Dense, expected: Dense, x: torch.Tensor) -> None:
    """Values within rounding; the support differs at most where it hangs on rounding."""
    room = NEAR * (1 + x.abs().amax(dim=1, keepdim=True).numpy())
    differs = (result != 0) != (expected != 0)
    assert (np.abs(result - expected) <= room + 1e-5 * np.abs(expected))[~differs].all()
    assert (margins(architecture, x) <= room)[differs].all()


SEEDS, ROWS = st.integers(0, 2**32 - 1), st.integers(1, 70)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ARCHITECTURES), SEEDS, ROWS)
def test_a_permuted_batch_gives_permuted_rows(architecture: str, seed: int, rows: int) -> None:
    x, order = draw_x(seed, rows), np.random.default_rng(seed).permutation(rows)
    encoder = encoder_of(architecture)
    alone, mixed = (to_dense(encoder.encode(part), D_SAE) for part in (x, x[order]))
    assert_equal_but_for_rounding(architecture, mixed, alone[order], x[order])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ARCHITECTURES), SEEDS, st.integers(2, 70), st.data())
def test_a_split_batch_gives_the_same_rows(
    architecture: str, seed: int, rows: int, data: st.DataObject
) -> None:
    x, cut = draw_x(seed, rows), data.draw(st.integers(1, rows - 1))
    encoder = encoder_of(architecture)
    parts = [to_dense(encoder.encode(part), D_SAE) for part in (x[:cut], x[cut:])]
    assert_equal_but_for_rounding(architecture, np.concatenate(parts), to_dense(encoder.encode(x), D_SAE), x)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ARCHITECTURES), SEEDS, ROWS, st.integers(1, 20), st.floats(-100, 100, width=32))
def test_rows_put_next_to_a_batch_change_nothing_in_it(
    architecture: str, seed: int, rows: int, more: int, fill: float
) -> None:
    x = draw_x(seed, rows)
    padded = torch.cat([x, torch.full((more, D_MODEL), fill)])
    encoder = encoder_of(architecture)
    result = to_dense(encoder.encode(padded), D_SAE)[:rows]
    assert_equal_but_for_rounding(architecture, result, to_dense(encoder.encode(x), D_SAE), x)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ARCHITECTURES), SEEDS, ROWS, st.integers(1, 80), st.integers(1, 160))
def test_every_cut_into_blocks_gives_the_same_rows(
    architecture: str, seed: int, rows: int, block_rows: int, block_features: int
) -> None:
    x = draw_x(seed, rows)
    cut = load_sae(str(folder_of(architecture)), block=(block_rows, block_features))
    expected = to_dense(encoder_of(architecture).encode(x), D_SAE)
    assert_equal_but_for_rounding(architecture, to_dense(cut.encode(x), D_SAE), expected, x)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ARCHITECTURES), SEEDS, ROWS, st.sampled_from([(1024, 1024), (7, 40)]))
def test_the_same_batch_and_block_give_the_same_bits(
    architecture: str, seed: int, rows: int, block: tuple[int, int]
) -> None:
    x = draw_x(seed, rows)
    first = encoder_of(architecture, block).encode(x)
    encoder_of(architecture, block).encode(draw_x(seed + 1, 9))
    for again in (encoder_of(architecture, block), load_sae(str(folder_of(architecture)), block=block)):
        features = again.encode(x.clone())
        assert features.indptr.tobytes() == first.indptr.tobytes()
        assert features.indices.tobytes() == first.indices.tobytes()
        assert features.data.tobytes() == first.data.tobytes()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ARCHITECTURES), SEEDS, ROWS)
def test_reconstruction_equals_saelens(architecture: str, seed: int, rows: int) -> None:
    x, encoder, sae = draw_x(seed, rows), encoder_of(architecture), reference(folder_of(architecture))
    with torch.no_grad():
        expected = sae.decode(sae.encode(x))
    np.testing.assert_allclose(encoder.decode(encoder.encode(x)), expected, rtol=1e-4, atol=2e-4)
