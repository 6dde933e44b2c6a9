"""A run file and the passes of its store: which site goes where, and a first mistake that locks nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import polars as pl
import pytest

from jobs.lake.extract import extract
from jobs.lake.run import run
from jobs.lake.status import status
from jobs.lake.tokenize import tokenize
from pipeline import worker as worker_module
from pipeline.monitor.events import EventLog
from pipeline.plans.passes import passes_of
from pipeline.plans.plan import agree_on_plan, find_plan, make_plan, resolve
from pipeline.store import FeatureStore
from pipeline.store.objects.paths import store_path
from pipeline.store.records import plans
from pipeline.store.records.tokens import read_lake
from pipeline.worker import Worker
from schemas.errors import InputError
from schemas.layout import Layout
from tests.fixtures.runs import data_bytes, extracted, run_content, run_file, write_corpus
from tests.kit import write_sae

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("sites", "given", "stored", "expected"),
    [
        (["a"], None, {}, [("a", ["a"])]),
        (["a", "b"], None, {}, [("a+b", ["a", "b"])]),
        (["a", "b"], "p", {}, [("p", ["a", "b"])]),
        (["a", "b"], None, {"a": ["a"]}, [("a", ["a"]), ("b", ["b"])]),
        (["b", "a", "c"], None, {"p": ["a"]}, [("b+c", ["b", "c"]), ("p", ["a"])]),
        (["c", "a", "b"], None, {"p": ["a", "b"]}, [("c", ["c"]), ("p", ["a", "b"])]),
        (["a", "b"], None, {"p": ["b", "z"], "q": ["a"]}, [("q", ["a"]), ("p", ["b"])]),
        (["a", "b"], "q", {"p": ["a"]}, [("p", ["a"]), ("q", ["b"])]),
        (["a", "b"], "q", {"p": ["a"], "q": ["b"]}, [("p", ["a"]), ("q", ["b"])]),
        (["a"], None, {"a": ["z"]}, [("a-2", ["a"])]),
        (["a"], None, {"a": [], "a-2": ["z"]}, [("a-3", ["a"])]),
    ],
)
def test_a_stored_site_stays_in_its_pass_and_new_ones_form_one(sites, given, stored, expected):
    assert passes_of(sites, given, stored) == expected


@pytest.mark.parametrize(
    ("sites", "given", "stored", "sentence"),
    [
        (
            ["a", "b"],
            "p",
            {"p": ["a"]},
            "pass 'p' was begun with a and cannot take another site, such as 'b'",
        ),
        (["b"], "p", {"p": ["a"]}, "cannot take another site"),
        (["a"], "q", {"p": ["a"]}, "site 'a' of pass 'q' has the name of a site of pass 'p'"),
        (["a"], "q", {"p": ["a"], "q": ["b"]}, "site 'a' of pass 'q' has the name of a site of pass 'p'"),
    ],
)
def test_a_pass_that_was_named_and_has_other_sites_is_refused(sites, given, stored, sentence):
    with pytest.raises(InputError, match=sentence):
        passes_of(sites, given, stored)


def test_a_long_name_that_is_taken_gets_a_number_and_stays_a_name():
    ((name, _),) = passes_of(["b" * 128], None, {"b" * 128: ["a"]})
    assert name == "b" * 120 + "-2"


def two_sites(folder, **changes):
    """A run file with a site more than `run_file` has."""
    low = write_sae(folder / "sae-low", "standard", d_sae=48, hook_name="layers.0", context_size=16)
    sites = [{"name": "low", "sae": str(low)}, *run_content(folder)["sites"]]
    return run_file(folder, sites=sites, **changes)


def test_a_second_site_under_sites_becomes_a_pass_of_its_own_and_an_append_extends_both(tmp_path, capsys):
    run(run_file(tmp_path))
    before = data_bytes(tmp_path / "store")
    capsys.readouterr()
    run(two_sites(tmp_path))
    output = capsys.readouterr().out
    store = FeatureStore.open(tmp_path / "store")
    shards = len(store.shards)
    assert f"extract {shards} shards, {shards} were already done, in passes low, mid" in output
    assert {name: info.pass_name for name, info in store.sites.items()} == {"low": "low", "mid": "mid"}
    after = data_bytes(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    assert output.index("tables/low" if "tables/low" in output else "low") < output.index(
        "tables of mid: nothing"
    )
    write_corpus(tmp_path / "corpus.parquet", documents=9, seed=1)
    run(two_sites(tmp_path), append=True)
    store = FeatureStore.open(tmp_path / "store")
    assert len(store.shards) > shards
    assert all(len(store.receipts(site)) == len(store.shards) for site in ("low", "mid"))
    assert not [name for name in store.tables("low") if store.is_stale("low", name)]
    assert store.verify().problems == []


def test_a_site_that_the_run_file_lists_no_more_is_extended_with_its_pass(tmp_path):
    extracted(two_sites(tmp_path), tables=False)
    write_corpus(tmp_path / "corpus.parquet", documents=9, seed=1)
    tokenize(run_file(tmp_path), append=True)
    extract(run_file(tmp_path))
    store = FeatureStore.open(tmp_path / "store")
    assert list(store.plans) == ["low+mid"]
    assert len(store.receipts("low")) == len(store.shards)
    assert store.verify().problems == []


def first_mistakes(folder):
    """Sites and models that are refused when a worker loads them, or at the first shard."""
    sae = run_content(folder)["sites"][0]["sae"]
    wide = write_sae(folder / "wide", "topk", d_sae=64, d_model=24, hook_name="layers.1", context_size=16)
    return {
        "hook": {"sites": [{"name": "mid", "sae": sae, "hook_name": "layers.7"}]},
        "width": {"sites": [{"name": "mid", "sae": str(wide)}]},
        "shard": {"model": {"path": "tests.plans.test_passes:poisoned_lm"}},
        "exit": {"model": {"path": "tests.plans.test_passes:leaving_lm"}},
    }


def poisoned_lm():
    """The tiny model, every number of which is NaN."""
    import torch

    from tests.kit import tiny_lm

    model = tiny_lm()
    with torch.no_grad():
        model.embed.weight[:] = float("nan")
    return model


def leaving_lm():
    """No model."""
    sys.exit(0)


@pytest.mark.parametrize("kind", ["folder", "memory"])
@pytest.mark.parametrize("mistake", ["hook", "width", "shard", "exit"])
def test_after_a_first_mistake_the_corrected_run_file_just_works(tmp_path, mistake, kind):
    root = tmp_path / "store" if kind == "folder" else f"memory://mistakes/{mistake}"
    changes, store = first_mistakes(tmp_path)[mistake], {"root": str(root)}
    with pytest.raises((InputError, SystemExit)):
        extracted(run_file(tmp_path, store=store, **changes))
    layout = Layout(store_path(root))
    assert layout.plan("mid").exists() == (mistake == "shard")
    store = extracted(run_file(tmp_path, store=store), tables=False)
    assert len(store.receipts("mid")) == len(store.shards)
    assert store.verify().problems == []


def test_status_tells_of_a_pass_whose_first_worker_was_refused(tmp_path, capsys):
    with pytest.raises(InputError):
        extracted(run_file(tmp_path, **first_mistakes(tmp_path)["hook"]))
    capsys.readouterr()
    assert not status(str(tmp_path / "store"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pass")]
    assert line.startswith("pass mid: no plan yet; stopped 0 s ago by InputError: ")


def test_a_replaced_plan_takes_its_sites_weights_with_it(tmp_path, monkeypatch):
    other = write_sae(tmp_path / "other", "topk", d_sae=64, hook_name="layers.1", context_size=16, seed=5)
    monkeypatch.setattr(worker_module, "commit_under", lost_commit)
    with pytest.raises(InputError, match="shards were quarantined"):
        extracted(run_file(tmp_path, sites=[{"name": "mid", "sae": str(other)}]))
    monkeypatch.undo()
    layout = Layout(tmp_path / "store")
    wrong = layout.site("mid", "mid")
    assert wrong.exists()
    store = extracted(run_file(tmp_path), tables=False)
    from pipeline.saes import load_sae

    kept, _ = store.site_weights("mid")
    exact = load_sae(store.site("mid").sae).weights()
    assert {name: (values == exact[name]).all() for name, values in kept.items()} == dict.fromkeys(kept, True)


def lost_commit(layout, plan, receipt):
    """A commit that never comes."""
    raise OSError(28, "not now")


def two_plans(folder):
    """A tokenized store, its resolved run file, and two recipes of one pass."""
    resolved, _ = resolve(run_file(folder))
    tokenize(resolved)
    layout = Layout(folder / "store")
    plan = make_plan(resolved, read_lake(layout))
    return layout, plan, plan.model_copy(update={"batch_contexts": 5})


def test_a_worker_whose_plan_was_replaced_gives_up_and_leaves_no_receipt(tmp_path):
    layout, one, two = two_plans(tmp_path)
    plans.put_plan(layout, one)
    late = Worker(layout.root, one)
    late.setup()
    late.begin()
    plans.put_plan(layout, *find_plan(layout, two))
    with pytest.raises(InputError, match="not the plan that this run began with"):
        late.process("000000")
    assert not layout.commit("mid", "000000").exists()
    worker = Worker(layout.root, two)
    worker.setup()
    assert worker.process("000000").plan_hash == two.hash


def test_a_receipt_that_comes_while_its_plan_is_replaced_does_not_stay(tmp_path, monkeypatch):
    layout, one, two = two_plans(tmp_path)
    plans.put_plan(layout, one)
    worker = Worker(layout.root, one)
    worker.setup()
    real = plans.commit

    def replaced_meanwhile(layout, pass_name, receipt):
        plans.remove(layout.plan(pass_name))
        plans.put_plan(layout, two)
        return real(layout, pass_name, receipt)

    monkeypatch.setattr(plans, "commit", replaced_meanwhile)
    with pytest.raises(InputError, match="not the plan that this run began with"):
        worker.process("000000")
    assert not layout.commit("mid", "000000").exists()
    assert plans.read_plan(layout, "mid").hash == two.hash


def test_a_receipt_that_comes_while_another_run_replaces_its_plan_keeps_it(tmp_path, monkeypatch):
    layout, one, two = two_plans(tmp_path)
    plans.put_plan(layout, one)
    agreed = find_plan(layout, two)
    assert agreed.unused == (one,)
    looks = iter([False, True])
    monkeypatch.setattr(plans, "has_commits", lambda *_: next(looks))
    with pytest.raises(InputError, match="has just committed a shard of pass 'mid' under another recipe"):
        plans.put_plan(layout, *agreed)
    assert plans.read_plan(layout, "mid").hash == one.hash


def test_of_two_runs_that_begin_one_pass_with_two_recipes_one_is_refused(tmp_path):
    layout, one, two = two_plans(tmp_path)
    agreed = [find_plan(layout, plan) for plan in (one, two)]
    plans.put_plan(layout, *agreed[0])
    with pytest.raises(InputError, match="not the plan that this run began with"):
        plans.put_plan(layout, *agreed[1])
    assert plans.read_plan(layout, "mid").hash == one.hash


@pytest.mark.parametrize(("node", "lives"), [("elsewhere", True), (None, False)])
def test_a_plan_is_not_replaced_under_a_run_that_is_at_work(tmp_path, node, lives):
    import socket

    layout, one, two = two_plans(tmp_path)
    plans.put_plan(layout, one)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with EventLog(layout, "mid") as log:
        log.log(event="begin", run="r", node=node or socket.gethostname(), pid=gone.pid)
    if lives:
        with pytest.raises(InputError, match=r"a run \(elsewhere, process \d+, last sign 0 s ago\) is"):
            find_plan(layout, two)
    else:
        assert find_plan(layout, two).unused == (one,)


def test_a_run_that_was_killed_between_plan_and_first_receipt_locks_nothing(tmp_path):
    import signal
    import time

    import yaml

    content = run_content(tmp_path, model={"path": "tests.plans.test_passes:endless_lm"})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "run", str(tmp_path / "run.yaml")], start_new_session=True
    )
    layout = Layout(tmp_path / "store")
    while not (layout.plan("mid").exists() and layout.site("mid", "mid").exists()):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    store = extracted(run_file(tmp_path), tables=False)
    assert len(store.receipts("mid")) == len(store.shards)
    assert pl.read_parquet(layout.manifest("mid")).height == len(store.shards)


def endless_lm():
    """The tiny model, that never comes to an end."""
    import time

    from tests.kit import tiny_lm

    model = tiny_lm()
    model.embed.register_forward_pre_hook(lambda module, args: time.sleep(5))
    return model


def test_a_plan_that_was_lost_is_put_again_where_all_shards_are_committed(tmp_path):
    store = extracted(run_file(tmp_path), tables=False)
    path = store.layout.plan("mid")
    plan = path.read_bytes()
    path.unlink()
    assert any("plan.json is missing" in problem for problem in store.again().verify().problems)
    extract(run_file(tmp_path))
    assert path.read_bytes() == plan


def test_a_plan_without_a_receipt_makes_way_for_a_pass_that_takes_its_site(tmp_path):
    layout, one, _ = two_plans(tmp_path)
    agree_on_plan(layout, one.model_copy(update={"pass_name": "old"}))
    store = extracted(run_file(tmp_path), tables=False)
    assert list(store.plans) == ["mid"]
    assert not layout.plan("old").exists()
