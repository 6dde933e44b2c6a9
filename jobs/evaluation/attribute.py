"""`latentlake attribute STORE`: which features make a model prefer one answer to the other, by label.

Each document is a prompt with two answers (`corpus.kind: prompts`). The gap is p(answer) - p(other) after
the prompt's last token, an answer being its first token; prompts whose answers begin alike are counted and
left out. `pipeline.evaluation.integrated_gradients` says how the gap, and its square (IG2), are shared out
among the latents, and what completeness is: the quadrature starts with 16 nodes, doubled up to 128 for
prompts whose attributions do not add up to 1 % (--tolerance).

Of every value of a label the k features with the largest |mean| are selected, by IG2 unless --by says
otherwise; the union over the values is the selection. A value's features are then ablated, one at a time, in
its prompts in which they are active: an effect holds when its interval over prompts leaves 0 out and it has
the sign of the attribution. --scores takes the selection from a table of another method, without running the
model; with --ablate its features are ablated too, in all prompts where the table names no label and value.

No layer below the SAE's hook is run again for a prompt (`pipeline.models.hooks.replay`): a node of a
quadrature and an ablation take a pass through the layers above it.

Tables: `attributions`, `attribution_prompts`, `attribution_selection`. Parts of a shard are tasks, and are
added up in shard order: equal bits for any number of workers. Each is saved as it ends, so a job that was
killed continues from there when it is run again with the same options on the same store, model and SAE.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import polars as pl
import typer
from rich.markup import escape
from rich.table import Table

from jobs.command.options import DeviceName, ModelPath, SaePath, TokenizerPath
from jobs.evaluation.external_scores import labels_of, read_scores, require_values
from jobs.terminal.console import console, say
from jobs.terminal.names import labelled
from jobs.terminal.progress import counting
from pipeline.plans.plan import environment
from pipeline.plans.reopen import use_in
from pipeline.statistics.evaluation.attribution import combine, finalize, select, with_effects
from pipeline.store import FeatureStore
from pipeline.store.reading.site_access import require_committed
from pipeline.store.records.parts import Parts
from pipeline.store.records.tables import require_writable
from pipeline.store.records.tokens import read_links
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.records import digest_of
from schemas.tables.attribution import ATTRIBUTION_PROMPTS

if TYPE_CHECKING:
    from pipeline.evaluation.attribution import Part, Work

CONTEXTS = 16
"""Prompts of a task."""
MEASURES = ("ig2", "ig")
SHORT = 20
"""Characters of a feature's name in a list of several."""
Function = Callable[["Part"], tuple[pl.DataFrame, ...]]
"""Frames of a part."""


def attribute(
    store: FeatureStore,
    site: str,
    tasks: Tasks | None = None,
    *,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", help="Label column; may be repeated. Default: all except the answers."),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Select by ig2 (attributions of the squared gap between answers) or ig (of the gap)."
        ),
    ] = "ig2",
    k: Annotated[
        int, typer.Option("-k", help="Number of features selected for each label value.", min=1)
    ] = 10,
    tolerance: Annotated[
        float, typer.Option(help="Share of the gap that may be missing from the attributions.", min=0)
    ] = 0.01,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Select by the scores in this table (.parquet or .csv; feature, score, label, value) "
            "instead."
        ),
    ] = None,
    ablate: Annotated[
        bool | None,
        typer.Option(
            "--ablate/--no-ablate", help="Ablate the selected features. Default: yes, except with --scores."
        ),
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(help="Label columns of the two answers. Default: those that the corpus names."),
    ] = None,
    model: ModelPath = None,
    sae: SaePath = None,
    tokenizer: TokenizerPath = None,
    device: DeviceName = "auto",
) -> pl.DataFrame:
    """Write the tables of a site; return `attribution_selection`.

    InputError where the lake holds no prompts with answers, where model, SAE or tokenizer are gone or
    changed, and for a table of scores that names features or values that are not there.
    """
    began, tasks = time.monotonic(), tasks or OneProcess()
    if by not in MEASURES:
        raise InputError(f"--by {by!r} is not one of {', '.join(MEASURES)}")
    require_writable(store.layout, site)
    columns = _answer_columns(store, answers)
    names = _label_columns(store, labels or (), columns, required=scores is None)
    opened = partial(
        _work, store, site, columns, tolerance, device=device, model=model, sae=sae, tokenizer=tokenizer
    )
    saved: list[Parts] = []
    if scores is None:
        work, parts = opened(names)
        saved.append(_saved_parts(store, work))
        selection = select(_attributed(store, site, work, parts, tasks, saved[-1]), by, k)
    else:
        selection = select(read_scores(scores, store.site(site).d_sae), "score", k)
    if ablate if ablate is not None else scores is None:
        named = labels_of(selection, names)
        if scores is None:
            work = replace(work, labels=named)
        else:
            work, parts = opened(named)
            require_values(store, parts, selection, named)
        chosen = selection.filter(pl.col("rank").is_not_null()).select("label", "value", "feature")
        saved.append(_saved_parts(store, work, chosen))
        from pipeline.evaluation.attribution import ablate_part

        # Each chosen feature, in the prompts of the values that it was selected for.
        function = partial(ablate_part, work, chosen)
        frames = _run(f"attribute {site}: ablation", function, 1, parts, tasks, saved[-1])
        sums = combine([sums_of_part for (sums_of_part,) in frames])
        selection = with_effects(selection, sums, squared=scores is None and by == "ig2")
    store.write_table(site, "attribution_selection", selection)
    # Only now: until the last table is written, a job that was killed goes on from these.
    for parts_of_run in saved:
        parts_of_run.remove()
    _report(store, site, selection, time.monotonic() - began)
    return selection


