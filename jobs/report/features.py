"""The pages of features: a task reads a range of them from the scratch folder, and renders each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.report import rows
from jobs.report.histogram import histogram
from jobs.report.page import render, write
from jobs.report.tables import CLUSTERS, ByFeature, read_range
from jobs.report.work import FOLDER_SIZE, Work, path_of
from pipeline.store.reading.windows import read_windows
from pipeline.store.records.registry import job_of
from schemas.layout import StorePath

SHOWN_EXAMPLES, SHOWN_NEIGHBOURS, SHOWN_LABELS = 10, 10, 12
"""Of a kind, by each measure, of a label: the other examples and labels are folded away."""

KINDS = {
    "top": "Strongest rows",
    "top_document": "Strongest row of each document",
    "quantile": "By activation decile",
    "random": "Contexts where it does not fire",
}
MEASURES = {
    "jaccard": "Jaccard index: rows where both fire / rows where at least one fires",
    "npmi": "Normalised pointwise mutual information",
    "phi": "Phi coefficient: the correlation of firing",
    "conditional": "Conditional frequency: share of this feature's rows where the other fires",
    "cosine": "Cosine of decoder directions",
}
LOGITS = (
    ("Highest logits", "top", "logits"),
    ("Lowest logits", "bottom", "logits"),
    ("Most promoted", "promoted", "effects"),
    ("Most suppressed", "suppressed", "effects"),
)
"""Tokens of the table `logits`: title, and how its columns are called."""


@dataclass(frozen=True)
class Folded:
    """A list of the page: what is shown at once, and what is folded away."""

    name: str
    title: str
    rows: Markup
    more: Markup
    n_more: int
    interval: int | None = None


def write_features(work: Work, part: range) -> tuple[int, int]:
    """Write the pages of chosen[part]; how many, and their bytes."""
    # Rows lie by feature, so that a range of features is one stretch of each table.
    chosen = work.chosen[part.start : part.stop].tolist()
    tables = read_range(work.scratch, chosen[0], chosen[-1])
    windows = ByFeature(read_windows(work.windows, chosen[0], chosen[-1]))
    written, folders = 0, dict[int, StorePath]()
    for feature in chosen:
        number = feature // FOLDER_SIZE
        if number not in folders:
            folders[number] = work.out / "features" / str(number)
            folders[number].mkdir(parents=True, exist_ok=True)
        written += write(folders[number] / f"{feature}.html", feature_page(work, feature, tables, windows))
    return len(chosen), written


def feature_page(work: Work, feature: int, tables: Mapping[str, ByFeature], windows: ByFeature) -> bytes:
    """The page of one feature."""
    rows_of = {name: table.rows_of(feature) for name, table in tables.items()}
    (row,) = rows_of["features"]
    place = int(np.searchsorted(work.chosen, feature))
    profile = next(iter(rows_of.get("profile", ())), None)
    top_token = profile["top_token"] if profile else None
    return render(
        "feature.html",
        4,
        site=work.site,
        feature=feature,
        fires_on=work.fires_on(feature),
        before=int(work.chosen[place - 1]) if place else None,
        after=int(work.chosen[place + 1]) if place + 1 < len(work.chosen) else None,
        path_of=path_of,
        row=row,
        profile=profile,
        top_token=None if top_token is None else work.texts[top_token],
        ranks=rows_of.get("rankings", []),
        histogram=histogram(row["histogram_bins"], row["histogram_counts"]) if row["n_active"] else None,
        examples=_examples(work, row, windows.rows_of(feature)),
        logits=_logits(work, rows_of.get("logits", [])),
        neighbours=_neighbours(work, rows_of),
        matches=[(name, matches) for name, matches in rows_of.items() if job_of(name) == "match" and matches],
        clusters=_clusters(work, rows_of),
        labels=_labels(rows_of.get("labels", [])),
        trends=rows.joined(map(rows.trend, rows_of.get("label_trends", []))),
        missing=work.missing,
        measures=MEASURES,
    )


Rows = list[dict[str, Any]]


def _examples(work: Work, row: Mapping[str, Any], windows: Rows) -> list[Folded]:
    """Examples by kind in the order of KINDS, quantiles from the highest tenth down."""
    # All strips of a page share one scale, so that shades compare across kinds of examples.
    most = max(abs(row["max_activation"] or 0), abs(row["min_activation"] or 0))
    by_kind = dict[tuple[str, int], list[str]]()
    for window in windows:
        by_kind.setdefault((window["kind"], window["interval"]), []).append(rows.example(work, window, most))
    # Kinds that this version does not know come last, by name.
    order = {kind: place for place, kind in enumerate(KINDS)}
    return [
        Folded(
            kind,
            KINDS.get(kind, kind),
            *rows.cut(by_kind[kind, interval], SHOWN_EXAMPLES),
            interval if kind == "quantile" else None,
        )
        for kind, interval in sorted(
            by_kind, key=lambda key: (order.get(key[0], len(order)), key[0], -key[1])
        )
    ]


def _logits(work: Work, table: Rows) -> dict[str, Any] | None:
    if not table:
        return None
    (row,) = table
    sides = []
    for title, name, of in LOGITS:
        tokens, values = row.get(f"{name}_tokens") or (), row.get(f"{name}_{of}") or ()
        pairs = zip(tokens, values, strict=True)
        if tokens:
            sides.append((title, rows.joined(rows.logit(work, token, value) for token, value in pairs)))
    return {"entropy_bits": row["entropy_bits"], "max_probability": row["max_probability"], "sides": sides}


def _neighbours(work: Work, tables: Mapping[str, Rows]) -> list[tuple[str, Markup]]:
    """The nearest neighbours by each measure; a table without `by` has those by Jaccard index."""
    lists = [
        (by, rows.joined(rows.neighbour(work, row, by) for row in islice(group, SHOWN_NEIGHBOURS)))
        for by, group in groupby(tables.get("neighbours", ()), key=lambda row: row.get("by", "jaccard"))
    ]
    if decoder := tables.get("decoder_neighbours"):
        shown = decoder[:SHOWN_NEIGHBOURS]
        lists.append(("cosine", rows.joined(rows.neighbour(work, row, "cosine") for row in shown)))
    return lists


def _clusters(work: Work, tables: Mapping[str, Rows]) -> Rows:
    """The clusters that the feature is in."""
    clusters = []
    for kind, title in CLUSTERS.items():
        for row in tables.get(f"{kind}_clusters", ()):
            if (cluster := row["cluster"]) is not None:
                names = work.cluster_names.get(kind, ())
                name = names[cluster] if cluster < len(names) else ""
                clusters.append({"kind": kind, "title": title, "cluster": cluster, "name": name})
    return clusters


def _labels(table: Rows) -> list[Folded]:
    """Values of each label, the clearest differences first."""
    by_label = dict[str, Rows]()
    for row in table:
        by_label.setdefault(row["label"], []).append(row)
    for group in by_label.values():
        group.sort(key=lambda row: (-abs(row["z"] or 0), str(row["value"])))
    return [
        Folded(name, name, *rows.cut(list(map(rows.label, group)), SHOWN_LABELS))
        for name, group in by_label.items()
    ]
