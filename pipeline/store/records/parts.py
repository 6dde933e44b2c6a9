"""The finished parts of a long job, kept in the store until it ends: killed, it goes on from there.

Each frame of a part is one file, put whole, the last one of a part last. They lie in a temporary folder whose
name holds a digest of all that they depend on, so parts of another question are never taken for these; what
a job that was not run again leaves, `latentlake gc` removes.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from pipeline.store.formats.parquet import read_frame, write_frame
from pipeline.store.objects.verbs import listed, readable, remove_tree
from schemas.layout import StorePath


class Parts:
    """The parts of one job that are kept below `folder`, each under a name of its own."""

    def __init__(self, folder: StorePath) -> None:
        self._folder = folder
        self._names = {file.name for file in listed(folder)}

    def read(self, name: str, frames: int) -> list[pl.DataFrame] | None:
        """The frames of a part that was kept when this was made; None where it, or one of them, was not."""
        files = [_file(name, n) for n in range(frames)]
        if not self._names.issuperset(files):
            return None
        with readable(self._folder):
            return [read_frame(self._folder / file) for file in files]

    def write(self, name: str, frames: Sequence[pl.DataFrame]) -> None:
        """Keep a part."""
        # in their order, so that where the last one is there all are, whenever this is killed
        for n, frame in enumerate(frames):
            write_frame(self._folder / _file(name, n), frame)

    def remove(self) -> None:
        """The job has ended."""
        remove_tree(self._folder)


def _file(name: str, n: int) -> str:
    return f"{name}-{n}.parquet"
