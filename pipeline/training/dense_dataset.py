"""x of a site as shuffled batches, to train SAEs on: a torch dataset over a store with layout dense.

An epoch takes the shards in a drawn order, some at a time, and their blocks (chunks on disk) in a drawn
order. Who reads, a process of a rank, takes every n-th block, fills a buffer, shuffles it whole and gives it
away in batches. So every stored row comes once in an epoch, and a position is three numbers: whoever goes on
from there reads one buffer anew. Rows that hold no x (special tokens, other positions) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.store import FeatureStore
from pipeline.store.formats.dense import chunk_rows
from pipeline.store.reading.dense_site import DenseShard, DenseSite
from schemas.errors import InputError
from schemas.values import F32, I64, Bool

BUFFER_BYTES = 1 << 28
"""Of a buffer, where its rows are not given."""


class Position(NamedTuple):
    """Where a reader is: `row` rows of its buffer number `buffer` are given in this epoch."""

    epoch: int = 0
    buffer: int = 0
    row: int = 0


class Reader(NamedTuple):
    """Which part of the blocks: `number` of `of`."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True)
class Order:
    """In which order the blocks of an epoch come; the same for every reader. Pure NumPy.

    `rows` int64 [S] of each shard, cut into blocks of `block` rows; the last of a shard may be shorter.
    """

    rows: I64
    block: int
    shards_at_once: int
    seed: int

    def blocks(self, epoch: int, reader: Reader) -> Iterator[tuple[int, int]]:
        """Shard and first row of each block that the reader takes."""
        rng = np.random.default_rng([self.seed, epoch])
        shards, before = rng.permutation(len(self.rows)), 0
        for some in np.array_split(shards, -(-len(shards) // self.shards_at_once)):
            # all blocks of these shards, [n, 2]: the shard, and 0, block, 2 block, ... in each
            counts = -(-self.rows[some] // self.block)
            first = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            every = np.stack([np.repeat(some, counts), first * self.block], axis=1)
            every = every[rng.permutation(len(every))]
            # every n-th block of the epoch, not of these shards: the readers' shares stay equal
            yield from map(tuple, every[(reader.number - before) % reader.of :: reader.of].tolist())
            before += len(every)

    def shuffled(self, n: int, epoch: int, buffer: int, reader: Reader) -> I64:
        """Places of the n rows of one buffer in the order in which they are given."""
        return np.random.default_rng([self.seed, epoch, buffer, *reader]).permutation(n)


class DenseDataset(IterableDataset[Any]):
    """Batches float32 [batch_rows, width] of x, the last of an epoch shorter; an iteration is one epoch.

    With `numbers` pairs of a batch and the rows' numbers in the lake, int64. Each reader holds one buffer of
    `buffer_rows` and two batches. Ranks and workers of a DataLoader (batch_size=None) share an epoch's rows
    among them; how many batches one gets may differ by some. `DenseLoader` goes on exactly with workers too.

    `shards` are the names of those to read, by default all that are committed when the dataset is made; its
    copies in other processes read the same. Where a run still commits, give each rank those of the first.
    """

    def __init__(
        self,
        root: str,
        site: str,
        *,
        batch_rows: int = 4096,
        buffer_rows: int | None = None,
        shards_at_once: int = 8,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        numbers: bool = False,
        shards: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.root, self.site, self.numbers, self._buffer_rows = str(root), site, numbers, buffer_rows
        self.batch_rows, self.shards_at_once, self.seed = batch_rows, shards_at_once, seed
        for name, value in (("batch_rows", batch_rows), ("shards_at_once", shards_at_once)):
            if value < 1:
                raise InputError(f"{name} is {value}: it must be positive")
        if (rank is None) != (world_size is None):
            raise InputError(f"rank is {rank} and world_size {world_size}: give both, or neither")
        if rank is None or world_size is None:
            group = torch.distributed
            is_member = group.is_available() and group.is_initialized()
            rank, world_size = (group.get_rank(), group.get_world_size()) if is_member else (0, 1)
        self.rank, self.world_size = rank, world_size
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank is {self.rank} of {self.world_size}: it must be from 0 to world_size - 1")
        self.position = Position()
        dense = DenseSite(FeatureStore.open(self.root), site, shards)
        self.shards, self.receipts = tuple(shard.name for shard in dense), dense.receipts_digest()
        # blocks are the chunks on disk: a chunk is read and unpacked whole in any case
        block = chunk_rows(1 << 40, dense.width, dense.shards[0].array.dtype.itemsize)
        rows = np.array([shard.n_rows for shard in dense], np.int64)
        self.width, self.order = dense.width, Order(rows, block, shards_at_once, seed)

    def __getstate__(self) -> dict[str, Any]:
        """Without what each process opens for itself; shards and order are those of the first."""
        return {name: value for name, value in vars(self).items() if name != "dense"}

    @cached_property
    def dense(self) -> DenseSite:
        """The site with the dataset's shards alone, whatever is committed by now."""
        dense = DenseSite(FeatureStore.open(self.root), self.site, self.shards)
        if dense.receipts_digest() != self.receipts:
            raise InputError(
                f"shards of site {self.site!r} differ from those when the dataset was created: create it "
                "again"
            )
        return dense

    @property
    def buffer_blocks(self) -> int:
        """Blocks in a buffer."""
        rows = self._buffer_rows or BUFFER_BYTES // (4 * self.width)
        return max(1, rows // self.order.block)

    def set_epoch(self, epoch: int) -> None:
        """Begin there; a DataLoader's workers do not report where they are."""
        self.position = Position(epoch)

    def reader(self, worker: int = 0, workers: int = 1) -> Reader:
        """The part of one worker of this rank."""
        return Reader(self.rank * workers + worker, self.world_size * workers)

    def __iter__(self) -> Iterator[Any]:
        info, start = get_worker_info(), self.position
        reader = self.reader() if info is None else self.reader(info.id, info.num_workers)
        for batch, position in self.batches(start, reader):
            self.position = position
            yield batch
        self.position = Position(start.epoch + 1)

    def batches(self, start: Position, reader: Reader) -> Iterator[tuple[Any, Position]]:
        """Each batch of the rest of an epoch, and where the next begins: after the last, a new epoch."""
        stream = self._batches(start, reader)
        last = next(stream, None)
        for following in stream:
            assert last is not None
            yield last
            last = following
        if last is not None:
            yield last[0], Position(start.epoch + 1)

    def _batches(self, start: Position, reader: Reader) -> Iterator[tuple[Any, Position]]:
        """The same, with the place after its rows for every full batch."""
        opened, size = _Opened(self.dense, self.shards_at_once), self.buffer_blocks
        # blocks of buffers that were given before are passed over, not read
        blocks = islice(self.order.blocks(start.epoch, reader), start.buffer * size, None)
        x = np.empty((size * self.order.block, self.width), np.float32)  # every buffer is filled in here
        parts, filled = list[tuple[F32, I64]](), 0
        _, number, place = start
        while some := list(islice(blocks, size)):
            rows = opened.fill(x, some, self.order.block)
            chosen = self.order.shuffled(len(rows), start.epoch, number, reader)
            while place < len(chosen):
                # what is missing of a batch, or what is left of the buffer: a batch may be of two buffers
                given = chosen[place : place + self.batch_rows - filled]
                parts.append((x[given], rows[given]))
                place, filled = place + len(given), filled + len(given)
                if filled == self.batch_rows:
                    yield self._batch(parts), Position(start.epoch, number, place)
                    parts, filled = [], 0
            number, place = number + 1, 0
        if parts:
            yield self._batch(parts), Position(start.epoch + 1)

    def _batch(self, parts: list[tuple[F32, I64]]) -> Any:
        x = torch.from_numpy(np.concatenate([x for x, _ in parts]))
        return (x, torch.from_numpy(np.concatenate([rows for _, rows in parts]))) if self.numbers else x

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, for `load_state_dict` of a dataset of the same settings."""
        return {**self.settings(), "position": list(self.position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; InputError where the batches would be others."""
        self.require_same(state)
        self.position = Position(*state["position"])

    def settings(self) -> dict[str, Any]:
        """All that decides which rows are in which batch."""
        return {
            "site": self.site,
            "receipts": self.receipts,
            "batch_rows": self.batch_rows,
            "buffer_blocks": self.buffer_blocks,
            "shards_at_once": self.shards_at_once,
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    def require_same(self, state: dict[str, Any]) -> None:
        """InputError where a state was saved under other settings, or over other shards."""
        for name, value in self.settings().items():
            if state.get(name) != value:
                saved = f"the state was saved with {name} {state.get(name)!r}"
                raise InputError(f"{saved}, here it is {value!r}: continue with the same, or start over")


class _Opened:
    """Reads blocks; the shards used last stay open."""

    def __init__(self, dense: DenseSite, most: int) -> None:
        self._shard = lru_cache(most)(partial(_open_shard, dense))

    def fill(self, x: F32, blocks: list[tuple[int, int]], block: int) -> I64:
        """Put the stored rows of some blocks into x, from its first row on; their numbers in the lake."""
        rows, filled = list[NDArray[np.int64]](), 0
        for number, start in blocks:
            shard, stored = self._shard(number)
            places = np.flatnonzero(stored[start : start + block])
            read = shard.read(start, min(start + block, shard.n_rows))
            x[filled : filled + len(places)] = read[places]
            filled += len(places)
            rows.append(places + start + shard.record.row_start)
        return np.concatenate(rows)


def _open_shard(dense: DenseSite, number: int) -> tuple[DenseShard, Bool]:
    """A shard's rows, and which of them are stored."""
    shard = dense.shards[number]
    return DenseShard(shard.record, shard.path), dense.stored(shard)


class DenseLoader:
    """The batches of a dataset, read ahead by `workers` processes (0: by this one); an iteration is an epoch.

    The workers take turns, so batches come in one order, and a state holds where each of them is: of what was
    given, not of what was read ahead. Workers are spawned: the program wants `if __name__ == "__main__"`.
    """

    def __init__(self, dataset: DenseDataset, workers: int = 0, *, ahead: int = 2) -> None:
        self.dataset, self.workers, self._ahead = dataset, workers, ahead
        self._positions, self._turn = [dataset.position] * max(1, workers), 0

    def __iter__(self) -> Iterator[Any]:
        epoch = min(position.epoch for position in self._positions)
        if all(position == Position(epoch) for position in self._positions):
            self._turn = 0  # whose turn it was when the epoch before was over means nothing
        streams = [self._stream(n) if at.epoch == epoch else None for n, at in enumerate(self._positions)]
        while any(stream is not None for stream in streams):
            n, self._turn = self._turn, (self._turn + 1) % len(streams)
            if (stream := streams[n]) is None:
                continue
            if (item := next(stream, None)) is None:
                streams[n], self._positions[n] = None, Position(epoch + 1)
                continue
            batch, position = item
            self._positions[n] = Position(*position)
            yield batch
        self._turn = 0

    def endless(self) -> Iterator[Any]:
        """Epoch after epoch, as sae-lens' trainer wants its data_provider."""
        while True:
            given = False
            for batch in self:
                given = True
                yield batch
            if not given:
                rank, ranks = self.dataset.rank, self.dataset.world_size
                raise InputError(
                    f"rank {rank} of {ranks} has no row of site {self.dataset.site!r} to read: its "
                    f"{len(self.dataset.shards)} shards have fewer blocks of {self.dataset.order.block:,} "
                    "rows than there are readers, or hold no x; train with fewer ranks, or store more tokens"
                )

    def _stream(self, worker: int) -> Iterator[tuple[Any, tuple[int, ...]]]:
        reader = self.dataset.reader(worker, len(self._positions))
        part = _Part(self.dataset, self._positions[worker], reader)
        if not self.workers:
            return iter(part)
        spawned: DataLoader[Any] = DataLoader(
            part, batch_size=None, num_workers=1, prefetch_factor=self._ahead, multiprocessing_context="spawn"
        )
        return iter(spawned)

    def state_dict(self) -> dict[str, Any]:
        """Where each worker's next batch begins, and whose turn it is."""
        positions = [list(position) for position in self._positions]
        state = {"workers": self.workers, "positions": positions, "turn": self._turn}
        return self.dataset.settings() | state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; InputError where the batches would be others."""
        self.dataset.require_same(state)
        if len(state["positions"]) != len(self._positions):
            raise InputError(
                f"the state was saved with {state['workers']} workers, but here there are {self.workers}: "
                "continue with the same number"
            )
        self._positions = [Position(*position) for position in state["positions"]]
        self._turn = state["turn"]


class _Part(IterableDataset[Any]):
    """The batches of one reader from a position on, each with the position after it."""

    def __init__(self, dataset: DenseDataset, start: Position, reader: Reader) -> None:
        super().__init__()
        self._of = dataset, start, reader

    def __iter__(self) -> Iterator[tuple[Any, tuple[int, ...]]]:
        dataset, start, reader = self._of
        for batch, position in dataset.batches(start, reader):
            yield batch, tuple(position)
