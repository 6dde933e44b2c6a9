"""The threshold architectures at their edges: x == theta, gates, rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae
from pipeline.saes.encoding.rule import keys_of
from pipeline.saes.encoding.threshold import ThresholdRule
from schemas.values import SparseFeatures
from tests.kit import dense_activations, write_sae
from tests.saes.selecting import select


def identity(width: int) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    eye = np.eye(width, dtype=np.float32)
    return {"W_enc": eye, "W_dec": eye, "b_dec": np.zeros(width, np.float32)}


def encode(folder: Path, x: list[list[float]]) -> SparseFeatures:
    return load_sae(str(folder)).encode(torch.tensor(x))


def test_an_activation_equal_to_the_threshold_is_off(tmp_path: Path) -> None:
    theta = np.array([0.3, 1.5, 0.0, -1.0], dtype=np.float32)
    weights = identity(4) | {"b_enc": np.zeros(4, np.float32), "threshold": theta}
    folder = write_sae(tmp_path, "jumprelu", 4, 4, weights=weights)
    above = np.nextafter(theta, np.float32(9)).tolist()
    features = encode(folder, [theta.tolist(), above, [0.3, 2.0, 0.0, -0.5]])
    assert features.indptr.tolist() == [0, 0, 3, 4]
    assert features.indices.tolist() == [0, 1, 2, 1]
    assert features.data.tolist() == [above[0], above[1], above[2], 2.0]


def test_the_threshold_keeps_its_own_precision_next_to_float16_weights(tmp_path: Path) -> None:
    theta = np.array([0.1000123, 0.2000456], dtype=np.float32)
    weights = identity(2) | {"b_enc": np.zeros(2, np.float32), "threshold": theta}
    folder = write_sae(tmp_path, "jumprelu", 2, 2, weights=weights, weight_dtype="float16")
    assert load_sae(str(folder)).weights()["threshold"].tolist() == theta.tolist()
    assert encode(folder, [theta.tolist()]).nnz == 0
    assert encode(folder, [np.nextafter(theta, np.float32(1)).tolist()]).nnz == 2


def test_the_gate_decides_and_the_magnitude_gives_the_value(tmp_path: Path) -> None:
    weights = identity(4) | {
        "b_gate": np.array([-1, -1, 1, 0], np.float32),
        "b_mag": np.array([0.5, -9, 0.5, 0], np.float32),
        "r_mag": np.log(np.array([2, 2, 2, 1], np.float32)),
    }
    folder = write_sae(tmp_path, "gated", 4, 4, weights=weights)
    # Feature 0: gate open, 2 * 2 + 0.5. 1: open, but the magnitude is negative. 2: 2 * -0.1 + 0.5. 3: x is 0.
    features = encode(folder, [[2, 2, -0.1, 0], [1, 9, -1, 1]])
    assert features.indices.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(features.data, [4.5, 0.3, 9.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_floor_never_loses_what_the_exact_test_would_keep(scaled: bool) -> None:
    rng = np.random.default_rng(0)
    width = 20_000
    shift = (rng.standard_normal(width) * 10.0 ** rng.integers(-6, 6, width)).astype(np.float32)
    theta = np.abs(rng.standard_normal(width) * 10.0 ** rng.integers(-6, 6, width)).astype(np.float32)
    scale = np.exp(rng.standard_normal(width)).astype(np.float32) if scaled else np.ones(width, np.float32)
    rule = ThresholdRule(
        torch.from_numpy(shift), torch.from_numpy(theta), torch.from_numpy(scale) if scaled else None
    )
    # Products within a few rounding errors of the limit, on both sides.
    limit = ((theta.astype(np.float64) - shift) / scale).astype(np.float32)
    product = limit + np.spacing(limit) * rng.integers(-4, 5, (8, width)).astype(np.float32)
    expected = product * scale + shift > theta
    result = select(rule, product)
    rows = np.repeat(np.arange(8), np.diff(result.indptr))
    np.testing.assert_array_equal(np.argwhere(expected), np.stack([rows, result.indices], axis=1))


def test_a_gate_of_no_scale_hides_nothing_next_to_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "W_enc": rng.standard_normal((8, 1024)).astype(np.float32),
        "b_gate": np.full(1024, -3, np.float32),
        "b_mag": np.where(np.arange(1024) % 25, -0.5, 0).astype(np.float32),
        "r_mag": np.where(np.arange(1024) % 25, 0, -200).astype(np.float32),  # exp() of that is 0
    }
    folder = write_sae(tmp_path, "gated", 8, 1024, weights=weights)
    x = rng.standard_normal((64, 8)).astype(np.float32)
    expected = dense_activations(folder, x)
    features = load_sae(str(folder)).encode(torch.from_numpy(x))
    rows = np.repeat(np.arange(64), np.diff(features.indptr))
    np.testing.assert_array_equal(np.argwhere(expected), np.stack([rows, features.indices], axis=1))
    assert features.nnz > 500


def test_features_without_weights_are_no_candidates() -> None:
    zeros = torch.zeros(64)
    rule = ThresholdRule(zeros, zeros)
    floor = rule.limits()(keys_of(torch.zeros(2, 64), slice(0, 64), signed=False))
    assert (floor == np.nextafter(np.float32(0), np.float32(1))).all()
    assert select(rule, np.full((1, 64), floor[0])).nnz == 64
