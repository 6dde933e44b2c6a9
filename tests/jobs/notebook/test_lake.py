"""`latentlake.open`: each question in a line, against the functions and arrays that answer it elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from polars.testing import assert_frame_equal

import latentlake
from jobs.evaluation.elicit import elicited, selected_rows
from jobs.evaluation.logits import LOGITS
from jobs.notebook.lake import Lake
from jobs.tables.profile import profile
from jobs.tables.rank import window
from jobs.terminal.names import one_line
from pipeline.evaluation.typed_text import Places, run_text
from pipeline.store.reading import finding
from pipeline.store.reading.comparison import compare_groups
from pipeline.store.reading.matrix import activation_matrix, pooled_matrix
from schemas.errors import InputError
from tests.fixtures.report import HARMFUL_LABEL, HOSTILE, add_tables, make_store
from tests.fixtures.runs import extracted, run_file
from tests.fixtures.store import D_SAE, Built, build

ROOT = Path(__file__).parents[3]
TEXT = "w3 w5 w9 nonsense w60 w3"
A, B = "party = 'red'", "party = 'blue'"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Lake]:
    built, store = make_store(tmp_path_factory.mktemp("store"))
    profile(store, "site")  # for its tables of tokens
    add_tables(store)
    logits = store.scan_table("site", "logits").collect()
    effects = {"promoted": ([1, 8, 14], [3.0, 2.0, 1.0]), "suppressed": ([4, 9, 10], [-3.0, -2.0, -1.0])}
    columns = {
        f"{side}_{name}": [value] * D_SAE
        for side, values in effects.items()
        for name, value in zip(("tokens", "effects"), values, strict=True)
    }
    columns |= {
        "effect_low": [-3.0] * D_SAE,
        "effect_high": [3.0] * D_SAE,
        "effect_counts": [[10, 30, 9, 1]] * D_SAE,
    }
    added = pl.DataFrame(columns, schema={name: LOGITS[name] for name in columns})
    store.write_table("site", "logits", logits.drop(columns, strict=False).hstack(added))
    return built, latentlake.open(str(built.layout.root))


@pytest.fixture
def lake(made: tuple[Built, Lake]) -> Lake:
    return made[1]


@pytest.fixture
def dense(made: tuple[Built, Lake]) -> np.ndarray:
    return made[0].dense["site"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A store whose model reads texts."""
    root = extracted(run_file(tmp_path_factory.mktemp("lake"), "abstopk")).layout.root
    lake = latentlake.open(str(root))
    lake.places = Places(model="tests.kit:tiny_lm")
    return lake


def test_a_store_says_what_it_holds(made: tuple[Built, Lake]) -> None:
    built, lake = made
    rows, active = built.tokens.height, np.count_nonzero(built.dense["site"])
    assert repr(lake) == (
        f"{built.layout.root}: 24 documents, {rows} tokens in 3 shards; labels: party, year\n"
        f"  site: 40 features (topk) at hook, {active:,} activations; {len(lake.tables())} tables"
    )


def test_a_site_is_named_where_there_are_several(tmp_path: Path) -> None:
    built = build(tmp_path, sites=("a", "b"), commits=1)
    lake = latentlake.open(str(tmp_path))
    for ask in (
        lake.scan_activations,
        lake.acts,
        lambda: lake.feature(1),
        lambda: lake.window("mean_all", 0, 5),
    ):
        with pytest.raises(InputError, match=r"has several sites \(a, b\): name one of them"):
            ask()
    np.testing.assert_array_equal(lake.acts(site="b").toarray(), built.dense["b"])
    assert "  b: 40 features (topk) at hook" in repr(lake)
    assert "; 1 of 3 shards are committed; 0 tables" in repr(lake)


