"""Any text of the data in any figure: no formula, no control character, nothing over the edge of the file."""

from __future__ import annotations

import unicodedata
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from matplotlib import rc_context
from matplotlib.text import Text

from jobs.figures import FIGURES
from jobs.figures.heatmap import draw_clustered, draw_frequencies, draw_matrix_sparsity, draw_plain
from jobs.figures.images import draw_steered
from jobs.figures.neighbours import draw_neighbours
from jobs.figures.plots import render
from jobs.figures.style import STYLE
from tests.fixtures.texts import made_up, made_up_attribution, made_up_images

pytestmark = pytest.mark.slow

WORST = "$5 $x_i^{2}$ \\frac{ }{ \\$ _^ \x00\x1b[31m\x7f\x85\r\n\t \u202e\u2066\ufeff <b>&amp; ]]> %d {0} "
SHOWN = (
    "$5 $x_i^{2}$ \\frac{ }{ \\$ _^ \ufffd\ufffd[31m\ufffd\ufffd↩↩→ \ufffd\ufffd\ufffd <b>&amp; ]]> %d {0} "
)
OF_THE_DATA = ("label", "value", "name")


def with_text(table: pl.DataFrame, text: str) -> pl.DataFrame:
    """Every label, value and name of the table begins with the text, as do names of classes."""
    columns = [
        pl.format("{}{}", pl.lit(text), pl.col(name)).alias(name)
        for name, dtype in table.schema.items()
        if name in OF_THE_DATA and dtype == pl.String
    ]
    if "classes" in table.columns:
        columns.append(pl.col("classes").list.eval(pl.format("{}{}", pl.lit(text), pl.element())))
    return table.with_columns(columns)


def figure_of(name: str, text: str):
    if name in FIGURES:
        tables = made_up(24, 4) | made_up_images(24) | made_up_attribution(8)
        tables["labels"] = tables["labels"].with_columns(q=pl.lit(0.01))
        return FIGURES[name].draw(with_text(tables[FIGURES[name].table], text), f"site {text}")
    contexts = pl.DataFrame(np.eye(12), schema=[str(n) for n in range(12)]).with_columns(
        context=pl.int_range(pl.len()), cluster=pl.lit(0)
    )
    if name in HEATMAPS:
        return HEATMAPS[name](contexts, f"site {text}", f"by {text}")
    if name == "steered":
        pictures = {"image": [[0.1, 0.9]] * 2, "height": 1, "width": 2, "classes": [text, f"7 {text}"]}
        return draw_steered(pl.DataFrame({"when": ["before", "after"], **pictures}), f"site {text}", text)
    own = pl.DataFrame({"feature": 1, "neighbour": [2, 3], "jaccard": [0.5, 0.25]})
    return draw_neighbours(own, own.clear(), f"site {text}", 1, "jaccard")


HEATMAPS = {
    "plain": draw_plain,
    "clustered": draw_clustered,
    "matrix_sparsity": draw_matrix_sparsity,
    "frequencies": draw_frequencies,
}


@pytest.mark.parametrize("name", [*FIGURES, *HEATMAPS, "steered", "neighbours"])
def test_a_figure_shows_any_text_as_it_is(name):
    with rc_context(STYLE):
        figure = figure_of(name, WORST)
        svg = render(figure, "svg").decode()
        texts = figure.findobj(Text)
    assert any(f"site {SHOWN}".strip() in text.get_text() for text in texts)
    assert f"site {SHOWN}".strip() in "".join(ElementTree.fromstring(svg).itertext())
    for text in texts:
        assert not text.get_parse_math()
        assert "mathdefault" not in text.get_text()
        categories = {unicodedata.category(letter) for letter in text.get_text().replace("\n", "")}
        assert not categories & {"Cc", "Cf", "Zl", "Zp"}, text.get_text()


@pytest.mark.parametrize("text", ["", "   ", "$", "}" * 3000])
def test_labels_that_are_empty_or_long_are_drawn(text):
    with rc_context(STYLE):
        for name in ("attribution_map", "label_differences", "importance_top", "feature_map_clusters"):
            figure_of(name, text)
        assert render(figure_of("attribution_map", text), "png").startswith(b"\x89PNG")
