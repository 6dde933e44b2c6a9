"""`latentlake plots STORE`: the figures of a site, redrawn from its stored tables alone."""

from __future__ import annotations

import io
from collections.abc import Mapping

import polars as pl
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jobs.console import say
from jobs.figures import FIGURES, Drawing
from jobs.figures.style import STYLE
from pipeline.store import FeatureStore
from pipeline.store.objects import write_atomic
from pipeline.store.tables import RECEIPTS_KEY, job_of
from schemas.layout import StorePath

METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""What would change the bytes of a figure from day to day, or with matplotlib's version, is left out."""

RECEIPTS_FIELD = {"png": RECEIPTS_KEY, "svg": "Identifier"}
"""Where a figure says which receipts its table was made from (a key of PNG's text, a term of SVG's)."""


def plots(store: FeatureStore, site: str) -> list[StorePath]:
    """Draw the figures of `jobs.figures.FIGURES` as PNG and SVG into the site's figures folder.

    Optional ones are drawn when their table is there (that of labels: when the lake has any); which are not,
    and the command that writes their tables, is said. Raises InputError when the table of another one is
    missing, naming the command; then nothing is drawn.
    """
    missing = {
        name: drawing
        for name, drawing in FIGURES.items()
        if drawing.optional and not store.has_table(site, drawing.table)
    }
    if not store.lake.label_columns:
        missing |= {name: drawing for name, drawing in FIGURES.items() if drawing.table == "labels"}
    chosen = {name: drawing for name, drawing in FIGURES.items() if name not in missing}
    names = {drawing.table for drawing in chosen.values()}
    tables = {name: store.scan_table(site, name).collect() for name in sorted(names)}
    written = []
    with rc_context(STYLE):
        for name, drawing in chosen.items():
            written += draw(store, site, name, tables[drawing.table])
    for command, names_of in _by_command(store, site, missing).items():
        told = f"not drawn without the tables of `latentlake {command}`"
        say(f"[bold]plots[/] {site}: {', '.join(names_of)} {told}")
    return written


def draw(store: FeatureStore, site: str, name: str, table: pl.DataFrame) -> list[StorePath]:
    """Draw one of FIGURES from its table, as PNG and SVG."""
    figure = FIGURES[name].draw(table, site)
    receipts = store.made_from(site, FIGURES[name].table)
    paths = {kind: store.layout.figures(site) / f"{name}.{kind}" for kind in METADATA}
    for kind, path in paths.items():
        write_atomic(path, render(figure, kind, receipts))
    return list(paths.values())


def _by_command(store: FeatureStore, site: str, missing: Mapping[str, Drawing]) -> dict[str, list[str]]:
    """The figures that a command would make possible with such a corpus and such a site."""
    kinds = {str(link.source.get("kind")) for link in store.links}
    has_text = not kinds <= {"images", "dictionary", "synthetic"}
    can = {
        "profile": bool(store.lake.label_columns) or not store.has_table(site, "profile"),
        "logits": has_text,
        "fidelity": has_text,
        "stats": store.site(site).control is not None,
        "truth": "dictionary" in kinds,
        "importance": "images" in kinds,
        "images": "images" in kinds,
        "attribute": "prompts" in kinds,
    }
    found: dict[str, list[str]] = {}
    for name, drawing in missing.items():
        command = job_of(drawing.table)
        if can.get(command, True) or not drawing.optional:
            found.setdefault(command, []).append(name)
    return found


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
