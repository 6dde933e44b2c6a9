"""Zarr groups and arrays of a store, opened to be read: of Zarr 3, with known codecs, and no chunk absent.

Zarr gives zeros for a chunk that is not there, and runs what the metadata names as a codec (numcodecs'
`pickle` runs code). All that it reads here goes through `CheckedStore`, which refuses both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.cpu import Buffer as CpuBuffer
from zarr.storage import LocalStore, MemoryStore, ObjectStore, WrapperStore

from pipeline.store.objects.paths import ObjectPath
from pipeline.store.objects.verbs import read_many, walk
from schemas.errors import InputError
from schemas.layout import ZARR_METADATA, StorePath, is_zarr_name
from schemas.records import parse_json

CODECS = ("bytes", "blosc", "zstd", "crc32c", "sharding_indexed")
"""What latentlake and AnnData write; none of them runs code from a file."""
_NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
_CHUNK = re.compile(r"(?:(.*)/)?c((?:/\d+)*)")
_ABSENT = 2**64 - 1
"""Of an inner chunk's offset and length in the index of a Zarr shard."""
_MOST = 1 << 62


def open_group(path: StorePath, *, absent_is_zero: bool = False) -> Any:
    """A Zarr group to read; one on object storage is fetched whole, its objects at once.

    ValueError for metadata that latentlake does not write, and at a read for a chunk that is not there: with
    `absent_is_zero` that is zeros, and whoever reads has to know what the array's sha256 is.
    """
    store, key = _store(path, whole=True)
    checked = CheckedStore(store, absent_is_zero=absent_is_zero)
    return zarr.open_group(checked, path=key, mode="r", zarr_format=3, use_consolidated=False)


def open_array(path: StorePath) -> Any:
    """A Zarr array to read in slices, on object storage by ranges; errors as those of `open_group`."""
    store, key = _store(path, whole=False)
    return zarr.open_array(CheckedStore(store), path=key, mode="r", zarr_format=3)


def absent_chunks(array: Any) -> int:
    """Chunks that are not there; of an array in Zarr shards, those of whole shards."""
    missing: int = array.nchunks - array.nchunks_initialized
    return max(missing, 0)


def check_chunks(arrays: Mapping[str, Any]) -> None:
    """ValueError when a chunk of some arrays, by name, is missing, before any is read."""
    for name, array in arrays.items():
        if missing := absent_chunks(array):
            raise ValueError(f"{missing} chunks of {name} are missing")


def arrays_of(group: Any, names: Iterable[str]) -> dict[str, Any]:
    """Arrays of a group by name; ValueError where one of them is missing."""
    arrays = {}
    for name in names:
        array = group.get(name)
        if not isinstance(array, zarr.Array):
            raise ValueError(f"its array {name} is missing")
        arrays[name] = array
    return arrays


def _store(path: StorePath, *, whole: bool) -> tuple[Store, str]:
    """A store of Zarr that holds `path`, and its key there; ValueError where no Zarr 3 lies there."""
    if not (path / ZARR_METADATA).is_file():
        if path.exists():
            raise ValueError(f"it has no {ZARR_METADATA}, which Zarr 3 requires")
        raise FileNotFoundError(2, "there is no such folder", str(path))
    if isinstance(path, Path):
        return LocalStore(path, read_only=True), ""
    assert isinstance(path, ObjectPath)
    if not whole:
        return ObjectStore(path.client, read_only=True), path.key
    names = [name for name, _, _ in walk(path) if is_zarr_name(name)]
    buffers = map(CpuBuffer.from_bytes, read_many([path / name for name in names]))
    return MemoryStore(dict(zip(names, buffers, strict=True)), read_only=True), ""


class CheckedStore(WrapperStore[Store]):
    """What Zarr reads from: metadata is checked before Zarr sees it, and a chunk is there or ValueError."""

    def __init__(self, store: Store, *, absent_is_zero: bool = False) -> None:
        super().__init__(store)
        self._absent_is_zero = absent_is_zero
        self._shards: dict[str, _Sharding] = {}
        self._seen: set[str] = set()

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, absent_is_zero=self._absent_is_zero)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """See `Store.get`."""
        chunk = _CHUNK.fullmatch(key)
        if chunk is not None and not self._absent_is_zero:
            await self._check_shard(key, chunk, prototype)
        buffer: Buffer | None = await super().get(key, prototype, byte_range)
        if buffer is not None and key.rpartition("/")[2] == ZARR_METADATA:
            sharding = check_metadata(buffer.to_bytes(), key)
            if sharding is not None:
                self._shards[key.rpartition("/")[0]] = sharding
        if chunk is None or self._absent_is_zero:
            return buffer
        if buffer is None:
            raise ValueError(f"its chunk {key} is missing")
        if isinstance(byte_range, RangeByteRequest) and len(buffer) != byte_range.end - byte_range.start:
            raise ValueError(f"its chunk {key} is cut off")
        return buffer

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """See `Store.get_partial_values`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def _check_shard(self, key: str, chunk: re.Match[str], prototype: BufferPrototype) -> None:
        """ValueError where a Zarr shard's index, which is read once, lacks a chunk that its array has."""
        sharding = self._shards.get(chunk[1] or "")
        if sharding is None or key in self._seen:
            return
        index = await super().get(key, prototype, SuffixByteRequest(sharding.index_bytes))
        if index is None:
            raise ValueError(f"its chunk {key} is missing")
        place = [int(part) for part in chunk[2].split("/")[1:]]
        if missing := sharding.absent(index.to_bytes(), place):
            raise ValueError(f"{missing} chunks in {key} are missing")
        self._seen.add(key)


