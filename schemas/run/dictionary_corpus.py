"""The run file's `corpus.dictionary`: vectors whose features, and how these fire, are known.

Features are numbered from 0. A feature i fires in a row with its probability; then its value is drawn from a
normal distribution of its mean and standard deviation, and what is not above 0 is 0. Features of a correlated
group fire together: each fires where a normal number exceeds the quantile of its probability, and the numbers
of a group correlate (a Gaussian copula, as in sae-lens). In a tree a feature fires only where its parent
does. The vector of a row is the sum of values times features' directions, plus bias and noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from schemas.run.section import Section

MOST_FEATURES = 1 << 16
MOST_VALUES = 1 << 28
"""Entries of the largest dictionary, features x width."""
MOST_OF_DOCUMENT = 1 << 27
"""Entries of a document, rows x features or x width; one is drawn at once, 16 bytes an entry or less."""
MOST_WITH_COSINES = 1 << 13
"""Features whose cosines are given, but for 0 of all: their matrix is made, 8 bytes an entry."""
MOST_PAIRS = 1 << 21
"""Pairs of features in correlated groups: one group of 2,048, or as many pairs in several."""


class Spread(Section):
    """A number for each feature, in a geometric progression from the first to the last."""

    first: float = Field(gt=0, description="Value of feature 0.")
    last: float = Field(gt=0, description="Value of the last feature.")


def _kind(value: Any) -> str:
    if isinstance(value, dict | Spread):
        return "spread"
    return "list" if isinstance(value, list | tuple) else "number"


Numbers = Annotated[
    Annotated[float, Tag("number")]
    | Annotated[tuple[float, ...], Tag("list")]
    | Annotated[Spread, Tag("spread")],
    Discriminator(_kind),
]
"""One number for all features, one for each, or {first: …, last: …}."""


class Node(Section):
    """A node of a tree: a feature, or a node without one that only groups its children."""

    feature: int | None = Field(
        None, ge=0, description="The feature; default: none, and the node only groups its children."
    )
    children: tuple[Node, ...] = Field((), description="Nodes that fire only where this node does.")
    exclusive: bool = Field(
        False,
        description="Whether the children exclude each other: of several that would fire in a row, a random "
        "one does. A child without a feature would fire where a node below it would.",
    )

    @model_validator(mode="after")
    def _is_complete(self) -> Node:
        if self.exclusive and len(self.children) < 2:
            raise ValueError(f"node {self.label} is exclusive, which requires at least two children")
        if self.feature is None and not self.children:
            raise ValueError("a node has neither a feature nor children: leave it out")
        return self

    @property
    def label(self) -> str:
        """For sentences."""
        return "without a feature" if self.feature is None else str(self.feature)


class Correlated(Section):
    """Features whose firing is correlated, equally for each pair."""

    features: tuple[int, ...] = Field(min_length=2, description="Two or more features.")
    correlation: float = Field(
        gt=-1,
        lt=1,
        description="Correlation of the normal variables that decide what fires; the correlation of firing "
        "itself is lower.",
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Correlated:
        least = -1 / (len(self.features) - 1)
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"correlated: {list(self.features)} names a feature twice")
        if self.correlation <= least:
            raise ValueError(
                f"correlated: {len(self.features)} features cannot all have a correlation of "
                f"{self.correlation} with each other; it must be above {least:.3g}"
            )
        return self


class Cosine(Section):
    """The cosine of two features' directions."""

    features: tuple[int, int] = Field(description="Two features.")
    cosine: float = Field(gt=-1, lt=1, description="Cosine of their directions.")


