"""`latentlake importance STORE`: how much a reconstruction loses without each feature, class by class.

The classes are the values of a label column. Activations, x (layout dense) and labels are read a shard at a
time, once; no model is run and nothing is decoded twice (`pipeline.statistics.evaluation.importance`).
Memory: a shard's activations, x in blocks, and for each feature and class 32 bytes of sums (twice; for each
worker four times more) and some 100 of the table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import iadd
from typing import Annotated, Any, NamedTuple

import numpy as np
import polars as pl
import typer
from rich.markup import escape

from jobs.terminal.console import say
from jobs.terminal.progress import counting
from pipeline.statistics.evaluation.importance import (
    ClassSums,
    Importance,
    Penalty,
    Rows,
    class_sums,
    squared_norms,
)
from pipeline.statistics.evaluation.importance import importance as importance_of
from pipeline.store import FeatureStore
from pipeline.store.derived.profile import Tokens
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.reading.site_access import require_committed
from pipeline.store.records.site import read_site_weights
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.tables.importance import IMPORTANCE, IMPORTANCE_CLASSES
from schemas.values import F32, F64

MOST_CELLS = 1 << 24
"""Features times classes, at most: half a GB of sums."""
SHOWN = 10


class Piece(NamedTuple):
    """What a task reads."""

    files: ShardFiles
    x: Rows | None
    """None where the pass has no layout dense."""


@dataclass(frozen=True)
class SumsTask:
    """Which sums to compute; handed to every task."""

    layout: Layout
    pass_name: str
    site: str
    tokens: Tokens
    label: str
    values: tuple[str, ...]
    penalty: Penalty


def importance(
    store: FeatureStore,
    site: str,
    tasks: Tasks | None = None,
    *,
    label: Annotated[
        str | None,
        typer.Option(help="Label column whose values are the classes. Default: class, or the only one."),
    ] = None,
    rho: Annotated[
        float | None,
        typer.Option(help="Target mean activation of the penalty. Default: from the SAE's files."),
    ] = None,
    penalty: Annotated[
        float | None, typer.Option(help="Weight of the penalty; 0: none. Default: from the SAE's files.")
    ] = None,
) -> pl.DataFrame:
    """Write the tables `importance` and `importance_classes` of a site; return the first.

    Raises InputError where no shard is committed, the label column is not there or has too many values, or
    the SAE's decoder is not linear.
    """
    began, tasks = time.monotonic(), tasks or OneProcess()
    files = store.shard_files(site)
    require_committed(store, site)
    dense: Sequence[Rows | None] = [None] * len(files)
    if "dense" in store.site(site).layouts:
        dense = list(store.dense(site))
    pieces = [Piece(*pair) for pair in zip(files, dense, strict=True)]
    tokens = Tokens.of(store, site)
    weights, about = linear_weights(store, site)
    label = one_label(list(store.lake.label_columns), label)
    values, features = values_of(tokens, files, label, tasks), len(weights["W_dec"])
    if not values:
        raise InputError(f"no document has a value of label {label!r}: choose another with --label")
    if (len(values) + 1) * features > MOST_CELLS:
        raise InputError(
            f"label {label!r} has {len(values):,} values, too many for {features:,} features: choose another "
            "with --label"
        )
    trained_with = penalty_of(about, rho, penalty)
    pass_name = store.site(site).pass_name
    task = SumsTask(store.layout, pass_name, site, tokens, label, tuple(values), trained_with)
    with counting(f"importance {site}", len(pieces), "shards") as advance:

        def counted(sums: ClassSums) -> ClassSums:
            advance(1)
            return sums

        sums = reduce(iadd, (counted(part) for part in tasks.map(partial(shard_sums, task), pieces)))
    table, classes = tables_of(task, sums, weights["W_dec"], known_x=pieces[0].x is not None)
    store.write_table(site, "importance_classes", classes)
    store.write_table(site, "importance", table)
    _report(site, label, table, classes, time.monotonic() - began)
    return table


def linear_weights(store: FeatureStore, site: str) -> tuple[dict[str, F32], dict[str, Any]]:
    """W_dec and b_dec, and the SAE's metadata; InputError where x' is not activations @ W_dec + b_dec."""
    weights, about = store.site_weights(site, ("W_dec", "b_dec"))
    if not {"W_dec", "b_dec"} <= weights.keys():
        raise InputError(f"site {site!r} has no decoder: its features are generated, not learnt")
    if (other := nonlinear(about)) is not None:
        raise InputError(
            f"the SAE of site {site!r} has {other}: its reconstruction is not activations @ W_dec + b_dec, "
            "and importance is defined only for that"
        )
    return weights, about


def nonlinear(about: Mapping[str, Any]) -> str | None:
    """What of an SAE's metadata makes its reconstruction another than activations @ W_dec + b_dec."""
    if about.get("normalize_activations", "none") not in ("none", None, "expected_average_only_in"):
        return "normalize_activations"
    known = ("transcoder", "skip", "hook_head_index")
    return next((what for what in known if about.get(what) not in (None, False)), None)


