"""From documents to token shards: encode in batches, cut into groups of whole documents, pack and write each.

Reading, encoding and writing overlap, one item ahead of each other; memory is that of a few shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl

from pipeline.store.objects.local import writing_threads
from pipeline.store.objects.verbs import write_atomic
from pipeline.store.records.token_rows import counted_mask, document_of_row
from pipeline.store.records.tokens import token_shard_bytes
from pipeline.tokens.packing import ContextRule, pack, scatter_vectors
from pipeline.tokens.tokenizer import Tokenizer
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.names import SpecialText
from schemas.records import Lake, ShardRecord
from schemas.values import I32, Document

_BATCH_SIZE = 2 << 20
"""Characters, and bytes of vectors, of the documents that are encoded at once."""
_BATCH_DOCUMENTS = 4096

T = TypeVar("T")
R = TypeVar("R")


class Encoded(NamedTuple):
    """A document, its token ids int32 [.], and whether its text spells a special token."""

    document: Document
    ids: I32
    spells_special: bool


Observe = Callable[[Encoded], None]
"""Called with each document that is taken, in order; the last may be cut."""


@dataclass
class _Group:
    """Whole documents that become one shard; of empty ones only the count."""

    documents: int = 0
    numbers: list[int] = field(default_factory=list)
    token_ids: list[I32] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    """Vectors of the documents, where the corpus holds some."""
    labels: list[tuple[Any, ...]] = field(default_factory=list)
    place: int = 0
    """Tokens of the stream so far, separators included."""
    is_cut: bool = False

    def add(self, document: Document, ids: I32, place: int) -> None:
        """Take a document; `place` is where the stream stands after it."""
        self.documents += 1
        self.place = place
        if len(ids):
            self.numbers.append(document.number)
            self.token_ids.append(ids)
            self.values.append(document.values)
            self.labels.append(document.labels)


def write_shards(
    layout: Layout,
    lake: Lake,
    encoded: Iterable[Encoded],
    target: int,
    limit: int | None,
    before: list[ShardRecord],
    observe: Observe = lambda taken: None,
) -> Iterator[ShardRecord]:
    """Write the token shards, yielding each one's record; numbers go on after the last of `before`.

    A shard ends with the document that brings it to `target` token rows; all together have at most `limit`.
    """
    rule = ContextRule.of(lake)
    write = partial(_write_shard, layout, lake, rule, before)
    last = before[-1] if before else None
    for record in _prefetched(write, enumerate(_groups(encoded, rule, target, limit, observe))):
        last = record if last is None else _renumbered(record, last)
        yield last


def _prefetched(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of `work`, in order; a thread works on one item while the next is being made."""
    # The result before is taken only after the next item is submitted: two items are in memory, no more.
    pending: Future[R] | None = None
    with writing_threads(1) as pool:
        for item in items:
            submitted = pool.submit(work, item)
            if pending is not None:
                yield pending.result()
            pending = submitted
        if pending is not None:
            yield pending.result()


def encoded(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    special_text: SpecialText,
    document_limit: int | None = None,
) -> Iterator[Encoded]:
    """Documents with their tokens, of each the first `document_limit`."""

    def encode(batch: list[Document]) -> list[Encoded]:
        texts = [document.text for document in batch]
        ids = tokenizer.encode_batch(texts, special_text)
        special, spells = [*tokenizer.special_texts], [False] * len(texts)
        if special:
            spells = pl.Series(texts, dtype=pl.String).str.contains_any(special).to_list()
        return [Encoded(*each) for each in zip(batch, ids, spells, strict=True)]

    for batch in _prefetched(encode, _batches(documents)):
        yield from batch if document_limit is None else [_cut(each, document_limit) for each in batch]


def _cut(whole: Encoded, tokens: int) -> Encoded:
    """A document with its first tokens alone."""
    document = whole.document
    values = None if document.values is None else document.values[:tokens]
    return whole._replace(document=replace(document, values=values), ids=whole.ids[:tokens])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + (0 if document.values is None else document.values.nbytes)
        if size >= _BATCH_SIZE or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _groups(
    encoded: Iterable[Encoded], rule: ContextRule, target: int, limit: int | None, observe: Observe
) -> Iterator[_Group]:
    """Cut the documents into groups.

    Empty documents go with the group before them, so every group has tokens. All rows together may be one
    less than `limit`, where the last one would be a BOS alone. Where each document has a context of its own
    none is cut: the first that would not be within `limit` ends them.
    """
    group, left = _Group(), limit
    for taken in encoded:
        document, ids = taken.document, rule.without_repeated_bos(taken.ids, group.place)
        if len(ids) and rule.rows(group.place) >= target:
            yield group
            # A shard's stream begins anew, so which BOS repeats one is asked again at place 0.
            left = None if left is None else left - rule.rows(group.place)
            group, ids = _Group(), rule.without_repeated_bos(taken.ids, 0)
        if rule.by_document:
            if left is not None and group.place + rule.context_of(len(ids)) > left:
                break
            if rule.context_of(len(ids)) > rule.context_size:
                raise InputError(
                    f"document {document.number} ({document.text[:40]!r}) takes {rule.context_of(len(ids))} "
                    f"tokens, more than tokens.context_size {rule.context_size}: raise that, or set "
                    "tokens.contexts: packed"
                )
        room = None if left is None or rule.by_document else rule.stream_within(left) - group.place
        if room is not None and len(ids) >= room:
            if room:
                cut = _cut(taken._replace(ids=ids), room)
                group.add(cut.document, cut.ids, group.place + room)
                group.is_cut = True
                observe(taken)
            break
        group.add(document, ids, rule.after(group.place, len(ids)))
        observe(taken)
    if group.place:
        yield group


def _write_shard(
    layout: Layout, lake: Lake, rule: ContextRule, before: list[ShardRecord], numbered: tuple[int, _Group]
) -> ShardRecord:
    """Pack and write one shard; the starts of its record are filled in by `_renumbered`."""
    number, group = numbered
    # A group numbers its documents within its corpus, the store through all links.
    first_document = before[-1].document_start + before[-1].documents if before else 0
    packed = pack(group.token_ids, rule, last_is_cut=group.is_cut)
    counted = counted_mask(packed.token_ids, lake.special_ids, lake.special_tokens)
    documents = np.array(group.numbers, dtype=np.uint64) + np.uint64(first_document)
    labels = list(zip(*group.labels, strict=True)) if lake.label_columns else []
    values = (
        None if lake.inputs is None else scatter_vectors(group.values, group.token_ids, packed, lake.inputs)
    )
    of_row = document_of_row(
        packed.document.astype(np.uint64), packed.start, packed.segment_ptr, packed.context_ptr
    )
    data = token_shard_bytes(packed, counted, documents, labels, lake.label_columns, values)
    name = layout.shard_name(len(before) + number)
    write_atomic(layout.tokens(name), data)
    return ShardRecord(
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        row_start=0,
        rows=len(packed.token_ids),
        counted_rows=int(counted.sum()),
        context_start=0,
        contexts=len(packed.context_ptr) - 1,
        counted_contexts=int(np.logical_or.reduceat(counted, packed.context_ptr[:-1]).sum()),
        document_start=0,
        documents=group.documents,
        counted_documents=len(np.unique(of_row[counted])),
    )


def _renumbered(record: ShardRecord, last: ShardRecord) -> ShardRecord:
    """The record, numbered on from the last one."""
    starts = {
        "row_start": last.row_start + last.rows,
        "context_start": last.context_start + last.contexts,
        "document_start": last.document_start + last.documents,
    }
    return record.model_copy(update=starts)
