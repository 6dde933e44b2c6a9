"""Token strips: the marks, the shades, and nothing of a corpus that is markup or steers a terminal."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from jobs.terminal.strips import (
    BLUE,
    DEEPEST,
    RED,
    Strip,
    activations_in,
    html_page,
    html_strip,
    shown,
    strongest_in,
    text_strip,
)


class Tokens(HTMLParser):
    """The spans of a strip: attributes and text of each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.spans: list[tuple[dict[str, str | None], str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "span":
            self.spans.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.spans:
            self.spans[-1] = (self.spans[-1][0], self.spans[-1][1] + data)


def shade(span: dict[str, str | None]) -> tuple[tuple[int, ...], int]:
    result = re.fullmatch(r"background:rgb\((\d+) (\d+) (\d+)/(\d+)%\)", span["style"] or "")
    assert result
    return tuple(map(int, result.groups()[:3])), int(result[4])


def test_white_space_is_marked_and_the_firing_token_stands_between_bars() -> None:
    strip = Strip([" a", "b c", "\n", "\td"], np.float32([0, 2, 0, 0]), firing=1)
    assert text_strip(strip, 2).plain == "·a|b·c|↩→d"
    assert [text for _, text in Tokens(html_strip(strip.pieces, strip.values, 2, 1)).spans] == [
        "·a",
        "|b·c|",
        "↩",
        "→d",
    ]


def test_what_would_steer_a_terminal_or_turn_the_text_is_shown_instead() -> None:
    assert shown("\x1b[31mred\x07\x7f\x9b\u202e\u2066") == "␛[31mred␇␡\ufffd\ufffd\ufffd"
    assert shown("a\u200bb\u200f\ufeff\u061c\U000e0041") == "a\ufffdb\ufffd\ufffd\ufffd\ufffd"
    assert shown("naïve 日本 🙂") == "naïve·日本·🙂"


def test_a_corpus_cannot_write_markup_into_a_page() -> None:
    evil = ["</div><script>alert(1)</script>", '"onmouseover="x', "[bold]&amp;", "'"]
    strip = Strip(evil, np.float32([1, -1, 0, 1]), 1)
    page = Tokens(html_page(evil[0], evil[1], [(evil[0], strip, 1.0)]))
    assert "script" not in page.tags
    result = Tokens(html_strip(strip.pieces, strip.values, 1.0, 1))
    assert [text for _, text in result.spans] == [evil[0], f"|{evil[1]}|", *evil[2:]]
    assert all(set(span) <= {"style", "title"} for span, _ in result.spans)
    assert text_strip(strip, 1.0).plain == f"{evil[0]}|{evil[1]}|{evil[2]}{evil[3]}"


def test_shades_are_blue_or_red_in_proportion_up_to_the_maximum_and_titled() -> None:
    values = np.float32([4, 2, 1, 8, -2, 0, -40])
    spans = [span for span, _ in Tokens(html_strip(["x"] * 7, values, 4)).spans]
    shares = [100, 50, 25, 100, 50, 100]
    colours = [BLUE, BLUE, BLUE, BLUE, RED, RED]
    assert [shade(span) for span in spans if span] == [
        (colour, round(DEEPEST * share / 100)) for colour, share in zip(colours, shares, strict=True)
    ]
    assert [span.get("title") for span in spans] == ["4", "2", "1", "8", "-2", None, "-40"]


def test_a_maximum_of_zero_divides_nothing() -> None:
    assert shade(Tokens(html_strip(["a"], [3.0], 0)).spans[0][0]) == (BLUE, DEEPEST)
    assert html_strip(["a"], [0.0], 0) == '<div class="strip"><span>a</span></div>'


def test_a_terminal_shows_deeper_shades_for_stronger_activations() -> None:
    strip = Strip(["a", "b", "c", "d", "e"], np.float32([0, 1, 2, 9, -2]), firing=3)
    text = text_strip(strip, 4)
    colours = [span.style.bgcolor.triplet for span in text.spans if span.style and span.style.bgcolor]
    assert colours[2] == BLUE
    assert colours[0].red > colours[1].red > colours[2].red
    assert colours[3].red > colours[3].blue
    plain = text_strip(strip, 4, shaded=False)
    assert [plain.plain[span.start : span.end] for span in plain.spans] == ["|d|"]
    out = StringIO()
    Console(file=out, force_terminal=True, color_system="truecolor").print(text)
    assert "48;2;0;114;178" in out.getvalue()


def test_activations_of_a_window_are_those_of_its_rows_and_zero_elsewhere() -> None:
    big = 2**53
    rows = np.array([3, 5, 6, big + 1, big + 2], np.uint64)
    values = np.float32([1, -2, 3, 4, 5])
    assert activations_in(rows, values, 4, 3).tolist() == [0, -2, 3]
    assert activations_in(rows, values, big, 4).tolist() == [0, 4, 5, 0]
    assert activations_in(rows[:0], values[:0], 0, 2).tolist() == [0, 0]
    assert strongest_in([values, np.float32([-7])]) == 7
    assert strongest_in([]) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_values_and_tokens_must_be_as_many(n: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        html_strip(["a", "b"], [1.0] * n, 1)
