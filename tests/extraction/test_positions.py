"""Sites that read some positions of each context only, with one that reads all, in one pass."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from jobs.lake.run import run
from pipeline.plans.plan import agree_on_plan, make_plan, resolve
from pipeline.store import FeatureStore
from pipeline.store.records.tokens import read_lake
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Receipt
from schemas.run.file import parse_run_file
from schemas.values import Totals
from tests.fixtures.runs import data_bytes, extracted, run_content, run_file
from tests.kit import write_sae
from tests.lake.test_run import brute_force

pytestmark = pytest.mark.slow

SLICES = {"odd": (1, 9, 2), "late": (-4, None), "one": (5, 6)}


def sites(folder, **slices):
    """The run file's site `mid`, and one of the same SAE for each of `slices`."""
    sae = run_content(folder)["sites"][0]["sae"]
    cut = [{"name": name, "sae": sae, "positions": list(at)} for name, at in slices.items()]
    return [{"name": "mid", "sae": sae}, *cut]


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A finished run of a site that reads everything and of one for each of SLICES."""
    folder = tmp_path_factory.mktemp("lake")
    changes = {"store": {"pass": "all"}, "extract": {"batch_contexts": 1}}
    return folder, extracted(run_file(folder, sites=sites(folder, **SLICES), **changes))


def rows_of_lake(store):
    """Of each row: its position, whether it is counted anywhere, its context and its document."""
    rows = []
    for context in store.scan_tokens().collect().iter_rows(named=True):
        documents = [s["document"] for s in context["segments"]]
        starts = [0, *(s["start"] for s in context["segments"][1:])]
        for position, counted in enumerate(context["counted"]):
            document = documents[np.searchsorted(starts, position, side="right") - 1]
            rows.append((position, counted, context["context"], document))
    return pl.DataFrame(rows, schema=["position", "counted", "context", "document"], orient="row")


@pytest.mark.parametrize("site", SLICES)
def test_every_frequency_is_of_the_rows_at_those_positions(lake, site):
    folder, store = lake
    rows = rows_of_lake(store)
    kept = pl.col("counted") & pl.col("position").is_in(list(range(16)[slice(*SLICES[site])]))
    counted = rows.select(kept)["counted"].to_numpy()
    dense = brute_force(folder, store)
    dense[~counted] = 0
    stored = np.concatenate([store.csr(site, record.name).toarray() for record in store.shards])
    np.testing.assert_array_equal(stored != 0, dense != 0)
    np.testing.assert_allclose(stored, dense, rtol=1.1e-3)
    table, of = store.scan_features(site).collect(), rows.filter(kept)
    assert store.totals(site) == Totals(
        rows.height, of.height, of["context"].n_unique(), of["document"].n_unique()
    )
    active = dense[counted] != 0
    np.testing.assert_array_equal(table["frequency"], active.sum(axis=0) / active.shape[0])
    for unit in ("context", "document"):
        fired = [of.filter(pl.Series(active[:, f]))[unit].n_unique() for f in range(64)]
        np.testing.assert_array_equal(table[f"{unit}_frequency"], np.array(fired) / of[unit].n_unique())
    np.testing.assert_allclose(table["mean_all"], stored[counted].astype(np.float64).mean(axis=0), rtol=1e-10)
    assert store.fold_row_counts(site)["rows"].sum() == of.height


def test_a_context_shorter_than_the_slice_has_no_row_in_it(lake):
    _, store = lake
    shortest = rows_of_lake(store).group_by("context").len()["len"].min()
    assert shortest <= 12, "the lake must hold a context without a row at positions 12 to 15"
    assert store.scan_activations("late").collect()["position"].min() == 12
    assert store.totals("late").contexts < store.totals("mid").contexts


def test_a_site_next_to_sliced_ones_keeps_its_bytes(lake, tmp_path):
    folder, store = lake
    changes = {"store": {"root": str(tmp_path / "store")}, "extract": {"batch_contexts": 1}}
    extracted(run_file(folder, **changes), tables=False)
    alone = data_bytes(tmp_path / "store")
    others = {path.replace("all/", "mid/", 1): data for path, data in data_bytes(store.layout.root).items()}
    ours = {path for path in alone if not path.startswith("tables/")}
    assert ours
    assert {path: others[path] for path in ours} == {path: alone[path] for path in ours}


def test_only_sliced_sites_have_counts_of_their_own_in_the_receipts(lake):
    _, store = lake
    receipts = store.pass_receipts("all").values()
    assert all(receipt.sites["mid"].counted is None for receipt in receipts)
    assert sum(receipt.sites["one"].counted.rows for receipt in receipts) == store.totals("one").counted_rows


def test_verify_agrees_and_finds_a_receipt_that_miscounts(lake, tmp_path):
    folder, _ = lake
    at = {"root": str(tmp_path / "store")}
    store = extracted(run_file(folder, sites=sites(folder, odd=(1, 9, 2)), store=at))
    report = store.verify()
    assert (report.problems, report.stale) == ([], [])
    marker = store.layout.commit("mid+odd", store.shards[0].name)
    receipt = Receipt.from_json(marker.read_bytes(), str(marker))
    site = receipt.sites["odd"]
    wrong = replace(site.counted, documents=site.counted.documents + 1)
    changed = receipt.sites | {"odd": replace(site, counted=wrong)}
    marker.write_bytes(receipt.model_copy(update={"sites": changed}).to_json())
    problems = FeatureStore.open(tmp_path / "store").verify().problems
    assert any("000000 of site odd" in line and "counted by the receipt" in line for line in problems)


def test_an_empty_slice_is_refused_with_the_context_size(tmp_path):
    with pytest.raises(InputError, match=r"site 'far': positions \[16, None\] lie outside the 16"):
        resolve(run_file(tmp_path, sites=sites(tmp_path, far=(16, None))))


@pytest.mark.parametrize("positions", [[1], [1, 2, 0], [1, 2, 3, 4]])
def test_what_is_no_slice_is_refused_in_the_run_file(tmp_path, positions):
    content = run_content(tmp_path, sites=sites(tmp_path, x=positions))
    with pytest.raises(InputError, match=r"sites\.1\.positions .*must be \[start, stop\]"):
        parse_run_file(content, "run.yaml")


def test_the_slice_of_the_sae_is_the_default_and_another_one_warns(tmp_path):
    sae = str(write_sae(tmp_path / "sae", "topk", seqpos_slice=[None, 8], context_size=16))
    given = {"name": "chosen", "sae": sae, "positions": [2, 4]}
    result, notes = resolve(run_file(tmp_path, sites=[{"name": "silent", "sae": sae}, given]))
    assert [site.positions for site in result.sites] == [(None, 8), (2, 4)]
    assert notes == ["site 'chosen': positions is [2, 4], its SAE was trained on [None, 8]"]
    other = {"name": "same", "sae": sae, "positions": [0, 8, 1]}
    assert resolve(run_file(tmp_path, sites=[other]))[1] == []


def test_a_slice_of_the_sae_that_is_none_is_reported(tmp_path):
    sae = str(write_sae(tmp_path / "sae", "topk", seqpos_slice=["a"], context_size=16))
    with pytest.raises(
        InputError, match=r"site 'x': its SAE's seqpos_slice is \['a'\], which is not a slice"
    ):
        resolve(run_file(tmp_path, sites=[{"name": "x", "sae": sae}]))


def test_all_positions_are_the_same_recipe_as_none_named(lake):
    folder, store = lake
    tokens = read_lake(Layout(store.layout.root))
    sae = run_content(folder)["sites"][0]["sae"]
    hashes = set()
    for at in (None, [0, 16], [None, None], [-16, None]):
        resolved, _ = resolve(run_file(folder, sites=[{"name": "mid", "sae": sae, "positions": at}]))
        hashes.add(make_plan(resolved, tokens).hash)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("slices", "stored"),
    [
        ([[1, None], [1, 16], [-15, None], [1, 99], [15, 0, -1]], (1, 16)),
        ([[None, 8], [0, 8], [0, -8], [0, 8, 1]], (0, 8)),
        ([[1, 9, 2], [1, 8, 2], [7, 0, -2]], (1, 8, 2)),
        ([[5, 6], [5, 7, 3]], (5, 6)),
    ],
)
def test_equal_slices_are_the_same_recipe(lake, slices, stored):
    folder, store = lake
    tokens = read_lake(Layout(store.layout.root))
    sae = run_content(folder)["sites"][0]["sae"]
    plans = []
    for at in slices:
        resolved, _ = resolve(run_file(folder, sites=[{"name": "mid", "sae": sae, "positions": at}]))
        plans.append(make_plan(resolved, tokens))
    assert {plan.sites[0].positions for plan in plans} == {stored}
    assert len({plan.hash for plan in plans}) == 1


def test_a_pass_begun_with_another_form_of_its_slice_goes_on(lake):
    folder, store = lake
    changes = {"sites": sites(folder, late2=(-4, None))[1:], "store": {"pass": "begun"}}
    plan = make_plan(resolve(run_file(folder, **changes))[0], read_lake(store.layout))

    def at(*positions):
        site = plan.sites[0].model_copy(update={"positions": positions})
        return plan.model_copy(update={"sites": (site,)})

    path = store.layout.plan("begun")
    path.parent.mkdir(parents=True)
    try:
        path.write_bytes(at(-4, None).to_json())
        assert plan.sites == at(12, 16).sites
        assert agree_on_plan(store.layout, plan).hash == at(-4, None).hash
        receipt = store.layout.commit("begun", "000000")
        receipt.parent.mkdir()
        receipt.write_bytes(b"{}")
        with pytest.raises(InputError, match=r"positions\.0 was -4, now 11"):
            agree_on_plan(store.layout, at(11, 16))
    finally:
        shutil.rmtree(path.parent)


def test_a_site_none_of_whose_rows_is_counted_has_null_frequencies(tmp_path):
    run(run_file(tmp_path, sites=sites(tmp_path, bos=(0, 1))))
    store = FeatureStore.open(tmp_path / "store")
    assert store.totals("bos").counted_rows == 0
    assert store.scan_features("bos").collect()["frequency"].null_count() == 64
    assert store.verify().problems == []
