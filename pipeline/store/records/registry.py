"""Every derived table: the command that makes it, what a row of it is, and the pages that it stands on.

To add a table, add a line to `TABLES`; its name is in the error messages, `status`, `verify`, the report and
docs/queries.md from then on. Where a command cannot be without a table of another, it has a line in `NEEDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal, NamedTuple

from pipeline.statistics import feature_schema
from schemas.tables.tables import (
    CONTROL_FEATURES,
    EXAMPLES,
    EXPLANATIONS,
    TOKEN_COUNTS,
    TOKEN_FEATURES,
    Schema,
)


class Table(NamedTuple):
    """A derived table, or all those whose name the pattern `name` matches."""

    name: str
    job: str
    """The command that makes it."""
    row: str
    page: Literal["feature", "site", ""] = ""
    """`feature`: a feature's pages show its rows there, and the report's page of a site lists the table, also
    where it is missing; `site`: that page lists it alone."""
    schema: Callable[[], Schema] | None = None
    """Columns that are compared when it is read."""
    added: frozenset[str] = frozenset()
    """Columns that it may lack in files of the same format version: these came later."""
    from_receipts: bool = True
    """False: it does not depend on what is committed, so it is never stale."""


TABLES = (
    Table("features", "stats", "a feature: all its statistics, and their denominators", "feature", feature_schema),
    Table("rankings", "rank", "a feature in a ranking: its rank, with an interval", "feature"),
    Table("profile", "profile", "a feature: confidence intervals of its frequency; the tokens and positions on which it fires", "feature"),
    Table("labels", "profile", "a feature and a label value: how its frequency there differs from that elsewhere", "feature"),
    Table("label_trends", "profile", "a feature and a numeric label: the slope of its frequency", "feature"),
    Table("neighbours", "coactivation", "two features active on the same tokens, by four measures", "feature"),
    Table("decoder_neighbours", "coactivation", "two features with similar decoder directions", "feature"),
    Table("logits", "logits", "a feature: the tokens that it promotes (direct logit attribution)", "feature"),
    Table("feature_clusters", "cluster", "a feature: its cluster by decoder direction", "feature"),
    Table("coactivation_clusters", "cluster", "a feature: its cluster by co-activation", "feature"),
    Table("density_clusters", "cluster", "a feature: its cluster by density of decoder directions", "feature"),
    Table("matches*", "match", "a feature and its match in another site", "feature"),
    Table("examples", "stats", "an example of a feature; the command `examples` adds two kinds", "site", lambda: EXAMPLES),
    Table("l0", "stats", "an L0 value: the number of token positions with that many active features", "site"),
    Table("l0_thresholds", "profile", "a threshold and an L0 value: the number of token positions with that many activations above the threshold", "site"),
    Table("ranking_summary", "rank", "a ranking: the numbers of features with and without a value", "site"),
    Table("logits_random", "logits", "a random direction: the columns of `logits`, for comparison", "site"),
    Table("fidelity", "fidelity", "a measure of what the model loses when x is replaced by its reconstruction", "site"),
    Table("feature_map", "cluster", "a feature: its place on the map", "site"),
    Table("context_clusters", "cluster", "a context: its cluster", "site"),
    Table("document_clusters", "cluster", "a document: its cluster", "site"),
    Table("*cluster*", "cluster", "`…_cluster_summary`: a cluster in one of these tables"),
    Table(
        "control_features", "stats", "a feature, learnt or of the control: its frequency and activations", schema=lambda: CONTROL_FEATURES,
        added=frozenset({"strongest_activation"}),
    ),
    Table("control_l0", "stats", "a threshold and an L0 value, for learnt features or the control"),
    Table("label_values", "profile", "a label value: the numbers of its documents and token positions"),
    Table(
        "explanations", "explanations", "an explanation of a feature by another tool", schema=lambda: EXPLANATIONS,
        from_receipts=False,
    ),
    Table("token_features", "profile", "a token and a feature that fires on it: recall, precision and mean activation", schema=lambda: TOKEN_FEATURES),
    Table("token_counts", "profile", "a token: its occurrences, and the number of features that fire on it", schema=lambda: TOKEN_COUNTS),
    Table("logits_histogram", "logits", "a bin of the entropies or largest probabilities of `logits`"),
    Table("fidelity_shards", "fidelity", "a shard: the sums that `fidelity` is made from"),
    Table("fidelity_means", "fidelity", "a shard: the sum of the target over its token positions"),
    Table("attributions", "attribute", "a feature and a label value: its share of the gap between answers"),
    Table("attribution_prompts", "attribute", "a prompt: its gap, and whether the attributions add up to it"),
    Table("attribution_selection", "attribute", "a selected feature and a label value: its effect when ablated"),
    Table("importance", "importance", "a feature and a class: what the reconstruction loses without it"),
    Table("importance_classes", "importance", "a class: its loss"),
    Table("feature_images", "images", "a feature: the image that it decodes to alone"),
    Table("class_images", "images", "a class: the image that its most important features decode to"),
    Table("feature_similarity", "images", "two features: how similar their images are"),
    Table("truth", "truth", "a feature and the true feature of the known dictionary that is assigned to it"),
    Table("truth_summary", "truth", "the SAE as a whole (one row)"),
    Table("truth_pairs", "truth", "two true features that depend on each other, and the features assigned to them"),
    Table("truth_cosines", "truth", "a feature and a true feature: cosines of their directions"),
)  # fmt: skip
"""Those with a page first, in the order of the report."""

NEEDS: dict[str, tuple[str, ...]] = {
    "examples": ("examples",),
    "rank": ("features",),
    "images": ("importance",),
    "plots": ("features", "l0", "rankings"),
    "report": ("features", "examples"),
}
"""Command -> the tables that it cannot be without."""


@cache
def find_table(name: str) -> Table:
    """The first table that the name matches; one of `stats` where none does."""
    return next((table for table in TABLES if fnmatchcase(name, table.name)), Table(name, "stats", ""))


def job_of(table: str) -> str:
    """The command that makes a table."""
    return find_table(table).job
