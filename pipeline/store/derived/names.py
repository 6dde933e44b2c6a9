"""What features are called: by people, else by other tools, else by the tokens on which they fire most.

A name of the last kind is made of the tokens of the feature's strongest rows, those in which it fires most
often first (table `examples`). Only what some features need is read: their rows of two tables, the tokens of
the shards in which their strongest rows lie, and each annotation once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import polars as pl

from pipeline.store.records.annotations import ANNOTATIONS, OTHERS, Annotations, read_annotations
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.store.feature_store import FeatureStore
    from schemas.annotations import Annotation

Source = Literal["annotation", "explanation", "tokens", ""]

TOKENS = 3
"""Of a name, at most."""


class Named(NamedTuple):
    """A name, empty where there is none, and where it is from."""

    name: str = ""
    source: Source = ""


class FeatureNames:
    """The names of a site's features (`FeatureStore.names`); what was read is kept.

    A name is as it was given: characters that are not seen, and markup, are for who shows it.
    """

    def __init__(self, store: FeatureStore, site: str) -> None:
        self._store, self._site = store, store.require_features(site).name
        self._edits: dict[str, Annotation] = {}
        self.annotations = Annotations(pl.DataFrame(schema=ANNOTATIONS), pl.DataFrame(schema=OTHERS))
        """What people say of the site's features, as it was last read."""
        self._given: dict[int, Named] = {}
        self._made: dict[int, Named] = {}
        """Names from tables, of every feature that was read; they do not change."""

    def read(self, features: Iterable[int]) -> FeatureNames:
        """Read the names of some features together, and what was annotated since; itself."""
        self.annotations = read_annotations(self._store, self._site, self._edits)
        table = self.annotations.table.drop_nulls("name")
        self._given = {
            feature: Named(name, "annotation")
            for feature, name in table.select("feature", "name").iter_rows()
        }
        d_sae = self._store.site(self._site).d_sae
        wanted = sorted({int(n) for n in features if 0 <= n < d_sae} - self._made.keys() - self._given.keys())
        if wanted:
            made = _explained(self._store, self._site, wanted)
            made |= _fired(self._store, self._site, [n for n in wanted if n not in made])
            self._made |= {feature: made.get(feature, Named()) for feature in wanted}
        return self

    def name(self, feature: int) -> str:
        """The best name there is; empty where there is none."""
        return self._of(feature).name

    def source(self, feature: int) -> Source:
        """Where it is from."""
        return self._of(feature).source

    def _of(self, feature: int) -> Named:
        if feature not in self._given and feature not in self._made:
            self.read([feature])
        return self._given.get(feature) or self._made.get(feature) or Named()


def given_names(store: FeatureStore, site: str) -> dict[int, str]:
    """The names of all features that people or other tools have given, without those of tokens."""
    explained = _explained(store, site, range(store.require_features(site).d_sae))
    named = read_annotations(store, site).table.drop_nulls("name").select("feature", "name")
    return {feature: name for feature, (name, _) in explained.items()} | dict(named.iter_rows())


def most_fired(examples: pl.DataFrame, n: int = TOKENS) -> pl.DataFrame:
    """The tokens on which each feature fires most often among its strongest rows: feature, token_id, place.

    `examples` are the rows `feature`, `rank`, `token_id` of its strongest rows; `place` is 0 to at most
    n - 1, equally frequent tokens in the order of their best rank; features ascend.
    """
    # A token's best rank breaks ties, its number the rest: names do not hang on the order of groups.
    return (
        examples.group_by("feature", "token_id")
        .agg(pl.len().alias("times"), pl.col("rank").min())
        .sort("feature", "times", "rank", "token_id", descending=[False, True, False, False])
        .with_columns(place=pl.int_range(pl.len()).over("feature"))
        .filter(pl.col("place") < n)
        .select("feature", "token_id", "place")
    )


def _explained(store: FeatureStore, site: str, features: Sequence[int]) -> dict[int, Named]:
    """Those that another tool explains, by its first explanation."""
    rows = _rows(store, site, "explanations", features)
    if rows is None:
        return {}
    first = rows.group_by("feature", maintain_order=True).first().select("feature", "text")
    return {feature: Named(text, "explanation") for feature, text in first.iter_rows()}


def _fired(store: FeatureStore, site: str, features: Sequence[int]) -> dict[int, Named]:
    """Those that fire, by their tokens; none where a row is not a token, or the mean of several."""
    if store.lake.inputs is not None or store.site(site).selection.is_averaged:
        return {}
    strongest = _rows(store, site, "examples", features, pl.col("kind") == "top")
    if strongest is None:
        return {}
    strongest = strongest.select("feature", "rank", "row")
    try:
        tokens = most_fired(strongest.with_columns(token_id=store.tokens_at(strongest["row"].to_numpy())))
        texts = store.token_texts(tokens["token_id"].to_list())
    except (InputError, OSError) as error:
        warnings.warn(f"features are shown without names: {error}", stacklevel=2)
        return {}
    names = dict[int, list[str]]()
    for feature, text in zip(tokens["feature"].to_list(), texts, strict=True):
        names.setdefault(feature, []).append(text.replace(" ", "·") or "⟨empty⟩")
    return {feature: Named(" ".join(parts), "tokens") for feature, parts in names.items()}


def _rows(
    store: FeatureStore, site: str, table: str, features: Sequence[int], where: pl.Expr | None = None
) -> pl.DataFrame | None:
    """The rows of some features, in the order of the table; None where there is none, or it is damaged."""
    if not features or not store.has_table(site, table):
        return None
    wanted = pl.Series("feature", features, pl.UInt32)
    try:
        rows = store.scan_table(site, table, warn_stale=False)
        rows = rows.filter(pl.col("feature").is_in(wanted.implode()))
        return (rows if where is None else rows.filter(where)).collect()
    except (InputError, OSError, pl.exceptions.PolarsError) as error:
        warnings.warn(f"features are shown without names: {error}", stacklevel=2)
        return None
