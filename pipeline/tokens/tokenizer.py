"""Tokenizers as the lake uses them: those of Hugging Face (Rust, in batches, adding nothing), and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from pipeline.tokens.number_tokenizer import PREFIX as NUMBERS
from pipeline.tokens.number_tokenizer import NumberTokenizer
from pipeline.tokens.tokenizer_folder import config_of, is_complete, is_of_plain_class, special_tokens
from schemas.errors import InputError
from schemas.names import SpecialText
from schemas.records import Lake, digest_of
from schemas.storage_failures import file_of, storage_failure
from schemas.values import I32

_IRRELEVANT = ("version", "truncation", "padding", "post_processor")
"""Parts of a tokenizer.json that can't change what `encode_batch` gives."""

_ANCHOR = "a"


_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How vocabularies with a byte fallback spell a byte."""


class Tokenizer(Protocol):
    """Text to token ids, without BOS, EOS or anything else that the text does not hold."""

    @property
    def name(self) -> str:
        """What `load_tokenizer` was given."""

    @property
    def bos_id(self) -> int | None:
        """Id of BOS; 0 is an id, None is none."""

    @property
    def eos_id(self) -> int | None:
        """Id of EOS."""

    @property
    def cls_id(self) -> int | None:
        """Id of CLS, which encoders put before a text."""

    @property
    def sep_id(self) -> int | None:
        """Id of SEP, which encoders put after a text."""

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of every special token, ascending."""

    @property
    def special_texts(self) -> tuple[str, ...]:
        """What a text holds where it spells a special token that can be parsed out of it."""

    @property
    def digest(self) -> str:
        """sha256 of all that decides which ids a text has and which of them are special."""

    @property
    def size(self) -> int:
        """One more than the largest token id."""

    def encode_batch(self, texts: Sequence[str], special_text: SpecialText) -> list[I32]:
        """Token ids of each text, int32 [.]; `special_text` as in the lake."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token puts into a text, for display."""

    def piece_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of UTF-8 that each token puts into a text: some are parts of a character."""

    def id_of(self, token: str) -> int | None:
        """The id of the one token that the vocabulary spells so, or a text has; None where there is none."""


class LakeTokenizer:
    """Text to token ids, without BOS, EOS or anything else that the text does not hold.

    Under `special_text: literal` text that spells a special token (`<|endoftext|>`) is text like any other,
    unless the vocabulary itself, not only the list of special tokens, holds that spelling (some WordLevel and
    Unigram vocabularies). Batches run on all cores and without the GIL; TOKENIZERS_PARALLELISM is left to the
    user, because only while it is unset does the library protect a process that forks.
    """

    def __init__(
        self,
        name: str,
        backend: Any,
        bos_id: int | None,
        eos_id: int | None,
        special: set[int],
        *,
        cls_id: int | None = None,
        sep_id: int | None = None,
        splits: bool = False,
    ):
        """Wrap a `tokenizers.Tokenizer`, which is ours to change.

        `splits`: transformers itself reads special tokens in a text as letters (`split_special_tokens`).
        """
        self.name: Final = name
        self.bos_id: Final = bos_id
        """Id of BOS; 0 is an id, None is none."""
        self.eos_id: Final = eos_id
        self.cls_id: Final = cls_id
        self.sep_id: Final = sep_id
        named = {i for i in (bos_id, eos_id) if i is not None}
        self._added = backend.get_added_tokens_decoder()
        added = {i for i, token in self._added.items() if token.special}
        self.special_ids: Final = tuple(sorted(special | added | named))
        """Ids of every special token, ascending: BOS, EOS, padding, unknown, and those of chat formats."""
        self.special_texts: Final = tuple(t.content for t in self._added.values() if t.special and t.content)
        self._backend, self._splits = backend, splits
        content = json.loads(backend.to_str())
        self._decoders = set(_decoders(content.get("decoder")))
        # a library that learns a new option writes it as null for old tokenizers: that is not difference
        used = {key: value for key, value in content.items() if key not in _IRRELEVANT and value is not None}
        extra = [True] if splits else []
        self.digest: Final = digest_of([used, bos_id, eos_id, self.special_ids, *extra])
        """sha256 of all that decides which ids a text has and which of them are special."""
        backend.no_truncation()
        backend.no_padding()

    def encode_batch(self, texts: Sequence[str], special_text: SpecialText) -> list[I32]:
        """Token ids of each text, int32 [.]: `parse` gives those of `tokenizer(text)` of transformers."""
        as_letters = special_text == "literal" or self._splits
        if self._backend.encode_special_tokens != as_letters:
            self._backend.encode_special_tokens = as_letters
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    @property
    def size(self) -> int:
        """One more than the largest token id (a vocabulary may have gaps)."""
        ids: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return 1 + max(ids.values())

    def id_of(self, token: str) -> int | None:
        """The id of the one token that the vocabulary spells so, or a text has; None where there is none."""
        known: int | None = self._backend.token_to_id(token)
        if known is not None:
            return known
        (ids,) = self.encode_batch([token], "parse")
        is_one = len(ids) == 1 and self.piece_bytes(ids.tolist()) == [token.encode()]
        return int(ids[0]) if is_one else None

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token puts into a text, for display: leading spaces stay, half a character is U+FFFD."""
        distinct = sorted({int(i) for i in ids})
        anchor = self._backend.encode(_ANCHOR, add_special_tokens=False).ids
        alone, *decoded = self._backend.decode_batch(
            [anchor, *([*anchor, i] for i in distinct)], skip_special_tokens=False
        )
        piece = {i: self._piece(i, alone, text) for i, text in zip(distinct, decoded, strict=True)}
        return [piece[int(i)] for i in ids]

    def piece_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of UTF-8 that each token puts into a text: some are parts of a character."""
        pairs = zip(ids, self.pieces(ids), strict=True)
        return [self._bytes(int(token_id), piece) for token_id, piece in pairs]

    def _bytes(self, token_id: int, piece: str) -> bytes:
        """The decoders whose tokens are bytes spell them in letters of their own; others give the text."""
        token: str = self._backend.id_to_token(token_id) or ""
        if "ByteLevel" in self._decoders:
            if token_id in self._added:
                return str(self._added[token_id].content).encode()
            if token and all(letter in BYTE_OF_LETTER for letter in token):
                return bytes(BYTE_OF_LETTER[letter] for letter in token)
        if "ByteFallback" in self._decoders and (byte := _BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return piece.encode()

    def _piece(self, token_id: int, anchor: str, text: str) -> str:
        """Decoders drop the first token's leading space, so the token was decoded after an anchor."""
        if text.startswith(anchor) and len(text) > len(anchor):
            return text[len(anchor) :]
        token: str | None = self._backend.id_to_token(token_id)
        return f"<{token_id}>" if token is None else token


