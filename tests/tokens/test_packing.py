"""Packing against a packer that goes token by token."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.records.token_rows import counted_mask, document_of_row, stored_mask
from pipeline.tokens.packing import ContextRule, pack, scatter_vectors
from schemas.errors import InputError
from schemas.records import Inputs
from schemas.values import I32, Packed

DOCUMENTS = st.lists(st.lists(st.integers(5, 99), max_size=12), max_size=12)
RULES = st.builds(
    ContextRule,
    context_size=st.integers(2, 9),
    bos_id=st.sampled_from([None, 0, 1]),
    separator_id=st.sampled_from([None, 0, 1, 2]),
)


@dataclass
class Slow:
    """Contexts filled one token at a time; `rows` holds (token, document, offset, is BOS)."""

    rule: ContextRule
    contexts: list[list[tuple[int, int, int, bool]]] = field(default_factory=list)

    def put(self, token: int, document: int, offset: int) -> None:
        if not self.contexts or len(self.contexts[-1]) == self.rule.context_size:
            self.contexts.append([])
            if self.rule.bos_id is not None:
                self.contexts[-1].append((self.rule.bos_id, document, offset, True))
        self.contexts[-1].append((token, document, offset, False))

    def separate(self, document: int, offset: int) -> None:
        separator, bos = self.rule.separator_id, self.rule.bos_id
        opens = not self.contexts or len(self.contexts[-1]) == self.rule.context_size
        if separator is not None and not (opens and separator == bos):
            self.put(separator, document, offset)


def slow_pack(documents: list[list[int]], rule: ContextRule, last_is_cut: bool) -> Slow:
    slow = Slow(rule)
    last = max((i for i, tokens in enumerate(documents) if tokens), default=None)
    for i, tokens in enumerate(documents):
        for offset, token in enumerate(tokens):
            slow.put(token, i, offset)
        if tokens and not (last_is_cut and i == last):
            slow.separate(i, len(tokens))
    return slow


def arrays(documents: list[list[int]]) -> list[I32]:
    return [np.array(tokens, dtype=np.int32) for tokens in documents]


def rows_document(packed: Packed) -> list[int]:
    document = packed.document.astype(np.uint64)
    return document_of_row(document, packed.start, packed.segment_ptr, packed.context_ptr).tolist()


def segments(packed: Packed) -> list[list[tuple[int, int, int]]]:
    """(document, start, offset) of every segment, by context."""
    result = list(zip(packed.document.tolist(), packed.start.tolist(), packed.offset.tolist(), strict=True))
    pointers = packed.segment_ptr.tolist()
    return [result[a:b] for a, b in pairwise(pointers)]


def slow_segments(slow: Slow) -> list[list[tuple[int, int, int]]]:
    result = []
    for context in slow.contexts:
        mine: list[tuple[int, int, int]] = []
        for position, (_, document, offset, is_bos) in enumerate(context):
            if not is_bos and (not mine or mine[-1][0] != document):
                mine.append((document, position, offset))
        result.append(mine)
    return result


@given(DOCUMENTS, RULES, st.booleans())
def test_packing_equals_a_packer_that_goes_token_by_token(
    documents: list[list[int]], rule: ContextRule, last_is_cut: bool
) -> None:
    packed = pack(arrays(documents), rule, last_is_cut=last_is_cut)
    slow = slow_pack(documents, rule, last_is_cut)
    rows = [row for context in slow.contexts for row in context]
    assert packed.token_ids.tolist() == [row[0] for row in rows]
    assert np.diff(packed.context_ptr).tolist() == [len(context) for context in slow.contexts]
    assert segments(packed) == slow_segments(slow)
    assert rows_document(packed) == [row[1] for row in rows]


@given(DOCUMENTS, RULES)
def test_unpacking_the_segments_gives_every_document_back(
    documents: list[list[int]], rule: ContextRule
) -> None:
    packed = pack(arrays(documents), rule)
    result: dict[int, list[int]] = {}
    for c, mine in enumerate(segments(packed)):
        context = packed.token_ids[packed.context_ptr[c] : packed.context_ptr[c + 1]].tolist()
        ends = [start for _, start, _ in mine[1:]] + [len(context)]
        for (document, start, offset), end in zip(mine, ends, strict=True):
            assert len(result.setdefault(document, [])) == offset
            result[document] += context[start:end]
    for i, tokens in enumerate(documents):
        assert result.get(i, [])[: len(tokens)] == tokens
        assert result.get(i, [])[len(tokens) :] in ([], [rule.separator_id])
    assert set(result) == {i for i, tokens in enumerate(documents) if tokens}


@given(DOCUMENTS, RULES)
def test_no_context_starts_with_two_bos(documents: list[list[int]], rule: ContextRule) -> None:
    packed = pack(arrays(documents), rule)
    for start, end in zip(packed.context_ptr[:-1], packed.context_ptr[1:], strict=True):
        context = packed.token_ids[start:end].tolist()
        if rule.bos_id is not None:
            assert context[0] == rule.bos_id
            assert context[1] != rule.bos_id


@given(DOCUMENTS, RULES)
def test_every_context_but_the_last_is_full_and_none_is_a_bos_alone(
    documents: list[list[int]], rule: ContextRule
) -> None:
    lengths = np.diff(pack(arrays(documents), rule).context_ptr)
    assert (lengths[:-1] == rule.context_size).all()
    assert (lengths > rule.bos_tokens).all()


@given(DOCUMENTS, RULES)
def test_the_rule_foretells_rows_and_contexts(documents: list[list[int]], rule: ContextRule) -> None:
    place = 0
    for tokens in documents:
        place = rule.after(place, len(tokens))
    packed = pack(arrays(documents), rule)
    assert rule.rows(place) == len(packed.token_ids)
    assert rule.contexts(place) == len(packed.context_ptr) - 1


@given(RULES, st.integers(0, 60))
def test_the_longest_stream_within_some_rows_fits_and_one_more_token_does_not(
    rule: ContextRule, rows: int
) -> None:
    stream = rule.stream_within(rows)
    assert rule.rows(stream) <= rows < rule.rows(stream + 1)


def test_a_bos_of_id_0_is_a_bos() -> None:
    packed = pack(arrays([[7, 8]]), ContextRule(4, bos_id=0, separator_id=None))
    assert packed.token_ids.tolist() == [0, 7, 8]
    assert packed.start.tolist() == [1]


def test_a_separator_of_id_0_is_a_separator() -> None:
    packed = pack(arrays([[7], [8]]), ContextRule(8, bos_id=None, separator_id=0))
    assert packed.token_ids.tolist() == [7, 0, 8, 0]


def test_without_bos_the_first_segment_starts_at_position_0() -> None:
    packed = pack(arrays([[5, 6, 7], [8]]), ContextRule(2, bos_id=None, separator_id=None))
    assert segments(packed) == [[(0, 0, 0)], [(0, 0, 2), (1, 1, 0)]]


def test_a_separator_alone_at_the_start_of_a_context_is_a_segment_of_the_document_before_it() -> None:
    packed = pack(arrays([[5, 6], [7]]), ContextRule(3, bos_id=1, separator_id=2))
    assert packed.token_ids.tolist() == [1, 5, 6, 1, 2, 7, 1, 2]
    assert segments(packed) == [[(0, 1, 0)], [(0, 1, 2), (1, 2, 0)], [(1, 1, 1)]]
    assert rows_document(packed) == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_separator_that_would_repeat_the_bos_is_left_out() -> None:
    packed = pack(arrays([[5, 6], [7], [8]]), ContextRule(3, bos_id=1, separator_id=1))
    assert packed.token_ids.tolist() == [1, 5, 6, 1, 7, 1, 1, 8, 1]


def test_a_document_longer_than_a_context_goes_on_with_its_offset() -> None:
    packed = pack(arrays([[5, 6, 7, 8, 9]]), ContextRule(3, bos_id=1, separator_id=None))
    assert packed.token_ids.tolist() == [1, 5, 6, 1, 7, 8, 1, 9]
    assert packed.offset.tolist() == [0, 2, 4]


@pytest.mark.parametrize("documents", [[], [[]], [[], []]])
def test_no_tokens_give_no_contexts(documents: list[list[int]]) -> None:
    packed = pack(arrays(documents), ContextRule(4, bos_id=1, separator_id=2))
    assert (len(packed.token_ids), packed.context_ptr.tolist(), packed.segment_ptr.tolist()) == (0, [0], [0])
    assert rows_document(packed) == []


IDS = np.array([1, 5, 2, 6, 1, 1, 2], dtype=np.int32)
POINTERS = np.array([0, 4, 7], dtype=np.int64)


@pytest.mark.parametrize(
    ("policy", "counted", "stored"),
    [
        ("exclude", [0, 1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0, 0]),
        ("zero", [1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 0, 0]),
        ("include", [1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]),
        ("zero_first", [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1]),
    ],
)
def test_each_policy_counts_and_stores_its_own_rows(policy, counted, stored) -> None:  # type: ignore[no-untyped-def]
    assert counted_mask(IDS, [1, 2], policy).tolist() == [bool(x) for x in counted]
    assert stored_mask(IDS, POINTERS, [1, 2], policy).tolist() == [bool(x) for x in stored]


def test_special_id_0_is_special() -> None:
    assert counted_mask(np.array([0, 1], dtype=np.int32), [0], "exclude").tolist() == [False, True]


def test_without_special_ids_all_is_counted() -> None:
    assert counted_mask(IDS, [], "exclude").all()


@settings(max_examples=20)
@given(DOCUMENTS, RULES, st.sampled_from(["exclude", "zero", "include", "zero_first"]))
def test_what_is_stored_is_counted(documents, rule, policy) -> None:  # type: ignore[no-untyped-def]
    packed = pack(arrays(documents), rule)
    counted = counted_mask(packed.token_ids, [0, 1, 2], policy)
    stored = stored_mask(packed.token_ids, packed.context_ptr, [0, 1, 2], policy)
    assert not (stored & ~counted).any()


@pytest.mark.parametrize("separator_id", [2, 1])
def test_a_million_tokens_pack_in_well_under_a_second(separator_id: int) -> None:
    documents = [np.full(50, 7, dtype=np.int32)] * 20_000
    started = time.process_time()
    packed = pack(documents, ContextRule(128, bos_id=1, separator_id=separator_id))
    rows_document(packed)
    assert time.process_time() - started < 1
    assert len(packed.token_ids) > 1_000_000


BY_DOCUMENT = st.builds(
    ContextRule,
    context_size=st.just(16),
    bos_id=st.sampled_from([None, 0]),
    separator_id=st.sampled_from([None, 0, 1]),
    contexts_of=st.just("document"),
)


@given(DOCUMENTS, BY_DOCUMENT, st.booleans())
def test_each_document_may_have_a_context_of_its_own(documents, rule, is_cut):
    packed = pack(arrays(documents), rule, last_is_cut=is_cut)
    full = [tokens for tokens in documents if tokens]
    before, after = ([] if i is None else [i] for i in (rule.bos_id, rule.separator_id))
    wanted = [before + tokens + after for tokens in full]
    if is_cut and wanted:
        wanted[-1] = before + full[-1]
    result = [packed.token_ids[a:b].tolist() for a, b in pairwise(packed.context_ptr.tolist())]
    assert result == wanted
    assert packed.document.tolist() == [i for i, tokens in enumerate(documents) if tokens]
    assert packed.start.tolist() == [rule.bos_tokens] * len(wanted)
    assert packed.offset.tolist() == [0] * len(wanted)
    assert packed.segment_ptr.tolist() == list(range(len(wanted) + 1))
    place = 0
    for tokens in documents:
        place = rule.after(place, len(tokens))
    assert rule.rows(place) == sum(len(before) + len(tokens) + len(after) for tokens in full)


@given(DOCUMENTS, st.one_of(RULES, BY_DOCUMENT))
def test_vectors_lie_where_their_tokens_do(documents, rule):
    """Each token's vector is the token and its document; BOS and separators have zeros."""
    inputs = Inputs(width=2, dtype="float32", shape=(2,))
    values = [
        np.array([[t, i] for t in tokens], np.float32).reshape(-1, 2) for i, tokens in enumerate(documents)
    ]
    packed = pack(arrays(documents), rule)
    result = scatter_vectors(values, arrays(documents), packed, inputs)
    real = packed.token_ids >= 5  # the tokens of DOCUMENTS; special ids are below
    np.testing.assert_array_equal(result[real, 0], packed.token_ids[real])
    assert not result[~real].any()
    document = np.repeat(np.arange(len(documents)), [len(tokens) for tokens in documents])
    np.testing.assert_array_equal(result[real, 1], document)


def test_vectors_that_do_not_fit_their_tokens_are_refused():
    rule, inputs = ContextRule(4, None, None), Inputs(width=2, dtype="uint8", shape=(2,))
    documents = arrays([[5, 6, 7]])
    packed = pack(documents, rule)
    for values in (
        None,
        np.zeros((2, 2), np.uint8),
        np.zeros((3, 3), np.uint8),
        np.zeros((3, 2), np.float32),
    ):
        with pytest.raises(
            InputError, match=r"a document of 3 tokens has vectors .* uint8 \[3, 2\] are required"
        ):
            scatter_vectors([values], documents, packed, inputs)
