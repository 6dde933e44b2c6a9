"""A corpus of vectors whose features are known: drawn from the run file's `corpus.dictionary`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from scipy import sparse

from pipeline.synthetic.dictionary.generator import VERSION, DictionaryGenerator, NumpyDictionary, all_blocks
from schemas.errors import InputError
from schemas.records import Inputs, digest_of
from schemas.run.dictionary_corpus import Dictionary
from schemas.run.file import Corpus
from schemas.values import I64, Document


class DictionarySource:
    """Documents of `rows` vectors each; the token of a vector is the number of its strongest feature.

    Tokens count features from 1; 0 is a vector in which none fires (of equal ones, the lowest).
    """

    def __init__(self, corpus: Corpus) -> None:
        assert corpus.dictionary is not None
        self._recipe = corpus.dictionary

    def describe(self) -> dict[str, Any]:
        """The recipe; a path and a text column there are none."""
        return {"kind": "dictionary", "dictionary": self._recipe.model_dump(mode="json"), "label_columns": []}

    def digest(self) -> str:
        """Of the recipe."""
        return digest_of({**self.describe(), "version": VERSION})

    def label_dtypes(self) -> dict[str, str]:
        """There are no labels."""
        return {}

    def estimated_bytes(self) -> int | None:
        """About how many bytes its tokens take."""
        width = len(str(self._recipe.features)) + 1
        return int(self._recipe.documents * self._recipe.rows * width)

    def inputs(self) -> Inputs:
        """A vector for each token."""
        return Inputs(width=self._recipe.width, dtype="float32", shape=(self._recipe.width,))

    def documents(self) -> Iterator[Document]:
        """The documents, drawn some at a time."""
        rows, number = self._recipe.rows, 0
        for block in all_blocks(open_dictionary(self._recipe)):
            tokens = strongest(block.values)
            for first in range(0, len(tokens), rows):
                some = slice(first, first + rows)
                yield Document(number, " ".join(map(str, tokens[some].tolist())), (), block.x[some])
                number += 1


def open_dictionary(recipe: Dictionary) -> DictionaryGenerator:
    """The generator that the recipe asks for; InputError when its package is absent."""
    if recipe.generator == "latentlake":
        return NumpyDictionary(recipe)
    try:
        module = import_module("pipeline.sources.generated.saelens_dictionary")
    except ImportError as error:
        raise InputError(
            f"corpus.dictionary.generator: saelens needs the package ({error}): pip install "
            '"latentlake[saelens]"'
        ) from None
    generator: DictionaryGenerator = module.SaelensDictionary(recipe)
    return generator


def strongest(values: sparse.csr_matrix) -> I64:
    """1 + the feature of largest value in each row, 0 where there is none; int64 [N]."""
    numbers: I64 = np.asarray(values.argmax(axis=1)).ravel().astype(np.int64) + 1
    # argmax of a row without values is 0, which would be the first feature
    numbers[np.diff(values.indptr) == 0] = 0
    return numbers