def one_label(known: Sequence[str], requested: str | None) -> str:
    """Which of the label columns `known` has the classes as its values."""
    if requested in known:
        return str(requested)
    if requested is None and ("class" in known or len(known) == 1):
        return "class" if "class" in known else known[0]
    if not known:
        raise InputError(
            "the store has no label columns: classes are the values of a label column (corpus.label_columns)"
        )
    wrong = "" if requested is None else f", not {requested!r}"
    raise InputError(
        f"the store has the label columns {', '.join(known)}{wrong}: choose one with `latentlake importance "
        "--label COLUMN`"
    )


def penalty_of(about: dict[str, Any], rho: float | None, weight: float | None) -> Penalty:
    """The penalty that is given, or that the SAE was trained with, as far as its files say; else none."""
    known = about.get("extra") or {}
    rho = known.get("sparsity_rho", 0.1) if rho is None else rho
    weight = known.get("sparsity_weight", 0.0) if weight is None else weight
    if not (isinstance(rho, float | int) and 0 < rho < 1):
        raise InputError(f"--rho {rho}: the mean activation must lie between 0 and 1")
    if not (isinstance(weight, float | int) and 0 <= weight < np.inf):
        raise InputError(f"--penalty {weight}: give 0 or more")
    return Penalty(float(rho), float(weight))


def values_of(tokens: Tokens, files: Sequence[ShardFiles], label: str, tasks: Tasks) -> list[str]:
    """The different values of a label, numbers in their order."""
    values = set[str]()
    for shard_values in tasks.map(partial(_values, tokens, label), files):
        values |= shard_values
    # values are texts here, whatever the type of the column: numbers must not sort as texts
    numbers = tokens.lake.label_columns[label] in ("Int64", "Float64")
    if numbers or all(value.isdecimal() for value in values):
        return sorted(values, key=lambda value: (float(value), value))
    return sorted(values)


def _values(tokens: Tokens, label: str, files: ShardFiles) -> set[str]:
    return set(tokens.read_labels(files, [label])[label].drop_nulls())


def shard_sums(task: SumsTask, piece: Piece) -> ClassSums:
    """Sums of one shard: a class for each value, the last for rows whose document has none."""
    weights, _ = read_site_weights(task.layout, task.pass_name, task.site, ("W_dec", "b_dec"))
    tokens = task.tokens.read(piece.files)
    labels = task.tokens.read_labels(piece.files, [task.label])
    places = {value: place for place, value in enumerate(task.values)}
    other = len(places)
    codes = labels[task.label].replace_strict(places, default=other, return_dtype=pl.Int64)
    # a line of `labels` for each document, of which a shard has all that its rows are from, ascending
    of_document = codes.fill_null(other).to_numpy()
    of_row = of_document[np.searchsorted(labels["document"].to_numpy(), tokens.document)]
    # -1: a row that holds no activations is of no class
    return class_sums(
        piece.files.read_csr(),
        piece.x,
        np.where(tokens.stored, of_row, -1),
        other + 1,
        weights["W_dec"],
        weights["b_dec"],
        task.penalty,
    )


