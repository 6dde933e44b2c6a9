"""Which features a command is about: `--features all`, `1,5,10:20`, or `top:100:sigma_over_mu`."""

from __future__ import annotations

import numpy as np

from jobs.rank import ranking
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.values import U32

ALL, DEFAULT_RANKING = "all", "frequency"
_FORMS = "give numbers and ranges such as 1,5,10:20, or of features also all, or top:100:sigma_over_mu"


def select_features(store: FeatureStore, site: str, text: str) -> U32:
    """Numbers of the features that `text` names, uint32 [n], ascending, each once.

    `all`: every feature of the SAE. `1,5,10:20`: these, ranges without their end. `top:N:COLUMN`: the N with
    the largest values of a column of the feature table (nulls left out; of equal ones the lower number);
    `top:N` goes by frequency.
    Raises InputError on anything else, on a feature that there is not, and where nothing is named.
    """
    d_sae = store.site(site).d_sae
    if text.strip() == ALL:
        return np.arange(d_sae, dtype=np.uint32)
    if text.startswith("top:"):
        return _first_ranked(store, site, text)
    return np.array(sorted(parse_numbers(text, "--features", d_sae)), dtype=np.uint32)


def parse_numbers(text: str, option: str, end: int) -> list[int]:
    """The numbers of `1,5,10:20` (10 to 19), each below `end`, each once, in their order."""
    numbers: dict[int, None] = {}
    for part in text.split(","):
        numbers |= dict.fromkeys(_range(part.strip(), f"{option} {text!r}: {part.strip()!r}", end))
    return list(numbers)


def _range(part: str, what: str, end: int) -> range:
    """One part of a list: a number, or FIRST:END without its end."""
    first, colon, last = part.partition(":")
    if not _is_number(first) or (colon and not _is_number(last)):
        raise InputError(f"{what} is neither a number nor a range; {_FORMS}")
    found = range(int(first), int(last) if colon else int(first) + 1)
    if not found:
        raise InputError(f"{what} is an empty range; it goes from FIRST to END, without END")
    if found.stop > end:
        raise InputError(f"{what} is not there, or not all of it: there are 0 to {end - 1:,}")
    return found


def _first_ranked(store: FeatureStore, site: str, text: str) -> U32:
    """The first of a ranking by a column of the feature table."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not _is_number(parts[1]) or not int(parts[1]):
        raise InputError(f"--features {text!r} is no top:N:COLUMN; {_FORMS}")
    column, table = (parts[2:] or [DEFAULT_RANKING])[0], store.scan_features(site)
    dtypes = table.collect_schema()
    known = [name for name, dtype in dtypes.items() if dtype.is_numeric() and name != "feature"]
    if column not in known:
        raise InputError(
            f"--features {text!r}: the feature table has no column {column!r}; it has {', '.join(known)}"
        )
    ranked = ranking(table.select("feature", column).collect(), column).head(int(parts[1]))
    if ranked.is_empty():
        raise InputError(f"--features {text!r}: no feature has a value of {column}")
    found: U32 = np.sort(ranked["feature"].to_numpy())
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
