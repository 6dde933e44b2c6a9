"""`latentlake plots STORE`: the figures of a site, redrawn from its stored tables alone."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import polars as pl
import typer
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.markup import escape

from jobs.command.options import FigureLanguage
from jobs.figures import FIGURES, Drawing
from jobs.figures.fonts import families_for, missing_note, name_of, scripts_of, use_fonts
from jobs.figures.setting import LANGUAGES, Language, Setting, set_to, setting
from jobs.figures.style import STYLE, add_fact
from jobs.terminal.console import say
from jobs.terminal.units import kinds_of_corpus, unit_of_site
from pipeline.store import FeatureStore
from pipeline.store.derived.names import given_names
from pipeline.store.objects.verbs import write_atomic
from pipeline.store.records.registry import NEEDS, job_of
from pipeline.store.records.tables import RECEIPTS_KEY
from schemas.errors import InputError
from schemas.layout import StorePath

METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""What would change the bytes of a figure from day to day, or with matplotlib's version, is left out."""

RECEIPTS_FIELD = {"png": RECEIPTS_KEY, "svg": "Identifier"}
"""Where a figure says which receipts its table was made from (a key of PNG's text, a term of SVG's)."""

HANGUL = "한글특징"
"""What a font has that can write Korean."""

PROMPT_TARGET = (0.95, 0.99)
"""Share of zeros at which the study of prompts aims."""


def command(store: FeatureStore, site: str, language: FigureLanguage = "en") -> None:
    """Draw the figures, and print the path of each file."""
    for path in plots(store, site, language):
        typer.echo(path)


def plots(store: FeatureStore, site: str, language: str = "en") -> list[StorePath]:
    """Draw the figures of `jobs.figures.FIGURES` as PNG and SVG into the site's figures folder.

    `language` is one of LANGUAGES. Raises InputError when a table of `NEEDS` is missing, naming the command;
    then nothing is drawn. Figures of other tables are drawn when their table is there (that of labels: when
    the lake has any); which are not, and the command that writes their tables, is reported.
    """
    missing = {
        name: figure
        for name, figure in FIGURES.items()
        if figure.table not in NEEDS["plots"] and not store.has_table(site, figure.table)
    }
    if not store.lake.label_columns:
        missing |= {name: figure for name, figure in FIGURES.items() if figure.table == "labels"}
    chosen = {name: figure for name, figure in FIGURES.items() if name not in missing}
    names = {figure.table for figure in chosen.values()}
    # All tables are read, and one that is needed refused, before the first figure is written.
    tables = {name: store.scan_table(site, name).collect() for name in sorted(names)}
    written = []
    with drawing(store, site, language, is_of_tables=True):
        for name, figure in chosen.items():
            written += draw(store, site, name, tables[figure.table])
    for command, names_of in _by_command(store, site, missing).items():
        reason = f"not drawn without the tables of `latentlake {command}`"
        say(f"[bold]plots[/] {site}: {', '.join(names_of)} {reason}")
    return written


@contextmanager
def drawing(
    store: FeatureStore, site: str, language: str = "en", *, is_of_tables: bool = False
) -> Iterator[None]:
    """The style and the words of figures of a site; after it, letters that no font here has are reported.

    `is_of_tables`: they are drawn from tables alone, so features are not called by tokens of the lake.
    InputError for a language that figures do not speak, or that no font of this machine can write.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # of families without a bold face
    target = PROMPT_TARGET if kinds_of_corpus(store) == {"prompts"} else None
    named = partial(_given_names if is_of_tables else _names, store, site)
    words = Setting(_known(language), unit_of_site(store, site), target, named)
    with rc_context(), set_to(words) as chosen:
        rcdefaults()  # not the settings of a matplotlibrc of this machine
        rcParams.update(STYLE)
        yield
    if chosen.missing:
        say(f"[yellow]note[/] {escape(site)}: {escape(missing_note(chosen.missing))}")


def _names(store: FeatureStore, site: str, features: Sequence[int]) -> dict[int, str]:
    names = store.names(site, features)
    return {feature: names.name(feature) for feature in features}


def _given_names(store: FeatureStore, site: str, _: Sequence[int]) -> dict[int, str]:
    return given_names(store, site)


def _known(language: str) -> Language:
    chosen = next((known for known in LANGUAGES if known == language), None)
    if chosen is None:
        raise InputError(f"--language {language!r} is not one of {', '.join(LANGUAGES)}")
    if chosen != "en" and families_for(HANGUL)[1]:
        raise InputError(
            f"--language {language} needs a font with Hangul, and this machine has none: install one, such "
            "as fonts-nanum of Debian and Ubuntu, or draw with --language en"
        )
    return chosen


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
    # A table that this corpus or site can never have is no news: its figures are not named.
    kinds = kinds_of_corpus(store)
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
    by_command: dict[str, list[str]] = {}
    for name, drawing in missing.items():
        command = job_of(drawing.table)
        if can.get(command, True):
            by_command.setdefault(command, []).append(name)
    return by_command


def render(figure: Figure, kind: str, receipts: str = "") -> bytes:
    """The figure as the bytes of a `png` or `svg` file; equal figures of equal receipts give equal bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    field = {RECEIPTS_FIELD[kind]: f"{RECEIPTS_KEY}:{receipts}"}
    if missing := use_fonts(figure):
        # Reported once for all figures, and on each, for it travels without the report.
        scripts = " and ".join(map(name_of, scripts_of(missing)))
        add_fact(figure, f"no font for {scripts} where this was drawn")
        setting().missing.update(missing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)  # reported above
        figure.savefig(buffer, format=kind, metadata=METADATA[kind] | field)
    return buffer.getvalue()
