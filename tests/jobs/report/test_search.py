"""The search box of the feature table: its syntax, and a sentence for whatever it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from jobs.report.build import report
from pipeline.tasks import OneProcess
from tests.fixtures.browser import errors, marks
from tests.jobs.report.test_browser import (  # noqa: F401 - fixtures
    TOKENS,
    made,
    put_features,
    rows,
    said,
    status,
    type_in,
    visit,
)

pytestmark = marks


@pytest.fixture(scope="module")
def features(made):  # noqa: F811
    """The feature table, and the tokens of each feature that fired."""
    return made[1].scan_features("site").collect()


@pytest.fixture
def tokens(browser, made):  # noqa: F811
    visit(browser, made[3] / "sites/site/features.html")
    drawn = WebDriverWait(browser, 10).until(lambda page: page.execute_script(TOKENS))
    return {int(feature): words for feature, words in drawn}


def with_word(tokens, word):
    return [f for f, words in tokens.items() if any(word in each.lower() for each in words)]


READ = {
    '" w44"': lambda f, words: "·w44" in words,
    '"w44"': lambda f, words: "·w44" in words,
    '"w44 "': lambda f, words: "w44·" in words,
    '" w4"': lambda f, words: "·w4" in words,
    "w4 w3": lambda f, words: any("w4" in w for w in words) and any("w3" in w for w in words),
    "w4 and w3": lambda f, words: any("w4" in w for w in words) and any("w3" in w for w in words),
    "w44 or w43": lambda f, words: "·w44" in words or "·w43" in words,
    "W44 OR <SCRIPT>": lambda f, words: "·w44" in words or any("<script>" in w for w in words),
    "feature = 3": lambda f, words: f == 3,
    "feature<= 3 or feature ==9": lambda f, words: f <= 3 or f == 9,
    "feature != 3 w44": lambda f, words: f != 3 and "·w44" in words,
    "x=y": lambda f, words: any("x=y" in w for w in words),
    "feature =< 3": lambda f, words: f <= 3,
    "feature => 3": lambda f, words: f >= 3,
    "not w44": lambda f, words: not any("w44" in w for w in words),
    "(w44 or w43) not feature=3": lambda f, words: any("w44" in w or "w43" in w for w in words) and f != 3,
    'not ("w44" or feature > 9)': lambda f, words: "·w44" not in words and f <= 9,
    "(feature<=3)or(feature==9)": lambda f, words: f <= 3 or f == 9,
}


@pytest.mark.parametrize("query", READ)
def test_what_the_search_reads(browser, tokens, query):
    type_in(browser, query)
    expected = [f for f, words in tokens.items() if READ[query](f, words)]
    assert rows(browser) == expected
    assert status(browser) == f"{len(expected)} of 40 features"
    assert bool(said(browser)) is not bool(expected)
    assert errors(browser) == []


@pytest.mark.parametrize(
    "query", ["frequency > 0.3", "frequency>0.3", "frequency >30%", "FREQUENCY > .3", "frequency > 3e-1"]
)
def test_conditions_take_spaces_percent_and_any_case(browser, tokens, features, query):
    type_in(browser, query)
    frequency = features["frequency"].to_list()
    assert rows(browser) == [f for f in tokens if frequency[f] > 0.3]
    assert said(browser) == ""


def test_a_number_equals_what_the_table_shows_of_it(browser, tokens, features):
    first = next(iter(tokens))
    shown = f"{features['max_activation'][first]:.3g}"
    type_in(browser, f"max_activation = {shown}")
    assert first in rows(browser)
    assert said(browser) == ""


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("frequncy > 0.01", "no column is called frequncy; did you mean frequency?"),
        ("active>3", "no column is called active; did you mean n_active or mean_active or active_documents?"),
        ("zzzzzz < 1", "no column is called zzzzzz; there are feature, n_active, frequency, "),
        ("frequency >", "“frequency >” is left out: frequency > needs a number."),
        ("n_active > many", "n_active > needs a number, which many is not."),
        ("n_active > 1.2.3", "n_active > needs a number, which 1.2.3 is not."),
        ("tokens = 3", "tokens are words: type the word alone."),
        ("tokens=war", "tokens are words: type the word alone."),
        ("z" * 5000 + " > 1", "“" + "z" * 80 + "…” is left out: no column is called"),
    ],
)
def test_what_cannot_be_read_is_left_out_and_said(browser, tokens, query, sentence):
    type_in(browser, query)
    assert sentence in said(browser)
    assert "is left out" in said(browser)
    assert rows(browser) == list(tokens)
    type_in(browser, f"w44 {query}")
    assert rows(browser) == with_word(tokens, "w44")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("zebra", "No feature fits “zebra”."),
        ("w44 zebra", "put or between choices): “w44” fits 3, “zebra” fits 0."),
        ("zebra or lion", "No feature fits any of the choices: “zebra” fits 0, “lion” fits 0."),
        ('"zebra', 'A quote is not closed: “"zebra” is read as "zebra". No feature fits “"zebra"”.'),
        ("n_active = 0", "that never fired would fit: tick the box."),
        ("q" * 5000, "No feature fits “" + "q" * 80 + "…”."),
        ("qq " * 50, "“qq” fits 0, and 45 more."),
    ],
)
def test_no_feature_is_not_said_in_silence(browser, tokens, query, sentence):
    type_in(browser, query)
    assert rows(browser) == []
    assert sentence in said(browser)
    type_in(browser, "")
    assert said(browser) == ""


def test_letters_are_the_same_however_they_are_composed(browser, made, tmp_path):  # noqa: F811
    report(made[1], ["site"], OneProcess(), out=tmp_path, features="0")
    put_features(tmp_path, 2, ["·\u00fcber", "caf\u0065\u0301"])
    visit(browser, tmp_path / "sites/site/features.html", "#dead=1")
    for query, row in {"U\u0308BER": 0, '"u\u0308ber"': 0, "\u00e9": 1, "e\u0301": 1}.items():
        type_in(browser, query)
        assert rows(browser) == [row]


@pytest.mark.parametrize("name", ["__proto__", "-constructor", "nosuch"])
def test_a_link_that_sorts_by_no_column_sorts_by_frequency(browser, made, name):  # noqa: F811
    visit(browser, made[3] / "sites/site/features.html", f"#sort={name}")
    assert "of 40 features" in status(browser)
    assert errors(browser) == []


def test_every_link_of_the_table_leads_somewhere(browser, made, tmp_path):  # noqa: F811
    report(made[1], ["site"], OneProcess(), out=tmp_path, features="0:3")
    visit(browser, tmp_path / "sites/site/features.html")
    links = (
        "return [...document.querySelectorAll('#rows a')].map(a => [a.textContent, a.getAttribute('href')])"
    )
    for feature, href in browser.execute_script(links):
        expected = f"feature.html#{feature}" if int(feature) < 3 else f"#q=feature%3D{feature}&dead=1"
        assert href == expected
    browser.execute_script("[...document.querySelectorAll('#rows a.none')][0].click()")
    assert len(rows(browser)) == 1
    assert errors(browser) == []


FITTING = """
const [columns, text] = arguments, query = readSearch(text, columns);
if (query.kinds.length || query.tree === null || query.terms.some(term => term.kind !== 'condition')) {
  return [null, query.kinds, query.sentences];
}
const fits = fitting(query.tree, term => comparison(columns[term.column], term.sign, term.value));
const rows = Object.values(columns)[0].values.map((_, row) => row);
return [rows.filter(row => fits(row) === true), [], []];
"""
SHARED = json.loads((Path(__file__).parents[2] / "data/conditions.json").read_text(encoding="utf-8"))


def test_conditions_are_those_of_python(browser, tokens):
    columns = {}
    for name, column in SHARED["columns"].items():
        kind = column["kind"]
        columns[name] = {"values": column["values"], "whole": kind == "whole"}
        if kind not in ("whole", "statistic"):
            columns[name]["kind"] = kind
    for case in SHARED["cases"]:
        fit, kinds, sentences = browser.execute_script(FITTING, columns, case["text"])
        if case.get("words"):  # which the search box takes, and a condition does not
            assert kinds == [], case["text"]
        elif "error" in case:
            assert case["error"] in kinds, case["text"]
            assert len(sentences) == len(kinds)
            if "meant" in case:
                assert any(f"; did you mean {case['meant']}?" in sentence for sentence in sentences)
        else:
            assert fit == case["rows"], (case["text"], sentences)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("(w44 or w43", "A parenthesis is not closed; in quotes it would be a token."),
        ("w44) or w43", "A parenthesis was not opened; in quotes it would be a token."),
        ("(" * 5000 + "w44", "nested more than 100 deep: the rest is left out."),
        ("not " * 5000 + "w44", "nested more than 100 deep: the rest is left out."),
    ],
)
def test_parentheses_that_do_not_match_are_said(browser, tokens, query, sentence):
    type_in(browser, query)
    assert sentence in said(browser)
    expected = sorted({*with_word(tokens, "w44"), *with_word(tokens, "w43")})
    assert sorted(rows(browser)) == (expected if len(query) < 100 else sorted(tokens))
