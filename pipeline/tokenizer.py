"""Tokenizers as the lake uses them: those of Hugging Face (Rust, in batches, adding nothing), and numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from pipeline.number_tokenizer import PREFIX as NUMBERS
from pipeline.number_tokenizer import NumberTokenizer
from schemas.errors import InputError
from schemas.records import digest_of
from schemas.values import I32

_IRRELEVANT = ("version", "truncation", "padding", "post_processor")
"""Parts of a tokenizer.json that can't change what `encode_batch` gives."""

_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of transformers that add nothing to a tokenizer.json."""

_ANCHOR = "a"


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
    def special_ids(self) -> tuple[int, ...]:
        """Ids of every special token, ascending."""

    @property
    def digest(self) -> str:
        """sha256 of all that decides which ids a text has and which of them are special."""

    @property
    def size(self) -> int:
        """One more than the largest token id."""

    def encode_batch(self, texts: Sequence[str]) -> list[I32]:
        """Token ids of each text, int32 [.]."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token puts into a text, for display."""


class LakeTokenizer:
    """Text to token ids, without BOS, EOS or anything else that the text does not hold.

    Text that spells a special token (`<|endoftext|>`) is text like any other, unless the vocabulary itself,
    not only the list of special tokens, holds that spelling (some WordLevel and Unigram vocabularies).
    Batches run on all cores and without the GIL; TOKENIZERS_PARALLELISM is left to the user, because only
    while it is unset does the library protect a process that forks.
    """

    def __init__(self, name: str, backend: Any, bos_id: int | None, eos_id: int | None, special: set[int]):
        """Wrap a `tokenizers.Tokenizer`, which is ours to change."""
        self.name: Final = name
        self.bos_id: Final = bos_id
        """Id of BOS; 0 is an id, None is none."""
        self.eos_id: Final = eos_id
        named = {i for i in (bos_id, eos_id) if i is not None}
        added = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.special_ids: Final = tuple(sorted(special | added | named))
        """Ids of every special token, ascending: BOS, EOS, padding, unknown, and those of chat formats."""
        self._backend = backend
        self.digest: Final = self._digest()
        """sha256 of all that decides which ids a text has and which of them are special."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[I32]:
        """Token ids of each text, int32 [.]."""
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in found]

    @property
    def size(self) -> int:
        """One more than the largest token id (a vocabulary may have gaps)."""
        ids: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return 1 + max(ids.values())

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token puts into a text, for display: leading spaces stay, half a character is U+FFFD."""
        distinct = sorted({int(i) for i in ids})
        anchor = self._backend.encode(_ANCHOR, add_special_tokens=False).ids
        alone, *decoded = self._backend.decode_batch(
            [anchor, *([*anchor, i] for i in distinct)], skip_special_tokens=False
        )
        piece = {i: self._piece(i, alone, text) for i, text in zip(distinct, decoded, strict=True)}
        return [piece[int(i)] for i in ids]

    def _piece(self, token_id: int, anchor: str, text: str) -> str:
        """Decoders drop the first token's leading space, so the token was decoded behind an anchor."""
        if text.startswith(anchor) and len(text) > len(anchor):
            return text[len(anchor) :]
        token: str | None = self._backend.id_to_token(token_id)
        return f"<{token_id}>" if token is None else token

    def _digest(self) -> str:
        content = json.loads(self._backend.to_str())
        # A library that learns a new option writes it as null for old tokenizers: that is no difference.
        used = {key: value for key, value in content.items() if key not in _IRRELEVANT and value is not None}
        return digest_of([used, self.bos_id, self.eos_id, self.special_ids])


def load_tokenizer(path: str) -> Tokenizer:
    """Load `numbers:<vocabulary>`, or the tokenizer of a local folder (no network) or of a Hugging Face name.

    InputError when there is none, or when it has no fast (Rust) form.
    """
    if path.startswith(NUMBERS):
        return NumberTokenizer(path)
    folder = Path(path)
    try:
        return _from_json(folder) if _is_plain(folder) else _from_transformers(path)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers and tokenizers raise whatever their loaders raise
        reason = " ".join(str(error).split())[:300]
        missing = "" if folder.exists() else "there is no such folder here, so it was taken for a name; "
        raise InputError(
            f"no tokenizer could be loaded from {path!r} ({missing}{reason}); mend the path or name of the "
            "model, or set tokens.tokenizer"
        ) from None


def _config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return content


def _is_plain(folder: Path) -> bool:
    """Whether tokenizer.json alone says it all, so that transformers (seconds to import) is not needed."""
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    return all(file.is_file() for file in files) and _config(folder).get("tokenizer_class") in _PLAIN_CLASSES


def _from_json(folder: Path) -> LakeTokenizer:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    named = {
        key: backend.token_to_id(token["content"] if isinstance(token, dict) else token)
        for key, token in _config(folder).items()
        if key.endswith("_token") and isinstance(token, str | dict)
    }
    special = {i for i in named.values() if i is not None}
    return LakeTokenizer(str(folder), backend, named.get("bos_token"), named.get("eos_token"), special)


def _from_transformers(path: str) -> LakeTokenizer:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(path, local_files_only=Path(path).is_dir(), trust_remote_code=False)
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"the tokenizer of {path!r} has no fast form (tokenizer.json); set tokens.tokenizer")
    return LakeTokenizer(path, backend, found.bos_token_id, found.eos_token_id, set(found.all_special_ids))
