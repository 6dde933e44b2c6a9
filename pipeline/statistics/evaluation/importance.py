"""What it costs a reconstruction to do without one feature, class by class, in closed form.

The loss over rows is that which the SAE was trained by: the mean squared error + weight * KL(rho || mean
activation), summed over features (`Penalty`); without a penalty, the error alone. A feature's importance for
a class is (loss with it set to 0 - loss) over the rows of the class, divided by the sum over features.

No forward pass is repeated. With x - x' = r the error of a row, a_f the activation and d_f the decoder row,
the error without feature f is r + a_f d_f, whose square is |r|^2 + 2 a_f r.d_f + a_f^2 |d_f|^2; and the mean
activation without f is 0 for f and what it was for all others. So sums over rows of a_f r.d_f, a_f^2 and a_f
say everything: they are exact, and those of shards add up.

The *literal* loss of the notebook that this comes from has another penalty where nothing is set to 0: the
mean over rows of KL(rho || mean activation over the FEATURES of the row), one number and no sum. That is the
loss of one sample given to a function for batches. It shifts all features alike before they are normalised.
For all classes together the notebook subtracts the loss of the batch, so there literal and corrected are the
same numbers (`Importance.of_the_batch`).

N rows, C classes, F features, D width of x, Z activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.values import F32, F64, I64

if TYPE_CHECKING:
    from scipy import sparse

CLAMP = 1e-7
"""Mean activations are brought between this and 1 - this before their logarithms are taken."""

_BLOCK_BYTES = 1 << 26
"""Of the errors of activations that are processed together."""


@dataclass(frozen=True)
class Penalty:
    """`weight` * KL(rho || mean activation); weight 0: none."""

    rho: float = 0.1
    weight: float = 0.0

    def of(self, mean: F64) -> F64:
        """KL of each mean activation, not weighted, float64 of the same shape."""
        mean = np.clip(mean, CLAMP, 1 - CLAMP)
        on, off = self.rho * np.log(self.rho / mean), (1 - self.rho) * np.log((1 - self.rho) / (1 - mean))
        return np.asarray(on + off, np.float64)


@dataclass(frozen=True)
class ClassSums:
    """Sums over the rows of each class.

    `rows` int64 [C]; `error` [C], of |r|^2; `row_penalty` [C], of the literal penalty of each row; by feature
    [C, F]: `n_active` int64, `total` of a, `squares` of a^2, `along` of a r.d. float64.
    """

    rows: I64
    error: F64
    row_penalty: F64
    n_active: I64
    total: F64
    squares: F64
    along: F64

    @classmethod
    def zero(cls, classes: int, features: int) -> ClassSums:
        """Of no row."""
        n, shape = classes, (classes, features)
        of_class = (np.zeros(n, np.int64), np.zeros(n), np.zeros(n))
        return cls(*of_class, np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def __iadd__(self, other: ClassSums) -> ClassSums:
        """In place: a sum is as large as all features of all classes."""
        for own, added in zip(self.parts, other.parts, strict=True):
            own += added
        return self

    @property
    def parts(self) -> tuple[Any, ...]:
        """The arrays, in order."""
        return (self.rows, self.error, self.row_penalty, self.n_active, self.total, self.squares, self.along)

    def together(self, classes: Iterable[int]) -> ClassSums:
        """Some classes as one: [1], [1, F]."""
        chosen = list(classes)
        return ClassSums(*(part[chosen].sum(axis=0, keepdims=True) for part in self.parts))


class Rows(Protocol):
    """x of the rows of a shard (`pipeline.store.reading.dense_site.DenseShard`)."""

    def read(self, start: int = 0, stop: int | None = None) -> F32:
        """Float32 [stop - start, D]."""


def class_sums(
    activations: sparse.csr_matrix,
    x: Rows | None,
    of_row: I64,
    classes: int,
    w_dec: F32,
    b_dec: F32,
    penalty: Penalty,
) -> ClassSums:
    """The sums of a shard: activations [N, F], x [N, D], `of_row` the class of each row, -1 for none.

    `x` None: the SAE's own reconstruction stands for it, so that r is 0. Memory: 32 bytes for each class and
    feature, and some blocks of _BLOCK_BYTES.
    """
    sums, width = ClassSums.zero(classes, activations.shape[1]), w_dec.shape[1]
    # `most` activations, whose errors are float64, at once, out of `together` rows read as float32
    most, together = (max(1, _BLOCK_BYTES // (size * width)) for size in (8, 4))
    for start in range(0, len(of_row), together):
        stop = min(start + together, len(of_row))
        read = None if x is None else x.read(start, stop)
        piece, classes_of = activations[start:stop], of_row[start:stop]
        for rows in _blocks(piece.indptr, most):
            kept = classes_of[rows] >= 0
            read_block = None if read is None else read[rows][kept]
            _add_block(sums, piece[rows][kept], read_block, classes_of[rows][kept], w_dec, b_dec, penalty)
    return sums


def _blocks(indptr: NDArray[Any], most: int) -> Iterator[slice]:
    """Rows with so many activations at most, but at least one row and not more rows than that."""
    first, n = 0, len(indptr) - 1
    while first < n:
        last = int(np.searchsorted(indptr, indptr[first] + most, side="right")) - 1
        last = max(first + 1, min(last, first + most))
        yield slice(first, last)
        first = last


def _add_block(
    sums: ClassSums,
    activations: sparse.csr_matrix,
    x: F32 | None,
    of_row: I64,
    w_dec: F32,
    b_dec: F32,
    penalty: Penalty,
) -> None:
    (n, features), values = activations.shape, activations.data.astype(np.float64)
    row, feature = np.repeat(np.arange(n), np.diff(activations.indptr)), activations.indices
    error = np.zeros((n, w_dec.shape[1]))
    if x is not None:
        # the decoder rows of the features that are active: float64 of all would take twice their memory again
        active, back = np.unique(feature, return_inverse=True)
        compact = type(activations)((values, back, activations.indptr), shape=(n, len(active)))
        error = x - (compact @ w_dec[active].astype(np.float64) + b_dec)
    # r.d_f of every activation, in float64 although both may be float32
    rays = np.einsum("zd,zd->z", error[row], w_dec[feature], dtype=np.float64)
    # the literal loss takes the mean over all features of a row, those that are 0 included
    means = np.bincount(row, values, minlength=n) / features
    _add(
        of_row, (sums.rows, None), (sums.error, (error**2).sum(axis=1)), (sums.row_penalty, penalty.of(means))
    )
    _add(
        of_row[row] * features + feature,
        (sums.n_active, None),
        (sums.total, values),
        (sums.squares, values**2),
        (sums.along, values * rays),
    )


def _add(places: I64, *parts: tuple[NDArray[Any], F64 | None]) -> None:
    """To each array, at places of it read as flat, the sums of its weights; None: of ones.

    Only places that occur are touched: an array may be far larger than a block.
    """
    touched, back = np.unique(places, return_inverse=True)
    for array, weights in parts:
        array.reshape(-1)[touched] += np.bincount(back, weights, minlength=len(touched))


@dataclass(frozen=True)
class Importance:
    """Of each class: `loss` and `literal_loss` [C] with all features; by feature [C, F] `change`, the loss
    without it minus `loss`, and `literal_change`, the same minus `literal_loss`.
    """

    error: F64
    loss: F64
    literal_loss: F64
    change: F64
    literal_change: F64

    @property
    def importance(self) -> F64:
        """Changes divided by their sum over the features, [C, F]; NaN where that is 0."""
        return _shares(self.change)

    @property
    def literal_importance(self) -> F64:
        """The notebook's."""
        return _shares(self.literal_change)

    def of_the_batch(self) -> Importance:
        """The same with the loss of the rows as one batch for the literal one: the notebook's of all rows."""
        return replace(self, literal_loss=self.loss, literal_change=self.change)


