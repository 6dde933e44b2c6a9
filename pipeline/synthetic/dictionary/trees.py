"""Trees of features: who fires in a row, and how often each does, exactly.

Shapes: N rows, F features. A feature *would fire* where its own draw says so; it fires where its parent does
too, and where it wins among exclusive siblings. A node without a feature would fire where a child would, and
the parent of its children is the node above it. (The hierarchies of sae-lens; there a node without a feature
takes no part in an exclusion.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from schemas.run.dictionary_corpus import Node, features_below, with_ancestors
from schemas.values import F64, Bool


def fire(trees: Sequence[Node], would: Bool, rng: Generator) -> Bool:
    """Which features fire, bool [N, F], given which would; features outside of trees do as they would."""
    fires = would.copy()
    for tree in trees:
        _draw_below(tree, would_fire(tree, would), would, fires, rng)
    return fires


def would_fire(node: Node, would: Bool) -> Bool:
    """Bool [N]."""
    if node.feature is not None:
        return would[:, node.feature]
    some: Bool = np.logical_or.reduce([would_fire(child, would) for child in node.children])
    return some


def _draw_below(node: Node, on: Bool, would: Bool, fires: Bool, rng: Generator) -> None:
    """Write who fires at and below a node that is on in some rows, bool [N]."""
    if node.feature is not None:
        fires[:, node.feature] = on
    if not node.children:
        return
    candidates = np.stack([would_fire(child, would) for child in node.children], axis=1) & on[:, None]
    if node.exclusive:
        # a random one of each row's; all columns draw, so that the number of draws depends on no row
        draws = np.where(candidates, rng.random(candidates.shape), -1.0)
        candidates &= np.arange(candidates.shape[1]) == draws.argmax(axis=1)[:, None]
    for child, of_child in zip(node.children, candidates.T, strict=True):
        _draw_below(child, of_child, would, fires, rng)


class JointFrequencies(NamedTuple):
    """Features of a tree [n]; how often two of them fire together, float64 [n, n], one on the diagonal."""

    features: list[int]
    frequency: F64


def joint_frequencies(node: Node, would: F64) -> JointFrequencies:
    """Those at and below a node, in rows in which it may fire, where features would fire so often alone.

    Exactly: draws are independent, a child that would fire next to K exclusive siblings wins with
    1 / (1 + K), and what lies below two children of a node is independent where it is not exclusive.
    """
    parts = [joint_frequencies(child, would) for child in node.children]
    chances = np.array([_chance(child, would) for child in node.children])
    wins = [_win_probability(np.delete(chances, n)) if node.exclusive else 1.0 for n in range(len(parts))]
    features = [feature for part in parts for feature in part.features]
    alone = np.concatenate(
        [np.empty(0), *(w * p.frequency.diagonal() for w, p in zip(wins, parts, strict=True))]
    )
    both = np.zeros((len(features), len(features))) if node.exclusive else np.outer(alone, alone)
    # inside of one child's part the pairs are what they are there, in the rows in which the child wins
    start = 0
    for win, part in zip(wins, parts, strict=True):
        some = slice(start, start := start + len(part.features))
        both[some, some] = win * part.frequency
    if node.feature is None:
        return JointFrequencies(features, both)
    # with the feature above them: none fires without it, so both fire as often as the one below does
    matrix = np.ones((len(features) + 1, len(features) + 1))
    matrix[1:, 1:] = both
    matrix[0, 1:] = matrix[1:, 0] = both.diagonal()
    return JointFrequencies([node.feature, *features], would[node.feature] * matrix)


def _chance(node: Node, would: F64) -> float:
    """That a node would fire."""
    if node.feature is not None:
        return float(would[node.feature])
    return 1 - float(np.prod([1 - _chance(child, would) for child in node.children]))


def _win_probability(others: F64) -> float:
    """E[1 / (1 + K)], K of these events happening: coefficients of prod (1 - p + p z) are P(K = k)."""
    counts = np.ones(1)
    for p in others:
        counts = np.convolve(counts, [1 - p, p])
    return float((counts / np.arange(1, len(counts) + 1)).sum())


class Relations(NamedTuple):
    """Pairs of features, int64 [pairs, 2] each: child and parent, child and any ancestor, exclusive ones."""

    parents: NDArray[np.int64]
    ancestors: NDArray[np.int64]
    exclusive: NDArray[np.int64]


def relations(trees: Sequence[Node]) -> Relations:
    """What trees say about pairs; the parent of a feature is the nearest one above it."""
    parents, ancestors, exclusive = list[tuple[int, int]](), list[tuple[int, int]](), list[tuple[int, int]]()
    for tree in trees:
        for feature, above in with_ancestors(tree):
            parents += [(feature, above[-1])] if above else []
            ancestors += [(feature, ancestor) for ancestor in above]
        exclusive += _exclusive(tree)
    lists = (parents, ancestors, exclusive)
    return Relations(*(np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2) for pairs in lists))


def _exclusive(node: Node) -> list[tuple[int, int]]:
    """Pairs that never fire together: what is below an exclusive child with what is below another."""
    pairs = [pair for child in node.children for pair in _exclusive(child)]
    if node.exclusive:
        groups = [features_below(child) for child in node.children]
        for group, other in combinations(groups, 2):
            pairs += [(min(a, b), max(a, b)) for a, b in product(group, other)]
    return pairs
