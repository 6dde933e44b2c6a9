"""The report in headless Chromium, from disk: search, sort, open a feature; no console error; quick."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.support.ui import WebDriverWait

from jobs.report.build import report
from jobs.report.columns import VARIABLE, packed
from jobs.report.page import script
from pipeline.tasks import OneProcess
from tests.fixtures.browser import errors, marks
from tests.fixtures.report import make_report

pytestmark = marks
MANY, TALLER = 100_000, 300_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("browser") / "store")


@pytest.fixture(scope="module")
def large(made, tmp_path_factory):
    """A report in which the table's page gets made-up data."""
    folder = tmp_path_factory.mktemp("large") / "report"
    report(made[1], ["site"], OneProcess(), out=folder, features="0")
    return folder


def put_features(folder: Path, n: int, tokens: list[str] | None = None) -> None:
    """Data of so many features, each with three tokens, or one of these."""
    rng = np.random.default_rng(0)
    columns = [
        {"name": name, "title": name, "help": name, "whole": name == "n_active", "wide": False,
         "data": packed(rng.permutation(n).astype(np.float32))}
        for name in ("n_active", "frequency", "mean_active", "max_activation", "sigma_over_mu")
    ]  # fmt: skip
    names = rng.integers(0, 20_000, (n, 3)).astype(np.uint32)
    if tokens is not None:
        names = np.arange(n, dtype=np.uint32)[:, None]
    data = {
        "n": n,
        "columns": columns,
        "tokens": tokens or [f"·word{n}" for n in range(20_000)],
        "names": packed(names),
        "width": names.shape[1],
        "pages": None,
    }
    (folder / "sites/site/features.js").write_bytes(script(VARIABLE, data))


def visit(browser, path: Path, fragment: str = "") -> None:
    browser.get("about:blank")
    browser.get(f"file://{path}{fragment}")
    # on a busy machine the driver may return before the page is there
    there = "return location.href !== 'about:blank' && document.readyState === 'complete'"
    WebDriverWait(browser, 20).until(lambda page: page.execute_script(there))


def opened(browser, title: str) -> None:
    """Wait until a page is there and drawn."""
    WebDriverWait(browser, 20).until(lambda page: page.title.startswith(title), f"no page {title}")


def feature_at(browser, folder: Path, feature: int) -> None:
    """Open the page of a feature."""
    visit(browser, folder / "sites/site/feature.html", f"#{feature}")
    opened(browser, f"Feature {feature} of site")


def rows(browser) -> list[int]:
    """Features of the rows in the page, in their order."""
    texts = browser.execute_script("return [...document.querySelectorAll('#rows a')].map(a => a.textContent)")
    return [int(text) for text in texts]


def status(browser) -> str:
    """What the table says of itself, as soon as its script has run."""
    until = time.monotonic() + 20
    while not (text := browser.execute_script("return document.getElementById('status').textContent")):
        assert time.monotonic() < until, "the table says nothing"
    return text


def said(browser) -> str:
    return browser.execute_script("return document.getElementById('said').textContent")


SEARCH = """
const search = document.getElementById('search');
search.value = arguments[0];
search.dispatchEvent(new Event('input'));
"""
SORT = """
const named = b => b.title.includes('(' + arguments[0] + ')');
[...document.querySelectorAll('#head button')].find(named).click();
"""
TOKENS = """
const words = row => [...row.querySelectorAll('i')].map(word => word.textContent);
const shown = row => [row.querySelector('a').textContent, words(row)];
return [...document.querySelectorAll('#rows tr')].map(shown);
"""
SCROLL = "const view = document.getElementById('view'); view.scrollTop = view.scrollHeight * arguments[0]"
FRAMES = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
IN_SIGHT = """
const view = document.getElementById('view').getBoundingClientRect();
const inside = row => row.top >= view.top && row.bottom <= view.bottom;
const rows = [...document.querySelectorAll('#rows tr')].filter(row => inside(row.getBoundingClientRect()));
return rows.map(row => Number(row.getAttribute('aria-rowindex')));
"""


def scrolled(browser, share: float, there) -> list[int]:
    """The rows in sight after scrolling to this share of the table, once `there` holds; fails after 20 s."""
    until = time.monotonic() + 20
    while True:  # a table that is laid out meanwhile begins at its top again
        browser.execute_script(SCROLL, share)
        browser.execute_async_script(FRAMES)
        seen = browser.execute_script(IN_SIGHT)
        if seen and there(seen):
            return seen
        assert time.monotonic() < until, f"scrolled to {share}: rows {seen[:1]} to {seen[-1:]}"


def type_in(browser, text: str) -> float:
    """Search for a text; milliseconds."""
    return timed(browser, SEARCH, text)


def press(browser, name: str) -> float:
    """Press the button of a column; milliseconds."""
    return timed(browser, SORT, name)


def timed(browser, code: str, *arguments: str) -> float:
    code = f"const began = performance.now(); {code} return performance.now() - began"
    return browser.execute_script(code, *arguments)


def test_no_page_has_an_error_and_no_script_of_the_corpus_runs(browser, made):
    errors(browser)
    for path in sorted(made[3].rglob("*.html")):
        visit(browser, path)
        if path.stem.isdecimal():  # an old link
            what = "Feature" if path.parent.parent.name == "features" else "Cluster"
            opened(browser, f"{what} {path.stem} by" if what == "Cluster" else f"{what} {path.stem} of")
        assert errors(browser) == [], path
        assert browser.execute_script("return document.styleSheets.length") == 1


