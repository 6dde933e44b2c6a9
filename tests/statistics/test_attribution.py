"""Attributions by label are those of loops over prompts, in any cut; selections are by the book."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from pipeline.statistics.evaluation.attribution import combine, finalize, partial, select, with_effects
from schemas.tables.attribution import ATTRIBUTION_SELECTION, ATTRIBUTIONS

D_SAE = 1000


def made(prompts=40, entries=400, seed=0):
    """Labels of prompts, and entries: contexts, features (some twice in a prompt), two numbers of each."""
    rng = np.random.default_rng(seed)
    values = pl.DataFrame(
        {
            "job": [None if n % 7 == 0 else f"job {n % 3}" for n in range(prompts)],
            "age": ["young" if n < prompts // 2 else "old" for n in range(prompts)],
        }
    )
    context = np.sort(rng.integers(0, prompts, entries))
    feature = rng.integers(0, 12, entries) * 83
    return values, context, feature, rng.standard_normal((2, entries))


def by_hand(values, context, feature, numbers):
    """(label, value, feature) -> the numbers of each prompt of the value, [2, prompts]; active ones."""
    result = {}
    for label in values.columns:
        for value in values[label].drop_nulls().unique():
            mine = np.flatnonzero((values[label] == value).fill_null(value=False).to_numpy())
            for f in np.unique(feature[np.isin(context, mine)]):
                sums = [[n[(context == c) & (feature == f)].sum() for c in mine] for n in numbers]
                result[label, value, int(f)] = np.array(sums), np.isin(mine, context[feature == f]).sum()
    return result


@pytest.fixture(scope="module")
def table():
    values, context, feature, numbers = made()
    return finalize(combine([partial(values, context, feature, tuple(numbers), D_SAE)]))


def test_means_and_errors_are_over_all_prompts_of_a_value(table):
    values, context, feature, numbers = made()
    expected = by_hand(values, context, feature, numbers)
    assert table.schema == pl.Schema(ATTRIBUTIONS)
    assert table.height == len(expected) > 50
    for row in table.iter_rows(named=True):
        sums, active = expected[row["label"], row["value"], row["feature"]]
        assert (row["prompts"], row["active"]) == (sums.shape[1], active)
        assert (row["ig"], row["ig2"]) == pytest.approx(sums.mean(axis=1), abs=1e-12)
        errors = sums.std(axis=1, ddof=1) / np.sqrt(sums.shape[1])
        assert (row["ig_se"], row["ig2_se"]) == pytest.approx(errors, rel=1e-9)


def test_prompts_may_come_in_any_cut(table):
    values, context, feature, numbers = made()
    parts = []
    for first, stop in ((0, 11), (11, 12), (12, 40)):
        mine = (context >= first) & (context < stop)
        some = tuple(number[mine] for number in numbers)
        parts.append(partial(values[first:stop], context[mine] - first, feature[mine], some, D_SAE))
    result = finalize(combine(parts))
    assert result.select("label", "value", "feature", "prompts", "active").equals(
        table.select("label", "value", "feature", "prompts", "active")
    )
    for name in ("ig", "ig_se", "ig2", "ig2_se"):
        np.testing.assert_allclose(result[name], table[name], rtol=1e-10, atol=1e-15)


def test_one_prompt_has_no_error_and_none_at_all_no_rows():
    values = pl.DataFrame({"age": ["old"]})
    one = finalize(
        combine([partial(values, np.zeros(1, int), np.array([5]), (np.ones(1), np.ones(1)), D_SAE)])
    )
    assert one.rows() == [("age", "old", 5, 1, 1, 1.0, None, 1.0, None)]
    nothing = (np.empty(0, int), np.empty(0, int), (np.empty(0), np.empty(0)))
    assert finalize(combine([partial(values, *nothing, D_SAE)])).is_empty()
    assert finalize(combine([])).is_empty()


def test_a_values_first_features_are_those_of_largest_score_and_all_see_the_union():
    rows = [
        ("a", "x", 1, 10, 5, 0.5),
        ("a", "x", 2, 10, 5, -0.9),
        ("a", "x", 3, 10, 5, 0.5),
        ("a", "x", 4, 10, 1, 0.0),
        ("a", "y", 1, 20, 7, 0.1),
        ("a", "y", 9, 20, 2, None),
    ]
    schema = ["label", "value", "feature", "prompts", "active", "ig"]
    scores = pl.DataFrame(rows, schema=schema, orient="row", schema_overrides={"feature": pl.UInt32})
    result = select(scores, "ig", 2)
    assert result.schema == pl.Schema(ATTRIBUTION_SELECTION)
    assert result.select("value", "feature", "score", "rank", "prompts", "active").rows() == [
        ("x", 1, 0.5, 1, 10, 5),  # of 1 and 3, equal, the lower number
        ("x", 2, -0.9, 0, 10, 5),
        ("y", 1, 0.1, 0, 20, 7),
        ("y", 2, 0.0, None, 20, 0),
    ]
    assert result["holds"].null_count() == 4


@pytest.mark.parametrize("squared", [False, True])
def test_an_effect_holds_where_its_interval_leaves_0_out_on_the_side_of_its_score(squared):
    rng = np.random.default_rng(1)
    values = pl.DataFrame({"age": ["old"] * 30})
    effects = {
        5: 1 + rng.standard_normal(30),
        6: 0.01 * rng.standard_normal(30),
        7: -2 + rng.standard_normal(30),
    }
    context, feature = np.tile(np.arange(30), 3), np.repeat([5, 6, 7], 30)
    numbers = [np.zeros(90), np.zeros(90)]
    numbers[squared] = np.concatenate(list(effects.values()))
    order = np.lexsort((feature, context))
    sums = partial(values, context[order], feature[order], tuple(n[order] for n in numbers), D_SAE)
    scores = pl.DataFrame(
        {
            "label": "age",
            "value": "old",
            "feature": [5, 6, 7],
            "prompts": 30,
            "active": 30,
            "ig": [1.0, 1.0, 1.0],
        },
        schema_overrides={"feature": pl.UInt32},
    )
    result = with_effects(select(scores, "ig", 5), combine([sums]), squared=squared)
    assert result["holds"].to_list() == [True, False, False]  # 7: clear, but against its score
    for row in result.iter_rows(named=True):
        mine = effects[row["feature"]]
        ends = stats.t.interval(0.95, 29, mine.mean(), stats.sem(mine))
        assert row["effect"] == pytest.approx(mine.mean())
        assert (row["effect_low"], row["effect_high"]) == pytest.approx(ends)
