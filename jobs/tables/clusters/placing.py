"""Features on a plane, near ones side by side: t-SNE (van der Maaten and Hinton 2008) of unit vectors.

Of those by co-activation (`graph.embedded`), or else of decoder directions. Neighbours are those by
Euclidean distance, whose square is 2 - 2 cosine: by cosine. It starts from the first two principal
components, with a fixed seed and one thread (scikit-learn's gradient adds up in another order for every
number of threads), so that the same store gives the same map. Distances between far groups on it, and sizes
of groups, mean nothing. Of more than MOST features a random sample is placed.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from jobs.tables.clusters.features import Clustering
from jobs.tables.clusters.kmeans import NO_CLUSTER
from jobs.tables.clusters.rows import sample, take
from jobs.tables.clusters.tables import FEATURE_MAP
from jobs.terminal.console import say
from jobs.terminal.progress import counting
from schemas.values import F32, I64

MOST = 8192
"""Features that are placed: about 40 seconds of one core."""

FEWEST = 8
"""Directions that make a map."""

PERPLEXITY, SEED = 30.0, 42

ANGLE = 0.8
"""Of Barnes and Hut's approximation: a third quicker than at 0.5, and of a feature's 10 nearest on the demo's
62.4 % are among its 10 nearest on the plane, as there."""

NAMING = 3
"""Tokens in the name of a feature's cluster."""


def feature_map(
    site: str, clustering: Clustering, n_active: I64, tokens: list[list[str]], seed: int
) -> pl.DataFrame:
    """The table `feature_map` of a clustering that has vectors; empty, with a note, where they are too few.

    `n_active` int64 [F] counts active rows, `tokens` name the clusters. Features whose vector is 0 are left
    out.
    """
    assert clustering.vectors is not None
    chosen = sample(clustering.vectors, MOST, seed)
    vectors = take(clustering.vectors, chosen)
    # so many alike directions have no neighbourhoods to show; a part is enough to see that some differ
    if len(np.unique(vectors[: 16 * FEWEST], axis=0)) < FEWEST or vectors.shape[1] < 2:
        say(f"[yellow]cluster[/] {site}: fewer than {FEWEST} features differ, so there is no map")
        chosen, vectors = chosen[:0], vectors[:0]
    elif len(chosen) == MOST:
        say(f"[bold]cluster[/] {site}: {MOST:,} of {len(clustering.features):,} features are on the map")
    with counting("cluster: map of features"):
        x, y = placed(vectors).T
    names = [" ".join(token.strip() or token for token in texts[:NAMING]) for texts in tokens]
    clusters = [
        label if label != NO_CLUSTER else None for label in clustering.members.labels[chosen].tolist()
    ]
    columns = {
        "feature": clustering.features[chosen],
        "x": x,
        "y": y,
        "n_active": n_active[clustering.features[chosen]],
        "cluster": clusters,
        "name": [None if cluster is None else names[cluster] for cluster in clusters],
        "by": [clustering.name] * len(chosen),
    }
    return pl.DataFrame(columns, schema=FEATURE_MAP, strict=False)


def placed(units: F32) -> F32:
    """Places of unit vectors [n, d] on the plane, float32 [n, 2]."""
    if not len(units):
        return np.zeros((0, 2), np.float32)
    perplexity = min(PERPLEXITY, (len(units) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, angle=ANGLE, random_state=SEED, n_jobs=1)
    with threadpool_limits(1):
        places: F32 = tsne.fit_transform(units).astype(np.float32)
    return places
