"""The corpus of a known dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from pipeline.sources import Source, open_source
from pipeline.sources.generated.dictionary import strongest
from pipeline.synthetic.dictionary.generator import NumpyDictionary, all_blocks
from schemas.errors import InputError
from schemas.run.file import Corpus, parse_run_file
from tests.dictionary.test_generator import recipe
from tests.sources.conformance import StreamConformance


def opened(**changes: Any) -> Source:
    return open_source(Corpus(kind="dictionary", dictionary=recipe(**changes)))


class TestDictionary(StreamConformance):
    kind = "dictionary"

    def make_one(self, folder: Path, number: int) -> Source:
        return opened(documents=50, rows=3, seed=number)

    def test_it_can_be_read_again_even_after_a_reading_that_stopped_half_way(self, tmp_path: Path) -> None:
        source = self.make_one(tmp_path, 0)
        half = source.documents()
        assert next(half).number == 0
        half.close()  # type: ignore[attr-defined]
        assert_same(source, source)

    def test_the_digest_is_of_the_content(self, tmp_path: Path) -> None:
        first, same = self.make_one(tmp_path / "a", 0), self.make_one(tmp_path / "b", 0)
        assert first.digest() == same.digest() != self.make_one(tmp_path / "c", 1).digest()
        assert_same(first, same)


def assert_same(first: Source, second: Source) -> None:
    for a, b in zip(first.documents(), second.documents(), strict=True):
        assert (a.number, a.text, a.labels) == (b.number, b.text, b.labels)
        np.testing.assert_array_equal(a.values, b.values)


def test_documents_hold_the_rows_in_order_and_a_token_for_each():
    source = opened(documents=30, rows=5)
    documents = list(source.documents())
    blocks = list(all_blocks(NumpyDictionary(recipe(documents=30, rows=5))))
    x = np.concatenate([document.values for document in documents])
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, np.concatenate([block.x for block in blocks]))
    values = sparse.vstack([block.values for block in blocks]).toarray()
    tokens = [int(token) for document in documents for token in document.text.split()]
    assert tokens == [row.argmax() + 1 if row.any() else 0 for row in values]
    inputs = source.inputs()
    assert inputs is not None
    assert (inputs.width, inputs.dtype, inputs.shape) == (32, "float32", (32,))


def test_the_strongest_feature_counts_from_1_and_0_is_none():
    values = sparse.csr_matrix(np.array([[0, 2, 3], [0, 0, 0], [4, 4, 0]], np.float32))
    assert strongest(values).tolist() == [3, 0, 1]


CONTENT = {
    "corpus": {"kind": "dictionary", "dictionary": {"features": 4, "width": 8}},
    "model": {"loader": "inputs"},
    "sites": [{"sae": "x"}],
    "store": {"root": "y"},
}


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"kind": "dictionary"}, "corpus.dictionary is missing"),
        ({"path": "p"}, "corpus.path is for corpus.kind: text, not dictionary"),
        ({"kind": "text", "path": "p"}, "corpus.dictionary is for corpus.kind: dictionary, not text"),
        ({"dictionary": {"features": 4}}, "corpus.dictionary.width is missing"),
        (
            {"dictionary": {"features": 4, "width": 8, "probablity": 0.1}},
            "unknown key 'probablity' in corpus.dictionary; did you mean 'probability'",
        ),
        (
            {"dictionary": {"features": 4, "width": 8, "trees": [{"feature": 1, "childen": []}]}},
            "unknown key 'childen' in corpus.dictionary.trees.0; did you mean 'children'",
        ),
        (
            {"dictionary": {"features": 4, "width": 8, "trees": [{"feature": 4}]}},
            "names feature 4; features are numbered 0",
        ),
        (
            {"dictionary": {"features": 4, "width": 8, "probability": 2}},
            "probability is 2: must lie between 0 and 1",
        ),
    ],
)
def test_a_wrong_section_is_reported_in_a_sentence(corpus, message):
    section = {"kind": "dictionary"} if "kind" in corpus and len(corpus) == 1 else CONTENT["corpus"] | corpus
    with pytest.raises(InputError, match=message):
        parse_run_file(CONTENT | {"corpus": section}, "run.yaml")


def test_without_the_package_of_sae_lens_its_name_is_reported(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pipeline.sources.generated.saelens_dictionary", None)
    with pytest.raises(InputError, match=r"latentlake\[saelens\]"):
        list(opened(generator="saelens").documents())
