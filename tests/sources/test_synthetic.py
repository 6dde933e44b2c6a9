"""The corpus that is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.sources import Source, open_source
from schemas.run.file import Corpus
from tests.sources.conformance import StreamConformance


def drawn(**requested: Any) -> Source:
    return open_source(Corpus.model_validate({"kind": "synthetic", "documents": 50, **requested}))


def tokens_of(source: Source) -> list[list[int]]:
    return [[int(word) for word in document.text.split(" ")] for document in source.documents()]


class TestSynthetic(StreamConformance):
    kind = "synthetic"

    def make_one(self, folder: Path, number: int) -> Source:
        return drawn(tokens_per_document=20, seed=number)


def test_lengths_are_skewed_about_their_mean_and_no_document_is_empty() -> None:
    lengths = np.array([len(tokens) for tokens in tokens_of(drawn(documents=4000, tokens_per_document=32))])
    assert lengths.min() >= 1
    assert abs(lengths.mean() - 32) < 5 * lengths.std() / 4000**0.5
    assert np.median(lengths) < 0.8 * lengths.mean()
    assert lengths.max() > 3 * lengths.mean()
    assert {len(tokens) for tokens in tokens_of(drawn(tokens_per_document=1))} == {1}


def test_tokens_are_numbers_of_the_vocabulary_low_ones_frequent() -> None:
    tokens = np.concatenate(tokens_of(drawn(documents=400, vocabulary=100)))
    assert (tokens.min(), tokens.max()) == (0, 99)
    share = np.bincount(tokens) / len(tokens)
    expected = np.diff(np.sqrt(np.arange(101) / 100))
    assert (np.abs(share - expected) < 5 * np.sqrt(expected / len(tokens))).all()


def test_a_document_depends_on_the_seed_and_its_number_alone() -> None:
    few, many = tokens_of(drawn(documents=5)), tokens_of(drawn(documents=3000))
    assert many[:5] == few
    assert tokens_of(drawn(documents=5, seed=1)) != few
    assert len({tuple(tokens[:4]) for tokens in many}) > 2900


@pytest.mark.parametrize(("vocabulary", "mean"), [(10, 40), (4096, 64), (5000, 3)])
def test_the_estimated_size_is_right(vocabulary: int, mean: int) -> None:
    source = drawn(documents=4000, tokens_per_document=mean, vocabulary=vocabulary)
    size = sum(len(document.text) for document in source.documents())
    estimate = source.estimated_bytes()
    assert estimate is not None
    assert abs(estimate - size) < (0.08 if mean > 10 else 0.3) * size  # the last word has no space after it
