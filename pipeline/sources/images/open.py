"""Which of the kinds of image corpora a run file names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.sources.images.files import MNIST_5K, reader_of
from pipeline.sources.text.saved import is_saved
from schemas.run.file import Corpus

if TYPE_CHECKING:
    from pipeline.sources import Source


def open_images(corpus: Corpus) -> Source:
    """Files where `corpus.path` is a file of images; else the Hugging Face dataset of that name.

    A folder that `save_to_disk` wrote is one dataset.
    """
    path = Path(corpus.path).expanduser()
    if is_saved(path):
        from pipeline.sources.images.hub import SavedImages

        return SavedImages(corpus)
    if corpus.path == MNIST_5K or path.exists() or reader_of(path) is not None:
        from pipeline.sources.images.source import ImageSource

        return ImageSource(corpus)
    from pipeline.sources.images.hub import HubImages

    return HubImages(corpus)
