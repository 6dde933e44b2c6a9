"""The page of a feature in headless Chromium: go to one, name it, star it, load it again; two groups."""

from __future__ import annotations

import json

import pytest

from jobs.explore.lake import Explored
from pipeline.evaluation.typed_text import Places
from pipeline.store.records.annotations import annotate, read_annotations
from tests.fixtures.browser import errors, find, marks, served, wait_for
from tests.fixtures.report import HARMFUL_LABEL, add_tables, make_store
from tests.fixtures.store import D_SAE

pytestmark = marks

NAME = "<img src=x onerror=document.title='harm'>"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    _, store = make_store(tmp_path_factory.mktemp("feature") / "store")
    add_tables(store)
    return store


@pytest.fixture(scope="module")
def url(store):
    """Where the application is served, with its token."""
    with served(Explored(store, Places())) as url:
        yield url


@pytest.fixture
def page(browser, url):
    """The page of feature 7."""
    browser.get(url)
    at = browser.current_url.rpartition("/")[0]
    errors(browser)
    browser.get("about:blank")
    browser.get(f"{at}/feature#7")
    opened(browser, 7)
    return browser


def opened(browser, feature):
    wait_for(browser, lambda: browser.title == f"Feature {feature} of site · latentlake")


def typed(browser, selector, text, *keys):
    (field,) = find(browser, selector)
    field.clear()
    field.send_keys(text, *keys)


def status(browser, selector):
    return wait_for(browser, lambda: find(browser, selector) and find(browser, selector)[0].text)


def annotation(store, feature):
    rows = read_annotations(store, "site").table.filter(feature=feature)
    return rows.row(0, named=True) if rows.height else None


def test_a_number_leads_to_a_feature_and_the_way_back_to_the_one_before(page):
    from selenium.webdriver.common.keys import Keys

    typed(page, "#number", "12", Keys.ENTER)
    opened(page, 12)
    find(page, "a[rel=next]")[0].click()
    opened(page, 13)
    find(page, "h1")[0].click()
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    opened(page, 14)
    assert find(page, "#number")[0].get_property("value") == "14"
    for feature in (13, 12, 7):
        page.back()
        opened(page, feature)
    neighbour = find(page, ".neighbours a")[0]
    number = neighbour.text
    neighbour.click()
    opened(page, number)
    page.execute_script("location.hash = '#99999'")
    said = f"There is no feature 99999: they are 0 to {D_SAE - 1}."
    wait_for(page, lambda: find(page, "#page .absent") and find(page, "#page .absent")[0].text == said)
    assert errors(page) == []


def test_arrows_in_a_field_do_not_turn_the_page(page):
    from selenium.webdriver.common.keys import Keys

    typed(page, ".annotation input", "x", Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.BACKSPACE)
    assert page.title.startswith("Feature 7 ")


def test_at_most_eight_statistics_stand_before_the_first_text(page):
    seen = [each for each in find(page, ".facts dt") if each.is_displayed()]
    assert len(seen) == 8
    find(page, ".facts summary")[0].click()
    assert len([each for each in find(page, ".facts dt") if each.is_displayed()]) > 8


def test_a_name_a_note_and_a_star_are_kept(page, store):
    from selenium.webdriver.common.keys import Keys

    typed(page, ".annotation input", NAME, Keys.ENTER)
    assert status(page, ".annotation output") == "name saved"
    typed(page, ".annotation textarea", "two")
    find(page, ".annotation textarea")[0].send_keys(Keys.ENTER, "lines", Keys.TAB)  # blur
    wait_for(page, lambda: find(page, ".annotation output")[0].text == "note saved")
    find(page, ".annotation .star")[0].send_keys(Keys.SPACE)
    wait_for(page, lambda: find(page, ".annotation output")[0].text == "starred")
    kept = annotation(store, 7)
    assert (kept["name"], kept["note"], kept["star"]) == (NAME, "two\nlines", True)
    assert find(page, ".fires b")[0].text == NAME
    page.refresh()
    opened(page, 7)
    assert find(page, ".annotation input")[0].get_property("value") == NAME
    assert find(page, ".annotation textarea")[0].get_property("value") == "two\nlines"
    assert find(page, ".annotation .star")[0].get_attribute("aria-pressed") == "true"
    assert find(page, ".fires b")[0].text == NAME
    assert find(page, "#page img") == []
    find(page, ".annotation .star")[0].click()
    wait_for(page, lambda: find(page, ".annotation output")[0].text == "star removed")
    typed(page, ".annotation input", "", Keys.TAB)
    wait_for(page, lambda: find(page, ".annotation output")[0].text == "name removed")
    assert find(page, ".fires b") == []
    kept = annotation(store, 7)
    assert (kept["name"], kept["note"], kept["star"]) == (None, "two\nlines", False)
    assert errors(page) == []


