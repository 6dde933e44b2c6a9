"""`latentlake fidelity STORE`: what the model loses when x is replaced by an SAE's reconstruction.

Of the rows that a site stores, and of the next-token predictions made at them, `pipeline.evaluation.fidelity`
measures the loss clean, and with those rows replaced by the reconstruction, by zeros and by their mean;
KL of the clean distribution from the patched one; and how well x (of a transcoder: what it stands for) is
reconstructed. The recovered share is (zero - patched) / (zero - clean), and the same with the mean's loss.
Explained variance is 1 - SSE / SST about the mean over all measured rows, in float64, never a mean of
batches' values.

Two passes over the same tokens: the mean of the target, which the second pass puts in, then the losses (a
forward up to the hook, then four through the whole model). What a shard gives depends on plan, tokens, device
and mean, not on workers, and is kept in the tables `fidelity_means` and `fidelity_shards`: running the
command again after a kill measures only what is missing. Other tokens (an append, another sample) have
another mean: then only the first pass is kept. Sums are float64, added in shard order. The intervals are
those of ratios of sums over documents (`pipeline.statistics.documents.ratios`), of documents that are drawn,
with the mean of the target taken as given: a sample of tokens widens them by itself.

Without --tokens all a sample of batches, evenly spaced over the store's, is run: the intervals show whether
that is enough. The model runs in this process with all its threads; --workers and --address share shards out.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.table import Table

from jobs.command.options import DeviceName, ModelPath, SaePath
from jobs.terminal.console import console, say
from jobs.terminal.progress import counting
from pipeline.plans.reopen import PlannedUse, use_in
from pipeline.statistics.evaluation.fidelity import FIDELITY_SHARDS, reasons, row_of, summary
from pipeline.store import FeatureStore
from pipeline.store.reading.site_access import require_committed
from pipeline.store.records.tables import has_table, require_writable, scan_table
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.records import ShardRecord, digest_of
from schemas.sentences import several
from schemas.tables.tables import Schema

if TYPE_CHECKING:
    from pipeline.evaluation.fidelity import Part, Work

TOKENS = 20_000
"""Tokens run by default."""
SAVE_S = 10.0
"""Seconds after which what has been measured is written down."""

FIDELITY_MEANS: Schema = {
    "shard": pl.String(),
    "made_from": pl.String(),
    "rows": pl.Int64(),
    "total": pl.List(pl.Float64()),
}
"""Measured rows of (a sample of) a shard, and the sum of the target over them."""


def fidelity(
    store: FeatureStore,
    site: str,
    tasks: Tasks | None = None,
    *,
    tokens: Annotated[str, typer.Option(help="Tokens to run, or 'all'.")] = str(TOKENS),
    shards: Annotated[
        list[str] | None, typer.Option("--shard", help="Only this shard; may be repeated.")
    ] = None,
    model: ModelPath = None,
    sae: SaePath = None,
    device: DeviceName = "auto",
) -> pl.DataFrame:
    """Write the tables `fidelity`, `fidelity_shards` and `fidelity_means` of a site; return the first.

    Raises InputError where the model gives no losses, or its files or the SAE's are gone or changed.
    """
    from pipeline.evaluation.fidelity import measure, total_of

    if tokens != "all" and not (tokens.isdecimal() and int(tokens)):
        raise InputError(f"--tokens {tokens}: give a whole number from 1, or all")
    began, tasks = time.monotonic(), tasks or OneProcess()
    require_writable(store.layout, site)
    if store.lake.inputs is not None:
        raise InputError("the lake holds vectors, not tokens: a next-token loss can be measured only on text")
    work = _work(store, use_in(store, site, device=device, model=model, sae=sae))
    n_tokens = None if tokens == "all" else int(tokens)
    parts = choose(_shards(store, site, shards or ()), work.step, n_tokens)
    keys = [_key(store, site, work, part) for part in parts]
    means = _SavedRows(
        store, site, "fidelity_means", FIDELITY_MEANS, lambda t: {"rows": t.rows, "total": t.total.tolist()}
    )
    totals = [row["total"] for row in means.complete(parts, keys, work, partial(total_of, work), tasks)]
    rows = sum(means.rows[key]["rows"] for key in keys)
    if not rows:
        raise InputError(f"site {site!r}: none of the chosen tokens has a stored row: give more --tokens")
    mean = sum((np.array(total) for total in totals), np.zeros(len(totals[0]))) / rows
    # The mean is put in for x: losses that were measured with another mean do not count.
    digest = hashlib.sha256(mean.tobytes()).hexdigest()
    keys = [digest_of([key, digest]) for key in keys]
    shard_rows = _SavedRows(store, site, "fidelity_shards", FIDELITY_SHARDS, row_of)
    results = shard_rows.complete(parts, keys, work, partial(measure, work, mean), tasks)
    table = summary(pl.DataFrame(results, schema=FIDELITY_SHARDS), len(mean))
    store.write_table(site, "fidelity", table)
    _report(site, table, len(parts), time.monotonic() - began)
    return table


def _work(store: FeatureStore, use: PlannedUse) -> Work:
    """What all shards share; InputError where it cannot be done."""
    from pipeline.evaluation.fidelity import Work

    if use.site.pooling != "none":
        raise InputError(
            f"site {use.site.name!r} reads one vector of each context ({use.site.selection}): its "
            "reconstruction cannot replace x at single tokens, so fidelity needs a site that reads every row"
        )
    return Work(store.layout, store.lake, use, use.plan.batch_contexts)


def _shards(store: FeatureStore, site: str, names: Sequence[str]) -> list[ShardRecord]:
    """The committed shards, or those of them named, in shard order."""
    committed = store.committed(site)
    require_committed(store, site)
    if unknown := set(names) - {record.name for record in committed}:
        raise InputError(f"site {site!r} has no committed shard {min(unknown)!r}: see `latentlake status`")
    return [record for record in committed if not names or record.name in names]


def choose(records: Sequence[ShardRecord], step: int, tokens: int | None) -> list[Part]:
    """About so many tokens in groups of `step` contexts, evenly spaced over all there are; None: all.

    The shards that they lie in, in order, each with its groups.
    """
    from pipeline.evaluation.fidelity import Part

    rows, sizes = sum(record.rows for record in records), [-(-record.contexts // step) for record in records]
    total = sum(sizes)
    if tokens is None or tokens >= rows:
        return [Part(record, None) for record in records]
    # So many of all groups as tokens of all rows, rounded up; group i of them stands at i / wanted of all.
    wanted = -(-tokens * total // rows)
    groups: dict[int, list[int]] = defaultdict(list)
    # The shard of a group is the last one whose first group is at or before it.
    firsts = np.cumsum([0, *sizes])
    for place in (i * total // wanted for i in range(wanted)):
        shard = int(np.searchsorted(firsts, place, side="right")) - 1
        groups[shard].append(place - int(firsts[shard]))
    return [Part(records[shard], tuple(chosen)) for shard, chosen in groups.items()]


def _key(store: FeatureStore, site: str, work: Work, part: Part) -> str:
    """What decides the numbers of a part: the plan here, the tokens, and which of them are run."""
    receipt = store.receipts(site)[part.record.name]
    groups = None if part.groups is None else list(part.groups)
    return digest_of([receipt.plan_hash, work.use.plan.hash, receipt.tokens_sha256, work.step, groups])


class _SavedRows:
    """A table with a row for each part measured; rows of an earlier run with the same key are reused."""

    def __init__(
        self,
        store: FeatureStore,
        site: str,
        name: str,
        schema: Schema,
        to_row: Callable[[Any], dict[str, Any]],
    ) -> None:
        self._store, self._site, self._name, self._schema, self._to_row = store, site, name, schema, to_row
        self.rows: dict[str, dict[str, Any]] = {}
        if has_table(store.layout, site, name):
            frame = scan_table(store.layout, site, name).collect()
            # A table of another version is measured anew.
            if frame.schema == pl.Schema(schema):
                self.rows = {row["made_from"]: row for row in frame.iter_rows(named=True)}

    def complete(
        self,
        parts: Sequence[Part],
        keys: Sequence[str],
        work: Work,
        measured: Callable[[Part], Any],
        tasks: Tasks,
    ) -> list[dict[str, Any]]:
        """The rows of all parts, in order; what is missing is measured, and written down on the way."""
        self.rows = {key: self.rows[key] for key in keys if key in self.rows}
        # Rows of other keys are forgotten: the table holds what its figures are of, and does not grow.
        missing = [(part, key) for part, key in zip(parts, keys, strict=True) if key not in self.rows]
        tokens = sum(size_of(part, work.step) for part, _ in missing)
        saved = time.monotonic()
        with counting(f"{self._name} {self._site}", tokens, "tokens") as advance:
            try:
                results = tasks.map(measured, [part for part, _ in missing])
                for (part, key), result in zip(missing, results, strict=True):
                    self.rows[key] = {"shard": part.record.name, "made_from": key, **self._to_row(result)}
                    advance(size_of(part, work.step))
                    if time.monotonic() - saved > SAVE_S:
                        self._save(keys)
                        saved = time.monotonic()
            finally:
                self._save(keys)
        return [self.rows[key] for key in keys]

    def _save(self, keys: Sequence[str]) -> None:
        rows = [self.rows[key] for key in keys if key in self.rows]
        self._store.write_table(self._site, self._name, pl.DataFrame(rows, schema=self._schema))


def size_of(part: Part, step: int) -> int:
    """About how many tokens a part has."""
    return part.record.rows * sum(map(len, part.ranges(step))) // max(part.record.contexts, 1)


def _report(site: str, table: pl.DataFrame, shards: int, seconds: float) -> None:
    tokens, documents = table.select("tokens", "documents").max().row(0)
    where = f"{tokens:,} tokens of {several(documents, 'document')} in {several(shards, 'shard')}"
    out = Table(title=f"fidelity of {site}: {where}")
    for column in ("measure", "value", "95 % interval, by document"):
        out.add_column(column, justify="left" if column == "measure" else "right")
    for row in table.iter_rows(named=True):
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        ends = "-" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        out.add_row(row["measure"], value, ends)
    console.print(out)
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons(table).items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        say(f"{', '.join(names)}: {reason}")
    if (table["measure"] == "literal_recovered_share").any():
        say(
            "literal_…: as in the notebook that zero_first comes from, with position 0 also replaced (its "
            "features are 0) and counted; the others leave position 0 unchanged, and do not count it"
        )
    say(f"[bold]fidelity[/] {site}: done ({seconds:.1f} s)")
