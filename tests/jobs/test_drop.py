"""`latentlake drop`: what goes, what stays, and that nothing is lost or taken for damage at any point."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys

import numpy as np
import pytest

from jobs.cli import main
from jobs.lake.compact import compact
from jobs.lake.drop import drop
from jobs.lake.extract import extract
from jobs.lake.gc import gc
from jobs.lake.status import status
from jobs.lake.tokenize import tokenize
from jobs.report.build import report
from jobs.tables.stats import stats
from pipeline.monitor.events import EventLog
from pipeline.store import FeatureStore
from pipeline.store.objects.verbs import walk, write_atomic
from pipeline.store.records.site import write_site_weights
from pipeline.store.upkeep import drop as dropping
from pipeline.store.upkeep.drop import leftovers
from pipeline.tasks import OneProcess
from schemas.errors import InputError
from schemas.records import Dropped
from tests.fixtures.runs import extracted, run_content, run_file, write_corpus
from tests.fixtures.store import build
from tests.kit import write_sae
from tests.store.test_remote_run import copied

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a store of one pass with the sites a and b, each with all that a site may have."""
    folder = tmp_path_factory.mktemp("made") / "store"
    built = build(folder, sites=("a", "b"))
    store = FeatureStore.open(folder)
    for site in built.plan.sites:
        weights = {"W_dec": np.full((site.d_sae, 4), ord(site.name), np.float32)}
        write_site_weights(built.layout, "p", site, weights, {"transcoder": False})
        stats(store, site.name)
        compact(store, site.name)
        write_atomic(built.layout.figures(site.name) / "frequency.svg", b"<svg/>")
    report(store, ["a", "b"], OneProcess(), features="1")
    return folder


@pytest.fixture(params=["folder", "memory"])
def root(made, tmp_path, request):
    """The same on a folder, and in an object store."""
    if request.param == "folder":
        return shutil.copytree(made, tmp_path / "store")
    return copied(made, f"memory://{tmp_path.name}-{tmp_path.parent.name}/store")


def names(root):
    return {name for name, _, _ in walk(root)}


def of_site(site):
    """Whether a file of the store is of this site alone; attempts are named a, too."""

    def is_of(name):
        parts = name.split("/")
        parts = parts[5:6] if parts[:3] == ["passes", "p", "data"] else parts
        return site in parts or f"{site}.zarr" in parts

    return is_of


PIECES = 8
"""A compaction, data of three shards, weights, tables, figures, and pages of the report."""


def test_a_dropped_site_is_gone_and_the_other_one_is_as_it_was(root, capsys):
    before = names(root)
    drop(str(root), site="a", yes=True)
    output = capsys.readouterr().out
    for kind in ("compactions", "data", "weights", "tables", "figures", "report"):
        assert f"  {kind}: " in output
    assert "drop site a of pass p: " in output
    after = names(root)
    marker = "passes/p/dropped/a.json"
    assert not any(map(of_site("a"), after))
    assert set(filter(of_site("b"), after)) == set(filter(of_site("b"), before))
    gone = {name for name in before if of_site("a")(name)}
    others = before - gone - after
    assert len(others) == 1, "the marker of its compaction"
    assert after - before == {marker}
    store = FeatureStore.open(root)
    assert list(store.sites) == ["b"]
    assert not [table for table in store.tables("b") if store.is_stale("b", table)]
    result = store.verify()
    assert (result.problems, result.stale) == ([], [])
    page = (store.layout.report / "index.html").read_bytes()
    assert b"sites/b/index.html" in page
    assert b"sites/a/index.html" not in page
    assert gc(store, 24, dry_run=False) == []
    status(str(root))
    output = capsys.readouterr().out
    assert "site b" in output
    assert "site a" not in output
    with pytest.raises(InputError, match="has no site 'a', it was dropped; it has b"):
        store.site("a")
    with pytest.raises(InputError, match=r"site .a. of .* was dropped before"):
        drop(str(root), site="a", yes=True)


@pytest.mark.parametrize("finish", ["drop", "gc"])
@pytest.mark.parametrize("at", range(PIECES))
def test_a_drop_of_a_site_that_is_interrupted_anywhere_is_honoured_and_can_be_finished(
    made, tmp_path, monkeypatch, at, finish
):
    root = shutil.copytree(made, tmp_path / "store")
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        drop(str(root), site="a", yes=True)
    monkeypatch.undo()
    store = FeatureStore.open(root)
    assert list(store.sites) == ["b"]
    result = store.verify()
    assert result.problems == []
    (line,) = result.stale
    assert line.startswith(f"{PIECES - at} files or folders of the dropped site a remain: ")
    if finish == "gc":
        assert len(gc(store, 24, dry_run=False)) == PIECES - at
    else:
        drop(str(root), site="a", yes=False)
    assert not list(leftovers(store.layout))
    assert not any(map(of_site("a"), names(root)))
    assert FeatureStore.open(root).verify().stale == []


