"""Tables of every figure, made up: for tests of drawing alone."""

from __future__ import annotations

import numpy as np
import polars as pl

from jobs.figures import FIGURES
from schemas.tables.attribution import ATTRIBUTION_SELECTION
from schemas.tables.tables import CONTROL_FEATURES


def made_up(features, dead, rows=10_000, seed=0):
    """Tables of a site with so many features, `dead` of which never fire."""
    rng = np.random.default_rng(seed)
    n = np.where(np.arange(features) < dead, 0, rng.integers(1, rows // 10, features))
    mean = np.where(n > 0, rng.lognormal(0, 0.5, features), np.nan)
    ratio = np.sqrt(1.2 * rows / np.maximum(n, 1) - 1)
    table = pl.DataFrame(
        {
            "feature": np.arange(features, dtype=np.uint32),
            "counted_rows": np.full(features, rows),
            "n_active": n,
            "frequency": n / rows,
            "mean_active": mean,
            "min_activation": mean / 2,
            "max_activation": mean * 3,
            "histogram_bins": [[1030, 1040] if count else [] for count in n],
            "histogram_counts": [[1, count - 1] if count else [] for count in n],
        },
        schema_overrides=dict.fromkeys(("histogram_bins", "histogram_counts"), pl.List(pl.Int64)),
    ).with_columns(pl.col("mean_active", "min_activation", "max_activation").fill_nan(None))
    values = np.sort(ratio[n > 0])[::-1]
    rankings = pl.DataFrame({"rank": np.arange(len(values)), "value": values}).with_columns(
        by=pl.lit("sigma_over_mu")
    )
    l0 = pl.DataFrame({"l0": np.arange(20, 45), "rows": np.full(25, rows // 25)})
    above = [
        pl.DataFrame({"threshold": t, "l0": l0["l0"] // (1 + int(t)), "rows": l0["rows"]}) for t in (0.0, 2.0)
    ]
    labels = pl.DataFrame(
        {
            "feature": np.arange(features, dtype=np.uint32),
            "label": "party",
            "value": [
                ("red", "blue", "a party of a very long name without end")[f % 3] for f in range(features)
            ],
            "frequency": n / rows,
            "difference": n / rows - rng.random(features) / 100,
            "z": rng.normal(0, 5, features),
            "p": np.full(features, 0.001),
            "q": np.where(n > 0, 0.002, 0.9),
        }
    )
    places = rng.normal(size=(2, features)).astype(np.float32)
    fired = np.flatnonzero(n)
    feature_map = pl.DataFrame(
        {
            "feature": fired,
            "x": places[0][fired],
            "y": places[1][fired],
            "n_active": n[fired],
            "cluster": [None if feature % 5 == 0 else feature % 12 for feature in fired],
            "name": ["of \u6587 $x$" if feature % 5 else None for feature in fired],
            "by": ["coactivation"] * len(fired),
        },
        schema_overrides={"cluster": pl.UInt32, "name": pl.String, "by": pl.String},
    )
    made = {
        "features": table,
        "l0": l0,
        "rankings": rankings,
        "l0_thresholds": pl.concat(above),
        "labels": labels,
        "feature_map": feature_map,
    }
    made |= made_up_images(features) | made_up_truth(features) | made_up_attribution(features)
    return made | made_up_control(features, dead) | made_up_of_the_model()


def made_up_images(features, classes=("0", "1 $x$", "scrambled"), seed=0):
    """Tables of `importance` and `images`, of images of 4 x 6 pixels."""
    rng = np.random.default_rng(seed)
    parts = []
    for value in (*classes, None):
        share = np.sort(rng.exponential(1, features))[::-1]
        columns = {"feature": rng.permutation(features), "rank": range(features), "importance": share}
        part = pl.DataFrame(columns).with_columns(
            pl.lit("class").alias("label"), pl.lit(value, pl.String).alias("value"), pl.lit(50).alias("rows")
        )
        parts.append(part.with_columns(pl.col("importance") / share.sum()))
    sides = {"height": 4, "width": 6}
    shown = [
        {"feature": f, "classes": [classes[f % 3]], "image": rng.random(24).tolist(), **sides}
        for f in range(features)
    ]
    alone = pl.DataFrame(shown).with_columns(
        pl.Series(name, rng.normal(size=features)) for name in ("x", "y", "image_x", "image_y")
    )
    kinds = [
        {"value": value, "of": of, "rows": 50, "features": [0], "image": rng.random(24).tolist(), **sides}
        for value in classes
        for of in ("all_rows", "own_rows", "pixels")
    ]
    cosine = np.corrcoef(rng.normal(size=(features, 5))).ravel()
    pairs = {"feature": np.repeat(range(features), features), "other": np.tile(range(features), features)}
    similar = pl.DataFrame(pairs | {"cosine": cosine, "image_cosine": cosine, "agreement": 0.5})
    return {
        "importance": pl.concat(parts),
        "class_images": pl.DataFrame(kinds),
        "feature_images": alone,
        "feature_similarity": similar,
    }


def made_up_drawings():
    """Figures of many small pictures, which are as large as these need."""
    return {name for name, drawing in FIGURES.items() if drawing.table in made_up_images(3)}


def made_up_of_the_model():
    """Tables of `logits` and `fidelity`."""
    edges = np.linspace(0, 1, 11)
    histogram = pl.concat(
        pl.DataFrame(
            {
                "measure": measure,
                "of": of,
                "low": edges[:-1] + 0.01,
                "high": edges[1:] + 0.01,
                "n": range(10),
                "median": 0.5,
            }
        )
        for measure in ("entropy_bits", "max_probability")
        for of in ("feature", "random")
    )
    losses = {"clean_loss": 3.8, "patched_loss": 3.9, "mean_loss": 8.2, "zero_loss": 10.4, "kl": 0.1}
    rows = [
        {
            "measure": name,
            "value": x,
            "low": x - 0.1,
            "high": x + 0.1,
            "tokens": 99,
            "documents": 5,
        }
        for name, x in losses.items()
    ]
    return {"logits_histogram": histogram, "fidelity": pl.DataFrame(rows)}


def made_up_truth(features, seed=0):
    """Tables of `truth`; every fifth interval misses, the last feature is matched with none."""
    rng = np.random.default_rng(seed)
    number = np.arange(features)
    frequency, mean = np.geomspace(0.5, 0.01, features), rng.uniform(1, 3, features)
    factor = np.where(number % 5, 1.0, 1.1)
    table = pl.DataFrame(
        {
            "feature": number,
            "true_feature": [*range(features - 1), None] if features > 1 else [0],
            "counted_rows": 10_000,
            "true_frequency": frequency,
            "frequency": frequency * factor,
            "frequency_low": frequency * factor * 0.95,
            "frequency_high": frequency * factor * 1.05,
            "true_mean": mean,
            "expected_mean": mean,
            "mean_active": mean * factor,
            "mean_low": mean * factor * 0.95,
            "mean_high": mean * factor * 1.05,
        }
    )
    pairs = {"place": np.repeat(number, features), "true_feature": np.tile(number, features)}
    cosine = np.eye(features).ravel() * 0.9
    return {"truth": table, "truth_cosines": pl.DataFrame({**pairs, "encoder": cosine, "decoder": cosine})}


def made_up_control(features, dead, rows=2_000, seed=0):
    """Tables of a control; of the learnt features `dead` never fire, of the control all do."""
    rng = np.random.default_rng(seed)
    frequency = np.append(np.where(np.arange(features) < dead, 0, 0.01), rng.uniform(0.4, 0.6, features))
    of = ["learnt"] * features + ["control"] * features
    nothing = dict.fromkeys(CONTROL_FEATURES)
    table = (
        pl.DataFrame(
            nothing
            | {
                "feature": np.tile(np.arange(features), 2),
                "of": of,
                "control": "random_encoder",
                "architecture": ["topk"] * features + ["standard"] * features,
                "counted_rows": rows,
                "frequency": frequency if dead < features else frequency * 0,
                "mean_all": frequency * 3 if dead < features else frequency * 0,
                "max_activation": pl.Series(frequency * 9 if dead < features else frequency * 0).replace(
                    0, None
                ),
            },
        )
        .with_columns(strongest_activation="max_activation")
        .cast(CONTROL_FEATURES)
    )
    l0 = pl.DataFrame(
        {
            "of": ["learnt", "learnt", "control"] * 2,
            "threshold": [0.0] * 3 + [0.5] * 3,
            "l0": [0, 3, 500] * 2,
            "rows": [5, rows - 5, rows] * 2,
        }
    )
    return {"control_features": table, "control_l0": l0}


def made_up_attribution(features, seed=0):
    """The table of `attribute`, of two labels of two values each."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "label": label,
            "value": value,
            "feature": f,
            "score": rng.normal(),
            "holds": bool(f % 2),
        }
        for label, values in (("gender", ("female", "male")), ("age", ("old", "<young>")))
        for value in values
        for f in range(features)
    ]
    table = pl.DataFrame(rows, schema=pl.Schema(ATTRIBUTION_SELECTION))
    return {"attribution_selection": table.with_columns(prompts=pl.lit(12, pl.Int64))}
