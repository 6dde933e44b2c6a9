"""Whether a store was drawn from the dictionary of a truth, and whether this machine draws it again."""

from __future__ import annotations

import numpy as np

from pipeline.store import FeatureStore
from pipeline.store.records.tokens import read_token_shard
from pipeline.synthetic.dictionary.generator import NumpyDictionary
from pipeline.synthetic.dictionary.truth import KnownTruth
from schemas.errors import InputError
from schemas.values import F32

TOLERANCE = 1e-3
"""Of rows, relative to their length: far above rounding, far below another dictionary."""


def require_same_vectors(store: FeatureStore, known: KnownTruth) -> None:
    """InputError where the lake's first vectors are others than those drawn with the truth."""
    lake, shards = store.lake, store.links[0].shards
    # with a BOS or a separator rows of the lake are not, one by one, those of the corpus
    if lake.bos_id is not None or lake.separator_id is not None or not shards:
        return
    first = read_token_shard(store.layout, lake, shards[0], verify=False, inputs=True).inputs
    if first is not None and not equal_rows(first, known.first):
        raise InputError(
            f"the vectors of {store.layout.root} differ from those that its recipe gave when the truth was "
            "made: its directions or random numbers come from another version of latentlake, NumPy or "
            "sae-lens; run `latentlake make-dictionary` with the version of the store, or make the store "
            "again"
        )


def draws_again(known: KnownTruth) -> bool:
    """Whether NumPy draws here what it drew where the truth was made."""
    return not len(known.first) or equal_rows(NumpyDictionary(known.recipe).block(0).x, known.first)


def equal_rows(drawn: F32, first: F32) -> bool:
    """Whether rows are the same, as far as there are both, but for rounding."""
    rows = min(len(drawn), len(first))
    wrong = np.linalg.norm(drawn[:rows] - first[:rows]) if rows else 0.0
    return bool(wrong <= TOLERANCE * np.linalg.norm(first[:rows]))
