"""`latentlake diff` of small stores: two corpora, two models; against loops over what the stores hold."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from jobs import cli
from jobs.tables.diff import DIFF_KEY, Side, diff, sides
from pipeline.store import FeatureStore
from pipeline.tasks import OneProcess, Processes
from schemas.errors import InputError
from schemas.tables.tables import DIFF
from tests.fixtures.runs import extracted, run_content, run_file, write_corpus
from tests.kit import tiny_lm, write_sae
from tests.statistics.test_comparison import by_hand_apart, by_hand_paired


def trained_lm():
    """Another checkpoint of the tiny model: its weights moved a little."""
    model = tiny_lm()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores `first` and `second` over two corpora, `trained` over the first under another checkpoint."""
    folder = tmp_path_factory.mktemp("diff")
    run_content(folder)
    write_corpus(folder / "first.parquet", 40)
    write_corpus(folder / "second.parquet", 30, seed=1)
    for corpus in ("first", "second"):
        extracted(of(folder, corpus, corpus), tables=False)
    checkpoint = {"path": "tests.jobs.test_diff:trained_lm"}
    extracted(of(folder, "first", "trained", model=checkpoint), tables=False)
    return folder


def of(folder, corpus, store, **changes):
    changes["corpus"] = {"path": str(folder / f"{corpus}.parquet")}
    return run_file(folder, store={"root": str(folder / store)}, **changes)


def side(folder, store, site="mid"):
    return Side(FeatureStore.open(folder / store), site)


def documents_of(side):
    """Counted rows [D], active rows and sums of activations [D, F] of every document, row by row."""
    store = side.store
    dense = np.concatenate([store.csr(side.site, r.name).toarray() for r in store.shards]).astype(np.float64)
    tokens = store.scan_tokens().collect()
    counted = np.concatenate([np.array(row) for row in tokens["counted"]])
    document = []
    for segments, ids in zip(tokens["segments"], tokens["token_ids"], strict=True):
        starts = [segment["start"] for segment in segments] + [len(ids)]
        starts[0] = 0  # BOS belongs to the first segment
        for segment, length in zip(segments, np.diff(starts), strict=True):
            document += [segment["document"]] * int(length)
    document = np.array(document)
    rows = [np.flatnonzero((document == d) & counted) for d in np.unique(document)]
    return (
        np.array([len(r) for r in rows]),
        np.array([(dense[r] != 0).sum(0) for r in rows]),
        np.array([dense[r].sum(0) for r in rows]),
    )


@pytest.mark.parametrize("other", ["second", "trained"])
def test_every_number_is_that_of_a_loop_over_documents(folder, other):
    a, b = side(folder, "first"), side(folder, other)
    table = diff(a, b, top=0)
    (n, *one), (m, *two) = documents_of(a), documents_of(b)
    assert table.schema == pl.Schema(DIFF)
    assert table["feature"].to_list() == list(range(64))
    np.testing.assert_array_equal(table["documents_a"], (one[0] > 0).sum(0))
    np.testing.assert_array_equal(table["n_active_b"], two[0].sum(0))
    tested = 0
    for name, x, y in zip(("frequency", "mean_all"), one, two, strict=True):
        for feature in range(64):
            result = table.row(feature, named=True)
            hand = by_hand_apart if other == "second" else by_hand_paired
            counts = (
                (x[:, feature], n, y[:, feature], m)
                if other == "second"
                else (x[:, feature], y[:, feature], n)
            )
            if result[f"{name}_p"] is None:
                continue
            for ending, value in zip(("a", "b", "difference", "se", "p"), hand(*counts), strict=True):
                assert result[f"{name}_{ending}"] == pytest.approx(value, rel=1e-8)
            tested += 1
    assert tested > 60


def test_frequency_and_mean_are_those_of_the_feature_tables(folder):
    from jobs.tables.stats import stats

    table = diff(side(folder, "first"), side(folder, "trained"), top=0)
    for name, store in (("a", "first"), ("b", "trained")):
        features = stats(FeatureStore.open(folder / store), "mid")
        assert table[f"frequency_{name}"].to_list() == features["frequency"].to_list()
        np.testing.assert_allclose(table[f"mean_all_{name}"], features["mean_all"], rtol=1e-12, atol=1e-15)
        assert table[f"documents_{name}"].to_list() == features["active_documents"].to_list()
        assert table[f"n_active_{name}"].to_list() == features["n_active"].to_list()


