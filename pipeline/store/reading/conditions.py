"""Conditions on columns, such as `year > 1865 and party == 'Republican'`: text -> tree -> Polars expression.

    or          and ("or" and)*
    and         not ("and" not)*
    not         "not" not | "(" or ")" | comparison
    comparison  NAME SIGN VALUE            signs: = == != < <= > >= and ≤ ≥ =< =>

A name of other characters than letters, digits and _ stands in quotes. A value is a number (12,345, 1e-3,
3%), 'text' or "text", or a word. Whole numbers compare exactly, however large. A statistic of a table is
compared by = and != at the digits that are written, since it is copied from where it is printed rounded:
0.0123 is any number from 0.01225 to 0.01235; labels compare exactly. A missing value (null, NaN) fits no
comparison, and no negation of one: `and`, `or` and `not` are those of S. C. Kleene's three-valued logic.

`jobs/report/static/search.js` has the same grammar; tests/data/conditions.json holds the cases of both.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, NoReturn

import polars as pl

from schemas.errors import InputError

MOST_NESTED = 100
"""Parentheses and `not` within one another."""
MOST_COMPARISONS = 1_000

Kind = Literal["syntax", "column", "value"]
"""Of an error: the text is no condition, a column does not exist, or a value is not of its column's type."""

_SIGNS = {"==": "=", "≤": "<=", "≥": ">=", "=<": "<=", "=>": ">="}
_SIGN = re.compile("<=|>=|=<|=>|==|!=|[<>=≤≥]")
_WORD = re.compile("(?:[^\\s()<>=!≤≥]|!(?!=))+")
_KEYWORDS = ("and", "or", "not")
_TRUTHS = {"true": True, "false": False, "1": True, "0": False}
_NUMBER = re.compile(
    r"([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?(?:e([-+]?\d+))?(%?)", re.ASCII | re.IGNORECASE
)
_MOST_DIGITS = 400
"""Of a number, and the size of its exponent."""
_MOST_COMPARED = 20_000
"""Names, of those most alike in length, that a misspelt one is compared with."""


class ConditionError(InputError):
    """A condition that cannot be read; `kind` says what is wrong."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


class Comparison(NamedTuple):
    """`name sign value`, the sign one of = != < <= > >=."""

    name: str
    sign: str
    value: str
    is_quoted: bool = False


class And(NamedTuple):
    """All of its parts."""

    parts: tuple[Tree, ...]


class Or(NamedTuple):
    """One of its parts."""

    parts: tuple[Tree, ...]


class Not(NamedTuple):
    """Not its part."""

    part: Tree


Tree = Comparison | And | Or | Not


@dataclass(frozen=True)
class Column:
    """What a name of a condition stands for."""

    expression: pl.Expr
    dtype: pl.DataType
    is_statistic: bool = False
    """Of floats: whether = compares at the digits that are written."""


class Columns:
    """The columns that a condition may name; `noun`: what one is called in a sentence."""

    def __init__(self, columns: Mapping[str, Column], noun: str = "column") -> None:
        self._columns, self.noun = columns, noun

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def resolve(self, name: str, about: str) -> tuple[str, Column]:
        """The column of this name, in another case if there is but one; `about` begins the error's message.

        Raises ConditionError that names the one column that it shortens, or the nearest ones.
        """
        if name in self._columns:
            return name, self._columns[name]
        folded = [known for known in self._columns if known.casefold() == name.casefold()]
        if len(folded) == 1:
            return folded[0], self._columns[folded[0]]
        shortens = _shortened_by(name, self._columns)
        near = shortens if len(shortens) == 1 else nearest(name, self._columns) or shortens[:3]
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(self._columns) or 'none'}"
        )
        raise ConditionError(f"{about}: the store has no {self.noun} {name!r}; {hint}", "column")


class _Token(NamedTuple):
    kind: Literal["(", ")", "sign", "quoted", "word"]
    text: str
    place: int


def parse(text: str, about: str) -> Tree:
    """The tree of a condition; `about` begins an error's message, which names the place in the text.

    Raises ConditionError of kind syntax.
    """
    return _Parser(text, about).tree()


def expression(tree: Tree, columns: Columns, about: str) -> pl.Expr:
    """The Boolean expression of a tree, null where it is not known.

    Raises ConditionError of kind column or value.
    """
    if isinstance(tree, Comparison):
        name, column = columns.resolve(tree.name, about)
        return _compare(column, tree, f"{about}: {columns.noun} {name} is {column.dtype}")
    if isinstance(tree, Not):
        return ~expression(tree.part, columns, about)
    # Polars' horizontal functions follow Kleene too, and do not nest as & and | of many would
    parts = [expression(part, columns, about) for part in tree.parts]
    return pl.all_horizontal(parts) if isinstance(tree, And) else pl.any_horizontal(parts)


def comparisons(tree: Tree) -> Iterator[Comparison]:
    """Those of a tree, from left to right."""
    if isinstance(tree, Comparison):
        yield tree
        return
    for part in (tree.part,) if isinstance(tree, Not) else tree.parts:
        yield from comparisons(part)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The few of some names that are most alike, in whichever case they are written."""
    of_length = sorted(known, key=lambda each: (abs(len(each) - len(name)), each))[:_MOST_COMPARED]
    # reversed, so that of names that differ in case alone the most alike in length stays
    by_folded = {each.casefold(): each for each in reversed(of_length)}
    return [
        by_folded[each] for each in difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.6)
    ]


