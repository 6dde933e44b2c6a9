"""The page Steer in headless Chromium: write, cancel, shade, share; hostile text stays text."""

from __future__ import annotations

import threading
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest

from jobs.explore.lake import Explored
from pipeline.evaluation.generation import Writing, steer_text
from pipeline.evaluation.steering import Change
from pipeline.evaluation.typed_text import Places, run_text
from tests.fixtures.browser import errors, find, marks, served, wait_for
from tests.fixtures.runs import extracted, run_file

pytestmark = marks

PLACES = Places(model="tests.kit:mild_lm")
PROMPT = "w3 w5 <script>document.title='harm'</script> w9"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    model = {"path": "tests.kit:mild_lm"}
    return extracted(run_file(tmp_path_factory.mktemp("lake"), "abstopk", model=model))


@pytest.fixture(scope="module")
def url(store):
    with served(Explored(store, PLACES)) as url:
        yield url


@pytest.fixture(scope="module")
def feature(store):
    """One that fires in the prompt, and not only there."""
    typed = run_text(store, "mid", PROMPT, PLACES)
    active = store.scan_features("mid").sort("n_active", descending=True).collect()["feature"]
    return next(int(f) for f in active if typed.activations[:, [int(f)]].nnz)


def open_page(browser, url, **query):
    browser.get(url)
    browser.get(browser.current_url.replace("/text", "/steer") + f"?{urlencode(query, doseq=True)}")
    wait_for(browser, lambda: find(browser, "#changes li"))
    return browser


def text_of(browser, name):
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def run(browser):
    from selenium.webdriver.common.keys import Keys

    find(browser, "#prompt")[0].send_keys(Keys.CONTROL + Keys.ENTER)
    wait_for(browser, lambda: " tokens in " in find(browser, "#status")[0].text)


def test_a_feature_is_chosen_and_both_texts_are_written_side_by_side(browser, url, store, feature):
    page = open_page(browser, url, feature=feature)
    value = find(page, "#changes input")[1]
    largest = np.abs(store.rows_of("mid", feature)[1]).max()
    wait_for(page, lambda: value.get_attribute("value"))
    assert float(value.get_attribute("value")) == pytest.approx(largest, rel=5e-3)
    measured = "1.00 × its largest activation in the store"
    wait_for(page, lambda: measured in find(page, "#changes .note")[0].text)
    value.clear()
    value.send_keys("9.5")
    find(page, "#prompt")[0].send_keys(PROMPT)
    find(page, "#tokens")[0].clear()
    find(page, "#tokens")[0].send_keys("6")
    run(page)
    expected = steer_text(store, "mid", PROMPT, {feature: 9.5}, n_tokens=6, places=PLACES)
    prompt = " w3 w5 <unk> w9"
    assert text_of(page, "plain") == prompt + expected.plain
    assert text_of(page, "steered") == prompt + expected.steered != text_of(page, "plain")
    assert len(find(page, "#plain .skipped")) == 4
    typed = run_text(store, "mid", "w3 w5 nonsense w9" + expected.steered, PLACES)
    values = typed.activations[:, [feature]].toarray()[:, 0]
    wait_for(page, lambda: find(page, "#shaded")[0].text.startswith("Shaded where it is active"))
    classes = [token.get_attribute("class").split() for token in find(page, "#steered span")]
    shades = ["".join(name[0] for name in some if name[1:].isdigit()) for some in classes]
    assert shades == [{1: "p", -1: "n", 0: ""}[sign] for sign in np.sign(values)]
    assert page.title == "Steer, mid · latentlake"
    assert find(page, "#result script") == []
    assert errors(page) == []


