"""`latentlake profile STORE`: intervals of frequencies, what features fire on, label differences, L0.

Tables: `profile`, `labels`, `label_trends`, `label_values` (by ranges of features,
`pipeline.store.derived.profile`) and `l0_thresholds` (by shards). Where the site's rows are tokens, also
`token_features` and `token_counts` (`pipeline.store.derived.token_features`).
"""

from __future__ import annotations

import time
from typing import Annotated

import polars as pl
import typer
from rich.markup import escape

from jobs.terminal.console import say
from jobs.terminal.progress import counting
from pipeline.statistics.documents.comparison import SUPPORT
from pipeline.store import FeatureStore
from pipeline.store.derived.profile import l0_thresholds, profile_tables
from pipeline.store.derived.token_features import TokenPairs
from pipeline.store.objects.local import local_scratch
from pipeline.store.reading.site_access import require_committed
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.sentences import several
from schemas.tables.tables import TOKEN_FEATURES

THRESHOLDS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
LEVEL = 0.05
LEAST_ROWS = 5
"""Of a pair of a token and a feature: with fewer, neither recall nor precision says much."""


def profile(
    store: FeatureStore,
    site: str,
    tasks: Tasks | None = None,
    *,
    thresholds: Annotated[
        list[float] | None,
        typer.Option(
            "--threshold", help="Count features with |activation| above this in each row; may be repeated."
        ),
    ] = None,
    values: Annotated[
        int | None,
        typer.Option(
            help="Number of label values to compare, those with the most rows. Default: 256.", min=2
        ),
    ] = None,
    least: Annotated[
        int,
        typer.Option(
            "--least-rows",
            help="List a token and a feature if the feature fires in at least so many rows of the token.",
            min=1,
        ),
    ] = LEAST_ROWS,
) -> pl.DataFrame:
    """Write the tables of a site that the head of this file names; return `profile`.

    Their columns are those of `schemas.tables.tables`. `values`: how many values of a label column are
    compared, those of most rows (None: 256, fewer for a wide SAE); `least`: that of `token_counts`. Raises
    InputError when no shard is committed, or a threshold is negative or no number.
    """
    began, thresholds = time.monotonic(), thresholds or list(THRESHOLDS)
    if wrong := [threshold for threshold in thresholds if not threshold >= 0]:
        raise InputError(f"--threshold {wrong[0]} is not a threshold of |activation|: give 0 or more")
    require_committed(store, site)
    tasks = tasks or OneProcess()
    has_tokens = store.reads_tokens(site)
    with local_scratch("latentlake-profile-") as folder:
        pairs = TokenPairs(folder, least) if has_tokens else None
        with counting(f"profile {site}", store.site(site).d_sae, "features") as advance:
            made = profile_tables(store, site, tasks, advance, values, pairs)
        if pairs is not None:
            store.write_table_parts(site, "token_features", TOKEN_FEATURES, pairs.features())
            made["token_counts"] = pairs.counts()
    with counting(f"l0_thresholds {site}", len(store.receipts(site)), "shards") as advance:
        made["l0_thresholds"] = l0_thresholds(store, site, sorted(set(thresholds)), tasks, advance)
    for name, frame in made.items():
        store.write_table(site, name, frame)
    say(f"[bold]profile[/] {site}: {_summary(made, on_tokens=has_tokens)} ({time.monotonic() - began:.1f} s)")
    for line in _left_out(store, made):
        say(f"[yellow]note[/]: {line}")
    return made["profile"]


def _summary(made: dict[str, pl.DataFrame], *, on_tokens: bool) -> str:
    """The summary: how wide intervals are, what a feature that never fired may be, how many differ.

    `on_tokens`: a row is that of a token, and not of an image, a vector or a whole context.
    """
    table, labels = made["profile"], made["labels"]
    fired = table.filter(pl.col("top_token").is_not_null())
    summary = f"{fired.height:,} of {table.height:,} features fired"
    if (dead := table["dead_upper"].drop_nulls()).len():
        rows = table["dead_upper_rows"].drop_nulls()[0]
        summary += (
            f"; the frequency of the others is below {dead[0]:.1e} by the rule of three over documents "
            f"(over rows it would be {rows:.1e}, but rows of a document are not independent)"
        )
    if on_tokens:
        single = fired.filter(pl.col("top_token_share") >= 0.9).height
        summary += f"; {single:,} fire at least 90 % of the time on one token"
    tested = labels.drop_nulls("p")
    for (name,), group in tested.group_by("label", maintain_order=True):
        different = group.filter(pl.col("q") <= LEVEL)
        summary += f"; {different['feature'].n_unique():,} differ by {escape(str(name))} (q {LEVEL})"
    for (name,), group in made["label_trends"].drop_nulls("p").group_by("label", maintain_order=True):
        clear = group.filter(pl.col("q") <= LEVEL)
        rising = clear.filter(pl.col("slope") > 0).height
        summary += (
            f"; {rising:,} rise and {clear.height - rising:,} fall with {escape(str(name))} (q {LEVEL})"
        )
    return summary


def _left_out(store: FeatureStore, made: dict[str, pl.DataFrame]) -> list[str]:
    """Label columns, and values, that were not compared."""
    values, labels, trends = made["label_values"], made["labels"], made["label_trends"]
    notes = [
        f"label {escape(name)} has too many values to compare, or no documents"
        for name in store.lake.label_columns
        if name not in values["label"]
    ]
    untested = values.filter(~pl.col("label").is_in(labels.drop_nulls("p")["label"].unique().implode()))
    for (name,), group in untested.group_by("label", maintain_order=True):
        total = int(group["documents"].sum())
        with_value = group.filter(pl.col("value").is_not_null())["documents"]
        # the smaller of the documents with a value and of the rest, for the value where it is largest
        most = max((min(n, total - n) for n in with_value), default=0)
        notes.append(
            f"no value of label {escape(str(name))} has enough of the {several(total, 'document')} for a "
            "test: a feature is compared between the documents with a value and all others only if by chance "
            f"alone it would fire in {SUPPORT} of the smaller set, which here has at most {most:,}: "
            "use more documents, or fewer values"
        )
    for (name,), group in trends.group_by("label", maintain_order=True):
        if group["p"].null_count() == group.height:
            notes.append(
                "no feature fires in enough documents to test its trend over label " + escape(str(name))
            )
    rest = values.filter(pl.col("value").is_not_null() & ~pl.col("compared"))
    for (name,), group in rest.group_by("label", maintain_order=True):
        notes.append(
            f"{group.height:,} values of label {escape(str(name))}, those with the fewest rows, are not "
            "compared (--values)"
        )
    if "token_counts" in made and (left_out := made["token_counts"]["left_out"].sum()):
        counts = made["token_counts"]
        notes.append(
            f"token_features lists {counts['features'].sum():,} pairs of a token and a feature; "
            f"{left_out:,} are left out, whose feature fires in fewer than "
            f"{several(counts['least'][0], 'row')} of the token (--least-rows)"
        )
    return notes