def test_the_table_sorts_by_every_column_both_ways(browser, made):
    _, store, _, folder = made
    features = store.scan_features("site").collect()
    fired = features.filter(features["n_active"] > 0)
    visit(browser, folder / "sites/site/features.html")
    assert rows(browser) == fired.sort("frequency", "feature", descending=[True, False])["feature"].to_list()
    for name in ("n_active", "mean_active", "max_activation"):
        press(browser, name)
        assert rows(browser) == fired.sort(name, "feature", descending=[True, False])["feature"].to_list()
        press(browser, name)
        assert rows(browser) == fired.sort(name, "feature")["feature"].to_list()
    sorted_by = "return document.querySelector('[aria-sort]').getAttribute('aria-sort')"
    assert browser.execute_script(sorted_by) == "ascending"
    browser.execute_script("document.getElementById('dead').click()")
    assert len(rows(browser)) == features.height
    assert errors(browser) == []


@pytest.mark.parametrize("query", ["n_active>10", "n_active<=10 cluster=1", "7", "<script>", '"the"', "ZZZ"])
def test_the_table_is_searched_by_words_numbers_and_conditions(browser, made, query):
    _, store, tables, folder = made
    features = store.scan_features("site").collect()
    active, cluster = features["n_active"].to_list(), tables["feature_clusters"]["cluster"].to_list()
    visit(browser, folder / "sites/site/features.html")
    tokens = {int(feature): words for feature, words in browser.execute_script(TOKENS)}
    expected = {
        "n_active>10": [f for f in tokens if active[f] > 10],
        "n_active<=10 cluster=1": [f for f in tokens if active[f] <= 10 and cluster[f] == 1],
        "7": [f for f in tokens if f == 7 or any("7" in word for word in tokens[f])],
        "<script>": [f for f in tokens if any("<script>" in word for word in tokens[f])],
        '"the"': [f for f in tokens if "·the" in tokens[f]],
        "ZZZ": [],
    }
    type_in(browser, query)
    assert rows(browser) == expected[query]
    assert status(browser) == f"{len(expected[query])} of 40 features"
    assert expected["<script>"]
    assert errors(browser) == []


def test_a_feature_opens_from_the_table_and_the_way_back_finds_the_table_as_it_was(browser, made):
    visit(browser, made[3] / "sites/site/features.html")
    press(browser, "max_activation")
    type_in(browser, "n_active>3")
    before = rows(browser)
    browser.execute_script("document.querySelector('#rows a').click()")
    opened(browser, f"Feature {before[0]} of site · latentlake")
    browser.back()
    assert rows(browser) == before
    assert errors(browser) == []


def test_the_keys_reach_the_search_the_rows_and_the_next_feature(browser, made):
    from selenium.webdriver.common.keys import Keys

    visit(browser, made[3] / "sites/site/features.html")
    body = browser.switch_to.active_element
    body.send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "search"
    order = rows(browser)
    for place in (0, 1, 2):
        browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
        assert browser.switch_to.active_element.text == str(order[place])
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    opened(browser, f"Feature {order[2]} of")
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    opened(browser, f"Feature {order[2] + 1} of")
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    opened(browser, f"Feature {order[2]} of")
    assert errors(browser) == []


def test_a_hundred_thousand_features_are_sorted_searched_and_scrolled_at_once(browser, large):
    put_features(large, MANY)
    began = time.perf_counter()
    visit(browser, large / "sites/site/features.html")
    assert status(browser) == "99,999 of 100,000 features"
    assert time.perf_counter() - began < 10
    assert len(rows(browser)) < 100
    assert press(browser, "mean_active") < 2000
    assert type_in(browser, "word77") < 2000
    type_in(browser, "")
    first = "return document.getElementById('rows').firstChild.getAttribute('aria-rowindex')"
    assert browser.execute_script(first) == "2"
    for share in (0.25, 0.5, 1):
        seen = scrolled(browser, share, lambda seen, at=share: abs(seen[0] - at * MANY) < 100)
        assert len(seen) > 10
    assert seen[-1] == MANY  # the last of 99,999, the header being the first
    assert errors(browser) == []


def test_a_table_too_tall_for_a_browser_is_scrolled_to_its_end(browser, large):
    put_features(large, TALLER)
    visit(browser, large / "sites/site/features.html")
    for share, there in (
        (0.5, lambda seen: abs(seen[0] - TALLER / 2) < 200),
        (1, lambda seen: seen[-1] == TALLER),
        (0, lambda seen: seen[0] == 2),
    ):
        seen = scrolled(browser, share, there)
        assert seen == list(range(seen[0], seen[-1] + 1))
        assert len(seen) > 10


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    "page",
    [
        "index.html",
        "sites/site/index.html",
        "sites/site/features.html",
        "sites/site/feature.html#1",
        "sites/site/clusters/index.html",
        "sites/site/cluster.html#feature/1",
        "sites/site/cluster.html#context/0",
    ],
)
def test_no_page_is_wider_than_a_phone(browser, made, page, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        name, sign, feature = page.partition("#")
        visit(browser, made[3] / name, sign + feature)
        if feature:
            opened(browser, "Feature 1 of" if feature == "1" else f"Cluster {feature[-1]} by")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark_have_enough_contrast(browser, made):
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        feature_at(browser, made[3], 1)
        ink, paper = (
            [
                int(part)
                for part in browser.execute_script(
                    f"return getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3)"
                )
            ]
            for name in ("color", "backgroundColor")
        )
        assert contrast(ink, paper) > 7  # WCAG 2.2, level AAA
        assert (sum(paper) > 600) is (scheme == "light")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(a: list[int], b: list[int]) -> float:
    """WCAG 2.2's contrast ratio of two colours."""
    channels = np.array([a, b]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    light = np.sort(linear @ [0.2126, 0.7152, 0.0722])
    return float((light[1] + 0.05) / (light[0] + 0.05))
