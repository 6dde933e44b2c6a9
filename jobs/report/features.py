"""The pages of features: a task reads a range of them from the scratch folder, and renders each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.report.histogram import histogram
from jobs.report.page import render, write
from jobs.report.strips import alone, escaped, strip
from jobs.report.tables import CLUSTERS, MATCHES, ByFeature, read_range, texts_of
from jobs.report.windows import LABEL, read_windows
from pipeline.store.parquet import read_frame
from schemas.layout import StorePath
from schemas.values import I32, I64

FOLDER_SIZE = 1000
"""Pages in one folder: feature 12345 lies in features/12."""
DEPTH = 4
"""Folders from a feature's page up to the report's."""

SHOWN_LABELS = 12
"""Values of a label that a page shows at once; the others are folded away."""

KINDS = {
    "top": "Strongest rows",
    "top_document": "Strongest row of each document",
    "quantile": "Samples by tenths of the active rows",
    "random": "Rows where it does not fire",
}
LOGITS = (
    ("Highest logits", "top", "logits"),
    ("Lowest logits", "bottom", "logits"),
    ("Most promoted", "promoted", "effects"),
    ("Most suppressed", "suppressed", "effects"),
)
"""Tokens of the table `logits`: title, and how its columns are called."""

MEASURES = {
    "jaccard": "Jaccard index: rows where both fire / rows where either does",
    "npmi": "Normalised pointwise mutual information",
    "phi": "Phi coefficient: the correlation of firing",
    "conditional": "Conditional frequency: share of this feature's rows where the other fires",
    "cosine": "Cosine of decoder directions",
}


@dataclass(frozen=True)
class Work:
    """All that a task needs to make pages of one site."""

    scratch: Path
    windows: tuple[Path, ...]
    out: StorePath
    """The site's folder in the report."""
    site: str
    vocabulary: StorePath
    d_sae: int
    missing: Mapping[str, str]
    """Tables that are not there, and the commands that make them."""
    cluster_names: Mapping[str, Sequence[str]]
    """Of each kind of feature clusters, what each cluster is called."""

    @property
    def chosen(self) -> I64:
        """Features with a page, ascending."""
        found: I64 = _array(self.scratch / "chosen.npy")
        return found

    @property
    def names(self) -> I32:
        """Tokens on which each feature fires, int32 [d_sae, n], see `tables.names_of`."""
        found: I32 = _array(self.scratch / "names.npy")
        return found

    def has_page(self, feature: int) -> bool:
        """Whether the report has a page of a feature."""
        place = int(np.searchsorted(self.chosen, feature))
        return place < len(self.chosen) and int(self.chosen[place]) == feature

    def link(self, feature: int) -> Link:
        """What stands for a feature on a page of the site."""
        texts = texts_of(self.names[feature].tolist(), alone_texts(self.vocabulary))
        return Link(feature, path_of(feature) if self.has_page(feature) else None, texts)


@dataclass(frozen=True)
class Link:
    """A feature, where its page lies below the site's folder (None: it has none), and what it fires on."""

    feature: int
    path: str | None
    tokens: list[str]


def path_of(feature: int) -> str:
    """Where the page of a feature lies, below the site's folder."""
    return f"features/{feature // FOLDER_SIZE}/{feature}.html"


@cache
def _array(path: Path) -> Any:
    return np.load(path, mmap_mode="r")


@cache
def vocabulary_of(path: StorePath) -> list[str]:
    """Text of each token."""
    texts: list[str] = read_frame(path)["text"].to_list()
    return texts


@cache
def pieces_of(path: StorePath) -> list[str]:
    """What each token puts into a strip, as HTML."""
    return escaped(vocabulary_of(path))


@cache
def alone_texts(path: StorePath) -> list[str]:
    """Each token as it is written where it stands by itself."""
    return [alone(text) for text in vocabulary_of(path)]


def write_features(work: Work, part: range) -> tuple[int, int]:
    """Write the pages of chosen[part]; how many, and their bytes."""
    chosen = work.chosen[part.start : part.stop].tolist()
    tables = read_range(work.scratch, chosen[0], chosen[-1])
    windows = ByFeature(read_windows(work.windows, chosen[0], chosen[-1]))
    for folder in {feature // FOLDER_SIZE for feature in chosen}:
        make_folder(work.out / "features" / str(folder))
    size = sum(
        write(_path(work, feature), feature_page(work, feature, tables, windows)) for feature in chosen
    )
    return len(chosen), size


def make_folder(path: StorePath) -> None:
    """Make a folder, where there are such things."""
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)


def _path(work: Work, feature: int) -> StorePath:
    path = work.out
    for part in path_of(feature).split("/"):
        path = path / part
    return path


def feature_page(work: Work, feature: int, tables: Mapping[str, ByFeature], windows: ByFeature) -> bytes:
    """The page of one feature."""
    (row,) = tables["features"].of(feature)
    place = int(np.searchsorted(work.chosen, feature))
    return render(
        "feature.html",
        DEPTH,
        site=work.site,
        feature=work.link(feature),
        before=int(work.chosen[place - 1]) if place else None,
        after=int(work.chosen[place + 1]) if place + 1 < len(work.chosen) else None,
        path_of=path_of,
        row=row,
        profile=_first(tables, "profile", feature, work.vocabulary),
        ranks=tables["rankings"].of(feature) if "rankings" in tables else [],
        histogram=histogram(row["histogram_bins"], row["histogram_counts"]) if row["n_active"] else None,
        examples=_examples(work, row, windows.of(feature)),
        logits=_logits(work, tables, feature),
        neighbours=_neighbours(work, tables, feature),
        matches=[(name, tables[name].of(feature)) for name in tables if name.startswith(MATCHES)],
        clusters=_clusters(work, tables, feature),
        labels=_labels(tables, feature),
        missing=work.missing,
        measures=MEASURES,
    )


