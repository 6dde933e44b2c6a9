"""The tables of `profile`, made from postings and token shards by ranges of features.

A first pass over the token shards learns the labels' values. Then a task takes a range of features and reads
their activations and the tokens of every shard, in shard order; no bit depends on the ranges. They are cut so
that what a task holds stays below RANGE_BYTES: 64 bytes for each token that each feature may fire on (at most
its activations, or the vocabulary; 128 where pairs of tokens and features are wanted), 40 for each feature
and value of a label, and 48 for each feature and numeric label. Besides that it holds the tokens of one
shard, some 60 bytes a row, and a run of a million activations.

The cost is some 0.15 microseconds of one core for each activation, plus, for each range, 0.1 for each row of
the lake: a billion activations of 65,536 features are some dozens of ranges. Where a pass has no postings
each task reads every CSR whole. The tables are put together in the caller's memory: 100 bytes a feature, and
as much for each feature and value of a label that it fires with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import polars as pl

from pipeline.statistics.documents.clustered import DocumentTotals, document_rows, document_totals
from pipeline.statistics.documents.document_groups import Grouping, Label
from pipeline.statistics.documents.trends import NumericLabel
from pipeline.statistics.features.ragged import runs_within
from pipeline.statistics.l0 import add_rows, l0_above
from pipeline.statistics.profile.profile import Profiler, ShardRows, with_q
from pipeline.statistics.profile.tallies import PAIR_BYTES, SUM_BYTES
from pipeline.store.derived.token_features import TokenPairs, added
from pipeline.store.formats.parquet import scan_frame
from pipeline.store.reading.shard_files import ShardFiles, read_n_active
from pipeline.store.reading.site_access import SiteAccess
from pipeline.store.records.tokens import read_document_labels, read_token_shard
from pipeline.tasks import Tasks
from schemas.layout import Layout
from schemas.records import Lake
from schemas.tables.tables import L0_THRESHOLDS, LABEL_TRENDS, LABEL_VALUES, LABELS, PROFILE, Schema
from schemas.values import I64, RowSelection, TokenShard

RANGE_BYTES = 1 << 28
MOST_VALUES, MOST_LABEL_ROWS = 256, 1 << 23
"""Values of a label that are compared; of a wide SAE fewer, so that `labels` stays below so many rows."""
MOST_DISTINCT = 1 << 16
"""A column of more values than this, such as a name of each document, is taken for no label."""

_SUMS = ["documents", "rows", "rows_squared"]
_VALUES: Schema = {"label": pl.String(), "value": pl.String(), **dict.fromkeys(_SUMS, pl.Int64())}

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Tokens:
    """How to read the token shards of a site."""

    layout: Layout
    lake: Lake
    selection: RowSelection

    @classmethod
    def of(cls, store: SiteAccess, site: str) -> Tokens:
        """Of a site."""
        return cls(store.layout, store.lake, store.site(site).selection)

    @property
    def labels(self) -> list[str]:
        """Label columns."""
        return list(self.lake.label_columns)

    def read(self, shard: ShardFiles, inputs: bool = False) -> TokenShard:
        """One token shard as the site counts it; its checksum is for `verify` to check."""
        tokens = read_token_shard(self.layout, self.lake, shard.record, verify=False, inputs=inputs)
        return tokens.restrict(self.selection, self.lake.context_size)

    def read_labels(self, shard: ShardFiles, names: Sequence[str]) -> pl.DataFrame:
        """Labels of its documents."""
        return read_document_labels(self.layout, shard.record, names)


def profile_tables(
    store: SiteAccess,
    site: str,
    tasks: Tasks,
    advance: Advance,
    most: int | None = None,
    pairs: TokenPairs | None = None,
) -> dict[str, pl.DataFrame]:
    """The tables `profile`, `labels`, `label_trends` and `label_values`.

    `advance` is called with the number of features that are done. `most`: values of a label column that are
    compared, those of most rows; None: `most_values`. `pairs` takes the pairs of tokens and features.
    """
    tokens, shards, d_sae = Tokens.of(store, site), store.shard_files(site), store.site(site).d_sae
    totals, known, rows_of_token = survey(tokens, shards, tasks)
    grouping, values = group(totals, known, store.lake.label_columns, most or most_values(d_sae))
    parts = [tuple(pl.DataFrame(schema=schema) for schema in (PROFILE, LABELS, LABEL_TRENDS))]
    least = None
    if pairs is not None:
        pairs.count_rows(rows_of_token)
        least = pairs.least
    ranges = feature_ranges(store, site, grouping.bytes_per_feature, token_sums=pairs is not None)
    for some, some_pairs in tasks.map(partial(profile_range, tokens, shards, grouping, least), ranges):
        parts.append(some)
        if pairs is not None:
            pairs.add(*some_pairs)
        advance(some[0].height)
    profile, labels, trends = (pl.concat(part) for part in zip(*parts, strict=True))
    tested = {"labels": with_q(labels), "label_trends": with_q(trends, ("label",))}
    return {"profile": profile, **tested, "label_values": values}


def l0_thresholds(
    store: SiteAccess, site: str, thresholds: Sequence[float], tasks: Tasks, advance: Advance
) -> pl.DataFrame:
    """The table `l0_thresholds`; a task reads one shard, and `advance` counts the shards that are done."""
    counts = pl.DataFrame(schema=L0_THRESHOLDS)
    for some in tasks.map(partial(_count_above, thresholds), store.shard_files(site)):
        counts = add_rows([counts, some], L0_THRESHOLDS)
        advance(1)
    return counts


def _count_above(thresholds: Sequence[float], shard: ShardFiles) -> pl.DataFrame:
    matrix, counted = shard.read_csr(), int(shard.read_row_counts()["rows"].sum())
    return l0_above(matrix.indptr.astype(np.int64), matrix.data, counted, thresholds)


def most_values(d_sae: int) -> int:
    """Values of a label column that are compared."""
    return max(8, min(MOST_VALUES, MOST_LABEL_ROWS // d_sae))


def feature_ranges(
    store: SiteAccess, site: str, of_documents: int, *, token_sums: bool = False
) -> list[range]:
    """All features, in order, in ranges of which a task holds some RANGE_BYTES.

    `of_documents`: bytes that the sums over documents take of each feature; `token_sums`: whether there are
    sums for each pair with a token.
    """
    d_sae = store.site(site).d_sae
    n_active = read_n_active(store.shard_files(site), range(d_sae))
    vocabulary = store.layout.vocabulary
    tokens = scan_frame(vocabulary).select(pl.len()).collect().item() if vocabulary.is_file() else np.inf
    of_tokens = (PAIR_BYTES + SUM_BYTES * token_sums) * np.minimum(n_active, tokens)
    of_positions = PAIR_BYTES * np.minimum(n_active, store.lake.context_size)
    ends = np.append(0, np.cumsum(of_tokens + of_positions + of_documents))
    return list(runs_within(ends, RANGE_BYTES))


def profile_range(
    tokens: Tokens, shards: Sequence[ShardFiles], grouping: Grouping, least: int | None, features: range
) -> tuple[tuple[pl.DataFrame, ...], tuple[pl.DataFrame, ...]]:
    """Of some features the rows of `profile`, `labels` and `label_trends`, q left out; and what
    `Profiler.token_pairs` gives for `least` (nothing for None).
    """
    profiler = Profiler(features, grouping, token_sums=least is not None)
    names = [label.name for label in grouping.labels]
    for shard in shards:
        # the tokens, which take longest to read, only of shards in which one of the features fires
        runs = shard.postings_of(features)
        if (first := next(runs, None)) is None:
            continue
        rows = ShardRows.of(tokens.read(shard), grouping, tokens.read_labels(shard, names))
        for postings in chain([first], runs):
            profiler.add(postings, rows)
    pairs = () if least is None else profiler.token_pairs(least)
    return (profiler.profile(), profiler.labels(), profiler.trends()), pairs


def survey(
    tokens: Tokens, shards: Sequence[ShardFiles], tasks: Tasks
) -> tuple[DocumentTotals, pl.DataFrame, I64]:
    """Totals of all documents, and of those with each value of each label (columns _VALUES); the counted rows
    of each token, int64 [V].

    Columns with more than MOST_DISTINCT values are left out.
    """
    totals, values, left_out = DocumentTotals(), pl.DataFrame(schema=_VALUES), set[str]()
    rows_of_token = np.zeros(0, np.int64)
    for shard_totals, some, shard_rows in tasks.map(partial(_survey_shard, tokens), shards):
        totals += shard_totals
        rows_of_token = added(rows_of_token, shard_rows)
        values = pl.concat([values, some]).group_by("label", "value").agg(pl.col(_SUMS).sum())
        counts = values.group_by("label").len()
        left_out |= set(counts.filter(pl.col("len") > MOST_DISTINCT)["label"])
        values = values.filter(~pl.col("label").is_in(list(left_out)))
    return totals, values, rows_of_token


def _survey_shard(tokens: Tokens, shard: ShardFiles) -> tuple[DocumentTotals, pl.DataFrame, I64]:
    shard_tokens = tokens.read(shard)
    labels = tokens.read_labels(shard, tokens.labels)
    rows = pl.Series(document_rows(shard_tokens)[1])
    sums = {
        "documents": pl.len().cast(pl.Int64),
        "rows": pl.col("rows").sum(),
        "rows_squared": (pl.col("rows") ** 2).sum(),
    }
    frames = [  # a label may be called rows, so it stands alone
        pl.DataFrame({"value": labels[name], "rows": rows})
        .filter(pl.col("rows") > 0)
        .group_by("value")
        .agg(**sums)
        .select(pl.lit(name).alias("label"), "value", *sums)
        for name in tokens.labels
    ]
    values = pl.concat([pl.DataFrame(schema=_VALUES), *frames])
    return document_totals(shard_tokens), values, np.bincount(shard_tokens.token_ids[shard_tokens.counted])


def group(
    totals: DocumentTotals, values: pl.DataFrame, columns: dict[str, str], most: int
) -> tuple[Grouping, pl.DataFrame]:
    """Groups for the `most` values of each label column that have most rows; the table `label_values`.

    Values stand in their order: numbers as numbers, text as text.
    """
    labels, numeric, frames = [], [], [pl.DataFrame(schema=LABEL_VALUES)]
    for name, dtype in columns.items():
        of = values.filter(label=name)
        if of.is_empty():
            continue
        is_number = dtype in ("Int64", "Float64")
        order = pl.col("value").cast(pl.Float64) if is_number else pl.col("value")
        first = of.drop_nulls("value").sort("rows", "value", descending=[True, False]).head(most)["value"]
        compared = pl.col("value").is_in(first.implode()).fill_null(value=False)
        of = of.sort(order, "value", nulls_last=True).with_columns(compared=compared)
        kept = of.filter("compared")
        rest = of.filter(~pl.col("compared") & pl.col("value").is_not_null())
        sums = [DocumentTotals(*row) for row in kept.select(_SUMS).rows()]
        sums.append(DocumentTotals(*rest.select(pl.col(_SUMS).sum()).row(0)))
        labels.append(Label(name, tuple(kept["value"]), tuple(sums)))
        frames.append(of.select(*LABEL_VALUES))
        if is_number:
            # a trend takes all values in, not those alone that are compared; None: it has no slope
            known = of.drop_nulls("value")
            of_values = (known[column].to_numpy() for column in _SUMS)
            numeric.append(NumericLabel.of(name, known["value"].cast(pl.Float64).to_numpy(), *of_values))
    slopes = tuple(label for label in numeric if label is not None)
    return Grouping(totals, tuple(labels), slopes), pl.concat(frames)
