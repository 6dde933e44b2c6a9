"""Sites whose SAE reads one vector of each context: that of the last token, or the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.lake.verify import verify
from jobs.report.build import report
from jobs.tables.profile import profile
from jobs.views.top import top
from pipeline.store.records.tokens import read_token_shard
from pipeline.tasks import OneProcess
from schemas.errors import InputError
from schemas.values import RowSelection, TokenShard, Totals
from tests.fixtures.report import blocks_of, pages_of
from tests.fixtures.runs import data_bytes, extracted, run_content, run_file
from tests.kit import dense_activations, tiny_lm

SITES = {
    "last": {"pooling": "last_token"},
    "mean": {"pooling": "mean"},
    "part": {"pooling": "mean", "positions": [2, 9, 3]},
}


def content(folder, **changes):
    sae = run_content(folder)["sites"][0]["sae"]
    sites = [{"name": name, "sae": sae, **requested} for name, requested in SITES.items()]
    return {"sites": [{"name": "mid", "sae": sae}, *sites], "store": {"pass": "all"}, **changes}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A finished run of a site that reads everything and of the pooled ones."""
    folder = tmp_path_factory.mktemp("lake")
    return folder, extracted(run_file(folder, **content(folder)))


def pooled(folder, store, site):
    """Stored activations [N, 64] one context at a time, and which row stands for it, bool [N]."""
    hidden, dense, rows = {}, [], []
    model = tiny_lm()
    model.layers[1].register_forward_hook(lambda module, args, out: hidden.update(x=out))
    inside = range(16)[slice(*SITES[site].get("positions", (None,)))]
    for context in store.scan_tokens().collect().iter_rows(named=True):
        with torch.inference_mode():
            model(torch.tensor([context["token_ids"]]))
        read = [p for p, counted in enumerate(context["counted"]) if counted and p in inside]
        dense.append(np.zeros((len(context["token_ids"]), 64), np.float32))
        rows.append(np.zeros(len(context["token_ids"]), bool))
        if read:
            x = hidden["x"][0].numpy().astype(np.float64)
            x = x[read].mean(0) if SITES[site]["pooling"] == "mean" else x[read[-1]]
            dense[-1][read[-1]] = dense_activations(folder / "sae-topk", x[None].astype(np.float32))[0]
            rows[-1][read[-1]] = True
    return np.concatenate(dense).astype(np.float16).astype(np.float32), np.concatenate(rows)


@pytest.mark.parametrize("site", SITES)
def test_one_vector_of_each_context_is_read_and_counted(lake, site):
    folder, store = lake
    dense, rows = pooled(folder, store, site)
    stored = np.concatenate([store.csr(site, record.name).toarray() for record in store.shards])
    np.testing.assert_array_equal(stored != 0, dense != 0)
    np.testing.assert_allclose(stored, dense, rtol=1.1e-3)
    assert (stored != 0).any(1).sum() == rows.sum()
    document = np.concatenate(
        [read_token_shard(store.layout, store.lake, record).document for record in store.shards]
    )
    assert store.totals(site) == Totals(
        len(rows), int(rows.sum()), int(rows.sum()), len(np.unique(document[rows]))
    )
    table = store.scan_features(site).collect()
    np.testing.assert_array_equal(table["frequency"], (dense[rows] != 0).mean(0))
    np.testing.assert_allclose(table["mean_all"], stored[rows].astype(np.float64).mean(0), rtol=1e-10)
    assert store.fold_row_counts(site)["rows"].sum() == rows.sum()


def test_the_store_verifies_and_the_site_says_what_it_reads(lake):
    _, store = lake
    verify(store)
    assert str(store.site("part").selection) == "positions [2, 9, 3], pooled by mean"
    assert store.site("last").selection == RowSelection(None, "last_token")


def test_no_token_of_an_averaged_context_is_shown_as_the_one_that_fires(lake, tmp_path, capsys):
    _, store = lake
    shown = {}
    for site in ("mean", "last"):
        profile(store, site)
        assert ("on one token" in capsys.readouterr().out) is (site == "last")
        feature = store.scan_features(site).sort("n_active").last().collect()["feature"][0]
        top(store, site, feature, k=3)
        report(store, [site], OneProcess(), out=tmp_path / site, features=str(feature))
        strips = blocks_of(pages_of(tmp_path / site / f"sites/{site}")[feature], "strips")
        text, rows = (
            capsys.readouterr().out.partition("report")[0],
            [row for each, _ in strips for row in each],
        )
        assert rows
        shown[site] = ["position " in text, "|" in text]
        shown[site] += [row[2] != [] and row[4] >= 0 and "position " in row[6] for row in rows]
    for site, marks in shown.items():
        assert set(marks) == {site == "last"}


def test_what_stands_for_a_whole_context_cannot_be_patched_at_a_token(lake):
    from jobs.evaluation.fidelity import fidelity

    _, store = lake
    with pytest.raises(InputError, match=r"'mean' reads one vector of each context \(all positions, pooled"):
        fidelity(store, "mean", model="tests.kit:tiny_lm")


def test_bytes_do_not_depend_on_the_batch_or_on_other_sites(lake, tmp_path):
    folder, store = lake
    changes = content(folder, extract={"batch_contexts": 1})
    changes["sites"] = changes["sites"][2:3]  # mean alone
    changes["store"] = {"root": str(tmp_path / "store"), "pass": "all"}
    extracted(run_file(folder, **changes), tables=False)
    kept = {path: data for path, data in data_bytes(store.layout.root).items() if "/mean/" in path}
    result = data_bytes(tmp_path / "store")
    kept = {path: data for path, data in kept.items() if path.startswith("all/")}
    assert len(kept) > 5
    assert {path: result[path] == data for path, data in kept.items()} == dict.fromkeys(kept, True)


def test_a_context_in_which_nothing_may_be_stored_counts_its_last_counted_row():
    rows = {
        "counted": [True, True, True, False, True, True],
        "stored": [False, True, False, False, False, False],
    }
    shard = TokenShard(
        name="s",
        row_start=0,
        context_start=0,
        token_ids=np.zeros(6, np.int32),
        context_ptr=np.array([0, 3, 4, 6]),
        document=np.zeros(6, np.uint64),
        **{name: np.array(mask) for name, mask in rows.items()},
    )
    result = shard.restrict(RowSelection(None, "mean"), 3)
    assert result.counted.tolist() == [False, True, False, False, False, True]
    assert result.stored.tolist() == [False, True, False, False, False, False]
    assert result.averaged.tolist() == rows["stored"]
