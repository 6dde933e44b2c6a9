"""Documents that a lake holds already, known by their tokens, whatever their file was called.

Of each document 8 bytes are kept, a hash of its tokens without BOS and separators, which depend on where it
stands. The token shards are read once, one after another. M documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np

from pipeline.store.records.tokens import read_token_shard
from schemas.layout import Layout
from schemas.records import Lake, ShardRecord
from schemas.values import I32, U64, Bool, TokenShard


class KnownDocuments:
    """The documents of a lake."""

    def __init__(self, layout: Layout, lake: Lake, records: Iterable[ShardRecord]) -> None:
        """Read them; ShardError for a token shard that is missing or damaged."""
        self._bos_and_separator = np.array(
            [i for i in (lake.bos_id, lake.separator_id) if i is not None], np.int32
        )
        shards = (read_token_shard(layout, lake, record, verify=False) for record in records)
        hashes = (each for shard in shards for each in self._of_shard(shard))
        self._hashes: U64 = np.unique(np.fromiter(hashes, np.uint64))

    def holds(self, ids: I32) -> bool:
        """Whether a document of these tokens, int32 [.], is there; one without text is not."""
        own = self._own(ids)
        if not len(own) or not len(self._hashes):
            return False
        # The sorted hashes are searched; a place beyond the last is not a place, and holds another hash.
        wanted = np.uint64(_hash(own))
        place = min(int(np.searchsorted(self._hashes, wanted)), len(self._hashes) - 1)
        return bool(self._hashes[place] == wanted)

    def _of_shard(self, shard: TokenShard) -> Iterator[int]:
        """The hash of each document of a shard, which holds whole ones."""
        own_rows: Bool = ~np.isin(shard.token_ids, self._bos_and_separator)
        ids, document = shard.token_ids[own_rows], shard.document[own_rows]
        # A shard's rows lie document after document: a change of the number begins the next one.
        cuts = np.flatnonzero(document[1:] != document[:-1]) + 1
        for own in np.split(ids, cuts):
            yield _hash(own)

    def _own(self, ids: I32) -> I32:
        """Tokens that are neither BOS nor a separator."""
        return ids[~np.isin(ids, self._bos_and_separator)]


def _hash(ids: I32) -> int:
    return int.from_bytes(blake2b(np.ascontiguousarray(ids).tobytes(), digest_size=8).digest(), "little")
