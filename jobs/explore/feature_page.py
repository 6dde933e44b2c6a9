"""The page of a feature, made of the store when it is requested: the data that a report has in its files."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from jobs.explore.site_tables import SiteTables
from jobs.report import rows
from jobs.report.features import SHOWN_NEIGHBOURS, feature_page
from jobs.report.source import Names, Source, shortened
from jobs.report.strips import visible
from jobs.report.tables import ByFeature
from pipeline.store import FeatureStore
from pipeline.store.derived.names import FeatureNames, most_fired
from pipeline.store.feature_store import strongest
from pipeline.store.reading.contexts import label_column
from pipeline.store.reading.label_filters import label_filter, require_values
from pipeline.store.records.vocabulary import Vocabulary
from schemas.tables.tables import EXAMPLES
from schemas.values import F32, U64

SHOWN_STRONGEST = 20
"""Strongest rows that a page shows where there is no table of examples."""


class LiveSource(Source):
    """What the page of one feature is made from; the page has the texts of its tokens, in `texts`."""

    def __init__(self, store: FeatureStore, site: str, tables: SiteTables, names: FeatureNames) -> None:
        """`tables` are open, and `names` read for the features that the page names."""
        self._store, self._names = store, names
        info = store.site(site)
        self._d_sae, self.averaged = info.d_sae, info.selection.is_averaged
        self.missing, self.cluster_names = tables.missing(), tables.cluster_names()
        self._others: dict[str, FeatureNames] = {}
        """Of other sites, as far as they were needed."""
        self._places: dict[str, int] = {}
        self._of_tokens: dict[int, int | None] = {}

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the lake."""
        return self._store.vocabulary

    @property
    def texts(self) -> list[str]:
        """The texts of the tokens that the page names, by place."""
        return list(self._places)

    def place(self, token: int) -> int | None:
        """Where a token's text stands in `texts`, from now on."""
        if token not in self._of_tokens:
            texts = self.vocabulary.texts  # a model may have more logits than there are tokens
            has_text = token < len(texts)
            self._of_tokens[token] = self.place_of_text(visible(texts[token])) if has_text else None
        return self._of_tokens[token]

    def place_of_text(self, text: str) -> int:
        """The same of a text."""
        return self._places.setdefault(text, len(self._places))

    def named(self, feature: int) -> Names:
        """The name that a feature was given, else the tokens it fires on."""
        name = self._names.name(feature)
        if self._names.source(feature) == "tokens":
            return [self.place_of_text(visible(part)) for part in name.split(" ")]
        return [shortened(name)] if name else []

    def around(self, feature: int) -> tuple[int | None, int | None]:
        """Every feature has a page."""
        return feature - 1 if feature else None, feature + 1 if feature + 1 < self._d_sae else None

    def matched(self, table: str, feature: int) -> Any:
        """The site, number and name of a feature of another site; the number alone of another store's."""
        site = table.removeprefix("matches_")
        if site not in self._store.sites:
            return str(feature)
        if site not in self._others:
            self._others[site] = self._store.names(site)
        return [site, feature, shortened(self._others[site].name(feature))]

    def address(self, window: Mapping[str, Any]) -> list[int]:
        """The context and row of an example, which its whole context is shown by."""
        return [window["context"], window["row"]]


