"""Which features get a page: all, the top of a ranking, or a list."""

from __future__ import annotations

import re

import numpy as np
import polars as pl

from jobs.rank import ranking
from schemas.errors import InputError
from schemas.values import I64

DEFAULT_RANKING = "frequency"

FORMS = "all, top:100, top:100:COLUMN (of the feature table), or numbers and ranges such as 5,12,100:200"


def choose_features(features: pl.DataFrame, text: str) -> I64:
    """Numbers of the features that `text` (one of FORMS) means, ascending; `features` is the feature table.

    `top:N` goes by frequency. InputError for anything else, an unknown column, or a feature there is not.
    """
    if text == "all":
        return features["feature"].to_numpy().astype(np.int64)
    if found := re.fullmatch(r"top:(\d+)(?::(\w+))?", text, re.ASCII):
        best = ranking(features, found[2] or DEFAULT_RANKING).head(int(found[1]))
        if best.is_empty():
            raise InputError(f"--features {text!r} chooses no feature: give a number from 1 on")
        return np.sort(best["feature"].to_numpy().astype(np.int64))
    return _listed(text, features.height)


def _listed(text: str, d_sae: int) -> I64:
    """Numbers from 5,12,100:200 (a range is without its end)."""
    chosen = set[int]()
    for part in text.replace(" ", "").split(","):
        ends = re.fullmatch(r"(\d+)(?::(\d+))?", part, re.ASCII)
        if not ends:
            raise InputError(f"--features {text!r}: {part!r} is no feature; give {FORMS}")
        numbers = range(int(ends[1]), int(ends[2] or int(ends[1]) + 1))
        if not numbers or numbers.stop > d_sae:
            raise InputError(f"--features {text!r}: {part!r} is empty, or not within 0 to {d_sae - 1}")
        chosen.update(numbers)
    return np.array(sorted(chosen), np.int64)
