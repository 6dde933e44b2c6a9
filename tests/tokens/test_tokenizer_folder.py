"""Special tokens of a folder, and the ids of texts that spell them, are those of transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.tokens.tokenizer import _as_before_version_7, load_tokenizer
from pipeline.tokens.tokenizer_folder import is_complete, special_tokens
from schemas.errors import InputError
from tests.kit import write_chat_tokenizer, write_tiny_tokenizer

CHAT = (
    "<|im_start|>user\nHello <mask> you <end> there <x>, a<x>b<|im_end|>\n"
    "<|im_start|>assistant\n안녕<|im_end|>"
)
TEXTS = [CHAT, "", "no special text", "<|im_start", " <|endoftext|> ", "<|im_end|><|im_end|>", "Hello<x>"]
MAP, CONFIG, ADDED = "special_tokens_map.json", "tokenizer_config.json", "added_tokens.json"

FILES: dict[str, dict[str, Any]] = {
    "named in the config": {CONFIG: {"eos_token": "<|im_end|>"}},
    "named in the map alone": {MAP: {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}},
    "named by the map otherwise": {CONFIG: {"eos_token": "<|im_end|>"}, MAP: {"eos_token": "<|endoftext|>"}},
    "objects in the map": {MAP: {"eos_token": {"content": "<|im_end|>", "lstrip": False}}},
    "a list in the config": {CONFIG: {"extra_special_tokens": ["Hello", "<|im_end|>"]}},
    "the list's old name": {CONFIG: {"additional_special_tokens": ["Hello"]}},
    "a dict in the config": {CONFIG: {"extra_special_tokens": {"image_token": "Hello"}}},
    "roles of the model": {CONFIG: {"model_specific_special_tokens": {"image_token": "Hello"}}},
    "a role of the model that no vocabulary has": {
        CONFIG: {"model_specific_special_tokens": {"image_token": "<new>"}}
    },
    "a role of its own": {CONFIG: {"image_token": "Hello"}},
    "a list in the map": {MAP: {"additional_special_tokens": ["Hello"]}},
    "a list of objects in the map": {MAP: {"extra_special_tokens": [{"content": "Hello"}]}},
    "a token that no vocabulary has": {
        CONFIG: {"extra_special_tokens": ["<new>"], "eos_token": "<end of it>"}
    },
    "a token of the map that no vocabulary has": {MAP: {"additional_special_tokens": ["<new>"]}},
    "an ordinary token as a role": {CONFIG: {"pad_token": "!"}},
    "an added token": {ADDED: {"<new>": 263}},
    "added tokens by id": {
        CONFIG: {
            "added_tokens_decoder": {"263": {"content": "<new>", "special": True}},
            "extra_special_tokens": ["<new>"],
        }
    },
    "added tokens by id, otherwise": {
        CONFIG: {"added_tokens_decoder": {"262": {"content": "Hello", "lstrip": True, "special": True}}},
    },
    "letters, even in transformers": {CONFIG: {"split_special_tokens": True}},
}


def folder_of(path: Path, files: dict[str, dict[str, Any]]) -> Path:
    """The chat tokenizer with other files."""
    folder = write_chat_tokenizer(path)
    for name, content in files.items():
        file = folder / name
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(before | content))
    return folder


@pytest.mark.parametrize("what", FILES)
def test_ids_and_special_ids_are_those_of_transformers(tmp_path: Path, what: str) -> None:
    from transformers import AutoTokenizer

    folder = folder_of(tmp_path, FILES[what])
    reference, result = AutoTokenizer.from_pretrained(folder), load_tokenizer(str(folder))
    added = {i for i, token in reference.added_tokens_decoder.items() if token.special}
    assert set(result.special_ids) == {*reference.all_special_ids, *added}
    assert (result.bos_id, result.eos_id) == (reference.bos_token_id, reference.eos_token_id)
    ids = [encoded.tolist() for encoded in result.encode_batch(TEXTS, "parse")]
    assert ids == [reference(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("places", [["code.Own", None], [None, "code.Own"], ["some/where--code.Own", None]])
def test_a_tokenizer_s_own_code_never_runs_whatever_is_answered(
    tmp_path: Path, places: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": places}}
    folder = folder_of(tmp_path, {CONFIG: config})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    with pytest.raises(InputError, match="requires Python code of its own, which is never run"):
        load_tokenizer(str(folder))
    assert not (tmp_path / "was_run").exists()


def test_a_file_that_a_tokenizer_names_is_never_opened(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizerFast", "gguf_file": str(tmp_path / "any.gguf")}
    folder = folder_of(tmp_path / "tokenizer", {CONFIG: config})
    os.mkfifo(tmp_path / "any.gguf")  # who opens it waits
    with pytest.raises(InputError, match="names a gguf_file, which may lie anywhere and is never opened"):
        load_tokenizer(str(folder))


def test_what_a_chat_template_writes_is_its_special_tokens_only_when_parsed(tmp_path: Path) -> None:
    result = load_tokenizer(str(write_chat_tokenizer(tmp_path, eos_token="<|im_end|>")))
    (parsed,), (literal,) = (result.encode_batch([CHAT], how) for how in ("parse", "literal"))
    assert [int(i) for i in parsed if i in result.special_ids] == [1, 3, 4, 5, 2, 1, 2]
    assert not set(literal.tolist()) & set(result.special_ids)
    assert len(parsed) < len(literal)
    assert result.encode_batch([CHAT], "parse")[0].tolist() == parsed.tolist()


def test_only_tokens_that_the_tokenizer_json_has_are_read_without_transformers(tmp_path: Path) -> None:
    whole = folder_of(tmp_path / "whole", FILES["a list in the config"])
    lacks = folder_of(tmp_path / "lacks", FILES["a token of the map that no vocabulary has"])
    for folder, complete in ((whole, True), (lacks, False)):
        content = json.loads((folder / "tokenizer.json").read_text())
        assert is_complete(folder, content, special_tokens(folder)) is complete


def test_a_lake_of_before_version_7_gets_the_tokenizer_that_it_was_made_by(tmp_path: Path) -> None:
    folder = write_tiny_tokenizer(tmp_path, eos=False)
    (folder / MAP).write_text(json.dumps({"eos_token": "w60"}))
    now, before = load_tokenizer(str(folder)), _as_before_version_7(folder)
    assert (now.special_ids, before.special_ids) == ((0, 2, 63), (0, 2))
    assert load_tokenizer(str(folder), before.digest).digest == before.digest
    assert load_tokenizer(str(folder), "another").digest == now.digest