def tables_of(
    task: SumsTask, sums: ClassSums, w_dec: F32, *, known_x: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables IMPORTANCE and IMPORTANCE_CLASSES, all rows after the classes."""
    classes = len(task.values)
    every = sums.together(range(classes + 1))
    # rows without a value, the last class, are not shown: all rows stand in their place
    parts = (every if place == classes else sums.together([place]) for place in range(classes + 1))
    norms = squared_norms(w_dec)
    names: list[str | None] = [*task.values, None]
    tables, class_rows = [pl.DataFrame(schema=IMPORTANCE)], [pl.DataFrame(schema=IMPORTANCE_CLASSES)]
    for name, part in zip(names, parts, strict=True):
        result = importance_of(part, norms, w_dec.shape[1], task.penalty)
        result = result.of_the_batch() if name is None else result
        tables.append(_table(task.label, name, part, result))
        class_rows.append(_class(task, name, part, result, known_x=known_x))
    return pl.concat(tables), pl.concat(class_rows)


def _table(label: str, value: str | None, sums: ClassSums, result: Importance) -> pl.DataFrame:
    share, rows = result.importance[0], int(sums.rows[0])
    # of shares the order would turn round where the changes add up to less than 0
    order = np.argsort(-result.change[0], kind="stable")
    rank = np.empty(len(share), np.uint32)
    rank[order] = np.arange(len(share))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.total[0] / rows
    columns = {
        "label": np.full(len(share), label),
        "value": pl.Series([value] * len(share), dtype=pl.String),
        "feature": np.arange(len(share)),
        "rank": rank,
        "rows": np.full(len(share), rows),
        "n_active": sums.n_active[0],
        "mean_all": mean,
        "loss_change": result.change[0],
        "importance": share,
        "literal_importance": result.literal_importance[0],
    }
    frame = pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))
    return frame.select(pl.col(name).cast(dtype) for name, dtype in IMPORTANCE.items())


def _class(
    task: SumsTask, value: str | None, sums: ClassSums, result: Importance, *, known_x: bool
) -> pl.DataFrame:
    row = {
        "label": task.label,
        "value": value,
        "rows": int(sums.rows[0]),
        "mean_squared_error": float(result.error[0]),
        "loss": float(result.loss[0]),
        "literal_loss": float(result.literal_loss[0]),
        "loss_change": float(result.change[0].sum()),
        "literal_loss_change": float(result.literal_change[0].sum()),
        "rho": task.penalty.rho,
        "penalty_weight": task.penalty.weight,
        "against": "x" if known_x else "reconstruction",
    }
    return pl.DataFrame([row], schema=IMPORTANCE_CLASSES).with_columns(pl.col(pl.Float64).fill_nan(None))


def top_features(table: pl.DataFrame, k: int) -> dict[str | None, list[int]]:
    """The `k` most important features of each class, the first first; null stands for all rows."""
    features: dict[str | None, list[int]] = {}
    best = table.filter(pl.col("rank") < k).drop_nulls("importance").sort("rank", maintain_order=True)
    for value in table["value"].unique(maintain_order=True):
        features[value] = best.filter(pl.col("value").eq_missing(value))["feature"].to_list()
    return features


def mean_of(table: pl.DataFrame, value: str | None) -> F64:
    """Mean activations [F] over the rows of a class, null: all."""
    return table.filter(pl.col("value").eq_missing(value)).sort("feature")["mean_all"].to_numpy()


def _report(site: str, label: str, table: pl.DataFrame, classes: pl.DataFrame, seconds: float) -> None:
    say(
        f"[bold]importance[/] {site}: {table['feature'].n_unique():,} features × {classes.height - 1:,} "
        f"values of {escape(label)}, {classes['rows'][-1]:,} rows ({seconds:.1f} s)"
    )
    if classes["against"][0] != "x":
        say(
            "[yellow]note[/]: the store has no x (store.layouts without dense), so the SAE's own "
            "reconstruction replaces it: a feature that reconstructs x badly looks as if it did so well"
        )
    for value, best in top_features(table, SHOWN).items():
        name = "all rows" if value is None else f"{escape(label)} {escape(value)}"
        say(f"  {name}: {' '.join(map(str, best))}")
