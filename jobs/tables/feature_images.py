"""`latentlake images STORE`: the images that features make, alone and together, and how alike they are.

A decoder is linear, so the mean over rows of what a feature alone reconstructs is mean activation * W_dec +
b_dec: no row is decoded. The image decoder that was trained with the classifier makes a picture of it.

F features, D values of x, P pixels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from jobs.command.options import ClassifierFolder
from jobs.tables.importance import linear_weights, mean_of, top_features
from jobs.tables.pairs.structure import agreement, cosine_similarity, places
from jobs.terminal.console import say
from pipeline.models.loaders.image_decoder import ImageReader, read_decoder
from pipeline.plans.reopen import use_of
from pipeline.store import FeatureStore
from pipeline.store.derived.profile import Tokens
from schemas.errors import InputError
from schemas.tables.importance import CLASS_IMAGES, FEATURE_IMAGES, FEATURE_SIMILARITY
from schemas.values import F32, F64

OF_A_CLASS, COMPARED = 30, 3
"""Most important features of a class that reconstruct it; of which similarities are taken."""


@dataclass(frozen=True)
class ReconstructionDecoders:
    """What a site's features are turned into images with."""

    w_dec: F32
    b_dec: F32
    image_decoder: ImageReader

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width, *_ = (*self.image_decoder.shape, 1)
        return height, width


def images(store: FeatureStore, site: str, model: ClassifierFolder = None) -> pl.DataFrame:
    """Write the tables `feature_images`, `class_images`, `feature_similarity`; return the first.

    `model`: where the pass's classifier lies now, with its image decoder. Raises InputError before
    `latentlake importance`, and where the decoder is not there or not that of the pass.
    """
    began = time.monotonic()
    table = store.scan_table(site, "importance").collect()
    decoders = decoders_of(store, site, model)
    best = top_features(table, COMPARED)
    compared = sorted(
        {feature for value, features in best.items() if value is not None for feature in features}
    )
    images_table, similar = feature_images(decoders, table, compared, best)
    together = class_images(decoders, table, pixels_of(store, site, str(table["label"][0])))
    store.write_table(site, "class_images", together)
    store.write_table(site, "feature_similarity", similar)
    store.write_table(site, "feature_images", images_table)
    agreed = similar["agreement"].drop_nulls()
    correlation = f"{agreed[0]:.3f}" if len(agreed) else "undefined"
    say(
        f"[bold]images[/] {site}: {images_table.height} features drawn; {len(compared)} compared (each "
        f"class's {COMPARED} most important): distances of values and of images correlate by "
        f"{correlation} ({time.monotonic() - began:.1f} s)"
    )
    return images_table


def decoders_of(store: FeatureStore, site: str, model: str | None) -> ReconstructionDecoders:
    """Decoder of the SAE and of images; InputError where the latter is not the pass's, or does not fit."""
    weights, _ = linear_weights(store, site)
    plan = store.plans[store.site(site).pass_name]
    decoder = read_decoder(Path(model or plan.model).expanduser())
    use_of(plan, site, None, device=plan.device, model=model, needs_sae=False)
    if decoder.width != weights["W_dec"].shape[1]:
        raise InputError(
            f"the image decoder reads {decoder.width} values, but the SAE of site {site!r} reconstructs "
            f"{weights['W_dec'].shape[1]}: give a site of the classifier's hidden values"
        )
    shape = () if store.lake.inputs is None else store.lake.inputs.shape
    if decoder.shape != shape:
        raise InputError(
            f"the image decoder makes images of the shape {list(decoder.shape)}, but those of the store "
            f"have {list(shape)}: run `latentlake train-digits` on these images, then another pass"
        )
    return ReconstructionDecoders(weights["W_dec"], weights["b_dec"], decoder)


