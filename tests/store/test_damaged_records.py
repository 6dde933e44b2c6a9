"""Forged or damaged records and tables: every reading command ends with 2 and one sentence, never with 3."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from jobs.cli import app
from jobs.command.exits import run_app
from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import write_frame
from pipeline.store.records.tables import VERSION_KEY
from schemas.errors import InputError
from schemas.records import Lake, Receipt, parse_json, refuse_newer
from tests.fixtures.store import build


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("records")
    build(root, shards=2)
    stats(FeatureStore.open(root), "site")
    return root


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run_app(app, list(arguments))
    return int(ended.value.code or 0)


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(before)


def refused(root: Path, command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said; the command must end with 2 and one sentence."""
    capsys.readouterr()
    code = run(*[part.format(root=root) for part in command.split()])
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    sentences = [line for line in error.splitlines() if not line.startswith("warning: ")]
    assert len(sentences) == 1
    assert len(sentences[0]) < 800
    return sentences[0]


PLAN, LAKE, LINK = "passes/p/plan.json", "lake.json", "corpus/0.json"
RECEIPT = "passes/p/commits/000000.json"
VERSIONS = ("6a", [6], float("nan"), 0, -1, 6.5, True, "7", {}, 10**30)
FORGED: list[tuple[str, tuple[str | int, ...], Any]] = [
    *((name, ("format_version",), value) for name in (PLAN, LAKE, LINK, RECEIPT) for value in VERSIONS),
    *((PLAN, ("sites", 0, "d_sae"), value) for value in (10**12, -1, "40", 40.5, None, 2**31)),
    *((PLAN, ("sites", 0, "feature_block"), value) for value in (0, -16, 10**30, "16")),
    *((PLAN, ("sites", 0, "positions"), value) for value in ([], [0, 8, 0], [1, 2, 3, 4], ["a"], [2**40])),
    (PLAN, ("sites", 0, "encode_block"), 0),
    (PLAN, ("sites", 0, "name"), "../../site"),
    (PLAN, ("sites", 0, "d_model"), -4),
    (PLAN, ("sites",), []),
    (PLAN, ("layouts",), []),
    (PLAN, ("layouts",), ["sideways"]),
    (PLAN, ("batch_contexts",), 0),
    (PLAN, ("threads",), -1),
    (PLAN, ("environment",), {"numpy": 2}),
    *((LAKE, ("context_size",), value) for value in (0, -8, 10**12, "8", 8.5)),
    (LAKE, ("special_ids",), [-1]),
    (LAKE, ("bos_id",), 2**40),
    (LAKE, ("label_columns",), {"year": "Object"}),
    (LAKE, ("inputs",), {"width": 784, "dtype": "uint8", "shape": [28, 27]}),
    *((LINK, ("shards", 0, key), -1) for key in ("bytes", "rows", "counted_rows", "contexts", "row_start")),
    (LINK, ("shards", 0, "rows"), 10**30),
    (LINK, ("shards", 0, "counted_rows"), 10**9),
    (LINK, ("shards", 0, "counted_documents"), 10**9),
    (LINK, ("shards", 0, "name"), "../000000"),
    (LINK, ("shards",), {}),
    *((RECEIPT, ("objects", 0, "bytes"), value) for value in (-1, "1", 1.5, 10**30)),
    *((RECEIPT, ("sites", "site", "nnz"), value) for value in (-1, float("inf"), "9")),
    *((RECEIPT, ("sites", "site", "rounding"), value) for value in (-1, float("nan"))),
    (RECEIPT, ("sites",), {}),
    (RECEIPT, ("attempt",), "../../a"),
    (RECEIPT, ("shard",), "000001"),
    (RECEIPT, ("rows",), -1),
    (RECEIPT, ("seconds",), {"read": float("nan")}),
    (RECEIPT, ("unknown",), 1),
]


def forged(path: Path, keys: tuple[str | int, ...], value: Any) -> bytes:
    content = json.loads(path.read_bytes())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(("name", "keys", "value"), FORGED, ids=str)
