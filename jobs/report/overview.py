"""The pages above the features: that of a site, with figures and provenance, and that of the lake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from jobs.report.clusters import Kind
from jobs.report.tables import Tables
from jobs.report.work import Work
from jobs.terminal.units import unit_of_lake, unit_of_site
from pipeline.store import FeatureStore
from pipeline.store.records.tables import RECEIPTS_KEY
from schemas import __version__
from schemas.sentences import several

TOP = 10
"""Features of a ranking on the overview."""

FIGURES = {
    "frequency": "How often features fire",
    "density_and_mean": "Frequency against mean activation of each feature",
    "l0": "Features active in a row",
    "mean_activation": "How strongly features fire on average",
    "max_activation": "Strongest activation of each feature",
    "sigma_over_mu": "Features ranked by sigma / mu",
}
"""What the usual figures show, in the order in which they stand; others come after them, by name."""


def figures_of(store: FeatureStore, site: str) -> list[tuple[str, str, bytes, bool]]:
    """Name, description, PNG and staleness of each figure of a site."""
    folder, now = store.layout.figures(site), store.receipts_digest(site).encode()
    pngs = {path.stem: path for path in folder.iterdir() if path.suffix == ".png"} if folder.is_dir() else {}
    names = [*(name for name in FIGURES if name in pngs), *sorted(pngs.keys() - FIGURES.keys() - {""})]
    read = {name: pngs[name].read_bytes() for name in names if not name.startswith(".")}
    # Figures of version 0.2 name no receipts: whether they are stale is not known.
    return [
        (
            name,
            FIGURES.get(name, name.replace("_", " ")),
            data,
            RECEIPTS_KEY.encode() in data and now not in data,
        )
        for name, data in read.items()
    ]


def site_facts(tables: Tables) -> dict[str, Any]:
    """Numbers of a site that stand on top of its page, and on that of the lake."""
    store, site = tables.store, tables.site
    info, totals = store.site(site), store.totals(site)
    fired = tables.scan("features").select((pl.col("n_active") > 0).sum()).collect().item()
    nnz = sum(receipt.nnz for receipt in store.site_receipts(site).values())
    return {
        "site": site,
        "hook_name": info.hook_name,
        "architecture": info.architecture,
        "d_sae": info.d_sae,
        "fired": fired,
        "nnz": nnz,
        "l0": nnz / totals.counted_rows if totals.counted_rows else None,
        "rows": totals.rows,
        "counted_rows": totals.counted_rows,
        "contexts": totals.contexts,
        "documents": totals.documents,
        "shards": len(store.committed(site)),
        "unit": unit_of_site(store, site),
        "stale": [state.name for state in tables.states if state.stale],
    }


def lake_facts(store: FeatureStore) -> list[tuple[str, str]]:
    """What holds for every token."""
    lake, unit = store.lake, unit_of_lake(store)
    rows = sum(record.rows for record in store.shards)
    return [
        (f"{unit}s", f"{rows:,} in {several(len(store.shards), 'shard')}"),
        ("documents", f"{sum(record.documents for record in store.shards):,}"),
        ("corpus", "; ".join(_source(link.source) for link in store.links)),
        ("corpus digest", ", ".join(link.source_digest[:16] for link in store.links)),
        ("tokenizer", f"{short(lake.tokenizer)}, {lake.tokenizer_digest[:16]}"),
        ("contexts", f"at most {lake.context_size:,} {unit if lake.context_size == 1 else f'{unit}s'}"),
        ("special tokens", lake.special_tokens),
        ("labels", ", ".join(lake.label_columns) or "none"),
    ]


def provenance(store: FeatureStore, site: str) -> list[tuple[str, str]]:
    """Where the site's numbers come from."""
    info = store.site(site)
    plan = store.plans[info.pass_name]
    planned = next(each for each in plan.sites if each.name == site)
    receipts = list(store.receipts(site).values())
    # Workers may have had other versions than the plan was made with: all of them are named.
    environments = [receipt.environment for receipt in receipts] or [plan.environment]
    versions = sorted({f"{name} {each[name]}" for each in environments for name in each if name != "host"})
    return [
        ("model", f"{short(plan.model)} ({plan.model_loader}, {plan.model_dtype}), {plan.model_digest[:16]}"),
        ("processing", ", ".join(plan.model_processing or ()) or "none"),
        ("hook", info.hook_name),
        ("SAE", f"{short(info.sae)} ({info.architecture}), {planned.sae_digest[:16]}"),
        ("sizes", f"d_model {info.d_model:,}, d_sae {info.d_sae:,}"),
        ("activations", f"{info.activation_dtype}, encoded in {info.encode_dtype}"),
        ("reads", str(info.selection)),
        ("pass", f"{info.pass_name}, plan {plan.hash[:16]}, format version {plan.format_version}"),
        ("device", plan.device),
        ("receipts", f"{len(receipts):,}, digest {store.receipts_digest(site)}"),
        ("versions", ", ".join(versions)),
        ("report by", f"latentlake {__version__}"),
    ]


def short(path: str) -> str:
    """The last two parts of a path: where it lies on somebody's disk is private."""
    if "://" in path or not path.startswith("/"):
        return path
    return "/".join(["…", *PurePosixPath(path).parts[-2:]])


def _source(source: Mapping[str, Any]) -> str:
    """A corpus in a few words."""
    return ", ".join(
        f"{key} {_text(value)}" for key, value in source.items() if value not in (None, [], {}, "")
    )


def _text(value: Any) -> str:
    if isinstance(value, str):
        return short(value)
    if isinstance(value, list):
        return " ".join(_text(each) for each in value[:6]) + (" …" if len(value) > 6 else "")
    return str(value)


def site_page(
    tables: Tables, work: Work, kinds: Sequence[Kind], figures: Sequence[tuple[str, str, bytes, bool]]
) -> dict[str, Any]:
    """What the template of a site's page is given."""
    fidelity, best = tables.read("fidelity"), []
    if "rankings" in tables.names:
        first = tables.scan("rankings").filter(pl.col("rank") < TOP).collect()
        rankings = first.group_by("by", maintain_order=True)
        best = [(str(by), group.sort("rank").to_dicts()) for (by,), group in rankings]
    return {
        "work": work,
        "site": work.site,
        "facts": site_facts(tables),
        "lake": lake_facts(tables.store),
        "provenance": provenance(tables.store, work.site),
        "figures": [(name, description, stale) for name, description, _, stale in figures],
        "best": best,
        "kinds": kinds,
        "states": tables.states,
        "fidelity": fidelity.to_dicts() if fidelity is not None else [],
        "chosen": len(work.chosen),
    }
