"""Which features a command is about: `--features all`, `1,5,10:20`, or `top:100:sigma_over_mu`."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.values import U32

ALL = "all"
_FORMS = "give all, numbers and ranges such as 1,5,10:20, or top:100:sigma_over_mu"


def select_features(store: FeatureStore, site: str, text: str) -> U32:
    """Numbers of the features that `text` names, uint32 [n], ascending, each once.

    `all`: every feature of the SAE. `1,5,10:20`: these, ranges without their end. `top:N:COLUMN`: the N with
    the largest values of a column of the feature table (nulls left out; of equal ones the lower number).
    Raises InputError on anything else, on a feature that there is not, and where nothing is named.
    """
    d_sae = store.site(site).d_sae
    if text.strip() == ALL:
        return np.arange(d_sae, dtype=np.uint32)
    if text.startswith("top:"):
        return _strongest(store, site, text)
    chosen = {number for part in text.split(",") for number in _numbers(part.strip(), text, d_sae)}
    return np.array(sorted(chosen), dtype=np.uint32)


def _numbers(part: str, text: str, d_sae: int) -> range:
    """The features of one part of a list."""
    first, colon, last = part.partition(":")
    if not _is_number(first) or (colon and not _is_number(last)):
        raise InputError(f"--features {text!r}: {part!r} is neither a number nor a range; {_FORMS}")
    chosen = range(int(first), int(last) if colon else int(first) + 1)
    if not chosen:
        raise InputError(
            f"--features {text!r}: the range {part!r} is empty; it goes from FIRST to END, without END"
        )
    if chosen.stop > d_sae:
        raise InputError(f"--features {text!r}: {part!r} reaches beyond the SAE's features 0 to {d_sae - 1}")
    return chosen


def _strongest(store: FeatureStore, site: str, text: str) -> U32:
    parts = text.split(":")
    if len(parts) != 3 or not _is_number(parts[1]) or not int(parts[1]):
        raise InputError(f"--features {text!r} is no top:N:COLUMN; {_FORMS}")
    n, column = int(parts[1]), parts[2]
    table = store.scan_features(site)
    known = [
        name for name, dtype in table.collect_schema().items() if dtype.is_numeric() and name != "feature"
    ]
    if column not in known:
        raise InputError(
            f"--features {text!r}: the feature table has no column {column!r}; it has {', '.join(known)}"
        )
    ranked = table.select("feature", column).filter(pl.col(column).is_not_null() & ~pl.col(column).is_nan())
    ranked = ranked.sort(column, "feature", descending=[True, False]).head(n)
    found: U32 = np.sort(ranked.collect()["feature"].to_numpy())
    if not len(found):
        raise InputError(f"--features {text!r}: no feature has a value of {column}")
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
