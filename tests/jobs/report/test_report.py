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
from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import write_atomic
from pipeline.store.reading.windows import AFTER, BEFORE
from pipeline.store.records.tables import write_table
from pipeline.tasks import OneProcess, Processes
from schemas.errors import InputError
from tests.fixtures.report import HARMFUL_LABEL, HOSTILE, make_report, make_store
from tests.fixtures.store import D_SAE, build

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


def page_of(folder, feature):
    return (folder / f"sites/site/features/0/{feature}.html").read_text(encoding="utf-8")


def pages(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_there_is_a_page_for_every_feature_and_cluster_and_nothing_temporary(made):
    folder = made[3]
    result = {
        path.relative_to(folder / "sites/site").as_posix() for path in (folder / "sites/site").rglob("*.html")
    }
    features = {f"features/0/{feature}.html" for feature in range(D_SAE)}
    clusters = {
        "clusters/index.html",
        "clusters/context/0.html",
        *(f"clusters/feature/{n}.html" for n in range(3)),
    }
    assert result == features | clusters | {"index.html", "features.html"}
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_every_link_of_every_page_leads_to_a_file(made):
    folder = made[3]
    for path in folder.rglob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        links = [each["href"] for tag in ("a", "link") for each in page.all(tag) if each.get("href")]
        sources = [each["src"] for tag in ("img", "script") for each in page.all(tag)]
        for link in [*links, *sources]:
            assert link.startswith("#") or (path.parent / link.partition("#")[0]).resolve().is_file(), (
                path,
                link,
            )


def test_the_statistics_of_a_page_are_those_of_the_tables(made):
    _, store, tables, folder = made
    features = store.scan_features("site").collect()
    for row in features.iter_rows(named=True):
        text = page_of(folder, row["feature"])
        facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
        assert facts["active rows"] == f"{row['n_active']:,}"
        assert facts["mean when active"] == number(row["mean_active"])
        assert facts["largest"] == number(row["max_activation"])
        low, high = (
            tables["profile"].row(row["feature"], named=True)["frequency_low"],
            tables["profile"]["frequency_high"][row["feature"]],
        )
        assert (
            facts["frequency"]
            == f"{percent(row['frequency'])}<small>{percent(low)} to {percent(high)}</small>"
        )
        for rank in (
            store.scan_table("site", "rankings")
            .filter(feature=row["feature"])
            .collect()
            .iter_rows(named=True)
        ):
            low, high = rank["rank_low"], rank["rank_high"]
            interval = "" if low is None else f"<small>#{low + 1:,} to #{high + 1:,}</small>"
            assert facts[f"rank by {rank['by']}"] == f"#{rank['rank'] + 1}{interval}"


def test_a_feature_that_never_fires_says_so(made):
    _, store, _, folder = made
    dead = store.scan_features("site").filter(pl.col("n_active") == 0).collect()["feature"].to_list()
    assert dead
    for feature in dead:
        assert "It never fired in" in page_of(folder, feature)
        assert "<svg" not in page_of(folder, feature)


def test_the_histogram_has_a_bar_for_each_bin_with_its_count(made):
    _, store, _, folder = made
    for row in store.scan_features("site").filter(pl.col("n_active") > 0).collect().iter_rows(named=True):
        titles = re.findall(r"<title>(\S+ to \S+: \S+)</title>", page_of(folder, row["feature"]))
        left, right = bin_edges(np.array(row["histogram_bins"], np.int16))
        counts = zip(left, right, row["histogram_counts"], strict=True)
        assert titles == [f"{number(a)} to {number(b)}: {n:,}" for a, b, n in counts]


def test_every_strip_has_the_tokens_and_activations_of_its_window(made):
    built, store, _, folder = made
    examples, tokens = store.scan_table("site", "examples").collect(), built.tokens["token"].to_list()
    context = built.tokens["context"].to_numpy()
    for feature in range(D_SAE):
        result = re.findall(
            r"<span class=value>(\S+?)</span><p class=strip dir=auto>(.*?)</p><span class=where>(.*?)</span>",
            page_of(folder, feature),
            re.S,
        )
        mine = examples.filter(feature=feature)
        top = mine.filter(kind="top").sort("rank")
        tenths = mine.filter(kind="quantile").sort("interval", "rank", descending=[True, False])
        order = [*top.iter_rows(named=True), *tenths.iter_rows(named=True)]
        assert len(result) == len(order)
        for (value, strip, where), row in zip(result, order, strict=True):
            inside = np.flatnonzero(context == context[row["row"]])
            window = inside[(inside >= row["row"] - BEFORE) & (inside <= row["row"] + AFTER)]
            values = built.dense["site"][window, feature]
            assert value == number(row["activation"])
            expected = "".join(visible(HOSTILE.get(tokens[place], f" w{tokens[place]}")) for place in window)
            assert Page(strip).text == expected
            titles = [each["title"] for tag, each in Page(strip).elements if tag in ("b", "mark")]
            assert titles == [f"{number_:.4g}" for number_ in values[values != 0].tolist()]
            assert [float(each["title"]) for each in Page(strip).all("mark")] == [
                float(f"{row['activation']:.4g}")
            ]
            assert f"context {context[row['row']]}, position {row['row'] - inside[0]}" in where


def test_neighbours_logits_clusters_labels_and_matches_are_those_of_the_tables(made):
    _, _, tables, folder = made
    text = page_of(folder, 7)
    for row in tables["neighbours"].filter(feature=7).iter_rows(named=True):
        link = rf'<a href="../0/{row["neighbour"]}.html">{row["neighbour"]}</a><td>[^\n]*?'
        assert re.search(
            rf'{link}<td class=n>{number(row[row["by"]])}<td class="n soft">{row["n_both"]}', text
        )
    assert '<a href="../0/8.html">8</a><td>' in text.split(">cosine</caption>")[1]
    assert f"Entropy {number(tables['logits']['entropy_bits'][7])} bits" in text
    assert "3.50" in text.split("Highest logits")[1].split("</table>")[0]
    assert "-1.25" in text.split("Lowest logits")[1].split("</table>")[0]
    assert '<a href="../../clusters/feature/1.html">cluster 1</a>' in text
    assert "matches_other" in text
    clear, unclear = re.findall(
        r"<tr( class=clear)?><td><bdi>", text.split(">party</h3>")[1].split(">Trends")[0]
    )
    assert (clear, unclear) == (" class=clear", "")  # the clearest difference first
    (trend,) = re.findall(r"<tr class=clear><td><bdi>year</bdi>(.*)", text.split(">Trends")[1])
    assert re.findall(r"<td class=n>([^<]+)", trend) == ["9", *map(number, (-0.5, 0.125, -4.0, 0.02))]


def test_the_page_of_a_cluster_has_its_members_the_most_central_first(made):
    _, _, tables, folder = made
    text = (folder / "sites/site/clusters/feature/1.html").read_text(encoding="utf-8")
    members = tables["feature_clusters"].filter(cluster=1).sort("rank")["feature"].to_list()
    assert [int(n) for n in re.findall(r"features/0/(\d+)\.html", text)] == members
    text = (folder / "sites/site/clusters/context/0.html").read_text(encoding="utf-8")
    assert text.count("<li>") == 2


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


def test_hostile_tokens_and_labels_stay_text(made):
    folder = made[3]
    seen = ""
    for path in folder.rglob("*.html"):
        raw = path.read_text(encoding="utf-8")
        page = Page(raw)
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u2029\x00\x1b]", raw), path
        allowed = {"features.js", "../../static/search.js", "../../static/table.js"}
        allowed |= {"../../../../static/page.js"}
        assert {each.get("src") for each in page.all("script")} <= allowed
        assert not [each for _, each in page.elements if any(name.startswith("on") for name in each)]
        assert not [each for each in page.all("img") if each["src"] == "x"]
        assert not page.all("style")
        assert not [each for _, each in page.elements if "style" in each]  # the policy would forbid it
        seen += page.text
    for token in (1, 2, 3, 6, 9):
        assert HOSTILE[token] in seen
    assert HARMFUL_LABEL.replace("\u202e", "") in seen
    script = (folder / "sites/site/features.js").read_text(encoding="ascii")
    assert not set("<>&\u2028") & set(script)


def test_every_page_forbids_what_is_not_a_file_of_the_site(made):
    for path in made[3].rglob("*.html"):
        (policy,) = [
            each["content"]
            for each in Page(path.read_text(encoding="utf-8")).all("meta")
            if each.get("http-equiv")
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
    left = {int(path.stem) for path in (out / "sites/site/features").rglob("*.html")}
    assert left == set(best["feature"].to_list())
    for path in out.rglob("*.html"):
        linked = re.findall(r'href="[^"]*?0/(\d+)\.html"', path.read_text(encoding="utf-8"))
        assert {int(n) for n in linked} <= left


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
    text = page_of(tmp_path / "store/report", 1)
    for command in ("profile", "logits", "coactivation", "cluster"):
        assert f"<code>latentlake {command} STORE</code>" in text
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
    same = remote / "report" / "sites" / "site" / "features" / "0" / "7.html"
    assert same.read_bytes() == (folder / "sites/site/features/0/7.html").read_bytes()
