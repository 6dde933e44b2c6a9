"""Which features: those that fire on a token, in whose examples or name a text stands, that fit conditions.

Each answer is a frame with a row per feature, best first. `on_token` reads the table `token_features`,
`near_text` the table `examples` and the tokens of all shards that hold one, `features_where` columns of the
tables with a row per feature (`pipeline.store.reading.feature_columns`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from pipeline.store.reading.conditions import nearest
from pipeline.store.reading.example_texts import ExampleTexts
from pipeline.store.reading.feature_columns import columns_of, feature_values, features_where, require_known
from pipeline.store.records.annotations import read_annotations
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.store.feature_store import FeatureStore

BY_TOKEN = ("f1", "precision", "recall", "mean_active", "n_active")
BY_TEXT = ("examples", "share", "activation")
BY_SIMILARITY = ("cosine", "jaccard", "npmi", "phi", "conditional")
BY_FEATURE = "frequency"
"""What features that fit a condition are sorted by, unless another column is given."""


def token_ids(store: FeatureStore, text: str) -> list[int]:
    """The tokens that put exactly this text into a text; · at either end may stand for a space."""
    texts = store.vocabulary.texts
    matches = [token for token, known in enumerate(texts) if known == text]
    if not matches and text.strip("·") != text:
        matches = [token for token, known in enumerate(texts) if known == text.replace("·", " ")]
    return matches


def tokens_of(store: FeatureStore, site: str, text: str) -> list[int]:
    """The same; InputError, with the nearest ones, where there is none, or the site does not read tokens."""
    require_tokens(store, site)
    if tokens := token_ids(store, text):
        return tokens
    near = [token.replace(" ", "·") for token in nearest_tokens(store, site, text)]
    remedy = f"the nearest are {', '.join(near)}" if near else "give one as it stands in a text"
    raise InputError(f"no token reads {text.replace(' ', '·')}; {remedy}")


def nearest_tokens(store: FeatureStore, site: str, text: str) -> list[str]:
    """The few texts of tokens counted at the site that are most alike; the same word with a space first."""
    texts = store.vocabulary.texts
    counted = store.scan_table(site, "token_counts").select("token_id").collect().to_series()
    known = [texts[token] for token in counted]
    stripped = text.strip().casefold()
    same = [each for each in known if each != text and each.strip().casefold() == stripped][:3]
    return same or [each for each in nearest(text, known) if each != text]


def on_token(
    store: FeatureStore, site: str, tokens: Sequence[int], where: Sequence[str] = (), by: str = "f1"
) -> pl.DataFrame:
    """The features that fire on one of some tokens, sorted by one of BY_TOKEN.

    Columns: token_id i32, feature u32, n_active i64 (rows of that token in which it fires), recall, precision
    and f1 (their harmonic mean 2 p r / (p + r)), mean_active f64. InputError where the table is not there.
    """
    require_order(by, BY_TOKEN)
    table = store.scan_table(site, "token_features").filter(pl.col("token_id").is_in(list(tokens)))
    p, r = pl.col("precision"), pl.col("recall")
    found = table.with_columns(f1=2 * p * r / (p + r)).collect()
    found = _only(store, site, found, where).select(*found.columns[:5], "f1", "mean_active")
    return found.sort(_size(by), "feature", "token_id", descending=[True, False, False])


def near_text(
    store: FeatureStore,
    site: str,
    pattern: re.Pattern[bytes],
    where: Sequence[str] = (),
    by: str = "examples",
    texts: ExampleTexts | None = None,
) -> pl.DataFrame:
    """The features in whose stored examples a text stands (`text_pattern`), sorted by one of BY_TEXT.

    Columns: feature u32, examples i64 (with the text), searched i64, share f64, activation f32 and row u64 of
    the strongest. `texts`: those of the site, where they were read before. InputError where there is no table
    of examples.
    """
    require_order(by, BY_TEXT)
    found = _only(store, site, (texts or ExampleTexts(store, site)).with_text(pattern), where)
    order = [_size(name) for name in dict.fromkeys((by, "examples", "share"))]
    return found.sort(*order, "feature", descending=[True] * len(order) + [False])


def by_columns(store: FeatureStore, site: str, where: Sequence[str], by: str = BY_FEATURE) -> pl.DataFrame:
    """The features that fit all conditions, sorted by a column from the largest; null comes last.

    Columns: feature, the one sorted by, and those that the conditions name.
    """
    columns = columns_of(store, site)
    if by not in columns:
        require_known(by, columns, f"--by {by}")
    name, _ = columns.resolve(by, f"--by {by}")
    found = features_where(store, site, where, [name])
    found = (
        found.select("feature", *dict.fromkeys((name, *found.columns[1:]))) if name != "feature" else found
    )
    return found.sort(name, "feature", descending=[name != "feature", False], nulls_last=True)


def by_name(store: FeatureStore, site: str, text: str, where: Sequence[str] = ()) -> pl.DataFrame:
    """The features whose name, note or explanation holds a text, in any case; by feature.

    Columns: feature u32, `found_in` (name, note or explanation, the first of them that holds it), `text`.
    InputError for an empty text.
    """
    if not text.strip():
        raise InputError("--name is empty: give a part of a name, a note or an explanation")
    notes = read_annotations(store, site).table.select("feature", "name", "note")
    texts = [notes.select("feature", text=pl.col(kind), found_in=pl.lit(kind)) for kind in ("name", "note")]
    if store.has_table(site, "explanations"):
        explained = store.scan_table(site, "explanations").select("feature", "text").collect()
        texts.append(explained.with_columns(found_in=pl.lit("explanation")))
    holds = pl.col("text").str.to_lowercase().str.contains(text.strip().lower(), literal=True)
    found = pl.concat(texts).filter(holds).unique("feature", keep="first", maintain_order=True)
    return _only(store, site, found, where).select("feature", "found_in", "text").sort("feature")


def similar(store: FeatureStore, site: str, feature: int, by: str = "cosine") -> pl.DataFrame:
    """The stored neighbours of a feature, nearest first: by the cosine of decoder rows or by co-activation.

    Columns: feature u32 and the measures of the table, `decoder_neighbours` for cosine, else `neighbours`.
    InputError where the table is not there.
    """
    store.require_feature(site, feature)
    require_order(by, BY_SIMILARITY)
    own = neighbour_table(store, site, by).filter(pl.col("feature") == feature).collect()
    return own.drop("feature", "rank", "n_a", strict=False).rename({"neighbour": "feature"})


def neighbour_table(store: FeatureStore, site: str, by: str) -> pl.LazyFrame:
    """The stored neighbours of all features by one of BY_SIMILARITY: by feature, by rank."""
    if by == "cosine":
        return store.scan_table(site, "decoder_neighbours")
    return store.scan_table(site, "neighbours").filter(pl.col("by") == by).drop("by")


def require_tokens(store: FeatureStore, site: str) -> None:
    """InputError where the rows of a site are not tokens, so that none can be searched for."""
    if not store.reads_tokens(site):
        raise InputError(f"site {site!r} does not read tokens, so no feature can be found by one")


def with_names(store: FeatureStore, site: str, found: pl.DataFrame) -> pl.DataFrame:
    """The features with the text of the token that each fires on most often, `top_token`, if it is known."""
    if not store.has_table(site, "profile") or not store.reads_tokens(site):
        return found
    tokens = feature_values(store, site, ["top_token"]).collect()
    texts = store.vocabulary.texts
    names = found.select("feature").join(tokens, on="feature", how="left", maintain_order="left")["top_token"]
    named = [None if token is None else texts[token] for token in names]
    return found.with_columns(pl.Series("top_token", named, pl.String))


def require_order(by: str, known: Sequence[str]) -> None:
    """InputError where features cannot be sorted by that."""
    if by not in known:
        raise InputError(f"--by {by!r} is not one of {', '.join(known)}")


def _only(store: FeatureStore, site: str, found: pl.DataFrame, where: Sequence[str]) -> pl.DataFrame:
    """Those rows whose feature fits the conditions."""
    if not where:
        return found
    fits = features_where(store, site, where)["feature"]
    return found.filter(pl.col("feature").is_in(fits.implode()))


def _size(by: str) -> pl.Expr:
    """Activations are sorted by magnitude."""
    return pl.col(by).abs() if by in ("mean_active", "activation") else pl.col(by)
