"""An array's header is believed only where its file holds as much."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.images.files import read_images
from pipeline.synthetic.dictionary.truth import read_truth
from schemas.errors import InputError
from schemas.npy import check_npz, read_npy
from schemas.run.images_corpus import Images


def header(shape: tuple[int, ...], dtype: str = "<f4", data: bytes = b"\0" * 64) -> bytes:
    """An .npy file that says to be of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue() + data


FORGED = {
    "10^13 numbers": header((10**13,)),
    "10^9 x 10^9": header((10**9, 10**9)),
    "longer": header((17,)),
    "shorter": header((2,)),
    "objects": header((8,), "|O"),
    "negative": header((16, 16)).replace(b"(16, 16)", b"(-4, -4)"),
    "no Python": header((16, 1)).replace(b"(16, 1)", b"(-16,-1"),
    "nested": header((16,)).replace(b"(16,)", b"(((((").ljust(128 + 64, b"("),
    "cut": header((16,))[:40],
    "empty": b"",
    "version 9": b"\x93NUMPY\x09\x00" + b"\0" * 100,
}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", a=values, b=np.array("text"), c=np.empty((0, 3)))
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), values)
    check_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_header_is_refused_before_room_is_made_for_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "images.npy").write_bytes(FORGED[name])
    with pytest.raises(ValueError, match=r"images\.npy|magic|header|EOF|[Ss]hape"):
        read_npy(tmp_path / "images.npy")
    with pytest.raises(InputError, match="cannot be read as images"):
        read_images(str(tmp_path / "images.npy"), Images())
    packed = zipped(tmp_path / "images.npz", {"image.npy": FORGED[name], "label.npy": header((16,))})
    with pytest.raises(InputError, match="cannot be read as images"):
        read_images(str(packed), Images())
    truth = zipped(tmp_path / "truth.npz", {"recipe.npy": FORGED[name]})
    with pytest.raises(InputError, match="is not the ground truth of a dictionary"):
        read_truth(truth)
