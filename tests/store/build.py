"""A small store with random activations, and the same activations dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from pipeline import statistics
from pipeline.statistics.l0 import l0_counts
from pipeline.store.formats.parquet import write_frame
from pipeline.store.formats.transposition import round_activations, to_postings
from pipeline.store.objects.verbs import measure, put_if_absent
from pipeline.store.records.commits import commit
from pipeline.store.writer import write_site
from schemas.layout import Layout
from schemas.records import CorpusLink, Lake, Plan, PlannedSite, Receipt, ShardRecord, SiteReceipt
from schemas.tables.tables import VOCABULARY, tokens_schema
from schemas.values import SparseFeatures, TokenShard

LABELS = {"year": "Int64", "party": "String"}
D_SAE, CONTEXT_SIZE = 40, 8


@dataclass
class Built:
    """`tokens`: one row per token row with context, position, document, document_offset, token, labels."""

    layout: Layout
    lake: Lake
    plan: Plan
    tokens: pl.DataFrame
    shards: list[ShardRecord]
    dense: dict[str, np.ndarray]


def planned_site(name: str = "site", d_sae: int = D_SAE, feature_block: int = 16) -> PlannedSite:
    return PlannedSite(
        name=name,
        hook_name="hook",
        sae="sae",
        sae_digest="0",
        architecture="topk",
        d_model=4,
        d_sae=d_sae,
        encode_block=8,
        feature_block=feature_block,
    )


def make_plan(sites: Sequence[PlannedSite], layouts: Sequence[str], dtype: str, pass_name: str = "p") -> Plan:
    return Plan(
        pass_name=pass_name,
        lake_digest="0",
        model="model",
        model_loader="torch_module",
        model_digest="0",
        model_dtype="float32",
        device="cpu",
        batch_contexts=2,
        threads=1,
        sites=tuple(sites),
        activation_dtype=dtype,
        layouts=tuple(layouts),
        environment={},
    )


def random_features(rng: np.random.Generator, stored: np.ndarray, d_sae: int = D_SAE) -> SparseFeatures:
    """Some features of each stored row, of very different frequency; many equal values; some negative."""
    frequency = rng.uniform(0, 0.5, d_sae) * (np.arange(d_sae) % 5 != 0)
    active = (rng.random((len(stored), d_sae)) < frequency) & stored[:, None]
    values = rng.integers(1, 9, active.shape) / 4 * rng.choice([1, 1, -1], active.shape) + rng.choice(
        [0, 0.001], active.shape
    )
    matrix = sparse.csr_matrix(np.where(active, values, 0).astype(np.float32))
    return SparseFeatures(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def put_lake(layout: Layout, context_size: int, label_columns: dict[str, str]) -> Lake:
    """The record of a lake whose BOS is not counted."""
    lake = Lake(
        tokenizer="none",
        tokenizer_digest="0",
        context_size=context_size,
        bos_id=0,
        separator_id=None,
        special_ids=(0,),
        special_tokens="exclude",
        label_columns=label_columns,
    )
    put_if_absent(layout.lake, lake.to_json())
    words = [f" w{number}" for number in range(50)]
    columns = {"token_id": range(50), "text": words, "bytes": [word.encode() for word in words]}
    write_frame(layout.vocabulary, pl.DataFrame(columns, schema=VOCABULARY))
    return lake


def build(
    root: Path,
    *,
    shards: int = 3,
    documents: int = 6,
    sites: Sequence[str] = ("site",),
    layouts: Sequence[str] = ("token_major", "feature_major"),
    dtype: str = "float16",
    seed: int = 0,
    commits: int | None = None,
) -> Built:
    """A store of `shards` shards of `documents` documents; `commits` of them are committed (default: all)."""
    rng, layout = np.random.default_rng(seed), Layout(root)
    lake = put_lake(layout, CONTEXT_SIZE, LABELS)
    records: list[ShardRecord] = []
    frames: list[pl.DataFrame] = []
    for number in range(shards):
        frame, record = _token_shard(layout, number, documents, rng, records[-1] if records else None)
        records.append(record)
        frames.append(frame)
    link = CorpusLink(source={}, source_digest="0", shards=tuple(records))
    put_if_absent(layout.corpus_link(0), link.to_json())
    plan = make_plan([planned_site(name) for name in sites], layouts, dtype)
    plan = plan.model_copy(update={"lake_digest": lake.digest})
    put_if_absent(layout.plan(plan.pass_name), plan.to_json())
    dense = {name: np.zeros((sum(r.rows for r in records), D_SAE), np.float32) for name in sites}
    for record, frame in zip(records[:commits], frames, strict=False):
        features = {name: random_features(rng, (frame["token"] != 0).to_numpy()) for name in sites}
        _, rounded = commit_shard(layout, plan, record, frame, features)
        for name, feature in rounded.items():
            dense[name][record.row_start : record.row_start + record.rows] = to_dense(feature)
    return Built(layout, lake, plan, pl.concat(frames), records, dense)


def to_dense(features: SparseFeatures, d_sae: int = D_SAE) -> np.ndarray:
    shape = (len(features.indptr) - 1, d_sae)
    return sparse.csr_matrix((features.data, features.indices, features.indptr), shape=shape).toarray()


def from_dense(dense: np.ndarray) -> SparseFeatures:
    """The inverse of `to_dense`."""
    matrix = sparse.csr_matrix(dense.astype(np.float32))
    return SparseFeatures(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def commit_shard(
    layout: Layout,
    plan: Plan,
    record: ShardRecord,
    frame: pl.DataFrame,
    features: dict[str, SparseFeatures],
    attempt: str = "a",
) -> tuple[Receipt, dict[str, SparseFeatures]]:
    tokens = token_shard(record, frame)
    folder = layout.attempt(plan.pass_name, record.name, attempt)
    objects: list[Any] = []
    sites, rounded = {}, {}
    for site in plan.sites:
        kept, underflow, loss = round_activations(features[site.name], plan.activation_dtype)
        postings = to_postings(kept, site.d_sae)
        rounded[site.name] = kept
        sites[site.name] = SiteReceipt(nnz=kept.nnz, underflow=underflow, rounding=loss)
        objects += write_site(
            folder,
            site,
            kept,
            postings,
            partials=partial(statistics.partials, postings, tokens),
            row_counts=l0_counts(kept.indptr, tokens.counted),
            row_start=record.row_start,
            layouts=plan.layouts,
            activation_dtype=plan.activation_dtype,
        )
    receipt = Receipt(
        shard=record.name,
        attempt=attempt,
        plan_hash=plan.hash,
        tokens_sha256=record.sha256,
        rows=record.rows,
        sites=sites,
        objects=tuple(objects),
        seconds={"write": 0.5, "encode": 1.0},
        peak_rss_bytes=1,
        environment={},
        link=0,
    )
    return commit(layout, plan.pass_name, receipt), rounded


def token_shard(record: ShardRecord, frame: pl.DataFrame) -> TokenShard:
    counted = (frame["token"] != 0).to_numpy()
    lengths = frame.group_by("context", maintain_order=True).len()["len"].to_numpy()
    return TokenShard(
        name=record.name,
        row_start=record.row_start,
        context_start=record.context_start,
        token_ids=frame["token"].cast(pl.Int32).to_numpy(),
        context_ptr=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        counted=counted,
        stored=counted,
        document=frame["document"].cast(pl.UInt64).to_numpy(),
    )


def _token_shard(
    layout: Layout, number: int, documents: int, rng: np.random.Generator, before: ShardRecord | None
) -> tuple[pl.DataFrame, ShardRecord]:
    """Pack random documents, BOS (0) first in each context; write the shard; return one row per token row."""
    row = before.row_start + before.rows if before else 0
    context = before.context_start + before.contexts if before else 0
    first_document = before.document_start + before.documents if before else 0
    first_row, first_context = row, context
    rows: list[dict[str, Any]] = []
    for document in range(first_document, first_document + documents):
        labels = {"year": 1900 + document // 2, "party": [None, "red", "blue"][document % 3]}
        for offset in range(int(rng.integers(1, 14))):
            position = (row - first_row) % CONTEXT_SIZE
            if position == 0:
                context = first_context + (row - first_row) // CONTEXT_SIZE
                bos = {"row": row, "context": context, "position": 0, "document": document, "token": 0}
                rows.append(bos | {"document_offset": None} | labels)
                row, position = row + 1, 1
            place = {"row": row, "context": context, "position": position, "document": document}
            rows.append(place | {"token": int(rng.integers(1, 50)), "document_offset": offset} | labels)
            row += 1
    frame = pl.DataFrame(rows, schema_overrides={"document_offset": pl.UInt32, "party": pl.String})
    name = layout.shard_name(number)
    path = layout.tokens(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    _contexts(frame, first_row).write_parquet(path)
    size, sha256 = measure(path)
    counted = frame.filter(pl.col("token") != 0)
    return frame, ShardRecord(
        name=name,
        sha256=sha256,
        bytes=size,
        row_start=first_row,
        rows=frame.height,
        counted_rows=counted.height,
        context_start=first_context,
        contexts=frame["context"].n_unique(),
        counted_contexts=counted["context"].n_unique(),
        document_start=first_document,
        documents=documents,
        counted_documents=counted["document"].n_unique(),
    )


def _contexts(frame: pl.DataFrame, first_row: int) -> pl.DataFrame:
    out = []
    for _, context in frame.group_by("context", maintain_order=True):
        tokens = context.filter(pl.col("token") != 0)
        segments = [
            {
                "document": piece["document"][0],
                "start": piece["position"][0],
                "offset": piece["document_offset"][0],
                "year": piece["year"][0],
                "party": piece["party"][0],
            }
            for _, piece in tokens.group_by("document", maintain_order=True)
        ]
        out.append(
            {
                "row_offset": context["row"][0] - first_row,
                "token_ids": context["token"].to_list(),
                "segments": segments,
                "counted": (context["token"] != 0).to_list(),
                **{name: _shared([s[name] for s in segments]) for name in LABELS},
            }
        )
    return pl.DataFrame(out, schema=tokens_schema(LABELS))


def _shared(values: list[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else None
