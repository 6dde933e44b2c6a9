"""One-to-one matches of highest total score between n things and m others; a pair may be left out for 0.

Exactly over all pairs where the matrix fits in memory (the algorithm of Jonker and Volgenant 1987 as Crouse
2016 has it, `scipy.optimize.linear_sum_assignment`), else exactly over candidate pairs alone (LAPJVsp,
`scipy.sparse.csgraph.min_weight_full_bipartite_matching`).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from schemas.values import F32, F64, I64

MATRIX_BYTES = 1 << 29
"""Of a float64 matrix of all costs; scores of half its size are in memory with it."""


def fits(n: int, m: int) -> bool:
    """Whether scores of all pairs fit in memory."""
    return 8 * n * m <= MATRIX_BYTES


def assign_all(scores: F32) -> tuple[I64, I64]:
    """Pairs (row, column) of the best assignment over a matrix [n, m], those with a positive score."""
    return assign_costs(np.negative(scores, dtype=np.float64))


def assign_costs(costs: F64) -> tuple[I64, I64]:
    """The same of scores times -1, float64 [n, m], contiguous, which are cut at 0: no copy is made."""
    np.minimum(costs, 0, out=costs)
    row, column = linear_sum_assignment(costs)
    positive = costs[row, column] < 0
    return row[positive], column[positive]


def assign_candidates(row: I64, column: I64, score: F64, shape: tuple[int, int]) -> tuple[I64, I64]:
    """The same over candidate pairs, each given once; scores up to 1."""
    positive = score > 0
    rows, own = np.unique(row[positive], return_inverse=True)
    if not len(rows):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # A matching must use every row, and no cost may be 0: so each row has a column of its own, which costs
    # what a score of 0 does, and costs are 2 minus the score, which adds the same to every matching.
    own_column = np.arange(len(rows))
    costs = np.append(2 - score[positive], np.full(len(rows), 2.0))
    places = np.append(own, own_column), np.append(column[positive], shape[1] + own_column)
    graph = sparse.csr_matrix((costs, places), shape=(len(rows), shape[1] + len(rows)))
    matched_row, matched_column = min_weight_full_bipartite_matching(graph)
    real = matched_column < shape[1]
    return rows[matched_row[real]].astype(np.int64), matched_column[real].astype(np.int64)
