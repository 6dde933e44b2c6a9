"""What a figure calls its rows, its target and its scores hangs on the lake, not on the first study."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from matplotlib import rc_context

from jobs.figures import FIGURES
from jobs.figures.heatmap import draw_frequencies, draw_plain
from jobs.figures.plots import drawing, render
from jobs.figures.setting import Setting, set_to, setting
from jobs.figures.style import STYLE
from jobs.terminal.units import unit_of_lake, unit_of_site
from schemas.values import RowSelection
from tests.fixtures.texts import made_up, made_up_attribution, made_up_control, made_up_images


def lake(kind: str, inputs: object = None, pooling: str = "none"):
    return SimpleNamespace(
        links=[SimpleNamespace(source={"kind": kind})],
        lake=SimpleNamespace(inputs=inputs),
        site=lambda _: SimpleNamespace(selection=RowSelection(None, pooling)),
    )


@pytest.mark.parametrize(
    ("store", "of_lake", "of_site"),
    [
        (lake("text"), "token", "token"),
        (lake("synthetic"), "token", "token"),
        (lake("text", pooling="mean"), "token", "context"),
        (lake("prompts"), "token", "token"),
        (lake("prompts", pooling="last_token"), "token", "prompt"),
        (lake("images", "vectors"), "image", "image"),
        (lake("dictionary", "vectors"), "vector", "vector"),
    ],
)
def test_a_row_is_called_what_it_is(store, of_lake, of_site):
    assert (unit_of_lake(store), unit_of_site(store, "s")) == (of_lake, of_site)
    with drawing(store, "s"):
        assert setting().row == of_site
        assert (setting().target is not None) is (store.links[0].source["kind"] == "prompts")


@pytest.mark.parametrize("name", ["l0", "l0_thresholds", "control_l0"])
@pytest.mark.parametrize("row", ["image", "prompt", "vector"])
def test_titles_are_of_the_rows_that_the_lake_has(name, row):
    table = (made_up(8, 0) | made_up_control(8, 0))[FIGURES[name].table]
    with rc_context(STYLE), set_to(Setting(row=row)):
        title = FIGURES[name].draw(table, "l9").texts[0].get_text()
    assert f"Active features per {row}" in title
    assert "token" not in title


def test_the_target_of_the_study_of_prompts_is_in_its_figures_alone():
    table = made_up(40, 0)["features"]
    for target, shown in ((None, 0), ((0.95, 0.99), 2)):
        with rc_context(STYLE), set_to(Setting(target=target)):
            svg = render(FIGURES["sparsity"].draw(table, "l9"), "svg").decode()
        assert svg.count("target 95% to 99%") == shown
        assert svg.count("target") == shown


def test_scores_of_an_external_table_are_no_gaps():
    table = made_up_attribution(6)["attribution_selection"]
    external = table.with_columns(prompts=pl.lit(None, pl.Int64))
    for some, title in (
        (table, "Contributions of features to the answer gap"),
        (external, "by the scores of an external"),
    ):
        with rc_context(STYLE):
            svg = render(FIGURES["attribution_map"].draw(some, "l9"), "svg").decode()
        assert title in svg
        assert ("gap" in svg) is (some is table)
        assert ("mean over prompts" in svg) is (some is table)


@pytest.mark.parametrize(
    ("features", "named", "label"), [(50, 50, "feature"), (120, 40, "feature (1 in 3 is named)")]
)
@pytest.mark.parametrize("draw", [draw_plain, draw_frequencies])
def test_a_heat_map_names_as_many_features_as_there_is_room_for(draw, features, named, label):
    columns = [str(3 * n) for n in range(features)]
    table = pl.DataFrame(np.ones((4, features)), schema=columns).with_columns(
        context=pl.int_range(pl.len()), cluster=None
    )
    with rc_context(STYLE):
        axes = draw(table, "l9", "max").axes[0]
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    assert names == columns[:: features // named]
    assert axes.get_xticks().tolist() == list(range(0, features, features // named))
    assert axes.get_xlabel() == label


def test_a_matrix_of_many_features_and_a_map_of_many_name_some_of_them():
    tables = made_up_images(90) | made_up_attribution(90)
    with rc_context(STYLE):
        similar = FIGURES["feature_similarity"].draw(tables["feature_similarity"], "l9").axes[0]
        scores = FIGURES["attribution_map"].draw(tables["attribution_selection"], "l9").axes[0]
    assert len(similar.get_xticklabels()) == len(similar.get_yticklabels()) == 30
    assert len(scores.get_xticklabels()) == 30


def test_bars_of_a_few_active_rows_are_whole_and_their_areas_are_all_features():
    active = pl.Series("n_active", [1] * 30 + [2] * 5 + [24], pl.Int64)
    features = made_up(36, 0)["features"].with_columns(active, counted_rows=pl.lit(24, pl.Int64))
    with rc_context(STYLE):
        axes = FIGURES["frequency"].draw(features.with_columns(frequency=active / 24), "l9").axes[0]
    low, high = axes.get_xlim()
    bars = [bar for bar in axes.patches if bar.get_height()]
    assert all(low <= bar.get_x() and bar.get_x() + bar.get_width() <= high for bar in bars)
    areas = [bar.get_height() * np.log10(1 + bar.get_width() / bar.get_x()) for bar in bars]
    assert areas == pytest.approx([30, 5, 1])


def test_both_languages_of_an_axis_stay_inside_the_figure():
    with rc_context(STYLE), set_to(Setting("both")):
        figure = FIGURES["sparsity"].draw(made_up(64, 1)["features"], "l9")
        render(figure, "png")
        ends = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    assert all(end.x0 >= 0 and end.x1 <= figure.bbox.width for end in ends)


def test_counts_below_ten_are_plain_numbers_on_a_log_axis():
    features = made_up(9, 0)["features"]
    with rc_context(STYLE):
        figure = FIGURES["sparsity"].draw(features, "l9")
        figure.axes[0].set_ylim(0.7, 7)
        render(figure, "png")
    named = [tick.get_text() for tick in figure.axes[0].get_yticklabels(which="both")]
    assert "2" in named
    assert not [text for text in named if "×" in text and "⁻" not in text]


def test_the_map_names_others_where_there_are_others_and_hides_no_feature_alone():
    places = made_up(400, 30)["feature_map"]
    some = places.filter(pl.col("cluster") < 3)
    alone = some.filter(pl.col("cluster") == 2).head(1)
    with rc_context(STYLE):
        axes = FIGURES["feature_map_clusters"].draw(some.filter(cluster=1).vstack(alone), "l9").axes[0]
    assert len(axes.get_legend().get_texts()) == 2
    assert [text.xyann for text in axes.texts] == [(0, 0), (0, 8)]
