"""Documents added to a finished store: a new link of the chain, new shards, all that was there as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from jobs.lake.extract import extract
from jobs.lake.run import run
from jobs.lake.status import status
from jobs.lake.tokenize import tokenize
from pipeline.store import FeatureStore
from pipeline.store.records.tables import StaleTableWarning
from pipeline.store.records.tokens import read_links
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import canonical_json
from tests.fixtures.figures import two_figures
from tests.fixtures.runs import DRAWN, data_bytes, extracted, run_content, run_file, write_corpus

ROOT = Path(__file__).parents[2]
OLD, NEW = 10, 8


class Kill(BaseException):
    """Stands for SIGKILL: nobody catches it."""


@pytest.fixture
def folder(tmp_path):
    """Two corpora, `first` and `second`, and `both`, which holds their documents in this order."""
    return corpora(tmp_path)


def corpora(folder):
    run_content(folder)
    first = pl.read_parquet(write_corpus(folder / "first.parquet", OLD))
    second = pl.read_parquet(write_corpus(folder / "second.parquet", NEW, seed=1))
    pl.concat([first, second]).write_parquet(folder / "both.parquet")
    return folder


def of(folder, corpus, store="store", **changes):
    """The run file over one of the corpora, one shard a document, so that any cut of the corpora is alike."""
    return run_file(
        folder,
        corpus={"path": str(folder / f"{corpus}.parquet")},
        tokens={"shard_tokens": 1},
        store={"root": str(folder / store)},
        cluster={"features": 4, "contexts": 4},
        derive=DRAWN,
        **changes,
    )


def everything(root):
    """Every byte below the root but the temporary, the logs and what runs differ in by their nature."""
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A finished store to which another corpus was added; what it held before; one made of both at once."""
    folder = corpora(tmp_path_factory.mktemp("append"))
    extracted(of(folder, "first"))
    before = everything(folder / "store")
    tokenize(of(folder, "second"), append=True)
    extracted(of(folder, "second"))
    extracted(of(folder, "both", "once"))
    return folder, before


def test_the_tables_equal_those_of_a_store_made_in_one_go(grown):
    folder, _ = grown
    appended, once = (FeatureStore.open(folder / name) for name in ("store", "once"))
    assert [len(link.shards) for link in appended.links] == [OLD, NEW]
    assert [len(link.shards) for link in once.links] == [OLD + NEW]
    assert appended.shards == once.shards
    assert appended.receipts_digest("mid") == once.receipts_digest("mid")
    assert data_bytes(folder / "store") == data_bytes(folder / "once")
    assert appended.verify().problems == []


def test_all_that_was_there_stays_as_it_was(grown):
    folder, before = grown
    after = everything(folder / "store")
    made_anew = ("tables/", "passes/mid/manifest", "passes/mid/events")
    kept = {name: data for name, data in before.items() if not name.startswith(made_anew)}
    assert {name: after[name] for name in kept} == kept
    assert len([name for name in kept if name.startswith("passes/mid/commits")]) == OLD
    assert set(before) <= set(after)


def test_receipts_carry_the_link_that_their_shard_came_with(grown):
    store = FeatureStore.open(grown[0] / "store")
    assert [receipt.link for receipt in store.receipts("mid").values()] == [0] * OLD + [1] * NEW
    assert [store.link_of(record.name) for record in store.shards] == [0] * OLD + [1] * NEW


def test_numbers_go_on_where_the_old_ones_end(grown):
    store = FeatureStore.open(grown[0] / "store")
    for start, size in (
        ("row_start", "rows"),
        ("context_start", "contexts"),
        ("document_start", "documents"),
    ):
        ends = [getattr(record, start) + getattr(record, size) for record in store.shards]
        assert [getattr(record, start) for record in store.shards] == [0, *ends[:-1]]
    texts = pl.read_parquet(grown[0] / "both.parquet")
    result = (
        store.scan_tokens().select(pl.col("segments").explode().struct.unnest()).unique(subset="document")
    )
    labels = result.sort("document").select("document", "year", "party").collect()
    assert labels["document"].to_list() == list(range(OLD + NEW))
    assert labels["year"].to_list() == texts["year"].to_list()
    assert labels["party"].to_list() == texts["party"].to_list()


def test_verify_names_a_receipt_of_another_link(grown, tmp_path):
    shutil.copytree(grown[0] / "store", tmp_path / "store")
    for shard, link in (("000001", 1), ("000012", 7)):
        marker = tmp_path / "store/passes/mid/commits" / f"{shard}.json"
        marker.write_bytes(canonical_json(json.loads(marker.read_bytes()) | {"link": link}) + b"\n")
    first, second = FeatureStore.open(tmp_path / "store").verify().problems
    assert first.endswith("000001.json says link 1 of the corpus chain, but its shard came with link 0")
    assert second.endswith("000012.json says link 7 of the corpus chain, but its shard came with link 1")


