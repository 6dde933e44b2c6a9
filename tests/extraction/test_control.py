"""A control next to the learnt features: end to end against NumPy, dense, on the control's contexts alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from jobs.figures import FIGURES
from jobs.tables.stats import stats
from pipeline.plans.plan import agree_on_plan, make_plan, resolve
from pipeline.statistics.control import THRESHOLDS
from pipeline.store import FeatureStore
from pipeline.store.objects.verbs import measure
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.records.tokens import read_lake
from pipeline.tasks import Processes
from schemas.errors import InputError
from schemas.records import FORMAT_VERSION, Plan
from schemas.run.file import parse_run_file
from tests.fixtures.runs import data_bytes, extracted, run_content, run_file
from tests.kit import dense_activations, draw_sae_weights, tiny_lm, write_sae

pytestmark = pytest.mark.slow

SEEDS = {"random": 0, "shuffled": 5}
CONTROLS = {"random": "random_encoder", "shuffled": "shuffled_rows"}
ARCHITECTURES = {"random": "standard", "shuffled": "jumprelu"}


def content(folder, policy="exclude", **changes):
    """Two sites, one for each kind of control."""
    sites = []
    for name, control in CONTROLS.items():
        sae = write_sae(folder / name, ARCHITECTURES[name], d_sae=64, hook_name="layers.1", context_size=16)
        site = {"name": name, "sae": str(sae), "control": control, "control_seed": SEEDS[name]}
        sites.append(site if SEEDS[name] else {k: v for k, v in site.items() if k != "control_seed"})
    return run_content(folder, sites=sites, tokens={"special_tokens": policy}, store={"pass": "p"}, **changes)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder, and the store of both sites."""
    folder = tmp_path_factory.mktemp("one")
    return folder, extracted(parse_run_file(content(folder), "run.yaml"))


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """Such a store in which some counted rows are 0."""
    folder = tmp_path_factory.mktemp("zeros")
    return folder, extracted(parse_run_file(content(folder, "zero_first"), "run.yaml"))


@pytest.fixture(params=["one", "zeros"])
def lake(request):
    """Each of them."""
    return request.getfixturevalue(request.param)


def x_of(store):
    """x [N, 16] of every row of the lake, its context, and whether it is counted; contexts alone."""
    hidden, x, contexts, counted = {}, [], [], []
    model = tiny_lm()
    model.layers[1].register_forward_hook(lambda module, args, out: hidden.update(x=out))
    for context in store.scan_tokens().collect().iter_rows(named=True):
        with torch.inference_mode():
            model(torch.tensor([context["token_ids"]]))
        x.append(hidden["x"][0].numpy())
        contexts += [context["context"]] * len(context["token_ids"])
        counted += context["counted"]
    return np.concatenate(x), np.array(contexts), np.array(counted)


def dense_control(folder, store, name):
    """Learnt and control activations [n, 64] of the counted rows of the control's contexts."""
    x, context, counted = x_of(store)
    weights = draw_sae_weights(ARCHITECTURES[name], 16, 64, 0)
    learnt = dense_activations(folder / name, x).astype(np.float16).astype(np.float64)
    first = np.append(True, np.diff(context) > 0)
    if store.lake.special_tokens == "zero_first":
        learnt[first] = 0
    rng = np.random.default_rng(SEEDS[name])
    if name == "random":
        w_enc = rng.standard_normal((16, 64), dtype=np.float32)
    else:
        w_enc = weights["W_enc"][rng.permutation(16)]
    control = np.maximum((x - weights["b_dec"]) @ w_enc + weights["b_enc"], 0).astype(np.float64)
    norm = np.linalg.norm(control, axis=1)
    control *= (np.linalg.norm(learnt, axis=1) / np.where(norm > 0, norm, 1))[:, None]
    chosen = counted & (context % 50 < 10)
    return {"learnt": learnt[chosen], "control": control[chosen]}


