"""The pages of clusters: all of them on one, those of a kind on another, and one of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import polars as pl
from markupsafe import Markup

from jobs.report.page import render, write
from jobs.report.strips import standalone
from jobs.report.tables import CLUSTERS, Tables
from jobs.report.work import Work
from pipeline.store.reading.windows import LABEL
from pipeline.store.records.registry import find_table

SHOWN_MEMBERS = 300
SHOWN_NAMES = 4
CENTRAL = {"context": "examples"}
"""The column of a summary that has the central contexts, where it is not `contexts`."""

SCORES = ("strength", "cosine", "probability")
"""Columns that say how central a member is, of which a table has one."""
COUNTS = ("feature", "n_active", "frequency", "mean_active")
"""What is shown of a member, from the feature table."""

CONTEXT_TOKENS = 160
"""Tokens of an example context that are shown."""


@dataclass(frozen=True)
class Kind:
    """Clusters of one kind: their summary, and of clusters of features the members."""

    name: str
    title: str
    summary: pl.DataFrame
    members: pl.DataFrame | None
    """Columns feature, cluster, and `score` (how central, the largest first), with `n_active`."""
    names: list[str]

    @property
    def of_features(self) -> bool:
        """Whether features are clustered, not contexts or documents."""
        return self.members is not None


def kinds_of(tables: Tables, work: Work) -> list[Kind]:
    """The kinds of clusters that the site has, each with the tokens that name its clusters."""
    kinds = []
    for name, title in CLUSTERS.items():
        summary = tables.summary(name)
        if summary is None or f"{name}_clusters" not in tables.names:
            continue
        members = None
        if find_table(f"{name}_clusters").page == "feature":
            table = tables.scan(f"{name}_clusters")
            columns = table.collect_schema().names()
            scores = [pl.col(column) for column in SCORES if column in columns]
            members = (
                table.filter(pl.col("cluster").is_not_null())
                .sort("cluster", *(["rank"] if "rank" in columns else []), "feature")
                .select("feature", "cluster", score=scores[0] if scores else pl.lit(None, pl.Float64))
                .join(tables.scan("features").select(*COUNTS), "feature", how="left", maintain_order="left")
                .collect()
            )
        kinds.append(Kind(name, title, summary, members, _names(summary, work)))
    return kinds


def _names(summary: pl.DataFrame, work: Work) -> list[str]:
    """What each cluster is called: the tokens of the summary, else those of its most central features."""
    if "tokens" in summary.columns:
        return [
            " ".join(standalone(token) for token in tokens[:SHOWN_NAMES])
            for tokens in summary["tokens"].to_list()
        ]
    if "features" not in summary.columns:
        return [""] * summary.height
    names = []
    for features in summary["features"].to_list():
        ids = chain.from_iterable(work.names[feature].tolist() for feature in features)
        tokens = Counter(work.texts[token] for token in ids if token >= 0)
        names.append(" ".join(token for token, _ in tokens.most_common(SHOWN_NAMES)))
    return names


def write_clusters(tables: Tables, work: Work, kinds: Sequence[Kind]) -> int:
    """Write the pages of all clusters; their bytes."""
    folder = work.out / "clusters"
    folder.mkdir(parents=True, exist_ok=True)
    page = partial(render, site=work.site, missing=tables.missing())
    size = write(
        folder / "index.html", page("clusters.html", 3, kinds=kinds, listed=_listed, labels_of=labels_of)
    )
    for kind in kinds:
        (folder / kind.name).mkdir(parents=True, exist_ok=True)
        contexts = _contexts(tables, work, kind)
        for row in kind.summary.iter_rows(named=True):
            size += write(
                folder / kind.name / f"{row['cluster']}.html",
                page("cluster.html", 4, kind=kind, row=row, **_content(work, kind, row, contexts)),
            )
    return size


def _listed(kind: Kind) -> list[dict[str, Any]]:
    """The rows of the table of a kind's clusters; `majority` by label, where there is one."""
    return [
        row | {"name": name, "majority": {label: (value, part) for label, value, part in majority(row)}}
        for row, name in zip(kind.summary.iter_rows(named=True), kind.names, strict=True)
    ]


def labels_of(columns: Collection[str]) -> list[str]:
    """The labels of which a summary has the commonest value, from the names of its columns."""
    majorities = (name for name in columns if name.startswith("majority_") and f"{name}_share" in columns)
    return [name.removeprefix("majority_") for name in majorities]


def majority(row: dict[str, Any]) -> list[tuple[str, str, float | None]]:
    """Of each label its commonest value in the cluster, and that value's share."""
    return [
        (label, str(row[f"majority_{label}"]), row[f"majority_{label}_share"])
        for label in labels_of(row)
        if row[f"majority_{label}"] is not None
    ]


def _content(
    work: Work, kind: Kind, row: dict[str, Any], contexts: dict[int, tuple[Markup, str]]
) -> dict[str, Any]:
    number = row["cluster"]
    members: list[dict[str, Any]] = []
    if kind.members is not None:
        rows = kind.members.filter(pl.col("cluster") == number).head(SHOWN_MEMBERS)
        members = list(rows.iter_rows(named=True))
    # Of contexts and documents: the features that mark the cluster, with their lifts where there are any.
    typical = list[tuple[int, float | None]]()
    if not kind.of_features and row.get("features"):
        lifts = row.get("lifts") or [None] * len(row["features"])
        typical = list(zip(row["features"], lifts, strict=True))
    shown = [(n, *contexts[n]) for n in row.get(CENTRAL.get(kind.name, "contexts")) or () if n in contexts]
    return {
        "work": work,
        "name": kind.names[number],
        "members": members,
        "typical": typical,
        "contexts": shown,
        "documents": (row.get("examples") or []) if kind.name == "document" else [],
        "majority": majority(row),
        "before": number - 1 if number else None,
        "after": number + 1 if number + 1 < kind.summary.height else None,
    }


def _contexts(tables: Tables, work: Work, kind: Kind) -> dict[int, tuple[Markup, str]]:
    """The text and the labels of the example contexts, all read at once."""
    column = CENTRAL.get(kind.name, "contexts")
    if kind.name == "document" or column not in kind.summary.columns:
        return {}
    # One scan for all clusters: a context lies in a row group that many others share.
    wanted = pl.Series("context", sorted(set(chain.from_iterable(kind.summary[column].to_list()))), pl.UInt64)
    store = tables.store
    rows = store.scan_tokens().filter(pl.col("context").is_in(wanted.implode()))
    labels = {name: pl.col(name) for name in store.lake.label_columns}
    table = rows.select(
        "context", "token_ids", **{LABEL + name: each for name, each in labels.items()}
    ).collect()
    texts = dict[int, tuple[Markup, str]]()
    for row in table.iter_rows(named=True):
        ids = row["token_ids"][:CONTEXT_TOKENS]
        text = Markup("".join(work.shown(ids, [0.0] * len(ids))[0]))  # noqa: S704 - escaped
        label_text = " · ".join(str(row[LABEL + name]) for name in labels if row[LABEL + name] is not None)
        texts[row["context"]] = (text, label_text)
    return texts