def test_the_address_holds_the_setting_and_back_brings_the_one_before(browser, url, store):
    changes = ["3:add:4", "7:ablate:0"]
    setting = {"tokens": 5, "temperature": 1.5, "seed": 4}
    page = open_page(browser, url, prompt=PROMPT, change=changes, **setting)
    assert find(page, "#status")[0].text == ""  # nothing runs by itself
    shared = page.current_url
    run(page)
    changed = [Change(3, "add", 4.0), Change(7, "ablate")]
    expected = steer_text(store, "mid", PROMPT, changed, n_tokens=5, temperature=1.5, seed=4, places=PLACES)
    assert text_of(page, "steered").endswith(expected.steered)
    find(page, "#by button")[1].click()
    wait_for(page, lambda: find(page, "#by button")[1].get_attribute("aria-pressed") == "true")
    find(page, "#more")[0].click()
    page.switch_to.active_element.send_keys("9")
    find(page, "#changes li:last-child select")[0].send_keys("multiply")
    third = find(page, "#changes li:last-child input")[1]
    # an empty value is filled in when the feature is known, which may be in the midst of typing
    wait_for(page, lambda: find(page, "#changes li:last-child .note")[0].text)
    third.clear()
    third.send_keys("-2")
    run(page)
    wait_for(page, lambda: len(parse_qs(urlsplit(page.current_url).query)["change"]) == 3)
    query = parse_qs(urlsplit(page.current_url).query)
    assert query["change"] == [*changes, "9:scale:-2"]
    assert (query["prompt"], query["seed"]) == ([PROMPT], ["4"])
    page.back()
    wait_for(page, lambda: len(find(page, "#changes li")) == 2)
    assert parse_qs(urlsplit(page.current_url).query) == parse_qs(urlsplit(shared).query)
    find(page, "#changes .close")[0].click()
    assert [box.get_attribute("value") for box in find(page, "#changes input")] == ["7", "0"]
    assert errors(page) == []


def test_a_run_is_cancelled_and_what_was_written_stays(browser, url, store, monkeypatch):
    expected = steer_text(store, "mid", "w1 w2", {3: 5.0}, n_tokens=2, places=PLACES)
    go, own = threading.Event(), Writing.steps

    def steps(self):
        for step in own(self):
            yield step
            assert go.wait(30)

    monkeypatch.setattr(Writing, "steps", steps)
    page = open_page(browser, url, prompt="w1 w2", change=["3:set:5"], tokens=9, temperature=0, seed=0)
    find(page, "#run")[0].click()
    wait_for(page, lambda: find(page, "#status")[0].text.startswith("1 of at most 9 tokens"))
    assert len(text_of(page, "plain").split()) == 3
    find(page, "#cancel")[0].click()
    wait_for(page, lambda: find(page, "#status")[0].text == "Stopping")
    go.set()
    wait_for(page, lambda: find(page, "#status")[0].text.startswith("Cancelled after 2 tokens"))
    assert text_of(page, "plain") == f" w1 w2{expected.plain}"
    assert text_of(page, "steered") == f" w1 w2{expected.steered}"
    assert not find(page, "#cancel")[0].is_displayed()
    assert errors(page) == []


@pytest.mark.parametrize(
    ("change", "prompt", "message"),
    [
        ("64:set:1", "w1", "features are 0 to 63"),
        ("3:set:5", "w1 " * 30, "shorten the prompt"),
        ("1:set:3e38", "w3 w5 w9", "give smaller values"),
    ],
)
def test_what_goes_wrong_is_said_on_the_page(browser, url, change, prompt, message):
    page = open_page(browser, url, prompt=prompt, change=[change], tokens=2)
    find(page, "#run")[0].click()
    wait_for(page, lambda: find(page, "#status.error"))
    assert message in find(page, "#status")[0].text
    assert not find(page, "#shading")[0].is_displayed()
    errors(page)  # the browser's own, of refusals


def test_a_hostile_address_fills_nothing(browser, url):
    hostile = ["<img src=x>:set:1", "3:eval:1", "3:set:alert(1)", "3:set:1e", "99999999999999:set:1"]
    image = "<img src=x onerror=alert(1)>"
    page = open_page(browser, url, prompt=image, change=hostile, feature="<b>", seed="x")
    assert [box.get_attribute("value") for box in find(page, "#changes input")] == ["", ""]
    assert find(page, "#seed")[0].get_attribute("value") == "0"
    find(page, "#run")[0].click()  # the browser asks for what is missing
    assert find(page, "#status")[0].text == ""
    assert find(page, "img") == []
    assert errors(page) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_a_phone(browser, url, width):
    page = open_page(browser, url, prompt="w1", change=["3:add:4", "7:ablate:0"], tokens=3)
    run(page)
    page.set_window_size(width, 900)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.set_window_size(1280, 2400)