def test_the_lake_has_contexts_of_both_kinds_in_several_shards(lake):
    _, store = lake
    assert len(store.shards) > 3
    assert store.shards[-1].context_start + store.shards[-1].contexts > 60
    tokens = store.scan_tokens().collect()
    assert tokens.filter(pl.col("context") % 50 < 10)["shard"].n_unique() < len(store.shards)


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("of", ["learnt", "control"])
def test_every_statistic_is_that_of_the_dense_formulas(lake, name, of):
    folder, store = lake
    dense = dense_control(folder, store, name)[of]
    table = store.scan_table(name, "control_features").filter(of=of).collect()
    active = (dense > 0).sum(axis=0)
    assert len(dense) > 150
    np.testing.assert_array_equal(table["feature"], np.arange(64))
    assert table["counted_rows"].unique().to_list() == [len(dense)]
    np.testing.assert_array_equal(table["n_active"], active)
    np.testing.assert_array_equal(table["frequency"], active / len(dense))
    # of control values, float32 products in another order; of learnt ones, a last place of float16
    close = {"rtol": 2e-5 if of == "control" else 1.1e-3, "atol": 0}
    np.testing.assert_allclose(table["mean_all"], dense.mean(axis=0), **close)
    np.testing.assert_allclose(table["var_all"], dense.var(axis=0), **close)
    fired = active > 0
    ratio = dense.std(axis=0)[fired] / dense.mean(axis=0)[fired]
    np.testing.assert_allclose(table["sigma_over_mu"].to_numpy()[fired], ratio, **close)
    mean_active = dense.sum(axis=0)[fired] / active[fired]
    np.testing.assert_allclose(table["mean_active"].to_numpy()[fired], mean_active, **close)
    var_active = [dense[dense[:, f] > 0, f].var() for f in np.flatnonzero(active > 1)]
    np.testing.assert_allclose(table["var_active"].drop_nulls(), var_active, rtol=1e-2, atol=1e-9)
    np.testing.assert_allclose(table["max_activation"].to_numpy()[fired], dense.max(axis=0)[fired], **close)
    assert table["sigma_over_mu"].null_count() == (~fired).sum() == table["max_activation"].null_count()


@pytest.mark.parametrize("name", CONTROLS)
def test_l0_at_every_threshold_is_that_of_the_dense_formulas(lake, name):
    folder, store = lake
    table = store.scan_table(name, "control_l0").collect()
    for of, dense in dense_control(folder, store, name).items():
        for threshold in THRESHOLDS:
            l0 = (dense > threshold).sum(axis=1)
            result = table.filter(of=of, threshold=threshold)
            np.testing.assert_array_equal(result["l0"], np.unique(l0))
            np.testing.assert_array_equal(result["rows"], np.bincount(l0)[np.unique(l0)])


def test_a_control_fires_in_about_half_of_its_features_and_has_the_learnt_norms(lake):
    _, store = lake
    table = store.scan_table("random", "control_features").collect()
    learnt, control = (table.filter(of=of) for of in ("learnt", "control"))
    assert control["frequency"].mean() > 2 * learnt["frequency"].mean()
    power = [(t["var_all"] + t["mean_all"] ** 2).sum() for t in (learnt, control)]
    assert power[1] == pytest.approx(power[0], rel=1e-5)