def test_what_needs_one_site_finds_the_only_one(lake: Lake) -> None:
    for left_out, named in (
        (lake.scan_features().collect(), lake.scan_features("site").collect()),
        (lake.scan_activations().collect(), lake.scan_activations("site").collect()),
        (lake.fold_partials(), lake.fold_partials("site")),
        (lake.fold_row_counts(), lake.fold_row_counts("site")),
    ):
        assert_frame_equal(left_out, named)
    assert lake.totals() == lake.totals("site")
    assert lake.committed() == lake.shards


def test_a_feature_has_its_rows_statistics_and_tables(lake: Lake, dense: np.ndarray) -> None:
    feature = lake.feature(7)
    rows = feature.rows()
    np.testing.assert_array_equal(rows["row"], np.flatnonzero(dense[:, 7]))
    np.testing.assert_array_equal(rows["activation"], dense[rows["row"], 7])
    np.testing.assert_array_equal(rows["document"], lake.documents_of(rows["row"].to_numpy()))
    labels = lake.documents().select("document", "party", "year")
    fits = rows.join(labels, on="document").filter((pl.col("party") == "red") & (pl.col("year") > 1900))
    for where in ("party = 'red' and year > 1900", (pl.col("party") == "red") & (pl.col("year") > 1900)):
        assert feature.rows(where)["row"].to_list() == fits["row"].to_list()
    table = lake.scan_features().collect()
    assert feature.statistics == table.row(7, named=True)
    assert feature.table("rankings")["feature"].unique().to_list() == [7]
    assert feature.name == lake.names("site").name(7)
    assert (
        feature.similar(n=3)["feature"].to_list()
        == finding.similar(lake, "site", 7).head(3)["feature"].to_list()
    )
    active = np.count_nonzero(dense[:, 7])
    assert f"active in {active} of {table['counted_rows'][0]} counted rows, mean " in repr(feature)
    with pytest.raises(InputError, match=f"feature {D_SAE} is not in site 'site'"):
        lake.feature(D_SAE)


def test_contexts_and_strips_show_the_strongest_rows(lake: Lake, dense: np.ndarray) -> None:
    contexts = lake.feature(7).contexts(4, A, 3, 1)
    assert_frame_equal(contexts.drop("tokens"), lake.contexts("site", 7, 4, pl.col("party") == "red", 3, 1))
    assert [len(part) for part in contexts["tokens"]] == [len(part) for part in contexts["token_ids"]]
    strips = lake.feature(7).strips(4, A, 3, 1)
    assert len(strips) == 4
    most = np.abs(dense[:, 7]).max()
    assert strips.maxima == [pytest.approx(most)] * 4
    for strip, row, value in zip(strips.strips, contexts["row"], contexts["activation"], strict=True):
        assert strip.values[strip.firing] == value == dense[row, 7]
    assert lake.feature(7).strips(1, maximum=2.0).maxima == [2.0]
    assert repr(strips).count("\n") == 8


PLAIN = ("h4", "p", "b", "div", "span", "small", "code", "img", "style")
TABLE = ("table", "thead", "tbody", "tr", "th", "td")


