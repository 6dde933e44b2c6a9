"""The grammar of conditions in Python: the cases that the report's search box shares, and its sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.store.reading.conditions import Column, Columns, ConditionError, expression, parse
from schemas.tables.tables import Schema

SHARED = json.loads((Path(__file__).parents[1] / "data/conditions.json").read_text(encoding="utf-8"))
KINDS: dict[str, tuple[pl.DataType, bool]] = {
    "whole": (pl.Int64(), False),
    "statistic": (pl.Float64(), True),
    "exact": (pl.Float64(), False),
    "text": (pl.String(), False),
    "truth": (pl.Boolean(), False),
}
COLUMNS = Columns({name: Column(pl.col(name), *KINDS[c["kind"]]) for name, c in SHARED["columns"].items()})
TABLE = pl.DataFrame(
    {name: pl.Series(c["values"], dtype=KINDS[c["kind"]][0]) for name, c in SHARED["columns"].items()}
)


def statistics_of(schema: Schema) -> Columns:
    return Columns({name: Column(pl.col(name), dtype, is_statistic=True) for name, dtype in schema.items()})


def condition(text: str, columns: Columns) -> pl.Expr:
    about = f"--where {text!r}"
    return expression(parse(text, about), columns, about)


def rows(text: str, table: pl.DataFrame = TABLE, columns: Columns = COLUMNS) -> list[int]:
    fits = table.select(fits=condition(text, columns)).to_series()
    return [row for row, fit in enumerate(fits) if fit]


@pytest.mark.parametrize("case", SHARED["cases"], ids=lambda case: case["text"][:60])
def test_the_shared_cases(case: dict[str, Any]) -> None:
    if "error" not in case:
        assert rows(case["text"]) == case["rows"]
        return
    with pytest.raises(ConditionError) as refused:
        condition(case["text"], COLUMNS)
    assert refused.value.kind == case["error"]
    assert "\n" not in str(refused.value)
    if "meant" in case:
        assert f"; did you mean {case['meant']}?" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("n_active > 5 cluster = 1", "at character 14 ('cluster = 1'), between conditions stands `and`"),
        ("(n_active > 5", "at character 1 ('(n_active > 5'), this parenthesis is not closed"),
        ("n_active > 5)", "at character 13 (')'), this parenthesis was not opened"),
        ("n_active > 5 and", "at the end, a condition is missing, such as n_active > 50"),
        ("party = 'Whig", 'at character 9 ("\'Whig"), the quote is not closed'),
        ("n_active >", "at the end, n_active > needs a value"),
        ("!(n_active > 5)", "write `not` for !"),
        ("n_actve > 3", "the store has no column 'n_actve'; did you mean n_active or mean_active?"),
        ("active > 3", "did you mean n_active or mean_active?"),
        ("n_active > many", "column n_active is Int64, and 'many' is not a number"),
        ("veto < true", "column veto is Boolean, which is compared by = and != alone, not by <"),
        ("party = \udcff", "is not text in UTF-8"),
    ],
)
def test_an_error_names_the_place_or_what_is_nearest(text: str, sentence: str) -> None:
    with pytest.raises(ConditionError) as refused:
        condition(text, COLUMNS)
    assert sentence in str(refused.value)
    assert str(refused.value).startswith(f"--where {text!r}: ")


def test_whole_numbers_compare_exactly_beyond_what_a_float_holds() -> None:
    values = [(1 << 63) - 1, (1 << 63) - 2, -(1 << 63), None]
    table = pl.DataFrame({"n": pl.Series(values, dtype=pl.Int64)})
    columns = statistics_of({"n": pl.Int64()})
    assert rows("n = 9223372036854775807", table, columns) == [0]
    assert rows("n < 9223372036854775807", table, columns) == [1, 2]
    assert rows("n >= 9223372036854775806.5", table, columns) == [0]
    assert rows("n <= 9223372036854775808", table, columns) == [0, 1, 2]
    assert rows("n != 9223372036854775808", table, columns) == [0, 1, 2]
    assert rows("n < -9223372036854775808", table, columns) == []
    unsigned = pl.DataFrame({"n": pl.Series([0, (1 << 64) - 1], dtype=pl.UInt64)})
    columns = statistics_of({"n": pl.UInt64()})
    assert rows("n > 18446744073709551614", unsigned, columns) == [1]
    assert rows("n > -1", unsigned, columns) == [0, 1]
    assert rows("n = -1", unsigned, columns) == []


def test_a_statistic_is_found_by_what_is_printed_of_it() -> None:
    values = [0.012349999, 3.14159e-7, 123.456, 1 / 3, -2 / 3, 65504.0, 5e-324]
    for dtype in (pl.Float32(), pl.Float64()):
        table = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
        columns = statistics_of({"x": dtype})
        for place, value in enumerate(table["x"]):
            for digits in (1, 3, 6, 17):
                assert place in rows(f"x = {value:.{digits}g}", table, columns)
                assert place in rows(f"x = {value:.{digits - 1}e}", table, columns)


def test_nan_is_a_missing_value() -> None:
    table = pl.DataFrame({"x": [float("nan"), 1.0, None]})
    columns = statistics_of({"x": pl.Float64()})
    assert rows("x > 0", table, columns) == [1]
    assert rows("not x > 5", table, columns) == [1]
    assert rows("x != 5", table, columns) == [1]


def test_a_name_of_other_letters_stands_in_quotes_or_is_a_word() -> None:
    table = pl.DataFrame({"birth year": [1809, 1900], "Ort-Größe": [1.0, 2.0], "and": ["a", "b"]})
    names = {"birth year": pl.Int64(), "Ort-Größe": pl.Float64(), "and": pl.String()}
    columns = Columns({name: Column(pl.col(name), dtype) for name, dtype in names.items()})
    assert rows("'birth year' < 1850 and Ort-Größe = 1", table, columns) == [0]
    assert rows('"and" = b', table, columns) == [1]


def test_many_comparisons_are_fine_and_too_many_are_refused() -> None:
    assert rows(" or ".join(["n_active = 50"] * 1000)) == [1]
    with pytest.raises(ConditionError, match="more than 1,000 comparisons"):
        rows(" or ".join(["n_active = 50"] * 1001))