def test_files_of_activations_that_are_not_negative_have_the_columns_they_always_had(one):
    _, store = one
    for site in CONTROLS:
        for record in store.shards:
            columns = pl.read_parquet(store.object_path(site, record.name, "control.parquet")).columns
            assert columns == ["feature", "of", "n_active", "mean", "m2", "max_activation"]
        table = store.scan_table(site, "control_features").collect()
        assert table["strongest_activation"].equals(table["max_activation"].alias("strongest_activation"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A store of an AbsTopK site with a control."""
    folder = tmp_path_factory.mktemp("signed")
    requested = run_content(folder, "abstopk")
    requested["sites"][0]["control"] = "random_encoder"
    return extracted(parse_run_file(requested, "run.yaml"))


class TestNegativeActivations:
    def test_the_strongest_is_the_largest_magnitude_with_its_sign(self, signed):
        stored = np.concatenate([signed.csr("mid", record.name).toarray() for record in signed.shards])
        contexts = signed.scan_tokens().collect()
        context = np.repeat(contexts["context"].to_numpy(), contexts["token_ids"].list.len().to_numpy())
        dense = stored[(context % 50 < 10) & np.concatenate([np.array(row) for row in contexts["counted"]])]
        expected = dense[np.abs(dense).argmax(axis=0), np.arange(64)]
        table = signed.scan_table("mid", "control_features").filter(of="learnt").collect()
        assert (expected < 0).sum() > 9 < (expected > 0).sum()
        np.testing.assert_array_equal(table["strongest_activation"].fill_null(0), expected)
        most = np.where((dense != 0).any(axis=0), np.where(dense != 0, dense, -np.inf).max(axis=0), 0)
        np.testing.assert_array_equal(table["max_activation"].fill_null(0), most)

    def test_the_figure_draws_magnitudes_as_that_of_the_feature_table_does(self, signed):
        table = signed.scan_table("mid", "control_features").collect()
        strongest = table.filter(of="learnt")["strongest_activation"].abs().drop_nulls()
        axes = FIGURES["control_max"].draw(table, "mid").axes[0]
        bars = axes.patches[0].get_data()
        np.testing.assert_array_equal(bars.values, np.histogram(strongest, bars.edges)[0])
        assert bars.values.sum() == len(strongest)
        assert "|activation|" in axes.get_xlabel()

    def test_it_verifies_and_so_does_a_store_from_before_the_column_was_there(self, signed, tmp_path):
        assert signed.verify().problems == []
        shutil.copytree(Path(__file__).parents[1] / "data" / "store-v4", tmp_path / "store")
        old = FeatureStore.open(tmp_path / "store")
        assert "strongest_activation" not in old.scan_table("signed", "control_features").collect().columns
        stats(old, "signed")
        table = old.scan_table("signed", "control_features").collect()
        assert table["strongest_activation"].equals(table["max_activation"].alias("strongest_activation"))
        assert old.verify().problems == []


def test_the_tables_say_which_control_it_is_and_what_rule_it_has(one):
    _, store = one
    table = store.scan_table("shuffled", "control_features").collect()
    assert table.select("of", "control", "architecture").unique(maintain_order=True).rows() == [
        ("learnt", "shuffled_rows", "jumprelu"),
        ("control", "shuffled_rows", "standard"),
    ]


def test_learnt_features_and_every_other_object_have_the_bytes_of_a_site_without_control(one, tmp_path):
    folder, store = one
    without = content(folder)
    for site in without["sites"]:
        site.pop("control"), site.pop("control_seed", None)
    without["store"]["root"] = str(tmp_path / "store")
    extracted(parse_run_file(without, "run.yaml"))
    before, now = objects(tmp_path / "store"), objects(store.layout.root)
    assert len(before) > 20
    assert {path: now[path] for path in before} == before
    assert {path.rpartition("/")[2] for path in now.keys() - before.keys()} == {
        "control.parquet",
        "control_l0.parquet",
    }


def objects(root):
    """Bytes of the data objects alone; tables carry a digest of the receipts."""
    return {path: data for path, data in data_bytes(root).items() if not path.startswith("tables/")}


@pytest.mark.parametrize("batch", [1, 50])
def test_the_contexts_do_not_depend_on_the_batch(one, tmp_path, batch):
    folder, store = one
    changed = content(folder, extract={"batch_contexts": batch})
    changed["store"]["root"] = str(tmp_path / "store")
    other = extracted(parse_run_file(changed, "run.yaml"))
    for name in CONTROLS:
        a, b = (s.scan_table(name, "control_features").collect() for s in (store, other))
        np.testing.assert_array_equal(a["n_active"], b["n_active"])
        np.testing.assert_allclose(a["var_all"], b["var_all"], rtol=1e-5)
        assert a["counted_rows"].equals(b["counted_rows"])


def test_tables_have_the_same_bits_for_any_number_of_workers(one, monkeypatch):
    import pipeline.store.derived.control as module

    _, store = one
    before = data_bytes(store.layout.root)
    monkeypatch.setattr(module, "_RANGE_BYTES", 1)
    monkeypatch.setattr(module, "_SHARDS", 1)
    with Processes(2) as tasks:
        stats(store, "random", tasks)
    assert data_bytes(store.layout.root) == before


def test_a_plan_without_control_hashes_as_before_and_one_with_it_does_not(one):
    _, store = one
    plan = store.plans["p"]
    assert "control" in plan.recipe()["sites"][0]
    assert "control_seed" not in plan.recipe()["sites"][0]
    bare = plan.model_dump(mode="json")
    for site in bare["sites"]:
        del site["control"], site["control_seed"]
    old = Plan.model_validate(bare)
    assert old.hash != plan.hash
    assert not {"control", "control_seed"} & {key for site in old.recipe()["sites"] for key in site}


def test_a_pass_that_was_begun_without_control_says_that_it_cannot_have_one(one):
    folder, store = one
    requested = content(folder)
    requested["sites"][0]["control"] = "shuffled_rows"
    resolved, notes = resolve(parse_run_file(requested, "run.yaml"))
    plan = make_plan(resolved, read_lake(store.layout))
    with pytest.raises(InputError, match="control was random_encoder, now shuffled_rows; give it another"):
        agree_on_plan(store.layout, plan)
    assert [line for line in notes if "control" in line] == [
        "note: site 'shuffled': control shuffled_rows uses ReLU in place of the SAE's rule, which is jumprelu"
    ]


def test_a_control_of_features_that_are_drawn_is_refused(tmp_path):
    synthetic = {"sites": [{"name": "s", "sae": "synthetic:d_sae=64,l0=4", "control": "random_encoder"}]}
    with pytest.raises(InputError, match="random_encoder needs an SAE with weights, and 'synthetic:d_sae"):
        run_file(tmp_path, model={"loader": "synthetic", "path": ""}, **synthetic)
    with pytest.raises(InputError, match=r"sites\.0\.control is 'random'"):
        run_file(tmp_path, sites=[{"sae": "s", "control": "random"}])


class TestVerify:
    @pytest.fixture
    def place(self, one, tmp_path):
        """A store of its own, and a function that changes an object and its receipt."""
        shutil.copytree(one[1].layout.root, tmp_path / "store")
        store = FeatureStore.open(tmp_path / "store")

        def change(name, *columns):
            path = store.object_path("random", "000000", name)
            pl.read_parquet(path).with_columns(*columns).write_parquet(path)
            marker = store.layout.commit("p", "000000")
            receipt = json.loads(marker.read_bytes())
            for item in receipt["objects"]:
                if item["path"] == f"random/{name}":
                    item["bytes"], item["sha256"] = measure(path)
            marker.write_text(json.dumps(receipt))
            return path, FeatureStore.open(store.layout.root).verify().problems

        return store, change

    def test_a_sound_control_has_no_problem_and_damage_is_named(self, place):
        store, _ = place
        report = store.verify()
        assert (report.problems, report.stale) == ([], [])
        path = store.object_path("random", "000000", "control_l0.parquet")
        path.write_bytes(path.read_bytes()[:-1])
        (problem,) = FeatureStore.open(store.layout.root).verify().problems
        assert problem.startswith(f"{path} has ")

    def test_each_csr_is_read_once(self, place, monkeypatch):
        store, read = place[0], []
        before = ShardFiles.read_csr
        monkeypatch.setattr(ShardFiles, "read_csr", lambda files: (read.append(files), before(files))[1])
        assert store.verify().problems == []
        assert len(read) == len(CONTROLS) * len(store.shards)

    @pytest.mark.parametrize(
        ("name", "of", "column", "message"),
        [
            ("control.parquet", "learnt", "m2", "differs from a recomputation in m2"),
            ("control_l0.parquet", "learnt", "l0", "differs from a recomputation in l0"),
            ("control.parquet", "control", "mean", "the control is stronger than the learnt features"),
            ("control.parquet", "control", "n_active", "counts other activations by feature than by row"),
            ("control_l0.parquet", "control", "rows", "does not count the rows that the learnt features"),
        ],
    )
    def test_what_cannot_be_is_found(self, place, name, of, column, message):
        _, change = place
        doubled = pl.when(pl.col("of") == of).then(pl.col(column) * 2).otherwise(pl.col(column))
        _, problems = change(name, doubled.alias(column))
        assert any(message in problem for problem in problems), problems


def test_this_is_a_version_of_the_format_that_knows_controls():
    assert FORMAT_VERSION >= 4
