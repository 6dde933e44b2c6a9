"""A number for all activations of a feature, by which two layouts of them are compared without merging.

It is the sum modulo 2^64, over its activations, of 64 mixed bits of row and value, so neither the order of
shards nor of row groups matters: two sets of activations that differ agree by chance once in 2^64. Shapes: F
features, Z activations.
"""

from __future__ import annotations

import numpy as np

from pipeline.statistics.splitmix import GOLDEN, mixed
from schemas.values import F32, I64, U64


def fingerprints(offsets: I64, rows: U64, values: F32) -> U64:
    """That of each feature, uint64 [F], of its activations offsets[f] .. offsets[f + 1] - 1.

    `rows` uint64 [Z] count over the lake, `values` are float32 [Z]; every feature has an activation.
    """
    if not len(rows):
        return np.empty(0, np.uint64)
    # rows are spread over 64 bits first, so that a value's 32 cannot stand in for another row's
    mix = rows * np.uint64(GOLDEN)
    mix += values.view(np.uint32)
    return np.add.reduceat(mixed(mix), offsets[:-1])
