"""Images of a Hugging Face dataset: a column of images and one of classes, read into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.images.files import Labelled, require_size
from pipeline.sources.images.source import ImageSource
from pipeline.sources.text.hub import call_hub, load_dataset, revision_of
from pipeline.sources.text.saved import files_of_saved, load_saved, saved_folder
from pipeline.sources.values import check_columns
from schemas.errors import InputError
from schemas.run.file import Corpus
from schemas.run.images_corpus import Images


class HubImages(ImageSource):
    """One split, pinned to the revision that the hub names; classes have the dataset's names, if any."""

    def __init__(
        self,
        corpus: Corpus,
        load: Callable[..., Any] | None = None,
        revision: Callable[[str], str] | None = None,
    ) -> None:
        """`load` and `revision` stand in for `datasets.load_dataset` and the hub's answer."""
        super().__init__(corpus)
        self._load, self._get_revision = load or load_dataset, revision or revision_of

    @cached_property
    def _revision(self) -> str:
        return str(self._call_hub(self._get_revision, self._corpus.path))

    def describe(self) -> dict[str, Any]:
        """The same, and the revision."""
        return {**super().describe(), "revision": self._revision}

    def _contents(self) -> dict[str, Any]:
        """A dataset is identified by its name."""
        return {}

    def digest(self) -> str:
        """Name, configuration, split, revision, and how it is read."""
        return self._digest([self._corpus.path, self._corpus.config, self._corpus.split, self._revision])

    def _read(self) -> Labelled:
        corpus = self._corpus
        settings = {"name": corpus.config, "split": corpus.split, "revision": self._revision}
        return labelled(self._call_hub(self._load, corpus.path, **settings), corpus, self._options)

    def _call_hub(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        refusal = (
            f"corpus.path {self._corpus.path!r} is not a file of images, and no Hugging Face dataset could "
            "be opened by that name"
        )
        return call_hub(refusal, call, *args, **kwargs)


class SavedImages(ImageSource):
    """One split of a dataset that `save_to_disk` wrote."""

    def _read(self) -> Labelled:
        return labelled(load_saved(saved_folder(self._corpus)), self._corpus, self._options)

    @property
    def _files(self) -> list[Path]:
        return files_of_saved(saved_folder(self._corpus))


def labelled(rows: Any, corpus: Corpus, options: Images) -> Labelled:
    """The images and classes of a dataset's rows; InputError for images that cannot be read."""
    check_columns((options.image, options.label), rows.features, corpus.path)
    images = list(_images(rows[options.image], corpus.path))
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{corpus.path} has images of several sizes: resize them to one")
    labels, names = list(rows[options.label]), getattr(rows.features[options.label], "names", None)
    classes = _named(labels, names, corpus) if names else np.asarray(labels)
    return Labelled(np.stack(images), classes, corpus.path)


def _images(images: Iterable[Any], where: str) -> Iterator[NDArray[Any]]:
    """Each image as an array, while they are not too large together."""
    size, stream = 0, iter(images)
    while True:
        try:
            image = next(stream, None)
            array = None if image is None else np.asarray(image)
        except Exception as error:  # noqa: BLE001 - whatever Pillow raises, for a bomb too
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{where} holds an image that cannot be read: {reason}") from None
        if array is None:
            return
        require_size(array.size, size := size + array.nbytes, where)
        yield array


def _named(labels: list[Any], names: Sequence[str], corpus: Corpus) -> NDArray[np.str_]:
    """The names of numbered classes; InputError for an image without one (-1 or None on the hub)."""
    known = range(len(names))
    wrong = next((n for n, label in enumerate(labels) if label not in known), None)
    if wrong is not None:
        raise InputError(
            f"{corpus.path}: image {wrong} of split {corpus.split!r} has the label {labels[wrong]}, its "
            f"classes are 0 to {len(names) - 1}: name a corpus.split in which every image has a class"
        )
    return np.asarray(names)[np.asarray(labels, np.int64)]