def test_two_models_over_one_corpus_are_compared_document_by_document(folder, capsys):
    table = diff(side(folder, "first"), side(folder, "trained"))
    out = capsys.readouterr().out
    assert "The documents are the same: each is compared with itself." in out
    assert "note" not in out
    paired = table["frequency_se"].median()
    apart = diff(side(folder, "first"), side(folder, "second"))["frequency_se"].median()
    assert "The documents differ." in capsys.readouterr().out
    assert paired < 0.6 * apart


@pytest.mark.slow
def test_two_sites_of_one_store_under_two_checkpoints_are_paired_too(folder, capsys):
    expected = diff(side(folder, "first"), side(folder, "trained"), top=0)
    both = folder / "both"
    shutil.copytree(folder / "first", both)
    sae = run_content(folder)["sites"][0]["sae"]
    later = of(folder, "first", "both", model={"path": "tests.jobs.test_diff:trained_lm"})
    later = later.model_copy(
        update={"sites": (later.sites[0].model_copy(update={"name": "later", "sae": sae}),)}
    )
    extracted(later, tables=False)
    assert diff(side(folder, "both", "mid"), side(folder, "both", "later"), top=0).equals(expected)


def test_swapping_the_stores_swaps_the_columns_and_turns_the_signs(folder):
    for other in ("second", "trained"):
        forth = diff(side(folder, "first"), side(folder, other), top=0)
        back = diff(side(folder, other), side(folder, "first"), top=0)
        for name in ("frequency", "mean_all"):
            np.testing.assert_allclose(back[f"{name}_difference"], -forth[f"{name}_difference"])
            for ending in ("se", "p", "q"):
                np.testing.assert_allclose(back[f"{name}_{ending}"], forth[f"{name}_{ending}"], rtol=1e-9)
            assert back[f"{name}_a"].to_list() == forth[f"{name}_b"].to_list()


def test_tasks_carry_the_shards_and_change_no_bit(folder):
    seen = []

    class Pickled(OneProcess):
        def map(self, function, items):
            for item in items:
                seen.append(item)
                yield pickle.loads(pickle.dumps(function))(item)  # as a process of its own would get it

    a, b = side(folder, "first"), side(folder, "second")
    assert diff(a, b, Pickled(), top=0).equals(diff(a, b, top=0))
    assert seen == [record.name for store in (a.store, b.store) for record in store.shards]


def test_the_command_takes_workers_as_the_other_jobs_do(folder, monkeypatch):
    given = []
    monkeypatch.setattr(
        "jobs.tables.diff.diff", lambda a, b, tasks, **_: given.append((a.site, b.site, tasks))
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["diff", str(folder / "first"), str(folder / "second"), "--workers", "2"])
    assert not stop.value.code
    ((*sites, tasks),) = given
    assert sites == ["mid", "mid"]
    assert isinstance(tasks, Processes)


def test_the_table_is_written_with_what_was_compared(folder, tmp_path, capsys):
    out = tmp_path / "new" / "diff.parquet"
    arguments = ["diff", str(folder / "first"), str(folder / "trained"), "--out", str(out), "--top", "3"]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert not stop.value.code
    assert pl.read_parquet(out).equals(diff(side(folder, "first"), side(folder, "trained"), top=0))
    about = json.loads(pl.read_parquet_metadata(out)[DIFF_KEY])
    assert about["paired"] is True
    assert (about["a"]["documents"], about["b"]["counted_rows"]) == (40, about["a"]["counted_rows"])
    assert about["a"]["receipts"] == side(folder, "first").store.receipts_digest("mid")
    assert about["a"]["sae_digest"] == about["b"]["sae_digest"]
    assert about["a"]["model_digest"] != about["b"]["model_digest"]
    assert f"All 64 features: {out}" in capsys.readouterr().out.replace("\n", "")


def test_the_clearest_changes_are_printed(folder, capsys):
    table = diff(side(folder, "first"), side(folder, "trained"), top=4)
    lines = capsys.readouterr().out.splitlines()
    significant = table.filter((pl.col("frequency_q") <= 0.05) | (pl.col("mean_all_q") <= 0.05))
    assert significant.height > 4
    z = pl.max_horizontal(pl.col("frequency_z", "mean_all_z").abs())
    expected = significant.sort(z, descending=True).head(4)["feature"].to_list()
    title = next(n for n, line in enumerate(lines) if "The 4 clearest changes" in line)
    assert [int(line.split()[0]) for line in lines[title + 2 : title + 6]] == expected
    (summary,) = (line for line in lines if line.startswith("diff "))
    assert f"{(table['frequency_q'] <= 0.05).sum()} differ in frequency" in summary