class Tags(HTMLParser):
    """Every tag, with each of its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str | None]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {(tag, None), *((tag, name) for name, _ in attrs)}


def test_what_notebooks_show_is_escaped_and_stands_alone(lake: Lake) -> None:
    shown = [lake.feature(feature)._repr_html_() for feature in range(0, D_SAE, 4)]
    shown += [lake.feature(7).strips(200)._repr_html_(), lake.compare(A, B)._repr_html_()]
    text = "".join(shown)
    tags = Tags()
    tags.feed(text)
    assert {tag for tag, _ in tags.seen} <= {*PLAIN, *TABLE}
    assert {name for _, name in tags.seen} <= {
        "style",
        "title",
        "alt",
        "width",
        "src",
        "border",
        "class",
        None,
    }
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not set(text) & set("\u202e\u2066\u2028\x00\x1b")
    assert HARMFUL_LABEL not in text
    assert HOSTILE[9].replace(" ", "·") in text
    assert set(re.findall(r'(?:src|href)="([^"]{0,15})', text)) == {"data:image/png;"}


def test_tokens_are_those_of_the_table_of_logits(lake: Lake) -> None:
    tokens = lake.feature(7).tokens()
    assert tokens["promoted"].to_list() == [HOSTILE[1], HOSTILE[8], " w14"]
    assert tokens["effect_promoted"].to_list() == [3.0, 2.0, 1.0]
    assert tokens["suppressed"].to_list() == lake.token_texts([4, 9, 10])
    assert tokens["effect_suppressed"].to_list() == [-3.0, -2.0, -1.0]
    heights = [bar.get_height() for bar in lake.feature(7).plot().figure().axes[1].patches]
    assert heights == [10, 30, 9, 1]


def test_find_is_that_of_the_command(lake: Lake) -> None:
    token = lake.token_texts([lake.scan_table("site", "token_features").collect()["token_id"][0]])[0]
    found = lake.find(token, n=3)
    expected = finding.on_token(lake, "site", finding.token_ids(lake, token)).head(3)
    assert_frame_equal(found.drop("name", "token"), expected.drop("token_id"))
    assert found["token"].to_list() == [token] * found.height
    assert found.columns[:3] == ["feature", "name", "token"]
    for frame, expected in (
        (lake.find(text="w20"), finding.near_text(lake, "site", finding_pattern("w20"))),
        (
            lake.find(where="n_active > 20", by="mean_all"),
            finding.by_columns(lake, "site", ["n_active > 20"], "mean_all"),
        ),
        (lake.find(similar_to=7, by="jaccard"), finding.similar(lake, "site", 7, "jaccard")),
        (lake.find(name="a"), finding.by_name(lake, "site", "a")),
    ):
        assert_frame_equal(frame.drop("name"), expected.head(20))
        assert frame["name"].to_list() == [
            one_line(lake.names("site").name(f)) or None for f in frame["feature"]
        ]
    assert lake.find(text="w20", where=["n_active > 20"]).height <= lake.find(text="w20").height
    with pytest.raises(InputError, match="token and text are given: find by one of them"):
        lake.find("a", text="b")
    with pytest.raises(InputError, match="give a token such as ' war', text="):
        lake.find()
    with pytest.raises(InputError, match="no token reads ·nowhere; "):
        lake.find(" nowhere")


def finding_pattern(text: str) -> re.Pattern[bytes]:
    from pipeline.store.reading.example_texts import text_pattern

    return text_pattern(text)


def test_matrices_windows_and_comparisons_are_those_of_the_store(lake: Lake) -> None:
    assert (lake.acts([3]) != activation_matrix(lake, "site", [3])).nnz == 0
    assert (lake.acts(rows=range(9)) != activation_matrix(lake, "site", rows=range(9))).nnz == 0
    ours, expected = (
        lake.matrix(pool="mean", features=[3, 5], where=A),
        pooled_matrix(lake, "site", "document", "mean", [3, 5], A),
    )
    assert (ours.values != expected.values).nnz == 0
    assert_frame_equal(ours.rows, expected.rows)
    assert_frame_equal(
        lake.window("mean_all", 2, 5, support=0).drop("name"),
        window(lake, "site", "mean_all", 2, 5, support=0),
    )
    smallest = lake.window("mean_all", 0, 1, ascending=True, support=0)
    assert smallest["mean_all"][0] == lake.scan_features().select(pl.col("mean_all").min()).collect().item()
    comparison, expected = lake.compare(A, B), compare_groups(lake, "site", A, B)
    assert (comparison.a, comparison.b) == (expected.a, expected.b)
    assert_frame_equal(comparison.table.sort("feature"), expected.table)
    z = comparison.table["frequency_z"].abs().drop_nulls()
    assert z.to_list() == sorted(z, reverse=True)
    assert comparison.top(2)["feature"].to_list() == comparison.table["feature"].head(2).to_list()
    clear = (expected.table["frequency_q"] < 0.05).sum()
    assert f"{clear} of 40 features of site differ (q < 0.05)" in repr(comparison)
    assert repr(comparison).startswith(
        f"a: {A}, {expected.a.documents} documents, {expected.a.rows} rows; b: "
    )


def test_a_text_has_the_features_that_elicit_gives_it(
    texts: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = texts.elicit(TEXT)
    typed = run_text(texts, "mid", TEXT, texts.places)
    assert_frame_equal(answer.table, elicited(texts, "mid", typed, selected_rows(texts, typed, None)))
    assert answer.tokens == texts.pieces(typed.token_ids.tolist())
    feature = answer.top(1)["feature"][0]
    np.testing.assert_array_equal(answer.values(feature), typed.activations[:, [feature]].toarray()[:, 0])
    (strip,) = answer.strips(feature).strips
    np.testing.assert_array_equal(strip.values, answer.values(feature))
    surprising = answer.table.sort("surprise_bits", "feature", descending=[True, False])["feature"].head(3)
    assert [
        f"feature {feature}" in head for feature, head in zip(surprising, answer.strips().heads, strict=True)
    ] == [True] * 3
    last = texts.elicit(TEXT, position=-1)
    assert_frame_equal(last.table, elicited(texts, "mid", typed, selected_rows(texts, typed, -1)))
    assert (last.position, last.strips().strips[0].firing) == (5, 5)
    assert "6 tokens" in repr(answer)
    assert "6 tokens" in answer._repr_html_()
    with pytest.raises(InputError, match="position 6 is not in the text"):
        texts.elicit(TEXT, position=6)
    assert capsys.readouterr() == ("", "")


def test_a_model_stays_loaded_until_it_is_to_be_another(texts: Lake) -> None:
    session = texts.session()
    assert texts.session("mid") is session
    assert texts.again().session() is session
    texts.elicit(TEXT)
    assert texts.session().model is session.model
    other = texts.again()
    other.places = Places(model="tests.kit:tiny_lm", device="cpu")
    assert other.session() is not session
    assert texts.session() is session


def test_figures_show_themselves_and_are_saved(lake: Lake, tmp_path: Path) -> None:
    for picture in (lake.plot("frequency"), lake.feature(7).plot()):
        data, metadata = picture._repr_png_()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert metadata == {"width": 720}
        assert picture.save(tmp_path / "a.png").read_bytes() == data
        assert b"<svg" in picture.save(str(tmp_path / "a.svg")).read_bytes()
        assert isinstance(picture.figure(), Figure)
        with pytest.raises(InputError, match=r"a\.pdf is neither a \.png nor a \.svg file"):
            picture.save(tmp_path / "a.pdf")
    with pytest.raises(InputError, match="there is no figure 'freq': choose one of frequency, "):
        lake.plot("freq")


def test_a_figure_of_a_feature_holds_its_histogram(lake: Lake) -> None:
    active = [f for f in range(D_SAE) if lake.feature(f).statistics["n_active"]]
    for number in active[:8]:
        row = lake.feature(number).statistics
        axes = lake.feature(number).plot().figure().axes[0]
        signed = row["min_activation"] < 0
        areas = [
            bar.get_height() * (bar.get_width() if signed else np.log2(1 + bar.get_width() / bar.get_x()))
            for bar in axes.patches
        ]
        np.testing.assert_allclose(areas, row["histogram_counts"], rtol=1e-9)
    (dead,) = {*range(0, D_SAE, 5)} - {*active, *range(5, D_SAE)}
    assert "it never fires" in [text.get_text() for text in lake.feature(dead).plot().figure().axes[0].texts]


def test_opening_and_asking_needs_neither_torch_nor_a_figure(lake: Lake) -> None:
    code = (
        "import sys, latentlake\n"
        f"lake = latentlake.open({str(lake.layout.root)!r})\n"
        "lake.find(where='n_active > 3'), lake.matrix(), lake.acts([3]), repr(lake)\n"
        "lake.window('mean_all', 0, 3), lake.documents()\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'ray'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
