"""`latentlake plots STORE`: the figures of a site, redrawn from its stored tables alone."""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jobs.figures import FIGURES
from jobs.figures.style import STYLE
from pipeline.store import FeatureStore
from pipeline.store.objects import write_atomic
from schemas.layout import StorePath

METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""What would change the bytes of a figure from day to day, or with matplotlib's version, is left out."""


def plots(store: FeatureStore, site: str) -> list[StorePath]:
    """Draw every figure of `jobs.figures.FIGURES` as PNG and SVG into the site's figures folder.

    Raises InputError when a table is missing, naming the command that writes it; then nothing is drawn.
    """
    names = {drawing.table for drawing in FIGURES.values()}
    tables = {name: store.scan_table(site, name).collect() for name in sorted(names)}
    written = []
    with rc_context(STYLE):
        for name, drawing in FIGURES.items():
            figure = drawing.draw(tables[drawing.table], site)
            for kind in METADATA:
                path = store.layout.figures(site) / f"{name}.{kind}"
                write_atomic(path, render(figure, kind))
                written.append(path)
    return written


def render(figure: Figure, kind: str) -> bytes:
    """The figure as the bytes of a `png` or `svg` file; equal figures give equal bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=METADATA[kind])
    return buffer.getvalue()


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["plots", *sys.argv[1:]])
