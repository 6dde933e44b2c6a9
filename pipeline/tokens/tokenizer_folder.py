"""What the files of a tokenizer's folder say of its special tokens, read without transformers.

`tokenizer_config.json` names tokens as `*_token`, and lists them as `extra_special_tokens` (formerly
`additional_special_tokens`) and `added_tokens_decoder`; folders of older versions of transformers have
`special_tokens_map.json` and `added_tokens.json` for that. Followed: transformers 5.23,
`PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of transformers that add nothing to a tokenizer.json."""

_LISTS = ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""Properties of an added token, and their defaults."""


class SpecialTokens(NamedTuple):
    """Special tokens by the names of their roles (`bos_token` …), and those without a role."""

    named: dict[str, str]
    extra: tuple[str, ...]
    splits: bool
    """Whether `tokenizer(text)` of transformers itself reads special tokens in a text as letters."""

    @property
    def texts(self) -> set[str]:
        """All of them."""
        return {*self.named.values(), *self.extra}


def config_of(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} where there is none."""
    return _content(folder / "tokenizer_config.json")


def is_of_plain_class(folder: Path) -> bool:
    """Whether a tokenizer.json and a class that adds nothing to it lie in the folder."""
    return (folder / "tokenizer.json").is_file() and config_of(folder).get("tokenizer_class") in PLAIN_CLASSES


def special_tokens(folder: Path) -> SpecialTokens:
    """The special tokens that transformers would read from the folder's files."""
    config = config_of(folder)
    merged = dict(config)
    if "added_tokens_decoder" not in config:
        merged |= _content(folder / "special_tokens_map.json")
    named = {
        key: _text(value) for key, value in merged.items() if key.endswith("_token") and _is_token(value)
    }
    extra: list[str] = []
    for source in (config, merged):
        for listed in (source.get(key) or () for key in _LISTS):
            if isinstance(listed, dict):
                named |= {key: _text(value) for key, value in listed.items() if _is_token(value)}
            else:
                extra += [_text(value) for value in listed if _is_token(value)]
    return SpecialTokens(named, tuple(dict.fromkeys(extra)), bool(config.get("split_special_tokens")))


def is_complete(folder: Path, content: dict[str, Any], special: SpecialTokens) -> bool:
    """Whether a tokenizer.json's `content` has every token that transformers would add to it."""
    added = {token["content"]: token for token in content.get("added_tokens") or ()}
    decoder = config_of(folder).get("added_tokens_decoder") or {}
    is_listed = all(_is_same(added.get(_text(token)), token, int(key)) for key, token in decoder.items())
    extra_ids = _content(folder / "added_tokens.json")
    has_ids = all(text in added and added[text]["id"] == key for text, key in extra_ids.items())
    return is_listed and has_ids and special.texts <= set(added)


def _is_same(added: dict[str, Any] | None, token: Any, key: int) -> bool:
    """Whether an entry of `added_tokens_decoder` is that of the tokenizer.json, flag for flag."""
    if added is None or not isinstance(token, dict) or added["id"] != key:
        return False
    return all(added.get(name, off) == token.get(name, off) for name, off in _FLAGS.items())


def _content(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _is_token(value: Any) -> bool:
    return isinstance(_text(value), str)


def _text(value: Any) -> Any:
    """The token of a text, or of an object that has its text as `content`."""
    return value.get("content") if isinstance(value, dict) else value
