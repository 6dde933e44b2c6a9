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
from pipeline.store.tables import RECEIPTS_KEY
from schemas.layout import StorePath

METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""What would change the bytes of a figure from day to day, or with matplotlib's version, is left out."""

RECEIPTS_FIELD = {"png": RECEIPTS_KEY, "svg": "Identifier"}
"""Where a figure says which receipts its table was made from (a key of PNG's text, a term of SVG's)."""


def plots(store: FeatureStore, site: str) -> list[StorePath]:
    """Draw every figure of `jobs.figures.FIGURES` as PNG and SVG into the site's figures folder.

    Optional ones are drawn where their table is there. Raises InputError when another table is missing,
    naming the command that writes it; then nothing is drawn.
    """
    chosen = {
        name: drawing
        for name, drawing in FIGURES.items()
        if not drawing.optional or store.has_table(site, drawing.table)
    }
    names = {drawing.table for drawing in chosen.values()}
    tables = {name: store.scan_table(site, name).collect() for name in sorted(names)}
    written = []
    with rc_context(STYLE):
        for name, drawing in chosen.items():
            figure = drawing.draw(tables[drawing.table], site)
            receipts = store.made_from(site, drawing.table)
            for kind in METADATA:
                path = store.layout.figures(site) / f"{name}.{kind}"
                write_atomic(path, render(figure, kind, receipts))
                written.append(path)
    return written


def render(figure: Figure, kind: str, receipts: str = "") -> bytes:
    """The figure as the bytes of a `png` or `svg` file; equal figures of equal receipts give equal bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    told = {RECEIPTS_FIELD[kind]: f"{RECEIPTS_KEY}:{receipts}"}
    figure.savefig(buffer, format=kind, metadata=METADATA[kind] | told)
    return buffer.getvalue()


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["plots", *sys.argv[1:]])
