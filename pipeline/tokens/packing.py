"""Lay documents into contexts. Pure NumPy.

Shapes: N rows (tokens laid out), C contexts of at most T tokens, S segments, M documents with tokens.

Packed: the documents of a shard form one stream, each followed by its separator; every context takes the next
`body` = T - (1 if there is a BOS) tokens of the stream and starts with BOS if there is one. So nothing is
padded or dropped, a document longer than a context goes on in the next one, and only the last context of a
shard may be shorter than T. Or each document has a context of its own: its BOS, its tokens, its separator.
A BOS that a text spells itself is left out where it would follow on the one that a context begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError
from schemas.names import ContextsOf
from schemas.records import Inputs, Lake
from schemas.values import I32, I64, Bool, Packed


@dataclass(frozen=True)
class ContextRule:
    """How a stream of documents becomes contexts.

    `bos_id` None: contexts start without BOS; `separator_id` None: nothing between documents. Id 0 is an id.
    """

    context_size: int
    bos_id: int | None
    separator_id: int | None
    contexts_of: ContextsOf = "packed"
    may_spell_bos: bool = False
    """Whether a document's own tokens may be BOS: then none follows on a context's."""

    @classmethod
    def of(cls, lake: Lake) -> ContextRule:
        """The rule of a lake."""
        parses = lake.special_text == "parse"
        return cls(lake.context_size, lake.bos_id, lake.separator_id, lake.contexts, parses)

    @property
    def by_document(self) -> bool:
        """Whether each document has a context of its own."""
        return self.contexts_of == "document"

    @property
    def bos_tokens(self) -> int:
        """Tokens that a context starts with: 1 or 0."""
        return int(self.bos_id is not None)

    @property
    def body(self) -> int:
        """Tokens of the stream that a context holds."""
        return self.context_size - self.bos_tokens

    def after(self, place: int, tokens: int) -> int:
        """Place in the stream after a document of so many tokens at `place`, and its separator.

        Where each document has its context, every BOS is in the stream.
        """
        if self.by_document:
            return place + self.context_of(tokens)
        end = place + tokens
        if not tokens or self.separator_id is None:
            return end
        # a separator that is BOS is left out where it would repeat the BOS that a context begins with
        return end if self.separator_id == self.bos_id and end % self.body == 0 else end + 1

    def context_of(self, tokens: int) -> int:
        """Token rows of the context of its own of a document of so many tokens; an empty one has none."""
        return tokens + self.bos_tokens + int(self.separator_id is not None) if tokens else 0

    def contexts(self, stream: int) -> int:
        """Contexts that hold a stream of so many tokens."""
        return -(-stream // self.body)

    def rows(self, stream: int) -> int:
        """Token rows of a stream of so many tokens, every BOS included."""
        if self.by_document:
            return stream
        return stream + self.bos_tokens * self.contexts(stream)

    def stream_within(self, rows: int) -> int:
        """The longest packed stream that takes at most `rows` token rows."""
        full, rest = divmod(rows, self.context_size)
        return full * self.body + max(rest - self.bos_tokens, 0)

    def separators(self, lengths: I64) -> Bool:
        """Whether a separator follows each document, bool [M], for documents of these lengths (all > 0)."""
        if self.separator_id is None or self.separator_id != self.bos_id:
            return np.full(len(lengths), self.separator_id is not None)
        # one by one, for whether a separator is left out moves every later document
        place, separated = 0, np.empty(len(lengths), dtype=np.bool_)
        for i, tokens in enumerate(lengths.tolist()):
            end, place = place + tokens, self.after(place, tokens)
            separated[i] = place > end
        return separated

    def without_repeated_bos(self, ids: I32, place: int) -> I32:
        """The tokens of a document at `place` of the stream, without each BOS that would follow on a BOS.

        That is one at the start of a context's body, or of a document after a separator that is BOS.
        """
        if not self.may_spell_bos or self.bos_id is None:
            return ids
        repeated: list[int] = []
        # places as they are without the BOS that were left out so far: a run of them repeats one
        for at in np.flatnonzero(ids == self.bos_id).tolist():
            opens, spot = at == len(repeated), place + at - len(repeated)
            if (opens and (self.by_document or self.separator_id == self.bos_id)) or (
                not self.by_document and spot % self.body == 0
            ):
                repeated.append(at)
        return np.delete(ids, repeated) if repeated else ids


def pack(documents: Sequence[I32], rule: ContextRule, *, last_is_cut: bool = False) -> Packed:
    """Lay documents, token ids int32 [.] each, into contexts.

    A document without tokens leaves no trace. `last_is_cut`: the last document goes on beyond what is given,
    so no separator follows it.
    """
    if rule.may_spell_bos:
        # which BOS repeats one depends on the place in the stream, and that on what was left out before
        place, cleaned = 0, list[I32]()
        for ids in documents:
            cleaned.append(rule.without_repeated_bos(ids, place))
            place = rule.after(place, len(cleaned[-1]))
        documents = cleaned
    if rule.by_document:
        return _by_document(documents, rule, last_is_cut)
    with_tokens = [i for i, ids in enumerate(documents) if len(ids)]
    lengths = np.array([len(documents[i]) for i in with_tokens], dtype=np.int64)
    separated = rule.separators(lengths)
    if last_is_cut and with_tokens:
        separated[-1] = False
    # Where each document begins in the stream: after all tokens, and separators, of those before it.
    begins = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum((lengths + separated)[:-1], out=begins[1:])
    separator = np.array([] if rule.separator_id is None else [rule.separator_id], dtype=np.int32)
    pieces = [
        p for i, n in zip(with_tokens, separated.tolist(), strict=True) for p in (documents[i], separator[:n])
    ]
    stream = np.concatenate(pieces, dtype=np.int32) if pieces else np.empty(0, np.int32)
    token_ids, context_ptr = _contexts(stream, rule)
    return _segments(token_ids, context_ptr, begins, np.array(with_tokens, dtype=np.int64), rule)


def _by_document(documents: Sequence[I32], rule: ContextRule, last_is_cut: bool) -> Packed:
    """Each document with tokens in a context of its own, which is its one segment."""
    with_tokens = [i for i, ids in enumerate(documents) if len(ids)]
    before, after = (
        np.array([] if token is None else [token], np.int32) for token in (rule.bos_id, rule.separator_id)
    )
    contexts = [np.concatenate([before, documents[i], after]) for i in with_tokens]
    if last_is_cut and contexts:
        contexts[-1] = contexts[-1][: len(contexts[-1]) - len(after)]
    lengths = np.array([len(ids) for ids in contexts], dtype=np.int64)
    return Packed(
        token_ids=np.concatenate(contexts) if contexts else np.empty(0, np.int32),
        context_ptr=np.append(0, np.cumsum(lengths)),
        segment_ptr=np.arange(len(contexts) + 1, dtype=np.int64),
        document=np.array(with_tokens, dtype=np.int64),
        start=np.full(len(contexts), rule.bos_tokens, np.uint32),
        offset=np.zeros(len(contexts), np.uint32),
    )


def _contexts(stream: I32, rule: ContextRule) -> tuple[I32, I64]:
    """Cut the stream into contexts and put BOS in front of each: token ids [N], context_ptr [C + 1]."""
    n_contexts, n_rows = rule.contexts(len(stream)), rule.rows(len(stream))
    context_ptr = np.minimum(np.arange(n_contexts + 1, dtype=np.int64) * rule.context_size, n_rows)
    if rule.bos_id is None:
        return stream, context_ptr
    # a context a line, BOS in the first column; of the last one the rest is cut off again
    padded = np.empty((n_contexts, rule.context_size), dtype=np.int32)
    padded[:, 0] = rule.bos_id
    full, rest = divmod(len(stream), rule.body)
    padded[:full, 1:] = stream[: full * rule.body].reshape(full, rule.body)
    if rest:
        padded[full, 1 : rest + 1] = stream[full * rule.body :]
    return padded.reshape(-1)[:n_rows], context_ptr


def _segments(token_ids: I32, context_ptr: I64, begins: I64, with_tokens: I64, rule: ContextRule) -> Packed:
    """Cut the stream at every start of a document (`begins` [M]) and of a context."""
    # in places of the stream, where context c begins at c * body: BOS rows are not in it
    context_begins = np.arange(len(context_ptr), dtype=np.int64) * rule.body
    cuts = np.union1d(begins, context_begins[:-1])
    document = np.searchsorted(begins, cuts, side="right") - 1
    return Packed(
        token_ids=token_ids,
        context_ptr=context_ptr,
        segment_ptr=np.searchsorted(cuts, context_begins).astype(np.int64),
        document=with_tokens[document],
        start=(cuts % rule.body + rule.bos_tokens).astype(np.uint32),
        offset=(cuts - begins[document]).astype(np.uint32),
    )


def scatter_vectors(
    values: Sequence[NDArray[Any] | None], documents: Sequence[I32], packed: Packed, inputs: Inputs
) -> NDArray[Any]:
    """The vector of each row of the packed documents, [N, width]; zeros for BOS and separators.

    `values` has a vector for each token of each document, [tokens, width].
    """
    given = list[NDArray[Any]]()
    for some, ids in zip(values, documents, strict=True):
        wanted = (len(ids), inputs.width)
        if some is None or some.shape != wanted or some.dtype != inputs.dtype:
            shape = "none" if some is None else f"{some.dtype} {list(some.shape)}"
            raise InputError(
                f"a document of {len(ids)} tokens has vectors {shape}, but {inputs.dtype} {list(wanted)} "
                "are required: fix the source of the corpus"
            )
        given.append(some)
    # Segment by segment: its first row, and the end of its context, beyond which the document goes on in
    # the next one.
    vectors = np.zeros((len(packed.token_ids), inputs.width), inputs.dtype)
    contexts = np.repeat(np.arange(len(packed.context_ptr) - 1), np.diff(packed.segment_ptr))
    first, last = packed.context_ptr[contexts] + packed.start, packed.context_ptr[contexts + 1]
    columns = (packed.document.tolist(), packed.offset.tolist(), first.tolist(), last.tolist())
    for document, offset, row, end in zip(*columns, strict=True):
        # a separator after the document is a row without a vector: the slice ends where vectors do
        inside = given[document][offset : offset + end - row]
        vectors[row : row + len(inside)] = inside
    return vectors
