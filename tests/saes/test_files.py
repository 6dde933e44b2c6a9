"""Files that nobody vouches for: what they declare is known before anything of that size is allocated."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes.files.tensors import (
    TensorFile,
    flag,
    open_npz,
    open_safetensors,
    optional_int,
    optional_text,
    positive_int,
    read_json,
    single_torch_file,
    torch_names,
)
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

STANDARD = SaeMetadata("standard", 2, 3, format="test")
NAMES = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
HUGE = 1 << 40


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    wide = np.arange(6, dtype=np.float32)
    return {"W_enc": wide.reshape(2, 3), "W_dec": wide.reshape(3, 2), "b_enc": wide[:3], "b_dec": wide[:2]}


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays().items()}


# what a reader asks of a file


def file_that_must_not_load(**shapes: tuple[int, ...]) -> TensorFile:
    def load(name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was loaded")

    said = {name: array.shape for name, array in arrays().items()} | shapes
    return TensorFile(Path("x.pt"), said, load)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"W_enc": (HUGE, HUGE)}, r"W_enc in x.pt has shape \[1099511627776, 1099511627776\].*\[2, 3\]"),
        ({"b_enc": ()}, r"b_enc in x.pt has shape \[\].*\[3\]"),
        ({"b_dec": (2, 1)}, r"b_dec in x.pt has shape \[2, 1\].*\[2\]"),
        ({"more": (1,)}, "holds W_dec, W_enc, b_dec, b_enc, more; a standard SAE of format test has"),
    ],
)
def test_names_and_shapes_are_compared_before_anything_is_loaded(shapes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        file_that_must_not_load(**shapes).take(NAMES, STANDARD)


def test_a_file_of_many_tensors_is_listed_in_part() -> None:
    many = {f"layer{n:03}": (1,) for n in range(500)}
    with pytest.raises(InputError, match="and 492 more; a standard SAE"):
        file_that_must_not_load(**many).take(NAMES, STANDARD)


def test_tensors_are_taken_in_float32_contiguous_and_turned_where_requested() -> None:
    stored = tensors() | {"W_dec": tensors()["W_dec"].T, "b_enc": tensors()["b_enc"].to(torch.float16)}
    file = TensorFile(Path("x.pt"), {n: tuple(t.shape) for n, t in stored.items()}, stored.__getitem__)
    taken = file.take({**NAMES, "W_dec": "W_dec.T"}, STANDARD)
    for name, tensor in taken.items():
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor, arrays()[name])


# configurations


@pytest.mark.parametrize("value", [0, -3, 2.5, "3", None, True, [3], float("nan"), float("inf"), -1e300])
def test_what_is_no_whole_number_from_1_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^a\.json has k .*; it must be a whole number from 1$"):
        positive_int(value, "k", Path("a.json"))


def test_whole_numbers_may_be_written_as_floats() -> None:
    assert [positive_int(value, "k", Path("a")) for value in (1, 64.0, 10**30)] == [1, 64, 10**30]


def test_what_a_configuration_may_leave_out_is_none_and_else_of_its_type() -> None:
    config, path = {"n": 4, "text": "x", "empty": "", "yes": True}, Path("a.json")
    assert (optional_int(config, "n", path), optional_int(config, "no", path)) == (4, None)
    assert optional_text(config, "text", path) == "x"
    assert (optional_text(config, "empty", path), optional_text(config, "no", path)) == (None, None)
    assert (flag(config, "yes", path), flag(config, "no", path), flag(config, "no", path, True)) == (
        True,
        False,
        True,
    )
    with pytest.raises(InputError, match=r"a\.json has n 4; it must be text"):
        optional_text(config, "n", path)
    with pytest.raises(InputError, match=r"a\.json has n 4; it must be true or false"):
        flag(config, "n", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "cfg.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "cfg.json")


def test_a_configuration_of_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "cfg.json").open("wb") as file:
        file.truncate((16 << 20) + 1)
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(InputError, match=r"cfg\.json has 16777217 bytes: is it the configuration"):
        read_json(tmp_path / "cfg.json")


def test_a_configuration_that_is_a_folder_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").mkdir()
    with pytest.raises(InputError, match=r"cfg\.json cannot be read \(Is a directory\)"):
        read_json(tmp_path / "cfg.json")
    with pytest.raises(InputError, match=r"has no other\.json"):
        read_json(tmp_path / "other.json")


def test_the_only_torch_file_of_a_folder_is_found_where_there_are_no_other_weights(tmp_path: Path) -> None:
    assert single_torch_file(tmp_path) is None
    torch.save({}, tmp_path / "a.pth")
    (tmp_path / "cfg.json").write_text("{}")
    assert single_torch_file(tmp_path) == tmp_path / "a.pth"
    assert single_torch_file(tmp_path / "a.pth") == tmp_path / "a.pth"
    assert single_torch_file(tmp_path / "cfg.json") is None
    (tmp_path / "x.safetensors").touch()
    assert single_torch_file(tmp_path) is None
    assert single_torch_file(tmp_path / "a.pth") == tmp_path / "a.pth"


def test_an_unreadable_file_is_reported_where_it_was_given_and_passed_over_in_a_folder(
    tmp_path: Path,
) -> None:
    torch.save(tensors(), tmp_path / "a.pt")
    assert torch_names(tmp_path) == torch_names(tmp_path / "a.pt") == set(NAMES)
    (tmp_path / "a.pt").write_bytes(b"noise")
    assert torch_names(tmp_path) == set()
    with pytest.raises(InputError, match="damaged"):
        torch_names(tmp_path / "a.pt")


# .npz files


def npy(shape: tuple[int, ...], data: bytes, descr: str = "<f4") -> bytes:
    """An .npy file whose header says what we like."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def write_npz(path: Path, content: bytes, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("W_enc.npy", content)
    return path


