"""The application in headless Chromium: type, choose a token, shade by a feature; hostile text stays text."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from jobs.explore.lake import Explored
from jobs.tables.clusters.tables import FEATURE_MAP
from pipeline.evaluation.typed_text import Places, run_text
from tests.fixtures.browser import errors, find, marks, served, wait_for
from tests.fixtures.runs import extracted, run_file

pytestmark = marks

PLACES = Places(model="tests.kit:tiny_lm")
TEXT = "w3 w5 <script>document.title='harm'</script> w9"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return extracted(run_file(tmp_path_factory.mktemp("lake"), "abstopk"))


@pytest.fixture(scope="module")
def url(store):
    with served(Explored(store, PLACES)) as url:
        yield url


def type_text(browser, text):
    from selenium.webdriver.common.keys import Keys

    before = len(find(browser, "#texts li"))
    (area,) = find(browser, "#typed")
    area.clear()
    area.send_keys(text, Keys.CONTROL + Keys.ENTER)
    wait_for(browser, lambda: len(find(browser, "#texts li")) > before)


@pytest.fixture
def page(browser, url):
    """The page of texts with one text typed."""
    browser.get(url)
    assert "token" not in browser.current_url
    type_text(browser, TEXT)
    wait_for(browser, lambda: find(browser, "#features tbody tr"))
    return browser


def test_a_token_has_its_features_and_a_feature_shades_every_text(page, store):
    typed = run_text(store, "mid", TEXT, PLACES)
    tokens = find(page, "#texts li:first-child .piece")
    texts = [token.get_attribute("textContent") for token in tokens]
    assert texts == [" w3", " w5", " <unk>", " w9"]
    tokens[1].click()
    wait_for(page, lambda: find(page, "#what")[0].text == "Active at “·w5”")
    row = typed.activations[1]
    order = sorted(zip(-abs(row.data), row.indices, strict=True))
    listed = [int(button.text) for button in find(page, "#features tbody button")]
    assert listed == [feature for _, feature in order][:30]
    type_text(page, "w5 w5")
    find(page, "#texts li:last-child .piece")[1].click()
    wait_for(page, lambda: find(page, "#what")[0].text == "Active at “·w5”")
    find(page, "#features tbody button")[0].click()
    wait_for(page, lambda: find(page, "#shaded")[0].text.startswith(f"Shaded by feature {listed[0]}:"))
    values = typed.activations[:, [listed[0]]].toarray()[:, 0]
    classes = [
        token.get_attribute("class").split()[-1] for token in find(page, "#texts li:last-child .piece")
    ]
    signs = [{"p": 1, "n": -1}.get(name[0], 0) if name[1:].isdigit() else 0 for name in classes]
    assert signs == np.sign(values).tolist()
    assert errors(page) == []


def test_the_address_opens_a_stored_context_shaded_by_a_feature(browser, url, store):
    feature = int(store.scan_features("mid").sort("n_active").collect()["feature"][-1])
    row = store.contexts("mid", feature, 1).row(0, named=True)
    browser.get(url)
    browser.get(browser.current_url + f"?context={row['context']}&feature={feature}")
    wait_for(browser, lambda: find(browser, "#shaded")[0].text.startswith(f"Shaded by feature {feature}:"))
    place = row["position"] - 1  # without BOS
    sign = "p" if row["activation"] > 0 else "n"
    strongest = find(browser, "#texts .piece")[place]
    assert strongest.get_attribute("class") == f"piece {sign}9"
    assert float(strongest.get_attribute("title")) == pytest.approx(row["activation"], rel=5e-3)
    browser.get(browser.current_url.replace(f"feature={feature}", "feature=99999"))
    wait_for(browser, lambda: "feature 99999" in find(browser, "#status")[0].text)
    errors(browser)


def test_hostile_text_stays_text(page):
    assert page.title == "Text, mid · latentlake"
    assert find(page, "#texts script") == []
    assert errors(page) == []


def test_the_keyboard_goes_from_token_to_token(page):
    from selenium.webdriver.common.keys import Keys

    first = find(page, "#texts li:first-child .piece")[0]
    first.send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element.get_attribute("textContent") == " w5"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    wait_for(page, lambda: find(page, "#what")[0].text == "Active at “·w5”")


def test_what_goes_wrong_is_said_on_the_page(page):
    page.execute_script("const area = document.getElementById('typed'); area.value = 'w1 '.repeat(9000)")
    find(page, "#run")[0].click()
    wait_for(page, lambda: find(page, "#status.error"))
    assert find(page, "#status")[0].text == "text: String should have at most 20000 characters"
    assert len(errors(page)) == 1  # the browser's own, of the refusal


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_a_phone(page, width):
    page.set_window_size(width, 900)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.set_window_size(1280, 2400)


def test_features_are_brushed_on_the_map_and_listed(browser, url, store):
    from selenium.webdriver import ActionChains

    n = 60
    rng = np.random.default_rng(0)
    columns = {"feature": range(n), "n_active": rng.permutation(n) + 1, "cluster": np.arange(n) % 7}
    places = {"x": rng.normal(size=n), "y": rng.normal(size=n), "name": "w1", "by": "coactivation"}
    store.write_table(
        "mid", "feature_map", pl.DataFrame(columns | places).cast(FEATURE_MAP).select(*FEATURE_MAP)
    )
    browser.get(url)
    browser.get(browser.current_url.replace("/text", "/map"))
    wait_for(browser, lambda: find(browser, "#status")[0].text == "60 features, by co-activation")
    find(browser, "#brush")[0].click()
    (canvas,) = find(browser, "#map")
    size = canvas.size
    drag = ActionChains(browser).move_to_element_with_offset(
        canvas, 2 - size["width"] // 2, 2 - size["height"] // 2
    )
    drag.click_and_hold().move_by_offset(size["width"] - 4, size["height"] - 4).release().perform()
    wait_for(browser, lambda: find(browser, "#status")[0].text == "60 of 60 features selected")
    listed = [int(button.text) for button in find(browser, "#chosen tbody button")]
    assert listed == np.argsort(-columns["n_active"]).tolist()
    find(browser, "#chosen tbody button")[3].click()
    assert (
        find(browser, "#hover")[0].text == f"Feature {listed[3]}, 57 active rows, cluster {listed[3] % 7} w1"
    )
    assert errors(browser) == []
