"""The dense layout: x at a site's hook, an array [N, width] in Zarr 3 with sharding, one per site and shard.

Row i is x of row `row_start + i` of the lake where that row may hold activations, and 0 elsewhere (special
tokens, other positions). Equal input, equal bytes.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numcodecs.blosc
import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.store.formats.csr import EVERY_CHUNK, checked_codecs
from pipeline.store.formats.zarr_files import absent_chunks, open_array
from pipeline.store.objects.local import storage_errors, writing_threads
from schemas.errors import ShardError
from schemas.layout import StorePath
from schemas.names import DenseDtype
from schemas.values import F32, Bool

CHUNK_BYTES = 1 << 21
"""Most bytes of what is compressed, and read, at once; 23,000 rows of 576 float32 are written at 470 MB/s."""
CHUNKS = 32
"""Chunks in a Zarr shard, which is one file or object: at most 64 MiB, which a writer holds of a site."""
AHEAD_BYTES = 1 << 26
"""Of x that waits for its writer's thread, or a single larger batch of it."""


def round_dense(x: F32, dtype: DenseDtype) -> NDArray[Any]:
    """As stored: float16, float32, or float32 that hold bfloat16 values, rounded half to even.

    A value that is not finite, or that `dtype` cannot hold, is a ShardError.
    """
    rounded: NDArray[Any]
    if dtype == "bfloat16":
        # float32 whose lower 16 bits are 0, which compress away: half of what is cut off is added before,
        # less 1 where the kept bits are even, so that a tie goes to the even neighbour
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = ((bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)).view(np.float32)
        rounded = np.where(np.isfinite(x), rounded, x)  # NaN must not carry into the sign
    else:
        with np.errstate(over="ignore"):
            rounded = x.astype(dtype, copy=False)
    if not np.isfinite(rounded).all():
        wrong = x[~np.isfinite(rounded)][0]
        if np.isfinite(wrong):
            raise ShardError(f"x of {wrong:g} does not fit {dtype}: set store.dense_dtype: float32")
        raise ShardError(f"x is {wrong}: the model overflows; set model.dtype: float32")
    return rounded


class DenseWriter:
    """Writes the array of one site of one shard as its rows come, in order, one Zarr shard at a time.

    A thread rounds, compresses and writes, so that who makes the rows goes on meanwhile; what goes wrong
    there is raised by a later `add`, or by `finish`. Leaving its block ends the thread and drops the rest.
    """

    def __init__(self, path: Path, n_rows: int, width: int, dtype: DenseDtype) -> None:
        self._path, self._dtype = path, dtype
        kind = np.dtype(np.float16 if dtype == "float16" else np.float32)
        self._chunk = chunk_rows(n_rows, width, kind.itemsize)
        rows = self._chunk * min(CHUNKS, -(-n_rows // self._chunk) or 1)
        self._shape, self._piece = (n_rows, width), np.zeros((rows, width), kind)
        self._thread = writing_threads(1, "latentlake-dense")
        self._waiting = deque[tuple[Future[None], int]]()
        self._ahead = 0
        self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._drop()
        self._thread.shutdown()

    @property
    def width(self) -> int:
        """Numbers of an x."""
        return self._shape[1]

    def restart(self) -> None:
        """Begin anew with the shard's first row."""
        self._drop()
        shutil.rmtree(self._path, ignore_errors=True)
        numcodecs.blosc.use_threads = False  # equal bytes, see csr.py
        kind = self._piece.dtype
        self._array: Any = zarr.create_array(
            self._path,
            shape=self._shape,
            dtype=kind,
            chunks=(self._chunk, self._shape[1]),
            shards=self._piece.shape,
            compressors=checked_codecs(kind),
            attributes={"dense_dtype": self._dtype},
            config=EVERY_CHUNK,
        )
        self._piece[:] = 0
        self._done = self._filled = 0

    def add(self, x: F32, stored: Bool) -> None:
        """The next rows: float32 [n, width] of those that are `stored`, bool [N]; the others are 0.

        Neither may change afterwards. Waits while AHEAD_BYTES are ahead of the thread.
        """
        self._wait(AHEAD_BYTES - x.nbytes)
        self._waiting.append((self._thread.submit(self._add, x, stored), x.nbytes))
        self._ahead += x.nbytes

    def _wait(self, most: int) -> None:
        """Until the thread is done with all but `most` bytes; raises what went wrong there."""
        while self._waiting and (self._ahead > most or self._waiting[0][0].done()):
            done, size = self._waiting.popleft()
            self._ahead -= size
            done.result()

    def _drop(self) -> None:
        """Let the thread come to rest; what waits is not written."""
        for waiting, _ in self._waiting:
            waiting.cancel()
        wait([waiting for waiting, _ in self._waiting])
        self._waiting.clear()
        self._ahead = 0

    def _add(self, x: F32, stored: Bool) -> None:
        # `place` goes over all rows, `taken` over the stored ones; a piece is a Zarr shard, full or the last
        rounded, place, taken = round_dense(x, self._dtype), 0, 0
        while place < len(stored):
            mask = stored[place : place + len(self._piece) - self._filled]
            some = int(mask.sum())
            self._piece[self._filled : self._filled + len(mask)][mask] = rounded[taken : taken + some]
            place, taken, self._filled = place + len(mask), taken + some, self._filled + len(mask)
            if self._filled == len(self._piece):
                self._flush()

    def finish(self, path: Path) -> None:
        """Write what is left; all rows must have come, and `path` is where they went."""
        self._wait(-1)
        self._flush()
        assert path == self._path
        assert self._done == self._shape[0], f"{self._done} rows of {self._shape[0]} were written"

    def _flush(self) -> None:
        if self._filled:
            with storage_errors(self._path):
                self._array[self._done : self._done + self._filled] = self._piece[: self._filled]
            self._done, self._filled = self._done + self._filled, 0
            self._piece[:] = 0


DenseWriters = Mapping[str, DenseWriter]
"""By site, of one shard."""
NO_DENSE: DenseWriters = MappingProxyType({})
"""Of a pass without layout dense."""


def chunk_rows(n_rows: int, width: int, itemsize: int) -> int:
    """Rows of a chunk: a power of two within CHUNK_BYTES, or all there are."""
    most = max(1, CHUNK_BYTES // (max(width, 1) * itemsize))
    return max(1, min(n_rows, 1 << (most.bit_length() - 1)))


def open_dense(path: StorePath) -> Any:
    """The Zarr array to read in slices, on object storage by ranges; ValueError when a piece is missing.

    Whole Zarr shards are searched for here, the chunks within one when it is read first.
    """
    array = open_array(path)
    if absent_chunks(array):
        raise ValueError("some of its chunks are missing")
    return array


def dense_problems(array: Any, stored: Bool, dtype: DenseDtype) -> Iterator[str]:
    """What cannot be true of the array of a shard whose rows `stored`, bool [N], have an x; in words."""
    kind = np.float16 if dtype == "float16" else np.float32
    if array.ndim != 2 or array.shape[0] != len(stored) or array.dtype != kind:
        yield f"x.zarr is {array.dtype} {list(array.shape)}, for {len(stored):,} rows of {dtype}"
        return
    step = array.chunks[0] * CHUNKS
    for start in range(0, len(stored), step):
        x, mask = array[start : start + step], stored[start : start + step]
        if x[~mask].any():
            yield "a row that the special-token policy or the site's positions exclude has an x"
            return
        if not np.isfinite(x).all() or (dtype == "bfloat16" and (x.view(np.uint32) & 0xFFFF).any()):
            yield f"an x in x.zarr is not a finite {dtype}"
            return
