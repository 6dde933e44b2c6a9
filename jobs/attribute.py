"""`latentlake attribute STORE`: which features make a model prefer one answer to the other, by label.

Each document is a prompt with two answers (`corpus.kind: prompts`). The gap is p(answer) - p(other) behind
the prompt's last token, an answer being its first token; prompts whose answers begin alike are counted and
left out. `pipeline.integrated_gradients` says how the gap, and its square (IG2), are shared out among the
latents, and what completeness is: the quadrature starts with 16 nodes, doubled up to 128 for prompts
whose attributions do not add up to 1 % (--tolerance).

Of every value of a label the k features with the largest |mean| are selected, by IG2 if nothing else is
asked for; the union over the values is the selection. A value's features are then ablated, one at a time, in
its prompts in which they are active: an effect holds when its interval over prompts leaves 0 out and it has
the sign of the attribution. --scores takes the selection from a table of another method, without running the
model; with --ablate its features are ablated too.

Tables: `attributions`, `attribution_prompts`, `attribution_selection`. Parts of a shard are tasks, and are
added up in shard order: equal bits for any number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import polars as pl
from rich.markup import escape
from rich.table import Table

from jobs.console import console, say
from jobs.progress import counting
from pipeline.executors.tasks import OneProcess, Tasks
from pipeline.planned import use_in
from pipeline.statistics.attribution import (
    ATTRIBUTION_PROMPTS,
    SUMS,
    combine,
    finalize,
    select,
    with_effects,
)
from pipeline.store import FeatureStore
from pipeline.store.tokens import read_document_labels, read_links
from schemas.errors import InputError
from schemas.tables import Schema

if TYPE_CHECKING:
    from pipeline.attribution import Part, Work

CONTEXTS = 16
"""Prompts of a task."""
MEASURES = ("ig2", "ig")
SCORES: Schema = {"label": pl.String(), "value": pl.String(), "feature": pl.UInt32(), "score": pl.Float64()}
EXTERNAL = ("scores", "all")
"""Label and value of an external table that has none."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked:
    """The command's options, see `jobs.cli_tables.attribute`; `ablate` None: yes, but not with `scores`."""

    device: str = "cpu"
    labels: tuple[str, ...] = ()
    by: str = "ig2"
    k: int = 10
    tolerance: float = 0.01
    scores: Path | None = None
    ablate: bool | None = None
    answers: tuple[str, ...] = ()
    model: str | None = None
    sae: str | None = None
    tokenizer: str | None = None


def attribute(
    store: FeatureStore, site: str, asked: Asked | None = None, tasks: Tasks | None = None
) -> pl.DataFrame:
    """Write the tables of a site; return `attribution_selection`.

    InputError where the lake holds no prompts with answers, where model, SAE or tokenizer are gone or
    changed, and for a table of scores that names features or values that are not there.
    """
    began, asked, tasks = time.monotonic(), asked or Asked(), tasks or OneProcess()
    if asked.by not in MEASURES:
        raise InputError(f"--by {asked.by!r} is none of {', '.join(MEASURES)}")
    labels, answers = _columns(store, asked)
    if asked.scores is None:
        work, parts = _work(store, site, asked, labels, answers)
        selection = select(_attributed(store, site, work, parts, tasks), asked.by, asked.k)
    else:
        selection = select(read_scores(asked.scores, store.site(site).d_sae), "score", asked.k)
    if asked.ablate if asked.ablate is not None else asked.scores is None:
        named = _labels_of(selection, labels)
        if asked.scores is None:
            work = replace(work, labels=named)
        else:
            work, parts = _work(store, site, asked, named, answers)
            _require_values(store, parts, selection)
        squared = asked.scores is None and asked.by == "ig2"
        selection = _ablated(site, work, parts, selection, tasks, squared=squared)
    store.write_table(site, "attribution_selection", selection)
    _tell(site, selection, time.monotonic() - began)
    return selection


def _attributed(store: FeatureStore, site: str, work: Work, parts: list[Part], tasks: Tasks) -> pl.DataFrame:
    """Write `attributions` and `attribution_prompts`; the first."""
    from pipeline.attribution import attribute_part

    found = _run(f"attribute {site}: integrated gradients", partial(attribute_part, work), parts, tasks)
    prompts = pl.concat([pl.DataFrame(schema=ATTRIBUTION_PROMPTS), *(each.prompts for each in found)])
    skipped = sum(each.skipped for each in found)
    if prompts.is_empty():
        raise InputError(
            f"site {site!r}: the two answers of all {skipped:,} prompts begin with the same token, so there "
            "is no gap to explain: give answers that differ from their first token on"
        )
    table = finalize(combine([each.sums for each in found]))
    store.write_table(site, "attribution_prompts", prompts)
    store.write_table(site, "attributions", table)
    _tell_prompts(site, prompts, skipped, work.tolerance)
    return table


