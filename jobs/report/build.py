"""What a report consists of, and in which order it is made.

Shards are read once, tables once; then pages are made by ranges of features, a task each, and written 128 to
a file. On two cores some hundreds of pages a second; memory is that of the largest table and of some thousand
features' examples. The scratch folder (TMPDIR) takes some ten kilobytes a feature.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray
from rich.markup import escape

from jobs.command.options import Workers
from jobs.command.tasks import choose_tasks
from jobs.report.clusters import kinds_of, write_clusters
from jobs.report.columns import VARIABLE, table_data
from jobs.report.features import write_features
from jobs.report.overview import figures_of, lake_facts, site_facts, site_page
from jobs.report.page import call, inside, packed_json, render, script, write
from jobs.report.tables import Tables, names_of, token_order
from jobs.report.work import CHUNK, GIVEN, Work, chunk_path, old_place, old_place_of_cluster
from jobs.tables.selection import select_features
from jobs.terminal.console import say
from jobs.terminal.progress import counting, size
from pipeline.store import FeatureStore
from pipeline.store.derived.names import given_names
from pipeline.store.objects.local import local_scratch
from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import listed, remove, walk
from pipeline.store.reading.windows import cut_windows, example_tokens, window_files
from pipeline.store.records.registry import NEEDS
from pipeline.tasks import Tasks
from schemas.errors import InputError
from schemas.layout import StorePath, is_stray
from schemas.sentences import several
from schemas.values import I64

PART, MOST_PARTS, LARGEST_PART = 2 * CHUNK, 64, 16 * CHUNK
"""Pages that a task makes: at least, and at most; in between, so many tasks."""

WORTH_FEATURES = 1500
"""Features from which on several processes pay."""

PAGES = (
    *("index.html", "features.html", "features.js", "feature.html", "features/index.js"),
    *("cluster.html", "clusters/index.html"),
)
"""Files of a site that are there whatever its tables."""

OURS = re.compile(
    rf"{'|'.join(map(re.escape, PAGES))}|(features|clusters/\w+)/\d+\.js|"
    r"(features|clusters)/\w+/\d+\.html|figures/[\w.-]+\.png"
)
"""All files that the report of a site may have, by their path in its folder."""

MARKER = "report.json"
"""The file that marks a folder as a report, and names its sites."""


def command(
    store: FeatureStore,
    sites: list[str],
    features: Annotated[
        str,
        typer.Option(
            help="Features that get a page: all, top:N[:COLUMN], COLUMN:START:STOP (ranks), or 5,100:200."
        ),
    ] = "all",
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the report. Default: STORE/report.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Write the report, and print the path of its first page."""
    with tasks_for(store, workers) as tasks:
        typer.echo(report(store, sites, tasks, out=store_path(out) if out else None, features=features))


def report(
    store: FeatureStore,
    sites: Sequence[str],
    tasks: Tasks,
    *,
    out: StorePath | None = None,
    features: str = "all",
    order: Sequence[str] = (),
) -> StorePath:
    """Write the report of some sites into `out` (default: the store's folder `report`); its first page.

    Other sites of the store that are in the report already stay; what the report wrote of sites that the
    store has no more goes. `features` chooses which features get a page
    (`feature_selection.select_features`); pages of others go. `order`: the sites that come first. InputError
    when the feature table or the examples are missing, or when `out` holds files and is not a report, or that
    of another lake.
    """
    folder = out or store.layout.report
    for site in sites:
        for name in NEEDS["report"]:
            Tables(store, site).scan(name)
    recorded = _claim(folder, store)
    # Pages of sites that are gone are removed; files that are not of the report stay.
    for path in listed(folder / "sites"):
        is_kept = path.name in store.sites or (isinstance(path, Path) and path.is_symlink())
        if not is_kept and any((path / page).is_file() for page in PAGES):
            _forget(path, ())
            if isinstance(path, Path) and path.is_dir():
                say(
                    f"[yellow]report[/]: {escape(str(path))} is kept, because it has files that no report "
                    "wrote"
                )
    (folder / "static").mkdir(parents=True, exist_ok=True)
    for name in ("report.css", "common.js", "search.js", "table.js", "page.js", "pages.js", "files.js"):
        write(folder / "static" / name, files("jobs.report").joinpath("static", name).read_bytes())
    # Sites of earlier reports stay where they stood, and new ones come last, unless `order` says otherwise.
    known = {name: recorded.get(name, {}) for name in (*order, *recorded, *sites) if name in store.sites}
    for site in sites:
        known[site] = _make_site(store, site, folder / "sites" / site, features, tasks)
    _write_index(store, folder, {name: facts for name, facts in known.items() if facts})
    return folder / "index.html"


