"""The mixing of splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), in integers only, so that every machine has the same bits. It is a bijection of 64 bits.
"""

from __future__ import annotations

import numpy as np

from schemas.values import U64

GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(x: U64) -> U64:
    """64 well mixed bits of each number, in its place: `x` is overwritten."""
    scratch = x >> np.uint64(30)
    x ^= scratch
    x *= _FIRST
    x ^= np.right_shift(x, np.uint64(27), out=scratch)
    x *= _SECOND
    x ^= np.right_shift(x, np.uint64(31), out=scratch)
    return x