def _first(
    tables: Mapping[str, ByFeature], name: str, feature: int, vocabulary: StorePath
) -> dict[str, Any] | None:
    """The row of one feature in a table that has one of each, its token written out."""
    rows = tables[name].of(feature) if name in tables else []
    if not rows:
        return None
    token = rows[0].get("top_token")
    return rows[0] | {"top_token_text": None if token is None else texts_of([token], alone_texts(vocabulary))}


@dataclass(frozen=True)
class Example:
    """One strip, and what is told of its row."""

    strip: Markup
    activation: float
    cut_before: bool
    cut_after: bool
    labels: str
    context: int
    position: int
    document: int


@dataclass(frozen=True)
class Examples:
    """The strips of one kind, perhaps of one interval of it."""

    kind: str
    title: str
    interval: int | None
    strips: list[Example]


def _examples(work: Work, row: Mapping[str, Any], windows: list[dict[str, Any]]) -> list[Examples]:
    """Examples by kind in the order of KINDS, quantiles from the highest tenth down."""
    most = max(abs(row["max_activation"] or 0), abs(row["min_activation"] or 0))
    pieces, found = pieces_of(work.vocabulary), dict[tuple[str, int], list[Example]]()
    for window in windows:
        found.setdefault((window["kind"], window["interval"]), []).append(_example(window, pieces, most))
    order = list(KINDS)
    kinds = sorted(found, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), -key[1]))
    return [
        Examples(kind, KINDS.get(kind, kind), interval if kind == "quantile" else None, found[kind, interval])
        for kind, interval in kinds
    ]


def _example(window: Mapping[str, Any], pieces: Sequence[str], most: float) -> Example:
    labels = (str(value) for name, value in window.items() if name.startswith(LABEL) and value is not None)
    return Example(
        strip([pieces[token] for token in window["token_ids"]], window["values"], window["firing"], most),
        window["activation"],
        not window["from_start"],
        not window["to_end"],
        " · ".join(labels),
        window["context"],
        window["position"],
        window["document"],
    )


def _logits(work: Work, tables: Mapping[str, ByFeature], feature: int) -> dict[str, Any] | None:
    rows = tables["logits"].of(feature) if "logits" in tables else []
    if not rows:
        return None
    texts, row = alone_texts(work.vocabulary), rows[0]
    sides = []
    for title, name, of in LOGITS:
        tokens, logits = row.get(f"{name}_tokens") or (), row.get(f"{name}_{of}") or ()
        found = [
            (text, logit)
            for token, logit in zip(tokens, logits, strict=True)
            for text in texts_of([token], texts)
        ]
        sides += [(title, found)] if found else []
    return {"entropy_bits": row["entropy_bits"], "max_probability": row["max_probability"], "sides": sides}


def _neighbours(
    work: Work, tables: Mapping[str, ByFeature], feature: int
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Neighbours by measure, each with its link and the `value` it was chosen by."""
    found = list[tuple[str, list[dict[str, Any]]]]()
    rows = tables["neighbours"].of(feature) if "neighbours" in tables else []
    for measure, group in groupby(rows, key=lambda row: row.get("by", "jaccard")):
        found.append((measure, [_neighbour(work, row, row[measure]) for row in group]))
    rows = tables["decoder_neighbours"].of(feature) if "decoder_neighbours" in tables else []
    if rows:
        found.append(("cosine", [_neighbour(work, row, row["cosine"]) for row in rows]))
    return found


def _neighbour(work: Work, row: dict[str, Any], value: float) -> dict[str, Any]:
    return {"link": work.link(row["neighbour"]), "value": value, "n_both": row.get("n_both")}


def _clusters(work: Work, tables: Mapping[str, ByFeature], feature: int) -> list[dict[str, Any]]:
    """The clusters that the feature is in."""
    found = []
    for kind, title in CLUSTERS.items():
        rows = tables[f"{kind}_clusters"].of(feature) if f"{kind}_clusters" in tables else []
        cluster = rows[0].get("cluster") if rows else None
        if cluster is not None:
            names = work.cluster_names.get(kind, ())
            name = names[cluster] if cluster < len(names) else ""
            found.append({"kind": kind, "title": title, "cluster": cluster, "name": name})
    return found


def _labels(tables: Mapping[str, ByFeature], feature: int) -> list[tuple[str, list[dict[str, Any]], int]]:
    """Values of each label, the clearest differences first, and how many of them are shown at once."""
    rows = tables["labels"].of(feature) if "labels" in tables else []
    by_label = dict[str, list[dict[str, Any]]]()
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    return [(label, sorted(some, key=_clearness), SHOWN_LABELS) for label, some in by_label.items()]


def _clearness(row: Mapping[str, Any]) -> tuple[float, str]:
    return (-abs(row["z"] or 0), str(row["value"]))


def parts_of(n: int, size: int) -> Iterable[range]:
    """0 .. n - 1 in ranges of `size`."""
    return (range(first, min(first + size, n)) for first in range(0, n, size))
