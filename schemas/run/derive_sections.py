"""The run file's sections of what `run` makes of a store once everything is extracted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.names import DerivedJob
from schemas.run.section import Section


class Rank(Section):
    """Which rankings are written."""

    by: tuple[str, ...] = Field(
        ("sigma_over_mu", "frequency", "mean_all"),
        description="Columns of the tables features and profile to rank by.",
    )
    support: int = Field(
        10,
        ge=0,
        description="Features with fewer active rows come last in every ranking; 0: all features are ranked "
        "together.",
    )


class Cluster(Section):
    """How features, contexts and documents are clustered."""

    features: int | None = Field(
        None,
        ge=2,
        le=2**20,
        description="Number of clusters of features. Default: about sqrt(d_sae) / 2, at most 512.",
    )
    contexts: int | None = Field(
        None,
        ge=2,
        le=2**20,
        description="Number of clusters of contexts. Default: about sqrt(contexts) / 2, at most 512.",
    )
    documents: int | None = Field(
        None,
        ge=2,
        le=2**20,
        description="Number of clusters of documents. Default: about sqrt(documents) / 2, at most 512.",
    )
    resolution: float = Field(
        4.0,
        gt=0,
        description="Resolution of the clustering by co-activation: higher values give more and smaller "
        "clusters; 1 is plain modularity.",
    )
    min_cluster_size: int = Field(
        5, ge=2, le=2**20, description="Smallest number of features in a cluster by density."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every random draw.")


class Derive(Section):
    """What `run` derives from a store after extraction."""

    jobs: tuple[DerivedJob, ...] = Field(
        ("stats", "examples", "profile", "rank", "coactivation", "cluster", "plots", "report"),
        description="Commands that make tables, figures and the report, each with its defaults, in the order "
        "in which they depend on each other; logits, fidelity and attribute, which run the model, and "
        "importance and images, which need classes, can be added.",
    )
    report: str = Field(
        "top:1000:n_active", description="Features that get a page in the report; see `report --features`."
    )
    language: Literal["en", "ko", "both"] = Field(
        "en", description="Language of the figures' titles and axes; see `plots --language`."
    )