def feature_images(
    decoders: ReconstructionDecoders,
    table: pl.DataFrame,
    compared: list[int],
    best: dict[str | None, list[int]],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """FEATURE_IMAGES, of the 30 most important features of each class and of all rows; FEATURE_SIMILARITY."""
    shown = sorted({feature for features in top_features(table, OF_A_CLASS).values() for feature in features})
    mean = mean_of(table, None)
    # what each alone reconstructs, the mean over rows: a decoder is linear, so b_dec is added to each
    values = mean[shown][:, None] * decoders.w_dec[shown].astype(np.float64) + decoders.b_dec
    pixels = decoders.image_decoder.images(values)
    # `compared` are among `shown`, and both ascend
    indices = np.searchsorted(shown, compared)
    cosine, image_cosine = cosine_similarity(values[indices]), cosine_similarity(pixels[indices])
    coordinates = {"x": np.full((len(shown), 2), np.nan), "image_x": np.full((len(shown), 2), np.nan)}
    coordinates["x"][indices], coordinates["image_x"][indices] = places(cosine), places(image_cosine)
    classes = [
        [value for value, features in best.items() if value is not None and f in features] for f in shown
    ]
    columns = {
        "feature": shown,
        "mean_all": mean[shown],
        "classes": pl.Series(classes, dtype=pl.List(pl.String)),
        **_pictures(decoders, values, pixels),
        "x": coordinates["x"][:, 0],
        "y": coordinates["x"][:, 1],
        "image_x": coordinates["image_x"][:, 0],
        "image_y": coordinates["image_x"][:, 1],
    }
    images_table = pl.DataFrame(columns).with_columns(pl.col("x", "y", "image_x", "image_y").fill_nan(None))
    # every pair, the matrices laid out row by row: the second feature runs faster
    pairs = {
        "feature": np.repeat(compared, len(compared)),
        "other": np.tile(compared, len(compared)),
        "cosine": cosine.ravel(),
        "image_cosine": image_cosine.ravel(),
        "agreement": np.full(cosine.size, agreement(cosine, image_cosine)),
    }
    similar = pl.DataFrame(pairs).with_columns(pl.col("agreement").fill_nan(None))
    return (
        images_table.select(pl.col(name).cast(dtype) for name, dtype in FEATURE_IMAGES.items()),
        similar.select(pl.col(name).cast(dtype) for name, dtype in FEATURE_SIMILARITY.items()),
    )


def _pictures(decoders: ReconstructionDecoders, values: F64, pixels: F64) -> dict[str, pl.Series]:
    """The columns of `values` [n, D] and `pixels` [n, P]; of colours the mean is taken."""
    height, width = decoders.sides
    grey = pixels.reshape(len(pixels), height * width, -1).mean(axis=2)
    return {
        "values": pl.Series(values.tolist(), dtype=pl.List(pl.Float32)),
        "image": pl.Series(grey.tolist(), dtype=pl.List(pl.Float32)),
        "height": pl.Series([height] * len(pixels), dtype=pl.UInt32),
        "width": pl.Series([width] * len(pixels), dtype=pl.UInt32),
    }


def class_images(
    decoders: ReconstructionDecoders, table: pl.DataFrame, pixels: dict[str, F64]
) -> pl.DataFrame:
    """CLASS_IMAGES: each class from its 30 most important features, over all rows and over its own."""
    frames = [pl.DataFrame(schema=CLASS_IMAGES)]
    label = str(table["label"][0])
    rows = dict(table.group_by("value").agg(pl.col("rows").first()).iter_rows())
    for value, features in top_features(table, OF_A_CLASS).items():
        if value is None:
            continue
        for of, whose in (("all_rows", None), ("own_rows", value)):
            summed = mean_of(table, whose)[features] @ decoders.w_dec[features].astype(np.float64)
            made = (summed + decoders.b_dec)[None]  # all others at 0
            keys = {"label": label, "value": value, "of": of, "features": features, "rows": rows[whose]}
            frames.append(_class_row(decoders, keys, made, decoders.image_decoder.images(made)))
        if value in pixels:
            keys = {"label": label, "value": value, "of": "pixels", "features": [], "rows": rows[value]}
            frames.append(_class_row(decoders, keys, np.empty((1, 0)), pixels[value][None]))
    return pl.concat(frames)


def _class_row(
    decoders: ReconstructionDecoders, keys: dict[str, object], values: F64, pixels: F64
) -> pl.DataFrame:
    columns = {name: [value] for name, value in keys.items()} | _pictures(decoders, values, pixels)
    return pl.DataFrame(columns, schema_overrides=CLASS_IMAGES).select(
        pl.col(name).cast(dtype) for name, dtype in CLASS_IMAGES.items()
    )


def pixels_of(store: FeatureStore, site: str, label: str) -> dict[str, F64]:
    """The mean of each class's images themselves [P], 0 to 1; nothing where the lake has none."""
    if store.lake.inputs is None:
        return {}
    tokens, sums, rows = Tokens.of(store, site), dict[str, F64](), dict[str, int]()
    for files in store.shard_files(site):
        shard, labels = tokens.read(files, inputs=True), tokens.read_labels(files, [label])
        assert shard.inputs is not None, "the lake has inputs"
        scale = 255 if shard.inputs.dtype == np.uint8 else 1
        value_of = labels[label][np.searchsorted(labels["document"].to_numpy(), shard.document)]
        for value in value_of.drop_nulls().unique().to_list():
            class_pixels = shard.inputs[shard.stored & value_of.eq(value).fill_null(value=False).to_numpy()]
            sums[value] = sums.get(value, 0) + class_pixels.sum(axis=0, dtype=np.float64) / scale
            rows[value] = rows.get(value, 0) + len(class_pixels)
    return {value: total / rows[value] for value, total in sums.items() if rows[value]}
