"""A tally is the sums over receipts, whatever their order, and grows with none of them."""

from __future__ import annotations

import tracemalloc

from pipeline.monitor.tally import Tally
from tests.fixtures.receipts import receipt


def tally(*receipts):
    made = Tally()
    for each in receipts:
        made.add(each)
    return made


def test_sums_over_shards():
    result = tally(receipt("000000"), receipt("000001", rows=50, nnz=300, seconds=1.0))
    assert (result.shards, result.rows, result.nonzeros, result.underflow, result.objects) == (
        2,
        150,
        1000,
        2,
        4,
    )
    assert dict(result.bytes) == {"csr.zarr": 3000, "partials.parquet": 1000}
    assert result.size == 4000
    assert result.rate == 50
    assert result.devices == {"cpu"}


def test_of_several_looks_at_an_sae_the_first_shards_counts_in_any_order():
    looks = [receipt("000002", explained=0.2), receipt("000001", explained=0.1), receipt("000000")]
    assert tally(*looks).explained == tally(*reversed(looks)).explained == {"mid": ("000001", (0.1, None))}


def test_its_memory_does_not_grow_with_shards():
    result = tally(receipt())
    tracemalloc.start()
    for number in range(2000):
        result.add(receipt(f"{number:06d}"))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000
