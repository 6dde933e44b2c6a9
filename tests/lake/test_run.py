"""The whole line on a small lake: brute force, executors against each other, crashes, refusals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from jobs.lake.run import run
from pipeline.store import FeatureStore
from pipeline.store.records.registry import TABLES, find_table
from schemas.errors import InputError
from schemas.names import DERIVED_JOBS
from tests.fixtures.runs import data_bytes, extracted, run_content, run_file
from tests.kit import dense_activations, tiny_lm, write_sae

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A finished run: its folder and its store."""
    folder = tmp_path_factory.mktemp("lake")
    run(run_file(folder))
    return folder, FeatureStore.open(folder / "store")


def brute_force(folder, store, architecture="topk", dtype=np.float16):
    """Dense stored activations [N, d_sae] of every row, from the tokens up, without our line."""
    hidden = {}
    model = tiny_lm()
    model.layers[1].register_forward_hook(lambda module, args, out: hidden.update(x=out))
    dense = []
    for context in store.scan_tokens().collect().iter_rows(named=True):
        with torch.inference_mode():
            model(torch.tensor([context["token_ids"]]))
        values = dense_activations(folder / f"sae-{architecture}", hidden["x"][0].numpy())
        values[~np.array(context["counted"])] = 0
        dense.append(values.astype(dtype).astype(np.float32))
    return np.concatenate(dense)


def test_activations_are_those_of_the_dense_computation(lake):
    folder, store = lake
    stored = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    expected = brute_force(folder, store)
    np.testing.assert_array_equal(stored != 0, expected != 0)
    np.testing.assert_allclose(stored, expected, rtol=1.1e-3)  # one unit in the last place of float16


def test_every_statistic_is_numpys_over_the_stored_values(lake):
    _, store = lake
    dense = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards]).astype(
        np.float64
    )
    tokens = store.scan_tokens().collect()
    counted = np.concatenate([np.array(row) for row in tokens["counted"]])
    dense = dense[counted]
    table = store.scan_features("mid").collect()
    active = (dense != 0).sum(axis=0)
    np.testing.assert_array_equal(table["n_active"], active)
    np.testing.assert_allclose(table["frequency"], active / len(dense), rtol=1e-15)
    np.testing.assert_allclose(table["mean_all"], dense.mean(axis=0), rtol=1e-10, atol=0)
    np.testing.assert_allclose(table["var_all"], dense.var(axis=0), rtol=1e-10, atol=0)
    fired = active > 0
    sigma_over_mu = dense.std(axis=0)[fired] / dense.mean(axis=0)[fired]
    np.testing.assert_allclose(table["sigma_over_mu"].drop_nulls(), sigma_over_mu, rtol=1e-10)
    np.testing.assert_array_equal(table["max_activation"].drop_nulls(), dense.max(axis=0)[fired])
    assert table["sigma_over_mu"].null_count() == (~fired).sum()


def test_the_special_tokens_are_seen_by_the_model_and_not_counted(lake):
    _, store = lake
    tokens = store.scan_tokens().collect()
    ids = np.concatenate([np.array(row) for row in tokens["token_ids"]])
    counted = np.concatenate([np.array(row) for row in tokens["counted"]])
    np.testing.assert_array_equal(counted, ids > 2)
    assert store.totals("mid").counted_rows == counted.sum()
    rows = store.scan_activations("mid").select("row").unique().collect()["row"].to_numpy()
    assert counted[rows].all()


def test_a_second_run_has_nothing_to_do(lake, capsys):
    folder, store = lake
    before = data_bytes(store.layout.root)
    times = {path: path.stat().st_mtime_ns for path in (store.layout.root / "tables").rglob("*.parquet")}
    run(run_file(folder))
    assert "nothing to do" in capsys.readouterr().out
    assert data_bytes(store.layout.root) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("damage", ["missing", "quarantined", "short", "damaged"])
