"""Values that cross a boundary between rooms. Shapes: N rows, F features that fired, Z nonzeros.

A row is one position of one context; inside a shard rows are numbered from 0, and the store adds the shard's
`row_start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.names import Pooling

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    `number` is its place in the corpus (u64), `labels` holds one value per label column, in their order.
    """

    number: int
    text: str
    labels: tuple[Any, ...] = ()
    values: NDArray[Any] | None = field(default=None, compare=False)
    """A vector for each of its tokens, uint8 or float32 [tokens, width], where the corpus holds some."""


@dataclass(frozen=True)
class RowSelection:
    """What a site reads of a context.

    `positions` are the arguments of Python's slice over the positions 0 .. context_size - 1, None: all.
    `pooling` makes one vector of the rows there: that of the last, or their mean.
    """

    positions: tuple[int | None, ...] | None = None
    pooling: Pooling = "none"

    @property
    def all_rows(self) -> bool:
        """Whether each row is read."""
        return self.positions is None and self.pooling == "none"

    @property
    def is_averaged(self) -> bool:
        """Whether a row is the mean of a context, which has no position."""
        return self.pooling == "mean"

    def __str__(self) -> str:
        where = "all positions" if self.positions is None else f"positions {list(self.positions)}"
        return where if self.pooling == "none" else f"{where}, pooled by {self.pooling}"


@dataclass(frozen=True)
class TokenShard:
    """The contexts of one shard, flattened.

    `token_ids` int32 [N]; `context_ptr` int64 [C + 1] cuts it into contexts; `counted` bool [N] says which
    rows enter statistics; `stored` bool [N] which rows may hold activations (never true where counted is
    false); `document` uint64 [N] is the document of each row; `context_start` and `row_start` number the
    shard's first context and first row in the lake; `inputs` [N, width], as they are stored, where the
    corpus holds vectors; `averaged` bool [N] says over which rows of a context the x of its stored row is
    averaged, None where each x stands for itself.
    """

    name: str
    row_start: int
    context_start: int
    token_ids: I32
    context_ptr: I64
    counted: Bool
    stored: Bool
    document: U64
    inputs: NDArray[Any] | None = None
    averaged: Bool | None = None

    @property
    def n_rows(self) -> int:
        """Rows of the shard."""
        return len(self.token_ids)

    @property
    def n_contexts(self) -> int:
        """Contexts of the shard."""
        return len(self.context_ptr) - 1

    def context_of_row(self) -> I64:
        """The lake-wide number of each row's context, int64 [N]."""
        lengths = np.diff(self.context_ptr)
        return self.context_start + np.repeat(np.arange(self.n_contexts, dtype=np.int64), lengths)

    def position_of_row(self) -> I64:
        """The place of each row in its context, int64 [N]."""
        starts = np.repeat(self.context_ptr[:-1], np.diff(self.context_ptr))
        return np.arange(self.n_rows, dtype=np.int64) - starts

    def restrict(self, selection: RowSelection, context_size: int) -> TokenShard:
        """The shard with rows that a site does not read neither counted nor stored.

        A context that is shorter has those of the positions that it reaches. Of a pooled context one row is
        left: the last that is stored, or, where none is, the last that is counted.
        """
        if selection.all_rows:
            return self
        inside = np.zeros(context_size, dtype=np.bool_)
        inside[slice(*(selection.positions or (None,)))] = True
        kept = inside[self.position_of_row()]
        cut = replace(self, counted=self.counted & kept, stored=self.stored & kept)
        if selection.pooling == "none":
            return cut
        # of what is left a pooled context counts as one row: the last that is stored, else the last counted
        place = np.arange(1, self.n_rows + 1)  # from 1, so that 0 says that a context has no such row
        stored, counted = (
            np.maximum.reduceat(np.where(rows, place, 0), self.context_ptr[:-1])
            for rows in (cut.stored, cut.counted)
        )
        chosen = np.where(stored > 0, stored, counted)
        one = np.zeros(self.n_rows, dtype=np.bool_)
        one[chosen[chosen > 0] - 1] = True
        averaged = cut.stored if selection.is_averaged else None
        return replace(cut, counted=cut.counted & one, stored=cut.stored & one, averaged=averaged)

    def totals(self) -> Totals:
        """Denominators over this shard alone."""
        counted = self.counted
        return Totals(
            rows=self.n_rows,
            counted_rows=int(counted.sum()),
            contexts=len(np.unique(self.context_of_row()[counted])),
            documents=len(np.unique(self.document[counted])),
        )


@dataclass(frozen=True)
class TokenBatch:
    """Contexts for one forward pass: `token_ids` int64 [B, T] padded on the right, `lengths` int64 [B].

    `inputs` float32 [B, T, width], padded with 0, is what a model reads in the place of tokens.
    """

    token_ids: I64
    lengths: I64
    inputs: F32 | None = None

    @property
    def is_padded(self) -> bool:
        """Whether some context is shorter than T."""
        return bool((self.lengths < self.token_ids.shape[1]).any())


