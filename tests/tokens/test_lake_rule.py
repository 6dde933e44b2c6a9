"""What begins a context and ends a document, by default and by name."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.plans.sae_defaults import prepend_bos
from pipeline.store.records.tokens import read_lake, read_links, read_stored_tokens, read_token_shard
from pipeline.tokens.lake_rule import default_bos, notes, requested_lake, require_rule
from pipeline.tokens.tokenize import tokenize
from pipeline.tokens.tokenizer import LakeTokenizer, load_tokenizer
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Lake
from schemas.run.file import RunFile, parse_run_file
from tests.kit import write_chat_tokenizer, write_tiny_tokenizer

EOT, START, END = 0, 1, 2
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
BERT = {"cls_token": "<|im_start|>", "sep_token": "<|im_end|>"}


def chat(folder: Path, **named: str) -> LakeTokenizer:
    return load_tokenizer(str(write_chat_tokenizer(folder / "tokenizer", **named)))


def run_of(folder: Path, corpus: str = "corpus.jsonl", **tokens: Any) -> RunFile:
    content = {
        "corpus": {"path": str(folder / corpus)},
        "tokens": {"shard_tokens": 64, "context_size": 16, "prepend_bos": True, **tokens},
        "model": {"path": "unused"},
        "sites": [{"sae": "unused"}],
        "store": {"root": str(folder / "store")},
    }
    return parse_run_file(content, "run.yaml")


def lake_of(folder: Path, tokenizer: LakeTokenizer, stored: Lake | None = None, **tokens: Any) -> Lake:
    return requested_lake(run_of(folder, **tokens), tokenizer, {}, stored=stored)


@pytest.mark.parametrize(
    ("named", "tokens", "expected"),
    [
        ({"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, {}, (EOT, END)),
        (QWEN, {}, (END, END)),
        (BERT, {}, (START, END)),
        ({**BERT, **QWEN}, {"separator": "none"}, (START, None)),
        (QWEN, {"bos": "<|endoftext|>"}, (EOT, END)),
        (QWEN, {"bos": "<|im_start|>", "separator": "<|endoftext|>"}, (START, EOT)),
        ({}, {"bos": "Ċ", "separator": "\n"}, (204, 204)),
    ],
)
def test_the_first_token_and_the_separator(
    tmp_path: Path, named: dict[str, str], tokens: dict[str, str], expected: tuple[int, int]
) -> None:
    lake = lake_of(tmp_path, chat(tmp_path, **named), **tokens)
    assert (lake.bos_id, lake.separator_id) == expected


def test_eos_first_and_cls_first_are_said_and_a_named_token_is_not(tmp_path: Path) -> None:
    for named, message in ((QWEN, "'<|im_end|>', its EOS, as in SAELens"), (BERT, "'<|im_start|>', its CLS")):
        tokenizer = chat(tmp_path, **named)
        (sentence,) = notes(run_of(tmp_path), lake_of(tmp_path, tokenizer), tokenizer)
        assert message in sentence
        run = run_of(tmp_path, bos="<|endoftext|>")
        assert notes(run, lake_of(tmp_path, tokenizer, bos="<|endoftext|>"), tokenizer) == []
        assert (
            "separator '!' is not a special token"
            in notes(
                run_of(tmp_path, bos="<|im_end|>", separator="!"),
                lake_of(tmp_path, tokenizer, bos="<|im_end|>", separator="!"),
                tokenizer,
            )[0]
        )
        stored = lake_of(tmp_path, tokenizer, bos="<|endoftext|>", separator="!")
        appended = notes(run_of(tmp_path), lake_of(tmp_path, tokenizer, stored), tokenizer)
        assert [sentence.partition(" token of")[0] for sentence in appended] == [
            "note: tokens.separator '!' is not a special"
        ]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({}, r"has neither a BOS nor an EOS token: name a token that contexts begin with \(tokens.bos\)"),
        (
            {"bos": "<|endoftxt|>"},
            r"tokens.bos '<\|endoftxt\|>' is not a token .*near it are '<\|endoftext\|>'",
        ),
        ({"bos": "two tokens"}, "tokens.bos 'two tokens' is not a token of the tokenizer"),
        ({"bos": "<|im_start|>", "separator": "EOS"}, "tokens.separator 'EOS' is not a token"),
        ({"bos": "<|im_start|>"}, "has no EOS token; set tokens.separator: none, or name a token"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, tokens: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lake_of(tmp_path, chat(tmp_path), **tokens)


@pytest.mark.parametrize("word", ["None", "no", "EOS"])
def test_a_word_that_looks_like_a_keyword_is_no_token_unless_it_is_special(tmp_path: Path, word: str) -> None:
    tokenizer = chat(tmp_path, **QWEN)
    tokenizer._backend.add_tokens([word])
    for key, remedy in {"bos": r"write tokens\.prepend_bos: false", "separator": "write eos, none"}.items():
        with pytest.raises(InputError, match=rf"tokens\.{key} '{word}' is an ordinary word .*: {remedy}"):
            lake_of(tmp_path, tokenizer, **{key: word})
    special = chat(tmp_path / "special", **QWEN, extra_special_tokens=[word])
    assert lake_of(tmp_path, special, separator=word).separator_id == special.id_of(word)


def test_a_named_first_token_begins_contexts_and_cannot_be_without_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokens\.bos '<x>' begins every context"):
        prepend_bos(run_of(tmp_path, bos="<x>", prepend_bos=False).tokens, [], [])
    assert prepend_bos(run_of(tmp_path, bos="<x>").tokens, [], []) is True


def test_what_a_run_file_does_not_say_is_as_in_the_store(tmp_path: Path) -> None:
    tokenizer = chat(tmp_path, **QWEN)
    stored = lake_of(tmp_path, tokenizer, bos="<x>", separator="<end>", special_text="literal")
    again = lake_of(tmp_path, tokenizer, stored)
    assert (again, again.digest) == (stored, stored.digest)
    layout = Layout(tmp_path / "store")
    for key, value, field in (
        ("bos", "<mask>", "tokens.bos"),
        ("separator", "none", "tokens.separator"),
        ("special_text", "parse", "tokens.special_text"),
    ):
        with pytest.raises(InputError, match=rf"other settings: {field} \("):
            require_rule(layout.root, stored, lake_of(tmp_path, tokenizer, stored, **{key: value}))


def test_a_lake_of_literal_text_has_the_digest_that_it_had(tmp_path: Path) -> None:
    words = load_tokenizer(str(write_tiny_tokenizer(tmp_path)))
    literal, parsed = (lake_of(tmp_path, words, special_text=how) for how in ("literal", "parse"))
    old = {k: v for k, v in json.loads(literal.to_json()).items() if k != "special_text"}
    assert Lake.from_json(json.dumps(old).encode(), "old").digest == literal.digest != parsed.digest
    assert lake_of(tmp_path, words).special_text == "parse"


def test_bos_of_id_0_is_one_and_numbers_have_none_but_by_name(tmp_path: Path) -> None:
    assert default_bos(chat(tmp_path, bos_token="<|endoftext|>")) == 0
    numbers = load_tokenizer("numbers:9")
    assert (default_bos(numbers), lake_of(tmp_path, numbers, bos="0", separator="none").bos_id) == (None, 0)
    with pytest.raises(InputError, match=r"tokens\.bos '9' is not a token of the tokenizer 'numbers:9'"):
        lake_of(tmp_path, numbers, bos="9", separator="none")
    assert lake_of(tmp_path, numbers, bos="0", separator="none").special_text == "literal"


def contexts(
    folder: Path, tokenizer: LakeTokenizer, texts: list[str], size: int = 8, **tokens: Any
) -> list[list[int]]:
    """The contexts of a lake of these texts."""
    folder.mkdir(exist_ok=True)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "corpus.jsonl").write_text(rows)
    layout = Layout(folder / "store")
    tokenize(layout, read_stored_tokens(layout), run_of(folder, context_size=size, **tokens), tokenizer)
    lake, result = read_lake(layout), []
    assert lake is not None
    for record in (record for link in read_links(layout) for record in link.shards):
        shard = read_token_shard(layout, lake, record)
        result += [part.tolist() for part in _cut(shard.token_ids, shard.context_ptr)]
        assert shard.counted.tolist() == [i not in lake.special_ids for i in shard.token_ids]
    return result


def _cut(ids: Any, pointers: Any) -> list[Any]:
    return [ids[start:end] for start, end in pairwise(pointers)]


def test_an_encoders_document_is_what_its_tokenizer_gives(tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = chat(tmp_path, **BERT)
    reference = AutoTokenizer.from_pretrained(tokenizer.name)
    reference.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", START), ("<|im_end|>", END)]
    )
    texts = ["abc", "<x> ok"]
    result = contexts(tmp_path / "lake", tokenizer, texts, contexts="document")
    assert result == [reference(text)["input_ids"] for text in texts]


@pytest.mark.parametrize(
    "tokens", [{}, {"contexts": "document"}, {"separator": "none"}, {"separator": "<|endoftext|>"}]
)
@pytest.mark.parametrize("size", [3, 4, 8])
def test_no_context_begins_with_two_bos(tmp_path: Path, size: int, tokens: dict[str, str]) -> None:
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    size = size + 8 if tokens.get("contexts") else size
    bos = "<|endoftext|>"
    texts = [f"{bos}ab", f"{bos}{bos}cd{bos}", f"ab{bos}cd", bos, f"e{bos}f{bos}g{bos}", "h"]
    result = contexts(tmp_path / "lake", chat(tmp_path, **named), texts, size, **tokens)
    assert all(context[0] == EOT and context[1] != EOT for context in result)
    assert "".join(chr(i + 27) for context in result for i in context if i > 5) == "abcdabcdefgh"


def test_special_text_is_masked_by_its_id_and_literal_text_is_not(tmp_path: Path) -> None:
    text = "<|im_start|>a<|im_end|>"
    parsed = contexts(tmp_path / "parsed", chat(tmp_path, **QWEN), [text])
    literal = contexts(tmp_path / "literal", chat(tmp_path, **QWEN), [text], special_text="literal")
    assert parsed == [[END, START, 70, END, END]]
    assert sum(map(len, literal)) > 20


def test_a_link_says_how_many_documents_spell_special_tokens(tmp_path: Path) -> None:
    texts = ["<|im_start|>a", "b", "", "<end>", "c<|im_end|>"]
    for how in ("parse", "literal"):
        contexts(tmp_path / how, chat(tmp_path, **QWEN), texts, special_text=how)
        assert read_links(Layout(tmp_path / how / "store"))[0].source["special_texts"] == 3
    contexts(tmp_path / "limit", chat(tmp_path, **QWEN), texts, limit=5)
    assert read_links(Layout(tmp_path / "limit" / "store"))[0].source["special_texts"] == 1
