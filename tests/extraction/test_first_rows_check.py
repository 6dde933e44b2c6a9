"""A worker checks the SAEs on its first shard: one that explains less than the mean of x stops the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jobs.lake.run import run
from pipeline.extraction import by_model as model_features
from pipeline.extraction import first_rows_check
from pipeline.store import FeatureStore
from schemas.errors import InputError
from tests.fixtures.runs import data_bytes, run_file, write_corpus
from tests.kit import D_MODEL, tiny_lm, write_sae, write_tiny_tokenizer

pytestmark = pytest.mark.slow

EYE = np.eye(D_MODEL, dtype=np.float32)
ZEROS = np.zeros(D_MODEL, np.float32)


def good_sae(folder, scale=1.0, **options):
    """relu(x) and relu(-x), decoded into scale * x."""
    both = np.concatenate([EYE, -EYE])
    weights = {"W_enc": both.T, "W_dec": scale * both, "b_dec": ZEROS, "b_enc": np.zeros(2 * D_MODEL)}
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    return write_sae(
        folder, "standard", D_MODEL, 2 * D_MODEL, weights=weights, apply_b_dec_to_input=False, **options
    )


def site(folder, **options):
    return {"sites": [{"name": "mid", "sae": str(good_sae(folder / "sae", **options))}]}


def receipts(folder):
    return FeatureStore.open(folder / "store").receipts("mid")


def run_with(folder, check, **options):
    return run(run_file(folder, extract={"check_sae": check}, **site(folder, **options)))


def test_what_an_sae_explains_is_in_the_receipt_of_the_first_shard_alone(tmp_path, capsys):
    run_with(tmp_path, "stop")
    result = {name: receipt.sites["mid"].explained_variance for name, receipt in receipts(tmp_path).items()}
    assert len(result) > 2
    assert result.pop("000000") == 1.0
    assert set(result.values()) == {None}
    assert "mid explains 1.000 of the variance" in " ".join(capsys.readouterr().out.split())


def test_the_number_is_one_minus_the_error_over_the_variance_of_the_counted_rows(tmp_path):
    run_with(tmp_path, "stop", scale=0.7)
    record = receipts(tmp_path)["000000"]
    x = first_shard_x(tmp_path)
    expected = 1 - ((0.3 * x) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    assert record.sites["mid"].explained_variance == pytest.approx(expected, abs=1e-4)


def first_shard_x(folder):
    """x at layers.1 of the rows of shard 0 that are stored, context by context, float64."""
    import torch

    from pipeline.store.records.tokens import read_lake, read_links, read_token_shard
    from schemas.layout import Layout

    layout = Layout(folder / "store")
    shard = read_token_shard(layout, read_lake(layout), read_links(layout)[0].shards[0])
    model, rows = tiny_lm(), []
    model.layers[1].register_forward_hook(lambda m, i, out: rows.append(out[0]))
    for context in np.split(shard.token_ids, shard.context_ptr[1:-1]):
        with torch.no_grad():
            model(torch.tensor(context)[None].long())
    return torch.cat(rows).numpy().astype(np.float64)[shard.stored]


def test_an_sae_worse_than_the_mean_ends_the_run_and_nothing_is_committed(tmp_path):
    with pytest.raises(InputError, match="site 'mid', shard 000000: the reconstruction is worse than"):
        run_with(tmp_path, "stop", scale=-3.0)
    assert receipts(tmp_path) == {}
    with pytest.raises(InputError, match="check_sae: warn"):
        run_with(tmp_path, "stop", scale=-3.0)


def test_with_check_sae_warn_the_run_ends_and_says_so(tmp_path, capsys):
    run_with(tmp_path, "warn", scale=-3.0)
    assert receipts(tmp_path)["000000"].sites["mid"].explained_variance < 0
    assert "less than the mean of x" in " ".join(capsys.readouterr().out.split())


def test_with_check_sae_off_nothing_is_checked(tmp_path):
    run_with(tmp_path, "off", scale=-3.0)
    assert {r.sites["mid"].explained_variance for r in receipts(tmp_path).values()} == {None}


def test_the_check_changes_no_data(tmp_path):
    run_with(tmp_path, "stop")
    checked = data_bytes(tmp_path / "store")
    run(run_file(tmp_path, store={"root": str(tmp_path / "other")}, **site(tmp_path)))
    assert data_bytes(tmp_path / "other") == checked


def test_a_transcoder_is_measured_at_its_target(tmp_path):
    folder = good_sae(tmp_path / "sae", hook_name="layers.0", hook_name_out="layers.2")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"architecture": "transcoder", "d_out": D_MODEL}))
    run(run_file(tmp_path, extract={"check_sae": "warn"}, sites=[{"name": "mid", "sae": str(folder)}]))
    explained = receipts(tmp_path)["000000"].sites["mid"].explained_variance
    assert explained is not None
    assert explained < 0.99


def test_a_check_that_fails_is_repeated(tmp_path, monkeypatch):
    calls, check_saes = [], model_features.check_saes

    def flaky(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("out of memory")
        return check_saes(*arguments)

    monkeypatch.setattr(model_features, "check_saes", flaky)
    with pytest.raises(InputError, match="worse than the mean"):
        run_with(tmp_path, "stop", scale=-3.0)
    assert len(calls) == 2


def test_too_few_rows_in_the_first_shard_are_checked_in_a_later_one(tmp_path):
    content = {"sites": [site(tmp_path)["sites"][0]], "tokens": {"shard_tokens": 20}}
    run(run_file(tmp_path, extract={"check_sae": "stop"}, **content))
    result = {name: receipt.sites["mid"].explained_variance for name, receipt in receipts(tmp_path).items()}
    rows = {name: receipt.rows for name, receipt in receipts(tmp_path).items()}
    checked = [name for name, value in result.items() if value is not None]
    assert len(checked) == 1
    assert checked[0] == min(name for name in rows if rows[name] >= 72)  # some of them are BOS and EOS


def pooled(folder, **options):
    """One SAE at a site that gives a row a context of 16."""
    content = site(folder, **options)
    content["sites"][0] |= {"pooling": "mean", "name": "mid"}
    return content


def test_a_pooled_site_is_checked_until_it_has_enough_rows(tmp_path, monkeypatch):
    """A check of 64 token rows, which are four rows of the site, goes on to the 64th context."""
    monkeypatch.setattr(first_rows_check, "ROWS", 64)
    content = {"tokens": {"shard_tokens": 1200}, "extract": {"check_sae": "stop"}}
    run(run_file(tmp_path, **content, **pooled(tmp_path)))
    result = {name: receipt.sites["mid"].explained_variance for name, receipt in receipts(tmp_path).items()}
    assert result.pop("000000") == 1.0
    assert set(result.values()) <= {None}
    with pytest.raises(InputError, match=r"site 'mid', shard 000000: .* on 64 rows"):
        run(run_file(tmp_path / "bad", **content, **pooled(tmp_path / "bad", scale=-3.0)))


def test_a_site_that_never_gives_enough_rows_is_not_checked_for_ever(tmp_path, monkeypatch):
    calls, check_saes = [], model_features.check_saes
    monkeypatch.setattr(first_rows_check, "ROWS", 64)
    monkeypatch.setattr(
        model_features, "check_saes", lambda *a: calls.append(a[3]["mid"].n_rows) or check_saes(*a)
    )
    write_corpus(tmp_path / "corpus.parquet", documents=60)
    write_tiny_tokenizer(tmp_path / "tokenizer")
    run(run_file(tmp_path, extract={"check_sae": "stop"}, **pooled(tmp_path)))
    rows = [receipt.rows for receipt in receipts(tmp_path).values()]
    assert sum(calls[:-1]) < 2 * 64 * 16 <= sum(calls) < sum(rows)
    assert {r.sites["mid"].explained_variance for r in receipts(tmp_path).values()} == {None}


def test_a_transcoder_whose_target_the_model_lacks_runs_and_is_reported(tmp_path, capsys):
    folder = good_sae(tmp_path / "sae", hook_name="layers.0", hook_name_out="layers.9")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"architecture": "transcoder", "d_out": D_MODEL}))
    run(run_file(tmp_path, extract={"check_sae": "stop"}, sites=[{"name": "mid", "sae": str(folder)}]))
    assert {r.sites["mid"].explained_variance for r in receipts(tmp_path).values()} == {None}
    assert "mid: its reconstruction was not checked" in " ".join(capsys.readouterr().out.split())


def sinking_lm():
    """`tiny_lm` with an attention sink: after layer 1 the word w7 is very long, and all in one place."""
    import torch

    model = tiny_lm()

    def sink(_module, _inputs, x):
        massive = torch.zeros_like(x)
        massive[..., 3] = 3000.0
        return torch.where((model.ids == 10)[..., None], massive, x)

    model.register_forward_pre_hook(lambda m, inputs: setattr(m, "ids", inputs[0]))
    model.layers[1].register_forward_hook(sink)
    return model


@pytest.mark.parametrize("batch_contexts", [1, 4, 64])
def test_a_few_massive_rows_stop_no_good_sae(tmp_path, capsys, batch_contexts):
    model = {"path": "tests.extraction.test_first_rows_check:sinking_lm"}
    sae = good_sae(tmp_path / "sae")
    weights = load_file(sae / "sae_weights.safetensors")
    # of the sink's place it gives the opposite, so that the sink is worse than the mean
    weights["W_dec"] = np.ascontiguousarray(
        weights["W_dec"] * np.where(np.arange(D_MODEL) == 3, -1, 1), np.float32
    )
    save_file(weights, sae / "sae_weights.safetensors")
    sites = [{"name": "mid", "sae": str(sae)}]
    extract = {"check_sae": "stop", "batch_contexts": batch_contexts}
    run(run_file(tmp_path, extract=extract, model=model, sites=sites))
    look = receipts(tmp_path)["000000"].sites["mid"]
    assert look.explained_variance < 0 < 0.3 < look.explained_variance_rest
    said = " ".join(capsys.readouterr().out.split())
    assert f"({look.explained_variance_rest:.3f} without a few rows above ten times the median norm)" in said
    assert "less than the mean" not in said
