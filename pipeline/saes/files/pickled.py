"""What a file of torch.save declares: names, shapes and plain values, without torch and without running it.

Such a file is a pickle in which tensors point to storages by number, and the storages' bytes lie next to it:
as members of a zip, or (before torch 1.6) after the pickle. Here the pickle is followed with stand-ins for
the few things that a dict of tensors is made of; whatever else it asks for is refused by its name, and so is
a tensor that is larger than what the file stores of it. So nothing is allocated that is not in the file.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

Shape = tuple[int, ...]

UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, ValueError, TypeError, KeyError, IndexError,
    AttributeError, EOFError, OSError, OverflowError, RecursionError, RuntimeError, MemoryError,
    AssertionError,
)  # fmt: skip
"""What damaged files and pickles make Python raise."""

LONGEST_PICKLE = 16 << 20
"""Bytes of the pickle in a zip, or before the storages; that of a dict of tensors has some thousand."""

MOST_DIMENSIONS = 64
"""Of a tensor of torch."""

LARGEST_NUMBER = (1 << 63) - 1
"""Of those that a tensor or a storage is described with; the product of longer ones takes minutes."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What files from before torch 1.6 begin with."""

ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
"""Bytes of an element, by torch's name for the storage."""


class Declared(NamedTuple):
    """The tensors of a file by name, and the plain values next to them; a dict in it puts `name.` before."""

    shapes: dict[str, Shape]
    values: dict[str, str | int | float | bool | None]


class _Storage(NamedTuple):
    key: str
    item_size: int
    numel: int


class _Tensor(NamedTuple):
    shape: Shape


def _checking(load: str, keys: slice) -> Callable[[Any], None]:
    """A method of the unpickler, called after the keys that it will hash, on the stack, are checked."""
    method = getattr(pickle._Unpickler, load)  # noqa: SLF001

    def checked(unpickler: Any) -> None:
        _refuse_strange_keys(unpickler.stack[keys])
        method(unpickler)

    return checked


class _Unpickler(pickle._Unpickler):  # noqa: SLF001 - in Python, so that a memo or a length cannot allocate
    """Follows a pickle of torch.save; `storages` are those that it refers to."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,  # noqa: SLF001
        pickle.SETITEM[0]: _checking("load_setitem", slice(-2, -1)),
        pickle.SETITEMS[0]: _checking("load_setitems", slice(None, None, 2)),
        pickle.DICT[0]: _checking("load_dict", slice(None, None, 2)),
        pickle.ADDITEMS[0]: _checking("load_additems", slice(None)),
        pickle.FROZENSET[0]: _checking("load_frozenset", slice(None)),
    }
    """What follows each opcode; those above hash what is on the stack after the last mark."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for something that the pickle names."""
        if module == "torch" and name in ITEM_SIZES:
            return ITEM_SIZES[name]
        if f"{module}.{name}" not in STAND_INS:
            raise ValueError(f"it would import {module}.{name}")
        return STAND_INS[f"{module}.{name}"]

    def persistent_load(self, reference: Any) -> _Storage:
        """A storage; torch names it ("storage", type, key, device, number of elements)."""
        kind, item_size, key, _, numel = reference[:5]
        if (
            kind != "storage"
            or not isinstance(key, str)
            or not isinstance(item_size, int)
            or not isinstance(numel, int)
            or not 0 <= numel <= LARGEST_NUMBER
        ):
            raise ValueError("it refers to a storage in an unknown way")
        storage = _Storage(key, item_size, numel)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"it refers to storage {key} in two ways")
        return storage