class Dictionary(Section):
    """The recipe of a corpus of vectors."""

    generator: Literal["latentlake", "saelens"] = Field(
        "latentlake",
        description="latentlake: drawn by NumPy; saelens: by the package's ActivationGenerator, "
        "hierarchy_modifier and FeatureDictionary (extra `saelens`).",
    )
    features: int = Field(ge=2, le=MOST_FEATURES, description="Number of features.")
    width: int = Field(ge=2, le=1 << 16, description="Length of a vector.")
    documents: int = Field(1024, ge=1, le=2**32, description="Number of documents.")
    rows: int = Field(16, ge=1, le=2**16, description="Vectors per document.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="A different seed gives a different dictionary and different rows."
    )
    probability: Numbers = Field(
        0.05, description="Probability that a feature fires, before trees are applied."
    )
    magnitude: Numbers = Field(1.0, description="Mean value of a feature where it fires.")
    magnitude_std: Numbers = Field(
        0.0, description="Standard deviation of that value; values below 0 become 0."
    )
    cosine: float | None = Field(
        None,
        gt=-1,
        lt=1,
        description="Cosine of each pair of directions. Default: random directions, or 0 if `cosines` is "
        "given; with the generator saelens, as orthogonal as it makes them.",
    )
    cosines: tuple[Cosine, ...] = Field((), description="Pairs with a different cosine.")
    correlated: tuple[Correlated, ...] = Field((), description="Groups of features that fire together.")
    trees: tuple[Node, ...] = Field((), description="Features that fire only where their parents do.")
    noise: float = Field(0.0, ge=0, description="Standard deviation of the noise added to each entry.")
    bias: float = Field(0.0, ge=0, description="Length of a random vector that is added to every vector.")

    @field_validator("probability")
    @classmethod
    def _probabilities(cls, value: Any) -> Any:
        if not all(0 < p < 1 for p in given(value)):
            raise ValueError("must lie between 0 and 1")
        return value

    @field_validator("magnitude", "magnitude_std")
    @classmethod
    def _magnitudes(cls, value: Any) -> Any:
        if not all(0 <= m < 1e6 for m in given(value)):
            raise ValueError("must lie between 0 and 1,000,000")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Dictionary:
        if self.features * self.width > MOST_VALUES:
            raise ValueError(f"corpus.dictionary has more than {MOST_VALUES:,} entries, features x width")
        self._check_sizes()
        for name in ("probability", "magnitude", "magnitude_std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.features:
                raise ValueError(
                    f"corpus.dictionary.{name} has {len(value)} numbers for {self.features} features"
                )
        means, spreads = (_each(value, self.features) for value in (self.magnitude, self.magnitude_std))
        if (0, 0) in (both := list(zip(means, spreads, strict=True))):
            raise ValueError(
                f"corpus.dictionary: feature {both.index((0, 0))} has magnitude 0 and magnitude_std 0, so it "
                "never fires: set one of them to another value"
            )
        self._check_features()
        return self

    def _check_sizes(self) -> None:
        """What is drawn or made at once fits into memory."""
        if self.rows * max(self.features, self.width) > MOST_OF_DOCUMENT:
            raise ValueError(
                f"corpus.dictionary.rows is {self.rows:,}: a document would have more than "
                f"{MOST_OF_DOCUMENT:,} entries, rows x features or rows x width; make more documents of "
                "fewer rows"
            )
        if (self.cosine or self.cosines) and self.features > MOST_WITH_COSINES:
            raise ValueError(
                f"corpus.dictionary has {self.features:,} features, but cosines can be set for at most "
                f"{MOST_WITH_COSINES:,}: leave out cosine and cosines, or set cosine: 0"
            )
        pairs = sum(len(group.features) * (len(group.features) - 1) // 2 for group in self.correlated)
        if pairs > MOST_PAIRS:
            raise ValueError(
                f"corpus.dictionary.correlated has {pairs:,} pairs of features, more than {MOST_PAIRS:,}: "
                "make groups smaller"
            )

    def _check_features(self) -> None:
        """Every feature that is named exists, and has one place in groups and trees."""
        seen: dict[int, int] = {}
        for number, tree in enumerate(self.trees):
            for feature, above in with_ancestors(tree):
                where = f"corpus.dictionary.trees: feature {feature}"
                if feature in above:
                    raise ValueError(f"{where} is its own descendant, a cycle")
                if seen.get(feature) == number:
                    raise ValueError(f"{where} appears twice in a tree: it can have only one parent")
                if feature in seen:
                    raise ValueError(f"{where} is in several trees")
                seen[feature] = number
        in_groups = [f for group in self.correlated for f in group.features]
        in_trees = [f for tree in self.trees for f in features_below(tree)]
        named = in_groups + in_trees + [f for pair in self.cosines for f in pair.features]
        if wrong := [f for f in named if not 0 <= f < self.features]:
            raise ValueError(
                f"corpus.dictionary names feature {wrong[0]}; features are numbered 0 to {self.features - 1}"
            )
        if twice := {f for f, times in Counter(in_groups).items() if times > 1}:
            raise ValueError(f"corpus.dictionary.correlated: feature {min(twice)} is in several groups")
        if both := set(in_groups) & set(in_trees):
            raise ValueError(
                f"corpus.dictionary: feature {min(both)} is in a correlated group and in a tree; choose one, "
                "because its frequency would be unknown"
            )
        if any(pair.features[0] == pair.features[1] for pair in self.cosines):
            raise ValueError("corpus.dictionary.cosines names a feature and itself")


def given(value: Any) -> Sequence[float]:
    """The numbers that stand in the run file."""
    if isinstance(value, Spread):
        return value.first, value.last
    return value if isinstance(value, tuple) else (value,)


def _each(value: Any, features: int) -> Sequence[float]:
    """One for each feature, but of a spread the first's, which is no more 0 than the others."""
    return value if isinstance(value, tuple) else [given(value)[0]] * features


def with_ancestors(node: Node, above: tuple[int, ...] = ()) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The features of a tree, parents first, each with those above it."""
    if node.feature is not None:
        yield node.feature, above
        above = (*above, node.feature)
    for child in node.children:
        yield from with_ancestors(child, above)


def features_below(node: Node) -> list[int]:
    """The features of a tree, parents first."""
    return [feature for feature, _ in with_ancestors(node)]
