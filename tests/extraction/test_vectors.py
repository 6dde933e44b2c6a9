"""A corpus that holds vectors goes through the same line as text: tokenize, extract, verify, statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.evaluation.fidelity import fidelity
from jobs.lake.verify import verify
from pipeline.evaluation.typed_text import Places, run_text
from pipeline.sources.generated.numbers import SyntheticSource
from pipeline.store.records.tokens import read_token_shard
from schemas.errors import InputError
from schemas.records import Inputs
from schemas.run.file import parse_run_file
from schemas.values import Document
from tests.fixtures.runs import extracted, run_content
from tests.kit import D_MODEL, dense_activations, write_sae

DOCUMENTS = 40


class Vectors(SyntheticSource):
    """Documents of 1 to 9 vectors, with their number modulo 3 as class."""

    dtype = "float32"

    def inputs(self):
        return Inputs(width=D_MODEL, dtype=self.dtype, shape=(4, 4))

    def documents(self):
        rng = np.random.default_rng(0)
        for number in range(DOCUMENTS):
            values = rng.standard_normal((rng.integers(1, 10), D_MODEL)) * 40 + 100
            text = " ".join([str(number % 3)] * len(values))
            yield Document(number, text, (), values.clip(0, 255).astype(self.dtype))


class Bytes(Vectors):
    dtype = "uint8"


class Linear(torch.nn.Module):
    """A model of vectors: x at `layer` is their double."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(D_MODEL, D_MODEL, bias=False)
        torch.nn.init.eye_(self.layer.weight)
        self.layer.weight.data *= 2

    def forward(self, x):
        assert x.shape[2:] == (D_MODEL,)
        return self.layer(x)


def vectors_run(folder, monkeypatch, source=Vectors, contexts="packed", hook="input", **changes):
    monkeypatch.setattr("pipeline.tokens.tokenize.open_source", source)
    sae = write_sae(folder / "sae", "standard", d_sae=64, hook_name=hook, context_size=12)
    model = (
        {"loader": "inputs"} if hook == "input" else {"loader": "torch_module", "path": f"{__name__}:Linear"}
    )
    return run_content(folder / "base", **changes) | {
        "corpus": {"kind": "synthetic", "vocabulary": 3},
        "tokens": {"context_size": 12, "shard_tokens": 60, "contexts": contexts, "prepend_bos": False},
        "model": model,
        "sites": [{"name": "mid", "sae": str(sae)}],
    }


def wanted(folder, source, scale=1.0):
    """Activations [N, 64] of all vectors, densely."""
    values = np.concatenate([document.values for document in source(None).documents()])
    x = values.astype(np.float32) / (255 if values.dtype == np.uint8 else 1) * np.float32(scale)
    return dense_activations(folder / "sae", x).astype(np.float16).astype(np.float32)


@pytest.fixture(autouse=True)
def without_a_corpus_section(monkeypatch):
    monkeypatch.setattr(Vectors, "__init__", lambda self, corpus: None)
    monkeypatch.setattr(
        Vectors, "describe", lambda self: {"kind": "synthetic", "documents": DOCUMENTS, "seed": 0}
    )
    monkeypatch.setattr(Vectors, "estimated_bytes", lambda self: None)
    monkeypatch.setattr(Vectors, "label_dtypes", lambda self: {})
    monkeypatch.setattr(Vectors, "digest", lambda self: self.dtype)


@pytest.mark.parametrize("contexts", ["packed", "document"])
@pytest.mark.parametrize(("source", "hook", "scale"), [(Vectors, "input", 1), (Bytes, "layer", 2)])
def test_activations_are_those_of_the_vectors(tmp_path, monkeypatch, contexts, source, hook, scale):
    content = vectors_run(tmp_path, monkeypatch, source, contexts, hook)
    store = extracted(parse_run_file(content, "run.yaml"))
    dense = wanted(tmp_path, source, scale)
    stored = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    np.testing.assert_array_equal(stored != 0, dense != 0)
    np.testing.assert_allclose(stored, dense, rtol=1.1e-3)
    assert len(store.shards) > 1
    verify(store)
    shards = [read_token_shard(store.layout, store.lake, record, inputs=True) for record in store.shards]
    assert all(read_token_shard(store.layout, store.lake, record).inputs is None for record in store.shards)
    kept = np.concatenate([shard.inputs for shard in shards])
    np.testing.assert_array_equal(kept, np.concatenate([d.values for d in source(None).documents()]))
    sizes = store.scan_tokens().collect()["token_ids"].list.len()
    if contexts == "document":
        assert sizes.to_list() == [len(document.values) for document in source(None).documents()]
    else:
        assert (sizes == 12).sum() >= len(sizes) - len(store.shards)
    tokens = store.scan_tokens().collect()
    with pytest.raises(InputError, match="the lake holds vectors, not text"):
        run_text(store, "mid", "0 1", Places())
    assert tokens["inputs"].dtype.inner.shape == (D_MODEL,)


@pytest.mark.parametrize("hook", ["input", "layer"])
def test_jobs_of_predictions_of_tokens_are_refused(tmp_path, monkeypatch, hook):
    store = extracted(parse_run_file(vectors_run(tmp_path, monkeypatch, hook=hook), "run.yaml"), tables=False)
    with pytest.raises(InputError, match="the lake holds vectors, not tokens"):
        fidelity(store, "mid")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_half_precision_reads_vectors_too(tmp_path, monkeypatch, dtype):
    content = vectors_run(tmp_path, monkeypatch, Bytes, hook="layer")
    content["model"]["dtype"] = dtype
    store = extracted(parse_run_file(content, "run.yaml"), tables=False)
    stored = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    values = np.concatenate([document.values for document in Bytes(None).documents()])
    x = torch.from_numpy(values.astype(np.float32) / 255).to(getattr(torch, dtype)) * 2
    dense = dense_activations(tmp_path / "sae", x.float().numpy())
    assert (stored != 0).any()
    np.testing.assert_allclose(stored, dense, atol=0.01 * dense.max())


def test_a_model_of_tokens_is_refused(tmp_path, monkeypatch):
    content = vectors_run(tmp_path, monkeypatch) | {"model": {"loader": "transformer_lens", "path": "gpt2"}}
    with pytest.raises(
        InputError, match=r"the corpus holds vectors of width 16, but model\.loader: transformer_lens"
    ):
        extracted(parse_run_file(content, "run.yaml"))


def test_vectors_are_requested_of_a_corpus_that_has_them(tmp_path):
    content = run_content(tmp_path) | {"model": {"loader": "inputs"}}
    content["sites"][0]["hook_name"] = "input"
    with pytest.raises(InputError, match="inputs reads the vectors of a corpus, but this one holds tokens"):
        extracted(parse_run_file(content, "run.yaml"))