def _attributed(
    store: FeatureStore, site: str, work: Work, parts: list[Part], tasks: Tasks, saved: Parts
) -> pl.DataFrame:
    """Write `attributions` and `attribution_prompts`; the first."""
    from pipeline.evaluation.attribution import attribute_part

    what = f"attribute {site}: integrated gradients"
    frames = _run(what, partial(attribute_part, work), 2, parts, tasks, saved)
    prompts = pl.concat([pl.DataFrame(schema=ATTRIBUTION_PROMPTS), *(of_part for of_part, _ in frames)])
    # A part leaves prompts out whose answers begin alike, so what is missing was skipped.
    skipped = sum(part.stop - part.first for part in parts) - prompts.height
    if prompts.is_empty():
        raise InputError(
            f"site {site!r}: the two answers of all {skipped:,} prompts begin with the same token, so there "
            "is no gap to explain: give answers whose first tokens differ"
        )
    table = finalize(combine([sums for _, sums in frames]))
    store.write_table(site, "attribution_prompts", prompts)
    store.write_table(site, "attributions", table)
    gap, baseline, nodes = (prompts[name].to_numpy() for name in ("gap", "baseline", "nodes"))
    # Attributions of a prompt should add up to its gap, less the gap with no latent active.
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
        f"{lacking:,} prompts exceed the tolerance of {work.tolerance:.2g}"
    )
    return table


def _run(
    what: str, function: Function, frames: int, parts: list[Part], tasks: Tasks, saved: Parts
) -> list[Sequence[pl.DataFrame]]:
    """The frames of all parts, in order; those that were saved are not computed again."""
    done = {n: old for n, part in enumerate(parts) if (old := saved.read(part.name, frames)) is not None}
    rest = [part for n, part in enumerate(parts) if n not in done]
    if done:
        say(f"{what}: continues after {len(done):,} of {len(parts):,} parts from an earlier run")
    results: list[Sequence[pl.DataFrame]] = []
    with counting(what, sum(part.stop - part.first for part in rest), "prompts") as advance:
        fresh = tasks.map(function, rest)
        for n, part in enumerate(parts):
            # Results of tasks come in the order of `rest`, so the next fresh one is that of this part.
            results.append(done[n] if n in done else next(fresh))
            if n not in done:
                saved.write(part.name, results[n])
                advance(part.stop - part.first)
    return results


def _saved_parts(store: FeatureStore, work: Work, chosen: pl.DataFrame | None = None) -> Parts:
    """The parts saved by an earlier job with the same options; `chosen` features: of an ablation."""
    site = work.use.site.name
    # Everything that can change a result: other options find other parts, or none.
    about = {
        "what": None if chosen is None else chosen.rows(),
        "receipts": store.receipts_digest(site),
        "shards": [record.name for record in store.committed(site)],
        "plan": [work.use.plan.hash, work.use.plan.device, work.use.plan.threads],
        "of": [CONTEXTS, work.labels, work.answers, work.tolerance, work.lake.tokenizer_digest],
        "environment": environment(),
    }
    return Parts(store.layout.parts(site, "attribute", digest_of(about)[:32]))


