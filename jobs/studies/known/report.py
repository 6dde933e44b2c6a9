"""What `latentlake truth` prints: truth against measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jobs.studies.known.compare import Side
from jobs.studies.known.matching import literal_score, uniqueness
from jobs.terminal.console import console, say
from pipeline.synthetic.dictionary.truth import KnownTruth

SHOWN = 12
"""Features that are listed, spread over their true frequencies."""

SITES = 4
"""Sites side by side in 80 columns."""
MEASURES = {
    "L0": "l0",
    "true L0, as drawn": "true_l0",
    "true L0, in closed form": "expected_l0",
    "dead features": "dead",
    "explained variance": "explained_variance",
    "shrinkage |x'| / |x|": "shrinkage",
    "MCC, mean |cosine|": "mcc",
    "uniqueness": "uniqueness",
    "precision, of the nearest true feature": "precision",
    "recall, of the nearest true feature": "recall",
    "F1, of the nearest true feature": "f1",
    "accuracy, of the nearest true feature": "accuracy",
}
"""Of the table `truth_summary`: what they are called here."""


def summaries(of_sites: Mapping[str, pl.DataFrame]) -> Iterator[Table]:
    """The tables `truth_summary` of some sites side by side."""
    sites = list(of_sites)
    for first in range(0, len(sites), SITES):
        group = sites[first : first + SITES]
        table = Table(title="the SAE as a whole", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        for site in group:
            table.add_column(escape(site), justify="right", overflow="fold")
        for title, name in MEASURES.items():
            values = [of_sites[site][name][0] for site in group]
            table.add_row(title, *(f"{v:,}" if isinstance(v, int) else _number(v, 4) for v in values))
        yield table


def print_report(
    site: str,
    truth: KnownTruth,
    side: Side,
    features: pl.DataFrame,
    pairs: pl.DataFrame,
    edges: pl.DataFrame | None,
    of_documents: pl.DataFrame | None,
) -> None:
    """All of it, for one site."""
    matched = features.drop_nulls("true_feature")
    say(f"[bold]truth[/] {site}: {matched.height:,} features against {truth.recipe.features:,} true ones")
    decoder, encoder = matched["decoder_cosine"].abs(), matched["encoder_cosine"].abs()
    agree = (matched["true_feature"] == matched["nearest_true_feature"]).sum()
    score = literal_score(side.cosines.decoder, side.order)
    for line in [
        f"matched one to one: mean |cosine| {_number(decoder.mean())} (decoder), {_number(encoder.mean())} "
        f"(encoder), smallest {_number(decoder.min())}",
        f"literal order: mean cosine {score:.3f}; {agree:,} of {features.height:,} features are nearest to "
        f"the true feature assigned to them, uniqueness {uniqueness(side.cosines.decoder):.3f}",
        *_of_intervals(matched, of_documents),
        *_of_rows(matched),
        *_of_pairs(pairs),
        *_of_hierarchy(pairs, edges),
    ]:
        say(f"  {line}")
    if matched.height:
        console.print(_listed(matched))


def _of_intervals(matched: pl.DataFrame, of_documents: pl.DataFrame | None) -> list[str]:
    held = [
        ("frequency", "true_frequency", "frequency"),
        ("mean where active, the generator's", "true_mean", "mean"),
    ]
    # the encoder's mean is a line of its own where it is known, and another than the generator's
    true, expected = (matched[name].to_numpy() for name in ("true_mean", "expected_mean"))
    is_known = not np.isnan(expected.astype(float)).all()
    if is_known and not np.allclose(true, expected, rtol=1e-5, equal_nan=True):
        held.append(("mean where active, by this encoder", "expected_mean", "mean"))
    lines = [
        f"{what}: {_share(_held(matched, true, ends))} of 95 % intervals hold the truth"
        for what, true, ends in held
    ]
    if of_documents is not None:
        joined = matched.drop("frequency_low", "frequency_high").join(of_documents, on="feature", how="left")
        share = _share(_held(joined, "true_frequency", "frequency"))
        lines.append(f"frequency, by document (`profile`): {share} of 95 % intervals hold the truth")
    return lines


def _held(table: pl.DataFrame, true: str, ends: str) -> pl.Series:
    """Whether each interval holds the truth; without those that are not known."""
    low, high = pl.col(f"{ends}_low"), pl.col(f"{ends}_high")
    return table.select(held=pl.col(true).is_between(low, high)).to_series().drop_nulls()


def _of_rows(matched: pl.DataFrame) -> list[str]:
    known = matched.drop_nulls("n_hits")
    if not known.height:
        return []
    hits, drawn, active = (int(known[name].sum()) for name in ("n_hits", "n_drawn", "n_active"))
    wrong = known.filter(
        (pl.col("n_hits") != pl.col("n_drawn")) | (pl.col("n_hits") != pl.col("n_active"))
    ).height
    exact = (
        "every feature fires in exactly the right rows"
        if not wrong
        else f"{wrong:,} features differ in at least one row"
    )
    return [
        f"rows in which a feature fires: {drawn:,} drawn, {active:,} measured, {hits:,} the same; precision "
        f"{_ratio(hits, active)}, recall {_ratio(hits, drawn)}: {exact}"
    ]


def _of_pairs(pairs: pl.DataFrame) -> list[str]:
    correlated = pairs.filter((pl.col("kind") == "correlated") & (pl.col("true_phi") > 0))
    lines = []
    if correlated.height:
        held = _share(_held(pairs.filter(pl.col("kind") == "correlated"), "true_frequency", "frequency"))
        lines.append(f"correlated pairs firing together: {held} of 95 % intervals hold the truth")
        # a feature of a group of three has two partners, which are its nearest where its ranks are below 2
        ends = pl.concat([correlated["a"], correlated["b"]]).value_counts()
        partners = correlated.join(ends, on="a", how="left", maintain_order="left")["count"]
        for name in ("phi", "jaccard", "npmi"):
            is_near = (correlated[f"rank_{name}"] < partners).fill_null(value=False)
            lines.append(f"  among the nearest by {name}, as many as the group has: {_share(is_near)}")
    if (exclusive := pairs.filter(pl.col("kind") == "exclusive")).height:
        apart = exclusive["n_both"] == 0
        lines.append(f"exclusive pairs: {_share(apart)} never fire together")
    return lines


def _of_hierarchy(pairs: pl.DataFrame, edges: pl.DataFrame | None) -> list[str]:
    known = pairs.filter(pl.col("kind").is_in(["parent", "ancestor"]))
    if not known.height:
        return []
    least = _number(known["conditional"].min())
    line = f"children and their ancestors: {known.height:,} pairs, conditional frequency at least {least}"
    if edges is None:
        return [line, "  not computed: run `latentlake coactivation` first"]
    true = known.select(child="a", parent="b").with_columns(known=True)
    compared = edges.join(true, on=["child", "parent"], how="left")
    hits = compared["known"].sum()
    others = f"{compared.height - hits:,} others" if compared.height - hits else "no other"
    return [line, f"  recovered from co-activation alone: {hits:,} of {known.height:,}, and {others}"]


def _listed(matched: pl.DataFrame) -> Table:
    table = Table(title="truth against measured", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("true", "SAE", "frequency", "measured (95 %)", "mean", "measured (95 %)"):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = matched.sort("true_frequency", descending=True)
    places = np.unique(np.linspace(0, ordered.height - 1, min(SHOWN, ordered.height)).round().astype(int))
    for row in ordered[places].iter_rows(named=True):
        expected = row["true_mean"] if row["expected_mean"] is None else row["expected_mean"]
        table.add_row(
            str(row["true_feature"]),
            str(row["feature"]),
            _number(row["true_frequency"], 4),
            _within(row, "frequency", "frequency", 4),
            _number(expected),
            _within(row, "mean_active", "mean", 3),
        )
    return table


def _within(row: dict[str, Any], measured: str, ends: str, digits: int) -> str:
    """`0.2470 (0.2430–0.2510)`: what is measured, and its interval."""
    low, high = (_number(row[f"{ends}_{end}"], digits) for end in ("low", "high"))
    return f"{_number(row[measured], digits)} ({low}–{high})"


def _share(held: pl.Series) -> str:
    n = len(held)
    return f"{int(held.sum()):,} of {n:,} ({held.sum() / n:.1%})" if n else "none"


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "-"


def _number(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float | int) else "-"