class FeaturePages:
    """The pages of a site's features; one is made at a time."""

    def __init__(self, store: FeatureStore, site: str) -> None:
        """InputError where the site has no features."""
        self._store, self._site = store, store.require_features(site).name
        self._tables = SiteTables(store, site)
        self._lock = threading.Lock()

    def open(self) -> None:
        """Check the tables, and read the footers of the activations; a page does it where it is not done."""
        with self._lock:
            self._tables.open()
            self._store.rows_of(self._site, 0)
            _ = self._store.vocabulary.texts

    def page(self, feature: int) -> dict[str, Any]:
        """What `jobs.report.features.feature_page` makes, and what only the application shows.

        `texts` of the tokens by place, `annotation` (star, name, note), `neighbour`: the first that the page
        lists, or None, `stale`: tables that were made before the newest shards, with the command that makes
        each. InputError where there is no feature table.
        """
        self._store.require_feature(self._site, feature)
        with self._lock:
            tables = self._tables.rows_of(feature)
            examples = tables.pop("examples", None)
            activations = self._store.rows_of(self._site, feature)
            if examples is None:
                examples = _strongest(feature, *activations)
            windows = self._windows(examples, *activations)
            neighbours = _neighbours(tables)
            names = self._store.names(self._site, [feature, *neighbours])
            source = LiveSource(self._store, self._site, self._tables, names)
            by_feature = {name: ByFeature(frame) for name, frame in tables.items()}
            page = feature_page(source, feature, by_feature, ByFeature(windows))
            page["fires"] = self._fires(source, feature, windows)
            return page | {
                "site": self._site,
                "feature": feature,
                "annotation": annotation_of(names, feature),
                "neighbour": next(iter(neighbours), None),
                "stale": self._tables.stale(),
                "tokens": source.texts,
            }

    def examples(self, feature: int, where: Sequence[str], k: int) -> dict[str, Any]:
        """The `k` strongest rows of a feature that fit all conditions on labels, as strips.

        `active` rows there are, `matching` ones fit; `mean` of these activations; `most` is the largest
        |activation| anywhere. InputError for a condition that cannot be read, or that no document fits.
        """
        filters = [label_filter(self._store, text, label_column) for text in where]
        with self._lock:
            all_rows, all_values = self._store.rows_of(self._site, feature)
            condition = pl.all_horizontal(filters) if filters else None
            matching, values = self._store.rows_where(all_rows, all_values, condition)
            if not len(matching):
                require_values(self._store, where)
            self._tables.open()
            windows = self._windows(_strongest(feature, matching, values, k), all_rows, all_values)
            source = LiveSource(self._store, self._site, self._tables, self._store.names(self._site))
            strips = [rows.example(source, window) for window in windows.iter_rows(named=True)]
            return {
                "active": len(all_rows),
                "matching": len(matching),
                "mean": float(values.mean(dtype=np.float64)) if len(values) else None,
                "most": rows.short(float(np.abs(all_values).max(initial=0))),
                "strips": strips,
                "tokens": source.texts,
            }

    def _windows(self, examples: pl.DataFrame, feature_rows: U64, values: F32) -> pl.DataFrame:
        """Examples with the tokens around them, in the order of a report's."""
        return self._store.windows(examples, feature_rows, values).sort("kind", "interval", "rank")

    def _fires(self, source: LiveSource, feature: int, windows: pl.DataFrame) -> Names:
        """The name that the feature was given, and the tokens of its strongest rows."""
        named = source.named(feature)
        if not self._store.reads_tokens(self._site):
            return named
        token = pl.col("token_ids").list.get(pl.col("firing"))
        top = windows.filter(pl.col("kind") == "top").select("feature", "rank", token_id=token)
        tokens = source.alone(most_fired(top)["token_id"].to_list())
        return [*(name for name in named if isinstance(name, str)), *tokens]


def annotation_of(names: FeatureNames, feature: int) -> dict[str, Any]:
    """The star, name and note of a feature, as they were last read."""
    rows_ = names.annotations.table.filter(pl.col("feature") == feature)
    row = rows_.row(0, named=True) if rows_.height else {}
    return {"star": bool(row.get("star")), "name": row.get("name"), "note": row.get("note")}


def _strongest(feature: int, feature_rows: U64, values: F32, k: int = SHOWN_STRONGEST) -> pl.DataFrame:
    """The strongest of some rows, as the table of examples has them."""
    best = strongest(values, k)
    columns = {"rank": range(len(best)), "row": feature_rows[best], "activation": values[best]}
    constants = {"feature": feature, "kind": "top", "interval": 0}
    frame = pl.DataFrame(columns).with_columns(pl.lit(value).alias(name) for name, value in constants.items())
    return frame.select(pl.col(name).cast(dtype) for name, dtype in EXAMPLES.items())


def _neighbours(tables: Mapping[str, pl.DataFrame]) -> list[int]:
    """The features that a page lists as neighbours."""
    known = list[int]()
    for frame in (tables[name] for name in ("neighbours", "decoder_neighbours") if name in tables):
        lists = frame.group_by("by", maintain_order=True) if "by" in frame.columns else frame
        known += lists.head(SHOWN_NEIGHBOURS)["neighbour"].to_list()
    return known
