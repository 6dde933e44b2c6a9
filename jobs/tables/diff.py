"""`latentlake diff A B`: which features differ in frequency between two stores, by document.

Two corpora under one model, or two models over one corpus: where the token shards are the same, documents are
paired. One shard is in memory at a time, and some 150 bytes a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import polars as pl
import typer
from rich.markup import escape
from rich.table import Table

from jobs.command.options import SiteName, StoreText, open_store
from jobs.terminal.console import console, say
from jobs.terminal.names import any_named, name_cell
from jobs.terminal.outputs import require_file
from pipeline.sources.overlap import overlap
from pipeline.statistics.documents.clustered import (
    CHANGES,
    DocumentSums,
    DocumentTotals,
    document_changes,
    document_sums,
    document_totals,
)
from pipeline.statistics.documents.comparison import SUPPORT, compare
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects.local import storage_errors
from pipeline.store.records.tables import VERSION_KEY
from pipeline.tasks import OneProcess, Tasks
from schemas import __version__
from schemas.errors import InputError
from schemas.records import FORMAT_VERSION, Plan, PlannedSite, canonical_json

LEVEL = 0.05
DIFF_KEY = "latentlake.diff"
"""Of the metadata of the table that is written: which stores were compared, as JSON."""


class Side(NamedTuple):
    """A site of a store."""

    store: FeatureStore
    site: str

    @property
    def plan(self) -> Plan:
        """The plan of the site's pass."""
        return self.store.plans[self.store.site(self.site).pass_name]

    @property
    def planned(self) -> PlannedSite:
        """The site in its plan."""
        return next(site for site in self.plan.sites if site.name == self.site)

    @property
    def identity(self) -> dict[str, str]:
        """What a table's metadata say of the side: where it lies, and what its rows were made by."""
        return {
            "root": str(self.store.layout.root),
            "site": self.site,
            "plan": self.plan.hash,
            "receipts": self.store.receipts_digest(self.site),
            "sae_digest": self.planned.sae_digest,
        }

    @property
    def shards(self) -> dict[str, str]:
        """sha256 of each committed shard's tokens, by name, in shard order."""
        return {record.name: record.sha256 for record in self.store.committed(self.site)}

    def __str__(self) -> str:
        return f"{self.store.layout.root} {self.site}"


def command(
    store: FeatureStore,
    b: StoreText,
    site: SiteName = None,
    site_b: Annotated[
        str | None, typer.Option("--site-b", help="Site of store B. Default: the site of store A.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.parquet", help="Write the whole table to this file.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Number of the clearest changes to print.", min=0)] = 20,
    tasks: Tasks | None = None,
) -> None:
    """Compare a site of one store with that of another."""
    diff(*sides(store, open_store(b)[0], site, site_b), tasks, out=out, top=top)


def diff(
    a: Side, b: Side, tasks: Tasks | None = None, *, out: Path | None = None, top: int = 20
) -> pl.DataFrame:
    """Compare, print the clearest changes, write the whole table to `out`; return it
    (`schemas.tables.tables.DIFF`).

    A task reads one shard. InputError where the two cannot be compared.
    """
    _check(a, b)
    require_file(out, "--out")
    common = [name for name, sha256 in a.shards.items() if b.shards.get(name) == sha256]
    # paired are stores of the same token shards, though some may not be extracted yet
    chains = [[record.sha256 for record in side.store.shards] for side in (a, b)]
    is_paired = chains[0] == chains[1] and bool(common)
    tasks = tasks or OneProcess()
    with console.status("diff"):
        table, totals = _paired(a, b, common, tasks) if is_paired else _unpaired(a, b, tasks)
    for name, side, total in (("A", a, totals[0]), ("B", b, totals[1])):
        size = f"{total.documents:,} documents, {total.rows:,} counted rows"
        model = side.plan.model or side.plan.model_loader
        say(f"[bold]{name}[/] {escape(str(side))}: {size}, model {escape(model)}")
    say("The documents are the same: each is compared with itself." if is_paired else "The documents differ.")
    for line in _notes(a, b, common, is_paired=is_paired):
        say(f"[yellow]note[/]: {escape(line)}")
    _report_changes(a, table, top, "changed" if is_paired else "fire")
    if out is not None:
        about = {"paired": is_paired, "support": SUPPORT, "latentlake": __version__} | {
            name: {
                **side.identity,
                "model": side.plan.model,
                "model_digest": side.plan.model_digest,
                "documents": total.documents,
                "counted_rows": total.rows,
            }
            for name, side, total in (("a", a, totals[0]), ("b", b, totals[1]))
        }
        metadata = {DIFF_KEY: canonical_json(about).decode(), VERSION_KEY: str(FORMAT_VERSION)}
        with storage_errors(out, "give --out another place"):
            write_frame(out, table, metadata)
        say(f"All {table.height:,} features: [bold]{escape(str(out))}[/]")
    return table


