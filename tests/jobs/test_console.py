"""What jobs print is harmless to a terminal, whoever wrote the text in it, and never too long."""

from __future__ import annotations

import io

import pytest
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jobs.terminal import console as module
from jobs.terminal.console import SafeConsole, say, warn
from jobs.terminal.strips import html_page
from schemas.errors import InputError
from schemas.sentences import LONGEST_SENTENCE, holds_secret, redacted, shown, visible

STEERING = {
    "\x1b[31m": "\\x1b[31m",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x1b]8;;http://x\x1b\\": "\\x1b]8;;http://x\\x1b\\",
    "\x00": "\\x00",
    "\r": "\\x0d",
    "\x08": "\\x08",
    "\x7f": "\\x7f",
    "\x9b31m": "\\x9b31m",
    "\u202eevil": "\\u202eevil",
    "\u2066x\u2069": "\\u2066x\\u2069",
    "\u200b": "\\u200b",
    "\u2028": "\\u2028",
    "\ufeff": "\\ufeff",
    "\udc80": "\\udc80",
    "\U000e0041": "\\U000e0041",
}
HARMLESS = ["plain\ntext", "한국어", "مرحبا", "👩‍👩‍👧", "é", "می‌خواهم", ":smile:"]


@pytest.fixture
def printed(monkeypatch):
    """What a terminal would get."""
    out = io.StringIO()
    made = SafeConsole(file=out, emoji=False, force_terminal=True, color_system="truecolor", width=200)
    monkeypatch.setattr(module, "console", made)
    return out.getvalue, made


@pytest.mark.parametrize(("text", "seen"), STEERING.items())
def test_a_character_that_steers_is_shown_as_an_escape_everywhere(printed, text, seen):
    read, console = printed
    say(escape(f"label {text}"))
    warn([f"column {text}"])
    table = Table(title=escape(f"title {text}"))
    table.add_column(escape(f"head {text}"))
    table.add_row(escape(f"cell {text}"))
    console.print(table)
    console.print(Text(f"strip {text}"))
    message = read()
    assert all(f"{what} {seen}" in message for what in ("label", "column", "title", "head", "cell"))
    assert text not in message.replace("\x1b[33m", "").replace("\x1b[0m", "").replace("\x1b[3m", "")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_people_write_stays(printed, text):
    assert visible(text) == text
    say(text)
    assert printed[0]() == text + "\n"


def test_colours_of_our_own_stay(printed):
    say("[bold]pass[/] x")
    assert printed[0]() == "\x1b[1mpass\x1b[0m x\n"


@pytest.mark.parametrize("text", ["[b]", "[/b]", "a[/]b", "[link=x]", "[red", "x\\", "[[b]]", "[@click=x]"])
def test_markup_of_others_is_text_in_lines_titles_and_cells(printed, text):
    read, console = printed
    warn([f"path {text}"])
    table = Table(title="t")
    table.add_column("c")
    table.add_row(f"cell [/nothing] {text}")  # a caller that forgot to escape ends with no traceback
    console.print(table)
    assert f"path {text}" in read().replace("\x1b[33m", "").replace("\x1b[0m", "")


def test_a_line_of_any_length_loses_its_middle(printed):
    say("a" * 1_000_000 + "z")
    line = printed[0]()
    assert len(line) == LONGEST_SENTENCE + 1
    assert line.startswith("aaa")
    assert line.endswith("az\n")
    assert "…" in line
    assert len(str(InputError("x" * 10**6))) == LONGEST_SENTENCE


def test_a_page_of_strips_shows_no_steering_characters():
    page = html_page("a \x1b[31m", "b \u202e", [])
    assert "a \\x1b[31m" in page
    assert "\u202e" not in page


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://user:secret@bucket/x", "s3://***@bucket/x"),
        ("s3://AKIA:se/cr+et=@bucket/x", "s3://***@bucket/x"),
        ("https://ghp_secret@github.com/x", "https://***@github.com/x"),
        ("abfss://box:secret@account/x", "abfss://***@account/x"),
        ("https://x/y?sig=secret&se=1", "https://x/y?sig=***&se=1"),
        ("https://x/y?a=1&X-Amz-Signature=secret", "https://x/y?a=1&X-Amz-Signature=***"),
        ("redis://:secret@host:6379", "redis://***@host:6379"),
    ],
)
def test_a_secret_of_a_url_is_never_repeated(printed, url, message):
    assert redacted(f"it is {url}") == f"it is {message}"
    assert holds_secret(url)
    assert shown(url) == repr(message)
    assert str(InputError(f"no {url} here")) == f"no {message} here"
    say(f"store {url}")
    assert "secret" not in printed[0]()


@pytest.mark.parametrize(
    "url", ["s3://bucket/x@1", "abfss://box@account.dfs.core.windows.net/x", "http://h:8265", "hf:a/b/c@main"]
)
def test_a_url_without_a_secret_stays(url):
    assert redacted(url) == url
    assert not holds_secret(url)
