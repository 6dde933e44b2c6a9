"""The page that finds features, and its answers as JSON; the questions are those of `latentlake find`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from jobs.explore.lake import Explored
from jobs.report.source import shortened
from jobs.report.strips import standalone, visible
from jobs.terminal.names import one_line
from pipeline.store import FeatureStore
from pipeline.store.reading.example_texts import ExampleTexts, text_pattern
from pipeline.store.reading.finding import (
    BY_FEATURE,
    BY_SIMILARITY,
    BY_TEXT,
    BY_TOKEN,
    by_columns,
    by_name,
    near_text,
    on_token,
    similar,
    tokens_of,
)
from schemas.errors import InputError

Kind = Literal["token", "text", "name", "where", "similar"]
ORDERS: dict[str, tuple[str, ...]] = {
    "token": BY_TOKEN,
    "text": BY_TEXT,
    "name": ("feature",),
    "where": (BY_FEATURE,),
    "similar": BY_SIMILARITY,
}
"""What the features of each kind of question are sorted by; by any column of theirs for `where`."""

HIDDEN = ("feature", "token_id", "row")
"""Columns of a table of features that the page has no column for."""


class Finder:
    """The questions of one store; the texts of examples are read at the first that needs them, once."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._texts: dict[str, ExampleTexts] = {}
        self._lock = threading.Lock()

    def texts(self, site: str) -> ExampleTexts:
        """Those of a site."""
        with self._lock:
            if site not in self._texts:
                self._texts[site] = ExampleTexts(self._store, site)
            return self._texts[site]

    def found(self, site: str, kind: Kind, q: str, where: list[str], by: str) -> pl.DataFrame:
        """The features that are found, best first."""
        store = self._store
        questions: dict[str, Callable[[], pl.DataFrame]] = {
            "token": lambda: on_token(store, site, tokens_of(store, site, q), where, by),
            "text": lambda: near_text(store, site, text_pattern(q), where, by, self.texts(site)),
            "name": lambda: by_name(store, site, q, where),
            "where": lambda: by_columns(store, site, [q, *where], by),
            "similar": lambda: similar(store, site, _number(q), by),
        }
        return questions[kind]()


def routes(lake: Explored) -> APIRouter:
    """The page and its answers."""
    router, store, finder = APIRouter(), lake.store, Finder(lake.store)

    @router.get("/sites/{site}/find", include_in_schema=False)
    def page(site: str) -> HTMLResponse:
        return lake.page(site, "find", orders=ORDERS)

    @router.get("/api/sites/{site}/find")
    def found(
        site: str,
        kind: Kind,
        q: Annotated[str, Query(max_length=2000)],
        where: Annotated[list[str] | None, Query()] = None,
        by: str = "",
        n: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """The first `n` features by a token, words in examples, a name, a condition, or similarity.

        `rows` hold a feature's number, its name and its values, in the order of `columns`; those found by
        words have the context and the text of their strongest example too.
        """
        site = store.require_features(site).name
        order = by or ORDERS[kind][0]
        table = finder.found(site, kind, q, [each for each in where or () if each.strip()], order)
        first = table.head(n)
        names = store.names(site, first["feature"])
        columns = [name for name in first.columns if name not in HIDDEN]
        answer: dict[str, Any] = {"total": table.height, "by": order, "columns": columns}
        cells = [_cells(first[name]) for name in columns]
        answer["rows"] = [
            {"feature": feature, "name": shortened(names.name(feature)), "values": list(values)}
            for feature, *values in zip(first["feature"].to_list(), *cells, strict=True)
        ]
        if kind == "text" and first.height:
            for row, example in zip(answer["rows"], examples_at(store, first["row"]), strict=True):
                row |= example
        if kind == "token" and first.height:
            tokens = store.token_texts(first["token_id"].to_list())
            for row, token in zip(answer["rows"], tokens, strict=True):
                row["token"] = standalone(token)
        return answer

    return router


def _number(text: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,12}\s*", text):
        raise InputError(f"{text!r} is no number of a feature")
    return int(text)


def _cells(values: pl.Series) -> list[Any]:
    """Values as JSON has them: no NaN, and text made visible."""
    if values.dtype == pl.String:
        return [None if value is None else one_line(value, 200) for value in values]
    return values.fill_nan(None).to_list() if values.dtype.is_float() else values.to_list()


def examples_at(store: FeatureStore, rows: pl.Series) -> list[dict[str, Any]]:
    """The context of each row, and the text around it: before, at the row, after."""
    described = store.whole_characters(store.describe_rows(rows.to_numpy().astype(np.uint64), 12, 8))
    examples = []
    columns = described.select("context", "position", "first_position", "token_ids")
    for context, position, first, ids in columns.iter_rows():
        spans = store.vocabulary.spans(ids)
        place = next(n for n, span in enumerate(spans) if position - first < span.stop)
        texts = [visible(span.text) for span in spans]
        parts = ["".join(texts[:place]), texts[place], "".join(texts[place + 1 :])]
        examples.append({"context": context, "example": parts})
    return examples