_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTE_OF_LETTER: Final = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(byte for byte in range(0x100) if byte not in _PRINTABLE)
}
"""The letter for each byte in byte-level vocabularies (GPT-2's): printable ones stand for themselves."""


def _decoders(decoder: dict[str, Any] | None) -> Iterator[str]:
    """Types of a tokenizer.json's decoder, those inside a sequence too."""
    if decoder is not None:
        yield str(decoder.get("type"))
        for part in decoder.get("decoders") or ():
            yield from _decoders(part)


def load_tokenizer(path: str, digest: str | None = None) -> Tokenizer:
    """Load `numbers:<vocabulary>`, or the tokenizer of a local folder (no network) or of a Hugging Face name.

    `digest` is that of a lake: one that latentlake before 0.7 made of a folder's tokenizer.json alone is
    served by the same tokenizer again. InputError when there is none, or when it has no fast (Rust) form.
    """
    if path.startswith(NUMBERS):
        return NumberTokenizer(path)
    folder = Path(path)
    import_module("tokenizers")  # where it is missing, that is not the fault of the path
    try:
        tokenizer = _from_json(folder) or _from_transformers(path)
        if digest not in (None, tokenizer.digest) and is_of_plain_class(folder):
            before = _as_before_version_7(folder)
            return before if before.digest == digest else tokenizer
        return tokenizer
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers and tokenizers raise whatever their loaders raise
        if "trust_remote_code" in str(error):
            raise InputError(
                f"the tokenizer of {path!r} requires Python code of its own, which is never run: set "
                "tokens.tokenizer to a folder with a tokenizer.json and a class of transformers"
            ) from None
        reason = " ".join(str(error).split())[:300]
        missing = "" if folder.exists() else "there is no such folder, so it was taken for a name; "
        raise storage_failure(error, file_of(error, path), "read") or InputError(
            f"no tokenizer could be loaded from {path!r} ({missing}{reason}); fix the path or name of the "
            "model, or set tokens.tokenizer"
        ) from None


def tokenizer_of(lake: Lake, path: str) -> Tokenizer:
    """The tokenizer that made the lake's tokens, which lies at `path` now; InputError for another one."""
    tokenizer = load_tokenizer(path, lake.tokenizer_digest)
    if tokenizer.digest != lake.tokenizer_digest:
        raise InputError(
            f"the tokenizer at {path} is not the one that the lake was tokenized with: give the location "
            "of that one as --tokenizer"
        )
    return tokenizer


def _from_json(folder: Path) -> LakeTokenizer | None:
    """The tokenizer of a tokenizer.json that is complete, for to import transformers takes seconds."""
    from tokenizers import Tokenizer

    if not is_of_plain_class(folder):
        return None
    special, text = special_tokens(folder), (folder / "tokenizer.json").read_text(encoding="utf-8")
    if not is_complete(folder, json.loads(text), special):
        return None
    backend = Tokenizer.from_str(text)
    ids = {key: backend.token_to_id(token) for key, token in special.named.items()}
    return LakeTokenizer(
        str(folder),
        backend,
        ids.get("bos_token"),
        ids.get("eos_token"),
        {i for token in special.texts if (i := backend.token_to_id(token)) is not None},
        cls_id=ids.get("cls_token"),
        sep_id=ids.get("sep_token"),
        splits=special.splits,
    )


def _as_before_version_7(folder: Path) -> LakeTokenizer:
    """As `_from_json`, by the names in tokenizer_config.json alone."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    named = {
        key: backend.token_to_id(token["content"] if isinstance(token, dict) else token)
        for key, token in config_of(folder).items()
        if key.endswith("_token") and isinstance(token, str | dict)
    }
    special = {i for i in named.values() if i is not None}
    return LakeTokenizer(str(folder), backend, named.get("bos_token"), named.get("eos_token"), special)


def _from_transformers(path: str) -> LakeTokenizer:
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    is_local = Path(path).is_dir()
    if get_tokenizer_config(path, local_files_only=is_local).get("gguf_file"):
        raise InputError(
            f"the tokenizer_config.json of {path!r} names a gguf_file, which may lie anywhere and is never "
            "opened: set tokens.tokenizer to a folder with a tokenizer.json"
        )
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=is_local, trust_remote_code=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"the tokenizer of {path!r} has no fast form (tokenizer.json); set tokens.tokenizer")
    return LakeTokenizer(
        path,
        backend,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        {i for i in tokenizer.all_special_ids if i is not None},
        cls_id=tokenizer.cls_token_id,
        sep_id=tokenizer.sep_token_id,
        splits=bool(tokenizer.split_special_tokens),
    )
