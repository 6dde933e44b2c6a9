"""`latentlake heatmap STORE --out FILE.png`: any contexts × any features, as a picture, plain and clustered.

As studies of prompts × features draw it: k-means of the contexts on the selected features with
min(5, n // 10) clusters, the share of zeros, and how often each feature is active.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from matplotlib.figure import Figure
from rich.markup import escape
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from jobs.command.options import FigureLanguage, OneSite
from jobs.figures.heatmap import (
    draw_clustered,
    draw_frequencies,
    draw_matrix_sparsity,
    draw_plain,
    features_of,
    frequency_summary,
    matrix_of,
    sparsity_of,
)
from jobs.figures.plots import METADATA, drawing, render
from jobs.tables.selection import chosen_features, parse_numbers, parse_ranks
from jobs.terminal.console import say
from jobs.terminal.names import labelled
from jobs.terminal.outputs import require_file, write_file
from jobs.views.context_matrix import (
    MOST_CONTEXTS,
    MOST_FEATURES,
    all_contexts,
    pooled,
    strongest_contexts,
)
from pipeline.statistics.pooling import POOLINGS, Pooling
from pipeline.store import FeatureStore
from pipeline.store.reading.label_filters import WHERE_HELP, label_filter, require_values
from schemas.errors import InputError
from schemas.values import F32, I64

MOST_CLUSTERS, CONTEXTS_OF_A_CLUSTER, SEED = 5, 10, 42
LISTED = 10
"""Features that are printed by number and name."""
STARTS = 10
"""Of k-means, of which the best is kept."""

FIGURES: dict[str, Callable[[pl.DataFrame, str, str], Figure]] = {
    "": draw_clustered,
    "-plain": draw_plain,
    "-sparsity": draw_matrix_sparsity,
    "-frequency": draw_frequencies,
}
"""By the ending of the file's name."""


def heatmap(
    store: FeatureStore,
    site: OneSite,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE.png",
            help="Picture, .png or .svg; further pictures are written next to it.",
        ),
    ],
    *,
    features: Annotated[
        str | None,
        typer.Option(
            help="Features: 1,2,3 or 10:20, top:N:COLUMN, or as with --ranking.", metavar="FEATURES"
        ),
    ] = None,
    ranking: Annotated[
        str | None,
        typer.Option(
            help="Alternative to --features: ranks by a column, such as sigma_over_mu:0:50, or top:N:COLUMN.",
            metavar="COLUMN:START:STOP",
        ),
    ] = None,
    selection: Annotated[
        bool, typer.Option("--selection", help="Alternative to --features: those that `attribute` selected.")
    ] = False,
    contexts: Annotated[
        str | None, typer.Option(help="Contexts, such as 1,2,3 or 10:20. Default: all.", metavar="NUMBERS")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help=f"Keep contexts with these labels, {WHERE_HELP}"),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(help="Keep only the N contexts with the most activation of the features.", min=1),
    ] = None,
    pool: Annotated[
        str, typer.Option(help="How the counted rows of a context are pooled: max, mean, sum or last.")
    ] = "max",
    language: FigureLanguage = "en",
) -> list[Path]:
    """Write the table of the selection next to `out`, and its figures; print its numbers.

    Files: `out` (clustered; plain where there are too few contexts to cluster, which is reported), and with
    -plain, -sparsity, -frequency after its name; the table has the name and .parquet. Raises InputError for
    what is not there, or too much.
    """
    kind = out.suffix[1:]
    if kind not in METADATA:
        raise InputError(f"--out {str(out)!r} must end with {' or '.join(f'.{known}' for known in METADATA)}")
    require_file(out, "--out")
    if pool not in POOLINGS:
        raise InputError(f"--pool {pool!r} is not one of {', '.join(POOLINGS)}")
    pooling = next(known for known in POOLINGS if known == pool)
    with drawing(store, site, language):
        table = selected(
            store,
            site,
            pooling,
            features=features,
            ranking=ranking,
            selection=selection,
            contexts=contexts,
            where=where or (),
            top=top,
        )
        clusters = cluster_contexts(matrix_of(table))
        if clusters is None:
            say(
                f"[yellow]heatmap[/] {site}: {table.height} contexts are too few to cluster "
                f"({CONTEXTS_OF_A_CLUSTER} make one cluster), so they are drawn in their order"
            )
        else:
            table = table.with_columns(cluster=clusters).sort("cluster", "context")
        _report(store, site, table)
        return _write(table, site, pooling, out, kind, clustered=clusters is not None)


