from typing import Any, ClassVar

import numpy as np

from pipeline.statistics.features.histogram import bins_of
from pipeline.statistics.features.samples import FRACTION_BITS, Samples, row_hash
from tests.fixtures.tokens import as_one, fold, made_shards, same_frame, shard_around
from tests.statistics.conformance import StatisticConformance

SAMPLES = Samples()
MASK = 2**64 - 1


class TestSamples(StatisticConformance):
    name = "samples"
    never: ClassVar[dict[str, Any]] = {}
    once: ClassVar[dict[str, Any]] = {}


def splitmix64(feature: int, row: int) -> int:
    z = (row + feature * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64_for_ever() -> None:
    features, rows = (
        np.array([1, 0, 131_071, 2**32 - 1], np.uint32),
        np.array([0, 1, 2**40, 2**63], np.uint64),
    )
    expected = [splitmix64(int(f), int(r)) for f, r in zip(features, rows, strict=True)]
    assert row_hash(features, rows).tolist() == expected
    assert expected[0] == 0xE220A8397B1DCDAF  # the generator's published first output for seed 0


def test_each_bin_keeps_the_row_with_the_smallest_hash() -> None:
    shards = made_shards((50, 0, 400, 3), signed=True)
    whole = as_one(shards)
    for row in fold(SAMPLES, shards).iter_rows(named=True):
        values = whole.dense[:, row["feature"]]
        best: dict[int, int] = {}
        for at in sorted(np.flatnonzero(values), key=lambda r: splitmix64(row["feature"], int(r))):
            best.setdefault(int(bins_of(values[[at]], FRACTION_BITS)[0]), int(at))
        assert row["sample_rows"] == [best[b] for b in sorted(best)]
        assert row["sample_values"] == values[row["sample_rows"]].tolist()


def test_the_order_of_shards_does_not_matter() -> None:
    shards = made_shards((50, 60, 70))
    same_frame(fold(SAMPLES, shards), fold(SAMPLES, shards[::-1]))


def test_rows_are_numbered_in_the_lake_and_survive_beyond_32_bits() -> None:
    dense = np.zeros((3, 1), np.float32)
    dense[2, 0] = 1
    made = shard_around(dense, row_start=2**41)
    assert SAMPLES.partial(made.postings, made.tokens)["sample_rows"].to_list() == [[2**41 + 2]]
