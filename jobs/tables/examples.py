"""`latentlake examples STORE`: more examples than `stats` finds, in one pass over all activations.

To the kinds `top` and `quantile` of the table `examples` come `top_document`, the strongest row of each of
the documents in which a feature fires hardest, and `random`, rows of contexts in which it never fires; those
of `quantile` are put into their exact tenths, which `stats` can only estimate. A task
takes a range of features and reads its postings shard by shard, so memory does not grow with the store; every
range reads the token shards again. Ranges are concatenated: the same bits for any number of workers. It takes
about twice as long as `stats`: some 12 M activations a second and core at L0 28 and d_sae 4,608.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated

import numpy as np
import polars as pl
import typer

from jobs.terminal.console import say
from jobs.terminal.progress import track
from pipeline.statistics import partials_schema
from pipeline.statistics.examples.examples import TOP, Strongest
from pipeline.statistics.examples.nonfiring import NonFiring
from pipeline.statistics.examples.tenths import Tenths
from pipeline.statistics.features.samples import Samples
from pipeline.store import FeatureStore
from pipeline.store.derived.features import site_ranges
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.records.tokens import read_token_shard
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.layout import POSTINGS, Layout
from schemas.records import Lake
from schemas.values import I64, Postings, RowSelection, TokenShard

RANDOM = 10
"""Rows in which a feature does not fire that are drawn for it."""

_RANGE_BYTES = 1 << 22
"""Of an average shard's postings in one range: less does not pay for reading the token shards once more."""
_RANGE_FEATURES = 1 << 16
_SHARDS = 16
"""Samples in memory before they are merged."""


def examples(
    store: FeatureStore,
    site: str,
    tasks: Tasks | None = None,
    *,
    k: Annotated[int, typer.Option("-k", help="Number of documents per feature.", min=1, max=65535)] = TOP,
    random: Annotated[
        int, typer.Option(help="Number of contexts per feature in which it does not fire.", min=0, max=65535)
    ] = RANDOM,
) -> pl.DataFrame:
    """Write the table `examples` of a site with all four kinds (schema `EXAMPLES`); return it.

    Of `top_document` there are the `k` documents with the strongest activations, of `random` that many rows,
    fewer of a feature that fires in nearly every context, and none of one that never fires. Raises
    InputError where the table of `stats` is missing or stale.
    """
    began = time.monotonic()
    if store.has_table(site, "examples") and store.is_stale(site, "examples"):
        raise InputError(f"table 'examples' of site {site!r} is stale: run `latentlake stats` first")
    strongest = store.scan_table(site, "examples").filter(kind="top").collect()
    info, shards = store.site(site), store.shard_files(site)
    examples_of = partial(_range_examples, store.layout, store.lake, info.selection, shards, k, random)
    ranges = _ranges(store, site)
    frames = track(
        (tasks or OneProcess()).map(examples_of, ranges), f"examples {site}", len(ranges), "ranges"
    )
    table = pl.concat([strongest, *frames]).sort("feature", "kind", "interval", "rank")
    store.write_table(site, "examples", table)
    counts = {row[0]: row[1] for row in table.group_by("kind").len().iter_rows()}
    summary = (
        ", ".join(f"{counts[kind]:,} {kind}" for kind in sorted(counts)) or "none, because no feature fires"
    )
    say(f"[bold]examples[/] {site}: {summary} ({time.monotonic() - began:.1f} s)")
    return table


def _ranges(store: FeatureStore, site: str) -> list[range]:
    info = store.site(site)
    if "feature_major" not in info.layouts:  # a CSR is read whole, so by one task
        return [range(info.d_sae)]
    # whole blocks of features, for a part of one is read like all of it
    step = max(_RANGE_FEATURES // info.feature_block, 1) * info.feature_block
    return [
        range(first, min(first + step, part.stop))
        for part in site_ranges(store, site, POSTINGS, _RANGE_BYTES)
        for first in range(part.start, part.stop, step)
    ]


def _range_examples(
    layout: Layout,
    lake: Lake,
    selection: RowSelection,
    shards: Sequence[ShardFiles],
    k: int,
    random: int,
    features: range,
) -> pl.DataFrame:
    """Examples of kinds top_document, random and quantile of some features."""
    active = np.zeros(len(features), np.int64)  # contexts in which each feature fires
    for shard in shards:
        part = shard.read_partials(features, ["feature", "active_contexts"])
        active[part["feature"].to_numpy() - features.start] += part["active_contexts"].to_numpy()
    fired = np.flatnonzero(active)
    half = bool(shards) and shards[0].activation_dtype == "float16"
    state = pl.DataFrame({"feature": (fired + features.start).astype(np.uint32)})
    strongest = Strongest(state, np.float16 if half else np.float32, k, per_document=True)
    # contexts of the extracted shards are counted through, though others may lie between them
    edges = np.cumsum([0, *(shard.record.contexts for shard in shards)]).tolist()
    silent = NonFiring(fired + features.start, active[fired], edges[-1], random)
    tenths = Tenths(_samples(shards, features))
    for shard, (first, _) in zip(shards, pairwise(edges), strict=True):
        tokens = read_token_shard(layout, lake, shard.record, verify=False).restrict(
            selection, lake.context_size
        )
        silent.begin(tokens, first)
        contexts = tokens.context_of_row() - tokens.context_start
        for postings in shard.postings_of(features):
            _add_postings(tokens, contexts, postings, strongest, silent)
            rows = postings.rows.astype(np.uint64) + np.uint64(tokens.row_start)
            tenths.update(postings.features, np.diff(postings.offsets), postings.values, rows)
    return pl.concat([strongest.table(), silent.table(), tenths.table()])


def _samples(shards: Sequence[ShardFiles], features: range) -> pl.DataFrame:
    """The merged samples of some features: columns `feature`, `sample_rows`, `sample_values`."""
    columns = ["feature", *Samples.state]
    state = pl.DataFrame(schema={name: partials_schema()[name] for name in columns})
    for start in range(0, len(shards), _SHARDS):
        parts = [shard.read_partials(features, columns) for shard in shards[start : start + _SHARDS]]
        state = Samples().combine([state, *parts])
    return state


def _add_postings(
    tokens: TokenShard, contexts: I64, postings: Postings, strongest: Strongest, silent: NonFiring
) -> None:
    """Add some postings of a shard; `contexts` int64 [N] is each row's, counted from its first."""
    counts = np.diff(postings.offsets)
    strongest.update(
        postings.features,
        counts,
        postings.values,
        lambda: postings.rows + tokens.row_start,
        lambda shown: tokens.document[shown.view(np.int64) - tokens.row_start],
    )
    silent.strike(postings.features, counts, contexts[postings.rows])
