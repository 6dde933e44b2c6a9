"""A small store with every table that a report shows, hostile tokens and labels, and its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jobs.figures.plots import render
from jobs.report.build import report
from jobs.tables.rank import rank
from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects.verbs import write_atomic
from pipeline.tasks import OneProcess
from schemas.tables.tables import VOCABULARY
from tests.store.build import D_SAE, Built, build

HOSTILE = {
    1: "<script>alert(1)</script>",
    2: '" onmouseover="alert(2)',
    3: "</script><!--",
    4: "\u202eevil\u2066",
    5: "a\u2028b\u2029c",
    6: "&lt;b&gt;",
    7: "\n",
    8: " the",
    9: "{{ 7 * 7 }}{% raw %}",
    10: "\x00\x1b[31m",
    11: "أهلا",
    12: "🙂\\u003c",
    13: "-" * 400,
}
"""Texts of some of the 50 tokens; the others are ` w14` and so on."""

HARMFUL_LABEL = "<img src=x onerror=alert(3)>\u202e"


FEATURE = np.arange(D_SAE, dtype=np.uint32)


def make_store(root: Path) -> tuple[Built, FeatureStore]:
    """The store with the tables of `stats` and `rank` alone."""
    built = build(root, shards=3, documents=8)
    texts = [HOSTILE.get(token, f" w{token}") for token in range(50)]
    write_frame(
        built.layout.vocabulary,
        pl.DataFrame(
            {"token_id": range(50), "text": texts, "bytes": [text.encode() for text in texts]},
            schema=VOCABULARY,
        ),
    )
    store = FeatureStore.open(root)
    stats(store, "site")
    rank(store, "site")
    return built, store


def add_tables(store: FeatureStore) -> dict[str, pl.DataFrame]:
    """Every other table, with made-up numbers."""
    fired = store.scan_features("site").collect()["n_active"].to_numpy() > 0
    made = {**tables_of_features(fired), **tables_of_pairs(), **tables_of_clusters()}
    for name, table in made.items():
        store.write_table("site", name, table)
    return made


def tables_of_features(fired: np.ndarray) -> dict[str, pl.DataFrame]:
    rng, n = np.random.default_rng(0), D_SAE
    shares = ("frequency_low", "frequency_high", "top_token_share", "first_positions_share")
    bits = ("token_entropy_bits", "position_entropy_bits")
    profile = {
        "feature": FEATURE,
        "dead_upper": [None if some else 0.3 for some in fired],
        "tokens": rng.integers(1, 9, n),
        "top_token": FEATURE % 50,
        **{name: rng.random(n) for name in (*shares, *bits)},
    }
    logits = {
        "feature": FEATURE,
        "entropy_bits": rng.random(n),
        "max_probability": rng.random(n),
        "top_tokens": [[1, 2, 8]] * n,
        "top_logits": [[3.5, 2.5, 1.5]] * n,
        "bottom_tokens": [[4, 5]] * n,
        "bottom_logits": [[-1.25, -1.0]] * n,
    }
    counts = {"rows": 100, "n_active": 7, "frequency": 0.07, "mean_all": 0.1, "difference": 0.1, "p": 0.5}
    labels = [
        {"feature": f, "label": "party", "value": value, "z": z, "q": 0.01 if z else None, **counts}
        for f in FEATURE.tolist()
        for value, z in [("red", None), (HARMFUL_LABEL, 3.0)]
    ]
    table = pl.DataFrame(labels, schema_overrides={"feature": pl.UInt32, "z": pl.Float64, "q": pl.Float64})
    trend = {"label": "year", "documents": 9, "slope": -0.5, "se": 0.125, "z": -4.0, "p": 0.01, "q": 0.02}
    trends = pl.DataFrame([{"feature": f, **trend} for f in FEATURE.tolist()])
    trends = trends.cast({"feature": pl.UInt32})
    of_labels = {"labels": table, "label_trends": trends}
    return {"profile": pl.DataFrame(profile), "logits": pl.DataFrame(logits), **of_labels}


def tables_of_pairs() -> dict[str, pl.DataFrame]:
    rng, n = np.random.default_rng(1), D_SAE
    pairs = [
        {
            "feature": f,
            "neighbour": g,
            "by": by,
            "rank": r,
            "n_both": 10 + r,
            "jaccard": 0.5 / (r + 1),
            "phi": 0.125,
        }
        for f in FEATURE.tolist()
        for by in ("jaccard", "phi")
        for r, g in enumerate(rng.permutation(n)[:3].tolist())
    ]
    cosine = np.full(n, 0.75, np.float32)
    match = {
        "feature": FEATURE,
        "match": FEATURE,
        "assigned": True,
        "cosine": cosine,
        "n_both": 1,
        "jaccard": 0.5,
    }
    return {
        "neighbours": pl.DataFrame(pairs, schema_overrides={"feature": pl.UInt32, "neighbour": pl.UInt32}),
        "decoder_neighbours": pl.DataFrame(
            {"feature": FEATURE, "neighbour": (FEATURE + 1) % n, "rank": 0, "cosine": cosine}
        ),
        "matches_other": pl.DataFrame(match),
    }


def tables_of_clusters() -> dict[str, pl.DataFrame]:
    members = {"feature": FEATURE, "cluster": FEATURE % 3, "cosine": FEATURE / 64, "rank": FEATURE // 3}
    summary = {
        "cluster": [0, 1, 2],
        "size": [14, 13, 13],
        "cohesion": [0.5, 0.25, 0.125],
        "share": [0.5, 0.25, 0.25],
        "features": [[0, 3], [1, 4], [2, 5]],
        "tokens": [["<b>x</b>", " the"], ["\u202e"], []],
    }
    contexts = {
        "cluster": [0],
        "size": [2],
        "cohesion": [0.5],
        "share": [1.0],
        "features": [[1, 2]],
        "lifts": [[3.0, 2.0]],
        "examples": [[0, 1]],
        "majority_party": [HARMFUL_LABEL],
        "majority_party_share": [0.5],
    }
    return {
        "feature_clusters": pl.DataFrame(members),
        "feature_cluster_summary": pl.DataFrame(summary),
        "context_clusters": pl.DataFrame({"context": [0, 1], "cluster": [0, 0], "similarity": [0.5, 0.25]}),
        "context_cluster_summary": pl.DataFrame(contexts),
    }


def make_report(root: Path) -> tuple[Built, FeatureStore, dict[str, pl.DataFrame], Path]:
    """The store, its made-up tables, and the folder of its report."""
    built, store = make_store(root)
    made = add_tables(store)
    figure = render(Figure((7.2, 4.5), 20), "png", store.receipts_digest("site"))
    write_atomic(store.layout.figures("site") / "frequency.png", figure)
    report(store, ["site"], OneProcess())
    return built, store, made, root / "report"
