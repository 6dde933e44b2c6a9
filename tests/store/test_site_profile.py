"""The tables of `profile` against loops over dense activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from jobs.tables.coactivation import coactivation
from pipeline.store import FeatureStore
from pipeline.store.derived import profile as site_profile
from pipeline.store.derived.profile import feature_ranges, l0_thresholds, profile_tables
from pipeline.tasks import OneProcess, Processes
from schemas.run.file import parse_run_file
from schemas.tables.tables import L0_THRESHOLDS, LABEL_TRENDS, LABEL_VALUES, LABELS, PROFILE
from tests.fixtures.runs import PARTIES, extracted, run_content, run_file
from tests.fixtures.store import D_SAE, Built, build
from tests.statistics.test_comparison import by_hand_apart
from tests.statistics.test_trends import by_regression


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), shards=4, documents=8)


def nobody(_: int) -> None:
    """Is given how far the work is."""


def tables_of(root: Path, site: str = "site", **options: Any) -> dict[str, pl.DataFrame]:
    store = FeatureStore.open(root)
    return profile_tables(store, site, options.pop("tasks", OneProcess()), nobody, **options)


@pytest.fixture(scope="module")
def tables(built: Built) -> dict[str, pl.DataFrame]:
    return tables_of(built.layout.root)


def counted(tokens: pl.DataFrame, dense: np.ndarray) -> tuple[pl.DataFrame, np.ndarray]:
    kept = (tokens["token"] != 0).to_numpy()
    return tokens.filter(kept), dense[kept]


def check_profile(result: pl.DataFrame, rows: pl.DataFrame, dense: np.ndarray) -> None:
    """Every column but the intervals, one feature at a time; `rows` are counted ones."""
    assert dict(result.schema) == PROFILE
    assert result["feature"].to_list() == list(range(dense.shape[1]))
    n = rows.group_by("document").len()["len"].to_numpy()
    for feature, row in enumerate(result.iter_rows(named=True)):
        active = rows.filter(pl.Series(dense[:, feature] != 0))
        if active.is_empty():
            of_documents = 1 - 0.05 ** ((n**2).sum() / n.sum() ** 2)
            assert row["dead_upper"] == row["frequency_high"] == pytest.approx(of_documents)
            assert row["dead_upper_rows"] == pytest.approx(1 - 0.05 ** (1 / rows.height))
            assert (row["tokens"], row["frequency_low"]) == (0, 0)
            assert all(row[name] is None for name in list(PROFILE)[7:])
            continue
        tokens, counts = np.unique(active["token"], return_counts=True)
        expected = {
            "dead_upper": None,
            "dead_upper_rows": None,
            "tokens": len(tokens),
            "top_token": tokens[counts.argmax()],
            "top_token_share": counts.max() / active.height,
            "token_entropy_bits": stats.entropy(counts, base=2),
            "position_entropy_bits": stats.entropy(
                np.unique(active["position"], return_counts=True)[1], base=2
            ),
            "first_positions_share": (active["position"] <= 1).mean(),
            "first_context": active["context"].min(),
            "last_context": active["context"].max(),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        p = active.height / rows.height
        assert row["frequency_low"] < p < row["frequency_high"] or p == 1


def test_every_feature_is_described_as_a_loop_over_its_rows_does(
    built: Built, tables: dict[str, pl.DataFrame]
) -> None:
    rows, dense = counted(built.tokens, built.dense["site"])
    check_profile(tables["profile"], rows, dense)
    assert tables["profile"]["top_token"].null_count() >= D_SAE // 5


def test_the_standard_error_is_clustered_by_document(built: Built, tables: dict[str, pl.DataFrame]) -> None:
    rows, dense = counted(built.tokens, built.dense["site"])
    for feature, error in enumerate(tables["profile"]["frequency_se"]):
        x = pl.DataFrame({"document": rows["document"], "x": (dense[:, feature] != 0).astype(float)})
        sums = x.group_by("document").agg(pl.col("x").sum(), n=pl.len())
        p, d = x["x"].mean(), sums.height
        squares = ((sums["x"] - p * sums["n"]) ** 2).sum()
        assert error == (pytest.approx((d / (d - 1) * squares) ** 0.5 / x.height) if p else None)


def by_label(rows: pl.DataFrame, dense: np.ndarray, label: str, value: Any) -> list[dict[str, Any]]:
    """What `labels` must say of one value, by feature; documents without a value take no part."""
    known = rows[label].is_not_null().to_numpy()
    here = (rows[label] == value).fill_null(value=False).to_numpy()
    frame = pl.DataFrame({"document": rows["document"], "here": here})
    result = []
    for feature in range(dense.shape[1]):
        x = (dense[:, feature] != 0).astype(np.int64)
        documents = frame.with_columns(x=pl.Series(x)).filter(pl.Series(known))
        documents = documents.group_by("document", "here").agg(pl.col("x").sum(), n=pl.len())
        a, b = documents.filter("here"), documents.filter(~pl.col("here"))
        row = {
            "feature": feature,
            "label": label,
            "value": str(value),
            "rows": int(here.sum()),
            "n_active": int(x[here].sum()),
            "frequency": x[here].mean(),
            "mean_all": dense[here, feature].astype(np.float64).mean(),
            "difference": x[here].mean() - x[known & ~here].mean(),
            "z": None,
            "p": None,
        }
        smaller = min(
            min(a.height, b.height) / (a.height + b.height), min(a["n"].sum(), b["n"].sum()) / known.sum()
        )
        if ((documents["x"] > 0).sum() * smaller) >= 5:
            _, _, difference, se, p = by_hand_apart(
                *(side[name].to_numpy() for side in (b, a) for name in "xn")
            )
            row |= {"z": difference / se, "p": p}
        if row["n_active"] or row["p"] is not None:
            result.append(row)
    return result


def test_labels_are_compared_as_by_hand_and_documents_without_one_take_no_part(
    built: Built, tables: dict[str, pl.DataFrame]
) -> None:
    rows, dense = counted(built.tokens, built.dense["site"])
    table = tables["labels"]
    assert dict(table.schema) == LABELS
    assert table["label"].unique(maintain_order=True).to_list() == ["party", "year"]
    expected = []
    for label in ("party", "year"):
        for value in rows[label].drop_nulls().unique().sort():
            expected += by_label(rows, dense, label, value)
    expected.sort(key=lambda row: row["feature"])  # stable
    assert table.height == len(expected)
    tested = 0
    for result, row in zip(table.iter_rows(named=True), expected, strict=True):
        names = {name: row.pop(name) for name in ("label", "value")}
        assert {name: result[name] for name in names} == names
        for name, value in row.items():
            assert result[name] == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)), (
                name
            )
        tested += row["p"] is not None
    assert tested > 20
    for _, some in table.drop_nulls("p").group_by("label", "value"):
        np.testing.assert_allclose(some["q"], stats.false_discovery_control(some["p"].to_numpy()), rtol=1e-12)
    assert table.filter(pl.col("p").is_null())["q"].null_count() == table["p"].null_count()


def test_trends_are_regressions_of_all_rows_clustered_by_document(
    built: Built, tables: dict[str, pl.DataFrame]
) -> None:
    rows, dense = counted(built.tokens, built.dense["site"])
    known = rows["year"].is_not_null().to_numpy()
    documents = rows.filter(pl.Series(known)).group_by("document", maintain_order=True)
    documents = documents.agg(pl.col("year").first(), n=pl.len())
    table = tables["label_trends"]
    assert dict(table.schema) == LABEL_TRENDS
    fires = dense[known] != 0
    assert table["feature"].to_list() == np.flatnonzero(fires.any(0)).tolist()
    assert set(table["label"]) == {"year"}
    of_row = rows.filter(pl.Series(known))["document"]
    for row in table.iter_rows(named=True):
        frame = pl.DataFrame({"document": of_row, "x": fires[:, row["feature"]].astype(np.int64)})
        x = frame.group_by("document", maintain_order=True).agg(pl.col("x").sum())["x"].to_numpy()
        assert row["documents"] == (x > 0).sum()
        year = documents["year"].to_numpy().astype(np.float64)
        slope, se, p = by_regression(x, documents["n"].to_numpy().astype(np.int64), year)
        assert (row["slope"], row["se"]) == pytest.approx((slope, se), rel=1e-9)
        assert row["p"] is None or row["p"] == pytest.approx(p, rel=1e-9)
    tested = table.drop_nulls("p")
    assert tested.height > 10
    expected = stats.false_discovery_control(tested["p"].to_numpy())
    np.testing.assert_allclose(tested["q"], expected, rtol=1e-12)
    assert table["q"].null_count() == table.height - tested.height


def test_every_value_of_a_label_is_counted_none_too(built: Built, tables: dict[str, pl.DataFrame]) -> None:
    rows, _ = counted(built.tokens, built.dense["site"])
    result = tables["label_values"]
    assert dict(result.schema) == LABEL_VALUES
    party = result.filter(label="party")
    assert party["value"].to_list() == ["blue", "red", None]
    assert party["compared"].to_list() == [True, True, False]
    for value, documents, n in party.select("value", "documents", "rows").iter_rows():
        of = rows.filter(pl.col("party").eq_missing(pl.lit(value)))
        assert (documents, n) == (of["document"].n_unique(), of.height)
    years = result.filter(label="year")["value"].to_list()
    assert years == sorted(years, key=float)


def test_of_many_values_those_of_most_rows_are_compared_with_all_others(
    built: Built, tables: dict[str, pl.DataFrame]
) -> None:
    few = tables_of(built.layout.root, most=3)
    kept = few["label_values"].filter(label="year").filter("compared")
    rows = few["label_values"].filter(label="year")["rows"].sort(descending=True)
    assert kept["rows"].sort(descending=True).to_list() == rows[:3].to_list()
    whole = tables["labels"].filter(pl.col("value").is_in(kept["value"].implode()))
    assert few["labels"].filter(label="year").drop("q").equals(whole.drop("q"))


def test_a_label_may_have_the_name_of_a_count(tmp_path: Path) -> None:
    content = run_content(tmp_path)
    corpus = tmp_path / "corpus.parquet"
    pl.read_parquet(corpus).rename({"party": "rows", "year": "value"}).write_parquet(corpus)
    content["corpus"]["label_columns"] = ["rows", "value"]
    extracted(parse_run_file(content, "run.yaml"), tables=False)
    result = tables_of(tmp_path / "store", "mid")["label_values"]
    assert set(result.filter(label="rows")["value"]) == set(PARTIES)
    years = result.filter(label="value")["value"].to_list()
    assert years == sorted(years)
    assert (years[0], years[-1]) == ("1900", "1923")


def test_a_site_that_counts_no_row_has_tables_of_nothing(tmp_path: Path) -> None:
    content = run_content(tmp_path, sites=[])
    short = {"text": ["w1 w2 w3", "w4 w5"], "year": [1, 2], "party": ["a", "b"]}
    pl.DataFrame(short).write_parquet(tmp_path / "corpus.parquet")
    content["sites"] = [{"name": "mid", "sae": str(tmp_path / "sae-topk"), "positions": [14, 16]}]
    store = extracted(parse_run_file(content, "run.yaml"), tables=False)
    assert store.totals("mid").counted_rows == 0
    result = tables_of(tmp_path / "store", "mid")
    profile = result["profile"]
    assert profile["tokens"].to_list() == [0] * 64
    assert all(profile[name].null_count() == 64 for name in PROFILE if name not in ("feature", "tokens"))
    assert result["labels"].is_empty()
    paths = coactivation(store, "mid", decoder=False)
    assert [pl.read_parquet(path).height for path in paths] == [0]


def test_a_name_of_each_document_is_no_label(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_profile, "MOST_DISTINCT", 3)
    assert tables_of(built.layout.root)["label_values"]["label"].unique().to_list() == ["party"]


def test_no_bit_depends_on_ranges_or_layouts(
    built: Built, tables: dict[str, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_profile, "RANGE_BYTES", 1 << 16)
    ranges = feature_ranges(FeatureStore.open(built.layout.root), "site", 800)
    assert len(ranges) == 3
    assert [f for some in ranges for f in some] == list(range(D_SAE))
    build(tmp_path / "csr", shards=4, documents=8, layouts=["token_major"])
    for root in (built.layout.root, tmp_path / "csr"):
        for name, table in tables_of(root).items():
            assert table.equals(tables[name]), name


@pytest.mark.slow
def test_no_bit_depends_on_the_number_of_workers(
    built: Built, tables: dict[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_profile, "RANGE_BYTES", 1 << 16)
    with Processes(3) as tasks:
        for name, table in tables_of(built.layout.root, tasks=tasks).items():
            assert table.equals(tables[name]), name
        counts = [
            l0_thresholds(FeatureStore.open(built.layout.root), "site", (0.0, 1.0), t, nobody)
            for t in (tasks, OneProcess())
        ]
    assert counts[0].equals(counts[1])


def test_rows_with_so_many_strong_activations_are_counted_by_magnitude(built: Built) -> None:
    store = FeatureStore.open(built.layout.root)
    values = built.dense["site"][(built.tokens["token"] != 0).to_numpy()].astype(np.float64)
    limits = (0.0, 0.1, 0.5, float(np.float32(1.001)), 100.0)
    result = l0_thresholds(store, "site", limits, OneProcess(), nobody)
    assert dict(result.schema) == L0_THRESHOLDS
    expected = [
        (limit, int(l0), int(rows))
        for limit in limits
        for l0, rows in zip(*np.unique((np.abs(values) > limit).sum(1), return_counts=True), strict=True)
    ]
    assert result.rows() == expected
    assert (values < -0.5).any()
    l0 = store.fold_row_counts("site")
    assert result.filter(threshold=0).drop("threshold").equals(l0)


def lake_rows(store: FeatureStore, positions: slice) -> pl.DataFrame:
    """Every row of a lake with document, context, position, token, and whether it is counted."""
    rows = []
    for context in store.scan_tokens().collect().iter_rows(named=True):
        starts = [0, *(segment["start"] for segment in context["segments"][1:])]
        for position, token in enumerate(context["token_ids"]):
            segment = context["segments"][np.searchsorted(starts, position, side="right") - 1]
            kept = context["counted"][position] and position in range(16)[positions]
            rows.append((segment["document"], context["context"], position, token, kept))
    return pl.DataFrame(rows, schema=["document", "context", "position", "token", "kept"], orient="row")


def test_a_real_lake_a_site_of_some_positions_and_both_signs(tmp_path: Path) -> None:
    site = run_content(tmp_path, "abstopk")["sites"][0] | {"positions": [1, 9, 2]}
    store = extracted(run_file(tmp_path, "abstopk", sites=[site]), tables=False)
    rows = lake_rows(store, slice(1, 9, 2))
    dense = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    kept = rows["kept"].to_numpy()
    check_profile(tables_of(store.layout.root, "mid")["profile"], rows.filter("kept"), dense[kept])
    assert (dense[~kept] == 0).all()


def test_one_document_one_shard(tmp_path: Path) -> None:
    built = build(tmp_path, shards=1, documents=1, seed=3)
    tables = tables_of(tmp_path)
    rows, dense = counted(built.tokens, built.dense["site"])
    fired = (dense != 0).any(0)
    profile = tables["profile"]
    assert profile["frequency_high"].is_null().to_list() == (fired & ((dense == 0).any(0))).tolist()
    assert profile["frequency_se"].null_count() == D_SAE
    assert (
        tables["labels"].select("difference", "z", "p", "q").null_count().row(0)
        == (tables["labels"].height,) * 4
    )
    assert tables["labels"].filter(label="year")["n_active"].to_list() == (dense != 0).sum(0)[fired].tolist()
    assert rows["document"].n_unique() == 1
