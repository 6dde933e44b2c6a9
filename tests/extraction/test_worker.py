"""The worker's loop: what is submitted when, and sites that read attention heads."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jobs.lake.run import run
from pipeline.plans.plan import agree_on_plan, make_plan, resolve
from pipeline.store import FeatureStore
from pipeline.store.records.tokens import read_lake
from pipeline.worker import Worker
from schemas.errors import InputError
from schemas.layout import Layout
from tests.fixtures.runs import data_bytes, extracted, run_content, run_file
from tests.kit import D_MODEL, dense_activations, write_sae, write_tiny_gpt2
from tests.lake.test_run import brute_force

pytestmark = pytest.mark.slow

HEADS = 2
HOOK = "blocks.1.attn.hook_z"


class Recorded:
    """An encoder that writes down what is asked of it, in order."""

    def __init__(self, encoder, log):
        self._encoder, self._log, self._batches = encoder, log, 0

    def submit(self, x):
        self._batches += 1
        return Later(self._encoder.submit(x), self._log, self._batches)


class Later:
    def __init__(self, pending, log, batch):
        self._pending, self._log, self._batch = pending, log, batch
        log.append(("submit", batch))

    def result(self):
        self._log.append(("result", self._batch))
        return self._pending.result()


def worker_of(folder, root, **changes):
    """A worker for a new pass over the tokens of `root`."""
    resolved, _ = resolve(run_file(folder, store={"root": str(root)}, **changes))
    layout = Layout(root)
    worker = Worker(
        root,
        agree_on_plan(layout, make_plan(resolved, read_lake(layout))),
        oom_batch_contexts=resolved.extract.oom_batch_contexts,
    )
    worker.setup()
    worker.begin()
    return worker


def test_a_batch_is_submitted_before_the_one_before_it_is_waited_for(tmp_path):
    root = extracted(run_file(tmp_path), tables=False).layout.root
    before = data_bytes(root)
    (root / "passes/mid/commits/000000.json").unlink()
    worker, log = worker_of(tmp_path, root), []
    worker._features._encoders = {"mid": Recorded(worker._features._encoders["mid"], log)}
    worker.process("000000")
    batches = max(batch for _, batch in log)
    assert batches > 2
    expected = [("submit", 1)]
    for batch in range(2, batches + 1):
        expected += [("submit", batch), ("result", batch - 1)]
    assert log == [*expected, ("result", batches)]
    assert data_bytes(root) == before


def test_a_batch_without_a_row_to_encode_is_not_submitted(tmp_path):
    sae = run_content(tmp_path)["sites"][0]["sae"]
    late = {
        "sites": [{"name": "late", "sae": sae, "positions": [15, None]}],
        "extract": {"batch_contexts": 1},
    }
    store = extracted(run_file(tmp_path, **late), tables=False)
    root = store.layout.root
    lengths = store.scan_tokens().collect()["token_ids"].list.len().to_list()
    short = sum(length < 16 for length in lengths)
    assert short
    worker, log = worker_of(tmp_path, root, **late), []
    worker._features._encoders = {"late": Recorded(worker._features._encoders["late"], log)}
    for record in store.shards:
        (root / f"passes/late/commits/{record.name}.json").unlink()
        worker.process(record.name)
    submitted = sum(what == "submit" for what, _ in log)
    counted = store.scan_tokens().collect()["counted"].list.get(15, null_on_oob=True)
    assert submitted == counted.fill_null(value=False).sum() <= len(lengths) - short


class Full:
    """A model on a GPU that holds so many contexts, after `failures` calls for which it holds none."""

    def __init__(self, model, most, failures=0):
        self._model, self._most, self._failures, self.sizes = model, most, failures, []

    def forward(self, batch):
        self.sizes.append(len(batch.lengths))
        self._failures -= 1
        if len(batch.lengths) > self._most or self._failures >= 0:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self._model.forward(batch)


@pytest.fixture
def lost_shard(tmp_path):
    """A finished store, one shard of which lost its receipt; the bytes that it had."""
    root = extracted(run_file(tmp_path), tables=False).layout.root
    before = data_bytes(root)
    (root / "passes/mid/commits/000001.json").unlink()
    return tmp_path, root, before


def test_a_shard_that_runs_out_of_gpu_memory_is_tried_again_as_it_was(lost_shard):
    folder, root, before = lost_shard
    worker = worker_of(folder, root, extract={"oom_batch_contexts": 1})
    worker._features._model = Full(worker._features._model, most=4, failures=1)
    assert worker.process("000001").batch_contexts is None
    assert data_bytes(root) == before


def test_only_then_it_gets_the_smaller_batches_of_the_run_file_and_its_receipt_says_so(lost_shard):
    folder, root, _ = lost_shard
    worker = worker_of(folder, root, extract={"oom_batch_contexts": 2})
    worker._features._model = model = Full(worker._features._model, most=2)
    receipt = worker.process("000001")
    assert model.sizes[:4] == [4, 4, 2, 2]
    assert receipt.batch_contexts == FeatureStore.open(root).receipts("mid")["000001"].batch_contexts == 2
    assert FeatureStore.open(root).verify().problems == []


def test_else_the_attempt_fails_and_the_worker_lives(lost_shard):
    folder, root, before = lost_shard
    worker = worker_of(folder, root)
    model = worker._features._model
    worker._features._model = Full(model, most=2)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        worker.process("000001")
    worker._features._model = model
    assert worker.process("000001").batch_contexts is None
    assert data_bytes(root) == before


def test_rows_of_a_try_that_ran_out_of_memory_are_not_counted_again(lost_shard):
    folder, root, _ = lost_shard
    worker = worker_of(folder, root)
    model, calls = worker._features._model, []

    def forward(batch):
        calls.append(batch)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return model.forward(batch)

    worker._features._model = SimpleNamespace(forward=forward)
    message = []
    worker._on_rows = lambda shard, rows: message.append(rows)
    rows = worker.process("000001").rows
    assert max(message) == worker.rows_done("000001") == rows
    assert message[2] == 0, "the second try begins anew"


def z_of(folder, store):
    """What goes into the output projection of attention in block 1, [N, heads * d_head], of all rows."""
    from transformers import GPT2LMHeadModel

    model, seen = GPT2LMHeadModel.from_pretrained(folder / "gpt2", attn_implementation="eager"), []
    model.transformer.h[1].attn.c_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for ids in store.scan_tokens().collect()["token_ids"]:
        with torch.inference_mode():
            model(torch.tensor([ids.to_list()]))
    return torch.cat(seen).numpy()


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    """A run over hook_z: SAEs of head 0, of head 1, and of both heads flattened."""
    folder = tmp_path_factory.mktemp("attention")
    write_tiny_gpt2(folder / "gpt2")
    width = D_MODEL // HEADS
    options = {"hook_name": HOOK, "context_size": 16, "prepend_bos": True}
    for head in range(HEADS):
        write_sae(folder / f"head{head}", "topk", d_model=width, hook_head_index=head, **options, seed=head)
    write_sae(folder / "flat", "topk", d_model=D_MODEL, **options)
    names = ["head0", "head1", "flat"]
    sites = [{"name": name, "sae": str(folder / name)} for name in names]
    model = {"loader": "transformer_lens", "path": str(folder / "gpt2")}
    return folder, extracted(run_file(folder, model=model, sites=sites))


@pytest.mark.parametrize(("site", "columns"), [("head0", (0, 8)), ("head1", (8, 16)), ("flat", (0, 16))])
def test_sites_at_hook_z_read_their_head_or_all_heads_flattened_once(attention, site, columns):
    folder, store = attention
    counted = np.concatenate([np.array(row) for row in store.scan_tokens().collect()["counted"]])
    z = z_of(folder, store)[:, slice(*columns)]
    expected = dense_activations(folder / site, np.ascontiguousarray(z))
    expected[~counted] = 0
    stored = np.concatenate([store.csr(site, record.name).toarray() for record in store.shards])
    agree = (stored != 0) == (expected != 0)
    assert (~agree).sum() <= 2  # a tie of TopK that low bits decide
    np.testing.assert_allclose(stored[agree], expected[agree], rtol=2e-3, atol=1e-4)
    assert store.verify().problems == []


def test_a_head_that_the_model_has_not_is_refused_with_both_widths(attention, tmp_path):
    folder, store = attention
    options = {"hook_name": HOOK, "context_size": 16, "hook_head_index": HEADS}
    sae = write_sae(tmp_path / "head2", "topk", d_model=D_MODEL // HEADS, **options)
    changes = {
        "model": {"loader": "transformer_lens", "path": str(folder / "gpt2")},
        "sites": [{"name": "head2", "sae": str(sae)}],
    }
    refusal = r"site 'head2': .*hook_z has vectors of width 16, but the SAE .* reads 8"
    with pytest.raises(InputError, match=refusal):
        worker_of(folder, store.layout.root, **changes)


def test_a_transcoder_of_another_width_out_goes_through_the_whole_line(tmp_path):
    rng, wide = np.random.default_rng(0), 24
    weights = {
        "W_dec": rng.normal(size=(64, wide)).astype(np.float32),
        "b_dec": np.ones(wide, np.float32),
        "W_skip": rng.normal(size=(wide, D_MODEL)).astype(np.float32),
    }
    options = {"apply_b_dec_to_input": False, "context_size": 16, "hook_name_out": "layers.2"}
    sae = write_sae(tmp_path / "sae-skip", "skip_transcoder", weights=weights, **options)
    config = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps(config | {"d_out": wide}))
    run(run_file(tmp_path, sites=[{"name": "mid", "sae": str(sae)}]))
    store = FeatureStore.open(tmp_path / "store")
    kept, metadata = store.site_weights("mid")
    np.testing.assert_array_equal(kept["W_dec"], weights["W_dec"])
    np.testing.assert_array_equal(kept["W_skip"], weights["W_skip"])
    assert (metadata["transcoder"], metadata["d_out"], metadata["hook_name_out"]) == (True, wide, "layers.2")
    stored = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    np.testing.assert_allclose(stored, brute_force(tmp_path, store, "skip"), rtol=1.1e-3, atol=1e-4)
    clustered = store.scan_table("mid", "feature_clusters").collect()
    assert clustered.height == (stored != 0).any(axis=0).sum()
    assert store.verify().problems == []


def test_the_processing_that_an_sae_asks_for_reaches_the_workers_model(tmp_path):
    from transformers import GPT2LMHeadModel

    write_tiny_gpt2(tmp_path / "gpt2")
    requested = {"model_from_pretrained_kwargs": {"center_writing_weights": True}, "context_size": 16}
    sae = write_sae(tmp_path / "sae-centred", hook_name="blocks.1.hook_resid_post", **requested)
    model = {"loader": "transformer_lens", "path": str(tmp_path / "gpt2")}
    changes = {"model": model, "sites": [{"name": "mid", "sae": str(sae)}], "store": {"pass": "mid"}}
    store = extracted(run_file(tmp_path, **changes), tables=False)
    assert store.plans["mid"].model_processing == {"center_writing_weights": True}
    gpt2, seen = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", attn_implementation="eager"), []
    for ids in store.scan_tokens().collect()["token_ids"]:
        with torch.inference_mode():
            seen.append(gpt2(torch.tensor([ids.to_list()]), output_hidden_states=True).hidden_states[2][0])
    x = torch.cat(seen).numpy()
    expected = dense_activations(sae, x - x.mean(axis=1, keepdims=True))
    expected[~np.concatenate([np.array(row) for row in store.scan_tokens().collect()["counted"]])] = 0
    stored = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=1e-3)
    assert np.abs(dense_activations(sae, x)[expected != 0] - expected[expected != 0]).max() > 0.1
