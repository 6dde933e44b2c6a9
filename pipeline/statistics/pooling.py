"""Rows of activations pooled to one for each group of rows: of a context, a document, a prompt.

Shapes: N rows, n groups, F features, E activations (entries that are not 0). A row in which a feature is not
active has 0 there. Sums are taken in float64, in the order of the rows; what comes is rounded to float32.

- sum; mean: the sum over the group's rows, those with 0 included
- max: the strongest activation, the one of largest magnitude, with its sign; of -x and x the x
- last: that of the group's last row
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from scipy import sparse

from schemas.values import F32, F64, I64

Pooling: TypeAlias = Literal["last", "mean", "max", "sum"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool_rows(
    matrix: sparse.csr_matrix, group: I64, n: int, pooling: Pooling, rows: I64 | None = None
) -> sparse.csr_matrix:
    """Pool the rows of a matrix [N, F] by their `group` int64 [N], 0 .. `n` - 1: float32 [n, F].

    `rows` int64 [n] says over how many rows the mean of each group is, where the matrix does not hold all.
    """
    entries, group = matrix.tocoo(), group.astype(np.int64)
    row, column, value = entries.row, entries.col.astype(np.int64), entries.data
    if pooling == "last":
        last = np.full(n, -1)
        np.maximum.at(last, group, np.arange(len(group)))
        kept = row == last[group[row]]
        row, column, value = row[kept], column[kept], value[kept]
    elif pooling == "mean" and rows is None:
        rows = np.bincount(group, minlength=n)
    # stable: in a pair of group and column the order of the rows stays, and with it that of the sums
    order = np.argsort(group[row] * matrix.shape[1] + column, kind="stable")
    where, column, pooled = pool_entries(group[row[order]], column[order], value[order], pooling, rows)
    return sparse.csr_matrix((pooled, (where, column)), shape=(n, matrix.shape[1]))


def pool_entries(
    group: I64, column: I64, value: F32, pooling: Pooling, rows: I64 | None = None
) -> tuple[I64, I64, F32]:
    """The same of activations [E] sorted by group, then column: group, column and pooled of each pair.

    For `mean`, `rows` int64 [n] is needed; for `last`, entries are those of last rows.
    """
    starts = np.flatnonzero((np.diff(group, prepend=-1) != 0) | (np.diff(column, prepend=-1) != 0))
    wide, where = value.astype(np.float64), group[starts]
    if not len(starts):
        return where, column, value
    if pooling == "max":
        low, high = np.minimum.reduceat(wide, starts), np.maximum.reduceat(wide, starts)
        pooled: F64 = np.where(-low > high, low, high)
    else:
        pooled = np.add.reduceat(wide, starts)
    if pooling == "mean":
        assert rows is not None
        pooled = pooled / rows[where]
    return where, column[starts], pooled.astype(np.float32)