def _shortened_by(name: str, known: Iterable[str]) -> list[str]:
    """Names that it begins, or is a part of: `n_act` and `active` of `n_active`."""
    short = name.casefold()
    return [
        each for each in known if each.casefold().startswith(short) or short in each.casefold().split("_")
    ]


class _Parser:
    def __init__(self, text: str, about: str) -> None:
        self._text, self._about = text, about
        self._tokens, self._next, self._depth, self._comparisons = self._cut(), 0, 0, 0

    def _fail(self, problem: str, place: int | None = None) -> NoReturn:
        where = "at the end" if place is None else f"at character {place + 1} ({self._text[place:][:20]!r})"
        raise ConditionError(f"{self._about}: {where}, {problem}", "syntax")

    def _cut(self) -> list[_Token]:
        tokens, place, text = list[_Token](), 0, self._text
        while place < len(text):
            letter = text[place]
            if letter.isspace():
                place += 1
                continue
            if letter in "()":
                tokens.append(_Token("(" if letter == "(" else ")", letter, place))
                place += 1
            elif letter in "\"'":
                end = text.find(letter, place + 1)
                if end < 0:
                    self._fail("the quote is not closed", place)
                tokens.append(_Token("quoted", text[place + 1 : end], place))
                place = end + 1
            elif match := _SIGN.match(text, place):
                tokens.append(_Token("sign", _SIGNS.get(match[0], match[0]), place))
                place = match.end()
            else:
                match = _WORD.match(text, place)
                assert match is not None, "whatever else there is, is a word"
                tokens.append(_Token("word", match[0], place))
                place = match.end()
        return tokens

    def _peek(self, ahead: int = 0) -> _Token | None:
        place = self._next + ahead
        return self._tokens[place] if place < len(self._tokens) else None

    def _is_keyword(self, word: str) -> bool:
        token = self._peek()
        return token is not None and token.kind == "word" and token.text.lower() == word

    def tree(self) -> Tree:
        tree = self._or()
        if (rest := self._peek()) is not None:
            if rest.kind == ")":
                self._fail("this parenthesis was not opened", rest.place)
            self._fail(
                "between conditions stands `and` or `or`; text of several words stands in quotes", rest.place
            )
        return tree

    def _or(self) -> Tree:
        parts = [self._and()]
        while self._is_keyword("or"):
            self._next += 1
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Tree:
        parts = [self._not()]
        while self._is_keyword("and"):
            self._next += 1
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _not(self) -> Tree:
        token = self._peek()
        if token is None:
            self._fail("a condition is missing, such as n_active > 50")
        if self._is_keyword("not"):
            self._nest(token)
            part: Tree = Not(self._not())
        elif token.kind == "(":
            self._nest(token)
            part = self._or()
            closing = self._peek()
            if closing is None:
                self._fail("this parenthesis is not closed", token.place)
            if closing.kind != ")":
                self._fail(
                    "between conditions stands `and` or `or`; text of several words stands in quotes",
                    closing.place,
                )
            self._next += 1
        else:
            return self._comparison(token)
        self._depth -= 1
        return part

    def _nest(self, token: _Token) -> None:
        self._next += 1
        self._depth += 1
        if self._depth > MOST_NESTED:
            self._fail(f"parentheses and `not` are nested more than {MOST_NESTED} deep", token.place)

    def _comparison(self, name: _Token) -> Comparison:
        sign, value = self._peek(1), self._peek(2)
        is_keyword = name.kind == "word" and name.text.lower() in _KEYWORDS
        if name.kind not in ("word", "quoted") or is_keyword:
            self._fail("a condition should begin with the name of a column", name.place)
        if name.kind == "word" and name.text.startswith("!"):
            self._fail("write `not` for !", name.place)
        if sign is None or sign.kind != "sign":
            self._fail(
                "a name is followed by a comparison, such as COLUMN=VALUE or n_active > 50", name.place
            )
        if value is None:
            self._fail(f"{name.text[:80]} {sign.text} needs a value")
        if value.kind not in ("word", "quoted") or (value.kind == "word" and value.text.lower() in _KEYWORDS):
            self._fail(f"{name.text[:80]} {sign.text} needs a value", value.place)
        self._next += 3
        self._comparisons += 1
        if self._comparisons > MOST_COMPARISONS:
            self._fail(f"there are more than {MOST_COMPARISONS:,} comparisons", name.place)
        return Comparison(name.text, sign.text, value.text, value.kind == "quoted")