def sides(a: FeatureStore, b: FeatureStore, site_a: str | None, site_b: str | None) -> tuple[Side, Side]:
    """The sites to compare: those named, B's by A's name where that is left out, or the only ones."""
    first = _site(a, site_a, "--site")
    same = (
        first if site_b is None and first in b.sites and (site_a is not None or len(b.sites) > 1) else site_b
    )
    return Side(a, first), Side(b, _site(b, same, "--site-b"))


def _site(store: FeatureStore, name: str | None, option: str) -> str:
    names = [each for each, info in store.sites.items() if info.has_sae]
    if name is None and len(names) != 1:
        if not names and store.sites:  # of x alone: the error names the remedy
            return store.require_features(next(iter(store.sites))).name
        known = ", ".join(names) or "none yet"
        raise InputError(f"{store.layout.root} has the sites {known}: choose one with {option}")
    return store.require_features(name or names[0]).name


def _check(a: Side, b: Side) -> None:
    """Refuse what cannot be compared."""
    one, two = a.planned, b.planned
    if one.d_sae != two.d_sae:
        raise InputError(
            f"{a} has {one.d_sae:,} features, {b} has {two.d_sae:,}: only stores of one SAE can be compared"
        )
    if one.sae_digest != two.sae_digest:
        raise InputError(
            f"{a} and {b} were made with two SAEs ({one.sae} and {two.sae}, whose weights differ): feature "
            "n of one is not feature n of the other; extract both with the same SAE"
        )
    if one.selection != two.selection:
        raise InputError(
            f"{a} reads {one.selection}, {b} {two.selection}: extract both with the same positions "
            "and pooling"
        )
    for side in (a, b):
        if not side.store.totals(side.site).counted_rows:
            raise InputError(f"{side} has no committed shard with a counted row: run `latentlake extract`")


def _paired(
    a: Side, b: Side, shards: list[str], tasks: Tasks
) -> tuple[pl.DataFrame, tuple[DocumentTotals, DocumentTotals]]:
    """The same documents, seen by two models."""
    d_sae = a.planned.d_sae
    sums = DocumentSums(d_sae), DocumentSums(d_sae)
    changes = DocumentSums(d_sae, CHANGES)
    for *frames, changed, totals in tasks.map(partial(shard_changes, a, b), shards):
        for side, frame in zip(sums, frames, strict=True):
            side.add(frame, totals)
        changes.add(changed, totals)
    return compare(*sums, changes), (sums[0].totals, sums[1].totals)


def _unpaired(a: Side, b: Side, tasks: Tasks) -> tuple[pl.DataFrame, tuple[DocumentTotals, DocumentTotals]]:
    """Two sets of documents."""
    sums = []
    for side in (a, b):
        sums.append(DocumentSums(side.planned.d_sae))
        for part in tasks.map(partial(shard_sums, side), side.shards):
            sums[-1].add(*part)
    return compare(*sums), (sums[0].totals, sums[1].totals)


def shard_sums(side: Side, shard: str) -> tuple[pl.DataFrame, DocumentTotals]:
    """Sums of one side over one shard, and its totals."""
    tokens = side.store.token_shard(side.site, shard, inputs=False)
    return document_sums(side.store.postings(side.site, shard), tokens), document_totals(tokens)


def shard_changes(
    a: Side, b: Side, shard: str
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, DocumentTotals]:
    """Sums of both sides over one shard, of the changes between them, and its totals."""
    tokens = a.store.token_shard(a.site, shard, inputs=False)
    before, after = (side.store.postings(side.site, shard) for side in (a, b))
    sums = document_sums(before, tokens), document_sums(after, tokens)
    return *sums, document_changes(before, after, tokens), document_totals(tokens)


