"""Which features a command is about: `all`, `1,5,10:20`, `top:100:sigma_over_mu`, `sigma_over_mu:0:50`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jobs.tables.ranking import rankable, ranking
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.values import U32

ALL, DEFAULT_RANKING = "all", "frequency"
_FORMS = (
    "give numbers and ranges such as 1,5,10:20, or for features also all, top:100:sigma_over_mu, or "
    "sigma_over_mu:0:50"
)


class Ranks(NamedTuple):
    """Ranks `start` to `stop` - 1 of the features by a column, rank 0 (for people #1) being the first.

    The order is that of `jobs.tables.ranking.ranking`: features with few active rows come last.
    """

    column: str
    start: int
    stop: int


def select_features(store: FeatureStore, site: str, text: str) -> U32:
    """Numbers of the features that `text` names, uint32 [n], ascending, each once; see `chosen_features`."""
    return np.array(sorted(chosen_features(store, site, text)), dtype=np.uint32)


def chosen_features(store: FeatureStore, site: str, text: str, option: str = "--features") -> list[int]:
    """The features that `text` names, each once, in its order.

    `all`: every feature of the SAE. `1,5,10:20`: these, ranges without their end. `top:N:COLUMN`: the N with
    the largest values of a column of the tables features and profile (nulls left out; of equal ones the lower
    number first; features with few active rows last, as in `rank`); `top:N` goes by frequency.
    `COLUMN:START:STOP`: these ranks by a column, `top:N:COLUMN` being COLUMN:0:N. Fewer where the ranking
    ends before.
    Raises InputError on anything else, on a feature that does not exist, and where nothing is named.
    """
    d_sae = store.site(site).d_sae
    if text.strip() == ALL:
        return list(range(d_sae))
    if (ranks := parse_ranks(text, option)) is None:
        return parse_numbers(text, option, d_sae)
    order = ranking(rankable(store, site, ranks.column), ranks.column)
    features: list[int] = order[ranks.start : ranks.stop]["feature"].to_list()
    if not features:
        raise InputError(
            f"{option} {text!r}: {order.height} of {d_sae} features have a value of {ranks.column}, and none "
            f"has rank {ranks.start} or a later one"
        )
    return features


def parse_ranks(text: str, option: str) -> Ranks | None:
    """`top:N`, `top:N:COLUMN` and `COLUMN:START:STOP`; None where it is a list of numbers, or none at all."""
    first, *rest = text.strip().split(":")
    # a list of numbers has a number or a comma before its first colon, as 10:20 and 1,5:7
    if not rest or _is_number(first) or "," in first or not first:
        return None
    if first == "top":
        if len(rest) > 2 or not _is_number(rest[0]) or not int(rest[0]) or "" in rest:
            raise InputError(f"{option} {text!r} is not top:N:COLUMN; {_FORMS}")
        return Ranks((rest[1:] or [DEFAULT_RANKING])[0], 0, int(rest[0]))
    if len(rest) != 2 or not all(map(_is_number, rest)):
        raise InputError(f"{option} {text!r} is not COLUMN:START:STOP; {_FORMS}")
    start, stop = map(int, rest)
    if start >= stop:
        raise InputError(f"{option} {text!r}: ranks {start} to {stop} are empty: give START below STOP")
    return Ranks(first, start, stop)


def parse_numbers(text: str, option: str, end: int) -> list[int]:
    """The numbers of `1,5,10:20` (10 to 19), each below `end`, each once, in their order."""
    # a dict, unlike a set, keeps the order in which they are given
    numbers: dict[int, None] = {}
    for part in text.split(","):
        numbers |= dict.fromkeys(_range(part.strip(), f"{option} {text!r}: {part.strip()!r}", end))
    return list(numbers)


def _range(part: str, what: str, end: int) -> range:
    """One part of a list: a number, or FIRST:END without its end."""
    first, colon, last = part.partition(":")
    if not _is_number(first) or (colon and not _is_number(last)):
        raise InputError(f"{what} is neither a number nor a range; {_FORMS}")
    numbers = range(int(first), int(last) if colon else int(first) + 1)
    if not numbers:
        raise InputError(f"{what} is an empty range; a range goes from FIRST to END, without END")
    if numbers.stop > end:
        raise InputError(f"{what} does not exist, or only in part: there are 0 to {end - 1:,}")
    return numbers


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
