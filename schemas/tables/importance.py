"""Tables of how much features matter for classes, and of the images that they make."""

from __future__ import annotations

import polars as pl

from schemas.tables.tables import Schema

IMPORTANCE: Schema = {
    "label": pl.String(),
    "value": pl.String(),
    "feature": pl.UInt32(),
    "rank": pl.UInt32(),
    "rows": pl.Int64(),
    "n_active": pl.Int64(),
    **dict.fromkeys(("mean_all", "loss_change", "importance", "literal_importance"), pl.Float64()),
}
"""A row per value of a label column and feature, and per feature with value null: all rows.

Over the `rows` stored rows of the class (those that may hold activations): `n_active` active ones,
`mean_all` (zeros included), `loss_change`: the loss with the feature set to 0 minus the loss; `importance`:
that divided by its sum over the features; `literal_importance`: the notebook's
(`pipeline.statistics.evaluation.importance`; over all rows it equals `importance`); both null where the sum
is 0. `rank`: 0 has the largest change, of equals the lower feature.
"""

IMPORTANCE_CLASSES: Schema = {
    "label": pl.String(),
    "value": pl.String(),
    "rows": pl.Int64(),
    **dict.fromkeys(("mean_squared_error", "loss", "literal_loss", "loss_change"), pl.Float64()),
    **dict.fromkeys(("literal_loss_change", "rho", "penalty_weight"), pl.Float64()),
    "against": pl.String(),
}
"""What the importance of a class is made from: its loss, and the sums of changes that divide them.

`against`: x, or reconstruction where the store has no x (then the error is 0 with all features).
"""

FEATURE_IMAGES: Schema = {
    "feature": pl.UInt32(),
    "mean_all": pl.Float64(),
    "classes": pl.List(pl.String()),
    "values": pl.List(pl.Float32()),
    "image": pl.List(pl.Float32()),
    "height": pl.UInt32(),
    "width": pl.UInt32(),
    **dict.fromkeys(("x", "y", "image_x", "image_y"), pl.Float64()),
}
"""What a feature alone reconstructs: all other activations set to 0, decoded, the mean over all rows.

By feature; `classes`: those of which it is one of the most important three, in whose union all similarities
are taken; `values`: the mean reconstruction; `image`: what the image decoder makes of it, `height` x `width`
pixels in 0 to 1, row after row. `x`, `y`: t-SNE of the cosine distances of `values`; `image_x`, `image_y`: of
those of `image`; null for features that are in no class's three.
"""

CLASS_IMAGES: Schema = {
    **dict.fromkeys(("label", "value", "of"), pl.String()),
    "features": pl.List(pl.UInt32()),
    "rows": pl.Int64(),
    "values": pl.List(pl.Float32()),
    "image": pl.List(pl.Float32()),
    "height": pl.UInt32(),
    "width": pl.UInt32(),
}
"""What a class's most important `features` reconstruct, all others set to 0: the mean over `rows`, and its
image. `of`: all_rows; own_rows, those of the class; pixels: no reconstruction but the mean of the class's
images themselves (values empty), where the store has them.
"""

FEATURE_SIMILARITY: Schema = {
    "feature": pl.UInt32(),
    "other": pl.UInt32(),
    **dict.fromkeys(("cosine", "image_cosine", "agreement"), pl.Float64()),
}
"""Cosines of each pair of features of `feature_images` with classes, of their values and of their images.

`agreement`: Pearson's correlation of the two flattened matrices of cosine distances, the diagonal included;
the same in every row.
"""
