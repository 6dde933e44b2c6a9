"""Unit vectors that are read by blocks: W_dec of a million features of width 4,096 is 16 GB.

Whatever reads all of them does so block by block, in order; what needs many at once takes a
`sample`. Shapes: n vectors of width d, K clusters; a vector without direction is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from jobs.tables.clusters.kmeans import NO_CLUSTER, assign
from jobs.tables.pairs.directions import BLOCK, Directions, unit_rows
from pipeline.tasks import OneProcess, Tasks
from schemas.values import F32, F64, I64


@dataclass(frozen=True)
class VectorsInMemory:
    """Vectors in memory, [n, d]."""

    units: F32

    def __len__(self) -> int:
        return len(self.units)

    @property
    def width(self) -> int:
        """The number d."""
        return int(self.units.shape[1])

    def blocks(self) -> list[range]:
        """Places of vectors that are read at once."""
        return [range(first, min(first + BLOCK, len(self))) for first in range(0, len(self), BLOCK)]

    def read(self, places: range) -> F32:
        """Vectors of one block."""
        return self.units[places.start : places.stop]


@dataclass(frozen=True)
class Decoder:
    """Decoder directions of some features, int64 [n], ascending; in the store."""

    directions: Directions
    features: I64

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """The number d."""
        assert self.directions.width is not None
        return self.directions.width

    def blocks(self) -> list[range]:
        """As of `VectorsInMemory`; each lies in one block of the site's features."""
        starts = [block.start for block in self.directions.blocks()]
        cuts = np.unique([*np.searchsorted(self.features, starts), len(self)]).tolist()
        return [range(*ends) for ends in pairwise(cuts)]

    def read(self, places: range) -> F32:
        """As of `VectorsInMemory`."""
        # the store reads whole ranges: one from the first feature to the last, of which some may be dropped
        features = self.features[places.start : places.stop]
        units, _ = self.directions.units(range(int(features[0]), int(features[-1]) + 1))
        return units if len(units) == len(features) else units[features - features[0]]


Rows: TypeAlias = VectorsInMemory | Decoder


def read_all(rows: Rows) -> Iterator[tuple[range, F32]]:
    """Every block: its places and its vectors."""
    for places in rows.blocks():
        yield places, rows.read(places)


def sample(rows: Rows, most: int, seed: int) -> I64:
    """Places of the vectors that have a direction, or of `most` of them drawn at random, ascending."""
    not_zero = [np.empty(0, np.bool_), *(units.any(axis=1) for _, units in read_all(rows))]
    has = np.flatnonzero(np.concatenate(not_zero))
    if len(has) <= most:
        return has
    return np.sort(np.random.default_rng(seed).choice(has, most, replace=False))


def take(rows: Rows, chosen: I64) -> F32:
    """The vectors at some places, ascending, float32 [places, d]."""
    taken = np.empty((len(chosen), rows.width), np.float32)
    for places, units in read_all(rows):
        low, high = np.searchsorted(chosen, (places.start, places.stop))
        taken[low:high] = units[chosen[low:high] - places.start]
    return taken


def assign_rows(rows: Rows, centres: F32, tasks: Tasks | None = None) -> tuple[I64, F32]:
    """`kmeans.assign` of all vectors, a block a task."""
    assigned = list((tasks or OneProcess()).map(partial(_assign, rows, centres), rows.blocks()))
    labels = np.concatenate([np.empty(0, np.int64), *(labels for labels, _ in assigned)])
    return labels, np.concatenate([np.empty(0, np.float32), *(cosine for _, cosine in assigned)])


def _assign(rows: Rows, centres: F32, places: range) -> tuple[I64, F32]:
    return assign(rows.read(places), centres)


def cosines_with_mean(rows: Rows, labels: I64, clusters: int) -> F32:
    """Cosine of each vector and the mean direction of its cluster's members, 0 without a cluster: [n]."""
    sums: F64 = np.zeros((clusters, rows.width))
    cosine: F32 = np.zeros(len(labels), np.float32)
    with threadpool_limits(1):
        for places, units in read_all(rows):
            own = labels[places.start : places.stop]
            has = np.flatnonzero(own != NO_CLUSTER)
            sums += sparse.csr_matrix((np.ones(len(has)), (own[has], has)), (clusters, len(own))) @ units
        centres, _ = unit_rows(sums)
        # a second reading: no cosine is known before every member is in its cluster's mean
        for places, units in read_all(rows):
            own = labels[places.start : places.stop]
            has = np.flatnonzero(own != NO_CLUSTER)
            cosine[places.start + has] = np.einsum("nd,nd->n", units[has], centres[own[has]])
    return np.clip(cosine, -1, 1)
