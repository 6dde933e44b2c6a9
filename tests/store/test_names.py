"""What features are called: by people, else by other tools, else by the tokens on which they fire."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from pipeline.store.derived.names import given_names, most_fired
from pipeline.store.objects.verbs import write_atomic
from pipeline.store.reading import contexts
from pipeline.store.records.annotations import annotate, import_edits
from schemas.tables.tables import EXPLANATIONS
from tests.fixtures.store import D_SAE, Built, build, put_vocabulary
from tests.store.test_remote_run import copied


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    made = build(tmp_path_factory.mktemp("made") / "store", sites=("a", "b"))
    for site in "ab":
        stats(FeatureStore.open(made.layout.root), site)
    return made


@pytest.fixture(params=["folder", "memory"])
def store(built: Built, tmp_path: Path, request: pytest.FixtureRequest) -> FeatureStore:
    if request.param == "folder":
        return FeatureStore.open(shutil.copytree(str(built.layout.root), tmp_path / "store"))
    folder = Path(str(built.layout.root))
    return FeatureStore.open(copied(folder, f"memory://{tmp_path.name}-{tmp_path.parent.name}/store"))


def explain(store: FeatureStore, site: str, *pairs: tuple[int, str]) -> None:
    rows = [(feature, text, "delphi", "layers.9", None, None) for feature, text in pairs]
    store.write_table(site, "explanations", pl.DataFrame(rows, EXPLANATIONS, orient="row"))


def fired(built: Built, site: str, feature: int) -> str:
    """The name by brute force, of the strongest 20 rows."""
    values, tokens = built.dense[site][:, feature], built.tokens["token"].to_list()
    rows = sorted(np.flatnonzero(values), key=lambda row: (-abs(values[row]), row))[:20]
    counts = Counter(tokens[row] for row in rows)
    first = {token: next(n for n, row in enumerate(rows) if tokens[row] == token) for token in counts}
    best = sorted(counts, key=lambda token: (-counts[token], first[token], token))[:3]
    return " ".join(f"·w{token}" for token in best)


def test_without_other_names_features_are_called_by_their_tokens(store: FeatureStore, built: Built) -> None:
    for site in "ab":
        names = store.names(site, range(D_SAE))
        expected = [fired(built, site, feature) for feature in range(D_SAE)]
        assert [names.name(feature) for feature in range(D_SAE)] == expected
        sources = ["tokens" if name else "" for name in expected]
        assert [names.source(feature) for feature in range(D_SAE)] == sources
        assert "" in expected
    assert store.names("a").name(3) == fired(built, "a", 3) != fired(built, "b", 3)
    assert FeatureStore.open(store.layout.root).names("a").name(3) == fired(built, "a", 3)


def test_annotations_come_before_explanations_before_tokens(store: FeatureStore, built: Built) -> None:
    explain(store, "a", (3, "first of two"), (3, "second"), (4, "explained"))
    annotate(store, "a", 3, name="named")
    annotate(store, "a", 6, note="a note is no name", star=True)
    names = store.names("a", [3, 4, 6])
    assert [(names.name(n), names.source(n)) for n in (3, 4, 6)] == [
        ("named", "annotation"),
        ("explained", "explanation"),
        (fired(built, "a", 6), "tokens"),
    ]
    assert given_names(store, "a") == {3: "named", 4: "explained"}
    assert store.names("b").name(3) == fired(built, "b", 3)
    # a name that is given or taken later is seen by the next reading
    annotate(store, "a", 3, name=None)
    annotate(store, "a", 6, name="later")
    names = store.names("a", [3, 6])
    assert [names.name(3), names.name(6)] == ["first of two", "later"]


def test_names_of_another_sae_are_not_used(store: FeatureStore, built: Built) -> None:
    import_edits(store, "a", [("x", {"feature": 3, "name": "other", "sae_digest": "f" * 64})])
    assert store.names("a").name(3) == fired(built, "a", 3)
    assert given_names(store, "a") == {}


def test_a_feature_that_is_not_there_has_no_name(store: FeatureStore) -> None:
    for feature in (-1, D_SAE, 1 << 40):
        assert (store.names("a").name(feature), store.names("a").source(feature)) == ("", "")


def test_a_store_without_tables_gives_no_names_and_says_nothing(tmp_path: Path) -> None:
    store = FeatureStore.open(build(tmp_path / "store", shards=1).layout.root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.names("site", range(D_SAE)).name(3) == ""
    annotate(store, "site", 3, name="named all the same")
    assert store.names("site").read([3]).name(3) == "named all the same"


def test_stale_examples_name_features_without_a_warning(tmp_path: Path) -> None:
    built = build(tmp_path / "store", shards=2)
    store = FeatureStore.open(built.layout.root)
    stats(store, "site")
    marker = store.layout.commit("p", built.shards[1].name)
    Path(str(marker)).unlink()
    store = store.again()
    assert store.is_stale("site", "examples")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.names("site", [3]).name(3) == fired(built, "site", 3)


@pytest.mark.parametrize("table", ["examples", "explanations"])
def test_a_damaged_table_is_a_warning_and_no_name(store: FeatureStore, table: str) -> None:
    explain(store, "a", (3, "explained"))
    write_atomic(store.layout.table("a", table), b"junk")
    with pytest.warns(UserWarning, match=f"shown without names: .*{table}"):
        names = store.names("a", [3, 6])
    assert names.name(6 if table == "examples" else 3) in ("", names.name(3))


def test_only_the_shards_of_the_strongest_rows_are_read_and_once(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = FeatureStore.open(built.layout.root), list[str]()
    real = contexts.ContextIndex._read

    def counted(index: contexts.ContextIndex, record: object, *columns: str) -> pl.DataFrame:
        read.append(f"{record.name} {columns}")  # type: ignore[attr-defined]
        return real(index, record, *columns)  # type: ignore[arg-type]

    monkeypatch.setattr(contexts.ContextIndex, "_read", counted)
    for _ in range(3):
        store.names("a", [3, 4, 6, 7])
    assert sorted(read) == [f"{record.name} ('token_ids',)" for record in built.shards]
    read.clear()
    alone = FeatureStore.open(built.layout.root)
    last = built.shards[-1]
    rows = np.array([last.row_start, last.row_start + last.rows - 1], np.uint64)
    expected = built.tokens["token"].to_numpy()[rows.astype(np.int64)]
    assert alone.tokens_at(rows).tolist() == expected.tolist()
    assert read == [f"{last.name} ('token_ids',)"]
    assert alone.tokens_at(np.empty(0, np.uint64)).tolist() == []


def test_tokens_of_every_row_are_those_of_the_lake(store: FeatureStore, built: Built) -> None:
    rows = np.random.default_rng(0).permutation(built.tokens.height).astype(np.uint64)
    assert (store.tokens_at(rows) == built.tokens["token"].to_numpy()[rows.astype(np.int64)]).all()


def test_the_most_frequent_tokens_come_first_and_ties_go_by_rank() -> None:
    examples = pl.DataFrame(
        {
            "feature": [1, 1, 1, 1, 1, 0, 0],
            "rank": [0, 1, 2, 3, 4, 1, 0],
            "token_id": [9, 5, 5, 9, 7, 3, 2],
        }
    )
    assert most_fired(examples, 2).rows() == [(0, 2, 0), (0, 3, 1), (1, 9, 0), (1, 5, 1)]


def test_blanks_and_empty_tokens_can_be_seen(tmp_path: Path) -> None:
    built = build(tmp_path / "store", shards=1)
    put_vocabulary(built.layout, [["", "  ", "\n", "a b"][number % 4] for number in range(50)])
    store = FeatureStore.open(built.layout.root)
    stats(store, "site")
    parts = {part for n in range(D_SAE) for part in store.names("site").name(n).split(" ")}
    assert parts == {"", "⟨empty⟩", "··", "\n", "a·b"}
