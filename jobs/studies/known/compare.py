"""Tables of a store of a known dictionary against its truth: features, pairs of features, cosines.

Shapes: S features of the SAE, F true ones, P pairs, n assigned features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import binom

from jobs.studies.known.counts import Counts
from jobs.studies.known.intervals import ROUNDED, mean_interval, share_interval
from jobs.studies.known.matching import Assigned, Cosines, nearest
from jobs.tables.pairs.association import MEASURES
from pipeline.synthetic.dictionary.truth import KnownTruth
from schemas.tables.tables import TRUTH, TRUTH_COSINES, TRUTH_PAIRS
from schemas.values import F64, I64

SHOWN = 128
"""Features in the heat map of cosines, either way."""

LINEAR = ("standard", "jumprelu")
"""Architectures whose activation is the pre-activation where it fires."""


@dataclass(frozen=True)
class Side:
    """A site: its weights and SAE's metadata, cosines with the truth, order, and who is who."""

    weights: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, Any]
    cosines: Cosines
    order: I64
    match: Assigned
    activation_dtype: str

    @cached_property
    def nearest(self) -> I64:
        """The true feature nearest to each of the SAE's, int64 [S]."""
        return nearest(self.cosines.decoder)

    @property
    def feature_of(self) -> dict[int, int]:
        """The SAE's feature of each true one that has one."""
        return dict(zip(self.match.true_feature.tolist(), self.match.feature.tolist(), strict=True))


def features_table(
    truth: KnownTruth, side: Side, features: pl.DataFrame, counts: Counts, *, redrawn: bool
) -> pl.DataFrame:
    """Schema TRUTH; `features` is the feature table, `redrawn`: whether counts include what was drawn."""
    own, true = side.match
    # the inverse of the order: the place of each feature
    place = np.empty(len(side.order), np.int64)
    place[side.order] = np.arange(len(side.order))
    every = pl.DataFrame(
        {
            "feature": np.arange(len(place)),
            "nearest_true_feature": side.nearest,
            "place": place,
            "n_nearest_drawn": counts.drawn[side.nearest],
            "n_nearest_hits": counts.nearest_hits,
        }
    )
    of_truth = {
        "feature": own,
        "true_feature": true,
        "encoder_cosine": side.cosines.encoder[own, true],
        "decoder_cosine": side.cosines.decoder[own, true],
        "true_frequency": truth.frequency[true],
        "true_mean": truth.mean_active[true],
        "expected_mean": expected_means(truth, side),
        "n_drawn": counts.drawn[true],
        "n_hits": counts.hits,
    }
    measured = measured_columns(features, side.activation_dtype)
    table = every.join(pl.DataFrame(of_truth), on="feature", how="left").join(
        measured, on="feature", how="left"
    )
    hits, matched = pl.col("n_hits"), pl.col("true_feature").is_not_null() & redrawn
    share = {
        "n_drawn": pl.when(matched).then("n_drawn"),
        "n_hits": pl.when(matched).then(hits),
        "precision": pl.when(matched & (pl.col("n_active") > 0)).then(hits / pl.col("n_active")),
        "recall": pl.when(matched & (pl.col("n_drawn") > 0)).then(hits / pl.col("n_drawn")),
        **{f"n_nearest_{name}": pl.when(redrawn).then(f"n_nearest_{name}") for name in ("drawn", "hits")},
    }
    return (
        table.with_columns(**share).select(list(TRUTH)).fill_nan(None).cast(pl.Schema(TRUTH)).sort("feature")
    )


def measured_columns(features: pl.DataFrame, activation_dtype: str) -> pl.DataFrame:
    """What is measured of each feature, with intervals over rows."""
    n, rows = features["n_active"].to_numpy(), int(features["counted_rows"][0])
    low, high = share_interval(n, rows)
    mean, variance = (features[name].cast(pl.Float64).to_numpy() for name in ("mean_active", "var_active"))
    mean_low, mean_high = mean_interval(mean, variance, n, ROUNDED[activation_dtype])
    intervals = {"frequency_low": low, "frequency_high": high, "mean_low": mean_low, "mean_high": mean_high}
    return features.select(
        "feature",
        "counted_rows",
        "n_active",
        "frequency",
        "mean_active",
        **{k: pl.Series(v) for k, v in intervals.items()},
    )


def expected_means(truth: KnownTruth, side: Side) -> F64:
    """What the encoder gives on average where the true feature fires, float64 [n]; NaN: it is not linear.

    w . (sum of the other features' mean values times their directions, bias minus b_dec) + b_enc.
    """
    own, true = side.match
    linear = side.metadata.get("architecture") in LINEAR and not any(
        side.metadata.get(name) not in (None, False, "none")
        for name in ("normalize_activations", "rescale_acts_by_decoder_norm")
    )
    if not linear:
        return np.full(len(own), np.nan)
    weights = {name: np.asarray(values, np.float64) for name, values in side.weights.items()}
    encoder = weights["W_enc"][:, own].T
    centre = truth.bias.astype(np.float64)
    if side.metadata.get("apply_b_dec_to_input", True):
        centre = centre - weights["b_dec"]
    # [n, F]: what a true feature of value 1 adds to the pre-activation of each feature of the SAE
    leaks = encoder @ truth.vectors.astype(np.float64).T
    from_others = np.array(
        [leak @ truth.means_when_active(f) for leak, f in zip(leaks, true.tolist(), strict=True)]
    )
    means: F64 = from_others.reshape(len(own)) + encoder @ centre + weights["b_enc"][own]
    return means