def interrupt(monkeypatch, at):
    """Ctrl-C after the removal of so many pieces."""
    real, done = dropping.Piece.remove, []

    def remove(piece):
        if len(done) == at:
            raise KeyboardInterrupt
        done.append(piece)
        real(piece)

    monkeypatch.setattr(dropping.Piece, "remove", remove)


def test_a_dropped_pass_is_gone_with_its_sites_tables_and_figures(root):
    drop(str(root), pass_name="p", yes=True)
    left = names(root)
    assert not any(name.startswith(("passes/", "tables/", "figures/", "report/sites/")) for name in left)
    store = FeatureStore.open(root)
    assert (store.plans, store.sites) == ({}, {})
    assert store.verify().problems == []


def test_a_pass_whose_plan_is_damaged_can_be_dropped(root):
    before = names(root)
    for name in ("plan.json", "commits/000000.json", "sites/c.zarr/zarr.json"):
        write_atomic(root / "passes" / "bad" / name, b"junk")
    damaged = r"plan\.json is damaged .*, or remove that pass: `latentlake drop STORE --pass bad`"
    with pytest.raises(InputError, match=damaged):
        FeatureStore.open(root)
    with pytest.raises(InputError, match=damaged):
        drop(str(root), site="a", yes=True)
    drop(str(root), pass_name="bad", yes=True)
    assert names(root) == before
    assert list(FeatureStore.open(root).sites) == ["a", "b"]


@pytest.mark.parametrize("at", range(10))
def test_a_drop_of_a_pass_that_is_interrupted_anywhere_leaves_an_unfinished_pass(
    made, tmp_path, monkeypatch, at
):
    root = shutil.copytree(made, tmp_path / "store")
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        drop(str(root), pass_name="p", yes=True)
    monkeypatch.undo()
    store = FeatureStore.open(root)
    assert list(store.plans) == ["p"]
    assert store.verify().problems == []
    assert len(store.pass_receipts("p")) == (0 if at else len(store.shards))
    drop(str(root), pass_name="p", yes=True)
    assert not store.layout.pass_folder("p").exists()
    assert not any(name.startswith(("passes/", "tables/", "figures/")) for name in names(root))


def test_the_only_site_of_a_pass_goes_with_its_pass(root, capsys):
    drop(str(root), site="a", yes=True)
    drop(str(root), site="b", yes=True)
    assert "b is the only site of pass p, which is therefore dropped too" in capsys.readouterr().out
    assert not any(name.startswith(("passes/", "tables/")) for name in names(root))


def test_a_table_goes_of_one_site_or_of_all(root):
    drop(str(root), table="examples", site="a", yes=True)
    store = FeatureStore.open(root)
    assert [store.has_table(site, "examples") for site in ("a", "b")] == [False, True]
    drop(str(root), table="l0", yes=True)
    assert [store.has_table(site, "l0") for site in ("a", "b")] == [False, False]
    assert store.has_table("a", "features")
    with pytest.raises(InputError, match="no site of a, b has a table 'l0'"):
        drop(str(root), table="l0", yes=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pass_name": "q"}, "the store has no pass 'q'; it has p"),
        ({"site": "c"}, "site 'c' of .* does not exist; the store has a, b"),
        ({"site": "c", "table": "l0"}, "the store has no site 'c'; it has a, b"),
        ({"table": "../b/l0"}, "table"),
        ({"pass_name": "../p"}, "the store has no pass"),
        ({"site": "../b"}, "does not exist"),
        ({}, "give one of --pass, --site and --table"),
        ({"pass_name": "p", "site": "a"}, "give one of --pass, --site and --table"),
    ],
)
def test_what_is_not_there_or_no_name_is_refused(made, options, sentence):
    before = names(made)
    with pytest.raises(InputError, match=sentence):
        drop(str(made), **options, yes=True)
    assert names(made) == before


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("typed", "goes"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_somebody_at_a_terminal_is_requested_with_what_goes(made, tmp_path, monkeypatch, capsys, typed, goes):
    root = shutil.copytree(made, tmp_path / "store")
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    drop(str(root), site="a", yes=False)
    output = capsys.readouterr().out
    assert "Remove site a of pass p (" in output
    assert ("nothing was removed" in output) != goes
    assert list(FeatureStore.open(root).sites) == (["b"] if goes else ["a", "b"])


def test_without_a_terminal_it_wants_yes_and_ends_with_2(made, monkeypatch, capsys):
    before = names(made)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(SystemExit) as ended:
        main(["drop", str(made), "--pass", "p"])
    assert ended.value.code == 2
    assert "use --yes, because nobody can be asked here" in capsys.readouterr().err
    assert names(made) == before


@pytest.mark.parametrize("options", [{"pass_name": "p"}, {"site": "a"}, {"table": "l0"}])
def test_nothing_is_dropped_under_a_run_that_is_at_work(root, options):
    layout = FeatureStore.open(root).layout
    with EventLog(layout, "p") as log:
        log.log(event="begin", run="r", node="elsewhere", pid=1)
    before = names(root)
    with pytest.raises(InputError, match=r"pass 'p': a run \(elsewhere, process 1, last sign 0 s ago\)"):
        drop(str(root), **options, yes=True)
    assert names(root) == before
    with EventLog(layout, "p") as log:
        log.log(event="end", run="r")
    drop(str(root), **options, yes=True)


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("passes/p/data/000001/a/a", "is missing"),
        ("passes/p/sites/a.zarr", r"a\.zarr does not exist"),
        ("passes/p/plan.json", r"plan\.json is missing, but shards are committed under it"),
    ],
)
def test_what_other_hands_have_half_removed_is_found_by_verify(made, tmp_path, gone, sentence):
    root = shutil.copytree(made, tmp_path / "store")
    path = root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    problems = FeatureStore.open(root).verify().problems
    assert any(re.search(sentence, problem) for problem in problems)


