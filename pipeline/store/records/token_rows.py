"""What is known of each row of a token shard: its document, whether it is counted, whether it is stored.

Shapes: N rows (tokens laid out), C contexts, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.names import SpecialTokenPolicy
from schemas.values import I32, I64, U32, U64, Bool


def document_of_row(document: U64, start: U32, segment_ptr: I64, context_ptr: I64) -> U64:
    """The document of each row, uint64 [N]; a BOS belongs to the document of the context's first segment.

    `document` and `start` [S] describe the segments that `segment_ptr` [C + 1] cuts into contexts.
    """
    segments = np.diff(segment_ptr)
    begins = np.repeat(context_ptr[:-1], segments) + start.astype(np.int64)
    # a context's first segment takes in the BOS before it: it begins at the context's first row
    begins[segment_ptr[:-1]] = context_ptr[:-1]
    lengths = np.diff(begins, append=context_ptr[-1:])
    return np.repeat(document, lengths).astype(np.uint64, copy=False)


def counted_mask(token_ids: I32, special_ids: Sequence[int], policy: SpecialTokenPolicy) -> Bool:
    """Which rows enter statistics, bool [N]: under `exclude` no special id, wherever it stands, else all."""
    if policy == "exclude":
        return ~_is_special(token_ids, special_ids)
    return np.ones(len(token_ids), dtype=np.bool_)


def stored_mask(
    token_ids: I32, context_ptr: I64, special_ids: Sequence[int], policy: SpecialTokenPolicy
) -> Bool:
    """Which rows may hold activations, bool [N].

    exclude and zero: all but the special ids; include: all; zero_first: all but position 0 of each context.
    """
    if policy in ("exclude", "zero"):
        return ~_is_special(token_ids, special_ids)
    stored = np.ones(len(token_ids), dtype=np.bool_)
    if policy == "zero_first":
        stored[context_ptr[:-1]] = False
    return stored


def _is_special(token_ids: I32, special_ids: Sequence[int]) -> Bool:
    return np.isin(token_ids, np.array(special_ids, dtype=np.int32))
