"""`latentlake find`: against loops over dense activations, windows and columns; and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from jobs import cli
from jobs.tables.coactivation import coactivation
from jobs.tables.examples import examples
from jobs.tables.profile import profile
from jobs.tables.stats import stats
from jobs.views.find import find
from pipeline.store import FeatureStore
from pipeline.store.reading.example_texts import text_pattern
from pipeline.store.reading.finding import by_columns, by_name, near_text, on_token, similar, token_ids
from pipeline.store.reading.windows import AFTER, BEFORE
from pipeline.store.records.annotations import annotate
from schemas.errors import InputError
from tests.fixtures.runs import extracted, run_file
from tests.fixtures.store import Built, build, decoder, put_decoders, put_vocabulary

TEXTS = {
    7: "Cotton",
    8: " cotton",
    9: "tonic",
    10: " cot",
    11: "ton",
    12: "é",
    13: " gin",
    14: "\n",
    15: " 전",
    16: "쟁은",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    built = build(tmp_path_factory.mktemp("store"), shards=3, documents=8)
    put_vocabulary(built.layout, [TEXTS.get(token, f" w{token}") for token in range(50)])
    store = FeatureStore.open(built.layout.root)
    stats(store, "site")
    examples(store, "site")
    profile(store, "site", least=2)
    return built


@pytest.fixture
def store(built: Built) -> FeatureStore:
    return FeatureStore.open(built.layout.root)


@pytest.mark.parametrize("by", ["f1", "precision", "recall", "mean_active", "n_active"])
def test_features_of_a_token_are_those_of_a_loop(built: Built, store: FeatureStore, by: str) -> None:
    here, dense = (built.tokens["token"] == 20).to_numpy(), built.dense["site"]
    expected = []
    for feature in range(dense.shape[1]):
        active = dense[:, feature] != 0
        both = active & here
        if both.sum() >= 2:
            recall, precision = both.sum() / here.sum(), both.sum() / active.sum()
            row = {"feature": feature, "n_active": both.sum(), "recall": recall, "precision": precision}
            row["f1"] = 2 * both.sum() / (here.sum() + active.sum())
            row["mean_active"] = dense[both, feature].astype(np.float64).mean()
            expected.append(row)
    expected.sort(key=lambda row: (-abs(row[by]), row["feature"]))
    found = on_token(store, "site", token_ids(store, " w20"), by=by).drop("token_id")
    assert len(expected) > 5
    assert found["feature"].to_list() == [row["feature"] for row in expected]
    for row, other in zip(found.iter_rows(named=True), expected, strict=True):
        assert row == pytest.approx(other)


def by_windows(built: Built, store: FeatureStore, pattern: str) -> dict[int, tuple[int, int]]:
    """Feature -> its examples with the text, and all, by cutting each window and searching its text."""
    rows = built.tokens
    kept = pl.col("kind").is_in(["top", "top_document"])
    table = store.scan_table("site", "examples").filter(kept).select("feature", "row").unique().collect()
    found: dict[int, tuple[int, int]] = {}
    for feature, row in table.iter_rows():
        context = rows.filter(pl.col("context") == rows["context"][int(row)])
        window = context.filter(pl.col("row").is_between(int(row) - BEFORE, int(row) + AFTER))
        text = "".join(TEXTS.get(token, f" w{token}") for token in context["token"])
        starts = np.cumsum([0, *(len(TEXTS.get(token, f" w{token}")) for token in context["token"])])
        low, high = (int(window["row"][end]) - int(context["row"][0]) for end in (0, -1))
        spans = [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]
        fits = any(starts[low] <= a and b <= starts[high + 1] for a, b in spans)
        hits, total = found.get(feature, (0, 0))
        found[feature] = (hits + fits, total + 1)
    return {feature: pair for feature, pair in found.items() if pair[0]}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("cotton", r"(?<!\w)cotton(?!\w)"),
        (" COTTON ", r"(?<!\w)cotton(?!\w)"),
        ("cotton gin", r"(?<!\w)cotton\s+gin(?!\w)"),
        ("w20", r"(?<!\w)w20(?!\w)"),
        ("É", "é"),
        ("전쟁", "전쟁"),
    ],
)
def test_features_near_a_text_are_those_of_cutting_each_window(
    built: Built, store: FeatureStore, text: str, pattern: str
) -> None:
    found = near_text(store, "site", text_pattern(text))
    expected = by_windows(built, store, pattern)
    assert {row[0]: (row[1], row[2]) for row in found.iter_rows()} == expected
    assert found["examples"].to_list() == sorted(found["examples"], reverse=True)
    for row in found.iter_rows(named=True):
        assert row["share"] == row["examples"] / row["searched"]
        assert built.dense["site"][row["row"], row["feature"]] == row["activation"]


def test_a_text_is_searched_as_words_in_any_case() -> None:
    texts = {"war": [("the war.", 1), ("toward", 0), ("WAR", 1), ("wary", 0), ("éwar", 0), ("war's", 1)]}
    texts |= {"c++": [("C++17", 1), ("xc++", 0)], "a b": [("A\n b", 1), ("ab", 0)], "$": [("US$5", 1)]}
    for sought, cases in texts.items():
        for text, fits in cases:
            assert bool(text_pattern(sought).search(text.encode())) == bool(fits), (sought, text)


def test_features_that_fit_conditions_are_those_of_a_join(store: FeatureStore) -> None:
    table = store.scan_features("site").join(store.scan_table("site", "profile"), on="feature").collect()
    bits, mean = (float(table[name].quantile(0.6)) for name in ("token_entropy_bits", "mean_active"))  # type: ignore[arg-type]
    where = [f"n_active > 20 and token_entropy_bits < {bits!r}", f"not mean_active < {mean!r}"]
    found = by_columns(store, "site", where)
    fits = table.filter(
        (pl.col("n_active") > 20) & (pl.col("token_entropy_bits") < bits) & (pl.col("mean_active") >= mean)
    ).sort("frequency", "feature", descending=[True, False])
    assert 0 < fits.height < table.height
    assert found["feature"].to_list() == fits["feature"].to_list()
    assert found.columns == ["feature", "frequency", "n_active", "token_entropy_bits", "mean_active"]
    least = by_columns(store, "site", ["n_active >= 0"], "top_token_share")
    assert least.height == table.height
    assert least["top_token_share"].drop_nulls().to_list() == sorted(
        table["top_token_share"].drop_nulls(), reverse=True
    )


def test_a_number_that_a_table_prints_finds_its_feature(store: FeatureStore) -> None:
    for row in store.scan_features("site").filter(pl.col("n_active") > 0).collect().iter_rows(named=True):
        for name in ("frequency", "sigma_over_mu", "max_activation"):
            found = by_columns(store, "site", [f"{name} = {row[name]:.4g}", f"feature = {row['feature']}"])
            assert found["feature"].to_list() == [row["feature"]]


def test_conditions_narrow_the_other_questions(store: FeatureStore) -> None:
    every = on_token(store, "site", token_ids(store, " w20"))
    some = on_token(store, "site", token_ids(store, " w20"), ["feature < 20"])
    assert some.equals(every.filter(pl.col("feature") < 20))
    assert 0 < some.height < every.height
    near = near_text(store, "site", text_pattern("w20"), ["feature < 20"])
    assert near.equals(near_text(store, "site", text_pattern("w20")).filter(pl.col("feature") < 20))


def says(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["find", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), re.sub(r"\s+", " ", captured.out + captured.err)


def test_the_command_says_what_was_found_and_what_was_searched(
    built: Built, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    root, n = store.layout.root, int((built.tokens["token"] == 20).sum())
    every = on_token(store, "site", token_ids(store, " w20")).height
    code, text = says(capsys, root, " w20", "-n", 3)
    assert (code, f"{every} features on the token |·w20|, which is {n} of " in text) == (0, True), text
    assert "; the first 3 by f1" in text
    assert "fire on it in fewer than 2 rows, and are not listed" in text
    code, text = says(capsys, root, "--text", "cotton", "-n", 2)
    assert (code, "with 'cotton' in an example" in text) == (0, True)
    assert "stored examples (a feature's strongest rows), 24 tokens before each and 8 after" in text
    code, text = says(capsys, root, "--where", "frequency > 0.1")
    assert (code, "of 40 features fit" in text) == (0, True)
    code, text = says(capsys, root, "--where", "frequency > 2")
    assert (code, "0 of 40 features fit" in text) == (0, True)
    code, text = says(capsys, root, "·w20")
    assert (code, "on the token |·w20|" in text) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a token such as ' war', --text WORDS, --name TEXT or --where CONDITION"),
        ((" w20", "--text", "x"), "give one of a token, --text and --name, not several"),
        ((" w2O",), "no token reads ' w2O'; the nearest are ' w2"),
        (("",), "no token reads ''"),
        (("w20",), "no token reads 'w20'; the nearest are ' w20'"),
        (("\udcff",), "no token reads"),
        ((" w20", "--by", "frequency"), "--by 'frequency' is not one of f1, precision"),
        (("--text", "x", "--by", "f1"), "--by 'f1' is not one of examples, share, activation"),
        (("--text", "  "), "has no word"),
        (("--text", "x" * 2000), "2,000 letters: type 1,000 at most"),
        (("--text", "\udcff"), "is not Unicode"),
        (("--where", "n_actve > 1"), "no column 'n_actve'; did you mean n_active or "),
        (("--where", "n_active > many"), "'many' is not a number"),
        (("--where", "(n_active > 1"), "this parenthesis is not closed"),
        (("--where", "max_probability > 0.5"), "'logits', which does not exist: run `latentlake logits`"),
        (("--where", "n_active > 1", "--by", "nosuch"), "--by nosuch: the store has no column 'nosuch'"),
        (("--where", "n_active > 1", "--by", "cluster"), "run `latentlake cluster`"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(
    built: Built, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, text = says(capsys, built.layout.root, *arguments)
    assert (code, message in text) == (2, True), text


def test_missing_tables_are_named_with_their_command(
    tmp_path: Path, built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(Path(str(built.layout.root)), tmp_path / "store"))
    for name, job, arguments in (
        ("token_features", "profile", (" w20",)),
        ("examples", "stats", ("--text", "cotton")),
        ("profile", "profile", ("--where", "token_entropy_bits < 1")),
        ("features", "stats", ("--where", "n_active > 1")),
    ):
        next((root / "tables").rglob(f"{name}.parquet")).unlink()
        code, text = says(capsys, root, *arguments)
        assert (code, f"run `latentlake {job}`" in text) == (2, True), text


def test_a_text_of_several_tokens_is_told_by_the_lakes_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = extracted(run_file(tmp_path))
    profile(store, "mid", least=1)
    capsys.readouterr()
    found = find(store, "mid", "w3 w5")
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"'w3 w5' is \d tokens, \|.*\|: searched is the last one", said)
    assert set(found["token"]) == {store.token_texts(found["token_id"][:1].to_list())[0]}
    with pytest.raises(InputError, match="not several"):
        find(store, "mid", "w3", text="w5")


def test_features_are_found_by_name_note_and_explanation_in_any_case(
    store: FeatureStore, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(str(store.layout.root), tmp_path / "named"))
    named = FeatureStore.open(root)
    annotate(named, "site", 5, name="The Civil War", note="cotton")
    annotate(named, "site", 3, note="warfare. (x+)*")
    annotate(named, "site", 9, name="peace")
    assert by_name(named, "site", " WAR").rows() == [
        (3, "note", "warfare. (x+)*"),
        (5, "name", "The Civil War"),
    ]
    assert by_name(named, "site", "(X+)*")["feature"].to_list() == [3]
    assert by_name(named, "site", "war", ["feature > 4"])["feature"].to_list() == [5]
    assert by_name(named, "site", "nobody").is_empty()
    with pytest.raises(InputError, match="--name is empty"):
        by_name(named, "site", "  ")


def test_similar_features_are_the_stored_neighbours(built: Built, tmp_path: Path) -> None:
    root = Path(shutil.copytree(str(built.layout.root), tmp_path / "near"))
    store = FeatureStore.open(root)
    put_decoders(store.layout, ["site"])
    coactivation(store, "site", k=5, support=1)
    active = built.dense["site"][(built.tokens["token"] != 0).to_numpy()] != 0
    both = (active[:, [7]] & active).sum(0)
    jaccard = both / (active[:, 7].sum() + active.sum(0) - both)
    order = [f for f in np.lexsort((np.arange(len(both)), -jaccard)) if f != 7 and both[f]][:5]
    found = similar(store, "site", 7, "jaccard")
    assert found["feature"].to_list() == order
    assert found["n_both"].to_list() == both[order].tolist()
    assert found["jaccard"].to_list() == pytest.approx(jaccard[order])
    with pytest.raises(InputError, match="--by 'x' is not one of cosine, jaccard"):
        similar(store, "site", 7, "x")
    unit = decoder(0) / np.linalg.norm(decoder(0), axis=1, keepdims=True)
    cosine = unit @ unit[7]
    nearest = [f for f in np.argsort(-cosine) if f != 7][:5]
    by_direction = similar(store, "site", 7)
    assert by_direction["feature"].to_list() == nearest
    assert by_direction["cosine"].to_list() == pytest.approx(cosine[nearest], abs=1e-6)