def _work(
    store: FeatureStore,
    site: str,
    answers: tuple[str, str],
    tolerance: float,
    labels: tuple[str, ...],
    *,
    device: str,
    model: str | None,
    sae: str | None,
    tokenizer: str | None,
) -> tuple[Work, list[Part]]:
    """What all parts share, and the parts; InputError where it cannot be done."""
    from pipeline.evaluation.attribution import Part, Work

    if store.lake.contexts != "document":
        raise InputError(
            "documents of this store share contexts, so the end of a prompt is not that of a context: "
            "tokenize the prompts again with tokens.contexts: document"
        )
    if store.lake.separator_id is not None and store.lake.special_tokens != "exclude":
        raise InputError(
            "each prompt of this store ends with a counted EOS, after which there is no answer: tokenize "
            "the prompts again with tokens.separator: none"
        )
    use = use_in(store, site, device=device, model=model, sae=sae)
    work = Work(store.layout, store.lake, use, labels, answers, tokenizer or store.lake.tokenizer, tolerance)
    parts = [
        Part(record, first, min(first + CONTEXTS, record.contexts))
        for record in store.committed(site)
        for first in range(0, record.contexts, CONTEXTS)
    ]
    require_committed(store, site)
    return work, parts


def _answer_columns(store: FeatureStore, text: str | None) -> tuple[str, str]:
    """The columns of the two answers: those of --answers, or those that the corpus names."""
    if text:
        answers = tuple(text.split(","))
    else:
        recorded = {tuple(link.source.get("answers", ())) for link in read_links(store.layout)} - {()}
        if len(recorded) != 1:
            several = "different ones" if recorded else "none"
            raise InputError(
                "this command needs two columns of answers, but the corpus of this store has "
                f"{several}: give --answers FIRST,OTHER, two label columns"
            )
        answers = recorded.pop()
    _require_labels(store, "--answers", answers)
    if len(set(answers)) != 2:
        raise InputError(f"--answers {','.join(answers)!r} are not two columns: give two, as answer,other")
    return answers[0], answers[1]


def _label_columns(
    store: FeatureStore, labels: Sequence[str], answers: tuple[str, str], *, required: bool
) -> tuple[str, ...]:
    """The labels of --label, or all but the answers."""
    _require_labels(store, "--label", labels)
    if taken := [name for name in labels if name in answers]:
        raise InputError(f"--label {taken[0]!r} is a column of answers: name a label of the prompts")
    names = tuple(dict.fromkeys(labels)) or tuple(n for n in store.lake.label_columns if n not in answers)
    if not names and required:
        raise InputError(
            "the prompts have no label besides their answers, but attributions are means by label: tokenize "
            "them with corpus.label_columns"
        )
    return names


def _require_labels(store: FeatureStore, option: str, names: Sequence[str]) -> None:
    known = store.lake.label_columns
    for name in names:
        if name not in known:
            raise InputError(f"{option} {name!r}: the lake has no such label; it has {', '.join(known)}")


def _report(store: FeatureStore, site: str, selection: pl.DataFrame, seconds: float) -> None:
    """The map label -> features; those whose effect holds have a star."""
    union = selection["feature"].n_unique()
    ranked = selection.filter(pl.col("rank").is_not_null()).sort("label", "value", "rank")
    called = store.names(site, ranked["feature"].unique())
    table = Table(title=f"features of {site} by label value (* the effect holds under ablation)")
    for column in ("label", "value", "prompts", "features"):
        table.add_column(column, justify="right" if column == "prompts" else "left")
    for rows in ranked.partition_by("label", "value", maintain_order=True):
        starred = rows.select("feature", "holds").iter_rows()
        names = ", ".join(
            f"{feature}{'*' if holds else ''}{labelled(called, feature, SHORT).removeprefix(str(feature))}"
            for feature, holds in starred
        )
        label, value, prompts = rows.select("label", "value", "prompts").row(0)
        table.add_row(escape(label), escape(value), "" if prompts is None else f"{prompts:,}", escape(names))
    console.print(table)
    tested = ranked["holds"].drop_nulls()
    outcome = f", {int(tested.sum()):,} of {len(tested):,} that were ablated hold" if len(tested) else ""
    say(f"[bold]attribute[/] {site}: {union:,} features in the union{outcome} ({seconds:.1f} s)")
