"""The tokenizer `numbers:<vocabulary>`: text that is numbers between white space, each of them a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from schemas.errors import InputError
from schemas.names import SpecialText
from schemas.records import digest_of
from schemas.values import I32

PREFIX = "numbers:"
MOST = 1 << 20
_KNOWN = b"0123456789 \t\r\n"


class NumberTokenizer:
    """Token ids are the numbers themselves, all below the vocabulary's size; there is no BOS and no EOS."""

    bos_id: Final = None
    eos_id: Final = None
    cls_id: Final = None
    sep_id: Final = None
    special_ids: Final = ()
    special_texts: Final = ()

    def __init__(self, name: str) -> None:
        """`name` is `numbers:<vocabulary>`; InputError when that is not a number from 1 to MOST."""
        size = name.removeprefix(PREFIX)
        if not (size.isascii() and size.isdigit() and len(size) < 9 and 1 <= int(size) <= MOST):
            raise InputError(
                f"tokens.tokenizer {name!r} names no vocabulary: in {PREFIX}N, N is from 1 to {MOST}"
            )
        self.size: Final = int(size)
        self.name: Final = f"{PREFIX}{self.size}"
        self.digest: Final = digest_of(["numbers", self.size])

    def encode_batch(self, texts: Sequence[str], special_text: SpecialText = "literal") -> list[I32]:  # noqa: ARG002
        """The numbers of each text, int32 [.]; InputError for one that holds something else."""
        return [self._encode(text) for text in texts]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each number and a space."""
        return [f"{int(i)} " for i in ids]

    def piece_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The same, in bytes."""
        return [piece.encode() for piece in self.pieces(ids)]

    def id_of(self, token: str) -> int | None:
        """The number that a text is, where it is below the vocabulary's size."""
        is_number = token.isascii() and token.isdigit() and len(token) < 9 and int(token) < self.size
        return int(token) if is_number else None

    def _encode(self, text: str) -> I32:
        if rest := text.encode("utf-8", "replace").translate(None, _KNOWN):
            some = rest[:20].decode("utf-8", "replace")
            raise InputError(
                f"the tokenizer {self.name!r} reads numbers and white space, but a document holds {some!r}: "
                "set tokens.tokenizer"
            )
        ids = np.fromstring(text.strip(), dtype=np.int64, sep=" ")
        if len(ids) and ids.max() >= self.size:
            raise InputError(
                f"a document holds the token {ids.max()}, beyond the vocabulary of {self.name!r}: set "
                "tokens.tokenizer"
            )
        return ids.astype(np.int32)
