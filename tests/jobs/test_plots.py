"""Figures: there, titled, not blank, the same bytes every time, and drawn from stored tables alone."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib import rc_context
from matplotlib.image import imread

from jobs.figures import FIGURES, Drawing
from jobs.figures.features import windows
from jobs.figures.plots import plots, render
from jobs.figures.style import STYLE, canvas, share
from jobs.tables.profile import profile
from jobs.tables.rank import rank
from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.tables.tables import L0_THRESHOLDS, LABELS
from tests.fixtures.store import build
from tests.fixtures.texts import (
    made_up,
    made_up_attribution,
    made_up_control,
    made_up_drawings,
    made_up_images,
    made_up_of_the_model,
    made_up_truth,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TITLES = {
    "frequency": "How often features fire",
    "mean_activation": "How strongly features fire",
    "l0": "Active features per token",
    "max_activation": "Strongest activation of each feature",
    "density_and_mean": "Frequency against mean activation",
    "sigma_over_mu": "Features ranked by σ / μ",
    "l0_thresholds": "Active features per token, above thresholds",
    "label_differences": "Features that differ by label",
    "sparsity": "How sparse features are",
    "logit_entropy": "Sharpness of the token choice of features",
    "logit_max_probability": "Probability of each feature's most likely token",
    "fidelity": "Loss of the model with reconstructed x",
    "feature_map_clusters": "Features and their clusters",
    "feature_map_density": "Dense and rare features on the map",
    "importance": "Distribution of importance over features",
    "importance_top": "The most important features of each class",
    "class_images": "Classes reconstructed from their features",
    "feature_images": "Features as images",
    "feature_places": "Map of features, as images",
    "feature_similarity": "Similarity of features",
    "control_frequency": "How often features fire: learnt and control",
    "control_mean": "Mean activation: learnt and control",
    "control_max": "Strongest activation: learnt and control",
    "control_l0": "Active features per token: learnt and control",
    "truth_frequency": "Frequency compared with the truth",
    "truth_mean": "Mean where active compared with the truth",
    "truth_cosines": "Cosine with the true features",
    "attribution_map": "Contributions of features to the answer gap",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    opened = FeatureStore.open(build(tmp_path_factory.mktemp("plots") / "store", shards=2).layout.root)
    stats(opened, "site")
    rank(opened, "site")
    profile(opened, "site")
    opened.write_table("site", "feature_map", made_up(30, 3)["feature_map"])
    made = made_up_control(64, 5) | made_up_of_the_model() | made_up_images(8) | made_up_truth(30)
    made |= made_up_attribution(8)
    for name, table in made.items():
        opened.write_table("site", name, table)
    return opened


@pytest.fixture(scope="module")
def drawn(store):
    return {path.name: path for path in plots(store, "site")}


def svg_of(name, tables, site="l9"):
    with rc_context(STYLE):
        return render(FIGURES[name].draw(tables[FIGURES[name].table], site), "svg").decode()


def test_every_figure_is_a_png_and_an_svg_in_the_sites_folder(store, drawn):
    assert set(drawn) == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {path.parent for path in drawn.values()} == {store.layout.figures("site")}
    assert {path.name for path in store.layout.figures("site").iterdir()} == set(
        drawn
    )  # and nothing temporary


@pytest.mark.parametrize("name", FIGURES)
def test_a_png_shows_something(drawn, name):
    image = imread(drawn[f"{name}.png"])
    pictures = name in made_up_drawings()
    assert image.shape[:2] == (900, 1440) or pictures or name == "attribution_map"
    ink = (image[..., :3] < 0.9).any(axis=2)
    assert 0.005 < ink.mean() < (0.8 if pictures else 0.6)
    assert not ink[:, :8].any()  # nothing runs over the edges
    assert not ink[:, -8:].any()
    assert not ink[:8].any()
    assert not ink[-8:].any()


@pytest.mark.parametrize("name", FIGURES)
def test_an_svg_has_its_title_and_site_as_text(drawn, name):
    text = drawn[f"{name}.svg"].read_text(encoding="utf-8")
    assert TITLES[name] in text
    assert "site · " in text


def test_drawing_again_gives_the_same_bytes(store, drawn):
    before = {name: path.read_bytes() for name, path in drawn.items()}
    assert {path.name: path.read_bytes() for path in plots(store, "site")} == before


def test_the_figures_need_the_tables_alone(store, drawn, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(store.layout.root, root)
    shutil.rmtree(root / "tokens")
    shutil.rmtree(root / "passes" / "p" / "data")
    shutil.rmtree(root / "figures")
    again = {path.name: path.read_bytes() for path in plots(FeatureStore.open(root), "site")}
    assert again == {name: path.read_bytes() for name, path in drawn.items()}


def test_the_frequency_histogram_says_how_many_never_fired():
    text = svg_of("frequency", made_up(400, 30))
    assert "30 of 400 features (7.5 %) never fired" in text
    assert "10,000 counted rows" in text


def test_a_control_is_named_with_its_rule_and_every_feature_is_in_a_bar():
    tables = made_up(400, 30)
    text = svg_of("control_frequency", tables)
    for part in (
        "learnt (topk)",
        "random encoder (normal entries, ReLU)",
        "at 0: 30 of learnt, 0 of control",
    ):
        assert part in text
    assert "400 features each" in svg_of("control_max", tables)
    with rc_context(STYLE):
        for name in ("control_frequency", "control_mean", "control_max"):
            patches = FIGURES[name].draw(tables["control_features"], "l9").axes[0].patches
            drawn = [area(patch) if name == "control_frequency" else height(patch) for patch in patches]
            assert drawn == pytest.approx([370, 370, 400, 400])  # a body and a line of each
        panels = FIGURES["control_l0"].draw(tables["control_l0"], "l9").axes
    assert [panel.texts[0].get_text() for panel in panels] == ["> 0", "> 0.5"]
    assert "2,000 counted rows" in svg_of("control_l0", tables)


def height(stairs):
    return sum(stairs.get_data().values)


def area(stairs):
    """On the log axis on which it is drawn."""
    values, edges, _ = stairs.get_data()
    return sum(values * np.diff(np.log10(edges)))


def test_the_median_and_the_mean_are_written_at_their_lines():
    tables = made_up(400, 30)
    fired = tables["features"].filter(pl.col("n_active") > 0)
    assert f"median {fired['frequency'].median():.2g}" in svg_of("frequency", tables)
    assert f"median {fired['mean_active'].median():.3g}" in svg_of("mean_activation", tables)
    assert "mean 32.0" in svg_of("l0", tables)


def test_a_histogram_holds_every_feature_that_fired():
    tables = made_up(400, 30)
    with rc_context(STYLE):
        for name in ("frequency", "mean_activation"):
            axes = FIGURES[name].draw(tables["features"], "l9").axes[0]
            low, high = axes.get_xlim()
            wide = [np.log10((bar.get_x() + bar.get_width()) / bar.get_x()) for bar in axes.patches]
            counts = [
                bar.get_height() * (w if name == "frequency" else 1)
                for bar, w in zip(axes.patches, wide, strict=True)
            ]
            assert sum(counts) == pytest.approx(370)
            assert all(
                low <= bar.get_x() + bar.get_width() and bar.get_x() <= high
                for bar in axes.patches
                if bar.get_height()
            )
        bars = FIGURES["l0"].draw(tables["l0"], "l9").axes[0].patches
    assert sum(bar.get_height() for bar in bars) == 10_000


def test_the_scatter_has_a_point_for_every_feature_that_fired():
    tables = made_up(400, 30)
    with rc_context(STYLE):
        points = FIGURES["density_and_mean"].draw(tables["features"], "l9").axes[0].collections[0]
    fired = tables["features"].filter(pl.col("n_active") > 0)
    np.testing.assert_array_equal(points.get_offsets(), fired.select("frequency", "mean_active").to_numpy())


def test_the_windows_of_a_ranking_are_marked():
    assert windows(100) == [0]
    assert windows(1000) == [0, 475]
    assert windows(4608) == [0, 2000]
    tables = made_up(2500, 0)
    text, values = svg_of("sigma_over_mu", tables), tables["rankings"]["value"]
    assert f"#2,001 to #2,050: {values[2000]:.3g} to {values[2049]:.3g}" in text


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_nothing_says_why_it_is_empty(name):
    none = pl.DataFrame(schema={"of": pl.String, "threshold": pl.Float64, "l0": pl.UInt32, "rows": pl.Int64})
    tables = made_up(3, 3) | {
        "l0": none.select("l0", "rows"),
        "l0_thresholds": pl.DataFrame(schema=L0_THRESHOLDS),
        "control_l0": none,
        "logits_histogram": made_up_of_the_model()["logits_histogram"].clear(),
        "fidelity": made_up_of_the_model()["fidelity"].clear(),
        "truth": made_up_truth(3)["truth"].clear(),
        "truth_cosines": made_up_truth(3)["truth_cosines"].clear(),
        "attribution_selection": made_up_attribution(3)["attribution_selection"].clear(),
    }
    tables |= {name: table.clear() for name, table in made_up_images(3).items()}
    text = svg_of(name, tables)
    whys = (
        "no feature fired",
        "no row is counted",
        "no token is counted",
        "no feature is ranked by",
        "no value of a label differs",
        "no feature has a position",
        "no feature was unembedded",
        "no loss was measured",
        "no feature was matched",
        "the SAE has no feature",
        "no class",
        "no feature is important",
        "too few features",
        "no feature was selected",
    )
    assert any(why in text for why in whys)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("features", [1, 2])
def test_one_feature_or_two_are_drawn(name, features):
    assert TITLES[name] in svg_of(name, made_up(features, 0) | {"l0": pl.DataFrame({"l0": [0], "rows": [7]})})


def test_negative_activations_are_shown_by_their_magnitude():
    tables = made_up(50, 0)
    signed = tables["features"].with_columns(pl.col("mean_active", "min_activation", "max_activation") * -1)
    assert "|mean activation| when active" in svg_of("mean_activation", {"features": signed})
    assert "|mean activation| when active" in svg_of("density_and_mean", {"features": signed})


def test_a_mean_of_zero_is_said_and_not_shown():
    tables = made_up(50, 0)
    mean = pl.when(pl.col("feature") < 3).then(0.0).otherwise(-pl.col("mean_active"))
    balanced = {"features": tables["features"].with_columns(mean_active=mean)}
    for name in ("mean_activation", "density_and_mean"):
        assert "50 of 50 features fired" in svg_of(name, balanced)
        assert "3 with mean 0 are not shown" in svg_of(name, balanced)


def test_a_ranking_with_both_signs_shows_each_value_on_a_log_axis():
    values = [500.0, 3.0, 0.0, -0.5, -2e4]
    table = pl.DataFrame({"by": "sigma_over_mu", "rank": np.arange(5), "value": values})
    with rc_context(STYLE):
        axes = FIGURES["sigma_over_mu"].draw(table, "l9").axes[0]
    assert axes.get_yscale() == "symlog"
    assert list(axes.lines[0].get_ydata()) == values
    low, high = axes.get_ylim()
    assert low < -2e4 < 500 < high
    assert "Features ranked" in svg_of("sigma_over_mu", {"rankings": table})


def test_labels_are_readable_whatever_their_letters_and_length():
    labels = made_up(60, 0)["labels"]
    values = {"red": "민주당", "blue": "$5 & <b>"}
    named = labels.with_columns(pl.col("value").replace(values), q=pl.lit(0.01))
    text = svg_of("label_differences", {"labels": named})
    assert "a party of a very long na…" in text
    assert "$5 &amp; &lt;b&gt;" in text
    assert "민주당" in text
    arabic = svg_of("label_differences", {"labels": named.with_columns(value=pl.lit("العربية"))})
    assert "العربية\u200e · " in arabic  # so that the number is drawn to its right


def test_of_each_value_the_clearest_features_are_shown_with_both_frequencies():
    labels = made_up(60, 0)["labels"].with_columns(q=pl.lit(0.01))
    with rc_context(STYLE):
        axes = FIGURES["label_differences"].draw(labels, "l9").axes[0]
    order = labels.sort(pl.col("z").abs(), descending=True)
    best = pl.concat([order.filter(value=value).head(2) for value in labels["value"].unique().sort()])
    assert [tick.get_text().split(" · ")[1] for tick in axes.get_yticklabels()] == [
        str(f) for f in best["feature"]
    ]
    here = axes.collections[1].get_offsets()[:, 0]
    np.testing.assert_allclose(here, best["frequency"])
    nothing = labels.with_columns(p=pl.lit(None, pl.Float64))
    assert "too few documents" in svg_of("label_differences", {"labels": nothing})
    assert "too few documents" in svg_of("label_differences", {"labels": pl.DataFrame(schema=LABELS)})


def test_thresholds_between_which_nothing_lies_share_a_histogram_and_means_are_reported():
    l0 = {"l0": [3, 4], "rows": [10, 30]}
    table = pl.concat(pl.DataFrame({"threshold": t, **l0}) for t in (0.0, 0.1, 0.5))
    table = pl.concat([table, pl.DataFrame({"threshold": 2.0, "l0": [0, 1], "rows": [20, 20]})])
    text = svg_of("l0_thresholds", {"l0_thresholds": table})
    assert all(
        printed in text for printed in ("&gt; 0 to 0.5", "&gt; 2", "mean 3.8", "mean 0.5", "40 counted rows")
    )


def test_a_long_site_name_is_cut_in_its_middle():
    figure, _ = canvas("title", "a" * 60 + "b" * 68, "fact")
    name, fact = figure.texts[1].get_text().split("\n")
    assert (len(name) <= 90, "a…b" in name, fact) == (True, True, "fact")


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "0 %"), (1, 3, "33 %"), (1, 2000, "0.05 %"), (3, 3, "100 %")]
)
def test_a_share_has_as_many_digits_as_it_needs(part, whole, text):
    assert share(part, whole) == text


def test_without_a_table_nothing_is_drawn_and_the_command_is_named(tmp_path):
    store = FeatureStore.open(build(tmp_path / "store", shards=1).layout.root)
    with pytest.raises(InputError, match="latentlake stats"):
        plots(store, "site")
    assert not store.layout.figures("site").exists()


def test_an_optional_figure_is_drawn_when_its_table_is_there_and_else_its_command_is_named(
    store, monkeypatch, capsys
):
    for name in FIGURES.keys() - {"frequency"}:
        monkeypatch.delitem(FIGURES, name)
    optional = Drawing("logits", lambda table, site: canvas(f"{table.height} rows", site)[0])
    monkeypatch.setitem(FIGURES, "extra", optional)
    assert "extra.png" not in {path.name for path in plots(store, "site")}
    assert "plots site: extra not drawn without the tables of `latentlake logits`" in printed(capsys)
    store.write_table("site", "logits", pl.DataFrame({"feature": [1, 2]}))
    (svg,) = [path for path in plots(store, "site") if path.name == "extra.svg"]
    assert "2 rows" in svg.read_text(encoding="utf-8")
    assert "not drawn" not in printed(capsys)
    for path in (store.layout.table("site", "logits"), svg, svg.with_suffix(".png")):
        path.unlink()


def printed(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_the_figure_of_a_truth_says_how_many_intervals_hold_it_and_leaves_out_what_is_not_matched():
    text = svg_of("truth_frequency", {"truth": made_up_truth(31)["truth"]})
    for part in ("30 matched features", "80 % of the 95 % intervals hold the truth", "10,000 rows"):
        assert part in text
    plain = made_up_truth(31)["truth"].with_columns(expected_mean=pl.lit(None, pl.Float64))
    assert "true mean where active (activation)" in svg_of("truth_mean", {"truth": plain})


def test_dead_features_have_a_bound_by_the_rule_of_three():
    assert "never fired: frequency below 3.0e-04 at 95 %" in svg_of("frequency", made_up(400, 30))
    assert "at 95 %" not in svg_of("frequency", made_up(400, 0))
    dead = made_up(400, 30)["features"].filter(n_active=0)
    few = dead.with_columns(counted_rows=pl.lit(7, pl.Int64))
    assert f"below {1 - 0.05 ** (1 / 7):.1e}" in svg_of("frequency", {"features": few})  # 3 / 7 is 0.43


def test_the_strongest_activation_is_reported_either_sign():
    tables = made_up(50, 5)
    text = svg_of("max_activation", tables)
    fired = tables["features"].filter(pl.col("n_active") > 0)
    assert f"median {fired['max_activation'].median():.3g}" in text
    signed = {"features": tables["features"].with_columns(min_activation=-9 * pl.col("max_activation"))}
    assert f"median {9 * fired['max_activation'].median():.3g}" in svg_of("max_activation", signed)
    assert "strongest |activation|" in svg_of("max_activation", signed)


def test_no_figure_reads_a_store_or_computes_a_statistic():
    for path in set((ROOT / "jobs" / "figures").glob("*.py")) - {ROOT / "jobs" / "figures" / "plots.py"}:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {module for module in modules if module.startswith(("pipeline", "matplotlib.pyplot"))}


def test_the_map_shows_every_feature_and_names_the_largest_clusters():
    places = made_up(400, 30)["feature_map"]
    with rc_context(STYLE):
        figure = FIGURES["feature_map_clusters"].draw(places, "l9")
        shown = sum(len(points.get_offsets()) for points in figure.axes[0].collections)
        render(figure, "png")  # a dollar or a letter that no font has is not a warning
        density = FIGURES["feature_map_density"].draw(places, "l9").axes[0].collections[0]
    assert shown == places.height
    assert sorted(density.get_array().tolist()) == sorted(places["n_active"].to_list())
    largest = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert largest[0] == f"0  of 文 $x$ ({places.filter(cluster=0).height:,})"


def test_of_many_classes_and_features_the_first_are_drawn_and_the_others_counted():
    tables = made_up_images(100, [f"class {number}" for number in range(30)])
    tables["feature_images"] = tables["feature_images"].with_columns(
        pl.lit([f"{number}" for number in range(30)]).alias("classes")
    )
    for name, printed, most in (
        ("class_images", "shown: the first 23 of 30 classes", (23, 4.2)),
        ("feature_images", "the first 72 of 100 features", (9.4, 11.4)),
    ):
        with rc_context(STYLE):
            figure = FIGURES[name].draw(tables[name], "l9")
        assert (figure.get_size_inches() <= most).all()
        assert printed in svg_of(name, tables)
    assert "6 +23" in svg_of("feature_images", tables)
    assert "shown" not in svg_of("class_images", made_up_images(5))


def test_sparsity_is_that_of_the_feature_table():
    features = made_up(400, 30)["features"]
    zeros = 1 - features["n_active"].to_numpy() / 10_000
    text = svg_of("sparsity", {"features": features})
    assert f"{zeros.mean():.2%} zeros" in text
    assert "target" not in text
    assert f"median {np.median(zeros):.2%}" in text
    with rc_context(STYLE):
        left, right = FIGURES["sparsity"].draw(features, "l9").axes
    assert sum(bar.get_height() for bar in left.patches) == 400
    octaves = [np.log2(1 + bar.get_width() / bar.get_x()) for bar in right.patches]
    counts = sum(bar.get_height() * wide for bar, wide in zip(right.patches, octaves, strict=True))
    assert counts == pytest.approx(features["n_active"].sum())
    assert right.get_ylabel() == "activations per doubling (log scale)"