@dataclass(frozen=True)
class SparseFeatures:
    """Activations in CSR form.

    `indptr` int64 [N + 1]; `indices` int32 [Z], ascending in a row; `data` float32 [Z].
    """

    indptr: I64
    indices: I32
    data: F32

    @property
    def nnz(self) -> int:
        """Number of stored activations."""
        return len(self.indices)

    def select(self, kept: Bool) -> SparseFeatures:
        """The activations marked in `kept`, bool [Z]."""
        if kept.all():
            return self
        # how many are kept before each activation: a row's ends, counted in what is kept
        before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
        return SparseFeatures(before[self.indptr], self.indices[kept], self.data[kept])

    def scatter_rows(self, stored: Bool) -> SparseFeatures:
        """These rows where `stored`, bool [N], is true, and empty ones where it is not."""
        lengths = np.zeros(len(stored), np.int64)
        lengths[stored] = np.diff(self.indptr)
        return SparseFeatures(np.append(0, np.cumsum(lengths)), self.indices, self.data)

    @staticmethod
    def concatenate(parts: Sequence[SparseFeatures]) -> SparseFeatures:
        """Stack the rows of several pieces."""
        lengths = [np.diff(part.indptr) for part in parts]
        indptr = np.zeros(sum(map(len, lengths)) + 1, dtype=np.int64)
        if lengths:
            np.cumsum(np.concatenate(lengths), out=indptr[1:])
        return SparseFeatures(
            indptr,
            np.concatenate([part.indices for part in parts]) if parts else np.empty(0, np.int32),
            np.concatenate([part.data for part in parts]) if parts else np.empty(0, np.float32),
        )


Encoded = dict[str, list[SparseFeatures]]
"""By site, pieces of a shard's features."""


class Explained(NamedTuple):
    """Explained variance of some rows: of all, and where a few are massive of the rest."""

    of_all: float
    of_rest: float | None

    @property
    def judged(self) -> float:
        """What an SAE is judged by."""
        return self.of_all if self.of_rest is None else self.of_rest

    def rounded(self) -> Explained:
        """To four digits."""
        return Explained(round(self.of_all, 4), None if self.of_rest is None else round(self.of_rest, 4))


class Timed(Protocol):
    """Adds the time that a block takes to a stage's: read, forward, encode, write."""

    def __call__(self, stage: str, rows: int = 0) -> AbstractContextManager[None]:
        """A block of this stage, after which so many rows more (or, to try again, fewer) went through."""


@dataclass(frozen=True)
class Postings:
    """Activations in feature-major form.

    `features` uint32 [F] ascending, only those that fired; `offsets` int64 [F + 1] cuts the rest by feature;
    `rows` int64 [Z] ascending inside a feature, counted from the shard's first row; `values` float32 [Z], as
    stored.
    """

    features: U32
    offsets: I64
    rows: I64
    values: F32

    @property
    def nnz(self) -> int:
        """Number of stored activations."""
        return len(self.rows)

    def between(self, low: int, high: int) -> Postings:
        """Those of features low .. high - 1."""
        return self.part(*np.searchsorted(self.features, np.array([low, high], dtype=np.uint64)).tolist())

    def part(self, first: int, last: int) -> Postings:
        """The features at places first .. last - 1."""
        offsets = self.offsets[first : last + 1]
        place = slice(int(offsets[0]), int(offsets[-1]))
        return Postings(self.features[first:last], offsets - offsets[0], self.rows[place], self.values[place])


@dataclass(frozen=True)
class ControlSums:
    """Sums over the rows of a control, which are dense: F features, T thresholds.

    `n_active` int64 [F] rows above 0; `total` and `squares` float64 [F], the sums of activations and of their
    squares; `largest` float32 [F]; `l0` int64 [T, F + 1], how many rows have so many features above each
    threshold.
    """

    n_active: I64
    total: F64
    squares: F64
    largest: F32
    l0: I64


@dataclass(frozen=True)
class Totals:
    """Denominators of every statistic of one site.

    `rows` all token rows, `counted_rows` those that the special-token policy and the site's positions let
    in, `contexts` and `documents` those with at least one counted row.
    """

    rows: int
    counted_rows: int
    contexts: int
    documents: int

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{name: n + getattr(other, name) for name, n in vars(self).items()})


@dataclass(frozen=True)
class Agreement:
    """How a model as it is run here differs from transformers' own on a few tokens.

    `differences`: relative norms by hook, and of the logits; `unchecked`: hooks, and logits, that could not
    be compared; `why` nothing could be, or empty.
    """

    differences: dict[str, float] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Hello:
    """What a worker says when it is ready: where it runs, and what its node sees."""

    node: str
    pid: int
    gpus: tuple[str, ...]
    device: str
    device_model: str
    environment: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that data pass through there."""
    agreement: Agreement | None = None
    """Of the model with transformers' own; None where there is no such model."""


@dataclass(frozen=True)
class Packed:
    """Contexts of one shard.

    `token_ids` int32 [N] is cut by `context_ptr` int64 [C + 1]. Segments of context c are
    `segment_ptr[c]:segment_ptr[c + 1]` (int64 [C + 1]): `document` int64 [S] is the place in the list of
    documents that was packed, `start` uint32 [S] the first position in the context (never that of a BOS),
    `offset` uint32 [S] the place in the document; a separator's is the number of the document's tokens.
    """

    token_ids: I32
    context_ptr: I64
    segment_ptr: I64
    document: I64
    start: U32
    offset: U32


@dataclass(frozen=True)
class Failure:
    """A shard that was quarantined, the attempts it had, and the last error in words."""

    shard: str
    attempts: int
    error: str
