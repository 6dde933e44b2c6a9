"""Fidelity equals a dense computation by hand; what was measured is kept; what cannot be done is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

import pipeline.evaluation.fidelity
from jobs import cli
from jobs.command.tasks import choose_model_tasks, device_for
from jobs.evaluation.fidelity import choose, fidelity, size_of
from pipeline.statistics.evaluation.fidelity import LITERAL_MEASURES, MEASURES, QUANTITIES
from schemas.records import ShardRecord
from schemas.run.file import parse_run_file
from tests.fixtures.runs import extracted, run_file, write_corpus
from tests.kit import dense_activations, tiny_lm, write_sae, write_tiny_tokenizer

TINY = "tests.kit:tiny_lm"
ALL = {"tokens": "all", "model": TINY}
CLEAN_TO_ZERO = ("clean", "patched", "zero")
CASES = {
    "zeroed": {"tokens": {"special_tokens": "zero_first"}},
    "positions": {"sites": {"positions": [2, 9]}},
}


def run_of(folder, **changes):
    if not (folder / "corpus.parquet").exists():
        write_corpus(folder / "corpus.parquet", documents=12)
        write_tiny_tokenizer(folder / "tokenizer")
    site = {"name": "mid", "sae": str(folder / "sae-standard")} | changes.pop("sites", {})
    return run_file(folder, "standard", sites=[site], **changes)


def made(folder, **changes):
    """A store, and the folder of its SAE."""
    return extracted(run_of(folder, **changes), tables=False), folder / "sae-standard"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return made(tmp_path_factory.mktemp("plain"))[0]


@pytest.fixture(scope="module", params=["plain", *CASES])
def case(request, tmp_path_factory, plain):
    """A store, and the folder of its SAE."""
    if request.param == "plain":
        return plain, Path(plain.plans["mid"].sites[0].sae)
    changes = {section: dict(values) for section, values in CASES[request.param].items()}
    return made(tmp_path_factory.mktemp(request.param), **changes)


def by_hand(store, sae):
    """Totals of each document, float64 [D, m], context by context with the module itself."""
    module, shards = tiny_lm().eval(), [r.name for r in store.committed("mid")]
    weights = store.site_weights("mid")[0]
    b_dec = torch.from_numpy(weights["b_dec"])
    result = []
    with torch.no_grad():
        for shard in (store.token_shard("mid", name) for name in shards):
            for first, last in zip(shard.context_ptr[:-1], shard.context_ptr[1:], strict=True):
                ids = torch.from_numpy(shard.token_ids[first:last].astype(np.int64))
                x = module.layers[1](module.layers[0](module.embed(ids)[None]))[0]
                counted = shard.counted[first:last]
                result.append((ids, x, shard.stored[first:last], shard.document[first:last], counted))
        mean = torch.cat([x[torch.from_numpy(kept)] for _, x, kept, _, _ in result]).double().mean(0)
        totals = {}
        for ids, x, kept, documents, counted in result:
            active = dense_activations(sae, x.numpy())
            decoded = torch.from_numpy(active @ weights["W_dec"] + weights["b_dec"])
            where = torch.from_numpy(kept)[:, None]
            logits = [
                module.head(module.layers[2](y[None]))[0].double().log_softmax(1)
                for y in (
                    x,
                    *(torch.where(where, z, x) for z in (decoded, 0 * x, mean.float().expand(x.shape))),
                )
            ]
            nats = [-log_p[:-1].gather(1, ids[1:, None])[:, 0] for log_p in logits]
            kl = (logits[0].exp() * (logits[0] - logits[1])).sum(1)[:-1]
            wanted, given = x.double(), decoded.double()
            of_rows = [
                (wanted - given).square().sum(1),
                (wanted - mean).square().sum(1),
                torch.cosine_similarity(wanted, given),
                torch.from_numpy((active != 0).sum(1)).double(),
            ]
            for t in np.flatnonzero(kept):
                one = totals.setdefault(int(documents[t]), np.zeros(len(QUANTITIES)))
                one[6:11] += [1, *(float(values[t]) for values in of_rows)]
                if t < len(ids) - 1:
                    one[:6] += [1, *(float(values[t]) for values in nats), float(kl[t])]
            if store.lake.special_tokens == "zero_first":
                every = torch.from_numpy(counted)[:, None]
                literal = torch.where(every, torch.where(where, decoded, b_dec), x)
                nats = [nats_of(module, ids, y) for y in (x, literal, torch.where(every, 0 * x, x))]
                for t in np.flatnonzero(counted[:-1]):
                    totals[int(documents[t])][11:] += [1, *(float(values[t]) for values in nats)]
    return np.stack([totals[document] for document in sorted(totals)])


def nats_of(module, ids, x):
    """The loss of each next token with x after layer 1."""
    log_p = module.head(module.layers[2](x[None]))[0].double().log_softmax(1)
    return -log_p[:-1].gather(1, ids[1:, None])[:, 0]


def test_every_measure_is_that_of_a_dense_computation_by_hand(case):
    store, sae = case
    table = fidelity(store, "mid", **ALL)
    totals = by_hand(store, sae)
    sums = dict(zip(QUANTITIES, totals.sum(axis=0), strict=True))
    rows = {row["measure"]: row for row in table.iter_rows(named=True)}
    is_literal = store.lake.special_tokens == "zero_first"
    assert list(rows) == [*MEASURES, *(LITERAL_MEASURES if is_literal else ())]
    expected = {
        f"{name}_loss": sums[name] / sums["predictions"] for name in ("clean", "patched", "zero", "mean")
    }
    expected |= {
        "kl": sums["kl"] / sums["predictions"],
        "explained_variance": 1 - sums["sse"] / sums["sst"],
        "mse": sums["sse"] / sums["rows"] / 16,
        "cosine": sums["cosine"] / sums["rows"],
        "l0": sums["active"] / sums["rows"],
    }
    if is_literal:
        losses = {name: sums[f"literal_{name}"] / sums["literal_predictions"] for name in CLEAN_TO_ZERO}
        expected |= {f"literal_{name}_loss": loss for name, loss in losses.items()}
        assert sums["literal_predictions"] > sums["predictions"]
        assert losses["patched"] != pytest.approx(expected["patched_loss"], rel=1e-3)
    for name, value in expected.items():
        assert rows[name]["value"] == pytest.approx(value, rel=1e-5), name
        assert rows[name]["documents"] == len(totals)
    assert rows["kl"]["tokens"] == sums["predictions"]
    assert rows["l0"]["tokens"] == sums["rows"] < store.totals("mid").rows
    assert sums["clean"] != pytest.approx(sums["patched"], rel=1e-3)
    shards = store.scan_table("mid", "fidelity_shards").collect()
    assert shards.height == len(store.committed("mid")) > 1
    for name in QUANTITIES:
        assert shards[name].sum() == pytest.approx(sums[name], rel=1e-5, abs=1e-9), name
    assert set(store.tables("mid")) >= {"fidelity", "fidelity_means", "fidelity_shards"}


def test_errors_are_those_of_ratios_over_documents(case):
    store, sae = case
    table = fidelity(store, "mid", **ALL)
    totals = dict(zip(QUANTITIES, by_hand(store, sae).T, strict=True))
    d = len(totals["rows"])
    for name, above, below in (
        ("patched_loss", totals["patched"], totals["predictions"]),
        ("explained_variance", totals["sst"] - totals["sse"], totals["sst"]),
        ("l0", totals["active"], totals["rows"]),
    ):
        row = table.row(by_predicate=pl.col("measure") == name, named=True)
        value = above.sum() / below.sum()
        se = np.sqrt(d / (d - 1) * ((above - value * below) ** 2).sum()) / below.sum()
        assert row["se"] == pytest.approx(se, rel=1e-3), name
        half = stats.t.ppf(0.975, d - 1) * se
        assert (row["low"], row["high"]) == pytest.approx((value - half, value + half), rel=1e-3), name


def test_the_reasons_are_printed_below_the_table(plain, capsys):
    fidelity(plain, "mid", **ALL)
    printed = " ".join(capsys.readouterr().out.split())
    assert "recovered_share: zeros in place of x do no harm (loss" in printed


def test_of_zeros_that_do_no_harm_nothing_is_recovered(plain):
    value = dict(fidelity(plain, "mid", **ALL).select("measure", "value").iter_rows())
    assert value["zero_loss"] < value["clean_loss"]  # they do a random model good
    assert value["recovered_share"] is None


def test_what_was_measured_is_kept_and_what_is_missing_is_measured(plain, monkeypatch):
    first = fidelity(plain, "mid", **ALL)
    shards = plain.scan_table("mid", "fidelity_shards").collect()
    measure, requested = pipeline.evaluation.fidelity.measure, []

    def counted(work, mean, part):
        requested.append(part.record.name)
        return measure(work, mean, part)

    monkeypatch.setattr(pipeline.evaluation.fidelity, "measure", counted)
    assert fidelity(plain, "mid", **ALL).equals(first)
    assert requested == []
    plain.write_table("mid", "fidelity_shards", shards.filter(pl.col("shard") != "000001"))
    assert fidelity(plain, "mid", **ALL).equals(first)
    assert requested == ["000001"]
    assert plain.scan_table("mid", "fidelity_shards").collect().equals(shards)


def test_a_run_that_dies_leaves_what_it_measured(plain, monkeypatch):
    fidelity(plain, "mid", **ALL)
    plain.write_table("mid", "fidelity_shards", plain.scan_table("mid", "fidelity_shards").collect().head(0))
    measure = pipeline.evaluation.fidelity.measure

    def dying(work, mean, part):
        if part.record.name == "000001":
            raise KeyboardInterrupt
        return measure(work, mean, part)

    monkeypatch.setattr(pipeline.evaluation.fidelity, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        fidelity(plain, "mid", **ALL)
    assert plain.scan_table("mid", "fidelity_shards").collect()["shard"].to_list() == ["000000"]


def test_a_sample_runs_fewer_tokens_and_its_interval_holds_the_whole(plain):
    whole = fidelity(plain, "mid", **ALL)
    some = fidelity(plain, "mid", tokens="300", model=TINY)
    value = whole.filter(pl.col("measure") == "l0")["value"][0]
    row = some.row(by_predicate=pl.col("measure") == "l0", named=True)
    assert 200 < row["tokens"] < 450 < whole["tokens"].max()
    assert row["low"] < value < row["high"]
    one = fidelity(plain, "mid", tokens="all", model=TINY, shards=("000001",))
    assert one["tokens"].max() == plain.token_shard("mid", "000001").stored.sum()


def record(name, contexts):
    numbers = dict.fromkeys(
        ("bytes", "row_start", "counted_rows", "context_start", "counted_contexts", "document_start",
         "documents", "counted_documents"), 0
    )  # fmt: skip
    return ShardRecord(name=name, sha256="", rows=contexts * 10, contexts=contexts, **numbers)


def test_groups_are_chosen_evenly_over_shards():
    records = [record("a", 8), record("b", 0), record("c", 31)]
    parts = choose(records, 4, 120)
    assert [(part.record.name, part.groups) for part in parts] == [("a", (0,)), ("c", (0, 3, 5))]
    assert choose(records, 4, None) == choose(records, 4, 10**9)
    assert [size_of(part, 4) for part in choose(records, 4, None)] == [80, 0, 310]
    assert choose(records, 4, None)[2].ranges(4)[-1] == range(28, 31)


def test_a_transcoder_is_compared_with_what_is_at_its_target(tmp_path):
    run = run_of(tmp_path)
    path = tmp_path / "sae-standard" / "cfg.json"
    config = json.loads(path.read_text())
    config |= {"architecture": "transcoder", "d_out": 16}
    config["metadata"] |= {"hook_name": "layers.0", "hook_name_out": "layers.1"}
    config.pop("apply_b_dec_to_input", None)
    path.write_text(json.dumps(config))
    store = extracted(run)
    table = fidelity(store, "mid", **ALL)
    module, weights = tiny_lm().eval(), store.site_weights("mid")[0]
    sse = rows = 0
    with torch.no_grad():
        for name in (r.name for r in store.committed("mid")):
            shard = store.token_shard("mid", name)
            for first, last in zip(shard.context_ptr[:-1], shard.context_ptr[1:], strict=True):
                ids = torch.from_numpy(shard.token_ids[first:last].astype(np.int64))
                x = module.layers[0](module.embed(ids)[None])
                y = module.layers[1](x)[0].numpy()
                active = np.maximum(x[0].numpy() @ weights["W_enc"] + weights["b_enc"], 0)
                error = (active @ weights["W_dec"] + weights["b_dec"] - y)[shard.stored[first:last]]
                sse, rows = sse + float((error.astype(np.float64) ** 2).sum()), rows + len(error)
    result = table.filter(pl.col("measure") == "mse")["value"][0]
    assert result == pytest.approx(sse / rows / 16, rel=1e-5)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fidelity", *map(str, arguments)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err.strip().splitlines()[-1]


def test_files_that_are_gone_or_changed_are_refused(capsys, tmp_path, plain):
    root, sae = plain.layout.root, Path(plain.plans["mid"].sites[0].sae)
    assert "SAE nowhere does not exist" in refused(capsys, root, "--model", TINY, "--sae", "nowhere")
    other = write_sae(tmp_path / "other", "standard", d_sae=64, hook_name="layers.1", context_size=16, seed=1)
    line = refused(capsys, root, "--model", TINY, "--sae", other)
    assert f"{other} is not the SAE that the pass was made with (its digest is " in line
    assert "give its current path as --sae" in line
    line = refused(capsys, root, "--model", "tests.fixtures.runs:run_file")
    assert (
        "the model of the pass is gone from tests.fixtures.runs:run_file: give its current path as --model"
        in line
    )
    assert "--tokens 0" in refused(capsys, root, "--model", TINY, "--tokens", "0")
    assert "no committed shard 'x'" in refused(capsys, root, "--model", TINY, "--shard", "x")
    moved = shutil.copytree(sae, tmp_path / "moved")
    assert fidelity(plain, "mid", tokens="100", model=TINY, sae=str(moved)).height == len(MEASURES)


def test_a_synthetic_site_is_refused(capsys, tmp_path):
    content = {
        "corpus": {
            "kind": "synthetic",
            "documents": 4,
            "tokens_per_document": 20,
            "vocabulary": 50,
            "seed": 0,
        },
        "tokens": {"context_size": 8, "shard_tokens": 40},
        "model": {"loader": "synthetic"},
        "sites": [{"name": "made", "sae": "synthetic:d_sae=16,l0=2,exponent=1.0,burst=0.5,seed=0"}],
        "store": {"root": str(tmp_path / "store")},
        "extract": {"executor": "in_process"},
    }
    extracted(parse_run_file(content, "run.yaml"), tables=False)
    assert "site 'made' is synthetic" in refused(capsys, tmp_path / "store")
    with pytest.raises(SystemExit):
        cli.main(["logits", str(tmp_path / "store")])
    assert "there is no unembedding" in capsys.readouterr().err


def test_a_job_takes_the_gpu_that_there_is_and_on_a_cluster_the_passs_device(plain):
    plan = plain.plans["mid"]
    assert device_for(plan, "cpu", None) == device_for(plan, "cpu", "host:6379") == "cpu"
    assert device_for(plan, "auto", None) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_for(plan.model_copy(update={"device": "cuda"}), "auto", "host:6379") == "cuda"


def with_tasks(store, tasks):
    """The bytes of the shards' sums, measured anew with these tasks."""
    fidelity(store, "mid", **ALL)
    for name in ("fidelity_shards", "fidelity_means"):
        store.write_table("mid", name, store.scan_table("mid", name).collect().head(0))
    fidelity(store, "mid", tasks, **ALL)
    return store.layout.table("mid", "fidelity_shards").read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(plain):
    with choose_model_tasks(plain, plain.plans["mid"], "cpu", workers=2) as tasks:
        assert with_tasks(plain, tasks) == with_tasks(plain, None)


@pytest.mark.slow
@pytest.mark.ray
def test_tasks_of_a_private_ray_give_the_bytes_of_one_process(plain):
    with choose_model_tasks(plain, plain.plans["mid"], "cpu", workers=1, address="local") as tasks:
        assert with_tasks(plain, tasks) == with_tasks(plain, None)