def test_what_cannot_be_compared_is_refused(folder):
    wide = write_sae(folder / "wide", "topk", d_sae=80, hook_name="layers.1", context_size=16)
    other = write_sae(folder / "other", "topk", d_sae=64, hook_name="layers.1", context_size=16, seed=3)
    some = write_sae(folder / "sae-topk", "topk", d_sae=64, hook_name="layers.1", context_size=16)
    sites = [
        {"name": "wide", "sae": str(wide)},
        {"name": "other", "sae": str(other)},
        {"name": "late", "sae": str(some), "positions": [4, None]},
    ]
    extracted(of(folder, "second", "refused", sites=sites), tables=False)
    a = side(folder, "first")
    for site, message in (
        ("wide", "has 64 features, .* has 80: only stores of one SAE"),
        ("other", "were made with two SAEs .* feature n of one is not feature n"),
        ("late", r"reads all positions, .* positions \[4, 16\]: extract both with the same positions"),
    ):
        with pytest.raises(InputError, match=message):
            diff(a, side(folder, "refused", site))
    shutil.copytree(folder / "first", folder / "begun")
    shutil.rmtree(folder / "begun/passes/mid/commits")
    with pytest.raises(InputError, match="begun mid has no committed shard with a counted row"):
        diff(a, side(folder, "begun"))


@pytest.mark.slow
def test_sites_are_chosen_by_name_or_because_there_is_one(folder):
    sae = run_content(folder)["sites"][0]["sae"]
    two = [{"name": "mid", "sae": sae}, {"name": "again", "sae": sae, "hook_name": "layers.0"}]
    store = extracted(of(folder, "second", "two", sites=two), tables=False)
    first = FeatureStore.open(folder / "first")
    named = [pair.site for pair in sides(first, store, None, None)]
    assert named == ["mid", "mid"]
    assert [pair.site for pair in sides(first, store, None, "again")] == ["mid", "again"]
    assert [pair.site for pair in sides(store, first, "again", None)] == ["again", "mid"]
    with pytest.raises(InputError, match="has the sites mid, again: choose one with --site"):
        sides(store, first, None, None)
    with pytest.raises(InputError, match="no site 'nothing'"):
        sides(first, store, None, "nothing")


@pytest.mark.slow
def test_what_else_differs_is_said(folder, capsys):
    precise = of(folder, "second", "precise")
    stored = precise.store.model_copy(update={"activation_dtype": "float32"})
    extracted(precise.model_copy(update={"store": stored}), tables=False)
    diff(side(folder, "first"), side(folder, "precise"), top=0)
    printed = capsys.readouterr().out
    assert (
        "note: store.activation_dtype is float16 in A, float32 in B: some of the difference may be due"
        in printed
    )
    checkpoint = {"path": "tests.jobs.test_diff:trained_lm"}
    extracted(of(folder, "second", "elsewhere", model=checkpoint), tables=False)
    diff(side(folder, "first"), side(folder, "elsewhere"), top=0)
    assert "both the documents and the models differ" in capsys.readouterr().out
    others = ({"shard_tokens": 600}, {"context_size": 12}, {"limit": 400}, {"prepend_bos": False})
    for number, tokens in enumerate(others):
        extracted(of(folder, "first", f"cut-{number}", tokens=tokens), tables=False)
        capsys.readouterr()
        diff(side(folder, "first"), side(folder, f"cut-{number}"), top=0)
        printed = " ".join(capsys.readouterr().out.split())
        assert "The documents differ." in printed
        assert "some documents are in both, and cannot be paired" in printed


def test_shards_that_one_side_lacks_are_left_out_and_named(folder, capsys):
    shutil.copytree(folder / "trained", folder / "part")
    store = FeatureStore.open(folder / "part")
    last = store.shards[-1].name
    store.layout.commit("mid", last).unlink()
    table = diff(side(folder, "first"), side(folder, "part"), top=0)
    output = capsys.readouterr().out
    assert f"1 of {len(store.shards)} shards of B are not extracted" in output
    assert f"the {len(store.shards) - 1} shards that both have extracted are compared" in output
    whole = diff(side(folder, "first"), side(folder, "trained"), top=0)
    assert table["n_active_a"].sum() < whole["n_active_a"].sum()
