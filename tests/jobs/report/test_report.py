"""The report: its numbers are those of the tables, nothing harmful gets through, bytes are the same."""

from __future__ import annotations

import base64
import errno
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs.report.build import report
from jobs.report.page import number, percent, write
from jobs.report.strips import standalone, visible
from pipeline.statistics.features.histogram import bin_edges
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import write_atomic
from pipeline.store.reading.windows import AFTER, BEFORE
from pipeline.store.records.tables import write_table
from pipeline.tasks import OneProcess, Processes
from schemas.errors import InputError
from tests.fixtures.report import (
    HARMFUL_LABEL,
    HOSTILE,
    blocks_of,
    index_of,
    make_report,
    make_store,
    pages_of,
    section_of,
    unpacked,
)
from tests.fixtures.store import D_SAE, N_TOKENS, VOCABULARY, build

pytestmark = pytest.mark.slow

VOID = {"meta", "link", "img", "input", "rect", "line", "br", "wbr"}


class Page(HTMLParser):
    """Elements of a page with their attributes, its text, and what stands in each element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("report") / "store")


@pytest.fixture(scope="module")
def content(made):
    """The data of the page of each feature."""
    return pages_of(made[3] / "sites/site")


def pages(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_there_is_a_page_for_every_feature_and_cluster_and_nothing_temporary(made, content):
    folder = made[3]
    result = {
        path.relative_to(folder / "sites/site").as_posix() for path in (folder / "sites/site").rglob("*.html")
    }
    features = {"feature.html", *(f"features/0/{feature}.html" for feature in range(D_SAE))}
    clusters = {"clusters/index.html", "cluster.html", "clusters/context/0.html"}
    clusters |= {f"clusters/feature/{n}.html" for n in range(3)}
    assert result == features | clusters | {"index.html", "features.html"}
    assert list(pages_of(folder / "sites/site", "clusters/feature")) == [0, 1, 2]
    assert list(pages_of(folder / "sites/site", "clusters/context")) == [0]
    assert list(content) == list(range(D_SAE))
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_every_link_of_every_page_leads_to_a_file(made, content):
    folder = made[3]
    clusters = {"feature/0", "feature/1", "feature/2", "context/0"}
    for path in folder.rglob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        links = [each["href"] for tag in ("a", "link") for each in page.all(tag) if each.get("href")]
        sources = [each["src"] for tag in ("img", "script") for each in page.all(tag)]
        for link in [*links, *sources]:
            place, _, fragment = link.partition("#")
            assert not place or (path.parent / place).resolve().is_file(), (path, link)
            assert not place.endswith("feature.html") or int(fragment) in content
            assert not place.endswith("cluster.html") or fragment in clusters
    for feature, page in content.items():
        assert (page["before"], page["after"]) == (
            feature - 1 if feature else None,
            content.get(feature + 1) and feature + 1,
        )
        for ((_, kind, cluster, _),) in blocks_of(page, "clusters")[0]:
            assert f"{kind}/{cluster}" in clusters
        ids = [section["id"] for section in page["sections"] if "id" in section]
        assert sorted(ids) == sorted(entry[0] for entry in page["toc"])


def test_old_links_lead_to_the_pages(made):
    folder = made[3] / "sites/site"
    old = {f"features/0/{n}.html": f"feature.html#{n}" for n in range(D_SAE)}
    old |= {f"clusters/feature/{n}.html": f"cluster.html#feature/{n}" for n in range(3)}
    old["clusters/context/0.html"] = "cluster.html#context/0"
    for place, to in old.items():
        page = Page((folder / place).read_text(encoding="utf-8"))
        (refresh,) = [each for each in page.all("meta") if each.get("http-equiv") == "refresh"]
        assert refresh["content"] == f"0; url=../../{to}"
        assert [each["href"] for each in page.all("a")] == [f"../../{to}"]
        assert (folder / place).stat().st_size < 512


def test_the_statistics_of_a_page_are_those_of_the_tables(made, content):
    _, store, tables, _ = made
    for row in store.scan_features("site").collect().iter_rows(named=True):
        ((entries, _),) = blocks_of(content[row["feature"]], "facts")
        facts = {name: (value, span) for name, value, _, span in entries}
        assert facts["active rows"] == (f"{row['n_active']:,}", "")
        assert facts["mean when active"] == (number(row["mean_active"]), "")
        assert facts["largest"] == (number(row["max_activation"]), "")
        assert facts["documents"] == (f"{row['active_documents']} of {row['documents']}", "")
        profile = tables["profile"].row(row["feature"], named=True)
        low, high = percent(profile["frequency_low"]), percent(profile["frequency_high"])
        assert facts["frequency"] == (percent(row["frequency"]), f"{low} to {high}")
        assert facts["token entropy"] == (f"{number(profile['token_entropy_bits'])} bits", "")
        top_token = HOSTILE.get(profile["top_token"], f" w{profile['top_token']}")
        assert facts[f"most on {standalone(top_token)}"] == (percent(profile["top_token_share"]), "")
        assert ("frequency below" in facts) is (profile["dead_upper"] is not None)
        for rank in (
            store.scan_table("site", "rankings")
            .filter(feature=row["feature"])
            .collect()
            .iter_rows(named=True)
        ):
            low, high = rank["rank_low"], rank["rank_high"]
            interval = "" if low is None else f"#{low + 1:,} to #{high + 1:,}"
            assert facts[f"rank by {rank['by']}"] == (f"#{rank['rank'] + 1}", interval)


def test_a_feature_that_never_fires_says_so(made, content):
    _, store, _, _ = made
    dead = store.scan_features("site").filter(pl.col("n_active") == 0).collect()["feature"].to_list()
    assert dead
    for feature in dead:
        assert blocks_of(content[feature], "none")[0][0].startswith("It never fired in")
        assert not blocks_of(content[feature], "histogram")


def test_the_histogram_has_a_bar_for_each_bin_with_its_count(made, content):
    _, store, _, _ = made
    for row in store.scan_features("site").filter(pl.col("n_active") > 0).collect().iter_rows(named=True):
        ((drawn,),) = blocks_of(content[row["feature"]], "histogram")
        left, right = bin_edges(np.array(row["histogram_bins"], np.int16))
        counts = zip(left, right, row["histogram_counts"], strict=True)
        assert [bar[3] for bar in drawn["bars"]] == [
            f"{number(a)} to {number(b)}: {n:,}" for a, b, n in counts
        ]
        assert [bar[4] for bar in drawn["bars"]] == [int(b <= 0) for b in right]
        # the area of a bar is its count, as far as tenths of a unit say
        area = np.array([(drawn["size"][2] - y) * (width + 1) for _, y, width, _, _ in drawn["bars"]])
        share = np.array(row["histogram_counts"]) / area
        np.testing.assert_allclose(share, share[area.argmax()], rtol=0.1, atol=0)


def test_every_strip_has_the_tokens_and_activations_of_its_window(made, content):
    built, store, _, folder = made
    examples, tokens = store.scan_table("site", "examples").collect(), built.tokens["token"].to_list()
    context, texts = built.tokens["context"].to_numpy(), index_of(folder / "sites/site")["tokens"]
    for feature in range(D_SAE):
        result = [row for strips, _ in blocks_of(content[feature], "strips") for row in strips]
        mine = examples.filter(feature=feature)
        top = mine.filter(kind="top").sort("rank")
        tenths = mine.filter(kind="quantile").sort("interval", "rank", descending=[True, False])
        order = [*top.iter_rows(named=True), *tenths.iter_rows(named=True)]
        assert len(result) == len(order)
        for (value, pieces, places, shown, firing, ends, where), row in zip(result, order, strict=True):
            inside = np.flatnonzero(context == context[row["row"]])
            window = inside[(inside >= row["row"] - BEFORE) & (inside <= row["row"] + AFTER)]
            values = built.dense["site"][window, feature]
            assert value == number(row["activation"])
            expected = [visible(HOSTILE.get(tokens[place], f" w{tokens[place]}")) for place in window]
            assert [texts[piece] for piece in pieces] == expected
            assert places == np.flatnonzero(values).tolist()
            assert shown == [float(f"{each:.4g}") for each in values[places].tolist()]
            assert window[firing] == row["row"]
            assert ends == (window[0] == inside[0]) + 2 * (window[-1] == inside[-1])
            assert f"context {context[row['row']]}, position {row['row'] - inside[0]}" in where


def test_neighbours_logits_clusters_labels_and_matches_are_those_of_the_tables(made, content):
    _, _, tables, folder = made
    page, texts = content[7], index_of(folder / "sites/site")["tokens"]
    ((lists,),) = [block[1:] for block in section_of(page, "Neighbours")]
    shown = {each["caption"][0]: each for each in lists}
    for by in ("jaccard", "phi"):
        expected = tables["neighbours"].filter(feature=7, by=by).sort("rank").iter_rows(named=True)
        cells = [(row["neighbour"], number(row[by]), str(row["n_both"])) for row in expected]
        assert [(cell[0], *cell[2:]) for cell in shown[by]["rows"]] == cells
        assert [cell[1] for cell in shown[by]["rows"]] == [content[cell[0]]["fires"] for cell in cells]
    assert shown["cosine"]["rows"] == [[8, content[8]["fires"], "0.750"]]
    note, sides = section_of(page, "Logits")
    assert note[1].startswith(f"Entropy {number(tables['logits']['entropy_bits'][7])} bits")
    (high, low) = sides[1]
    assert (high["caption"][0], low["caption"][0]) == ("Highest logits", "Lowest logits")
    written = [([texts[token] for token in tokens], value) for tokens, value in high["rows"]]
    assert written == [([HOSTILE[1]], "3.50"), ([HOSTILE[2]], "2.50"), ([" the"], "1.50")]
    assert [value for _, value in low["rows"]] == ["-1.25", "-1.00"]
    assert section_of(page, "Clusters") == [["clusters", [["Decoder directions", "feature", 1, "⟨U+202E⟩"]]]]
    (matches,) = [each for each in page["sections"] if each.get("title") == "Matches"]
    assert matches["small"] == "matches_other"
    assert matches["blocks"][0][1]["rows"] == [["7", "0.750", "0.500", "yes"]]
    party, labels, trend, trends = section_of(page, "Labels")
    assert (party, trend[1]) == (["heading", "party", ""], "Trends")
    # the clearest difference first
    assert [row[0] for row in labels[1]["rows"]] == [visible(HARMFUL_LABEL), "red"]
    assert labels[1]["rows"][0][1:] == ["100", "7", percent(0.07), percent(0.1), "3.00", number(0.01)]
    assert (labels[1]["clear"], trends[1]["clear"]) == ([0], [0])
    assert trends[1]["rows"] == [["year", "9", *map(number, (-0.5, 0.125, -4.0, 0.02))]]


def test_the_page_of_a_cluster_has_its_members_the_most_central_first(made, content):
    _, store, tables, folder = made
    features = store.scan_features("site").collect()
    for n, page in pages_of(folder / "sites/site", "clusters/feature").items():
        members = tables["feature_clusters"].filter(cluster=n).sort("rank")
        ((shown,),) = blocks_of(page, "table")
        assert [row[0] for row in shown["rows"]] == members["feature"].to_list()
        for (feature, tokens, score, *counts), cosine in zip(shown["rows"], members["cosine"], strict=True):
            row = features.row(feature, named=True)
            assert tokens == content[feature]["fires"]
            assert score == number(cosine)
            assert counts == [f"{row['n_active']:,}", percent(row["frequency"]), number(row["mean_active"])]
        ((facts,),) = blocks_of(page, "facts")
        summary = tables["feature_cluster_summary"].row(n, named=True)
        assert [fact[1] for fact in facts] == [
            str(summary["size"]),
            number(summary["cohesion"]),
            percent(summary["share"]),
        ]
        assert (page["before"], page["after"]) == (n - 1 if n else None, n + 1 if n < 2 else None)
        assert page["title"] == f"Cluster {n} by decoder directions"


def test_the_page_of_a_cluster_of_contexts_has_their_texts_and_typical_features(made, content):
    built, _, _, folder = made
    (page,) = pages_of(folder / "sites/site", "clusters/context").values()
    ((texts,),) = blocks_of(page, "texts")
    tokens = built.tokens
    for (text, where), n in zip(texts, (0, 1), strict=True):
        ids = tokens.filter(context=n)["token"].to_list()
        assert text == "".join(visible(HOSTILE.get(token, f" w{token}")) for token in ids)
        assert where.endswith(f" · context {n}")
    ((typical,),) = blocks_of(page, "table")
    assert typical["rows"] == [[1, content[1]["fires"], "3.00"], [2, content[2]["fires"], "2.00"]]
    ((facts,),) = blocks_of(page, "facts")
    assert facts[-1][:2] == ["most of party", f"{visible(HARMFUL_LABEL)} ({percent(0.5)})"]


def test_a_large_cluster_shows_its_most_central_features_and_leads_to_all(made, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.report.clusters.SHOWN_MEMBERS", 3)
    report(made[1], ["site"], OneProcess(), out=tmp_path, features="0")
    page = pages_of(tmp_path / "sites/site", "clusters/feature")[1]
    members = made[2]["feature_clusters"].filter(cluster=1).sort("rank")["feature"].to_list()
    ((shown,),) = blocks_of(page, "table")
    assert [row[0] for row in shown["rows"]] == members[:3]
    assert page["sections"][1]["small"] == "the most central first, 3 of 13"
    assert blocks_of(page, "in_table") == [["cluster=1", "All of them in the feature table"]]


def test_the_table_has_every_feature_and_its_values(made):
    _, store, tables, folder = made
    text = (folder / "sites/site/features.js").read_text(encoding="ascii")
    data = json.loads(text.removeprefix("var LATENTLAKE=").removesuffix(";\n"))
    features = store.scan_features("site").collect()
    sources = {"cluster": tables["feature_clusters"]}
    sources |= dict.fromkeys(("top_token_share", "token_entropy_bits"), tables["profile"])
    sources |= dict.fromkeys(("entropy_bits", "max_probability"), tables["logits"])
    for column in data["columns"]:
        values = np.frombuffer(base64.b64decode(column["data"]), "<f8" if column["wide"] else "<f4")
        source = sources.get(column["name"], features)
        expected = source[column["name"]].cast(pl.Float64).fill_null(np.nan).to_numpy()
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    names = np.frombuffer(base64.b64decode(data["names"]), "<u4").reshape(D_SAE, data["width"])
    best = store.scan_table("site", "examples").filter(kind="top").collect()
    for feature in range(D_SAE):
        rows = best.filter(feature=feature).sort("rank")["row"].to_list()
        tokens = [made[0].tokens["token"][row] for row in rows]
        ranked = sorted(set(tokens), key=lambda token: (-tokens.count(token), tokens.index(token)))
        assert [data["tokens"][n] for n in names[feature] if data["tokens"][n]] == [
            standalone(HOSTILE.get(token, f" w{token}")) for token in ranked[:3]
        ]


HIDDEN = "[\u202a-\u202e\u2066-\u2069\u2028\u2029\x00\x1b]"


def test_hostile_tokens_and_labels_stay_text(made, content):
    folder = made[3]
    seen = ""
    for path in folder.rglob("*.html"):
        raw = path.read_text(encoding="utf-8")
        page = Page(raw)
        assert not re.search(HIDDEN, raw), path
        allowed = {"features.js", "features/index.js"}
        allowed |= {
            f"../../static/{name}.js" for name in ("common", "search", "table", "pages", "files", "page")
        }
        assert {each.get("src") for each in page.all("script")} <= allowed
        assert not [each for _, each in page.elements if any(name.startswith("on") for name in each)]
        assert not [each for each in page.all("img") if each["src"] == "x"]
        assert not page.all("style")
        assert not [each for _, each in page.elements if "style" in each]  # the policy would forbid it
        seen += page.text
    seen += json.dumps(list(content.values()), ensure_ascii=False) + "".join(
        index_of(folder / "sites/site")["tokens"]
    )
    assert not re.search(HIDDEN, seen)
    for token in (1, 2, 3, 6, 9):
        assert HOSTILE[token] in seen
    assert HARMFUL_LABEL.replace("\u202e", "") in seen
    script = (folder / "sites/site/features.js").read_text(encoding="ascii")
    assert not set("<>&\u2028") & set(script)


def test_the_files_of_pages_are_a_call_with_letters_and_digits(made):
    site = made[3] / "sites/site"
    files = [path for path in site.rglob("*.js") if path.parent != site]
    names = {"features/index.js", "features/0.js", "clusters/feature/0.js", "clusters/context/0.js"}
    assert {path.relative_to(site).as_posix() for path in files} == names
    key = unpacked((site / "features/index.js").read_bytes())[0]
    for path in files:
        text = path.read_text(encoding="ascii")
        call = r'latentlake(Index\(|Chunk\("[a-z]+(/[a-z]+)?/0",)"[0-9a-f]{16}","[A-Za-z0-9+/=]+"\);\n'
        assert re.fullmatch(call, text)
        assert f'"{key}"' in text  # by which a page knows that both were written together


def test_every_page_forbids_what_is_not_a_file_of_the_site(made):
    for path in made[3].rglob("*.html"):
        (policy,) = [
            each["content"]
            for each in Page(path.read_text(encoding="utf-8")).all("meta")
            if each.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http:" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("", "⟨empty⟩"),
        ("\n\t", "↩→"),
        ("\u202ex", "⟨U+202E⟩x"),
        ("\u2028", "⟨U+2028⟩"),
        ("a\x07", "a⟨U+0007⟩"),
        ("ا", "ا"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
    assert standalone(text) == shown


def test_making_it_again_or_with_processes_gives_the_same_bytes(made, tmp_path):
    _, store, _, folder = made
    before = pages(folder)
    with Processes(2) as tasks:
        report(FeatureStore.open(store.layout.root), ["site"], tasks, out=tmp_path / "again")
    assert pages(tmp_path / "again") == before


def test_a_selection_has_its_pages_alone_and_links_to_no_other(made, tmp_path):
    store, out = made[1], tmp_path / "some"
    report(store, ["site"], OneProcess(), out=out, features="1,7:9")
    report(store, ["site"], OneProcess(), out=out, features="top:5:n_active")
    best = store.scan_features("site").sort("n_active", "feature", descending=[True, False]).head(5).collect()
    left, content = sorted(best["feature"].to_list()), pages_of(out / "sites/site")
    assert list(content) == left == index_of(out / "sites/site")["chosen"]
    assert {int(path.stem) for path in (out / "sites/site/features").rglob("*.html")} == set(left)
    assert [page["before"] for page in content.values()] == [None, *left[:-1]]
    assert [page["after"] for page in content.values()] == [*left[1:], None]
    for path in out.rglob("*.html"):
        linked = re.findall(r'href="[^"]*?feature\.html#(\d+)"', path.read_text(encoding="utf-8"))
        assert {int(n) for n in linked} <= set(left)


@pytest.fixture
def small_files(monkeypatch):
    """Files of 8 pages each."""
    for module in ("work", "features", "clusters", "build"):
        monkeypatch.setattr(f"jobs.report.{module}.CHUNK", 8)
    monkeypatch.setattr("jobs.report.build.PART", 16)


def test_pages_lie_in_files_of_a_fixed_number_and_files_of_an_earlier_report_go(
    made, content, tmp_path, small_files
):
    report(made[1], ["site"], OneProcess(), out=tmp_path)
    folder = tmp_path / "sites/site"
    assert pages_of(folder) == content
    files = {int(path.stem): unpacked(path.read_bytes()) for path in (folder / "features").glob("[0-9]*.js")}
    assert sorted(files) == [0, 1, 2, 3, 4]
    for n, (number_, _, pages_) in files.items():
        assert number_ == f"features/{n}"
        assert [int(feature) for feature in pages_] == list(range(8 * n, 8 * n + 8))
    report(made[1], ["site"], OneProcess(), out=tmp_path, features="3,9:21,39")
    chosen = [3, *range(9, 21), 39]
    files = {path.name: unpacked(path.read_bytes())[-1] for path in (folder / "features").glob("[0-9]*.js")}
    assert {name: [int(n) for n in pages_] for name, pages_ in files.items()} == {
        "0.js": chosen[:8],
        "1.js": chosen[8:],
    }


def test_a_large_report_breaks_old_links_and_removes_pages_of_the_old_layout(made, tmp_path, monkeypatch):
    folder = tmp_path / "sites/site"
    report(made[1], ["site"], OneProcess(), out=tmp_path)
    (folder / "features/12").mkdir()
    (folder / "features/12/12345.html").write_text("old")
    monkeypatch.setattr("jobs.report.work.REDIRECTED", 43)  # pages of features and of clusters, less one
    report(made[1], ["site"], OneProcess(), out=tmp_path)
    assert {path.name for path in (folder / "features").rglob("*")} == {"index.js", "0.js"}
    assert {path.name for path in (folder / "clusters/feature").rglob("*")} == {"0.js"}
    report(made[1], ["site"], OneProcess(), out=tmp_path, features="0:39")
    assert len(list((folder / "features/0").iterdir())) == 39
    assert len(list((folder / "clusters/feature").iterdir())) == 4


def test_characters_that_several_tokens_share_are_shown_as_one(tmp_path):
    built, store = make_store(tmp_path / "store")
    texts = [f" w{token}".encode() for token in range(N_TOKENS)]
    for first in range(0, N_TOKENS, 2):  # so that about half of the tokens hold a part of é
        texts[first] = b"\xc3" if first % 4 else b"\xa9"
    frame = {"token_id": range(N_TOKENS), "text": [repr(text) for text in texts], "bytes": texts}
    write_frame(store.layout.vocabulary, pl.DataFrame(frame, schema=VOCABULARY))
    report(FeatureStore.open(tmp_path / "store"), ["site"], OneProcess())
    folder, tokens = tmp_path / "store/report/sites/site", built.tokens["token"].to_list()
    index, content = index_of(folder)["tokens"], pages_of(folder)
    context, n_joined = built.tokens["context"].to_numpy(), 0
    for row in store.scan_table("site", "examples").filter(kind="top").collect().iter_rows(named=True):
        ((strips, _), *_) = blocks_of(content[row["feature"]], "strips")
        _, pieces, places, values, firing, *_ = strips[row["rank"]]
        inside = np.flatnonzero(context == context[row["row"]])
        window = inside[(inside >= row["row"] - BEFORE) & (inside <= row["row"] + AFTER)]
        shown = [index[piece] if isinstance(piece, int) else piece for piece in pieces]
        if shown[firing] == "\ufffd":
            continue
        n_joined += "é" in shown
        assert "".join(shown) == b"".join(texts[tokens[at]] for at in window).decode("utf-8", "ignore")
        # a span has the strongest activation of its tokens
        assert abs(values[places.index(firing)]) >= abs(float(f"{row['activation']:.4g}"))
    assert n_joined > 10


def test_a_site_and_figures_that_the_store_has_no_more_leave_the_report_but_no_file_of_others(
    made, tmp_path, capsys
):
    store, out = made[1], tmp_path / "some"
    report(store, ["site"], OneProcess(), out=out, features="0:3")
    for name in ("gone", "half"):
        shutil.copytree(out / "sites/site", out / "sites" / name)
    (out / "sites/half/features/0/notes.txt").write_text("mine")
    (out / "sites/other").mkdir()
    (out / "sites/other/thesis.tex").write_text("mine")
    (out / "sites/site/figures/old.png").write_bytes(b"")
    marker = json.loads((out / "report.json").read_text())
    marker["sites"]["gone"] = marker["sites"]["site"]
    (out / "report.json").write_text(json.dumps(marker))
    report(store, ["site"], OneProcess(), out=out, features="0:3")
    left = {
        path.relative_to(out / "sites").as_posix() for path in (out / "sites").rglob("*") if path.is_file()
    }
    assert {path for path in left if not path.startswith("site/")} == {
        "half/features/0/notes.txt",
        "other/thesis.tex",
    }
    assert {path.name for path in (out / "sites/site/figures").iterdir()} == {"frequency.png"}
    assert json.loads((out / "report.json").read_text())["sites"].keys() == {"site"}
    assert "gone" not in (out / "index.html").read_text(encoding="utf-8")
    said = " ".join(capsys.readouterr().out.split())
    assert f"{out / 'sites/half'} is kept, because it has files that no report wrote" in said


def test_the_report_of_another_lake_is_left_alone(made, tmp_path):
    report(made[1], ["site"], OneProcess(), out=tmp_path, features="0")
    before = pages(tmp_path)
    marker = json.loads(before["report.json"]) | {"lake": "another"}
    (tmp_path / "report.json").write_text(json.dumps(marker))
    with pytest.raises(
        InputError, match="is the report of a different lake: remove it, or give another --out"
    ):
        report(made[1], ["site"], OneProcess(), out=tmp_path)
    assert pages(tmp_path).keys() == before.keys()


def test_missing_tables_are_named_with_the_command_that_makes_them(tmp_path):
    _, store = make_store(tmp_path / "store")
    report(store, ["site"], OneProcess(), features="0:3")
    absent = blocks_of(pages_of(tmp_path / "store/report/sites/site")[1], "absent")
    commands = {command for _, command in absent}
    named = ("profile", "logits", "coactivation", "cluster", "examples")
    assert commands == {f"latentlake {command}" for command in named}
    text = (tmp_path / "store/report/sites/site/index.html").read_text(encoding="utf-8")
    assert "<code>latentlake plots STORE</code>" in text
    assert "missing" in text


def test_stale_tables_are_said(tmp_path):
    _, store = make_store(tmp_path / "store")
    tables = store.layout.table("site", "features")
    write = pl.read_parquet(tables)
    write_table(store.layout, "site", "features", write, "other receipts")
    report(store, ["site"], OneProcess(), features="0")
    text = (tmp_path / "store/report/sites/site/index.html").read_text(encoding="utf-8")
    assert "Stale, made before the newest shards were committed: features." in text


def test_a_folder_that_is_no_report_is_left_alone(made, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds files and is not a report"):
        report(made[1], ["site"], OneProcess(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "[]", '{"sites": 3}', "{}"])
def test_a_damaged_record_of_a_report_is_reported(made, tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=r"report\.json is damaged"):
        report(made[1], ["site"], OneProcess(), out=tmp_path)


@pytest.mark.parametrize("text", ["", "top:0", "top:5:colour", "40", "3:2", "1;2", "-1", "٣"])
def test_a_selection_that_means_nothing_is_reported(made, text):
    with pytest.raises(InputError):
        report(made[1], ["site"], OneProcess(), features=text)


def test_without_the_feature_table_the_command_is_named(tmp_path):
    store = FeatureStore.open(build(tmp_path / "store", shards=1).layout.root)
    with pytest.raises(InputError, match="latentlake stats"):
        report(store, ["site"], OneProcess())
    assert not (tmp_path / "store/report").exists()


def test_a_full_disk_leaves_the_old_page_and_nothing_else(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    write(page, b"old")

    def half(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InputError, match="no space left"):
        write(page, b"new page")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"page.html": b"old"}


def test_a_store_on_object_storage_has_its_report_there(made):
    _, store, _, folder = made
    remote = store_path("memory://report-of-a-store")
    for path in sorted(store.layout.root.rglob("*")):
        if path.is_file() and folder not in path.parents:
            place = remote
            for part in path.relative_to(store.layout.root).parts:
                place = place / part
            write_atomic(place, path.read_bytes())
    first = report(FeatureStore.open(remote), ["site"], OneProcess())
    assert first.read_bytes() == (folder / "index.html").read_bytes()
    site = remote / "report" / "sites" / "site" / "features"
    for same, path in ((site / "0.js", "0.js"), (site / "0" / "7.html", "0/7.html")):
        assert same.read_bytes() == (folder / "sites/site/features" / path).read_bytes()