class _Beginning:
    """The first LONGEST_PICKLE bytes of a file; reading on is a ValueError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, LONGEST_PICKLE

    def read(self, size: int) -> bytes:
        """Bytes for the unpickler."""
        if size > self._left:
            raise ValueError(f"its pickle has more than {LONGEST_PICKLE} bytes")
        return self._spent(self._file.read(size))

    def readline(self) -> bytes:
        """A line for the unpickler, or as much of it as there may be."""
        return self._spent(self._file.readline(self._left))

    def _spent(self, content: bytes) -> bytes:
        self._left -= len(content)
        return content


def _refuse_strange_keys(keys: list[Any]) -> None:
    """ValueError unless they are text or numbers: to hash tuples of tuples can take forever."""
    strange = next((key for key in keys if not isinstance(key, str | int)), None)
    if strange is not None:
        raise ValueError(f"it has a {type(strange).__name__} where a name should be")


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    """Stand-in of the class, which Python 2 pickled with a list of pairs."""
    listed = [(name, value) for name, value in pairs]
    _refuse_strange_keys([name for name, _ in listed])
    return OrderedDict(listed)


def _tensor(storage: _Storage, offset: int, size: Shape, stride: Shape, *_: Any) -> _Tensor:
    """Stand-in of torch's function that makes a tensor of (a part of) a storage."""
    numbers = (offset, *size, *stride)
    if (
        len(size) > MOST_DIMENSIONS
        or len(size) != len(stride)
        or not all(isinstance(number, int) and 0 <= number <= LARGEST_NUMBER for number in numbers)
    ):
        raise ValueError("a tensor has an invalid size")
    # a stride of 0 repeats elements: the last one may be inside while there are too many of them
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if elements and (elements > storage.numel or last >= storage.numel):
        raise ValueError(f"a tensor of shape {list(size)} has a storage of {storage.numel} elements")
    return _Tensor(tuple(size))


STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
}


def read_declared(path: Path) -> Declared:
    """What the file holds; one of UNREADABLE where it is damaged, or is not a dict of tensors."""
    content = _from_zip(path) if zipfile.is_zipfile(path) else _from_legacy(path)
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds a {type(content).__name__}, not a dict of tensors")
    flat = dict(flattened(content))
    return Declared(
        {name: value.shape for name, value in flat.items() if isinstance(value, _Tensor)},
        {
            name: value
            for name, value in flat.items()
            if value is None or isinstance(value, str | int | float)
        },
    )


def flattened(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Entries, those of dicts in it with the name of the dict and a dot before theirs."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", entry) for inner, entry in value.items())
        else:
            yield str(name), value


def _from_zip(path: Path) -> Any:
    """The pickled object of a zip, whose storages are all there and no smaller than it says."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("two members have the same name")
        pickled = next((name for name in members if name.partition("/")[2] == "data.pkl"), None)
        if pickled is None:
            raise ValueError("it is a zip that torch.save did not write")
        if members[pickled].file_size > LONGEST_PICKLE:
            raise ValueError(f"its pickle has {members[pickled].file_size} bytes")
        with archive.open(pickled) as file:
            unpickler = _Unpickler(file)
            content = unpickler.load()
    for key, storage in unpickler.storages.items():
        member = members[f"{pickled.removesuffix('data.pkl')}data/{key}"]
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"storage {key} is compressed, which torch.save does not do")
        ends_at = member.header_offset + member.file_size
        if member.file_size < storage.numel * storage.item_size or ends_at > path.stat().st_size:
            raise ValueError(f"storage {key} has fewer bytes than its {storage.numel} elements")
    return content


def _from_legacy(path: Path) -> Any:
    """The pickled object of a file from before torch 1.6, which is large enough for its storages."""
    with path.open("rb") as whole:
        file: Any = _Beginning(whole)
        if _Unpickler(file).load() != LEGACY_MAGIC:
            raise ValueError("torch.save did not write it")
        for _ in ("protocol version", "system"):
            _Unpickler(file).load()
        unpickler = _Unpickler(file)
        content = unpickler.load()
    # the storages follow the pickle; that they are there is checked before torch allocates them
    needed = sum(storage.numel * storage.item_size for storage in unpickler.storages.values())
    if needed > path.stat().st_size:
        raise ValueError(f"its tensors have {needed} bytes, the file {path.stat().st_size}")
    return content