def forget_dropped(store: FeatureStore) -> None:
    """Take sites that the store has no more out of the first page of its report, where there is one."""
    folder = store.layout.report
    if (folder / MARKER).is_file():
        known = _claim(folder, store)
        if gone := known.keys() - store.sites.keys():
            _write_index(store, folder, {name: known[name] for name in known if name not in gone})


def _write_index(store: FeatureStore, folder: StorePath, known: dict[str, Any]) -> None:
    """The first page, and what the next report must know of the sites."""
    record = {"lake": store.lake.digest, "sites": known}
    write(folder / MARKER, json.dumps(record, indent=1).encode() + b"\n")
    facts = list(known.values())
    write(folder / "index.html", render("lake.html", 0, sites=facts, lake=lake_facts(store)))


def tasks_for(store: FeatureStore, workers: int | None) -> Tasks:
    """Tasks to make pages with: the cores of this machine where there are many features."""
    many = max((site.d_sae for site in store.sites.values()), default=0) >= WORTH_FEATURES
    return choose_tasks(store, workers or (len(os.sched_getaffinity(0)) if many else None))


def _claim(folder: StorePath, store: FeatureStore) -> dict[str, Any]:
    """What is known of the sites of a report that is there; InputError when the folder is something else."""
    if (folder / MARKER).is_file():
        try:
            record = json.loads((folder / MARKER).read_bytes())
            sites, lake = dict(record["sites"]), record.get("lake", store.lake.digest)
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{folder / MARKER} is damaged: remove the folder, or give another --out"
            ) from None
        if lake != store.lake.digest:
            raise InputError(f"{folder} is the report of a different lake: remove it, or give another --out")
        return sites
    if any(not is_stray(path.name) for path in listed(folder)):
        raise InputError(
            f"{folder} holds files and is not a report of latentlake: give --out a new or an empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / MARKER, b'{"sites": {}}\n')
    return {}


def _make_site(store: FeatureStore, site: str, out: StorePath, features: str, tasks: Tasks) -> dict[str, Any]:
    """Write the pages of a site, and say what was made; its facts for the first page."""
    began, tables = time.monotonic(), Tables(store, site)
    chosen = select_features(store, site, features).astype(np.int64)
    n, written = len(chosen), 0
    # A part reads its rows of every table anew: small parts share the work out, large ones read less.
    step = min(max(PART, n // MOST_PARTS), LARGEST_PART) // CHUNK * CHUNK  # whole files
    parts = [range(first, min(first + step, n)) for first in range(0, n, step)]
    with local_scratch("latentlake-report-") as scratch:
        work = _prepare(tables, chosen, scratch, out, tasks)
        with counting(f"report {site}", n, "pages") as advance:
            for pages, n_bytes in tasks.map(partial(write_features, work), parts):
                written += n_bytes
                advance(pages)
        clusters = _write_above(tables, work)
    seconds, facts = time.monotonic() - began, site_facts(tables)
    say(
        f"[bold]report[/] {escape(site)}: {several(n, 'page')} of features, {size(written / n)} each, and "
        f"{size(clusters)} of clusters ({seconds:.1f} s, {n / seconds:,.0f} pages a second)"
    )
    if stale := facts["stale"]:
        say(
            f"[yellow]report[/] {escape(site)}: made from stale tables, which the report mentions: "
            f"{', '.join(stale)}"
        )
    return facts


def _prepare(tables: Tables, chosen: I64, scratch: Path, out: StorePath, tasks: Tasks) -> Work:
    """Everything that the pages are made from, laid out by feature in the scratch folder."""
    store, site = tables.store, tables.site
    examples = tables.scan("examples")
    # A feature is called by the tokens of its strongest rows, whether it gets a page or not.
    strongest = examples.filter(pl.col("kind") == "top").select("feature", "rank", "row").collect()
    d_sae = store.site(site).d_sae
    _save(scratch / "names.npy", names_of(example_tokens(store, site, strongest, tasks), d_sae))
    (scratch / GIVEN).write_text(json.dumps(given_names(store, site)), encoding="utf-8")
    _save(scratch / "chosen.npy", chosen)
    tables.lay_out(chosen, scratch)
    wanted = examples.filter(pl.col("feature").is_in(pl.Series(chosen, dtype=pl.UInt32).implode())).collect()
    with counting(f"report {site}: contexts", wanted.height, "examples") as advance:
        for n in cut_windows(store, site, wanted, scratch, tasks):
            advance(n)
    windows, averaged = tuple(window_files(scratch)), store.site(site).selection.is_averaged
    _save(scratch / "order.npy", token_order(windows, scratch))
    work = Work(
        scratch, windows, out, site, store.layout.vocabulary, d_sae, tables.missing(), {}, averaged=averaged
    )
    work = replace(work, cluster_names={kind.name: kind.names for kind in kinds_of(tables, work)})
    index = packed_json(work.index)
    work = replace(work, key=hashlib.sha256(index.encode()).hexdigest()[:16])
    (out / "features").mkdir(parents=True, exist_ok=True)
    write(out / "features" / "index.js", call("latentlakeIndex", work.key, index))
    return work


def _save(path: Path, array: NDArray[Any]) -> None:
    """As `numpy.save`, which does not give the reason where a disk is full."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())


def _write_above(tables: Tables, work: Work) -> int:
    """Write the pages above those of the features, and remove what is not part of the report any more."""
    kinds, figures = kinds_of(tables, work), figures_of(tables.store, work.site)
    clusters = write_clusters(tables, work, kinds)
    (work.out / "figures").mkdir(parents=True, exist_ok=True)
    for name, _, data, _ in figures:
        write(work.out / "figures" / f"{name}.png", data)
    table = table_data(tables, work)
    write(work.out / "features.js", script(VARIABLE, table))
    shown = {
        "columns": [column["name"] for column in table["columns"]],
        "chosen": len(work.chosen),
        "n": work.d_sae,
    }
    write(work.out / "features.html", render("features.html", 2, site=work.site, **shown))
    write(work.out / "feature.html", render("feature.html", 2, site=work.site))
    write(work.out / "index.html", render("site.html", 2, **site_page(tables, work, kinds, figures)))
    folders = {"features": len(work.chosen)}
    folders |= {f"clusters/{kind.name}": kind.summary.height for kind in kinds}
    kept = {chunk_path(at, k) for at, n in folders.items() for k in range(math.ceil(n / CHUNK))}
    if work.has_redirects:
        kept |= set(map(old_place, work.chosen.tolist()))
        kept |= {old_place_of_cluster(kind.name, n) for kind in kinds for n in kind.summary["cluster"]}
    kept |= {f"figures/{name}.png" for name, _, _, _ in figures}
    _forget(work.out, {*kept, *PAGES})
    return clusters


def _forget(folder: StorePath, kept: Collection[str]) -> None:
    """Remove files of a site's report that are not `kept`, and then folders that are empty."""
    for name, _, _ in list(walk(folder)) if folder.is_dir() else ():
        if OURS.fullmatch(name) and name not in kept:
            remove(inside(folder, name))
    if isinstance(folder, Path) and folder.is_dir():
        # Inner folders come before the outer ones that hold them; one that holds anything refuses, and stays.
        for path in sorted((folder, *(each for each in folder.rglob("*") if each.is_dir())), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