class Number(NamedTuple):
    """A number as it is written: `digits` times 10 to the `exponent`, the place of its last digit."""

    digits: int
    exponent: int

    @property
    def exact(self) -> Fraction:
        """Its value."""
        return self.digits * Fraction(10) ** self.exponent

    @property
    def nearest_float(self) -> float:
        """The float64 next to it; infinite where it is too large."""
        return float(f"{self.digits}e{self.exponent}")

    @property
    def rounded(self) -> tuple[float, float]:
        """The least and the largest number that is written so when it is rounded to these digits.

        Of 0 only itself: a statistic is 0 where there is nothing, however many zeros are written.
        """
        if not self.digits:
            return 0.0, 0.0
        low, high = (float(f"{10 * self.digits + half}e{self.exponent - 1}") for half in (-5, 5))
        return low, high


def read_number(text: str) -> Number | None:
    """The number that a text is; None where it is none, or of hundreds of digits."""
    match = _NUMBER.fullmatch(text) if len(text) <= _MOST_DIGITS else None
    if match is None or not (match[2] or match[3]):
        return None
    sign, whole, fraction, exponent, percent = match.groups(default="")
    power = int(exponent or 0)
    if abs(power) > _MOST_DIGITS:
        return None
    digits = int(whole.replace(",", "") + fraction)
    return Number(-digits if sign == "-" else digits, power - len(fraction) - 2 * bool(percent))


def _compare(column: Column, comparison: Comparison, about: str) -> pl.Expr:
    """`about` begins an error's message: the column, and its type."""
    _, sign, value, is_quoted = comparison
    known, dtype = column.expression, column.dtype
    if isinstance(dtype, pl.Boolean):
        truth = _TRUTHS.get(value.strip().lower())
        if truth is None:
            raise ConditionError(f"{about}, and {value!r} is not true or false", "value")
        if sign not in ("=", "!="):
            raise ConditionError(f"{about}, which is compared by = and != alone, not by {sign}", "value")
        return known if truth == (sign == "=") else ~known
    if isinstance(dtype, pl.String):
        return _signed(known, sign, pl.lit(_unicode(value, about)))
    if not dtype.is_numeric():
        raise ConditionError(f"{about}, which cannot be compared", "value")
    number = None if is_quoted else read_number(value)
    if number is None:
        raise ConditionError(f"{about}, and {value!r} is not a number", "value")
    if dtype.is_integer():
        return _compare_whole(known, dtype, sign, number.exact)
    known = known.fill_nan(None)  # to Polars NaN is the largest number
    if column.is_statistic and sign in ("=", "!="):
        low, high = (pl.lit(bound, dtype) for bound in number.rounded)
        same = known.is_between(low, high)
        return same if sign == "=" else ~same
    return _signed(known, sign, pl.lit(number.nearest_float, dtype))


def _signed(known: pl.Expr, sign: str, value: pl.Expr) -> pl.Expr:
    return {
        "=": known.eq,
        "!=": known.ne,
        "<": known.lt,
        "<=": known.le,
        ">": known.gt,
        ">=": known.ge,
    }[sign](value)


def _compare_whole(known: pl.Expr, dtype: pl.DataType, sign: str, value: Fraction) -> pl.Expr:
    """Whole numbers with any number, exactly: with the whole one below or above it, in their own type."""
    limit = math.ceil(value) if sign in ("<", ">=") else math.floor(value)
    bits = int(re.sub(r"\D", "", str(dtype)))  # of Int64
    low, high = (0, 1 << bits) if dtype.is_unsigned_integer() else (-(1 << bits - 1), 1 << bits - 1)
    if low <= limit < high and not (sign in ("=", "!=") and value != limit):
        return _signed(known, sign, pl.lit(limit, dtype))
    # no number of this type is so large, or equals a fraction: the same for all, and unknown where it is null
    is_so = {"=": False, "!=": True}.get(sign, (limit < low) == (sign in (">", ">=")))
    return known.eq(known) if is_so else known.ne(known)


def _unicode(value: str, about: str) -> str:
    """The text; ConditionError where its bytes were no text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConditionError(f"{about}, and {value!r} is not text in UTF-8", "value") from None
    return value
