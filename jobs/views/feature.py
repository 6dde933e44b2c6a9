"""`latentlake feature STORE F`: all that the store's tables hold about one feature, in the terminal.

Each section reads its rows of one or two tables and draws them; a missing table is reported at the end,
with the command that makes it. Only the examples' activations come from the postings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

import numpy as np
import polars as pl
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from jobs.command.options import AS_JSON, After, Before, FeatureNumber, OneSite
from jobs.terminal.console import console, say
from jobs.terminal.names import WIDE, any_named, labelled, name_cell, one_line
from jobs.terminal.strips import AFTER, BEFORE, shown, strips_of, strongest_in, text_strip
from jobs.views.top import heading, show_strip, with_token_texts
from pipeline.statistics.features.histogram import FRACTION_BITS, bin_edges
from pipeline.store import FeatureStore
from pipeline.store.records.registry import find_table, job_of
from schemas.values import F32, U64

NEIGHBOURS, RANKS, LABELS, LOGITS, CENTRAL = 8, 12, 12, 10, 8
"""Lines or entries of a section."""

KINDS = {
    "top": "strongest rows",
    "top_document": "strongest tokens of different documents",
    "quantile": "tokens of each decile of its activations, the strongest decile first",
    "random": "contexts in which it does not fire",
}
CLUSTERINGS = {
    "feature_clusters": "by decoder direction",
    "coactivation_clusters": "by co-activation",
    "density_clusters": "by density of decoder directions",
}
ENDS = (("promoted", "effects"), ("suppressed", "effects"), ("top", "logits"), ("bottom", "logits"))
"""Columns of the table `logits`: the plain effect on tokens, and the logits after the final norm."""
BAR = 40
LONGEST_TEXT = 1000
"""Characters of an explanation that are shown."""


class Page(NamedTuple):
    """What the sections draw from."""

    store: FeatureStore
    site: str
    feature: int
    k: int
    before: int
    after: int

    def rows(self, table: str) -> pl.DataFrame:
        """The feature's rows of a table."""
        return self.store.scan_table(self.site, table).filter(pl.col("feature") == self.feature).collect()

    def has(self, table: str) -> bool:
        """Whether the table is there."""
        return self.store.has_table(self.site, table)


class Section(NamedTuple):
    """A part of the page, drawn where one of its tables is there; None where these hold nothing.

    `tables` is empty where their names are not known before: then missing ones are not reported.
    """

    title: str
    tables: tuple[str, ...]
    draw: Callable[[Page], RenderableType | None]


def show_feature(
    store: FeatureStore,
    site: OneSite,
    feature: FeatureNumber,
    *,
    k: Annotated[int, typer.Option("-k", help="Number of examples of each kind.", min=1)] = 5,
    before: Before = BEFORE,
    after: After = AFTER,
) -> Annotated[dict[str, pl.DataFrame], AS_JSON]:
    """Print the page; `k` examples of each kind. InputError where the site has no such feature.

    Returns the feature's rows of each table that the page is made from, by its name, and all of `examples`,
    with the windows of tokens around them.
    """
    page, info = Page(store, site, feature, k, before, after), store.site(site)
    store.require_feature(site, feature)
    names = store.names(site, [feature])
    title = f"feature {labelled(names, feature, WIDE)} of {site}"
    say(
        f"[bold]{escape(title)}[/]  [dim]{info.architecture}, {info.d_sae:,} features at "
        f"{escape(info.hook_name)}; {escape(str(store.layout.root))}[/]"
    )
    for section in SECTIONS:
        has_data = not section.tables or any(map(page.has, section.tables))
        if has_data and (drawn := section.draw(page)) is not None:
            console.print(Rule(section.title, align="left", style="dim"))
            console.print(drawn, soft_wrap=isinstance(drawn, Text), highlight=False)
    _show_examples(page)
    # Tables that are not there, by the command that makes them.
    tables = [*(name for section in SECTIONS for name in section.tables), "examples"]
    by_job: dict[str, list[str]] = {}
    for name in dict.fromkeys(tables):
        if not page.has(name):
            by_job.setdefault(job_of(name), []).append(name)
    if page.has("examples") and page.rows("features")["n_active"].sum():  # what never fires has none
        kinds_present = (
            page.store.scan_table(page.site, "examples").select(pl.col("kind").unique()).collect()["kind"]
        )
        for kind in sorted(KINDS.keys() - set(kinds_present)):
            by_job.setdefault("examples", []).append(f"examples of kind {kind}")
    if by_job:
        console.print(Rule("not there yet", align="left", style="dim"))
    for job, missing in by_job.items():
        say(f"  [bold]latentlake {job}[/] makes {', '.join(missing)}")
    return _rows(page)


