"""Small .safetensors files against the package that owns the format."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save_file

from pipeline.store.formats.safetensors import load_tensors, save_tensors

TENSORS = {
    "W_enc": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "b": np.zeros(0, np.float32),
    "one": np.ones(1, np.float32),
}


def test_the_bytes_are_those_of_the_package(tmp_path: Path) -> None:
    tensors = {name: np.ascontiguousarray(array) for name, array in TENSORS.items()}
    save_tensors(tmp_path / "ours", TENSORS)
    save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_arrays_are_read_as_the_package_reads_them(tmp_path: Path) -> None:
    mixed = {"a": np.array([[1.5, 2]], np.float16), "b": np.array([3.25]), "c": np.array(1.0, np.float32)}
    save_file(mixed, tmp_path / "file", metadata={"format": "pt"})
    content = (tmp_path / "file").read_bytes()
    ours, theirs = load_tensors(content), load(content)
    assert ours.keys() == theirs.keys() == mixed.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, strict=True)


def of(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 62) + b"{}",
        of([]),
        of({"a": 3}),
        of({"a": {"dtype": "F32", "shape": [4]}}),
        of({"a": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}),
        of({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}),
        of({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}),
        of({"a": {"dtype": "F32", "shape": [1 << 70], "data_offsets": [0, 16]}}),
        of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0.0, 16]}}),
    ],
)
def test_a_damaged_file_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):
        load_tensors(content)