def test_with_nothing_to_do_a_manifest_that_is_after_is_written_anew(tmp_path, damage):
    from jobs.lake.extract import extract

    store = extracted(run_file(tmp_path), tables=False)
    path = store.layout.manifest("mid")
    sound = pl.read_parquet(path)
    if damage == "missing":
        path.unlink()
    elif damage == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    else:
        gone = pl.when(pl.col("shard") == "000001").then(pl.lit("quarantined")).otherwise("state")
        (sound[1:] if damage == "short" else sound.with_columns(state=gone)).write_parquet(path)
    extract(run_file(tmp_path))
    assert pl.read_parquet(path).equals(sound)


def test_verify_finds_nothing_on_a_sound_store(lake):
    assert lake[1].verify().problems == []


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_ray_workers_writes_the_same_bytes(lake, tmp_path, workers):
    folder, store = lake
    copy = run_content(
        folder, store={"root": str(tmp_path / "store")}, extract={"executor": "ray", "workers": workers}
    )
    launch(copy, tmp_path).check_returncode()
    assert data_bytes(tmp_path / "store") == data_bytes(store.layout.root)


def launch(content, folder, *, wait=True):
    """`latentlake run` in a process of its own."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "jobs", "run", str(path)]
    if wait:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def test_a_driver_killed_at_any_moment_resumes_to_the_same_bytes(lake, tmp_path):
    folder, store = lake
    content = run_content(folder, store={"root": str(tmp_path / "store")})
    commits = tmp_path / "store" / "passes" / "mid" / "commits"
    for committed in (0, 2):
        process = launch(content, tmp_path, wait=False)
        while process.poll() is None and len(list(commits.glob("*.json"))) <= committed:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = launch(content, tmp_path)
    assert done.returncode == 0, done.stderr
    resumed = FeatureStore.open(tmp_path / "store")
    assert resumed.verify().problems == []
    tables = {
        name: data for name, data in data_bytes(tmp_path / "store").items() if name.startswith("tables/")
    }
    calm = {name: data for name, data in data_bytes(store.layout.root).items() if name.startswith("tables/")}
    assert tables == calm
    receipts = resumed.receipts("mid")
    assert {s: [o.sha256 for o in r.objects] for s, r in receipts.items()} == {
        s: [o.sha256 for o in r.objects] for s, r in store.receipts("mid").items()
    }


def test_a_changed_recipe_on_an_old_pass_is_refused_naming_what_changed(lake):
    folder, _ = lake
    with pytest.raises(InputError, match=r"batch_contexts was 4, now 5.*another pass or site name"):
        run(run_file(folder, extract={"batch_contexts": 5}))
    with pytest.raises(InputError, match="activation_dtype was float16, now float32"):
        run(run_file(folder, store={"activation_dtype": "float32"}))


def test_another_sae_under_the_same_name_is_refused(lake, tmp_path):
    folder, _ = lake
    other = write_sae(tmp_path / "other", "topk", d_sae=64, hook_name="layers.1", context_size=16, seed=5)
    with pytest.raises(InputError, match=r"sites\.0\.sae_digest was"):
        run(run_file(folder, sites=[{"name": "mid", "sae": str(other)}]))


def test_a_pass_that_takes_another_ones_site_name_is_refused_and_the_store_opens(lake):
    folder, store = lake
    with pytest.raises(InputError, match="site 'mid' of pass 'again' has the name of a site of pass 'mid'"):
        run(run_file(folder, store={"pass": "again"}))
    assert set(FeatureStore.open(store.layout.root).sites) == {"mid"}


def test_a_new_pass_on_the_same_tokens_just_works(tmp_path):
    run(run_file(tmp_path))
    tokens = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "tokens").iterdir()}
    relu = write_sae(tmp_path / "relu", "standard", d_sae=48, hook_name="layers.0", context_size=16)
    run(run_file(tmp_path, sites=[{"name": "low", "sae": str(relu)}]))
    store = FeatureStore.open(tmp_path / "store")
    assert set(store.sites) == {"mid", "low"}
    assert store.scan_features("low").collect().height == 48
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "tokens").iterdir()} == tokens


def test_all_that_may_be_derived_is_made_once_and_a_page_that_was_lost_again(tmp_path, capsys):
    everything = list(DERIVED_JOBS)
    everything.remove("logits")  # a torch module has no unembedding
    for name in ("importance", "images", "attribute"):  # of images, and of prompts with answers
        everything.remove(name)
    requested = run_file(tmp_path, derive={"jobs": everything})
    run(requested)
    store = FeatureStore.open(tmp_path / "store")
    made = {"features", "l0", "examples", "rankings", "profile", "labels", "l0_thresholds", "neighbours"}
    made |= {"decoder_neighbours", "feature_clusters", "document_clusters", "feature_map", "fidelity"}
    assert made <= set(store.tables("mid"))
    assert {find_table(name) for name in store.tables("mid")} <= set(TABLES)
    assert not [name for name in store.tables("mid") if store.is_stale("mid", name)]
    page = store.layout.report / "sites" / "mid" / "index.html"
    before, tables = page.read_bytes(), data_bytes(tmp_path / "store")
    capsys.readouterr()
    run(requested)
    assert "nothing to do, they are up to date" in capsys.readouterr().out
    page.unlink()
    run(requested)
    assert page.read_bytes() == before
    assert data_bytes(tmp_path / "store") == tables


def test_a_changed_section_makes_its_tables_anew_and_nothing_else(tmp_path):
    run(run_file(tmp_path))
    store = FeatureStore.open(tmp_path / "store")
    commits = data_bytes(tmp_path / "store")
    run(run_file(tmp_path, cluster={"features": 3}))
    assert store.scan_table("mid", "feature_clusters").collect()["cluster"].n_unique() == 3
    changed = ("feature_cluster", "feature_map")  # the map tells each feature's cluster
    same = {name: data for name, data in commits.items() if not any(part in name for part in changed)}
    assert {name: data_bytes(tmp_path / "store")[name] for name in same} == same


def test_extract_alone_refuses_another_rule_than_the_tokens_have(lake):
    from jobs.lake.extract import extract

    folder, _ = lake
    with pytest.raises(InputError, match="special_tokens"):
        extract(run_file(folder, tokens={"special_tokens": "zero"}))


def test_a_node_that_sees_another_sae_is_refused_before_it_writes(tmp_path):
    from pipeline.plans.plan import agree_on_plan, make_plan, resolve
    from pipeline.store.records.tokens import read_lake
    from pipeline.worker import Worker
    from schemas.layout import Layout

    run(run_file(tmp_path))
    sae = write_sae(tmp_path / "new", "topk", d_sae=64, hook_name="layers.1", context_size=16, seed=3)
    resolved, _ = resolve(run_file(tmp_path, sites=[{"name": "new", "sae": str(sae)}]))
    layout = Layout(tmp_path / "store")
    plan = agree_on_plan(layout, make_plan(resolved, read_lake(layout)))
    write_sae(sae, "topk", d_sae=64, hook_name="layers.1", context_size=16, seed=4)
    with pytest.raises(InputError, match=r"sees different files for SAE .*new than those in the plan"):
        Worker(layout.root, plan).setup()
    assert not layout.site("new", "new").exists()


def test_a_pass_goes_on_after_its_model_and_sae_have_moved(tmp_path):
    run(run_file(tmp_path))
    first = sorted((tmp_path / "store/passes/mid/commits").iterdir())[0]
    before = data_bytes(tmp_path / "store")
    first.unlink()
    shutil.rmtree(tmp_path / "store/passes/mid/data" / first.stem)
    shutil.move(tmp_path / "sae-topk", tmp_path / "moved")
    run(run_file(tmp_path, sites=[{"name": "mid", "sae": str(tmp_path / "moved")}]))
    assert data_bytes(tmp_path / "store") == before


def test_two_sites_without_a_name_at_one_hook_are_refused(tmp_path):
    site = {"sae": str(run_content(tmp_path)["sites"][0]["sae"])}
    with pytest.raises(InputError, match="two sites share a name among"):
        run(run_file(tmp_path, sites=[site, site]))


def test_contradictions_between_run_file_and_sae_warn_with_both_values(tmp_path):
    from pipeline.plans.plan import resolve

    options = {"model_from_pretrained_kwargs": {"fold_ln": True}, "prepend_bos": True}
    sae = write_sae(tmp_path / "sae", "topk", hook_name="layers.1", context_size=16, **options)
    content = run_file(
        tmp_path,
        sites=[{"name": "mid", "sae": str(sae), "hook_name": "layers.0"}],
        tokens={"context_size": 24, "prepend_bos": False},
    )
    resolved, warnings = resolve(content)
    message = "\n".join(warnings)
    assert resolved.sites[0].hook_name == "layers.0"
    for part in ("layers.0", "layers.1", "is 24", "of 16", "is False", "with True", "fold_ln=True"):
        assert part in message


@pytest.mark.parametrize(
    "architecture",
    ["jumprelu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("standard", "gated"))],
)
def test_two_sites_of_different_width_share_one_pass(tmp_path, architecture):
    first = run_content(tmp_path, architecture)["sites"][0]
    wide = write_sae(tmp_path / "wide", "topk", d_sae=200, hook_name="layers.0", k=5, context_size=16)
    sites = [first, {"name": "wide", "sae": str(wide)}]
    run(run_file(tmp_path, architecture, sites=sites))
    store = FeatureStore.open(tmp_path / "store")
    stored = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    expected = brute_force(tmp_path, store, architecture)
    np.testing.assert_array_equal(stored != 0, expected != 0)
    assert store.csr("wide", store.shards[0].name).shape[1] == 200


@pytest.mark.parametrize(
    ("policy", "counts_specials", "stores_specials"),
    [("exclude", False, False), ("zero", True, False), ("include", True, True)],
)
def test_special_token_policies(tmp_path, policy, counts_specials, stores_specials):
    run(run_file(tmp_path, tokens={"special_tokens": policy}))
    store = FeatureStore.open(tmp_path / "store")
    ids = np.concatenate([np.array(row) for row in store.scan_tokens().collect()["token_ids"]])
    dense = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    special = ids < 3
    assert (dense[special] != 0).any() == stores_specials
    counted = len(ids) if counts_specials else (~special).sum()
    table = store.scan_features("mid").collect()
    np.testing.assert_allclose(table["frequency"], (dense != 0).sum(axis=0) / counted)


def test_zero_first_zeroes_position_0_alone(tmp_path):
    run(run_file(tmp_path, tokens={"special_tokens": "zero_first"}))
    store = FeatureStore.open(tmp_path / "store")
    activations = store.scan_activations("mid").collect()
    assert activations["position"].min() == 1
    assert store.totals("mid").counted_rows == store.totals("mid").rows


def test_nan_in_the_activations_gives_up_the_shard_and_keeps_the_rest(tmp_path, monkeypatch):
    content = run_content(tmp_path, model={"path": "tests.lake.test_run:poisoned_lm"})
    poisoned = pl.read_parquet(tmp_path / "corpus.parquet")
    texts = poisoned["text"].to_list()
    texts[20] = f"{texts[20]} w60"
    poisoned.with_columns(text=pl.Series(texts)).write_parquet(tmp_path / "corpus.parquet")
    from schemas.run.file import parse_run_file

    with pytest.raises(
        InputError, match=r"1 of \d+ shards were quarantined.*shard \d+: x at layers.1 has NaN"
    ):
        run(parse_run_file(content, "run.yaml"))
    store = FeatureStore.open(tmp_path / "store")
    assert len(store.receipts("mid")) == len(store.shards) - 1
    manifest = pl.read_parquet(store.layout.manifest("mid"))
    assert manifest.filter(state="quarantined")["error"].str.contains("NaN").to_list() == [True]


def poisoned_lm():
    """The tiny model, with NaN for the token w60 (id 63)."""
    model = tiny_lm()
    with torch.no_grad():
        model.embed.weight[63] = float("nan")
    return model
