"""Names of features in every place that shows one: printed, drawn, written; hostile ones do no harm."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread
from matplotlib.text import Text

from jobs import cli
from jobs.figures.heatmap import draw_plain
from jobs.figures.labels import draw_label_differences
from jobs.figures.neighbours import draw_neighbours
from jobs.figures.plots import drawing, render
from jobs.report.build import report
from jobs.tables.cluster import cluster
from jobs.tables.coactivation import coactivation
from jobs.tables.diff import Side
from jobs.tables.match import match
from jobs.tables.profile import profile
from jobs.tables.rank import rank
from jobs.tables.stats import stats
from jobs.terminal.names import NARROW, one_line
from pipeline.store import FeatureStore
from pipeline.store.records.annotations import annotate, import_edits
from pipeline.tasks import OneProcess
from schemas.run.file import Cluster
from tests.fixtures.report import index_of, pages_of
from tests.fixtures.store import D_SAE, build, put_decoders
from tests.fixtures.texts import made_up

FEATURE = 7
NAMES = {
    "markup": "[red]x[/] [/nothing]",
    "html": "<script>alert(1)</script>&amp;",
    "bidi": "\u202egnihton \u2066x\u200b",
    "korean": "전쟁과 평화",
    "arabic": "الحرب والسلام",
    "dollars": "$x^2$ \\frac{ } %d {0}",
    "long": "n" * 200,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build(tmp_path_factory.mktemp("made") / "store", shards=2, sites=("a", "b"))
    put_decoders(built.layout, "ab")
    store = FeatureStore.open(built.layout.root)
    for site in "ab":
        stats(store, site)
        coactivation(store, site, k=8, support=2)
        rank(store, site)
        profile(store, site)
        cluster(store, site, Cluster.model_validate({}))
    match(Side(store, "a"), Side(store, "b"))
    return Path(str(built.layout.root))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy in which every feature of site a has a name, and those of b have others."""
    path = Path(shutil.copytree(made, tmp_path / "store"))
    store = FeatureStore.open(path)
    for site in "ab":
        lines = [("x", {"feature": n, "name": f"{site}-name-{n}"}) for n in range(D_SAE)]
        import_edits(store, site, lines)
    return path


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr("jobs.terminal.console.console.width", 200, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert end.value.code == 0, output.err
    assert output.err == ""
    return output.out


@pytest.mark.parametrize(
    ("arguments", "features"),
    [
        (("rank", "--site", "a", "--by", "n_active", "--window", "0:5"), "rankings"),
        (("neighbours", FEATURE, "--site", "a"), "neighbours"),
        (("neighbours", FEATURE, "--site", "a", "--by", "cosine"), "decoder_neighbours"),
        (("feature", FEATURE, "--site", "a"), "neighbours"),
        (("feature", FEATURE, "--site", "a"), "decoder_neighbours"),
    ],
)
def test_names_stand_beside_the_numbers(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    features: str,
) -> None:
    output = printed(monkeypatch, capsys, arguments[0], root, *arguments[1:])
    table = FeatureStore.open(root).scan_table("a", features).collect()
    if features == "rankings":
        shown = table.filter(by="n_active").sort("rank")["feature"].head(5).to_list()
        assert all(f"a-name-{n}" in output for n in shown)
        return
    own = table.filter(pl.col("feature") == FEATURE, pl.col("rank") < 8)
    own = own.filter(by="jaccard") if "by" in own.columns else own
    assert own.height
    for n in own["neighbour"]:
        assert f"a-name-{n}" in output
    assert f"eature {FEATURE} “a-name-{FEATURE}” of a" in " ".join(output.split())


def test_matches_and_clusters_of_a_features_page_have_names(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = printed(monkeypatch, capsys, "feature", root, FEATURE, "--site", "a")
    store = FeatureStore.open(root)
    best = store.scan_table("a", "matches_b").filter(feature=FEATURE).collect()["match"].to_list()
    assert any(f"b {n} “b-name-{n}”: cosine" in output for n in best)
    summary = store.scan_table("a", "feature_cluster_summary").collect()
    number = store.scan_table("a", "feature_clusters").filter(feature=FEATURE).collect()["cluster"][0]
    central = summary.filter(cluster=number)["features"][0].to_list()[:8]
    assert f"; central {', '.join(f'{n} “a-name-{n}”' for n in central)}" in output


def test_top_match_and_heatmap_name_their_features(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "top.html"
    output = printed(monkeypatch, capsys, "top", root, FEATURE, "--site", "a", "--html", html)
    assert f"feature {FEATURE} “a-name-{FEATURE}” of a: its 20 strongest rows" in output
    assert f"<title>feature {FEATURE} “a-name-{FEATURE}” of a</title>" in html.read_text()
    output = printed(monkeypatch, capsys, "match", root, "a", "b")
    assert "a-name-" in output
    assert "b-name-" in output
    png = tmp_path / "map.png"
    output = printed(monkeypatch, capsys, "heatmap", root, "--site", "a", "--features", "3:20", "--out", png)
    listed = ", ".join(f"{n} “a-name-{n}”" for n in range(3, 13))
    assert f"features: {listed} and 7 more" in output


@pytest.mark.parametrize("name", list(NAMES))
def test_hostile_names_are_shown_and_do_no_harm(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    store, hostile = FeatureStore.open(root), NAMES[name]
    neighbour = int(store.scan_table("a", "neighbours").filter(feature=FEATURE).collect()["neighbour"][0])
    for feature in (FEATURE, neighbour):
        annotate(store, "a", feature, name=hostile)
    graph, html = tmp_path / "graph.svg", tmp_path / "top.html"
    output = printed(monkeypatch, capsys, "neighbours", root, FEATURE, "--site", "a", "--figure", graph)
    output += printed(monkeypatch, capsys, "feature", root, FEATURE, "--site", "a")
    output += printed(monkeypatch, capsys, "top", root, FEATURE, "--site", "a", "--html", html)
    shown = one_line(hostile, NARROW)
    assert output.count(shown) >= 4
    assert not set("\u202e\u2066\u200b\x1b") & set(output)
    page = html.read_text()
    assert "<script>alert" not in page
    assert not set("\u202e\u2066") & set(page)
    if name != "arabic":
        assert (one_line(hostile, 20) if name != "bidi" else "gnihton") in svg_texts(graph)
    assert report(store, ["a"], OneProcess(), features=f"{FEATURE},{neighbour}")
    site = root / "report/sites/a"
    for page in pages_of(site).values():
        name, *_ = page["fires"]
        assert isinstance(name, str)
        assert not set("\u202e\u2066") & set(name)
    assert not any("<script>alert" in path.read_text() for path in site.rglob("*.*s"))
    overview = (site / "index.html").read_text()
    assert "<script>alert" not in overview
    assert not set("\u202e\u2066") & set(overview)


def svg_texts(path: Path) -> str:
    from xml.etree import ElementTree

    return "\n".join(ElementTree.fromstring(path.read_bytes()).itertext())


def test_names_of_the_report_stand_before_the_tokens(root: Path) -> None:
    store = FeatureStore.open(root)
    annotate(store, "a", FEATURE, name="x" * 200)
    report(store, ["a"], OneProcess(), features="all")
    name, *tokens = pages_of(root / "report/sites/a")[FEATURE]["fires"]
    assert name == f"{'x' * 79}…"
    index = index_of(root / "report/sites/a")
    assert all(index["tokens"][token].startswith(" w") for token in tokens)
    assert tokens


def test_a_narrow_terminal_cuts_names_and_no_numbers(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore.open(root)
    for n in range(D_SAE):
        annotate(store, "a", n, name=f"a very long name of feature {n}, which has no room")
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["neighbours", str(root), str(FEATURE), "--site", "a"])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    own = store.scan_table("a", "neighbours").filter(feature=FEATURE, by="jaccard").collect()
    for row in own.iter_rows(named=True):
        cells = [str(row[name]) for name in ("neighbour", "rank", "n_both", "n_a", "n_b")]
        cells += [f"{row[name]:.3f}" for name in ("jaccard", "npmi", "phi", "conditional")]
        assert any(line.split()[: len(cells)] == cells and line.rstrip().endswith("…") for line in lines)


@pytest.mark.parametrize("name", list(NAMES))
def test_figures_have_names_within_their_edges(root: Path, name: str) -> None:
    store = FeatureStore.open(root)
    for n in range(D_SAE):
        annotate(store, "a", n, name=NAMES[name])
    contexts = pl.DataFrame(np.eye(12), schema=[str(n) for n in range(12)]).with_columns(
        context=pl.int_range(pl.len()), cluster=pl.lit(None, pl.UInt32)
    )
    own = pl.DataFrame({"feature": 1, "neighbour": range(2, 12), "jaccard": 0.5})
    labels = made_up(24, 4)["labels"].with_columns(q=pl.lit(0.01))
    with drawing(store, "a"):
        for figure in (
            draw_plain(contexts, "a", "max"),
            draw_neighbours(own, own.clear(), "a", 1, "jaccard"),
            draw_label_differences(labels, "a"),
        ):
            begins = one_line(NAMES[name], 9)[:6]
            texts = [text.get_text() for text in figure.findobj(Text)]
            assert any(begins in text for text in texts), texts
            ink = (imread(io.BytesIO(render(figure, "png")))[..., :3] < 0.9).any(axis=2)
            assert not ink[[0, -1]].any()
            assert not ink[:, [0, -1]].any()


def test_exported_explanations_are_those_of_the_store(root: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "given.jsonl", tmp_path / "out"
    by = {"typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini"}
    file.write_text(json.dumps({"index": "3", "description": "explained <b>", **by}))
    for arguments in (
        ("explanations", root, file, "--site", "a"),
        ("export", "neuronpedia", root, "--site", "a", "--out", out, "--layer", "3", "--features", "3,5"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        assert end.value.code == 0
    (path,) = out.rglob("explanations/*")
    assert path.name == "batch-0.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    columns = ("index", "description", "typeName", "explanationModelName", "layer", "modelId")
    source = ("3-a", "model")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("3", "a-name-3", None, None, *source),
        ("3", "explained <b>", *by.values(), *source),
        ("5", "a-name-5", None, None, *source),
    ]
    assert len({row["id"] for row in rows}) == 3
    assert all(row["authorId"] for row in rows)
    assert all(row.keys() == rows[0].keys() for row in rows)
