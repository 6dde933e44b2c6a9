"""List columns as flat arrays: a list per feature, its elements told apart by a bin and in ascending bins."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from schemas.values import I64, Bool

BIN_BITS = 16
"""Bins are signed numbers of so many bits; a feature takes the bits above them."""


def key_of(features: NDArray[Any], bins: NDArray[Any]) -> I64:
    """One int64 that sorts by (feature, bin)."""
    return (features.astype(np.int64) << BIN_BITS) + (bins.astype(np.int64) + (1 << BIN_BITS - 1))


def feature_of(keys: I64) -> I64:
    """The feature in a key."""
    return keys >> BIN_BITS


def bin_of(keys: I64) -> I64:
    """The bin in a key."""
    return (keys & ((1 << BIN_BITS) - 1)) - (1 << BIN_BITS - 1)


def run_starts(keys: I64) -> I64:
    """Where each run of equal keys starts, int64."""
    first: Bool = np.ones(len(keys), np.bool_)
    first[1:] = keys[1:] != keys[:-1]
    return np.flatnonzero(first)


def element_features(frame: pl.DataFrame, column: str) -> I64:
    """The feature of each element of a list column, int64 [L]."""
    return np.repeat(frame["feature"].to_numpy().astype(np.int64), frame[column].list.len().to_numpy())


def elements(frame: pl.DataFrame, column: str) -> NDArray[Any]:
    """The elements of a list column that has no empty list, [L]."""
    return frame[column].explode().to_numpy()


def list_frame(keys: I64, **columns: NDArray[Any]) -> pl.DataFrame:
    """Frame of `feature` and a list column per array [L], cut where the feature of sorted `keys` changes."""
    features = feature_of(keys)
    starts = run_starts(features)
    offsets = pa.array(np.append(starts, len(keys)))
    return pl.DataFrame(
        {"feature": features[starts].astype(np.uint32)}
        | {
            name: pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(offsets, pa.array(column))))
            for name, column in columns.items()
        }
    )