def squared_norms(w_dec: F32) -> F64:
    """|d_f|^2 of each feature, [F]."""
    norms: F64 = np.einsum("fd,fd->f", w_dec, w_dec, dtype=np.float64)
    return norms


def importance(sums: ClassSums, norms: F64, width: int, penalty: Penalty) -> Importance:
    """From sums over all rows, `squared_norms` and D; of a class without rows everything is NaN."""
    with np.errstate(invalid="ignore"):
        rows = np.where(sums.rows, sums.rows, np.nan)
        # the error is of an element of x, the penalty of a row's features
        numbers = rows * width
        error = sums.error / numbers
        means = sums.total / rows[:, None]
        each = penalty.of(means)
        loss = error + penalty.weight * each.sum(axis=1)
        literal = error + penalty.weight * sums.row_penalty / rows
        # |r + a d|^2 - |r|^2, summed over the rows in which the feature fires
        change = (2 * sums.along + sums.squares * norms) / numbers[:, None]
        change = change + penalty.weight * (penalty.of(np.zeros(1)) - each)
    return Importance(error, loss, literal, change, change + (loss - literal)[:, None])


def _shares(change: F64) -> F64:
    total = change.sum(axis=1, keepdims=True)
    shares: F64 = np.divide(change, total, out=np.full_like(change, np.nan), where=total != 0)
    return shares
