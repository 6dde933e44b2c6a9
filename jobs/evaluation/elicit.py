"""`latentlake elicit STORE "text"`: the features of a typed text, by activation and by surprise.

The store's model and SAE read the text (`pipeline.evaluation.typed_text`). BOS is dropped first; then
activations are averaged over the text's positions, or one position is taken, counted after the drop. Surprise
is that of `pipeline.statistics.evaluation.surprise`, over several positions the largest of theirs: a mean
would put features first that fire everywhere, each time as they do (1.44 bits on average). Shapes: T tokens
of the text.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import numpy as np
import polars as pl
import typer
from rich.markup import escape
from rich.text import Text

from jobs.command.options import (
    AS_JSON,
    DeviceOfPass,
    Html,
    Maximum,
    ModelPath,
    OneSite,
    SaePath,
    TokenizerPath,
)
from jobs.terminal.console import console, say
from jobs.terminal.names import NARROW, labelled, one_line
from jobs.terminal.outputs import require_file, write_file
from jobs.terminal.progress import counting
from jobs.terminal.strips import (
    AFTER,
    BEFORE,
    Strip,
    html_page,
    shown,
    strip_of,
    strips_of,
    strongest_in,
    text_strip,
)
from pipeline.evaluation.typed_text import Places, TypedText, run_text
from pipeline.statistics.evaluation.surprise import Stored, surprise_bits
from pipeline.store import FeatureStore
from pipeline.store.derived.names import FeatureNames
from schemas.errors import InputError
from schemas.tables.tables import Schema
from schemas.values import I64

ELICITED: Schema = {
    "feature": pl.UInt32(),
    "activation": pl.Float64(),
    "surprise_bits": pl.Float64(),
    "strongest": pl.Float32(),
    "position": pl.Int64(),
    "frequency": pl.Float64(),
    "max_activation": pl.Float32(),
}
"""A row per feature that fires at the selected positions. `activation`: mean over them; `surprise_bits`:
at the most surprising of them; `strongest`: the activation of largest magnitude, at `position`; then columns
of the feature table, null where the feature never fires in the store."""


def elicit(
    store: FeatureStore,
    site: OneSite,
    text: Annotated[str, typer.Argument(help="The text that the model reads.")],
    *,
    position: Annotated[
        int | None,
        typer.Option(
            help="One position: 0 is the first token after BOS, -1 the last. Default: the mean over all."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of features shown for each ranking.", min=1)] = 10,
    features: Annotated[
        list[int] | None,
        typer.Option("--feature", help="Show the text shaded by this feature instead; may be repeated."),
    ] = None,
    maximum: Maximum = None,
    html: Html = None,
    model: ModelPath = None,
    sae: SaePath = None,
    tokenizer: TokenizerPath = None,
    device: DeviceOfPass = "auto",
) -> Annotated[pl.DataFrame, AS_JSON]:
    """Print the features of a text, or the text shaded by some features; all that fires (schema ELICITED).

    InputError as `run_text`; for a position or a feature that is not there; before `latentlake stats`.
    """
    require_file(html, "--html")
    for feature in features or ():
        store.require_feature(site, feature)
    store.scan_features(site)  # raises if there is no feature table, before the model is loaded
    with counting("running the model and the SAE"):
        typed = run_text(store, site, text, Places(model, sae, tokenizer, device))
    rows = selected_rows(store, typed, position)
    firing_features = elicited(store, site, typed, rows)
    place = "" if position is None else f" at position {rows[0]}"
    over = place or f", mean over {len(rows)} positions"
    # BOS takes one place of each context, so the text is cut into pieces shorter by one.
    body = store.lake.context_size - (store.lake.bos_id is not None)
    if (contexts := -(-len(typed.token_ids) // body)) > 1:
        over += f" of {contexts} contexts of the lake's {store.lake.context_size} tokens"
    say(
        f"[bold]elicit[/] {site}: {len(typed.token_ids)} tokens{over}, {firing_features.height} features fire"
    )
    firing = None if position is None else int(rows[0])
    summary = partial(_feature_summary, store.names(site, features or ()), firing_features)
    if features:
        for feature in features:
            strip = shaded(store, site, typed, feature, maximum, firing)
            _show_strip(store, typed, feature, strip, escape(summary(feature)))
    else:
        for by in ("activation", "surprise_bits"):
            _show_ranking(store, site, typed, ranked(firing_features, by).head(n), by)
    if html is not None:
        chosen = features or ranked(firing_features, "activation").head(n)["feature"].to_list()
        store.names(site, chosen)  # together, and not one by one
        strips = ((summary(f), *shaded(store, site, typed, f, maximum, firing)) for f in chosen)
        page = html_page(f"A text in {site}", text, strips)
        write_file(html, page.encode(), "--html")
        say(f"HTML: [bold]{escape(str(html))}[/]")
    return firing_features


def selected_rows(store: FeatureStore, typed: TypedText, position: int | None) -> I64:
    """The rows that activations are taken of: those counted, or the one at `position`: int64."""
    tokens, rows = len(typed.token_ids), np.flatnonzero(typed.counted)
    if position is None:
        if not len(rows):
            raise InputError("the site reads none of the text's tokens: type more, or a different text")
        return rows
    if position not in range(-tokens, tokens):
        raise InputError(
            f"position {position} is not in the text: its {tokens} tokens have 0 to {tokens - 1}, or "
            f"{-tokens} to -1"
        )
    place = position % tokens
    if place not in rows:
        piece = store.vocabulary.at(typed.token_ids.tolist(), place)
        raise InputError(f"position {position} ({piece!r}) is not one that the site counts: choose another")
    return np.array([place])


def elicited(store: FeatureStore, site: str, typed: TypedText, rows: I64) -> pl.DataFrame:
    """All features that fire at the rows, by feature (schema ELICITED)."""
    matrix = typed.activations[rows].tocoo()
    # By feature, then by position: of equal activations the first position is the strongest.
    order = np.lexsort((matrix.row, matrix.col))
    fires = pl.DataFrame(
        {
            "feature": matrix.col[order].astype(np.uint32),
            "position": rows[matrix.row[order]],
            "value": matrix.data[order].astype(np.float32),
        }
    )
    columns = ("feature", "frequency", "max_activation", "min_activation", "counted_rows")
    table = (
        store.scan_features(site)
        .filter(pl.col("feature").is_in(fires["feature"].unique().to_list()))
        .select(*columns, "histogram_bins", "histogram_counts")
        .collect()
    )
    # Both frames are sorted by feature, and have the same ones: their groups go together.
    bits = [np.empty(0)]
    groups = fires.partition_by("feature", maintain_order=True)
    for group, row in zip(groups, table.iter_rows(named=True), strict=True):
        # A feature that never fires in the store has no range: every value lies outside of it.
        never = row["max_activation"] is None
        stored = Stored(
            np.array(row["histogram_bins"], np.int16),
            np.array(row["histogram_counts"], np.int64),
            np.inf if never else row["min_activation"],
            -np.inf if never else row["max_activation"],
        )
        bits.append(surprise_bits(stored, group["value"].to_numpy(), row["counted_rows"]))
    fires = fires.with_columns(bits=pl.Series(np.concatenate(bits), dtype=pl.Float64))
    # The mean is over all selected rows, those without the feature too, where it counts as 0.
    strongest = pl.col("value").abs().arg_max()
    return (
        fires.group_by("feature", maintain_order=True)
        .agg(
            activation=pl.col("value").cast(pl.Float64).sum() / len(rows),
            surprise_bits=pl.col("bits").max(),
            strongest=pl.col("value").get(strongest),
            position=pl.col("position").get(strongest),
        )
        .join(table, on="feature", how="left", maintain_order="left")
        .select(*ELICITED)
    )


def ranked(table: pl.DataFrame, by: str) -> pl.DataFrame:
    """The largest of a column first (of activations: by magnitude); equal ones by feature."""
    return table.sort(pl.col(by).abs(), "feature", descending=[True, False])


def _show_ranking(store: FeatureStore, site: str, typed: TypedText, best: pl.DataFrame, by: str) -> None:
    say(f"\n[bold]by {'activation' if by == 'activation' else 'surprise'}[/]")
    examples = _examples(store, site, best["feature"].to_list())
    names = store.names(site, best["feature"])
    for row in best.iter_rows(named=True):
        piece = store.vocabulary.at(typed.token_ids.tolist(), row["position"])
        often = "never fires in the store"
        if row["max_activation"] is not None:
            often = f"in the store on {row['frequency']:.3%} of rows, up to {row['max_activation']:.4g}"
        say(
            f"{row['feature']:>9}  {row['activation']:>8.3f}  {row['surprise_bits']:>6.2f} bits  "
            f"[dim]strongest {row['strongest']:.4g} at {row['position']}[/] |{escape(shown(piece))}|"
            f"[dim]; {often}[/]  {escape(one_line(names.name(row['feature']), NARROW))}"
        )
        if row["feature"] in examples:
            console.print(Text(" " * 11) + examples[row["feature"]], soft_wrap=True, highlight=False)


def _examples(store: FeatureStore, site: str, features: list[int]) -> dict[int, Text]:
    """The strongest row in the store of each feature that fires there."""
    if store.has_table(site, "examples"):
        is_strongest = (pl.col("kind") == "top") & (pl.col("rank") == 0) & pl.col("feature").is_in(features)
        best = store.scan_table(site, "examples").filter(is_strongest).collect()
        described = store.describe_rows(best["row"].to_numpy(), BEFORE, AFTER)
    else:
        contexts = {f: store.contexts(site, f, 1, before=BEFORE, after=AFTER) for f in features}
        contexts = {feature: frame for feature, frame in contexts.items() if frame.height}
        if not contexts:
            return {}
        best, described = pl.DataFrame({"feature": list(contexts)}), pl.concat(contexts.values())
    nothing = np.empty(0, np.uint64), np.empty(0, np.float32)
    strips = strips_of(store, described, *nothing)
    texts = (text_strip(strip, 1.0, shaded=False) for strip in strips)
    return dict(zip(best["feature"].to_list(), texts, strict=True))


def shaded(
    store: FeatureStore, site: str, typed: TypedText, feature: int, maximum: float | None, firing: int | None
) -> tuple[Strip, float]:
    """The text by one feature; full shade is `maximum`, or else the strongest of the store or the text."""
    values = typed.activations[:, [feature]].toarray()[:, 0]
    strip = strip_of(store, typed.token_ids.tolist(), values, firing)
    # A feature that never fires in the store is shaded by the text alone.
    stored = np.array([store.largest_activation(site, feature)], np.float32)
    return strip, strongest_in([stored, values]) if maximum is None else maximum


def _feature_summary(names: FeatureNames, table: pl.DataFrame, feature: int) -> str:
    rows, label = table.filter(pl.col("feature") == feature), labelled(names, feature)
    if rows.is_empty():
        return f"feature {label}: does not fire"
    row = rows.row(0, named=True)
    return f"feature {label}: activation {row['activation']:.4g}, {row['surprise_bits']:.2f} bits"


def _show_strip(
    store: FeatureStore, typed: TypedText, feature: int, strip: tuple[Strip, float], summary: str
) -> None:
    say(f"{summary} [dim](full shade: {strip[1]:.4g})[/]")
    console.print(Text("  ") + text_strip(*strip), soft_wrap=True, highlight=False)
    values, ids = typed.activations[:, [feature]].toarray()[:, 0], typed.token_ids.tolist()
    # The five strongest tokens, equal ones from left to right; what does not fire is not listed.
    strong = np.argsort(-np.abs(values), kind="stable")[:5]
    fires = ((values[p], p, escape(shown(store.vocabulary.at(ids, p)))) for p in strong if values[p])
    say(f"  [dim]{', '.join(f'{value:.4g} at {p} |{piece}|' for value, p, piece in fires)}[/]")
