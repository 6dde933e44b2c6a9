"""Files of torch.save that nobody vouches for: refused by what they declare, before torch sees them."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline.saes.files.tensors import open_torch
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

STANDARD = SaeMetadata("standard", 2, 3, format="test")
NAMES = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
SHAPES = {"W_enc": (2, 3), "W_dec": (3, 2), "b_enc": (3,), "b_dec": (2,)}
HUGE = 1 << 40


def tensors() -> dict[str, torch.Tensor]:
    wide = torch.arange(6, dtype=torch.float32)
    return {"W_enc": wide.reshape(2, 3), "W_dec": wide.reshape(3, 2), "b_enc": wide[:3], "b_dec": wide[:2]}


class _Storage(NamedTuple):
    reference: tuple[Any, ...]


class _Call(NamedTuple):
    """Pickles as a call of `function`, then perhaps gets a state."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        made = (self.function, self.arguments)
        return made if self.state is None else (*made, self.state)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.reference if isinstance(value, _Storage) else None


def pickled(content: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def storage(
    key: str = "0", numel: Any = 6, kind: Any = torch.FloatStorage, word: str = "storage"
) -> _Storage:
    return _Storage((word, kind, key, "cpu", numel))


def tensor(
    size: tuple[Any, ...] = (2, 3),
    stride: tuple[Any, ...] = (3, 1),
    offset: Any = 0,
    of: _Storage | None = None,
    state: Any = None,
) -> _Call:
    rebuild: Any = torch._utils._rebuild_tensor_v2
    return _Call(rebuild, (of or storage(), offset, size, stride, False, OrderedDict()), state)


def write_zip(path: Path, content: Any, stored: bytes = bytes(24), **options: Any) -> Path:
    """A file as torch.save writes it, of a pickle of our own."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickled(content))
        archive.writestr("archive/data/0", stored)
        archive.writestr("archive/version", "3\n")
    return path


def test_a_dict_of_torch_save_is_read_with_its_names_shapes_and_values(tmp_path: Path) -> None:
    values = {"activation": "TopK", "k": 3, "eps": 0.5, "tied": False, "nothing": None}
    nested = OrderedDict(postact="ReLU", inner=torch.ones(2, 2))
    content = tensors() | values | {"state": nested, "ids": [1, 2], "count": torch.tensor(4)}
    torch.save(content, tmp_path / "a.pt")
    file = open_torch(tmp_path / "a.pt")
    assert file.shapes == {
        **SHAPES,
        "state.inner": (2, 2),
        "count": (),
    }
    assert file.values == values | {"state.postact": "ReLU"}
    np.testing.assert_array_equal(file.load("state.inner"), np.ones((2, 2)))
    np.testing.assert_array_equal(file.load("W_enc"), tensors()["W_enc"])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int8", "bool"])
def test_every_number_of_both_generations_of_files_is_read(tmp_path: Path, zipped: bool, dtype: str) -> None:
    expected = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    content = {"a": expected, "parameter": torch.nn.Parameter(torch.ones(2)), "turned": expected.T, "k": 3}
    content |= {"part": expected[1:, ::2]}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    file = open_torch(tmp_path / "a.pt")
    assert (file.shapes["turned"], file.shapes["part"], file.values) == ((4, 3), (2, 2), {"k": 3})
    for name, value in (("a", expected), ("turned", expected.T), ("part", expected[1:, ::2])):
        torch.testing.assert_close(file.load(name), value, rtol=0, atol=0)
    assert not file.load("parameter").requires_grad


def test_an_ordered_dict_of_python_2_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.pt", _Call(OrderedDict, ([["a", tensor()], ["k", 3]],)))
    file = open_torch(path)
    assert (file.shapes, file.values) == ({"a": (2, 3)}, {"k": 3})


def test_a_file_of_our_own_making_is_read_so_that_spoiled_ones_fail_for_their_spoiling(
    tmp_path: Path,
) -> None:
    path = write_zip(tmp_path / "a.pt", {"a": tensor()}, np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(open_torch(path).load("a"), tensors()["W_enc"])


def memo_of(index: int) -> bytes:
    """A pickle that puts an empty dict at this place of its memo."""
    return b"\x80\x02}r" + struct.pack("<I", index) + b"."


def nested(levels: int = 45) -> Any:
    """A tuple of a tuple twice, and so on: its hash and its text take 2**levels steps."""
    value: Any = ()
    for _ in range(levels):
        value = (value, value)
    return value


def nested_pickle(before: bytes, behind: bytes) -> bytes:
    """A pickle with `nested()` between opcodes of ours."""
    return b"\x80\x02" + before + pickle.dumps(nested(), 2)[2:-1] + behind + b"."


STRANGE_NAME = "it has a tuple where a name should be"

HOSTILE: dict[str, tuple[Any, str]] = {
    "a name of tuples": (nested_pickle(b"}", b"Ns"), STRANGE_NAME),
    "names of tuples": (nested_pickle(b"}(", b"Nu"), STRANGE_NAME),
    "names of tuples in the second place": (nested_pickle(b"}(K\x01N", b"Nu"), STRANGE_NAME),
    "a dict made of tuples": (nested_pickle(b"(", b"Nd"), STRANGE_NAME),
    "a set of tuples": (nested_pickle(b"\x8f(", b"\x90"), STRANGE_NAME),
    "a frozen set of tuples": (nested_pickle(b"(", b"\x91"), STRANGE_NAME),
    "an ordered dict of tuples": (_Call(OrderedDict, ([(nested(), 1)],)), STRANGE_NAME),
    "an ordered dict made by another opcode": (
        nested_pickle(b"(ccollections\nOrderedDict\n](", b"N\x86eo"),
        STRANGE_NAME,
    ),
    "an ordered dict of no pairs": (_Call(OrderedDict, ([1],)), "damaged"),
    "a storage named by tuples": (
        {"a": tensor(of=storage(key=nested()))},
        "a storage in an unknown way",
    ),
    "sizes of many digits": ({"a": tensor((1 << 100_000,) * 64, (1,) * 64)}, "an invalid size"),
    "more elements than the storage": ({"a": tensor((HUGE, 1), (1, 1))}, "has a storage of 6 elements"),
    "elements of stride 0": ({"a": tensor((HUGE, HUGE), (0, 0))}, "has a storage of 6 elements"),
    "behind the end of the storage": ({"a": tensor(offset=3)}, "has a storage of 6 elements"),
    "a long stride": ({"a": tensor(stride=(HUGE, 1))}, "has a storage of 6 elements"),
    "a negative offset": ({"a": tensor(offset=-1)}, "an invalid size"),
    "a negative size": ({"a": tensor((-2, -3))}, "an invalid size"),
    "a size of text": ({"a": tensor(("2", 3))}, "an invalid size"),
    "sizes without strides": ({"a": tensor((2, 3), (3,))}, "an invalid size"),
    "a million dimensions": ({"a": tensor((HUGE,) * 1_000_000, (1,) * 1_000_000)}, "an invalid size"),
    "a storage larger than its member": (
        {"a": tensor((HUGE,), (1,), of=storage(numel=HUGE))},
        "fewer bytes than its 1099511627776 elements",
    ),
    "elements larger than the member": (
        {"a": tensor(of=storage(kind=torch.DoubleStorage))},
        "fewer bytes than",
    ),
    "a storage that is not there": ({"a": tensor(of=storage("7"))}, "archive/data/7"),
    "a storage told in two ways": (
        {"a": tensor(), "b": tensor((1,), (1,), of=storage(numel=1))},
        "storage 0 in two ways",
    ),
    "a storage of a negative size": ({"a": tensor(of=storage(numel=-6))}, "a storage in an unknown way"),
    "a storage of no type": ({"a": tensor(of=storage(kind="float"))}, "a storage in an unknown way"),
    "another reference": ({"a": tensor(of=storage(word="module"))}, "a storage in an unknown way"),
    "a tensor changed afterwards": ({"a": tensor(state={"shape": (1,)})}, "damaged"),
    "a call": ({"a": _Call(os.system, ("echo ran",))}, "would import (posix|os).system"),
    "a class": ({"a": torch.nn.ReLU}, "would import torch.nn.modules.activation.ReLU"),
    "a list": ([tensor()], "holds a list, not a dict of tensors"),
    "a tensor alone": (tensor(), "holds a _Tensor, not a dict"),
    "a length beyond the end": (b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b".", "damaged"),
    "a frame beyond the end": (b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"}.", "holds no tensor"),
    "a memo place of 4 billion": (memo_of(0xFFFFFFFE), "holds no tensor"),
    "no end": (b"\x80\x02}", "damaged"),
    "no stack": (b"\x80\x02.", "damaged"),
    "deep nesting": (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "damaged"),
    "nothing": (b"", "damaged"),
    "noise": (bytes(range(256)), "damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pt_file_is_refused_before_torch_sees_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content, message = HOSTILE[kind]
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    path = write_zip(tmp_path / "a.pt", content)
    with pytest.raises(InputError, match=message) as error:
        open_torch(path).take(NAMES, STANDARD)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert "ran" not in capfd.readouterr().out


def with_a_long_pickle(path: Path) -> None:
    write_zip(path, b"\x80\x02}" + b"0}" * (9 << 20) + b".", compression=zipfile.ZIP_DEFLATED)


def with_two_members_of_a_name(path: Path) -> None:
    write_zip(path, {"a": tensor()})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data/0", bytes(24))


def with_a_length_that_lies(path: Path) -> None:
    """The directory of the zip says that storage 0 has a gigabyte, as the pickle does."""
    write_zip(path, {"a": tensor((1 << 28,), (1,), of=storage(numel=1 << 28))})
    whole = path.read_bytes()
    place = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"archive/data/0"))
    lengths = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(whole[: place + 20] + lengths + whole[place + 28 :])


OLD_BEGINNING = 3 * pickle.dumps(0x1950A86A20F9469CFC6C, 2)
"""What precedes the dict in a file from before torch 1.6."""


def with_a_long_beginning(path: Path) -> None:
    texts = 2 * (b"B" + struct.pack("<I", 9 << 20) + bytes(9 << 20))
    path.write_bytes(OLD_BEGINNING + b"\x80\x03" + texts + b".")


def with_a_long_line(path: Path) -> None:
    path.write_bytes(OLD_BEGINNING + b"\x80\x02c" + b"x" * (17 << 20) + b"\ny\n.")


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a long beginning": (with_a_long_beginning, "its pickle has more than 16777216 bytes"),
    "a long line": (with_a_long_line, "damaged"),
    "not there": (lambda path: None, r"has no a\.pt"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "damaged"),
    "another pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "torch.save did not write it"),
    "another zip": (lambda path: zipfile.ZipFile(path, "w").close(), "a zip that torch.save did not write"),
    "compressed storages": (
        lambda path: write_zip(path, {"a": tensor()}, compression=zipfile.ZIP_DEFLATED),
        "storage 0 is compressed",
    ),
    "a pickle of many bytes": (with_a_long_pickle, "its pickle has 18874372 bytes"),
    "two members of a name": (with_two_members_of_a_name, "two members have the same name"),
    "a length that lies": (with_a_length_that_lies, "storage 0 has fewer bytes"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_pt_file_is_reported_in_one_sentence(tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGED[kind]
    damage(tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        open_torch(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pt_file_cut_anywhere_is_damaged(tmp_path: Path, zipped: bool) -> None:
    torch.save(tensors(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    for length in range(0, len(whole) - 1, 37):
        (tmp_path / "a.pt").write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged"):
            open_torch(tmp_path / "a.pt").take(NAMES, STANDARD)


def test_a_flipped_byte_never_ends_in_anything_but_a_sentence_or_the_tensors(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    whole, rng = (tmp_path / "a.pt").read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(whole), 150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.pt").write_bytes(flipped)
        try:
            taken = open_torch(tmp_path / "a.pt").take(NAMES, STANDARD)
        except InputError:
            refused += 1
            continue
        assert {name: tuple(tensor.shape) for name, tensor in taken.items()} == SHAPES
    assert refused > 50


def test_a_file_that_changed_since_it_was_opened_is_reported(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    file = open_torch(tmp_path / "a.pt")
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="declares two shapes of a"):
        file.load("a")