def test_a_receipt_of_an_older_version_says_no_link_and_is_fine(grown, tmp_path):
    shutil.copytree(grown[0] / "store", tmp_path / "store")
    marker = tmp_path / "store/passes/mid/commits/000001.json"
    content = json.loads(marker.read_bytes())
    del content["link"]
    marker.write_bytes(canonical_json(content) + b"\n")
    report = FeatureStore.open(tmp_path / "store").verify()
    assert (report.problems, report.stale) == ([], [])


@pytest.mark.slow
def test_what_was_made_before_is_seen_to_be_stale_and_run_makes_it_anew(folder, capsys):
    run(of(folder, "first"))
    old = FeatureStore.open(folder / "store").scan_features("mid").collect()
    tokenize(of(folder, "second"), append=True)
    assert f"{NEW} documents, " in printed(capsys)
    status(folder / "store")
    assert f"{OLD}/{OLD + NEW} shards committed" in printed(capsys)
    extract(of(folder, "second"))
    store = FeatureStore.open(folder / "store")
    status(folder / "store")
    line = printed(capsys)
    assert line.count("(stale: made from other shards") == len(store.tables("mid")) > 3
    assert line.count("(stale: drawn from other shards)") == len(
        list((folder / "store/figures/mid").iterdir())
    )
    with pytest.warns(StaleTableWarning, match="features.parquet is stale"):
        assert store.scan_features("mid").collect().equals(old)
    run(of(folder, "second"))
    status(folder / "store")
    assert "stale" not in printed(capsys)
    now = store.scan_features("mid").collect()
    assert now["counted_rows"][0] > old["counted_rows"][0]


def printed(capsys):
    return capsys.readouterr().out


def test_the_same_corpus_again_does_nothing_and_says_so(grown, capsys):
    folder, _ = grown
    for corpus, link in (("first", 0), ("second", 1)):
        before = everything(folder / "store")
        tokenize(of(folder, corpus), append=True)
        extract(of(folder, corpus))
        lines = printed(capsys)
        assert f"nothing to do, the store holds this corpus (link {link}): " in lines
        assert "nothing to do, all shards are committed" in lines
        assert everything(folder / "store") == before


def test_files_that_the_store_holds_are_not_added_twice(grown):
    folder, _ = grown
    shutil.copy(folder / "first.parquet", folder / "renamed.parquet")
    third = folder / "more"
    third.mkdir(exist_ok=True)
    shutil.copy(folder / "second.parquet", third)
    write_corpus(third / "new.parquet", 3, seed=2)
    with pytest.raises(
        InputError, match=r"1 of the 1 files .*renamed\.parquet' are already in the store .*link 0"
    ):
        tokenize(of(folder, "renamed"), append=True)
    whole = of(folder, "renamed")
    whole = whole.model_copy(update={"corpus": whole.corpus.model_copy(update={"path": str(third)})})
    with pytest.raises(InputError, match=r"1 of the 2 files .* \(link 1, .*second\.parquet\).*count twice"):
        tokenize(whole, append=True)
    assert len(read_links(Layout(folder / "store"))) == 2


def test_nor_a_corpus_of_a_store_from_before_version_3_under_a_larger_limit(grown, tmp_path):
    folder, _ = grown
    shutil.copytree(folder / "store", tmp_path / "store")
    for name in ("0.json", "1.json"):
        link = tmp_path / "store/corpus" / name
        content = json.loads(link.read_bytes())
        del content["source"]["contents"]
        link.write_bytes(canonical_json(content) + b"\n")
    requested = of(folder, "second", tmp_path / "store")
    limited = requested.model_copy(update={"tokens": requested.tokens.model_copy(update={"limit": 10**6})})
    with pytest.raises(InputError, match=r"already in the store \(link 1, .*would count twice: let corpus"):
        tokenize(limited, append=True)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("tokens", {"context_size": 8}, r"tokens\.context_size \(16 in the store, 8 now\)"),
        ("tokens", {"special_tokens": "zero"}, r"special_tokens \(exclude in the store, zero now\)"),
        ("corpus", {"label_columns": ["year"]}, r"corpus\.label_columns \(\{.*party.*\} in the store"),
    ],
)
def test_another_rule_or_other_labels_do_not_fit(grown, section, change, message):
    folder, _ = grown
    write_corpus(folder / "third.parquet", 3, seed=2)
    requested = of(folder, "third")
    changed = getattr(requested, section).model_copy(update=change)
    before = everything(folder / "store")
    with pytest.raises(InputError, match=message):
        run(requested.model_copy(update={section: changed}), append=True)
    assert everything(folder / "store") == before


def test_a_label_of_another_type_does_not_fit(grown):
    folder, _ = grown
    path = write_corpus(folder / "typed.parquet", 3, seed=2)
    pl.read_parquet(path).with_columns(pl.col("year").cast(pl.String)).write_parquet(path)
    with pytest.raises(InputError, match=r"'year': 'Int64'.* in the store, .*'year': 'String'.* now"):
        tokenize(of(folder, "typed"), append=True)


def die_in(monkeypatch, place, before, times):
    """Make the function at `place` die at its call number `times`, before or after it ran."""
    module, name = place.rsplit(".", 1)
    function, calls = getattr(sys.modules[module], name), []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == times and before:
            raise Kill
        result = function(*arguments)
        if len(calls) == times:
            raise Kill
        return result

    monkeypatch.setattr(place, dying)