def test_a_forged_number_or_type_of_a_record_is_a_sentence_that_names_it(
    root: Path, name: str, keys: tuple[str | int, ...], value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with replaced(root / name, forged(root / name, keys, value)):
        command = "stats {root}" if (name, keys) == (RECEIPT, ("sites",)) else "status {root}"
        assert str(root / name) in refused(root, command, capsys)


NO_JSON: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "list": lambda _: b"[]",
    "null": lambda _: b"null",
    "cut": lambda data: data[: len(data) // 2],
    "not UTF-8": lambda data: data.replace(b'"format_version"', b'"\xff"'),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "nested": lambda _: b"[" * 100_000,
    "nested objects": lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested inside": lambda data: data.replace(b"{", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b",", 1),
    "digits": lambda data: data.replace(b"{", b'{"a":' + b"9" * 5000 + b",", 1),
    "a key twice": lambda data: data.replace(b"{", b'{"format_version":7,', 1),
    "a key twice, apart": lambda data: data.replace(b"{", b'{ "format_version" : 7 , ', 1),
}


@pytest.mark.parametrize("damage", NO_JSON)
@pytest.mark.parametrize("name", [PLAN, LAKE, LINK, RECEIPT])
def test_what_is_no_json_is_a_sentence_that_names_it(
    root: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with replaced(root / name, NO_JSON[damage]((root / name).read_bytes())):
        assert str(root / name) in refused(root, "status {root}", capsys)


@pytest.mark.parametrize("command", ["status", "verify", "rank", "plots", "compact", "stats", "top {root} 3"])
def test_every_command_refuses_a_forged_record(
    root: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = command if "{root}" in command else f"{command} {{root}}"
    for name, keys, value in ((PLAN, ("sites", 0, "d_sae"), 10**12), (RECEIPT, ("format_version",), "6a")):
        with replaced(root / name, forged(root / name, keys, value)):
            assert str(root / name) in refused(root, command, capsys)


def with_metadata(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """As somebody would who keeps the metadata of the file."""
    metadata = {k.decode(): v.decode() for k, v in pq.read_metadata(path).metadata.items()}
    change(pl.read_parquet(path)).write_parquet(path, metadata=metadata)


def by_arrow(path: Path, change: Callable[[Any], Any]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def twice(path: Path) -> None:
    """A column is there twice."""
    table = pq.read_table(path)
    pq.write_table(table.append_column(table.schema.field(0), table.column(0)), path)


TABLES: dict[str, Callable[[Path], None]] = {
    "no column": lambda path: with_metadata(path, lambda frame: frame.drop("n_active")),
    "no feature": lambda path: with_metadata(path, lambda frame: frame.drop("feature")),
    "no columns": lambda path: with_metadata(path, lambda _: pl.DataFrame({"a": [1]})),
    "text": lambda path: with_metadata(path, lambda frame: frame.with_columns(n_active=pl.lit("x"))),
    "lists": lambda path: with_metadata(path, lambda frame: frame.with_columns(mean_all=pl.lit([1.0]))),
    "no rows": lambda path: with_metadata(path, lambda frame: frame.head(0)),
    "no column, by Arrow": lambda path: by_arrow(path, lambda table: table.drop_columns(["n_active"])),
    "unsealed": lambda path: write_unsealed(path),
    "no metadata": lambda path: pl.read_parquet(path).write_parquet(path),
    "sealed by us": lambda path: write_frame(path, pl.DataFrame({"a": [1]}), {VERSION_KEY: "7"}),
    "version 6a": lambda path: write_frame(path, pl.read_parquet(path), {VERSION_KEY: "6a"}),
    "version 99": lambda path: write_frame(path, pl.read_parquet(path), {VERSION_KEY: "99"}),
    "version of 5,000 digits": lambda path: write_frame(
        path, pl.read_parquet(path), {VERSION_KEY: "9" * 5000}
    ),
    "twice": twice,
    "empty": lambda path: path.write_bytes(b"") and None,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-300]) and None,
    "not Parquet": lambda path: path.write_bytes(b"year,party\n" * 99) and None,
    "folder": as_folder,
}


def write_unsealed(path: Path) -> None:
    """All as it was but the footer's seal."""
    with_metadata(path, lambda frame: frame.with_columns(n_active=pl.col("n_active") + 1))
    frame, metadata = pl.read_parquet(path), {VERSION_KEY: "7"}
    frame.write_parquet(path, metadata=metadata)


@pytest.mark.parametrize("damage", TABLES)
def test_a_damaged_or_forged_table_is_a_sentence_that_names_it_and_says_what_writes_it(
    root: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(root, store)
    path = store / "tables" / "site" / "features.parquet"
    TABLES[damage](path)
    for command in ("rank {root}", "plots {root}"):
        said = refused(store, command, capsys)
        assert str(path) in said
        assert "latentlake" in said
    run("verify", str(store))
    assert str(path) in "".join(capsys.readouterr().out.replace("\n", "").split())


def test_a_flipped_bit_of_a_table_is_refused_or_changes_nothing(root: Path, tmp_path: Path) -> None:
    """Statistics within a page's header, which no query of ours reads, have no checksum."""
    shutil.copytree(root, store := tmp_path / "store")
    path, refusals = store / "tables" / "site" / "features.parquet", 0
    data, expected = path.read_bytes(), FeatureStore.open(store).scan_features("site").collect()
    for place in range(0, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            assert FeatureStore.open(store).scan_features("site").collect().equals(expected)
        except InputError as error:
            refusals += str(path) in str(error)
    assert refusals > 100


@pytest.mark.parametrize("name", ["postings.parquet", "partials.parquet", "row_counts.parquet"])
@pytest.mark.parametrize("damage", ["no columns", "twice", "empty", "not Parquet", "cut"])
def test_a_forged_data_object_is_a_sentence_too(
    root: Path, tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(root, store)
    path = store / "passes/p/data/000000/a/site" / name
    TABLES[damage](path)
    command = "top {root} 3" if name == "postings.parquet" else "stats {root}"
    assert str(path) in refused(store, command, capsys)


@pytest.mark.parametrize("version", [1, 7, None])
def test_versions_that_there_are_pass(version: int | None) -> None:
    refuse_newer(version, "lake.json")


def test_numbers_at_their_limits_are_records_still() -> None:
    made = {"tokenizer": "t", "tokenizer_digest": "0", "bos_id": None, "separator_id": None}
    made |= {"special_ids": (), "special_tokens": "exclude", "label_columns": {}, "context_size": 1}
    assert Lake(**made).context_size == 1
    with pytest.raises(InputError, match=r"lake\.json is not a Lake: context_size: Input should be greater"):
        Lake.from_json(json.dumps({**made, "context_size": 0}).encode(), "lake.json")


def test_what_is_not_known_of_a_shard_may_be_not_a_number() -> None:
    """Explained variance of a target that does not vary, in receipts of every version."""
    receipt = {"shard": "0", "attempt": "a", "plan_hash": "", "tokens_sha256": "", "rows": 1, "objects": []}
    receipt |= {"seconds": {}, "peak_rss_bytes": 0, "environment": {}}
    site = {"nnz": 0, "underflow": 0, "rounding": 0.0, "explained_variance": float("nan")}
    result = Receipt.from_json(json.dumps({**receipt, "sites": {"s": site}}).encode(), "a.json")
    assert result.sites["s"].explained_variance != result.sites["s"].explained_variance


def test_json_with_a_key_in_two_objects_or_in_a_text_is_json() -> None:
    content = {"a": {"a": 1}, "b": [{"a": '":"'}, {"a": '"a" :'}], 'c":': {}}
    assert parse_json(json.dumps(content).encode()) == content