def _ablated(
    site: str, work: Work, parts: list[Part], selection: pl.DataFrame, tasks: Tasks, *, squared: bool
) -> pl.DataFrame:
    """The selection, each of its features ablated in the prompts of the values that it was selected for."""
    from pipeline.attribution import ablate_part

    chosen = selection.filter(pl.col("rank").is_not_null()).select("label", "value", "feature")
    sums = _run(f"attribute {site}: ablation", partial(ablate_part, work, chosen), parts, tasks)
    return with_effects(selection, combine([pl.DataFrame(schema=SUMS), *sums]), squared=squared)


def _run(what: str, function: Callable[[Part], Result], parts: list[Part], tasks: Tasks) -> list[Result]:
    """Results of all parts, in order."""
    found = []
    with counting(what, sum(part.stop - part.first for part in parts), "prompts") as advance:
        for part, result in zip(parts, tasks.map(function, parts), strict=True):
            found.append(result)
            advance(part.stop - part.first)
    return found


def _work(
    store: FeatureStore, site: str, asked: Asked, labels: tuple[str, ...], answers: tuple[str, str]
) -> tuple[Work, list[Part]]:
    """What all parts share, and the parts; InputError where it can not be done."""
    from pipeline.attribution import Part, Work

    if store.lake.contexts != "document":
        raise InputError(
            "documents of this store share contexts, so the end of a prompt is not that of a context: "
            "tokenize the prompts anew with tokens.contexts: document"
        )
    if store.lake.separator_id is not None and store.lake.special_tokens != "exclude":
        raise InputError(
            "each prompt of this store ends with a counted EOS, behind which no answer stands: tokenize the "
            "prompts anew with tokens.separator: none"
        )
    use = use_in(store, site, device=asked.device, model=asked.model, sae=asked.sae)
    tokenizer = asked.tokenizer or store.lake.tokenizer
    work = Work(store.layout, store.lake, use, labels, answers, tokenizer, asked.tolerance)
    parts = [
        Part(record, first, min(first + CONTEXTS, record.contexts))
        for record in store.committed(site)
        for first in range(0, record.contexts, CONTEXTS)
    ]
    if not parts:
        raise InputError(f"site {site!r} has no committed shard: run `latentlake extract` first")
    return work, parts


def _columns(store: FeatureStore, asked: Asked) -> tuple[tuple[str, ...], tuple[str, str]]:
    """The labels asked for (default: all but the answers), and the columns of the answers."""
    known = store.lake.label_columns
    answers = asked.answers or _answers_of(store)
    for option, names in (("--answers", answers), ("--label", asked.labels)):
        for name in names:
            if name not in known:
                raise InputError(f"{option} {name!r}: the lake has no such label; it has {', '.join(known)}")
    if len(set(answers)) != 2:
        raise InputError(f"--answers {','.join(answers)!r} are not two columns: give two, as answer,other")
    labels = asked.labels or tuple(name for name in known if name not in answers)
    if not labels:
        raise InputError(
            "the prompts have no label beside their answers, and attributions are means by label: tokenize "
            "them with corpus.label_columns"
        )
    return labels, (answers[0], answers[1])


def _answers_of(store: FeatureStore) -> tuple[str, ...]:
    """The columns of the answers, as the links of the corpus chain tell."""
    found = {tuple(link.source.get("answers", ())) for link in read_links(store.layout)} - {()}
    if len(found) != 1:
        several = "different ones" if found else "none"
        raise InputError(
            f"the corpus names two columns of answers for its prompts, but this store's has {several}: give "
            "--answers FIRST,OTHER, two label columns"
        )
    return found.pop()


