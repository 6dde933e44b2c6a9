"""Tables of truth against measured, on small made-up sides."""

from __future__ import annotations

import numpy as np
import polars as pl

from jobs.studies.known.compare import (
    Side,
    detected_hierarchy,
    expected_means,
    features_table,
    measured_columns,
)
from jobs.studies.known.counts import Counts
from jobs.studies.known.matching import Cosines, assigned, cosines_with, literal_order
from jobs.studies.known.reconstruction import Reconstructed
from pipeline.synthetic.dictionary.generator import NumpyDictionary
from pipeline.synthetic.dictionary.truth import truth_of
from schemas.tables.tables import TRUTH
from tests.dictionary.test_generator import recipe


def side(vectors: np.ndarray, rows: np.ndarray, architecture: str = "jumprelu") -> Side:
    decoder = cosines_with(rows, vectors)
    weights = {"W_enc": rows.T, "b_enc": np.full(len(rows), 0.1), "b_dec": np.zeros(rows.shape[1])}
    return Side(
        weights, {"architecture": architecture}, Cosines(decoder, decoder), literal_order(decoder),
        assigned(decoder), "float16",
    )  # fmt: skip


def feature_table(n_active: list[int], rows: int = 100) -> pl.DataFrame:
    n = np.array(n_active)
    fired = pl.Series([1.5 if k else None for k in n_active])
    return pl.DataFrame(
        {
            "feature": np.arange(len(n)),
            "counted_rows": rows,
            "n_active": n,
            "frequency": n / rows,
            "mean_active": fired,
            "var_active": pl.Series([0.25 if k > 1 else None for k in n_active]),
        }
    )


def test_an_sae_of_more_features_than_there_are_leaves_some_without_a_true_one():
    truth = truth_of(NumpyDictionary(recipe(correlated=[], trees=[])))
    extra = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    rows = np.concatenate([extra, truth.vectors[::-1]])
    one = side(truth.vectors, rows)
    counts = Counts(np.zeros(0, np.int64), np.full(24, 10), np.full(24, 5), np.full(27, 4), Reconstructed())
    table = features_table(truth, one, feature_table([0, 1, 2] + [20] * 24), counts, redrawn=True)
    assert table.schema == pl.Schema(TRUTH)
    assert table["true_feature"].to_list() == [None, None, None, *range(23, -1, -1)]
    assert table[:3].select("true_frequency", "n_hits", "precision", "recall").null_count().row(0) == (3,) * 4
    assert table["n_active"].to_list() == [0, 1, 2] + [20] * 24
    assert (table["precision"][5], table["recall"][5]) == (0.25, 0.5)
    assert sorted(table["place"].to_list()) == list(range(27))
    plain = features_table(truth, one, feature_table([20] * 27), counts, redrawn=False)
    assert plain["n_drawn"].is_null().all()
    assert plain["recall"].is_null().all()


def test_the_mean_that_an_encoder_gives_counts_gain_leaks_and_biases_and_is_unknown_of_others():
    truth = truth_of(NumpyDictionary(recipe()))
    rows = (2 * truth.vectors + 0.1 * np.random.default_rng(1).standard_normal((24, 32))).astype(np.float32)
    one = side(truth.vectors, rows)
    result = expected_means(truth, one)
    for feature, true in zip(one.match.feature, one.match.true_feature, strict=True):
        x = truth.means_when_active(int(true)) @ truth.vectors + truth.bias
        assert abs(result[feature] - (x @ rows[feature] + 0.1)) < 1e-4
    assert np.isnan(expected_means(truth, side(truth.vectors, rows, "topk"))).all()


def test_what_never_fires_has_an_upper_end_and_no_mean():
    row = measured_columns(feature_table([0, 1, 50]), "float16").rows(named=True)
    assert (row[0]["frequency_low"], round(row[0]["frequency_high"], 4)) == (0.0, 0.0362)
    assert [np.isnan(one["mean_low"]) for one in row] == [True, True, False]


def test_a_child_is_found_where_chance_does_not_explain_it():
    pairs = [  # child, parent, n_both, n_a, n_b of 1,000 rows
        (1, 0, 40, 40, 300),
        (2, 0, 2, 2, 900),  # such a frequent one fires in two rows by chance
        (3, 0, 39, 40, 300),  # once without it
        (0, 4, 300, 300, 300),  # equals are no child and parent
    ]
    columns = ["feature", "neighbour", "n_both", "n_a", "n_b"]
    neighbours = pl.DataFrame(pairs, schema=columns, orient="row").with_columns(
        by=pl.lit("conditional"), conditional=pl.col("n_both") / pl.col("n_a")
    )
    features = feature_table([300, 40, 2, 40, 300], rows=1000)
    assert detected_hierarchy(neighbours, features).select("child", "parent").rows() == [(1, 0)]
    assert detected_hierarchy(neighbours, features, 0.9).select("child", "parent").rows() == [(1, 0), (3, 0)]
