"""The statistics on top of a feature's page: their names, what they mean, and their values as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jobs.report.page import number, percent, whole
from jobs.report.strips import visible

Fact = list[str]
"""Name, value, what it means, and below the value its range."""


FIRST = 8
"""Facts that a page shows at once: the others are folded away."""

MAIN = (
    ("mean when active", "mean_active", "mean_active: mean over active rows"),
    ("largest", "max_activation", "max_activation"),
)
OTHERS = (
    ("median when active", "q50_active", "q50_active"),
    ("std when active", "std_active", "std_active"),
    ("smallest", "min_activation", "min_activation, over active rows"),
    ("mean over all rows", "mean_all", "mean_all: zeros included"),
    ("σ / μ", "sigma_over_mu", "std_all / mean_all"),
)
"""Name, column of the feature table, and what it means."""


def facts(
    row: Mapping[str, Any],
    profile: Mapping[str, Any] | None,
    top_token: str | None,
    ranks: Iterable[Mapping[str, Any]],
) -> list[Fact]:
    """Those of one feature, of its rows in `features`, `profile` and `rankings`; the most read ones first."""
    return [
        *_counts(row, profile),
        *_activations(row, MAIN),
        *(_tokens(profile, top_token) if profile else ()),
        *_shares(row),
        *_activations(row, OTHERS),
        *(_places(profile) if profile else ()),
        *map(_rank, ranks),
    ]


def _counts(row: Mapping[str, Any], profile: Mapping[str, Any] | None) -> Iterator[Fact]:
    counted = f"rows where it fires, out of {whole(row['counted_rows'])} counted rows"
    yield ["active rows", whole(row["n_active"]), counted, ""]
    help_, interval = "active rows / counted rows", ""
    if profile:
        help_ += ", with its 95 % interval, clustered by document"
        interval = f"{percent(profile['frequency_low'])} to {percent(profile['frequency_high'])}"
    yield ["frequency", percent(row["frequency"]), help_, interval]
    if profile and profile["dead_upper"] is not None:
        never = "upper bound at 95 %: it never fired (rule of three)"
        yield ["frequency below", percent(profile["dead_upper"]), never, ""]


def _shares(row: Mapping[str, Any]) -> Iterator[Fact]:
    for name in ("documents", "contexts"):
        share = f"{whole(row[f'active_{name}'])} of {whole(row[name])}"
        yield [name, share, f"{name} in which it fires", ""]


def _activations(row: Mapping[str, Any], measures: Iterable[tuple[str, str, str]]) -> Iterator[Fact]:
    for name, column, help_ in measures:
        yield [name, number(row[column]), help_, ""]


def _tokens(profile: Mapping[str, Any], top_token: str | None) -> Iterator[Fact]:
    yield ["distinct tokens", whole(profile["tokens"]), "tokens on which it fires", ""]
    if top_token is not None:
        share = percent(profile["top_token_share"])
        yield [f"most on {top_token}", share, "share of its active rows on its most common token", ""]
    yield _entropy(profile, "token", "tokens on which")


def _places(profile: Mapping[str, Any]) -> Iterator[Fact]:
    yield _entropy(profile, "position", "positions at which")
    yield ["at positions 0, 1", percent(profile["first_positions_share"]), "share of its active rows", ""]


def _entropy(profile: Mapping[str, Any], name: str, of: str) -> Fact:
    bits = profile[f"{name}_entropy_bits"]
    value = number(bits) + (" bits" if bits is not None else "")
    return [f"{name} entropy", value, f"of the {of} it fires", ""]


def _rank(rank: Mapping[str, Any]) -> Fact:
    low, high = rank.get("rank_low"), rank.get("rank_high")
    interval = "" if low is None or high is None else f"#{whole(low + 1)} to #{whole(high + 1)}"
    help_ = (
        "#1 has the largest value; features with few active rows come last. Below: the range over resamples "
        "of the shards"
    )
    return [f"rank by {visible(rank['by'])}", f"#{whole(rank['rank'] + 1)}", help_, interval]