def test_a_marker_of_another_site_or_of_a_newer_format_is_refused(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "store")
    marker = root / "passes/p/dropped/a.json"
    write_atomic(marker, Dropped(site="b", at="now").to_json())
    with pytest.raises(InputError, match="is the marker of site 'b'"):
        FeatureStore.open(root)
    newer = json.loads(Dropped(site="a", at="now").to_json()) | {"format_version": 99}
    write_atomic(marker, json.dumps(newer).encode())
    with pytest.raises(InputError, match="has format version 99"):
        FeatureStore.open(root)


def test_a_store_with_a_site_in_two_passes_can_be_repaired(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "store")
    plan = json.loads((root / "passes/p/plan.json").read_bytes()) | {"pass_name": "q"}
    write_atomic(root / "passes/q/plan.json", json.dumps(plan).encode())
    with pytest.raises(InputError, match="drop one of the passes"):
        FeatureStore.open(root)
    with pytest.raises(InputError, match="passes p, q have a site 'a': drop one of them with --pass"):
        drop(str(root), site="a", yes=True)
    drop(str(root), pass_name="q", yes=True)
    store = FeatureStore.open(root)
    assert store.verify().problems == []
    assert store.has_table("a", "features"), "it is pass p's"


def test_a_dropped_site_can_be_extracted_again_and_its_old_pass_goes_on_without_it(tmp_path):
    low = write_sae(tmp_path / "sae-low", "standard", d_sae=48, hook_name="layers.0", context_size=16)
    both = [{"name": "low", "sae": str(low)}, *run_content(tmp_path)["sites"]]
    requested = run_file(tmp_path, sites=both)
    store = extracted(requested)
    exact = [store.csr("low", record.name).toarray() for record in store.shards]
    drop(str(store.layout.root), site="low", yes=True)
    write_atomic(store.layout.figures("low") / "old.svg", b"left by an interrupted drop")
    write_corpus(tmp_path / "corpus.parquet", documents=9, seed=1)
    tokenize(run_file(tmp_path), append=True)
    extract(run_file(tmp_path))
    store = store.again()
    last = store.shards[-1].name
    assert set(store.receipts("mid")[last].sites) == {"mid"}
    assert store.verify().problems == []
    extract(requested)
    store = store.again()
    assert {name: info.pass_name for name, info in store.sites.items()} == {"low": "low", "mid": "low+mid"}
    assert not store.layout.figures("low").exists()
    again = [store.csr("low", record.name).toarray() for record in store.shards]
    assert all((one == two).all() for one, two in zip(exact, again, strict=False))
    assert len(store.receipts("low")) == len(store.shards)
    assert store.verify().problems == []


def test_a_pass_that_was_dropped_half_way_is_taken_up_again_whole(tmp_path, monkeypatch):
    low = write_sae(tmp_path / "sae-low", "standard", d_sae=48, hook_name="layers.0", context_size=16)
    requested = run_file(tmp_path, sites=[{"name": "low", "sae": str(low)}, *run_content(tmp_path)["sites"]])
    store = extracted(requested, tables=False)
    drop(str(store.layout.root), site="low", yes=True)
    interrupt(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        drop(str(store.layout.root), pass_name="low+mid", yes=True)
    monkeypatch.undo()
    store = extracted(requested, tables=False)
    assert list(store.plans) == ["low+mid"]
    assert list(store.sites) == ["low", "mid"]
    assert all(len(store.receipts(site)) == len(store.shards) for site in store.sites)
    assert store.verify().problems == []


@pytest.mark.parametrize("name", ["nowhere", "folder"])
@pytest.mark.parametrize("what", ["pass_name", "site", "table"])
def test_what_is_not_a_store_is_called_so(tmp_path, name, what):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=rf"{name} is not a store \(it has no lake\.json\)"):
        drop(str(tmp_path / name), **{what: "mid"}, yes=True)
