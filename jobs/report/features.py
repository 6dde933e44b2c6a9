"""The pages of features as data: a task reads a range of them from the scratch folder, and writes its files.

A page is a list of sections, and a section a list of blocks: a name and what it shows, which
`static/pages.js` makes elements of. All wording is here, or in `facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from jobs.report import rows
from jobs.report.facts import FIRST, facts
from jobs.report.histogram import histogram, over_vocabulary
from jobs.report.page import call, inside, number, packed_json, percent, render, whole, write
from jobs.report.source import Source
from jobs.report.strips import visible
from jobs.report.tables import CLUSTERS, ByFeature, read_range
from jobs.report.work import CHUNK, Work, chunk_path, old_place
from pipeline.store.reading.windows import read_windows
from pipeline.store.records.registry import job_of

SHOWN_EXAMPLES, SHOWN_NEIGHBOURS, SHOWN_LABELS = 10, 10, 12
"""Of a kind, by each measure, of a label: the other examples and labels are folded away."""

KINDS = {
    "top": ("Strongest rows", "Strongest"),
    "top_document": ("Strongest row of each document", "By document"),
    "quantile": ("By activation decile", "By activation decile"),
    "random": ("Contexts where it does not fire", "Not firing"),
}
"""Kinds of examples in their order: title, and what leads to them."""
MEASURES = {
    "jaccard": "Jaccard index: rows where both fire / rows where at least one fires",
    "npmi": "Normalised pointwise mutual information",
    "phi": "Phi coefficient: the correlation of firing",
    "conditional": "Conditional frequency: share of this feature's rows where the other fires",
    "cosine": "Cosine of decoder directions",
}
EFFECTS = (("Most promoted", "promoted", "effects"), ("Most suppressed", "suppressed", "effects"))
LOGITS = (("Highest logits", "top", "logits"), ("Lowest logits", "bottom", "logits"))
"""Tokens of the table `logits`: title, and how its columns are called."""

MATCH_HEAD = (("feature there", 0, ""), ("cosine", 1, ""), ("Jaccard", 1, ""), ("assigned", 0, ""))
LABEL_HEAD = (
    ("value", 0, ""),
    ("rows", 1, ""),
    ("active", 1, ""),
    ("frequency", 1, ""),
    ("difference", 1, "frequency here minus elsewhere"),
    ("z", 1, "difference / its standard error, clustered by document"),
    ("q", 1, "Benjamini and Hochberg"),
)
TREND_HEAD = (
    ("label", 0, ""),
    ("documents", 1, "documents with a value in which it fires"),
    ("slope", 1, "of the least-squares line through all documents' frequencies, each weighted by its rows"),
    ("se", 1, "clustered by document"),
    ("z", 1, "slope / its standard error"),
    ("q", 1, "Benjamini and Hochberg"),
)
"""Columns of a table: what stands above, whether it is a number, and what it means."""

Rows = list[dict[str, Any]]
Block = list[Any]
Section = dict[str, Any]


def write_features(work: Work, part: range) -> tuple[int, int]:
    """Write the pages of chosen[part], a whole number of files; how many pages, and their bytes."""
    # Rows lie by feature, so that a range of features is one stretch of each table.
    chosen = work.chosen[part.start : part.stop].tolist()
    tables = read_range(work.scratch, chosen[0], chosen[-1])
    windows = ByFeature(read_windows(work.windows, chosen[0], chosen[-1]))
    written = 0
    for first in range(0, len(chosen), CHUNK):
        pages = {f: feature_page(work, f, tables, windows) for f in chosen[first : first + CHUNK]}
        written += write_pages(work, "features", (part.start + first) // CHUNK, pages)
    if work.has_redirects:
        for feature in chosen:
            redirect(work, old_place(feature), f"feature.html#{feature}", f"Feature {feature}")
    return len(chosen), written


def write_pages(work: Work, folder: str, n: int, pages: Mapping[int, dict[str, Any]]) -> int:
    """Write a file of pages by their numbers; its bytes."""
    data = call("latentlakeChunk", f"{folder}/{n}", work.key, packed_json(pages))
    return write(inside(work.out, chunk_path(folder, n)), data)


def redirect(work: Work, old: str, to: str, title: str) -> None:
    """Write a file where a page lay in earlier reports, which leads to the page."""
    path = inside(work.out, old)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, render("redirect.html", 4, site=work.site, to=f"../../{to}", title=title))


def feature_page(
    source: Source, feature: int, tables: Mapping[str, ByFeature], windows: ByFeature
) -> dict[str, Any]:
    """The page of one feature.

    `before` and `after` are the features with a page next to it, `fires` the tokens it fires on, `most` its
    largest |activation|, by which all its strips are shaded; `toc` leads to the sections that have an id.
    """
    rows_of = {name: table.rows_of(feature) for name, table in tables.items()}
    (row,) = rows_of["features"]
    before, after = source.around(feature)
    examples = _examples(source, windows.rows_of(feature))
    kinds = list(dict.fromkeys(kind for kind, _ in examples))
    return {
        "before": before,
        "after": after,
        "fires": source.named(feature),
        # All strips of a page share one scale, so that shades compare across kinds of examples.
        "most": rows.short(max(abs(row["max_activation"] or 0), abs(row["min_activation"] or 0))),
        "toc": [
            *((kind, KINDS[kind][1] if kind in KINDS else visible(kind)) for kind in kinds),
            *((name.lower(), name) for name in ("Logits", "Neighbours", "Clusters", "Labels")),
        ],
        "sections": [
            _statistics(source, row, rows_of),
            _histogram(row),
            *(section for kind, section in examples if kind == "top"),
            _logits(source, rows_of.get("logits", [])),
            _neighbours(source, rows_of),
            *_matches(source, rows_of),
            _clusters(source, rows_of),
            _labels(source, rows_of),
            *(section for kind, section in examples if kind != "top"),
            *_other_examples(row, kinds),
        ],
    }


def _absent(source: Source, what: str, table: str) -> Block:
    return ["absent", what, source.missing.get(table, f"latentlake {job_of(table)}")]


def _statistics(source: Source, row: Mapping[str, Any], tables: Mapping[str, Rows]) -> Section:
    profile = next(iter(tables.get("profile", ())), None)
    top_token = profile["top_token"] if profile else None
    name = None if top_token is None else source.token(top_token)
    blocks = [["facts", facts(row, profile, name, tables.get("rankings", [])), FIRST]]
    if not profile:
        blocks.append(_absent(source, "intervals and token statistics", "profile"))
    return {"class": "facts", "aria": "Statistics", "blocks": blocks}


def _histogram(row: Mapping[str, Any]) -> Section:
    if not row["n_active"]:
        return {"blocks": [["none", f"It never fired in {whole(row['counted_rows'])} counted rows."]]}
    small = f"{whole(row['n_active'])} active rows; the area of a bar is its number of rows; log scale"
    drawn = histogram(row["histogram_bins"], row["histogram_counts"])
    return {"title": "Activations", "small": small, "blocks": [["histogram", drawn]]}


def _examples(source: Source, windows: Rows) -> list[tuple[str, Section]]:
    """Examples with their kind, in the order of KINDS, quantiles from the highest tenth down."""
    by_kind = dict[tuple[str, int], list[rows.Row]]()
    for window in windows:
        by_kind.setdefault((window["kind"], window["interval"]), []).append(rows.example(source, window))
    # Kinds that this version does not know come last, by name.
    order = {kind: place for place, kind in enumerate(KINDS)}
    sections = list[tuple[str, Section]]()
    for kind, interval in sorted(by_kind, key=lambda key: (order.get(key[0], len(order)), key[0], -key[1])):
        section: Section = {"class": "examples", "blocks": []}
        if not sections or sections[-1][0] != kind:
            section |= {"id": kind, "title": KINDS.get(kind, (visible(kind),))[0]}
        if kind == "quantile":
            section["blocks"].append(["heading", f"{interval * 10} to {interval * 10 + 10} %", ""])
        section["blocks"].append(["strips", by_kind[kind, interval], SHOWN_EXAMPLES])
        sections.append((kind, section))
    return sections


def _other_examples(row: Mapping[str, Any], kinds: Sequence[str]) -> list[Section]:
    if not row["n_active"] or "top_document" in kinds:
        return []
    what = "examples of each document, or of rows where it does not fire"
    return [{"blocks": [["absent", what, "latentlake examples"]]}]


def table_of(kind: str, columns: str, cells: Sequence[rows.Row], **more: Any) -> dict[str, Any]:
    """A table: its class, a letter for each column that says how a cell is shown, and the cells.

    Letters: t tokens, f a feature with its link, r the same as the head of its row, m a feature of another
    site, n a number, s a number that stands back, b text of the corpus, p text of ours. `more`: caption and
    its meaning, head, fold, and `clear`, the rows that stand out.
    """
    return {"class": kind, "columns": columns, "rows": list(cells), **more}


def _logits(source: Source, table: Rows) -> Section:
    section: Section = {
        "id": "logits",
        "title": "Logits",
        "small": "direct effect of its decoder direction on the next token",
    }
    if not table:
        return section | {"blocks": [_absent(source, "logits", "logits")]}
    (row,) = table
    blocks = list[Block]()
    if row.get("promoted_tokens"):
        blocks += [
            ["heading", "Without any norm", "W_dec @ W_U, about its mean over the vocabulary"],
            ["tables", _listed_tokens(source, row, EFFECTS)],
        ]
        # tables of earlier versions do not have it
        if not (counts := row.get("effect_counts")):
            blocks.append(["absent", "histogram over the vocabulary", f"latentlake {job_of('logits')}"])
        elif row["effect_low"] < row["effect_high"]:  # a direction of zeros has no effect on any token
            blocks.append(["histogram", over_vocabulary(row["effect_low"], row["effect_high"], counts)])
        blocks.append(["heading", "Through the final norm", "with b_dec added"])
    entropy, largest = number(row["entropy_bits"]), percent(row["max_probability"])
    note = f"Entropy {entropy} bits, largest probability {largest}"
    return section | {"blocks": [*blocks, ["note", note], ["tables", _listed_tokens(source, row, LOGITS)]]}


def _listed_tokens(source: Source, row: Mapping[str, Any], ends: Sequence[tuple[str, str, str]]) -> Rows:
    """A table of the tokens at either end."""
    sides = []
    for title, name, of in ends:
        tokens, values = row.get(f"{name}_tokens") or (), row.get(f"{name}_{of}") or ()
        cells = [[source.alone([t]), number(value)] for t, value in zip(tokens, values, strict=True)]
        if cells:
            sides.append(table_of("logits", "tn", cells, caption=[title, ""]))
    return sides


def _neighbours(source: Source, tables: Mapping[str, Rows]) -> Section:
    """The nearest neighbours by each measure; a table without `by` has those by Jaccard index."""
    lists = [
        (by, [rows.neighbour(source, row, by) for row in islice(group, SHOWN_NEIGHBOURS)])
        for by, group in groupby(tables.get("neighbours", ()), key=lambda row: row.get("by", "jaccard"))
    ]
    if decoder := tables.get("decoder_neighbours"):
        lists.append(
            ("cosine", [rows.neighbour(source, row, "cosine") for row in decoder[:SHOWN_NEIGHBOURS]])
        )
    blocks = list[Block]()
    if lists:
        shown = [
            table_of("neighbours", "ftns", cells, caption=[visible(by), MEASURES.get(by, "")])
            for by, cells in lists
        ]
        blocks.append(["tables", shown])
    elif "neighbours" not in source.missing:
        blocks.append(["none", "None: no feature shares enough rows with it."])
    if "neighbours" in source.missing:
        blocks.append(_absent(source, "neighbours by co-activation", "neighbours"))
    return {"id": "neighbours", "title": "Neighbours", "blocks": blocks}


def _matches(source: Source, tables: Mapping[str, Rows]) -> list[Section]:
    sections = []
    for name, pairs in tables.items():
        if job_of(name) == "match" and pairs:
            cells = [rows.match(source, name, row) for row in pairs]
            block = ["table", table_of("neighbours", "mnnp", cells, head=MATCH_HEAD)]
            sections.append({"title": "Matches", "small": visible(name), "blocks": [block]})
    return sections


def _clusters(source: Source, tables: Mapping[str, Rows]) -> Section:
    """The clusters that the feature is in."""
    clusters = []
    for kind, title in CLUSTERS.items():
        for row in tables.get(f"{kind}_clusters", ()):
            if (cluster := row["cluster"]) is not None:
                names = source.cluster_names.get(kind, ())
                clusters.append([title, kind, cluster, names[cluster] if cluster < len(names) else ""])
    if clusters:
        block: Block = ["clusters", clusters]
    elif "feature_clusters" in source.missing:
        block = _absent(source, "clusters", "feature_clusters")
    else:
        block = ["none", "In none."]
    return {"id": "clusters", "title": "Clusters", "blocks": [block]}


def _labels(source: Source, tables: Mapping[str, Rows]) -> Section:
    """Values of each label, the clearest differences first, and the trends over numeric ones."""
    by_label, blocks = dict[str, Rows](), list[Block]()
    for row in tables.get("labels", []):
        by_label.setdefault(row["label"], []).append(row)
    for name, group in by_label.items():
        group.sort(key=lambda row: (-abs(row["z"] or 0), str(row["value"])))
        blocks += [
            ["heading", visible(name), ""],
            ["table", _tested(group, rows.label, LABEL_HEAD, SHOWN_LABELS)],
        ]
    if not by_label:
        none = "None: it fires in no document with a label that is compared."
        is_missing = "labels" in source.missing
        blocks.append(_absent(source, "differences by label", "labels") if is_missing else ["none", none])
    if trends := tables.get("label_trends"):
        small = "how its frequency changes from one unit of a numeric label to the next"
        blocks += [["heading", "Trends", small], ["table", _tested(trends, rows.trend, TREND_HEAD, None)]]
    elif "label_trends" in source.missing and "labels" not in source.missing:
        blocks.append(_absent(source, "trends over numeric labels", "label_trends"))
    return {"id": "labels", "title": "Labels", "blocks": blocks}


def _tested(
    table: Rows, cells: Callable[[dict[str, Any]], rows.Row], head: Sequence[Any], fold: int | None
) -> dict[str, Any]:
    """A table of tests, in which the rows that are clear stand out."""
    clear = [place for place, row in enumerate(table) if rows.is_clear(row)]
    columns = "b" + "n" * (len(head) - 1)
    return table_of("labels", columns, [cells(row) for row in table], head=head, clear=clear, fold=fold)
