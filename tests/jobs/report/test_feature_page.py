"""The page of a feature in headless Chromium, from disk: what it shows, how it turns, and what it says."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from jobs.report.build import report
from jobs.report.page import call, packed_json
from jobs.report.strips import visible
from pipeline.tasks import OneProcess
from tests.fixtures.browser import errors, marks
from tests.fixtures.report import HARMFUL_LABEL, HOSTILE, blocks_of, index_of, pages_of, unpacked
from tests.jobs.report.test_browser import (  # noqa: F401 - fixtures
    FRAMES,
    feature_at,
    made,
    opened,
    visit,
)

pytestmark = marks

SHOWN = """
const all = (node, path) => [...node.querySelectorAll(path)];
const text = (node, path) => all(node, path).map(each => each.textContent);
const marks = row => all(row, 'b, mark').map(token => [token.className, token.title]);
const strip = row => [text(row, '.value')[0], text(row, '.strip')[0], marks(row), text(row, '.where')[0]];
return {
  heading: document.querySelector('h1').textContent, fires: text(document, '.fires i'),
  turn: text(document, '.turn a'), toc: text(document, '.toc a'), titles: text(document, 'h2'),
  facts: all(document, '.facts dl > div').map(fact => text(fact, 'dt, dd')),
  strips: all(document, '.strips li').map(strip), firing: all(document, 'mark').length,
  bars: text(document, '.histogram rect title'), absent: text(document, '.absent'),
  tables: all(document, 'table').map(table => all(table, 'tr').map(row => text(row, 'td, th'))),
  clear: all(document, 'tr.clear').length,
  tags: [...new Set(all(document, 'main *').map(each => each.localName))],
  attributes: [...new Set(all(document, 'main *').flatMap(each => each.getAttributeNames()))],
  links: all(document, 'main a').map(each => each.getAttribute('href')),
};
"""
TAGS = re.findall(
    r"\w+",
    "a b bdi caption code dd details div dl dt h1 h2 h3 i li line mark nav ol p rect s section small span "
    "summary svg table tbody td text th title tr ul",
)
ATTRIBUTES = re.findall(
    r"[\w-]+", "aria-label class dir height href id rel role title viewBox width x x1 x2 y y1 y2"
)


def test_a_page_shows_what_its_data_say_and_nothing_of_the_corpus_is_more_than_text(browser, made):  # noqa: F811
    site = made[3] / "sites/site"
    index, written, seen = index_of(site)["tokens"], pages_of(site), ""
    for feature, page in written.items():
        feature_at(browser, made[3], feature)
        shown = browser.execute_script(SHOWN)
        assert shown["heading"] == f"Feature {feature}"
        assert shown["fires"] == [index[token].replace(" ", "·") for token in page["fires"]]
        turns = [f"← {page['before']}"] * (page["before"] is not None)
        assert shown["turn"] == [*turns, *[f"{page['after']} →"] * (page["after"] is not None)]
        assert shown["toc"] == [text for _, text in page["toc"]]
        ((facts, _),) = blocks_of(page, "facts")
        assert shown["facts"] == [[name, value + below] for name, value, _, below in facts]
        assert shown["bars"] == [bar[3] for (drawn,) in blocks_of(page, "histogram") for bar in drawn["bars"]]
        rows_ = [row for strips, _ in blocks_of(page, "strips") for row in strips]
        assert shown["strips"] == [strip_of(row, index, page["most"]) for row in rows_]
        assert shown["firing"] == len(rows_)
        assert len(shown["tables"]) == 8  # 2 of logits, 3 of neighbours, matches, a label and its trends
        assert shown["clear"] == 2
        assert shown["tables"][6][1][0] == visible(HARMFUL_LABEL)
        assert set(shown["tags"]) <= set(TAGS)
        assert set(shown["attributes"]) <= set(ATTRIBUTES)
        for link in shown["links"]:
            assert re.fullmatch(r"#\d+(/\w+)?|cluster\.html#feature/\d", link)
        seen += json.dumps(shown, ensure_ascii=False)
        assert errors(browser) == []
    for token in (1, 3, 6, 9, 11):
        assert HOSTILE[token] in seen
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u2029]", seen)


def click(browser, path: str) -> None:
    """As a person does: the way back skips what a script has opened."""
    browser.find_element("css selector", path).click()


def sentence_on(browser) -> str:
    """What a page says that shows no feature and no cluster."""
    texts = "return [...document.querySelectorAll('p[role=status]')].map(each => each.textContent)"
    return WebDriverWait(browser, 20).until(lambda page: page.execute_script(texts))[0]


def strip_of(row: list, index: list[str], most: float) -> list:
    """What the page shows of a strip: its value, text, shades with their titles, and where it stands."""
    value, pieces, places, values, firing, ends, where = row
    text = "".join(index[piece] if isinstance(piece, int) else piece for piece in pieces)
    active = dict(zip(places, values, strict=True)) | ({firing: 0} if firing not in places else {})
    marks = []
    for _, number in sorted(active.items()):
        level = min(9, max(1, int(9 * abs(number) / most + 0.5))) if number else 0
        marks.append([f"{'n' if number < 0 else 'p'}{level}", str(number)])
    return [value, f"{'' if ends & 1 else '…'}{text}{'' if ends & 2 else '…'}", marks, where]


@pytest.fixture(scope="module")
def in_files(made, tmp_path_factory):  # noqa: F811
    """A report of some features in files of 8 pages each."""
    folder = tmp_path_factory.mktemp("files") / "report"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("work", "features", "clusters", "build"):
            patch.setattr(f"jobs.report.{module}.CHUNK", 8)
        report(made[1], ["site"], OneProcess(), out=folder, features="0,2:21,39")
    return folder


def test_pages_of_all_files_are_turned_and_the_way_back_leads_through_them(browser, in_files):
    chosen = [0, *range(2, 21), 39]
    feature_at(browser, in_files, 0)
    for feature in chosen[1:]:
        click(browser, "a[rel=next]")
        opened(browser, f"Feature {feature} of")
    assert not browser.execute_script("return document.querySelector('a[rel=next]')")
    for feature in chosen[-2::-1]:
        browser.back()
        opened(browser, f"Feature {feature} of")
    browser.forward()
    opened(browser, "Feature 2 of")
    assert errors(browser) == []


def test_the_last_address_wins_however_quickly_they_follow(browser, in_files):
    feature_at(browser, in_files, 0)
    browser.execute_script("for (const n of [39, 12, 3, 20, 5]) location.hash = '#' + n")
    opened(browser, "Feature 5 of")
    browser.execute_async_script(FRAMES)
    assert browser.execute_script("return document.querySelector('h1').textContent") == "Feature 5"
    assert errors(browser) == []


def test_a_section_is_reached_from_the_page_and_from_outside(browser, made):  # noqa: F811
    top = "return Math.round(document.getElementById('12/labels').getBoundingClientRect().top)"
    visit(browser, made[3] / "sites/site/feature.html", "#12/labels")
    opened(browser, "Feature 12 of")
    browser.set_window_size(1280, 600)
    try:
        feature_at(browser, made[3], 12)
        browser.execute_script("[...document.querySelectorAll('.toc a')].pop().click()")
        browser.execute_async_script(FRAMES)
        assert abs(browser.execute_script(top)) < 300
        assert browser.execute_script("return scrollY") > 500
        click(browser, "a[rel=next]")
        opened(browser, "Feature 13 of")
        browser.execute_async_script(FRAMES)
        assert browser.execute_script("return scrollY") == 0
        visit(browser, made[3] / "sites/site/feature.html", "#12/labels")
        opened(browser, "Feature 12 of")
        browser.execute_async_script(FRAMES)
        assert browser.execute_script("return scrollY") > 500
        browser.execute_script("document.querySelector('.skip').click()")
        browser.execute_async_script(FRAMES)
        assert browser.execute_script("return document.querySelector('h1').textContent") == "Feature 12"
    finally:
        browser.set_window_size(1280, 2400)
    assert errors(browser) == []


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            "#1",
            "Feature 1 has no page in this report, which has pages of 21 of 40 features: see its row in the "
            "table.",
        ),
        ("#40", "There is no feature 40: they are 0 to 39."),
        ("#999999999999999", "There is no feature 999999999999999: they are 0 to 39."),
        ("", "The address names no feature: choose one in the table of features."),
        ("#__proto__", "The address names no feature"),
        ("#<img src=x onerror=alert(1)>", "The address names no feature"),
        ("#-1", "The address names no feature"),
        ("#%E0%A4%A", "The address names no feature"),
    ],
)
def test_a_number_without_a_page_says_so(browser, in_files, address, sentence):
    visit(browser, in_files / "sites/site/feature.html", address)
    assert sentence in sentence_on(browser)
    browser.execute_script("location.hash = '#39'")
    opened(browser, "Feature 39 of")
    browser.back()
    assert sentence in sentence_on(browser)
    assert errors(browser) == []


@pytest.mark.parametrize("what", ["missing", "of another report", "cut", "index", "old browser"])
def test_a_page_that_cannot_be_shown_says_why(browser, in_files, tmp_path, what):
    folder = tmp_path / "report"
    shutil.copytree(in_files, folder)
    files = folder / "sites/site/features"
    chunk, sentence = files / "1.js", "features/1.js is missing or damaged: write the report again."
    if what == "missing":
        chunk.unlink()
    elif what == "of another report":
        file, key, pages = unpacked(chunk.read_bytes())
        chunk.write_bytes(call("latentlakeChunk", file, key[::-1], packed_json(pages)))
        sentence = "features/1.js is of another report than this page: load the page again"
    elif what == "cut":
        chunk.write_bytes(chunk.read_bytes()[:-100])
    elif what == "index":
        (files / "index.js").unlink()
        sentence = "features/index.js is missing or damaged: write the report again."
    else:
        sentence = "This page needs a newer browser, one with DecompressionStream"
    script = {"source": "delete window.DecompressionStream" if what == "old browser" else ""}
    number = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        visit(browser, folder / "sites/site/feature.html", "#10")
        assert sentence in sentence_on(browser)
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", number)
    assert errors(browser) or what in ("of another report", "old browser")  # the browser's own, of a file


def test_the_page_of_a_cluster_shows_what_its_data_say(browser, made):  # noqa: F811
    site = made[3] / "sites/site"
    index = index_of(site)["tokens"]
    for n, page in pages_of(site, "clusters/feature").items():
        visit(browser, site / "cluster.html", f"#feature/{n}")
        opened(browser, f"Cluster {n} by decoder directions of site · latentlake")
        shown = browser.execute_script(SHOWN)
        assert shown["heading"] == f"Decoder directions, cluster {n}"
        ((facts,),) = blocks_of(page, "facts")
        assert shown["facts"] == [[name, value] for name, value, _, _ in facts]
        ((members,),) = blocks_of(page, "table")
        cells = [
            [str(feature), "".join(index[token].replace(" ", "·") for token in tokens), *others]
            for feature, tokens, *others in members["rows"]
        ]
        assert shown["tables"] == [[[head[0] for head in members["head"]], *cells]]
        turns = [f"#feature/{other}" for other in (n - 1, n + 1) if 0 <= other <= 2]
        assert shown["links"] == [*turns, *(f"feature.html#{row[0]}" for row in members["rows"])]
    visit(browser, site / "cluster.html", "#context/0")
    opened(browser, "Cluster 0 by contexts of site")
    shown = browser.execute_script(SHOWN)
    ((texts,),) = blocks_of(pages_of(site, "clusters/context")[0], "texts")
    assert [[row[1], row[3]] for row in shown["strips"]] == texts
    assert set(shown["tags"]) <= set(TAGS)
    assert errors(browser) == []


def test_clusters_are_reached_from_features_turned_and_left_again(browser, made):  # noqa: F811
    from selenium.webdriver.common.keys import Keys

    feature_at(browser, made[3], 7)
    click(browser, ".clusters a")
    opened(browser, "Cluster 1 by decoder directions")
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    opened(browser, "Cluster 2 by decoder directions")
    browser.back()
    opened(browser, "Cluster 1 by decoder directions")
    first = browser.execute_script("return document.querySelector('th a').textContent")
    click(browser, "th a")
    opened(browser, f"Feature {first} of")
    browser.back()
    opened(browser, "Cluster 1 by decoder directions")
    browser.back()
    opened(browser, "Feature 7 of")
    assert errors(browser) == []


@pytest.mark.parametrize("address", ["", "#feature/3", "#nosuch/0", "#constructor/0", "#12", "#feature/-1"])
def test_a_cluster_that_is_not_there_says_so(browser, made, address):  # noqa: F811
    visit(browser, made[3] / "sites/site/cluster.html", address)
    text = sentence_on(browser)
    assert "There is no cluster" in text or "The address names no cluster" in text
    assert errors(browser) == []
