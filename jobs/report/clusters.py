"""The pages of clusters: one of all, and one of each, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import polars as pl

from jobs.report.features import redirect, table_of, write_pages
from jobs.report.page import number, percent, render, whole, write
from jobs.report.strips import standalone, visible
from jobs.report.tables import CLUSTERS, Tables
from jobs.report.work import CHUNK, Work, old_place_of_cluster
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

TYPICAL_HEAD = (("feature", 1, ""), ("fires on", 0, ""), ("lift", 1, ""))
MEMBER_HEAD = (
    *(("feature", 1, ""), ("fires on", 0, ""), ("centrality", 1, ""), ("active rows", 1, "")),
    *(("frequency", 1, ""), ("mean active", 1, "")),
)
"""As `features.LABEL_HEAD`."""


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
    if "tokens" in summary.columns or "features" not in summary.columns:
        return names_by_tokens(summary)
    names = []
    for features in summary["features"].to_list():
        ids = chain.from_iterable(work.names[feature].tolist() for feature in features)
        tokens = Counter(work.texts[token] for token in ids if token >= 0)
        names.append(" ".join(token for token, _ in tokens.most_common(SHOWN_NAMES)))
    return names


def names_by_tokens(summary: pl.DataFrame) -> list[str]:
    """The tokens of each cluster's summary; none in tables of earlier versions."""
    if "tokens" not in summary.columns:
        return [""] * summary.height
    return [
        " ".join(standalone(token) for token in tokens[:SHOWN_NAMES])
        for tokens in summary["tokens"].to_list()
    ]


def write_clusters(tables: Tables, work: Work, kinds: Sequence[Kind]) -> int:
    """Write the pages of all clusters; their bytes."""
    (work.out / "clusters").mkdir(parents=True, exist_ok=True)
    page = partial(render, site=work.site, missing=tables.missing())
    size = write(
        work.out / "clusters" / "index.html",
        page("clusters.html", 3, kinds=kinds, listed=listed, labels_of=labels_of),
    )
    size += write(work.out / "cluster.html", render("cluster.html", 2, site=work.site))
    for kind in kinds:
        (work.out / "clusters" / kind.name).mkdir(parents=True, exist_ok=True)
        contexts = _contexts(tables, work, kind)
        rows = {row["cluster"]: row for row in kind.summary.iter_rows(named=True)}
        for first in range(0, len(rows), CHUNK):
            numbers = range(first, min(first + CHUNK, len(rows)))
            pages = {n: cluster_page(work, kind, rows[n], contexts) for n in numbers}
            size += write_pages(work, f"clusters/{kind.name}", first // CHUNK, pages)
        for n in rows if work.has_redirects else ():
            redirect(
                work, old_place_of_cluster(kind.name, n), f"cluster.html#{kind.name}/{n}", f"Cluster {n}"
            )
    return size


def listed(kind: Kind) -> list[dict[str, Any]]:
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


def cluster_page(
    work: Work, kind: Kind, row: dict[str, Any], contexts: Mapping[int, tuple[str, str]]
) -> dict[str, Any]:
    """The page of one cluster, in the form of `features.feature_page`."""
    number_ = row["cluster"]
    return {
        "before": number_ - 1 if number_ else None,
        "after": number_ + 1 if number_ + 1 < kind.summary.height else None,
        "of": f"{kind.title}, cluster",
        "title": f"Cluster {number_} by {kind.title.lower()}",
        "name": kind.names[number_],
        "sections": [
            {"class": "facts", "blocks": [["facts", _facts(row)]]},
            *_members(work, kind, row),
            *_typical(work, kind, row),
            *_central(kind, row, contexts),
        ],
    }


def _facts(row: Mapping[str, Any]) -> list[list[str]]:
    """As `facts.facts`."""
    facts = [["size", whole(row["size"]), "", ""]]
    if "cohesion" in row:
        facts.append(["cohesion", number(row["cohesion"]), "mean cosine with the centre", ""])
    if "share" in row:
        facts.append(["share", percent(row["share"]), "of all activations, or of all contexts", ""])
    for label, value, part in majority(dict(row)):
        facts.append([f"most of {visible(label)}", f"{visible(value)} ({percent(part)})", "", ""])
    return facts


def _members(work: Work, kind: Kind, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The features of a cluster of features, the most central ones of a large one."""
    if kind.members is None:
        return []
    members = kind.members.filter(pl.col("cluster") == row["cluster"]).head(SHOWN_MEMBERS)
    if members.is_empty():
        return []
    cells = [
        [
            *(each["feature"], work.named(each["feature"]), number(each["score"])),
            *(whole(each["n_active"]), percent(each["frequency"]), number(each["mean_active"])),
        ]
        for each in members.iter_rows(named=True)
    ]
    small, blocks = "the most central first", [["table", table_of("list", "rtnnnn", cells, head=MEMBER_HEAD)]]
    if members.height < row["size"]:
        small += f", {members.height} of {whole(row['size'])}"
        if kind.name != "density":  # which is no column of the feature table
            column = "cocluster" if kind.name == "coactivation" else "cluster"
            blocks.insert(0, ["in_table", f"{column}={row['cluster']}", "All of them in the feature table"])
    return [{"title": "Features", "small": small, "blocks": blocks}]


def _typical(work: Work, kind: Kind, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of contexts and documents: the features that mark the cluster, with their lifts where there are any."""
    if kind.of_features or not row.get("features"):
        return []
    lifts = row.get("lifts") or [None] * len(row["features"])
    cells = [
        [feature, work.named(feature), number(lift)]
        for feature, lift in zip(row["features"], lifts, strict=True)
    ]
    small = "by lift: how much more often they are active here than overall"
    block = ["table", table_of("list", "rtn", cells, head=TYPICAL_HEAD)]
    return [{"title": "Typical features", "small": small, "blocks": [block]}]


def _central(
    kind: Kind, row: Mapping[str, Any], contexts: Mapping[int, tuple[str, str]]
) -> list[dict[str, Any]]:
    """The most central contexts with their labels, and the most central documents."""
    sections = []
    central = [n for n in row.get(CENTRAL.get(kind.name, "contexts")) or () if n in contexts]
    if central:
        texts = [
            [contexts[n][0], visible(" · ".join(filter(None, (contexts[n][1], f"context {n}"))))]
            for n in central
        ]
        sections.append({"class": "examples", "title": "Most central contexts", "blocks": [["texts", texts]]})
    documents = (row.get("examples") or []) if kind.name == "document" else []
    if documents:
        text = visible(", ".join(map(str, documents)))
        sections.append({"title": "Most central documents", "blocks": [["text", text]]})
    return sections


def _contexts(tables: Tables, work: Work, kind: Kind) -> dict[int, tuple[str, str]]:
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
    texts = dict[int, tuple[str, str]]()
    for row in table.iter_rows(named=True):
        ids = row["token_ids"][:CONTEXT_TOKENS]
        text = work.text(ids)
        label_text = " · ".join(str(row[LABEL + name]) for name in labels if row[LABEL + name] is not None)
        texts[row["context"]] = (text, label_text)
    return texts