def _rows(page: Page) -> dict[str, pl.DataFrame]:
    """What the tables hold of the feature, by their names."""
    names = [name for name in page.store.tables(page.site) if find_table(name).page == "feature"]
    tables = {name: page.rows(name) for name in names}
    if page.has("examples"):
        rows = page.rows("examples")
        described = page.store.describe_rows(rows["row"].to_numpy(), page.before, page.after).drop("row")
        # a label may be called as a column of the table
        described = described.rename({n: f"{n}_label" for n in described.columns if n in rows.columns})
        tables["examples"] = with_token_texts(page.store, rows.hstack(described))
    return tables


def _grid(pairs: Iterable[tuple[str, str | None]]) -> Table:
    """Names and values in two pairs of columns; None is left out."""
    kept = [(name, value) for name, value in pairs if value is not None]
    half = -(-len(kept) // 2)
    table = Table.grid(padding=(0, 2))
    # blanks fill the right side, so that an odd number of pairs is shown to the last
    for left, right in zip(kept, [*kept[half:], *[("", "")] * half], strict=False):
        if len(table.rows) < half:
            table.add_row(f"[dim]{left[0]}[/]", escape(left[1]), f"[dim]{right[0]}[/]", escape(right[1]))
    return table


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _statistics(page: Page) -> RenderableType | None:
    row = page.rows("features").row(0, named=True)
    often = f"{row['n_active']:,} of {row['counted_rows']:,} counted rows"
    if not row["n_active"]:
        return Text(f"It never fires: {often}.", style="yellow")
    names = (
        *("frequency", "mean_active", "std_active", "mean_all", "std_all", "sigma_over_mu"),
        *("min_activation", "q50_active", "q99_active", "max_activation", "skewness_active"),
    )
    pairs = [("fires on", often), *((name, _number(row[name])) for name in names)]
    covered = ((what, f"{row[f'active_{what}']:,} of {row[what]:,}") for what in ("contexts", "documents"))
    return _grid([*pairs, *covered])


def _profile(page: Page) -> RenderableType | None:
    rows = page.rows("profile")
    if rows.is_empty():
        return None
    row = rows.row(0, named=True)
    pairs: list[tuple[str, str | None]] = []
    if row["frequency_low"] is not None:
        pairs.append(("frequency, 95 %", f"{row['frequency_low']:.4g} to {row['frequency_high']:.4g}"))
    if row["dead_upper"] is not None:
        pairs.append(("frequency at most", _number(row["dead_upper"])))
    if row["top_token"] is not None:
        token = shown(page.store.token_texts([row["top_token"]])[0])
        pairs.append(("most common token", f"|{token}| on {row['top_token_share']:.1%} of its rows"))
    pairs += [
        ("distinct tokens", _number(row["tokens"])),
        ("entropy over tokens, bits", _number(row["token_entropy_bits"])),
        ("entropy over positions, bits", _number(row["position_entropy_bits"])),
        ("share at positions 0 and 1", _number(row["first_positions_share"])),
    ]
    # The number of a context is a name, so it is written without commas.
    contexts = ((end, row[f"{end}_context"]) for end in ("first", "last"))
    return _grid([*pairs, *((f"{end} context", None if n is None else str(n)) for end, n in contexts)])


def _histogram(page: Page) -> RenderableType | None:
    """Rows by activation: a bar for each octave that holds any, from its left end."""
    row = page.rows("features").row(0, named=True)
    if not row["n_active"]:
        return None
    # a bin is the sign, exponent and first bits of the fraction of a float: without these bits, its octave
    octave = np.array(row["histogram_bins"], np.int16) >> FRACTION_BITS
    octaves, place = np.unique(octave, return_inverse=True)
    rows = np.bincount(place, weights=row["histogram_counts"])
    left, _ = bin_edges(octaves << FRACTION_BITS)
    bars = (BAR * rows / rows.max()).round().astype(int)
    lines = zip(left, bars, rows, strict=True)
    return Text("\n".join(f"{edge:>10.4g}  {'█' * bar or '▏'} {n:,.0f}" for edge, bar, n in lines))


def _rankings(page: Page) -> RenderableType | None:
    rows = page.rows("rankings").head(RANKS)
    if rows.is_empty():
        return None
    summary = page.store.scan_table(page.site, "rankings").group_by("by").len().collect()
    sizes = dict(summary.iter_rows())
    stable = {"rank_low", "rank_high"} <= set(rows.columns)
    pairs = []
    for row in rows.iter_rows(named=True):
        has_interval = stable and row["rank_low"] is not None
        interval = f" (#{row['rank_low'] + 1:,} to #{row['rank_high'] + 1:,})" if has_interval else ""
        pairs.append((f"by {row['by']}", f"#{row['rank'] + 1:,} of {sizes.get(row['by'], 0):,}{interval}"))
    return _grid(pairs)


def _labels(page: Page) -> RenderableType | None:
    rows = page.rows("labels").filter(pl.col("z").is_not_null())
    if rows.is_empty():
        return None
    best = rows.sort(pl.col("z").abs(), "label", "value", descending=[True, False, False]).head(LABELS)
    table = _table("label", "value", "rows", "frequency", "difference", "z", "q")
    for row in best.iter_rows(named=True):
        numbers = (_number(row[name]) or "" for name in ("frequency", "difference", "z", "q"))
        table.add_row(escape(row["label"]), escape(str(row["value"])), f"{row['rows']:,}", *numbers)
    return table


def _explanations(page: Page) -> RenderableType | None:
    """What other tools say of it, each with its source."""
    if not page.has("explanations"):
        return None
    lines = []
    for row in page.rows("explanations").iter_rows(named=True):
        by = ", ".join(row[name] for name in ("source", "origin", "method", "model") if row[name])
        lines.append(Text.assemble(one_line(row["text"], LONGEST_TEXT), (f"  {one_line(by)}", "dim")))
    return Group(*lines) if lines else None


def _trends(page: Page) -> RenderableType | None:
    rows = page.rows("label_trends")
    if rows.is_empty():
        return None
    table = _table("label", "documents", "slope", "se", "z", "q")
    for row in rows.iter_rows(named=True):
        numbers = (_number(row[name]) or "" for name in ("slope", "se", "z", "q"))
        table.add_row(escape(row["label"]), f"{row['documents']:,}", *numbers)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        is_text = column in ("label", "value", "by", "tokens", "name")
        table.add_column(
            column, justify="left" if is_text else "right", overflow="ellipsis" if is_text else "fold"
        )
    return table


def _neighbours(page: Page) -> RenderableType | None:
    rows = page.rows("neighbours")
    if rows.is_empty():
        return None
    if "by" not in rows.columns:  # a table from before there was more than one measure
        rows = rows.with_columns(by=pl.lit("jaccard"))
    measures = [name for name in ("jaccard", "npmi", "phi", "conditional") if name in rows.columns]
    shown = rows.filter(pl.col("rank") < NEIGHBOURS).sort("by", "rank")
    names = page.store.names(page.site, shown["neighbour"])
    is_named = any_named(names, shown["neighbour"])
    table = _table("by", "feature", "n_both", "n_b", *measures, *(["name"] if is_named else []))
    for row in shown.iter_rows(named=True):
        cells = [row["by"], str(row["neighbour"]), f"{row['n_both']:,}", f"{row['n_b']:,}"]
        cells += (_number(row[name]) or "" for name in measures)
        table.add_row(*cells, *([name_cell(names, row["neighbour"])] if is_named else []))
    return table


def _decoder_neighbours(page: Page) -> RenderableType | None:
    rows = page.rows("decoder_neighbours").sort("rank").head(NEIGHBOURS)
    if rows.is_empty():
        return None
    names = page.store.names(page.site, rows["neighbour"])
    pairs = rows.select("neighbour", "cosine").iter_rows()
    return Text(", ".join(f"{labelled(names, other)} ({cosine:.3f})" for other, cosine in pairs))


def _matches(page: Page) -> RenderableType | None:
    """From every table that `latentlake match` made of this site, one for each other site."""
    # its partner first; cosines are null where none can be compared
    order, lines = ["assigned", "cosine", "jaccard"], []
    for table in (name for name in page.store.tables(page.site) if job_of(name) == "match"):
        rows = page.rows(table).sort(*order, descending=True, nulls_last=True).head(NEIGHBOURS)
        # the name of another store's site is longer: its features are not known here
        other = page.store.sites.get(table.removeprefix("matches_"))
        names = page.store.names(other.name, rows["match"]) if other is not None else None
        for row in rows.iter_rows(named=True):
            parts = [f"{name} {row[name]:.3f}" for name in ("cosine", "jaccard") if row[name] is not None]
            parts.append(f"{row['n_both']:,} rows in common")
            parts += ["its partner in the assignment"] if row["assigned"] else []
            match = labelled(names, row["match"]) if names else row["match"]
            lines.append(f"{table.removeprefix('matches_')} {match}: {', '.join(parts)}")
    return Text("\n".join(lines)) if lines else None


def _clusters(page: Page) -> RenderableType | None:
    """The cluster that the feature is in, by each clustering that puts it into one."""
    lines = []
    for name in filter(page.has, CLUSTERINGS):
        rows = page.rows(name)
        number = rows["cluster"][0] if rows.height else None
        if number is None:
            continue
        line, row = f"{CLUSTERINGS[name]}: cluster {number}", dict[str, Any]()
        if page.has(summary := f"{name.removesuffix('s')}_summary"):
            clusters = page.store.scan_table(page.site, summary).filter(pl.col("cluster") == number).collect()
            row = clusters.row(0, named=True) if clusters.height else {}
        line += f", {row['size']:,} features" if row.get("size") else ""
        line += f", cohesion {row['cohesion']:.3f}" if row.get("cohesion") is not None else ""
        if row.get("tokens"):
            line += f"; tokens {' '.join(map(shown, row['tokens']))}"
        if row.get("features"):
            central = row["features"][:CENTRAL]
            names = page.store.names(page.site, central)
            line += f"; central {', '.join(labelled(names, feature) for feature in central)}"
        lines.append(line)
    return Text("\n".join(lines)) if lines else None


def _logits(page: Page) -> RenderableType | None:
    rows = page.rows("logits")
    if rows.is_empty():
        return None
    row = rows.row(0, named=True)
    lines = [
        Text(f"entropy {row['entropy_bits']:.3f} bits, largest probability {row['max_probability']:.3g}")
    ]
    for end, of in ENDS:
        if not (tokens := row.get(f"{end}_tokens")):
            continue
        values = row[f"{end}_{of}"][:LOGITS]
        pairs = zip(page.store.token_texts(tokens[:LOGITS]), values, strict=True)
        listed = (f"|{shown(piece)}| {value:.3g}" for piece, value in pairs)
        lines.append(Text(f"{end:>10}: {', '.join(listed)}"))
    return Group(*lines)


def _show_examples(page: Page) -> None:
    """Strips of each kind of example, shaded; without a table those of the strongest rows."""
    rows, values = page.store.rows_of(page.site, page.feature)
    # One full shade for all strips, the feature's strongest activation anywhere.
    maximum = strongest_in([values])
    if not page.has("examples"):
        if len(rows):
            best = page.store.contexts(page.site, page.feature, page.k, before=page.before, after=page.after)
            _show_kind(page, "top", best, rows, values, maximum)
        return
    examples = page.rows("examples")
    for kind in KINDS:
        of_kind = examples.filter(pl.col("kind") == kind)
        if kind == "quantile":  # one of each tenth, from the strongest down
            of_kind = of_kind.filter(pl.col("rank") == 0).sort("interval", descending=True)
        else:
            of_kind = of_kind.sort("rank").head(page.k)
        if of_kind.height:
            described = page.store.describe_rows(of_kind["row"].to_numpy(), page.before, page.after)
            described = described.with_columns(of_kind["activation"])
            _show_kind(page, kind, described, rows, values, maximum)


def _show_kind(
    page: Page, kind: str, described: pl.DataFrame, rows: U64, values: F32, maximum: float
) -> None:
    console.print(Rule(KINDS[kind], align="left", style="dim"))
    averaged = page.store.site(page.site).selection.is_averaged
    strips = strips_of(page.store, described, rows, values, averaged=averaged)
    for row, strip in zip(described.iter_rows(named=True), strips, strict=True):
        head = f"{row['activation']:>8.2f}  [dim]{escape(heading(page.store, row, page.site))}[/]"
        show_strip(head, text_strip(strip, maximum))


SECTIONS = (
    Section("explanations", (), _explanations),
    Section("statistics", ("features",), _statistics),
    Section("profile", ("profile",), _profile),
    Section("tokens by activation, in octaves", ("features",), _histogram),
    Section("rankings", ("rankings",), _rankings),
    Section("labels: where it fires more or less often", ("labels",), _labels),
    Section("trends: how its frequency changes with a numeric label", ("label_trends",), _trends),
    Section("features that fire with it", ("neighbours",), _neighbours),
    Section("features of similar decoder direction (cosine)", ("decoder_neighbours",), _decoder_neighbours),
    Section("features of another site that match it", (), _matches),
    Section("clusters", tuple(CLUSTERINGS), _clusters),
    Section("logits", ("logits",), _logits),
)