def test_why_a_name_is_not_kept_is_said_and_what_was_typed_stays(page, store):
    from selenium.webdriver.common.keys import Keys

    before = annotation(store, 7)
    page.execute_script("document.querySelector('.annotation input').value = 'x'.repeat(201)")
    find(page, ".annotation button[type=submit]")[0].send_keys(Keys.ENTER)
    assert "shorten it to 200" in status(page, ".annotation output.error")
    assert find(page, ".annotation input")[0].get_property("value") == "x" * 201
    assert annotation(store, 7) == before
    assert len(errors(page)) == 1  # the browser's own, of the refusal


def test_two_groups_stand_side_by_side_and_stay_for_the_next_feature(page, url):
    from selenium.webdriver.common.keys import Keys

    typed(page, ".conditions input[name=where]", "party = red")
    typed(page, ".conditions input[name=other]", "party = blue and year > 0", Keys.ENTER)
    wait_for(page, lambda: len(find(page, ".sides > div")) == 2)
    assert [each.text for each in find(page, ".sides h3")] == ["party = red", "party = blue and year > 0"]
    for side, party in zip(find(page, ".sides > div"), ("red", "blue"), strict=True):
        places = [each.text for each in side.find_elements("css selector", ".where")]
        assert places
        assert all(place.startswith(f"{party} · ") for place in places)
    find(page, "a[rel=next]")[0].click()
    opened(page, 8)
    wait_for(page, lambda: len(find(page, ".sides > div")) == 2)
    page.refresh()
    opened(page, 8)
    wait_for(page, lambda: len(find(page, ".sides > div")) == 2)
    assert errors(page) == []
    typed(page, ".conditions input[name=other]", "colour = red", Keys.ENTER)
    assert "no label 'colour'" in status(page, ".sides .error")
    assert len(errors(page)) == 1


def test_an_example_leads_to_its_context_shaded_by_the_feature(page):
    (strip, *_) = find(page, "section.examples .strips li")
    text = strip.find_element("css selector", "mark").text
    strip.find_element("css selector", ".where a").click()
    wait_for(page, lambda: find(page, "#texts li"))
    assert page.title == "Text, site · latentlake"
    said = wait_for(page, lambda: find(page, "#shaded")[0].text.startswith("Shaded by feature 7"))
    assert said
    assert text.strip() in find(page, "#texts .strip")[0].text.replace("·", " ")
    page.back()
    opened(page, 7)
    assert errors(page) == []


def test_a_histogram_says_what_the_pointer_is_on(page):
    from selenium.webdriver import ActionChains

    bars = find(page, "svg.histogram rect")
    assert find(page, "svg.histogram + .note")[0].text == "rows per octave, by activation"
    ActionChains(page).move_to_element(bars[-1]).perform()
    title = page.execute_script("return arguments[0].querySelector('title').textContent", bars[-1])
    wait_for(page, lambda: find(page, "svg.histogram + .note")[0].text == title)
    assert len(find(page, "svg.histogram text.y")) >= 1


def test_nothing_of_the_corpus_is_more_than_text(page, store):
    annotate(store, "site", 3, name=NAME, note=NAME)
    for feature in range(0, D_SAE, 5):
        page.execute_script(f"location.hash = '#{feature}'")
        opened(page, feature)
        assert find(page, "#page img, #page script, #page iframe, #page style") == []
    assert HARMFUL_LABEL[:20] in page.page_source.replace("&lt;", "<").replace("&gt;", ">")
    assert errors(page) == []