def read_scores(path: Path, d_sae: int) -> pl.DataFrame:
    """An external table of scores: `feature`, `score`, and perhaps `label` and `value`; parquet or csv.

    Columns of SCORES, and `prompts` and `active`, which are not known. InputError for another table.
    """
    if not path.is_file() or path.suffix not in (".parquet", ".csv"):
        raise InputError(f"--scores {str(path)!r} is no .parquet or .csv file")
    try:
        frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"--scores {path} can not be read: {' '.join(str(error).split())}") from None
    if missing := {"feature", "score"} - set(frame.columns):
        raise InputError(f"--scores {path} has no column {min(missing)!r}; it has {', '.join(frame.columns)}")
    for name, default in zip(("label", "value"), EXTERNAL, strict=True):
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(default).alias(name))
    try:
        found = frame.select(pl.col(name).cast(dtype) for name, dtype in SCORES.items())
        if (found["feature"].cast(pl.Float64) != frame["feature"].cast(pl.Float64)).any():
            raise pl.exceptions.InvalidOperationError
    except pl.exceptions.PolarsError:
        raise InputError(f"--scores {path}: features are whole numbers, scores numbers") from None
    if found["feature"].null_count() or (found["feature"] >= d_sae).any():
        raise InputError(f"--scores {path} has a feature that is not there: there are 0 to {d_sae - 1:,}")
    if found.select("label", "value", "feature").is_duplicated().any():
        raise InputError(f"--scores {path} has a feature of a value twice: give each one score")
    unknown = pl.lit(None, pl.Int64)
    return found.with_columns(score=pl.col("score").fill_nan(None), prompts=unknown, active=unknown)


def _labels_of(selection: pl.DataFrame, known: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of a selection; InputError where the lake has one of them not."""
    names = selection["label"].unique(maintain_order=True).to_list()
    if missing := [name for name in names if name not in known]:
        raise InputError(
            f"--ablate: the scores are of label {missing[0]!r}, which the lake has not; it has "
            f"{', '.join(known)}"
        )
    return tuple(names)


def _require_values(store: FeatureStore, parts: list[Part], selection: pl.DataFrame) -> None:
    """InputError where external scores are of a value that no prompt has."""
    names = selection["label"].unique(maintain_order=True).to_list()
    records = {part.record.name: part.record for part in parts}.values()
    tables = [read_document_labels(store.layout, record, names) for record in records]
    for name in names:
        known = set(pl.concat(table[name] for table in tables))
        for value in selection.filter(pl.col("label") == name)["value"].unique(maintain_order=True):
            if value not in known:
                raise InputError(f"--scores: no prompt has the value {value!r} of label {name!r}")


def _tell_prompts(site: str, prompts: pl.DataFrame, skipped: int, tolerance: float) -> None:
    gap, baseline, nodes = (prompts[name].to_numpy() for name in ("gap", "baseline", "nodes"))
    error = np.abs(prompts["ig_sum"].to_numpy() - (gap - baseline)).max()
    lacking = prompts.height - int(prompts["complete"].sum())
    say(
        f"[bold]attribute[/] {site}: {prompts.height:,} prompts, mean |gap| {np.abs(gap).mean():.4g}, with "
        f"no latent active {np.abs(baseline).mean():.4g}"
    )
    if skipped:
        say(f"  left out: {skipped:,} prompts whose answers begin with the same token")
    say(
        f"  completeness: largest error {error:.2g} of a gap, {nodes.min()} to {nodes.max()} nodes; "
        f"{lacking:,} prompts beyond the tolerance of {tolerance:.2g}"
    )


def _tell(site: str, selection: pl.DataFrame, seconds: float) -> None:
    """The map label -> features; those whose effect holds have a star."""
    union = selection["feature"].n_unique()
    ranked = selection.filter(pl.col("rank").is_not_null()).sort("label", "value", "rank")
    table = Table(title=f"features of {site} by label value (* the effect holds under ablation)")
    for column in ("label", "value", "prompts", "features"):
        table.add_column(column, justify="right" if column == "prompts" else "left")
    for rows in ranked.partition_by("label", "value", maintain_order=True):
        starred = rows.select("feature", "holds").iter_rows()
        names = " ".join(f"{feature}{'*' if holds else ''}" for feature, holds in starred)
        label, value, prompts = rows.select("label", "value", "prompts").row(0)
        table.add_row(escape(label), escape(value), "" if prompts is None else f"{prompts:,}", names)
    console.print(table)
    tested = ranked["holds"].drop_nulls()
    told = f", {int(tested.sum()):,} of {len(tested):,} that were ablated hold" if len(tested) else ""
    say(f"[bold]attribute[/] {site}: {union:,} features in the union{told} ({seconds:.1f} s)")


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["attribute", *sys.argv[1:]])
