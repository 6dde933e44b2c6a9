"""An encoder against a module of SAELens: the same features fire, with the same values and reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from schemas.values import SparseFeatures
from tests.fixtures.store import to_dense


def rows_of(width: int, rows: int = 200, seed: int = 1, scale: float = 1.0) -> torch.Tensor:
    """Seeded x, float32 [rows, width]."""
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def assert_equals_module(
    encoder: Any, sae: Any, x: torch.Tensor, read: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> SparseFeatures:
    """Compare on x; `read` gives the module's x. A transcoder's reconstruction is that of forward(x)."""
    with torch.no_grad():
        expected = sae.encode(read(x))
        skips = hasattr(sae, "W_skip")
        reconstruction = sae.forward(read(x)) if skips else sae.decode(expected)
    features = encoder.encode(x)
    result = to_dense(features, expected.shape[1])
    assert 0 < features.nnz < result.size
    assert (features.data != 0).all()
    np.testing.assert_array_equal(result != 0, expected.numpy() != 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    decoded = encoder.decode(features, like=x)
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded, reconstruction, rtol=1e-4, atol=1e-4)
    return features