def selected(
    store: FeatureStore,
    site: str,
    pool: Pooling,
    *,
    features: str | None = None,
    ranking: str | None = None,
    selection: bool = False,
    contexts: str | None = None,
    where: Sequence[str] = (),
    top: int | None = None,
) -> pl.DataFrame:
    """The table of the selection, by context: context u64, cluster (null), labels, a column per feature.

    A label that is called as another column of it may be, `cluster` or a number, ends with `_label`.
    """
    numbers = _features(store, site, features, ranking, selection=selection)
    table = all_contexts(store, site)
    matrix = pooled(store, site, numbers, table, pool)
    chosen = _contexts(store, table, contexts, where)
    if top is not None:
        chosen = strongest_contexts(matrix, chosen, top)
    if len(chosen) > MOST_CONTEXTS:
        raise InputError(
            f"{len(chosen):,} contexts are more than a picture can show ({MOST_CONTEXTS:,} at most): give "
            "--top N for the N with the most activation, or fewer by --contexts or --where"
        )
    if not len(chosen):
        raise InputError("no context is left to draw: widen --contexts or --where")
    values = matrix[chosen].toarray()
    columns = pl.DataFrame(values, schema=[str(number) for number in numbers], orient="row")
    cluster = pl.lit(None, pl.UInt32).alias("cluster")
    labels = [
        pl.col(name).alias(f"{name}_label" if name == "cluster" or name.isdigit() else name)
        for name in store.lake.label_columns
    ]
    return table[chosen].select("context", cluster, *labels).hstack(columns)


def cluster_contexts(matrix: F32) -> I64 | None:
    """k-means of the contexts [n] on the selected columns, min(5, n // 10) clusters; None: too few."""
    clusters = min(MOST_CLUSTERS, len(matrix) // CONTEXTS_OF_A_CLUSTER)
    if not clusters:
        return None
    different = len(np.unique(matrix, axis=0))  # k-means makes no more clusters than there are
    kmeans = KMeans(min(clusters, different), n_init=STARTS, random_state=SEED)
    with threadpool_limits(1):
        labels: I64 = kmeans.fit(matrix).labels_.astype(np.int64)
    return labels


def _features(
    store: FeatureStore, site: str, text: str | None, ranking: str | None, *, selection: bool
) -> list[int]:
    if (text is not None) + (ranking is not None) + selection != 1:
        raise InputError(
            "give --features 1,2,3 or --ranking COLUMN:START:STOP or --selection, and only one of them"
        )
    if selection:
        table = store.scan_table(site, "attribution_selection")
        features: list[int] = table.select(pl.col("feature").unique().sort()).collect().to_series().to_list()
    else:
        option = "--features"
        if ranking is not None:
            text, option = ranking, "--ranking"
            if parse_ranks(text, option) is None:
                raise InputError(f"--ranking {text!r} is not COLUMN:START:STOP, such as sigma_over_mu:0:50")
        features = chosen_features(store, site, text or "", option)
    if len(features) > MOST_FEATURES:
        raise InputError(
            f"{len(features):,} features are more than a picture can show: {MOST_FEATURES:,} at most"
        )
    return features


def _contexts(store: FeatureStore, table: pl.DataFrame, numbers: str | None, where: Sequence[str]) -> I64:
    """Places in `table` that --contexts and --where leave, ascending."""
    kept = np.ones(table.height, np.bool_)
    if numbers is not None:
        last = int(table["context"][-1]) + 1
        kept &= table["context"].is_in(parse_numbers(numbers, "--contexts", last)).to_numpy()
    for text in where:
        kept &= table.select(label_filter(store, text).fill_null(value=False)).to_series().to_numpy()
    if not kept.any():
        require_values(store, where)
    return np.flatnonzero(kept)


def _report(store: FeatureStore, site: str, table: pl.DataFrame) -> None:
    matrix = matrix_of(table)
    say(f"[bold]heatmap[/] {site}: {len(matrix):,} contexts × {matrix.shape[1]:,} features")
    features = [int(name) for name in features_of(table)]
    names, rest = store.names(site, features), len(features) - LISTED
    listed = ", ".join(labelled(names, feature) for feature in features[:LISTED])
    say(f"  features: {escape(listed)}{f' and {rest:,} more' if rest > 0 else ''}")
    if not matrix.size:
        return
    for line in sparsity_of(matrix).lines():
        say(f"  {line}")
    say(f"  {frequency_summary((matrix != 0).mean(axis=0))}")
    for cluster, n in table.drop_nulls("cluster").group_by("cluster").len().sort("cluster").iter_rows():
        say(f"  C{cluster}: {n:,} contexts")


def _write(
    table: pl.DataFrame, site: str, pool: Pooling, out: Path, kind: str, *, clustered: bool
) -> list[Path]:
    pooled_by = f"{pool} over each context's counted rows"
    if pool == "last":
        pooled_by = "at each context's last counted row"
    draw = FIGURES if clustered else FIGURES | {"": draw_plain}
    written, buffer = [out.with_suffix(".parquet")], io.BytesIO()
    table.write_parquet(buffer)
    write_file(written[0], buffer.getvalue(), "--out")
    for ending, figure in draw.items():
        path = out.with_name(f"{out.stem}{ending}{out.suffix}")
        write_file(path, render(figure(table, site, pooled_by), kind), "--out")
        written.append(path)
    for path in written:
        say(f"  {escape(str(path))}")
    return written
