"""Decoder rows as directions, read in blocks from the store, and their nearest by cosine.

Shapes: n features of a block, D the decoder's width, F and G the features of two sites.

The nearest of all features take 2 F G D float32 operations and memory for three blocks: 7 10^12 at 65,536
features of width 768, two minutes of a core that does 60 10^9 a second; 1.5 10^15, seven hours of it, at
10^6. BLAS runs on one thread over fixed blocks, so that the bits depend on neither workers nor threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.store import FeatureStore
from pipeline.store.objects.verbs import readable
from pipeline.store.records.site import open_site_rows
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.values import F32, F64, I64

BLOCK = 4096
"""Features whose cosines with as many others are in memory at once."""


def unit_rows(vectors: F32 | F64) -> tuple[F32, NDArray[np.bool_]]:
    """Rows divided by their norm [n, d], and which have a direction [n]; a row without one is 0."""
    norm = np.linalg.norm(vectors.astype(np.float64), axis=1)
    has = (norm > 0) & np.isfinite(norm)
    units = np.zeros_like(vectors, dtype=np.float32)
    units[has] = vectors[has] / norm[has, None]
    return units, has


@dataclass(frozen=True)
class Directions:
    """W_dec of a site, as unit vectors; handed to tasks, which open the store."""

    layout: Layout
    pass_name: str
    site: str
    d_sae: int

    @cached_property
    def _rows(self) -> Any | None:
        rows = open_site_rows(self.layout, self.pass_name, self.site, "W_dec")
        if rows is not None and (rows.ndim != 2 or rows.shape[0] != self.d_sae):
            raise InputError(
                f"W_dec in {self._path} is {list(rows.shape)}, for {self.d_sae} features: restore it from a "
                "copy of the store"
            )
        return rows

    @property
    def _path(self) -> StorePath:
        return self.layout.site(self.pass_name, self.site)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    @property
    def width(self) -> int | None:
        """D; None where the site has no decoder, as a synthetic one."""
        return None if self._rows is None else int(self._rows.shape[1])

    def units(self, features: range) -> tuple[F32, NDArray[np.bool_]]:
        """Rows of length 1 [n, D], and which features have a direction [n]; a row without one is 0."""
        assert self._rows is not None
        with readable(self._path):
            rows = np.asarray(self._rows[features.start : features.stop]).astype(np.float32)
        return unit_rows(rows)

    def blocks(self) -> list[range]:
        """All features, BLOCK at a time."""
        return [range(first, min(first + BLOCK, self.d_sae)) for first in range(0, self.d_sae, BLOCK)]


def directions_of(store: FeatureStore, site: str) -> Directions:
    """Those of a site."""
    info = store.site(site)
    return Directions(store.layout, info.pass_name, site, info.d_sae)


@dataclass(frozen=True)
class Nearest:
    """Pairs by feature, the largest cosine first, equal ones by the other's number; all [n pairs]."""

    feature: I64
    other: I64
    rank: I64
    cosine: F32


def nearest(a: Directions, b: Directions, k: int, features: range) -> Nearest:
    """The `k` features of `b` of largest cosine with each of some features of `a`, itself left out.

    What has no direction neither has a nearest nor is one.
    """
    best = _Best(len(features), k)
    for others, cosine in cosines(a, b, features):
        if a == b:
            own = np.arange(max(features.start, others.start), min(features.stop, others.stop))
            cosine[own - features.start, own - others.start] = -np.inf
        best.add(cosine, others.start)
    return best.sorted(features.start)


def cosines(a: Directions, b: Directions, features: range) -> Iterator[tuple[range, F32]]:
    """Cosines of some features of `a` with each block of `b` [n, n']; -inf where one has no direction."""
    units, has = a.units(features)
    for others in b.blocks():
        other_units, other_has = b.units(others)
        with threadpool_limits(1):
            cosine = units @ other_units.T
        np.clip(cosine, -1, 1, out=cosine)
        cosine[~has] = -np.inf
        cosine[:, ~other_has] = -np.inf
        yield others, cosine


def pair_cosines(a: Directions, b: Directions, feature: I64, other: I64) -> NDArray[np.float64]:
    """Cosine of each of some pairs, NaN where one has no direction; `feature` ascends; float64 [n pairs]."""
    result = np.full(len(feature), np.nan)
    if not len(feature):
        return result
    # the rows of `a` between the first and the last feature are read once, those of `b` block by block
    own = range(int(feature[0]), int(feature[-1]) + 1)
    units, has = a.units(own)
    for others in b.blocks():
        other_units, other_has = b.units(others)
        here = np.flatnonzero((other >= others.start) & (other < others.stop))
        for part in np.array_split(here, max(1, len(here) // BLOCK)):
            x, y = feature[part] - own.start, other[part] - others.start
            cosine = np.einsum("nd,nd->n", units[x], other_units[y], dtype=np.float64)
            result[part] = np.where(has[x] & other_has[y], np.clip(cosine, -1, 1), np.nan)
    return result


class _Best:
    """The k largest seen so far of each of n rows, and the least of them, below which nothing is kept."""

    def __init__(self, n: int, k: int) -> None:
        self._k = k
        self._row, self._other = np.empty(0, np.int64), np.empty(0, np.int64)
        self._cosine = np.empty(0, np.float32)
        self._least = np.full(n, -np.inf, np.float32)

    def add(self, cosine: F32, first: int) -> None:
        """Cosines with the features from `first` on; -inf is none."""
        least = self._least
        # nothing is held yet: the k-th of this first block itself bounds what has to be sorted
        if not len(self._row) and self._k < cosine.shape[1]:
            place = cosine.shape[1] - self._k
            least = np.partition(cosine, place, axis=1)[:, place]
        row, other = np.nonzero((cosine >= least[:, None]) & (cosine > -np.inf))
        self._row = np.append(self._row, row)
        self._other = np.append(self._other, other + first)
        self._cosine = np.append(self._cosine, cosine[row, other])
        order = np.lexsort((self._other, -self._cosine, self._row))
        row = self._row[order]
        kept = order[_ranks(row) < self._k]
        self._row, self._other, self._cosine = self._row[kept], self._other[kept], self._cosine[kept]
        # a row that has k entries only takes what is no less than the last of them
        last = np.flatnonzero(_ranks(self._row) == self._k - 1)
        self._least[self._row[last]] = self._cosine[last]

    def sorted(self, first: int) -> Nearest:
        """What is left, features counted from `first`."""
        return Nearest(self._row + first, self._other, _ranks(self._row), self._cosine)


def _ranks(rows: I64) -> I64:
    """The place of each entry among those of its row; `rows` ascend."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    lengths = np.diff(np.append(starts, len(rows)))
    return np.arange(len(rows)) - np.repeat(starts, lengths)