@dataclass(frozen=True)
class KnownPairs:
    """Pairs of true features and of features assigned to them, int64 [P, 2] both, and what they are."""

    kind: list[str]
    true: NDArray[np.int64]
    own: NDArray[np.int64]


def known_pairs(truth: KnownTruth, side: Side) -> KnownPairs:
    """All pairs that know each other and of which both have an assigned feature."""
    # ancestors hold the parents too, which have a kind of their own
    parents = {tuple(pair) for pair in truth.relations.parents.tolist()}
    ancestors = [pair for pair in truth.relations.ancestors.tolist() if tuple(pair) not in parents]
    groups = {
        "correlated": truth.correlated.features.tolist(),
        "parent": truth.relations.parents.tolist(),
        "ancestor": ancestors,
        "exclusive": truth.relations.exclusive.tolist(),
    }
    own = side.feature_of
    matched_pairs = [
        (kind, a, b) for kind, pairs in groups.items() for a, b in pairs if a in own and b in own
    ]
    true = np.array([[a, b] for _, a, b in matched_pairs], np.int64).reshape(-1, 2)
    assigned = np.array([[own[a], own[b]] for _, a, b in matched_pairs], np.int64).reshape(-1, 2)
    return KnownPairs([kind for kind, _, _ in matched_pairs], true, assigned)


def pairs_table(
    truth: KnownTruth,
    pairs: KnownPairs,
    both: I64,
    features: pl.DataFrame,
    neighbours: pl.DataFrame | None,
) -> pl.DataFrame:
    """Schema TRUTH_PAIRS; `both` [P] counts rows, `neighbours` is the table of `latentlake coactivation`."""
    rows, n = int(features["counted_rows"][0]), features["n_active"].to_numpy()
    n_a, n_b = (n[pairs.own[:, place]] for place in (0, 1))
    p_a, p_b = (truth.frequency[pairs.true[:, place]] for place in (0, 1))
    true_both = np.array([truth.both(a, b) for a, b in pairs.true.tolist()], np.float64)
    low, high = share_interval(both, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "kind": pairs.kind,
            "true_a": pairs.true[:, 0],
            "true_b": pairs.true[:, 1],
            "a": pairs.own[:, 0],
            "b": pairs.own[:, 1],
            "counted_rows": np.full(len(both), rows),
            "n_a": n_a,
            "n_b": n_b,
            "n_both": both,
            "true_frequency": true_both,
            "frequency": both / rows,
            "frequency_low": low,
            "frequency_high": high,
            "true_phi": phi_of(true_both, p_a, p_b),
            "phi": phi_of(both / rows, n_a / rows, n_b / rows),
            "true_conditional": true_both / p_a,
            "conditional": both / n_a,
        }
    table = pl.DataFrame(columns).with_columns(pl.col("a", "b").cast(pl.UInt32))
    for name in MEASURES:
        table = table.join(_ranks(neighbours, name), on=["a", "b"], how="left", maintain_order="left")
    return table.fill_nan(None).select(list(TRUTH_PAIRS)).cast(pl.Schema(TRUTH_PAIRS))


def phi_of(both: F64, p_a: F64, p_b: F64) -> F64:
    """Pearson's correlation of two features as 0 and 1, from shares of rows."""
    return (both - p_a * p_b) / np.sqrt(p_a * (1 - p_a) * p_b * (1 - p_b))


def _ranks(neighbours: pl.DataFrame | None, name: str) -> pl.DataFrame:
    """The rank of b among the neighbours of a by one measure."""
    schema = {"a": pl.UInt32, "b": pl.UInt32, f"rank_{name}": pl.UInt16}
    if neighbours is None:
        return pl.DataFrame(schema=schema)
    ranks = neighbours.filter(pl.col("by") == name).select(
        a="feature", b="neighbour", **{f"rank_{name}": "rank"}
    )
    return ranks.unique(["a", "b"]).cast(schema)  # type: ignore[arg-type]


def cosines_table(side: Side) -> pl.DataFrame:
    """Schema TRUTH_COSINES: the first features in the literal order with the first true ones."""
    own = side.order[:SHOWN]
    n = min(side.cosines.decoder.shape[1], SHOWN)
    columns = {
        "place": np.repeat(np.arange(len(own)), n),
        "feature": np.repeat(own, n),
        "true_feature": np.tile(np.arange(n), len(own)),
        "encoder": side.cosines.encoder[own, :n].ravel(),
        "decoder": side.cosines.decoder[own, :n].ravel(),
    }
    return pl.DataFrame(columns).cast(pl.Schema(TRUTH_COSINES))


def detected_hierarchy(
    neighbours: pl.DataFrame, features: pl.DataFrame, least: float = 1.0, chance: float = 0.05
) -> pl.DataFrame:
    """Pairs (child, parent) that co-activation alone shows: the child does not fire without the parent.

    n_both / n_child is at least `least`, the parent fires more often than the child, and a parent that fired
    independently would have done so with a probability below `chance` over all pairs tried (Bonferroni).
    Columns child, parent, n_both, conditional; by both.
    """
    rows, tried = int(features["counted_rows"][0]), features.height * (features.height - 1)
    candidates = neighbours.filter(
        (pl.col("by") == "conditional") & (pl.col("conditional") >= least) & (pl.col("n_b") > pl.col("n_a"))
    )
    both, child, parent = (candidates[name].to_numpy() for name in ("n_both", "n_a", "n_b"))
    # the chance of so many rows or more with both, were the parent independent of the child
    luck = binom.logsf(both - 1, child, parent / rows) < np.log(chance / max(tried, 1))
    candidates = candidates.filter(luck)
    return candidates.select(
        child="feature", parent="neighbour", n_both="n_both", conditional="conditional"
    ).sort("child", "parent")
