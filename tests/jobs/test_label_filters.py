"""COLUMN=VALUE: what is misspelt is refused with what is nearest; what never fires is not a mistake."""

from __future__ import annotations

import re
import time
from pathlib import Path

import polars as pl
import pytest

from jobs import cli
from pipeline.store import FeatureStore
from pipeline.store.reading.conditions import nearest
from tests.fixtures.runs import extracted, run_file, write_corpus
from tests.kit import write_tiny_tokenizer


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Labels of every type; party and year as in `write_corpus`."""
    folder = tmp_path_factory.mktemp("lake")
    write_tiny_tokenizer(folder / "tokenizer")
    corpus = pl.read_parquet(write_corpus(folder / "corpus.parquet"))
    more = {"score": [n / 4 for n in range(24)], "veto": [n % 2 == 0 for n in range(24)], "won": [True] * 24}
    corpus.with_columns(**{name: pl.Series(values) for name, values in more.items()}).write_parquet(
        folder / "corpus.parquet"
    )
    labels = {"label_columns": ["party", "year", "score", "veto", "won"]}
    return extracted(run_file(folder, corpus=labels, tokens={"contexts": "document", "context_size": 128}))


@pytest.fixture(scope="module")
def feature(store: FeatureStore) -> int:
    return int(store.scan_features("mid").sort("n_active").last().collect()["feature"][0])


def says(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and all that a command prints, on one line."""
    code = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as done:
        code = int(done.code or 0)
    captured = capsys.readouterr()
    return code, re.sub(r"\s+", " ", captured.out + captured.err)


REFUSED = [
    ("party=whig", "no document has that value of label party; the nearest is 'Whig'"),
    ("party=Federalists", "the nearest is 'Federalist'"),
    ("party=Bull  Moose", "the nearest is 'Bull Moose'"),
    ("party=", "the nearest of 3 are 'Bull Moose', 'Federalist', 'Whig'"),
    ("partys=Whig", "no label 'partys'; did you mean party?"),
    ("yeer=1903", "no label 'yeer'; did you mean year?"),
    ("nation=x", "no label 'nation'; it has party, score, veto, won, year"),
    ("year=1899", "the nearest of 24 are 1900, 1901, 1902"),
    ("year=1903.5", "the nearest of 24 are 1903, 1904, 1902"),
    ("year=123456789012345678901234567890", "the nearest of 24 are 1923, 1922, 1921"),
    ("year=old", "'old' is not a number"),
    ("year=nan", "'nan' is not a number"),
    ("year=1_900", "'1_900' is not a number"),
    ("score=0.26", "the nearest of 24 are 0.25, 0.5, 0"),
    ("won=false", "no document has that value of label won; the nearest is True"),
    ("won=maybe", "label won is Boolean, and 'maybe' is not true or false"),
    ("party", "COLUMN=VALUE"),
    ("", "a condition is missing"),
    ("party=Whig and year=old", "label year is Int64, and 'old' is not a number"),
    ("party=Whig and nation=x", "no label 'nation'; it has party"),
    ("year > 1900 and (party=Whig", "at character 17 ('(party=Whig'), this parenthesis is not closed"),
    ("year > 2000", "no document fits that condition"),
    ("year > 1900 and party=whig", "no document has the value 'whig' of label party; the nearest is 'Whig'"),
    ("party=Whig and Tory", "'Whig' (read as COLUMN=VALUE, for as a condition at character 16"),
    ("party=Whig and (year=1900", "this parenthesis is not closed"),
    ("won < true", "label won is Boolean, which is compared by = and != alone, not by <"),
    ("(" * 9999, "nested more than 100 deep"),
]


@pytest.mark.parametrize(("where", "message"), REFUSED)
def test_what_no_document_has_is_refused_with_what_is_nearest(
    store: FeatureStore,
    feature: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    where: str,
    message: str,
) -> None:
    root = store.layout.root
    for arguments in (
        ("top", root, feature),
        ("heatmap", root, "--features", feature, "--out", tmp_path / "map.png"),
    ):
        code, text = says(capsys, *arguments, "--where", where)
        assert (code, message in text) == (2, True), text
    assert not (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    "where",
    [
        *("year=1903", "year=1903.0", "score=0.75", "score=.75", "veto=TRUE", "won=1", "party=Bull Moose"),
        *("Year == 1903", "year > 1903", "not party=Whig", "party='Bull Moose' or year < 1903"),
        "(party=Whig or party = Federalist) and not (year <= 1,901 or score > 400%)",
    ],
)
def test_values_are_of_the_type_of_their_column(
    store: FeatureStore, feature: int, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    code, text = says(capsys, "top", store.layout.root, feature, "--where", where)
    assert code == 0
    assert "strongest rows" in text


def test_a_value_that_is_there_and_where_nothing_fires_is_no_mistake(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    rare = int(store.scan_features("mid").sort("n_active").first().collect()["feature"][0])
    years = store.contexts("mid", rare, 10_000)["year"].unique().to_list()
    elsewhere = next(year for year in range(1900, 1924) if year not in years)
    code, text = says(capsys, "top", store.layout.root, rare, "--where", f"year={elsewhere}")
    assert (code, "never fires there" in text) == (0, True)
    code, text = says(capsys, "top", store.layout.root, rare, "--where", "party=Whigs")
    assert (code, "nearest is 'Whig'" in text) == (2, True)


def test_each_of_several_conditions_is_looked_at(
    store: FeatureStore, feature: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rare = int(store.scan_features("mid").sort("n_active").first().collect()["feature"][0])
    years = store.contexts("mid", rare, 10_000)["year"].unique().to_list()
    elsewhere = next(year for year in range(1900, 1924, 3) if year not in years)  # a Whig's
    conditions = ["--where", "party=Whig", "--where", f"year={elsewhere}"]
    code, text = says(capsys, "top", store.layout.root, rare, *conditions)
    assert (code, "never fires there" in text) == (0, True)
    for other in ("year=1901", "party=Federalist"):  # of a Federalist
        conditions[-1] = other
        code, text = says(capsys, "top", store.layout.root, feature, *conditions)
        message = f"no document has all of --where 'party=Whig' and --where '{other}', though some "
        "documents have each"
        assert (code, message in text) == (2, True)
    conditions[-1] = "year=2001"
    code, text = says(capsys, "top", store.layout.root, feature, *conditions)
    assert (code, "the nearest of 24 are 1923" in text) == (2, True)


def test_among_very_many_values_the_nearest_is_there_soon() -> None:
    names = [f"name {n:06d}" for n in range(300_000)] + ["Abraham Lincoln"]
    began = time.monotonic()
    assert nearest("abraham lincon", names)[0] == "Abraham Lincoln"
    assert time.monotonic() - began < 5