def test_arrays_of_an_npz_are_read_compressed_or_not(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays())
        taken = open_npz(tmp_path / "a.npz").take(NAMES, STANDARD)
        for name, array in arrays().items():
            np.testing.assert_array_equal(taken[name], array)


BAD_NPZ: dict[str, tuple[Callable[[Path], object], str]] = {
    "not there": (lambda path: None, r"has no a\.npz"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "not a zip": (lambda path: path.write_bytes(npy((2, 3), bytes(24))), "damaged"),
    "a shape of a terabyte": (
        lambda path: write_npz(path, npy((HUGE, 1), bytes(24))),
        r"declares shape \[1099511627776, 1\] and stores 24 bytes",
    ),
    "a shape below what it stores": (lambda path: write_npz(path, npy((2, 3), bytes(28))), "stores 28 bytes"),
    "negative shapes": (lambda path: write_npz(path, npy((-2, -3), bytes(24))), "stores 24 bytes"),
    "Python objects": (
        lambda path: np.savez(path, W_enc=np.array([{}], dtype=object)),
        "holds pickled objects",
    ),
    "text": (lambda path: np.savez(path, W_enc=np.array(["x"])), "not numbers"),
    "complex numbers": (lambda path: np.savez(path, W_enc=np.ones(2, np.complex64)), "not numbers"),
    "a header that is not a dict": (
        lambda path: write_npz(path, npy((2, 3), b"").replace(b"{", b"[")),
        "damaged",
    ),
    "a header of 4 GiB": (
        lambda path: write_npz(path, b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFFF) + bytes(1 << 20)),
        "expected 4294967295 bytes got 65524",
    ),
    "another version": (lambda path: write_npz(path, b"\x93NUMPY\x09\x00" + bytes(80)), "damaged"),
    "no header": (lambda path: write_npz(path, b"12345"), "damaged"),
}


@pytest.mark.parametrize("kind", BAD_NPZ)
def test_a_bad_npz_is_refused_before_an_array_is_made(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, message = BAD_NPZ[kind]
    damage(tmp_path / "a.npz")
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("np.load was called"))
    with pytest.raises(InputError, match=message) as error:
        open_npz(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_a_zip_bomb_is_refused_and_compressed_zeros_of_a_bias_are_not(tmp_path: Path) -> None:
    bomb = npy((1 << 23,), bytes(1 << 25))
    path = write_npz(tmp_path / "a.npz", bomb, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"unpacks \d+ bytes to 33554560"):
        open_npz(path)
    np.savez_compressed(tmp_path / "b.npz", b_dec=np.zeros(100_000, np.float32))
    assert open_npz(tmp_path / "b.npz").shapes == {"b_dec": (100_000,)}


def test_a_zip_bomb_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 25) + bytes(1 << 25)
    path = write_npz(tmp_path / "a.npz", header, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *args, **kwargs: pytest.fail("it was opened"))
    with pytest.raises(InputError, match=r"unpacks \d+ bytes to 33554444"):
        open_npz(path)


def test_an_npz_whose_bytes_were_damaged_is_reported_when_it_is_loaded(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", W_enc=np.random.default_rng(0).random(1000))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[3000] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(InputError, match="damaged"):
        open_npz(tmp_path / "a.npz").load("W_enc")


# .safetensors files


def safetensors(header: Any, data: bytes = bytes(24)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], end: int, dtype: str = "F32", start: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BAD_SAFETENSORS = {
    "empty": b"",
    "a header of a terabyte": struct.pack("<Q", HUGE) + b"{}",
    "a header that is not JSON": struct.pack("<Q", 4) + b"nope" + bytes(24),
    "a shape of a terabyte": safetensors({"W_enc": entry([HUGE, 1], 24)}),
    "offsets after the end": safetensors({"W_enc": entry([HUGE], 4 * HUGE)}),
    "data that nobody names": safetensors({"W_enc": entry([2], 8)}),
    "an unknown type": safetensors({"W_enc": entry([2, 3], 24, "Q9")}),
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_a_bad_safetensors_file_is_reported_in_one_sentence(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(BAD_SAFETENSORS[kind])
    with pytest.raises(InputError, match=r"a\.safetensors is damaged") as error:
        open_safetensors(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


def test_a_good_safetensors_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors({"W_enc": entry([2, 3], 24)}))
    file = open_safetensors(tmp_path / "a.safetensors")
    assert file.shapes == {"W_enc": (2, 3)}
    np.testing.assert_array_equal(file.load("W_enc"), np.zeros((2, 3)))
    with pytest.raises(InputError, match="damaged"):
        file.load("b_enc")