@dataclass(frozen=True)
class _Sharding:
    """How an array of this shape is cut into Zarr shards, and these into chunks."""

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    has_checksum: bool

    @property
    def _inner(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return tuple(shard // chunk for shard, chunk in zip(self.shard, self.chunk, strict=True))

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, which stands at its end."""
        return 16 * math.prod(self._inner) + 4 * self.has_checksum

    def absent(self, index: bytes, place: list[int]) -> int:
        """How many chunks a shard lacks of those that lie within the array."""
        if len(index) != self.index_bytes or len(place) != len(self.shape):
            raise ValueError("a Zarr shard has no index")
        # offset and length of each chunk; a checksum, where there is one, stands after them
        numbers = np.frombuffer(index, "<u8", 2 * math.prod(self._inner)).reshape(*self._inner, 2)
        lacks = (numbers == _ABSENT).any(axis=-1)
        inside = np.ones(self._inner, np.bool_)
        for axis, size in enumerate(self.shape):
            # chunks that begin beyond the array's end pad its last shard, and are never written
            starts = place[axis] * self.shard[axis] + np.arange(self._inner[axis]) * self.chunk[axis]
            inside &= (starts < size).reshape([-1 if n == axis else 1 for n in range(len(self.shape))])
        return int((lacks & inside).sum())


def check_metadata(data: bytes, where: str) -> _Sharding | None:
    """How a Zarr array is sharded, if it is, from its metadata, or a group's.

    ValueError for what latentlake does not write: another data type, grid or key of chunks would pass by
    `CheckedStore`, and a codec may run code.
    """
    content = parse_json(data)
    if not isinstance(content, dict) or content.get("zarr_format") != 3:
        raise ValueError(f"{where} is not of Zarr 3")
    if content.get("node_type") == "group":
        return None
    known = (
        _has_name(content.get("chunk_grid"), "regular")
        and _has_name(content.get("chunk_key_encoding"), "default")
        and content["chunk_key_encoding"].get("configuration", {}).get("separator", "/") == "/"
        and not content.get("storage_transformers")
        and _NUMBERS.fullmatch(str(content.get("data_type")))
    )
    if content.get("node_type") != "array" or not known:
        raise ValueError(f"{where} is not of an array that latentlake writes")
    shape, chunk = content["shape"], content["chunk_grid"]["configuration"]["chunk_shape"]
    _check_sizes(where, shape, 0, len(shape))
    _check_sizes(where, chunk, 1, len(shape))
    return _check_codecs(where, content["codecs"], tuple(shape), tuple(chunk))


def _check_codecs(
    where: str, codecs: Any, shape: tuple[int, ...], shard: tuple[int, ...]
) -> _Sharding | None:
    names = _codec_names(where, codecs)
    if "sharding_indexed" not in names:
        return None
    options = codecs[0]["configuration"]
    inner, index = (_codec_names(where, options[key]) for key in ("codecs", "index_codecs"))
    chunk = options["chunk_shape"]
    _check_sizes(where, chunk, 1, len(shape))
    if (
        len(names) > 1
        or "sharding_indexed" in inner
        or index not in (["bytes"], ["bytes", "crc32c"])
        or options["index_codecs"][0].get("configuration", {}).get("endian") != "little"
        or options.get("index_location", "end") != "end"
        or any(whole % part for whole, part in zip(shard, chunk, strict=True))
    ):
        raise ValueError(f"{where} has Zarr shards that latentlake does not write")
    return _Sharding(shape, shard, tuple(chunk), has_checksum="crc32c" in index)


def _codec_names(where: str, codecs: Any) -> list[str]:
    names = [str(codec.get("name")) if isinstance(codec, dict) else str(codec) for codec in codecs]
    if unknown := [name for name in names if name not in CODECS]:
        raise InputError(
            f"{where} names the codec {unknown[0][:80]!r}, which no store of latentlake uses, and which may "
            f"run code (known: {', '.join(CODECS)}): do not trust this store"
        )
    return names


def _check_sizes(where: str, sizes: Any, least: int, number: int) -> None:
    """ValueError unless these are so many whole numbers."""
    if len(sizes) != number or not all(type(size) is int and least <= size < _MOST for size in sizes):
        raise ValueError(f"{where} has sizes that are impossible for an array")


def _has_name(content: Any, name: str) -> bool:
    return isinstance(content, dict) and content.get("name") == name
