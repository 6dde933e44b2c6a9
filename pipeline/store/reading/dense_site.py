"""x at a site's hook over all committed shards: shard by shard, in slices, or by rows of the lake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.formats.dense import open_dense
from pipeline.store.objects.verbs import readable
from pipeline.store.reading.site_access import SiteAccess
from pipeline.store.records.commits import receipts_digest
from schemas.errors import InputError
from schemas.layout import DENSE, StorePath
from schemas.records import ShardRecord
from schemas.values import F32, Bool


@dataclass(frozen=True)
class DenseShard:
    """x of one shard: an array [n_rows, width] on disk; small, so that tasks carry it."""

    record: ShardRecord
    path: StorePath

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the array, which each process opens for itself."""
        return type(self), (self.record, self.path)

    @property
    def name(self) -> str:
        """The shard's."""
        return self.record.name

    @property
    def n_rows(self) -> int:
        """Rows of the shard."""
        return self.record.rows

    @cached_property
    def array(self) -> Any:
        """The Zarr array, float16 or float32, to read in slices; InputError when it is damaged."""
        with readable(self.path):
            return open_dense(self.path)

    def read(self, start: int = 0, stop: int | None = None) -> F32:
        """Float32 [n, width] of rows start .. stop - 1, counted from the shard's first; not stored is 0."""
        with readable(self.path):
            x: F32 = self.array[start : self.n_rows if stop is None else stop].astype(np.float32, copy=False)
        return x

    def at(self, rows: NDArray[Any]) -> F32:
        """Vectors float32 [Q, width] of some rows, counted from the shard's first, in any order."""
        # Zarr decodes a chunk once where rows ascend and none comes twice; `back` puts them as requested
        places, back = np.unique(rows.astype(np.int64), return_inverse=True)
        with readable(self.path):
            stored = self.array.oindex[places] if len(places) else np.empty((0, self.array.shape[1]))
        return stored.astype(np.float32, copy=False)[back]


class DenseSite:
    """All that `FeatureStore.dense` gives of a site; iterates over its committed shards, in order.

    With `shards` over those alone; InputError for one that is not committed.
    """

    def __init__(self, store: SiteAccess, site: str, shards: Sequence[str] | None = None) -> None:
        info = store.site(site)
        if "dense" not in info.layouts:
            raise InputError(
                f"site {site!r} has no x: pass {info.pass_name!r} was made with store.layouts "
                f"{list(info.layouts)}; run another pass that includes dense"
            )
        self.store, self.site = store, site
        known = store.receipts(site)
        if missing := set(shards or ()) - known.keys():
            raise InputError(
                f"site {site!r} has no committed shard {min(missing)!r}: see `latentlake status`"
            )
        wanted = known.keys() if shards is None else set(shards)
        self.shards = [
            DenseShard(record, store.object_path(site, record.name, DENSE))
            for record in store.committed(site)
            if record.name in wanted
        ]
        self._starts = np.array([shard.record.row_start for shard in self.shards], dtype=np.int64)

    def __iter__(self) -> Iterator[DenseShard]:
        return iter(self.shards)

    def __len__(self) -> int:
        """Committed shards."""
        return len(self.shards)

    def receipts_digest(self) -> str:
        """What these shards' data are, in hex; as `FeatureStore.receipts_digest` where they are all."""
        receipts = self.store.receipts(self.site)
        return receipts_digest(receipts[shard.name] for shard in self.shards)

    @cached_property
    def width(self) -> int:
        """Numbers of an x: that of the model at the hook, which an SAE of one head reads in part."""
        if not self.shards:
            raise InputError(f"site {self.site!r} has no committed shard: run `latentlake extract`")
        width: int = self.shards[0].array.shape[1]
        return width

    def stored(self, shard: DenseShard) -> Bool:
        """Which rows of a shard have an x, bool [n_rows]; the others are 0 (special tokens, positions)."""
        return self.store.token_shard(self.site, shard.name, inputs=False).stored

    def rows(self, rows: NDArray[Any]) -> F32:
        """Vectors float32 [Q, width] of rows of the lake, in any order; InputError for one not committed."""
        rows = np.asarray(rows).astype(np.int64)
        # the last shard that begins at or before a row; -1 before the first, which the check below refuses
        of = np.searchsorted(self._starts, rows, side="right") - 1
        x = np.empty((len(rows), self.width), np.float32)
        for number in np.unique(of).tolist():
            in_shard = of == number
            shard = self.shards[max(number, 0)]
            inside = rows[in_shard] - shard.record.row_start
            if inside.min() < 0 or inside.max() >= shard.n_rows:
                wrong = rows[in_shard][(inside < 0) | (inside >= shard.n_rows)][0]
                raise InputError(f"row {wrong} of site {self.site!r} is in no committed shard")
            x[in_shard] = shard.at(inside)
        return x
