"""logits and fidelity on the demo's model against transformers and sae-lens, run densely by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.evaluation.fidelity import fidelity
from jobs.evaluation.logits import logits
from jobs.studies.demo.model import FOLDER_NAME, cache_root
from schemas.run.file import parse_run_file
from tests.fixtures.runs import extracted
from tests.saes.reference import reference

ROOT = Path(__file__).parents[2]
DATA = ROOT / "jobs" / "demo_data"
MODEL = cache_root() / FOLDER_NAME
TOKENS = 300

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODEL / "model.safetensors").is_file(),
        reason="the demo's model is not there: run `python -m jobs.studies.demo.model`",
    ),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "store"
    content = {
        "corpus": {"path": str(DATA / "sotu.parquet"), "text_column": "text"},
        "tokens": {"context_size": 128, "prepend_bos": True, "limit": TOKENS, "shard_tokens": 200},
        "model": {"path": str(MODEL)},
        "sites": [{"name": "l9", "sae": str(DATA / "smollm2-135m-l9")}],
        "store": {"root": str(root)},
        "extract": {"executor": "in_process", "cpus_per_worker": 1, "batch_contexts": 2},
    }
    return extracted(parse_run_file(content, "run.yaml"), tables=False)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def contexts(store):
    for record in store.committed("l9"):
        shard = store.token_shard("l9", record.name)
        for first, last in zip(shard.context_ptr[:-1], shard.context_ptr[1:], strict=True):
            ids = torch.from_numpy(shard.token_ids[first:last].astype(np.int64))
            yield ids, torch.from_numpy(shard.stored[first:last])


def test_logits_are_transformers_own_on_the_demo(store, model):
    table = logits(store, "l9", random=64)
    features = np.arange(0, table.height, 97)
    weights = store.site_weights("l9")[0]
    dense = np.concatenate([store.csr("l9", r.name).toarray() for r in store.committed("l9")])
    counted = np.concatenate([store.token_shard("l9", r.name).counted for r in store.committed("l9")])
    norm = np.linalg.norm(dense[counted].astype(np.float64), axis=1).mean()
    vectors = torch.from_numpy(np.float32(norm) * weights["W_dec"][features] + weights["b_dec"])
    with torch.no_grad():
        log_p = model.lm_head(model.model.norm(vectors)).double().log_softmax(1).numpy()
    chosen = table[features.tolist()]
    entropy = -(np.exp(log_p) * log_p).sum(axis=1) / np.log(2)
    np.testing.assert_allclose(chosen["entropy_bits"], entropy, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(chosen["max_probability"], np.exp(log_p.max(axis=1)), rtol=1e-3)
    first = [row[0] for row in chosen["top_tokens"].to_list()]
    np.testing.assert_allclose(log_p[range(len(first)), first], log_p.max(axis=1), atol=1e-3)


def test_fidelity_is_that_of_transformers_and_sae_lens(store, model):
    table = fidelity(store, "l9", tokens="all")
    result = dict(table.select("measure", "value").iter_rows())
    sae = reference(DATA / "smollm2-135m-l9")
    assert table["tokens"].max() == sum(int(kept.sum()) for _, kept in contexts(store))
    put = {}

    def hook(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        put["x"] = x[0].clone()
        if put.get("stand_in") is None:
            return output
        x = torch.where(put["kept"][:, None], put["stand_in"](x[0]), x[0])[None]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    model.model.layers[9].register_forward_hook(hook)

    def run(ids, kept, stand_in):
        put.update(stand_in=stand_in, kept=kept)
        with torch.no_grad():
            log_p = model(ids[None]).logits[0].double().log_softmax(1)
        losses = -log_p[:-1].gather(1, ids[1:, None])[:, 0]
        return losses[kept[:-1]], log_p[:-1][kept[:-1]]

    rows = []
    for ids, kept in contexts(store):
        run(ids, kept, None)
        rows.append(put["x"][kept])
    x = torch.cat(rows)
    mean = x.double().mean(0)
    with torch.no_grad():
        decoded = sae.decode(sae.encode(x))
        active = (sae.encode(x) > 0).sum(1).double()
    sums = {name: [] for name in ("clean", "patched", "zero", "mean", "kl")}
    for ids, kept in contexts(store):
        clean = run(ids, kept, None)
        patched = run(ids, kept, lambda x: sae.decode(sae.encode(x)))
        sums["clean"].append(clean[0])
        sums["patched"].append(patched[0])
        sums["zero"].append(run(ids, kept, torch.zeros_like)[0])
        sums["mean"].append(run(ids, kept, lambda x: mean.float().expand(x.shape))[0])
        sums["kl"].append((clean[1].exp() * (clean[1] - patched[1])).sum(1))
    expected = {name: float(torch.cat(parts).mean()) for name, parts in sums.items()}
    for name in ("clean", "patched", "zero", "mean"):
        assert result[f"{name}_loss"] == pytest.approx(expected[name], rel=1e-4), name
    assert result["kl"] == pytest.approx(expected["kl"], rel=1e-3)
    harm = expected["zero"] - expected["clean"]
    assert result["recovered_share"] == pytest.approx(
        (expected["zero"] - expected["patched"]) / harm, abs=1e-4
    )
    sse, sst = (x - decoded).double().square().sum(), (x.double() - mean).square().sum()
    assert result["explained_variance"] == pytest.approx(float(1 - sse / sst), abs=1e-5)
    assert result["mse"] == pytest.approx(float(sse) / x.numel(), rel=1e-4)
    cosine = torch.cosine_similarity(x.double(), decoded.double()).mean()
    assert result["cosine"] == pytest.approx(float(cosine), abs=1e-5)
    assert result["l0"] == pytest.approx(float(active.mean()), rel=1e-3)
    assert 0.9 < result["recovered_share"] < 1.01