def test_annotations_are_listed_exported_and_imported(page, store, tmp_path):
    annotate(store, "site", 3, name=NAME, star=True)
    find(page, "header a[href$='/annotations']")[0].click()
    wait_for(page, lambda: find(page, "#own tr"))
    rows = [row.text for row in find(page, "#own tr")]
    assert any(row.startswith("★ 3 " + NAME) for row in rows)
    assert find(page, "#own img") == []
    others = {"feature": 21, "name": "elsewhere", "sae_digest": "another SAE's"}
    lines = map(json.dumps, (others, {"feature": 5, "note": "hers", "author": "she"}))
    path = tmp_path / "edits.jsonl"
    path.write_text("\n".join(lines))
    find(page, "#import input")[0].send_keys(str(path))
    assert status(page, "#status") == "2 new edits, 1 of them of another SAE; 0 were there already"
    assert "21 of another SAE" in find(page, "#others")[0].text
    assert any("hers" in row.text and "she" in row.text for row in find(page, "#own tr"))
    find(page, "#own a[href$='#5']")[0].click()
    opened(page, 5)
    assert find(page, ".annotation textarea")[0].get_property("value") == "hers"
    assert errors(page) == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["feature?where=party%3Dred&other=party%3Dblue#7", "annotations"])
def test_no_page_is_wider_than_a_phone(page, store, width, name):
    annotate(store, "site", 3, name="x" * 200, note="y" * 500)
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        at = page.current_url.partition("/feature")[0]
        page.get("about:blank")
        page.get(f"{at}/{name}")
        wait_for(page, lambda: find(page, "#own tr, .sides h3"))
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_dark_page_is_dark(page):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    try:
        for selector in ("body", ".annotation input", ".conditions input", ".annotation textarea"):
            colours = page.execute_script(
                "const s = getComputedStyle(document.querySelector(arguments[0]));"
                "return [s.color, s.backgroundColor].map(c => c.match(/\\d+/g).slice(0, 3).map(Number))",
                selector,
            )
            assert sum(colours[0]) > 500 > 250 > sum(colours[1]), selector
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_read_only_has_no_controls(browser, store):
    annotate(store, "site", 3, name="war", note="a note", star=True)
    with served(Explored(store, Places(), read_only=True)) as url:
        browser.get(url)
        at = browser.current_url.rpartition("/")[0]
        browser.get(f"{at}/feature#3")
        opened(browser, 3)
        assert find(browser, ".annotation input, .annotation textarea, .annotation button") == []
        assert find(browser, ".annotation")[0].text.split() == ["★", "a", "note"]
        assert find(browser, ".fires b")[0].text == "war"
        browser.get(f"{at}/annotations")
        wait_for(browser, lambda: find(browser, "#own tr"))
        assert find(browser, "input") == []
        assert errors(browser) == []


def test_the_page_leads_to_find_compare_and_steer_with_the_feature(page, store):
    first = store.scan_table("site", "neighbours").filter(feature=7, by="jaccard", rank=0).collect()
    neighbour = first["neighbour"][0]
    links = {link.text: link.get_attribute("href") for link in find(page, ".elsewhere a")}
    addresses = {name: href.rpartition("/sites/site/")[2] for name, href in links.items()}
    assert addresses == {
        "Similar features": "find?kind=similar&q=7",
        "Compare": f"compare?kind=features&a=7&b={neighbour}",
        "Steer": "steer?feature=7",
    }
    page.get(links["Compare"])
    wait_for(page, lambda: f"Only {neighbour} fires" in find(page, "#compared")[0].text)
    page.get(links["Similar features"])
    wait_for(page, lambda: find(page, "#found tbody a"))
    assert errors(page) == []


def test_a_cluster_of_the_feature_leads_to_its_row(page):
    (link,) = [link for link in find(page, ".clusters a") if link.text == "cluster 1"]
    assert link.get_attribute("href").endswith("/sites/site/clusters#feature/1")
    link.click()
    wait_for(page, lambda: find(page, "tr:target"))
    assert find(page, "tr:target th")[0].text == "1"
    assert errors(page) == []
