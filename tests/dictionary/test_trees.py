"""Who fires in a tree, and how often: the closed form against every case, and against draws."""

from __future__ import annotations

from itertools import permutations, product
from math import factorial

import numpy as np
import pytest

from pipeline.synthetic.dictionary.trees import fire, joint_frequencies, relations
from schemas.run.dictionary_corpus import Dictionary, Node

TREE = {
    "feature": 0,
    "children": [
        {"feature": 1},
        {"feature": 2, "exclusive": True, "children": [{"feature": 3}, {"feature": 4}, {"feature": 5}]},
        {
            "exclusive": True,
            "children": [
                {"feature": 6, "children": [{"feature": 7}]},
                {"children": [{"feature": 8}, {"feature": 9}]},
            ],
        },
    ],
}
ALONE = np.array([0.7, 0.5, 0.6, 0.5, 0.4, 0.9, 0.3, 0.5, 0.2, 0.6])


def node(content: dict) -> Node:
    return Node.model_validate(content)


def enumerated(tree: dict, alone: np.ndarray) -> np.ndarray:
    """How often pairs fire together, by going through what every feature may draw and every order of lots."""
    n, groups = len(alone), list(exclusive_groups(tree))
    share, both = 1 / np.prod([factorial(len(group)) for group in groups]), np.zeros((n, n))
    for would in product([False, True], repeat=n):
        chance = np.prod(np.where(would, alone, 1 - alone)) * share
        for lots in product(*(permutations(group) for group in map(list_of_ids, groups))):
            order = [one for lot in lots for one in lot]
            fires = np.zeros(n, bool)
            settle(tree, wishes(tree, would), would, order, fires)
            both += chance * np.outer(fires, fires)
    return both


def exclusive_groups(tree):
    if tree.get("exclusive"):
        yield tree["children"]
    for child in tree.get("children", []):
        yield from exclusive_groups(child)


def list_of_ids(nodes):
    return [id(one) for one in nodes]


def wishes(tree, would):
    if "feature" in tree:
        return would[tree["feature"]]
    return any(wishes(child, would) for child in tree["children"])


def settle(tree, on, would, order, fires):
    if "feature" in tree:
        fires[tree["feature"]] = on
    requested = list_of_ids(child for child in tree.get("children", []) if on and wishes(child, would))
    if tree.get("exclusive") and requested:
        requested = [min(requested, key=order.index)]
    for child in tree.get("children", []):
        settle(child, id(child) in requested, would, order, fires)


def test_frequencies_alone_and_together_are_those_of_all_cases():
    result = joint_frequencies(node(TREE), ALONE)
    order = np.argsort(result.features)
    np.testing.assert_allclose(result.frequency[np.ix_(order, order)], enumerated(TREE, ALONE), rtol=1e-12)


def test_draws_fire_as_often_and_a_child_never_without_its_parent():
    rng = np.random.default_rng(0)
    would = rng.random((200_000, 10)) < ALONE
    fires = fire([node(TREE)], would, rng)
    result = joint_frequencies(node(TREE), ALONE)
    expected = np.zeros((10, 10))
    expected[np.ix_(result.features, result.features)] = result.frequency
    measured = (fires.astype(float).T @ fires) / len(fires)
    error = np.sqrt(expected * (1 - expected) / len(fires))
    assert (np.abs(measured - expected) <= 5 * error).all()
    pairs = relations([node(TREE)])
    for child, above in pairs.ancestors:
        assert not (fires[:, child] & ~fires[:, above]).any()
    for a, b in pairs.exclusive:
        assert not (fires[:, a] & fires[:, b]).any()


def test_relations_name_the_nearest_feature_above_all_above_and_exclusive_pairs():
    result = relations([node(TREE)])
    assert result.parents.tolist() == [[1, 0], [2, 0], [3, 2], [4, 2], [5, 2], [6, 0], [7, 6], [8, 0], [9, 0]]
    parents, ancestors = (
        {tuple(pair) for pair in some.tolist()} for some in (result.parents, result.ancestors)
    )
    assert ancestors - parents == {(3, 0), (4, 0), (5, 0), (7, 0)}
    assert result.exclusive.tolist() == [[3, 4], [3, 5], [4, 5], [6, 8], [6, 9], [7, 8], [7, 9]]


def test_lots_do_not_depend_on_who_wishes_so_another_tree_changes_nothing_else():
    trees = [node({"exclusive": True, "children": [{"feature": 0}, {"feature": 1}]})]
    would = np.ones((1000, 3), bool)
    few = would.copy()
    few[500:, 0] = False
    a, b = (fire(trees, some, np.random.default_rng(3)) for some in (would, few))
    assert (a[:500] == b[:500]).all()
    assert a[:, :2].sum(axis=1).tolist() == [1] * 1000
    assert 400 < a[:, 0].sum() < 600


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        (
            [{"feature": 1, "children": [{"feature": 2, "children": [{"feature": 1}]}]}],
            "1 is its own descendant",
        ),
        ([{"children": [{"feature": 1}, {"feature": 1}]}], "1 appears twice in a tree"),
        ([{"feature": 1}, {"feature": 2}, {"feature": 1}], "1 is in several trees"),
        (
            [{"feature": 1, "exclusive": True, "children": [{"feature": 2}]}],
            "node 1 is exclusive, which requires at least two",
        ),
        ([{"children": []}], "neither a feature nor children"),
        ([{"feature": 64}], "names feature 64; features are numbered 0 to 63"),
        ([{"feature": 8}], "feature 8 is in a correlated group and in a tree"),
    ],
)
def test_a_wrong_tree_is_refused_in_a_sentence(trees, message):
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=message):
        Dictionary.model_validate(
            {
                "features": 64,
                "width": 64,
                "trees": trees,
                "correlated": [{"features": [8, 9], "correlation": 0.5}],
            }
        )
