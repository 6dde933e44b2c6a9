"""A store of shards of some hundred thousand activations, made quickly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from scipy import sparse

from pipeline.store.objects.verbs import measure, put_if_absent
from pipeline.store.records.site import write_site_weights
from schemas.layout import Layout
from schemas.records import CorpusLink, ShardRecord
from schemas.tables.tables import tokens_schema
from schemas.values import SparseFeatures
from tests.fixtures.store import commit_shard, make_plan, planned_site, put_lake

CONTEXT = 64


def build_large(root: Path, *, shards: int, rows: int, d_sae: int, l0: int) -> Layout:
    """Contexts of 64 rows, BOS first, each a document; the features of each row are drawn alike."""
    layout, rng = Layout(root), np.random.default_rng(0)
    lake = put_lake(layout, CONTEXT, {})
    site = planned_site(d_sae=d_sae, feature_block=64)
    plan = make_plan([site], ("token_major", "feature_major"), "float16")
    plan = plan.model_copy(update={"lake_digest": lake.digest})
    put_if_absent(layout.plan("p"), plan.to_json())
    records: list[ShardRecord] = []
    for number in range(shards):
        records.append(_token_shard(layout, number, rows))
        token = np.where(np.arange(rows) % CONTEXT == 0, 0, 7)
        row = np.arange(rows)
        frame = pl.DataFrame(
            {"token": token, "context": row // CONTEXT, "document": number * rows // CONTEXT + row // CONTEXT}
        )
        commit_shard(layout, plan, records[-1], frame, {"site": _features(rng, token != 0, d_sae, l0)})
    put_if_absent(
        layout.corpus_link(0), CorpusLink(source={}, source_digest="0", shards=tuple(records)).to_json()
    )
    write_site_weights(layout, "p", site, {"W_dec": np.eye(d_sae, 3, dtype=np.float32)}, {})
    return layout


def _features(rng: np.random.Generator, stored: np.ndarray, d_sae: int, l0: int) -> SparseFeatures:
    row = np.repeat(np.flatnonzero(stored), l0)
    key = np.unique(row * d_sae + rng.integers(0, d_sae, len(row)))
    values = np.exp(rng.normal(size=len(key))).astype(np.float32)
    matrix = sparse.csr_matrix((values, (key // d_sae, key % d_sae)), shape=(len(stored), d_sae))
    return SparseFeatures(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def _token_shard(layout: Layout, number: int, rows: int) -> ShardRecord:
    contexts, name = rows // CONTEXT, layout.shard_name(number)
    ids = np.full((contexts, CONTEXT), 7, np.int32)
    ids[:, 0] = 0
    segments = [[{"document": number * contexts + n, "start": 1, "offset": 0}] for n in range(contexts)]
    frame = pl.DataFrame(
        {
            "row_offset": np.arange(contexts, dtype=np.uint64) * CONTEXT,
            "token_ids": ids.tolist(),
            "segments": segments,
            "counted": (ids != 0).tolist(),
        },
        schema=tokens_schema({}),
    )
    path = layout.tokens(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)
    size, sha256 = measure(path)
    return ShardRecord(
        name=name,
        sha256=sha256,
        bytes=size,
        row_start=number * rows,
        rows=rows,
        counted_rows=rows - contexts,
        context_start=number * contexts,
        contexts=contexts,
        counted_contexts=contexts,
        document_start=number * contexts,
        documents=contexts,
        counted_documents=contexts,
    )
