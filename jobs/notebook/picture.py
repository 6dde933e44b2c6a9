"""Figures that show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jobs.figures.plots import METADATA, drawing, render
from jobs.terminal.outputs import write_file
from pipeline.store import FeatureStore
from schemas.errors import InputError

_PAGE_WIDTH = 720
"""Pixels of a page that a figure takes; it has twice as many, for screens of twice the density."""


class Picture:
    """A figure in the style of `latentlake plots`, which the last line of a cell shows."""

    def __init__(
        self, store: FeatureStore, site: str, draw: Callable[[], Figure], language: str = "en"
    ) -> None:
        """`draw` is called anew for each format, in the style and the language that were requested."""
        self._store, self._site, self._draw, self._language = store, site, draw, language

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file; equal figures give equal bytes."""
        return self._rendered("png")

    @cached_property
    def svg(self) -> bytes:
        """The same as an SVG file."""
        return self._rendered("svg")

    def figure(self) -> Figure:
        """A matplotlib figure of its own, to be changed further."""
        with drawing(self._store, self._site, self._language):
            return self._draw()

    def save(self, path: str | Path) -> Path:
        """Write a .png or .svg file; InputError for another ending, or where it cannot be written."""
        path = Path(path)
        if (kind := path.suffix.removeprefix(".")) not in METADATA:
            raise InputError(f"{path} is neither a .png nor a .svg file: give it one of these endings")
        write_file(path, self.png if kind == "png" else self.svg, "path")
        return path

    def _rendered(self, kind: str) -> bytes:
        with drawing(self._store, self._site, self._language):
            return render(self._draw(), kind)

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        return self.png, {"width": _PAGE_WIDTH}