MOMENTS = {
    "between token shards": ("pipeline.tokens.sharding.write_atomic", True, 3),
    "after all token shards, before the link": ("pipeline.tokens.tokenize._commit", True, 1),
    "after the link": ("pipeline.tokens.tokenize._commit", False, 1),
    "after one of its shards was extracted": ("pipeline.worker.commit_under", False, 1),
    "before a receipt, its data written": ("pipeline.worker.commit_under", True, 2),
    "while tables are made": ("jobs.lake.run.write_atomic", True, 1),
}


@pytest.fixture(scope="module")
def drawn(grown):
    """The folder of `grown`; `finished` has tables and figures, `calm` is that with the append in it."""
    folder, _ = grown
    with two_figures():
        run(of(folder, "first", "finished"))
        shutil.copytree(folder / "finished", folder / "calm")
        run(of(folder, "second", "calm"), append=True)
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_append_that_died_is_taken_up(drawn, monkeypatch, moment):
    shutil.rmtree(drawn / "died", ignore_errors=True)
    shutil.copytree(drawn / "finished", drawn / "died")
    with monkeypatch.context() as patch:
        die_in(patch, *MOMENTS[moment])
        with pytest.raises(Kill):
            run(of(drawn, "second", "died"), append=True)
    run(of(drawn, "second", "died"), append=True)
    is_as_if_calm(drawn, "died")


def is_as_if_calm(drawn, name):
    """The store `name` holds what `calm` holds, to the byte, whatever happened to it."""
    stores = [FeatureStore.open(drawn / store) for store in (name, "calm")]
    assert stores[0].verify().problems == []
    assert stores[0].links == stores[1].links
    assert stores[0].receipts_digest("mid") == stores[1].receipts_digest("mid")
    for kind in ("tables/", "figures/", "tokens/", "corpus/"):
        result, calm = (of_kind(drawn / store, kind) for store in (name, "calm"))
        assert result == calm


def of_kind(root, kind):
    return {name: data for name, data in everything(root).items() if name.startswith(kind)}


def test_a_dead_append_may_be_followed_by_another_corpus(folder, monkeypatch):
    tokenize(of(folder, "first"))
    with monkeypatch.context() as patch:
        die_in(patch, "pipeline.tokens.tokenize._commit", True, 1)
        with pytest.raises(Kill):
            tokenize(of(folder, "second"), append=True)
    write_corpus(folder / "third.parquet", 3, seed=2)
    link = tokenize(of(folder, "third"), append=True)
    assert [record.name for record in link.shards] == ["000010", "000011", "000012"]
    extract(of(folder, "third"))
    store = FeatureStore.open(folder / "store")
    assert store.verify().problems == []
    assert len(store.committed("mid")) == OLD + 3


ONE = """
import sys, time
from pathlib import Path
from jobs.lake.tokenize import tokenize
import pipeline.tokens.tokenize as room
from schemas.errors import InputError
from tests.lake.test_append import of
corpus, folder, first = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "first"
write = room.write_shards
def slowly(*arguments):
    (folder / f"inside-{corpus}").touch()
    for record in write(*arguments):
        while first and not (folder / "let-go").exists():
            time.sleep(0.01)
        yield record
room.write_shards = slowly
try:
    print("won" if tokenize(of(folder, corpus), append=True) else "")
except InputError as error:
    print(f"refused: {error}")
"""


def appender(folder, corpus, order):
    command = [sys.executable, "-c", ONE, corpus, str(folder), order]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_two_appends_at_once_one_wins_and_the_other_gets_a_sentence(folder):
    tokenize(of(folder, "first"))
    write_corpus(folder / "third.parquet", 3, seed=2)
    winner = appender(folder, "second", "first")
    try:
        deadline = time.monotonic() + 60
        while not (folder / "inside-second").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        loser = appender(folder, "third", "second").communicate(timeout=60)[0].splitlines()[-1]
    finally:
        (folder / "let-go").touch()
    assert winner.communicate(timeout=60)[0].splitlines()[-1] == "won"
    assert loser == f"refused: another tokenize writes into {folder / 'store'}: wait for it, and run again"
    assert len(tokenize(of(folder, "third"), append=True).shards) == 3
    assert [len(link.shards) for link in read_links(Layout(folder / "store"))] == [OLD, NEW, 3]


@pytest.mark.slow
def test_an_append_that_is_killed_resumes_to_the_same_bytes(drawn):
    shutil.copytree(drawn / "finished", drawn / "killed")
    path = drawn / "run.yaml"
    requested = of(drawn, "second", "killed").model_dump(mode="json", by_alias=True)
    path.write_text(yaml.safe_dump(requested))
    command = [sys.executable, "-m", "tests.fixtures.figures", "run", str(path), "--append"]
    for seen in ("tokens/000013.parquet", "corpus/1.json", "passes/mid/commits/000014.json"):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not (drawn / "killed" / seen).exists():
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=120)
    is_as_if_calm(drawn, "killed")
