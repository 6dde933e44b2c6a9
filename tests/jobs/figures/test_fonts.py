"""Letters of any script: fonts that have them are looked for, and what none has is named."""

from __future__ import annotations

import polars as pl
import pytest
from matplotlib import font_manager, rc_context
from matplotlib.image import imread

from jobs.figures import FIGURES, fonts
from jobs.figures.fonts import families_for, legible, missing_note, use_fonts
from jobs.figures.plots import plots, render
from jobs.figures.setting import Setting, set_to
from jobs.figures.style import STYLE, canvas
from pipeline.store import FeatureStore
from tests.fixtures.figures import hangul_font, write_font
from tests.fixtures.store import build
from tests.fixtures.texts import made_up


@pytest.fixture
def files(monkeypatch):
    """The font files of a machine: none to begin with; matplotlib forgets in the end which it was given."""
    known = list(font_manager.fontManager.ttflist)
    there: list[str] = []
    monkeypatch.setattr(fonts, "font_files", lambda: there)
    yield there
    font_manager.fontManager.ttflist[:] = known


def test_plain_letters_need_no_further_font(files):
    assert families_for("abc Ärger Ωμέγα Жук ← σ/μ ⁻¹ שלום أهلا") == (["DejaVu Sans"], set())


def test_a_font_that_is_installed_later_is_used_at_once(files, tmp_path):
    assert families_for("한국어") == (["DejaVu Sans"], set("한국어"))
    files.append(str(hangul_font(tmp_path)))
    assert families_for("한국어") == (["DejaVu Sans", "Squares of Hangul"], set())


def test_fonts_are_chosen_by_what_they_cover_and_only_what_none_has_is_missing(files, tmp_path):
    for name, letters in (("ko", "한국"), ("deva", "नमस्ते"), ("both", "한국어日本"), ("none", "xyz")):
        files.append(str(write_font(tmp_path / f"{name}.ttf", f"Squares {name}", letters)))
    families, missing = families_for("한국어 日本 नमस्ते 🙂")
    assert families == ["DejaVu Sans", "Squares deva", "Squares both"]
    assert missing == {"🙂"}


def test_of_fonts_that_cover_as_much_a_plain_face_of_a_known_family_is_taken(files, tmp_path):
    for family, style in (("A", "Bold"), ("B", "Regular"), ("NanumGothic Test", "Bold")):
        path = tmp_path / f"{family}{style}.ttf"
        files.append(str(write_font(path, family, "한", style)))
    assert families_for("한")[0] == ["DejaVu Sans", "NanumGothic Test"]
    del files[-1]
    assert families_for("한")[0] == ["DejaVu Sans", "B"]


def test_what_is_no_font_or_stands_in_for_every_letter_is_passed_over(files, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    files += [str(tmp_path / "broken.ttf"), str(tmp_path / "gone.ttf")]
    files.append(str(write_font(tmp_path / "last.ttf", "LastResort High", "한국어")))
    assert families_for("한국어") == (["DejaVu Sans"], set("한국어"))


@pytest.mark.parametrize(
    ("text", "named", "package"),
    [
        ("민주", "민 주 (Hangul)", "fonts-nanum"),
        ("民主", "主 民 (Chinese characters)", "fonts-noto-cjk"),
        ("नम", "न म (Devanagari)", "fonts-noto-core"),
        ("🙂", "🙂 (symbols and emoji)", "fonts-symbola"),
        ("민न", "न (Devanagari), 민 (Hangul)", "fonts-noto-core, fonts-nanum"),
    ],
)
def test_the_note_names_the_letters_their_script_and_a_package(text, named, package):
    note = missing_note(text)
    assert f"no font of this machine has {named}" in note
    assert f"such as {package} (packages" in note


def test_joiners_and_variation_selectors_are_not_missing(files):
    assert families_for("❤\ufe0f a\u200db \u200c") == (["DejaVu Sans"], set())


def test_text_of_the_data_is_one_line_without_what_is_not_seen(files):
    shown = legible("a\nb\tc\x00d\x1b[31m\u202ee\x85\u1112\u1161\u11ab")
    assert shown == "a↩b→c\ufffdd\ufffd[31m\ufffde\ufffd한"
    assert families_for(shown)[1] == {"한"}


def drawn(tmp_path, kind):
    with rc_context(STYLE), set_to(Setting()) as setting:
        figure, axes = canvas("title", "한국어", "fact")
        axes.set_yticks([0, 1], ["한국", "b"])
        (tmp_path / f"f.{kind}").write_bytes(render(figure, kind))
        return figure, setting.missing


def test_a_figure_is_drawn_with_the_fonts_of_its_letters_ticks_included(files, tmp_path):
    files.append(str(hangul_font(tmp_path)))
    figure, missing = drawn(tmp_path, "png")  # a missing glyph would be a warning, and so an error
    assert missing == set()
    assert figure.axes[0].get_yticklabels()[0].get_fontfamily() == ["DejaVu Sans", "Squares of Hangul"]
    assert use_fonts(figure) == set()
    assert "no font" not in figure.texts[1].get_text()


def test_without_a_font_the_letters_stay_in_the_svg_and_the_figure_says_what_is_missing(files, tmp_path):
    _, missing = drawn(tmp_path, "svg")
    assert missing == set("한국어")
    text = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert ">한국<" in text
    assert "no font for Hangul where this was drawn" in text
    drawn(tmp_path, "png")
    assert imread(tmp_path / "f.png").shape == (900, 1440, 4)


def test_plots_use_a_korean_font_for_labels_and_say_what_no_font_has(files, tmp_path, monkeypatch, capsys):
    store = FeatureStore.open(build(tmp_path / "store", shards=1).layout.root)
    monkeypatch.setattr(store, "made_from", lambda *_: "")
    monkeypatch.setattr(store, "has_table", lambda _, name: name != "explanations")
    labels = made_up(60, 0)["labels"].with_columns(value=pl.lit("민주당"), q=pl.lit(0.01))
    one = {"label_differences": FIGURES["label_differences"]}
    monkeypatch.setattr("jobs.figures.plots.FIGURES", one)
    monkeypatch.setattr(store, "scan_table", lambda *_: labels.lazy())
    plots(store, "site")
    said = " ".join(capsys.readouterr().out.split())
    assert "note site: no font of this machine has 당 민 주 (Hangul)" in said
    assert "such as fonts-nanum" in said
    files.append(str(hangul_font(tmp_path)))
    _, svg = plots(store, "site")
    assert "no font" not in capsys.readouterr().out
    text = svg.read_text(encoding="utf-8")
    assert ("party 민주당" in text, "no font" in text, "Squares of Hangul" in text) == (True, False, True)
