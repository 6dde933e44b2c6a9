"""Images that features make, alone and together, and how alike they are; pixels are 0 (black) to 1."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patheffects import Normal, Stroke

from jobs.figures.fonts import legible
from jobs.figures.importance import MOST_CLASSES, left_out
from jobs.figures.names import feature_labels
from jobs.figures.style import COLOUR_MAP, SOFT, colour_bar, empty_plot, name_some, sheet
from schemas.sentences import several
from schemas.values import F64

ACROSS = 9
"""Thumbnails in a row."""
MOST_FEATURES = 8 * ACROSS
"""Thumbnails of single features."""
NAMED = 40
"""Features whose numbers are written next to a matrix, at most."""
LETTERS = 14
"""Of the names of classes at a thumbnail: of so many more its image had no room."""
ROWS = {
    "pixels": "the images themselves",
    "own_rows": "its features, own rows",
    "all_rows": "its features, all rows",
}
THUMBNAIL = 26
"""Points of a thumbnail's side on the map."""


def draw_class_images(table: pl.DataFrame, site: str) -> Figure:
    """Each class: the mean of its images, and what its most important features reconstruct."""
    every = table["value"].unique(maintain_order=True).to_list()
    classes = every[:MOST_CLASSES]
    kinds = [kind for kind in ROWS if kind in table["of"]]
    n = max((len(features) for features in table["features"]), default=0)
    facts = [
        f"the {n} most important features of each class, with all others at 0",
        "mean over rows, decoded",
    ]
    facts += left_out(len(every))
    size = (2.0 + 0.85 * max(len(classes), 6), 1.35 + 0.95 * max(len(kinds), 1))
    figure = sheet("Classes reconstructed from their features", site, *facts, size=size)
    if not classes:
        return empty_plot(figure.add_subplot(), "no class")
    grid = figure.subplots(len(kinds), len(classes), squeeze=False)
    for across, value in enumerate(classes):
        for down, kind in enumerate(kinds):
            rows_of_kind = table.filter(pl.col("value").eq(value) & pl.col("of").eq(kind))
            show(grid[down, across], rows_of_kind, 0)
        rows = table.filter(pl.col("value").eq(value) & pl.col("of").eq("own_rows"))["rows"][0]
        grid[0, across].set_title(f"{legible(value)}\nn = {rows:,}", fontsize=8.5)
    for down, kind in enumerate(kinds):
        axes = grid[down, 0]
        axes.text(-0.15, 0.5, ROWS[kind], ha="right", va="center", fontsize=9, transform=axes.transAxes)
    return figure


