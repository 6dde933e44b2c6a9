"""A corpus that is drawn: documents of numbers and spaces, which `numbers:<vocabulary>` tokenizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.sources.values import check_columns
from pipeline.statistics.splitmix import mixed
from pipeline.synthetic.hashing import LEVELS, hashes, skewed, stream
from schemas.records import digest_of
from schemas.run.file import Corpus
from schemas.values import I64, U64, Document

VERSION = 1
"""Of what is drawn from the same parameters."""

_LENGTHS, _TOKENS = 1 << 32, 1 << 33
"""Streams of random numbers, none of them a synthetic SAE's."""

_BLOCK = 1 << 18
"""Tokens drawn at once."""


class SyntheticSource:
    """Documents of at least one token; each depends on the seed and its number alone."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._levels: I64 = 1 + skewed(corpus.tokens_per_document - 1, 0)
        self._words = [str(token) for token in range(corpus.vocabulary)]

    def describe(self) -> dict[str, Any]:
        """The parameters; a path and a text column there are none."""
        section = self._corpus.model_dump(
            mode="json", include={"kind", "documents", "tokens_per_document", "vocabulary", "seed"}
        )
        return {**section, "label_columns": []}

    def digest(self) -> str:
        """Of the parameters."""
        return digest_of({**self.describe(), "version": VERSION})

    def label_dtypes(self) -> dict[str, str]:
        """There are no labels."""
        check_columns(self._corpus.label_columns, (), "a synthetic corpus")
        return {}

    def inputs(self) -> None:
        """There are no vectors."""

    def estimated_bytes(self) -> int | None:
        """What is expected: a token takes its digits and a space."""
        vocabulary = self._corpus.vocabulary
        share = np.diff(np.sqrt(np.arange(vocabulary + 1) / vocabulary))
        width = np.array([len(word) + 1 for word in self._words])
        return int(self._corpus.documents * float(self._levels.mean()) * float((share * width).sum()))

    def documents(self) -> Iterator[Document]:
        """The documents, drawn some at a time."""
        step = max(_BLOCK // self._corpus.tokens_per_document, 1)
        for first in range(0, self._corpus.documents, step):
            numbers = np.arange(first, min(first + step, self._corpus.documents), dtype=np.uint64)
            lengths, tokens = self._draw(numbers)
            ends = np.cumsum(lengths).tolist()
            for number, start, end in zip(numbers.tolist(), [0, *ends], ends, strict=False):
                yield Document(number, " ".join([self._words[token] for token in tokens[start:end]]))

    def _draw(self, numbers: U64) -> tuple[I64, list[int]]:
        """Tokens of each of some documents, int64 [.], and which, one after another.

        Token t of V has the probability sqrt((t + 1) / V) - sqrt(t / V): low ones are frequent.
        """
        draw = hashes(numbers, stream(self._corpus.seed, _LENGTHS))
        lengths: I64 = self._levels[draw & np.uint64(LEVELS - 1)]
        starts = np.cumsum(lengths) - lengths
        # a token is drawn by its place in its document, so that documents can be drawn in any pieces
        place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        key = np.repeat(hashes(numbers, stream(self._corpus.seed, _TOKENS)), lengths)
        bits = hashes(place.astype(np.uint64), np.uint64(0)) ^ key
        half, vocabulary = mixed(bits) >> np.uint64(32), np.uint64(self._corpus.vocabulary)
        # the square of an even draw has the distribution function sqrt; in integers, for all machines
        squared = half * half >> np.uint64(32)
        return lengths, (squared * vocabulary >> np.uint64(32)).tolist()