def _notes(a: Side, b: Side, common: list[str], *, is_paired: bool) -> Iterator[str]:
    """What else differs, or weakens the answer."""
    one, two = (
        {
            "store.activation_dtype": side.plan.activation_dtype,
            "encode_dtype": side.planned.encode_dtype,
            "hook_name": side.planned.hook_name,
            "model.dtype": side.plan.model_dtype,
            "model.processing": side.plan.model_processing,
            **side.store.lake.model_dump(
                include={"tokenizer_digest", "context_size", "bos_id", "separator_id", "special_text"}
            ),
            "special_tokens": side.store.lake.special_tokens,
        }
        for side in (a, b)
    )
    for name in one:
        if one[name] != two[name]:
            yield f"{name} is {one[name]} in A, {two[name]} in B: some of the difference may be due to that"
    if a.plan.model_digest != b.plan.model_digest and not is_paired:
        yield "both the documents and the models differ: the cause of a change cannot be determined"
    for name, side in (("A", a), ("B", b)):
        if missing := len(side.store.shards) - len(side.shards):
            yield f"{missing} of {len(side.store.shards)} shards of {name} are not extracted"
    if is_paired and len(common) < max(len(a.shards), len(b.shards)):
        yield f"only the {len(common)} shards that both have extracted are compared"
    if not is_paired and _shared(a, b):
        yield (
            "some documents are in both, and cannot be paired because the token shards differ: standard "
            "errors are overstated, because the sides are treated as independent; with the same `tokens` "
            "section for both they would be paired"
        )


def _shared(a: Side, b: Side) -> bool:
    """Whether the two share a token shard, a source, or documents of one, however they were cut."""
    shards = [set(side.shards.values()) for side in (a, b)]
    sources = [{link.source_digest for link in side.store.links} for side in (a, b)]
    if shards[0] & shards[1] or sources[0] & sources[1]:
        return True
    for one, two in product(a.store.links, b.store.links):
        # before version 3 files held no contents: of two that do not say, nothing is known
        newer, older = (one.source, two.source) if "contents" in one.source else (two.source, one.source)
        is_silent = newer["kind"] == "text" and not {"contents", "revision"} & set(newer)
        if not is_silent and overlap(newer, older) is not None:
            return True
    return False


def _report_changes(a: Side, table: pl.DataFrame, top: int, verb: str) -> None:
    """The summary, and the clearest significant changes; `verb` is what a feature does in documents."""
    tested = table.filter(pl.col("frequency_p").is_not_null() | pl.col("mean_all_p").is_not_null())
    # significant after the correction for all features that were tested
    clear = {name: pl.col(f"{name}_q") <= LEVEL for name in ("frequency", "mean_all")}
    appeared = table.filter(n_active_a=0).filter(pl.col("n_active_b") > 0).height
    vanished = table.filter(n_active_b=0).filter(pl.col("n_active_a") > 0).height
    say(
        f"[bold]diff[/] {tested.height:,} of {table.height:,} features tested, the others {verb} in too few "
        f"documents; at q {LEVEL} {tested.filter(clear['frequency']).height:,} differ in frequency, "
        f"{tested.filter(clear['mean_all']).height:,} in mean_all; {appeared:,} fire only in B, "
        f"{vanished:,} only in A"
    )
    size = pl.max_horizontal(pl.col("frequency_z", "mean_all_z").abs())
    changes = tested.filter(pl.any_horizontal(*clear.values())).sort(
        size, "feature", descending=[True, False]
    )
    if not (changes.height and top):
        return
    changes = changes.head(top)
    title = f"The {changes.height} clearest changes (largest |z|)"
    printed = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in ("feature", "frequency A", "B", "B/A", "q", "mean_all A", "B", "B/A", "q"):
        printed.add_column(name, justify="right", no_wrap=True)
    names = a.store.names(a.site, changes["feature"])
    if is_named := any_named(names, changes["feature"]):
        printed.add_column("name")
    for row in changes.iter_rows(named=True):
        cells = [str(row["feature"])]
        for name in ("frequency", "mean_all"):
            cells += [f"{row[f'{name}_{side}']:.3g}" for side in ("a", "b")]
            ratio, q = row[f"{name}_log2_ratio"], row[f"{name}_q"]
            cells += ["" if ratio is None else f"{2**ratio:.3g}", "" if q is None else f"{q:.0e}"]
        printed.add_row(*cells, *([name_cell(names, row["feature"])] if is_named else []))
    console.print(printed)