def draw_feature_images(table: pl.DataFrame, site: str) -> Figure:
    """What each feature alone reconstructs, of those that are among the most important of a class."""
    of_classes = table.filter(pl.col("classes").list.len() > 0).sort("feature")
    shown = of_classes.head(MOST_FEATURES)
    greys = grey_range(shown)
    prefix = f"the first {shown.height} of " if shown.height < of_classes.height else ""
    facts = [prefix + several(of_classes.height, "feature")]
    facts.append("each alone, mean over all rows, decoded; below: its classes")
    facts.append(f"black is {greys[0]:.2f}, white {greys[1]:.2f}")
    down = max(1, -(-shown.height // ACROSS))
    figure = sheet("Features as images", site, *facts, size=(9.4, 1.3 + 1.25 * down))
    if shown.is_empty():
        return empty_plot(figure.add_subplot(), "no feature is important for a class")
    labels = feature_labels(shown["feature"].to_list(), LETTERS - 5)
    grid = figure.subplots(down, ACROSS, squeeze=False).ravel()
    for place, axes in enumerate(grid):
        axes.set_axis_off()
        if place < shown.height:
            show(axes, shown, place, greys)
            names = _classes(shown["classes"][place].to_list())
            axes.set_title(labels[place], fontsize=9, pad=2)
            axes.text(
                0.5, -0.04, names, ha="center", va="top", fontsize=7.5, color=SOFT, transform=axes.transAxes
            )
    return figure


def draw_feature_similarity(table: pl.DataFrame, site: str) -> Figure:
    """Both matrices of cosines, features in the order of their numbers."""
    features = table["feature"].unique().sort().to_list()
    facts = [f"{several(len(features), 'feature')}: each class's most important"]
    if table["agreement"].drop_nulls().len():
        facts.append(f"distances correlate by {table['agreement'][0]:.3f} (Pearson, diagonal included)")
    figure = sheet("Similarity of features", site, *facts, size=(10.4, 5.5))
    if not features:
        return empty_plot(figure.add_subplot(), "no feature is important for a class")
    for axes, name, title in zip(
        figure.subplots(1, 2),
        ("cosine", "image_cosine"),
        ("values of the reconstruction", "images"),
        strict=True,
    ):
        # the table has a line for every pair, so the sorted column is the matrix row by row
        cosines = table.sort("feature", "other")[name].to_numpy().reshape(len(features), -1)
        image = axes.imshow(
            cosines, cmap=COLOUR_MAP, vmin=float(cosines.min()), vmax=1
        )  # images are all alike
        axes.set_title(title, fontsize=11)
        numbers = feature_labels(features, LETTERS)
        name_some(axes.xaxis, numbers, NAMED, "feature", rotation=90, fontsize=7)
        name_some(axes.yaxis, numbers, NAMED, "feature", fontsize=7)
        axes.grid(visible=False)
        colour_bar(figure, image, ax=axes, label="cosine", shrink=0.75, pad=0.02)
    return figure


def draw_feature_places(table: pl.DataFrame, site: str) -> Figure:
    """t-SNE of the features with their images at their places, by values and by images."""
    shown = table.drop_nulls("x")
    facts = [
        several(shown.height, "feature"),
        "t-SNE of the rows of the cosine distance matrix, perplexity 3",
    ]
    figure = sheet("Map of features, as images", site, *facts, size=(12.4, 6.9))
    if shown.is_empty():
        return empty_plot(figure.add_subplot(), "too few features for a map")
    for axes, x, y, title in zip(
        figure.subplots(1, 2),
        ("x", "image_x"),
        ("y", "image_y"),
        ("by values of the reconstruction", "by images"),
        strict=True,
    ):
        _map(axes, shown, shown[x].to_numpy(), shown[y].to_numpy())
        axes.set_title(title, fontsize=11)
    return figure


def _map(axes: Axes, table: pl.DataFrame, x: F64, y: F64) -> None:
    greys = grey_range(table)
    axes.scatter(x, y, s=1, alpha=0)
    axes.margins(0.09)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    labels = feature_labels(table["feature"].to_list(), LETTERS)
    for place in range(table.height):
        pixels = picture(table, place)
        box = OffsetImage(pixels, zoom=THUMBNAIL / max(pixels.shape), cmap="gray", norm=Normalize(*greys))
        axes.add_artist(AnnotationBbox(box, (x[place], y[place]), frameon=False, pad=0))
        name = f"{labels[place]} ({_classes(table['classes'][place].to_list())})"
        axes.annotate(
            name,
            (x[place], y[place]),
            xytext=(0, -THUMBNAIL / 2 - 1),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=6.5,
            color=SOFT,
            zorder=4,  # above other thumbnails
            path_effects=[Stroke(linewidth=2, foreground="white"), Normal()],
        )


def draw_steered(table: pl.DataFrame, site: str, settings: str) -> Figure:
    """The image before and after features were set, and the difference."""
    figure = sheet("Steered by features", site, settings, size=(7.6, 3.5))
    for place, axes in enumerate(figure.subplots(1, table.height)):
        pixels = picture(table, place)
        limit = float(np.abs(pixels).max()) or 1.0
        difference = "-" in table["when"][place]
        low, high = (-limit, limit) if difference else (0.0, 1.0)
        image = axes.imshow(pixels, cmap="PuOr_r" if difference else "gray", vmin=low, vmax=high)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.set_title(table["when"][place], fontsize=11)
        axes.set_xlabel(legible(table["classes"][place]), fontsize=8.5)
        colour_bar(figure, image, ax=axes, shrink=0.6, pad=0.03)
    return figure


def grey_range(table: pl.DataFrame) -> tuple[float, float]:
    """The darkest and the lightest pixel of all images of a table: those of single features are all pale."""
    pixels = table["image"].explode()
    low, high = (pixels.min(), pixels.max()) if len(pixels) else (0.0, 1.0)
    assert isinstance(low, float), "pixels are numbers"
    assert isinstance(high, float), "pixels are numbers"
    return low, high if high > low else low + 1


def show(axes: Axes, table: pl.DataFrame, place: int, greys: tuple[float, float] = (0, 1)) -> None:
    """One image of a table, in a frame without ticks; nothing where there is none."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    if place >= table.height:
        axes.set_axis_off()
        return
    axes.imshow(picture(table, place), cmap="gray", vmin=greys[0], vmax=greys[1], interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)


def picture(table: pl.DataFrame, place: int) -> F64:
    """The pixels [height, width] of a row."""
    pixels: F64 = np.array(table["image"][place], dtype=np.float64)
    return pixels.reshape(int(table["height"][place]), int(table["width"][place]))


def _classes(names: list[str]) -> str:
    """As many as a thumbnail has room for, and how many more there are."""
    # how long the text is with each name and the blank after it
    ends = np.cumsum([len(_short(name)) + 1 for name in names])
    shown = max(1, int((ends <= LETTERS).sum()))
    more = [f"+{len(names) - shown}"] if len(names) > shown else []
    return " ".join([*map(_short, names[:shown]), *more])


def _short(name: str) -> str:
    return legible(name if len(name) <= 2 else f"{name[:3]}.")
