"""A flipped byte anywhere is a sentence that names the object, or changes nothing; `verify` finds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from pipeline.store.derived.control import control_tables
from pipeline.store.derived.features import check_sums, site_tables
from pipeline.store.formats.parquet import read_frame
from pipeline.store.objects.verbs import readable
from pipeline.store.records.site import write_site_weights
from pipeline.store.upkeep.compaction import compact
from pipeline.tasks import OneProcess
from schemas.errors import InputError
from tests.fixtures.store import D_SAE, build

pytestmark = pytest.mark.slow

FLIPS = 16
SHARD = "passes/p/data/000001/a/site"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every kind of object but x and a control."""
    root = tmp_path_factory.mktemp("flipped")
    built = build(root, shards=2)
    store = FeatureStore.open(root)
    stats(store, "site")
    store.write_table("site", "rankings", pl.DataFrame({"feature": range(D_SAE), "rank": range(D_SAE)}))
    weights = {"W_dec": np.random.default_rng(0).normal(size=(D_SAE, 3)).astype(np.float32)}
    write_site_weights(built.layout, "p", built.plan.sites[0], weights, {})
    compact(store, "site", OneProcess())
    return root


def tables(store: FeatureStore) -> list[pl.DataFrame]:
    check_sums(store, "site", OneProcess())
    result = site_tables(store, "site", OneProcess()) | control_tables(store, "site", OneProcess())
    return list(result.values())


def rows(store: FeatureStore) -> list[Any]:
    return [part for feature in range(D_SAE) for part in store.rows_of("site", feature)]


def postings(store: FeatureStore) -> list[Any]:
    result = store.postings("site", "000001")
    return [result.features, result.offsets, result.rows, result.values]


def csr(store: FeatureStore) -> list[Any]:
    return [store.csr("site", "000001").toarray()]


def pattern(store: FeatureStore) -> list[Any]:
    return [store.files("site", "000001").read_pattern().toarray()]


def partials(store: FeatureStore) -> list[Any]:
    return [store.partials("site", "000001"), store.row_counts("site", "000001")]


def weights(store: FeatureStore) -> list[Any]:
    return [store.site_weights("site")[0]["W_dec"]]


def vocabulary(store: FeatureStore) -> list[Any]:
    return store.pieces(range(store.vocabulary_size))


def token_ids(store: FeatureStore) -> list[Any]:
    return [store.token_shard("site", "000001").token_ids]


def feature_table(store: FeatureStore) -> list[Any]:
    with readable(path := store.layout.table("site", "features")):
        return [read_frame(path)]


def rankings(store: FeatureStore) -> list[Any]:
    with readable(path := store.layout.table("site", "rankings")):
        return [read_frame(path)]


Question = Callable[[FeatureStore], list[Any]]
OBJECTS: dict[str, tuple[Question, ...]] = {
    f"{SHARD}/partials.parquet": (tables, partials),
    f"{SHARD}/row_counts.parquet": (tables, partials),
    f"{SHARD}/postings.parquet": (tables, postings),
    f"{SHARD}/csr.zarr/*/c/0": (csr, pattern),
    f"{SHARD}/csr.zarr/zarr.json": (csr, pattern),
    "passes/p/compactions/*/site/*.parquet": (rows,),
    "passes/p/sites/site.zarr/W_dec/c/0/0": (weights,),
    "vocabulary.parquet": (vocabulary,),
    "tokens/000001.parquet": (token_ids,),
    "tables/site/features.parquet": (feature_table,),
    "tables/site/rankings.parquet": (rankings,),
}
"""What is asked of a store in which one byte of such an object is another."""
UNHASHED = ("vocabulary.parquet", "tables/site/features.parquet", "tables/site/rankings.parquet")
"""Of which no record holds a sha256: pages and footer have their own."""


def flipped(path: Path, seed: int) -> Iterator[None]:
    """Flip bytes one after another, half of them in the last 700, where footers are; restores the file."""
    data, random = path.read_bytes(), np.random.default_rng(seed)
    try:
        for number in range(FLIPS):
            span = min(len(data), 700) if number % 2 else len(data)
            place, other = len(data) - 1 - int(random.integers(span)), int(random.integers(1, 256))
            path.write_bytes(data[:place] + bytes([data[place] ^ other]) + data[place + 1 :])
            yield
    finally:
        path.write_bytes(data)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, pl.DataFrame):
        return one.equals(two, null_equal=True)
    return np.array_equal(one, two)


def answer(ask: Question, root: Path) -> list[Any] | str:
    """What is asked, or the sentence that is said in its place."""
    try:
        return ask(FeatureStore.open(root))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("name", OBJECTS)
def test_an_answer_is_right_or_a_sentence_and_verify_names_what_is_damaged(root: Path, name: str) -> None:
    path, requested = next(iter(sorted(root.glob(name)))), OBJECTS[name]
    expected, refused = [ask(FeatureStore.open(root)) for ask in requested], 0
    for _ in flipped(path, seed=len(name)):
        result = [answer(ask, root) for ask in requested]
        for one, right in zip(result, expected, strict=True):
            refused += isinstance(one, str)
            assert isinstance(one, str) or all(map(same, one, right))
        assert not any("\n" in one for one in result if isinstance(one, str))
        if not FeatureStore.open(root).verify().problems:  # as of Parquet's first bytes
            assert name in UNHASHED
            assert not any(isinstance(one, str) for one in result)
    assert refused
    assert FeatureStore.open(root).verify().problems == []


def changed(path: Path, *keys: str | int, to: Callable[[Any], Any]) -> Iterator[None]:
    """A value of a record is another; restores the file."""
    data = path.read_bytes()
    content = json.loads(data)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to(inner[keys[-1]])
    try:
        path.write_text(json.dumps(content))
        yield
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize(
    "key",
    [
        *("rows", "counted_rows", "contexts", "counted_contexts", "documents", "counted_documents"),
        *("row_start", "context_start", "document_start", "bytes"),
    ],
)
@pytest.mark.parametrize("shard", [0, 1])
def test_every_number_of_the_corpus_chain_is_looked_at(root: Path, key: str, shard: int) -> None:
    for _ in changed(root / "corpus/0.json", "shards", shard, key, to=lambda number: number - 1):
        result = answer(lambda store: store.verify().problems, root)
        assert result  # problems, or the sentence of a record that no shard can have


@pytest.mark.parametrize(
    ("key", "value"), [("special_ids", [0, 3]), ("context_size", 9), ("tokenizer_digest", "1")]
)
def test_a_lake_that_no_plan_was_made_for_is_found(root: Path, key: str, value: Any) -> None:
    for _ in changed(root / "lake.json", key, to=lambda _: value):
        problems = FeatureStore.open(root).verify().problems
        assert f"{root}/lake.json is not the lake that {root}/passes/p/plan.json was made for" in problems
