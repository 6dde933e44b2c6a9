"""Images as documents of one token: the token is the class, `values` are the pixels.

A class `scrambled` may be added: images cut into blocks that are put together in another order, which have
the pixels of digits and nothing of their form.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.images.files import Labelled, files_of, read_images
from pipeline.sources.values import check_columns
from schemas.errors import InputError
from schemas.records import Inputs, digest_of, digest_of_file
from schemas.run.file import Corpus
from schemas.run.images_corpus import Images
from schemas.values import Document

COLUMN, SCRAMBLED = "class", "scrambled"
VERSION = 1
"""Of what is scrambled by the same seed."""


class ImageSource:
    """Images of a file, in its order, those that are scrambled after them."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus, self._options = corpus, corpus.images or Images.model_validate({})

    @cached_property
    def _labelled(self) -> Labelled:
        labelled = self._read()
        return labelled._replace(images=as_pixels(labelled.images, labelled.where))

    def _read(self) -> Labelled:
        return read_images(self._corpus.path, self._options)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes by number, in order of their values; that of scrambled images is the last."""
        _, labels, where = self._labelled
        if labels.ndim != 1 or labels.dtype.kind not in "uiU":
            raise InputError(
                f"{where}: classes of type {labels.dtype} and shape {list(labels.shape)} are not supported: "
                "use whole numbers or texts"
            )
        names = [str(value) for value in np.unique(labels).tolist()]
        if SCRAMBLED in names:
            raise InputError(f"{where} has a class {SCRAMBLED!r} of its own: rename it")
        return [*names, SCRAMBLED] if self._options.scrambled else names

    def describe(self) -> dict[str, Any]:
        """The corpus section, how many images and which classes there are, and what the file holds."""
        section = self._corpus.model_dump(mode="json", include={"kind", "path", "split", "config"})
        return {
            **section,
            "images": self._options.model_dump(mode="json"),
            "label_columns": [COLUMN],
            "classes": self.classes,
            "documents": len(self._numbers) + len(self._chosen),
            **self._contents(),
        }

    def _contents(self) -> dict[str, Any]:
        """The images without their classes, by their file's bytes and, of an .npz, by the array."""
        path = self._corpus.path
        array = self._options.image if path.lower().endswith(".npz") else None
        return {"contents": [digest_of([self._hashes[0], array])[:16]]}

    @cached_property
    def _hashes(self) -> list[str]:
        """Sha256 of each file, that of the images first."""
        return [digest_of_file(file) for file in self._files]

    @property
    def _files(self) -> list[Path]:
        return files_of(self._corpus.path, self._options)

    def digest(self) -> str:
        """Of the files' bytes and of how they are read."""
        return self._digest(self._hashes)

    def _digest(self, content: list[Any]) -> str:
        options = self._options.model_dump(mode="json", exclude={"labels"})
        return digest_of({"content": content, "images": options, "version": VERSION})

    def label_dtypes(self) -> dict[str, str]:
        """The name of the class."""
        check_columns(self._corpus.label_columns, [COLUMN], f"a corpus of images ({self._corpus.path})")
        return {COLUMN: "String"}

    def inputs(self) -> Inputs:
        """Pixels: uint8, or float32 in 0 to 1."""
        pixels = self._labelled.images
        shape = tuple(int(side) for side in pixels.shape[1:])
        return Inputs(width=int(np.prod(shape)), dtype=pixels.dtype.name, shape=shape)

    def estimated_bytes(self) -> int | None:
        """Of the texts, which are numbers of classes."""
        return (len(self._numbers) + len(self._chosen)) * len(str(len(self.classes)))

    def documents(self) -> Iterator[Document]:
        """A document of one token for each image."""
        self.label_dtypes()
        pixels, number = self._labelled.images, 0
        for image, label in zip(pixels, self._numbers.tolist(), strict=True):
            yield self._document(number, image, label)
            number += 1
        for chosen in self._chosen.tolist():
            image = scrambled(pixels[chosen], self._options.block, (self._options.seed, chosen))
            yield self._document(number, image, len(self.classes) - 1)
            number += 1

    def _document(self, number: int, image: NDArray[Any], label: int) -> Document:
        return Document(number, str(label), (self.classes[label],), values=image.reshape(1, -1))

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        """The class of each image by number."""
        place = {name: number for number, name in enumerate(self.classes)}
        return np.array([place[str(label)] for label in self._labelled.labels.tolist()], np.int64)

    @cached_property
    def _chosen(self) -> NDArray[np.int64]:
        """Which images are scrambled, ascending: as many as the classes have on average."""
        if not self._options.scrambled:
            return np.empty(0, np.int64)
        sides, block = self._labelled.images.shape[1:3], self._options.block
        if any(side % block for side in sides):
            raise InputError(
                f"corpus.images.block {block} does not divide images of {sides[0]} x {sides[1]} pixels: give "
                "a number that does, or leave scrambled images out"
            )
        # of all images, whatever their class: a class of scrambled ones is as mixed as the whole
        n = len(self._labelled.images)
        some = np.random.default_rng(self._options.seed).permutation(n)[: round(n / (len(self.classes) - 1))]
        return np.sort(some).astype(np.int64)


def as_pixels(images: NDArray[Any], where: str) -> NDArray[Any]:
    """Images [n, height, width(, channels)]: whole numbers 0 to 255 as uint8, else float32 in 0 to 1.

    Flat images [n, p] are read as squares where p is one. InputError for other values and shapes.
    """
    if images.dtype.kind not in "uif":
        raise InputError(f"{where}: images of type {images.dtype} are not supported; use numbers")
    side = round(images.shape[1] ** 0.5) if images.ndim == 2 else 0
    if images.ndim == 2 and side * side == images.shape[1]:
        images = images.reshape(-1, side, side)
    if images.ndim not in (3, 4) or not images.size:
        raise InputError(
            f"{where}: images of the shape {list(images.shape)} are not supported; use [n, height, width]"
        )
    if images.dtype == np.uint8:
        return images
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 255):  # nor where one is NaN
        raise InputError(f"{where}: pixels go from {low} to {high}; they must lie in 0 to 255, or in 0 to 1")
    if high > 1 or images.dtype.kind in "ui":
        if not (images == np.round(images)).all():
            raise InputError(f"{where}: pixels above 1 that are not whole numbers: scale them to 0 to 1")
        return images.astype(np.uint8)
    return images.astype(np.float32)


def scrambled(image: NDArray[Any], block: int, seed: tuple[int, int]) -> NDArray[Any]:
    """The image [height, width(, channels)] with its blocks of block x block pixels in another order."""
    height, width, *rest = image.shape
    rows, columns = height // block, width // block
    # [rows, block, columns, block, channels]: with the middle axes swapped a block is one line of `cut`
    cut = image.reshape(rows, block, columns, block, -1).swapaxes(1, 2).reshape(rows * columns, -1)
    mixed = cut[np.random.default_rng(seed).permutation(len(cut))]
    return mixed.reshape(rows, columns, block, block, -1).swapaxes(1, 2).reshape(height, width, *rest)
