"""Batches of x from a store: shuffled, each row once, split, and gone on with exactly."""

import json
import pickle
import shutil
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch

from jobs.lake.extract import extract
from jobs.lake.tokenize import tokenize
from pipeline.store import FeatureStore
from pipeline.store.formats import dense as dense_module
from pipeline.training.dense_dataset import DenseDataset, DenseLoader, Order, Reader, _Opened
from schemas.errors import InputError
from tests.fixtures.runs import run_file, write_corpus

pytestmark = pytest.mark.slow

BATCH = 50


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Some 2,500 rows of 7 shards in chunks of 32 rows, and x of every stored row by its number."""
    folder = tmp_path_factory.mktemp("lake")
    write_corpus(folder / "corpus.parquet", documents=40)
    from tests.kit import write_tiny_tokenizer

    write_tiny_tokenizer(folder / "tokenizer")
    sites = [{"name": "low", "hook_name": "layers.0", "positions": [0, 14]}]
    run = run_file(folder, sites=sites, store={"layouts": ["dense"]}, tokens={"shard_tokens": 400})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_module, "CHUNK_BYTES", 32 * 16 * 4)
        tokenize(run)
        extract(run)
        yield run.store.root


@pytest.fixture(scope="module")
def known(lake):
    """Row -> x of the stored rows."""
    dense = FeatureStore.open(lake).dense("low")
    return {
        int(place) + shard.record.row_start: shard.read()[place]
        for shard in dense
        for place in np.flatnonzero(dense.stored(shard))
    }


def dataset(lake, **changes):
    options = {"batch_rows": BATCH, "buffer_rows": 300, "shards_at_once": 3, "numbers": True, "seed": 5}
    return DenseDataset(lake, "low", **(options | changes))


def flat(lists):
    return [each for one in lists for each in one]


def numbers(batches):
    return [rows.tolist() for _, rows in batches]


def test_an_epoch_has_each_stored_row_once_with_its_x(lake, known):
    batches = list(dataset(lake))
    rows = np.concatenate(numbers(batches))
    assert sorted(rows) == sorted(known)
    x = torch.cat([x for x, _ in batches])
    assert x.dtype == torch.float32
    assert (x.numpy() == np.stack([known[row] for row in rows])).all()
    assert {len(each) for each in numbers(batches)[:-1]} == {BATCH}


def test_rows_are_well_mixed_and_each_epoch_has_its_own_order(lake, known):
    data = dataset(lake)
    first, second = numbers(data), numbers(data)
    assert sorted(flat(first)) == sorted(flat(second))
    assert first[0] != second[0]
    assert numbers(dataset(lake, seed=6))[0] != first[0]
    assert numbers(dataset(lake)) == first
    shards = np.array([record.row_start for record in FeatureStore.open(lake).shards])
    mixed = [len(np.unique(np.searchsorted(shards, batch, side="right"))) > 1 for batch in first]
    assert np.mean(mixed) > 0.9
    assert abs(np.corrcoef(flat(first), np.arange(len(known)))[0, 1]) < 0.5


@pytest.mark.parametrize(("ranks", "workers"), [(1, 3), (3, 1), (2, 2), (40, 2)])
def test_ranks_and_workers_share_an_epoch_without_overlap(lake, known, ranks, workers):
    result = []
    for rank in range(ranks):
        data = dataset(lake, rank=rank, world_size=ranks)
        for worker in range(workers):
            result += numbers(batch for batch, _ in data.batches(data.position, data.reader(worker, workers)))
    assert sorted(flat(result)) == sorted(known)


@pytest.mark.parametrize("taken", [0, 1, 7, 25, 51, 60])
def test_who_goes_on_gets_what_was_left(lake, taken):
    whole = dataset(lake)
    expected = numbers(whole) + numbers(whole)
    broken = dataset(lake)
    got = numbers(islice(_epochs(broken, 2), taken))
    state = json.loads(json.dumps(broken.state_dict()))
    again = dataset(lake)
    again.load_state_dict(state)
    got += numbers(_epochs(again, 2 if taken < len(expected) / 2 else 1))
    assert got == expected


def _epochs(data, n):
    for _ in range(n):
        yield from data


@pytest.mark.parametrize("taken", [3, 24, 50, 52])
def test_a_loader_of_readers_in_turn_goes_on_exactly(lake, known, taken, monkeypatch):
    """The turns, in this process: workers that end at different batches are passed over alike."""
    monkeypatch.setattr(DenseLoader, "_stream", _here)
    expected = numbers(DenseLoader(dataset(lake), 3))
    assert sorted(flat(expected)) == sorted(known)
    loader = DenseLoader(dataset(lake), 3)
    got = numbers(islice(loader, taken))
    again = DenseLoader(dataset(lake), 3)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert (got + numbers(again))[: len(expected)] == expected


def test_who_goes_on_at_the_end_of_an_epoch_begins_the_next_with_the_first_worker(lake, monkeypatch):
    """The first worker gives one batch more, so the turn is the second's when the epoch is over."""
    monkeypatch.setattr(DenseLoader, "_stream", _here)
    shares = ((seed, [rows_of(dataset(lake, seed=seed), n) for n in (0, 1)]) for seed in range(9))
    seed, fewer = next((seed, second) for seed, (first, second) in shares if first > second + 2)
    data = partial(dataset, lake, batch_rows=fewer // 2 + 1, seed=seed)
    assert [-(-rows_of(data(), n) // data().batch_rows) for n in (0, 1)] == [3, 2]
    loader = DenseLoader(data(), 2)
    expected = numbers(loader) + numbers(loader)
    broken, again = DenseLoader(data(), 2), DenseLoader(data(), 2)
    got = numbers(islice(broken, 5))
    again.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    assert got + numbers(again) == expected
    assert got + numbers(broken) == expected


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_a_state_after_a_full_last_batch_goes_on_with_the_next_epoch_at_once(lake, workers, monkeypatch):
    """What was given ends with the epoch, which the position does not know: no next buffer was looked for."""
    if workers:
        monkeypatch.setattr(DenseLoader, "_stream", _here)
    options = {"shards": dataset(lake).shards[:2]}
    n_rows = len(flat(numbers(dataset(lake, **options))))
    batch_rows = 1 if workers else next(n for n in range(n_rows // 2, 0, -1) if n_rows % n == 0)

    def made():
        data = dataset(lake, batch_rows=batch_rows, **options)
        return data if workers is None else DenseLoader(data, workers)

    whole = made()
    expected = numbers(whole) + numbers(whole)
    broken, again = made(), made()
    got = numbers(islice(broken, n_rows // batch_rows))
    again.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    assert got + numbers(again) == expected
    assert got + numbers(broken) == expected


def test_a_reader_without_a_block_says_so_instead_of_looking_for_ever(lake):
    """Some 80 blocks: the last of 200 ranks has none, in any epoch."""
    loader = DenseLoader(dataset(lake, rank=199, world_size=200))
    assert numbers(loader) == []
    with pytest.raises(InputError, match=r"rank 199 of 200 has no row of site 'low' .* fewer ranks"):
        next(loader.endless())


def rows_of(data, worker):
    return len(flat(numbers(batch for batch, _ in data.batches(data.position, data.reader(worker, 2)))))


def _here(loader, worker):
    reader = loader.dataset.reader(worker, loader.workers)
    return iter(loader.dataset.batches(loader._positions[worker], reader))


@pytest.fixture
def growing(lake, tmp_path):
    """A copy of the lake that lacks two shards, and what commits them."""
    root = shutil.copytree(lake, tmp_path / "store")
    markers = sorted(next((root / "passes").glob("*/commits")).iterdir())
    late = {path: path.read_bytes() for path in (markers[1], markers[-1])}
    for path in late:
        path.unlink()
    return root, lambda: [path.write_bytes(data) for path, data in late.items()]


def test_a_copy_in_another_process_reads_the_shards_of_the_first(growing):
    """A worker that opens the store later may see more shards than the process that started it."""
    root, commit = growing
    data = dataset(root)
    expected = numbers(dataset(root))
    sent = pickle.dumps(data)
    commit()
    assert numbers(pickle.loads(sent)) == expected
    assert numbers(data) == expected
    assert len(flat(numbers(dataset(root)))) > len(flat(expected))


def test_ranks_that_start_at_different_times_share_the_shards_that_the_first_names(growing):
    root, commit = growing
    first = dataset(root, rank=0, world_size=2)
    expected = sorted(flat(numbers(dataset(root))))
    commit()
    second = dataset(root, rank=1, world_size=2, shards=first.shards)
    assert sorted(flat(numbers(first) + numbers(second))) == expected
    with pytest.raises(InputError, match="saved with receipts"):
        dataset(root).load_state_dict(dataset(root, shards=first.shards).state_dict())
    with pytest.raises(InputError, match="has no committed shard 'no'"):
        dataset(root, shards=["no"])


def test_shards_that_were_made_anew_meanwhile_are_refused(growing):
    root, _ = growing
    sent = pickle.dumps(dataset(root))
    marker = sorted(next((root / "passes").glob("*/commits")).iterdir())[0]
    receipt = json.loads(marker.read_bytes())
    marker.write_text(json.dumps(receipt | {"tokens_sha256": "0" * 64}))
    with pytest.raises(InputError, match="differ from those when the dataset was created"):
        next(iter(pickle.loads(sent)))


def test_workers_of_processes_give_and_resume_the_same(lake):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenseLoader, "_stream", _here)
        expected = numbers(DenseLoader(dataset(lake), 2))
    loader = DenseLoader(dataset(lake), 2)
    got = numbers(islice(loader, 11))
    again = DenseLoader(dataset(lake), 2)
    again.load_state_dict(loader.state_dict())
    assert got + numbers(again) == expected


def test_an_endless_loader_goes_from_epoch_to_epoch(lake, known):
    batches = islice(DenseLoader(dataset(lake)).endless(), 3 * (len(known) // BATCH + 1))
    rows = flat(numbers(batches))
    assert np.unique(rows, return_counts=True)[1].tolist() == [3] * len(known)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 9}, "saved with seed 5, here it is 9"),
        ({"batch_rows": 10}, "saved with batch_rows 50, here it is 10"),
        ({"rank": 1, "world_size": 2}, "saved with rank 0, here it is 1"),
        ({"buffer_rows": 64}, "saved with buffer_blocks 9, here it is 2"),
    ],
)
def test_a_state_of_other_settings_is_refused(lake, change, sentence):
    state = dataset(lake).state_dict()
    with pytest.raises(InputError, match=sentence):
        dataset(lake, **change).load_state_dict(state)
    with pytest.raises(InputError, match="saved with 0 workers, but here there are 2"):
        DenseLoader(dataset(lake), 2).load_state_dict(DenseLoader(dataset(lake)).state_dict())


@pytest.mark.parametrize("change", [{"batch_rows": 0}, {"shards_at_once": 0}, {"rank": 2, "world_size": 2}])
def test_settings_that_cannot_be_are_refused(lake, change):
    with pytest.raises(InputError):
        dataset(lake, **change)


@pytest.mark.parametrize("given", [{"rank": 1}, {"world_size": 2}])
def test_a_rank_without_a_world_size_is_refused(lake, given):
    with pytest.raises(InputError, match="give both, or neither"):
        dataset(lake, **given)


def test_memory_is_one_buffer_whatever_the_store_holds(lake, monkeypatch):
    buffers, fill = [], _Opened.fill

    def recorded(opened, x, blocks, block):
        buffers.append((id(x), x.shape))
        return fill(opened, x, blocks, block)

    monkeypatch.setattr(_Opened, "fill", recorded)
    assert len(list(dataset(lake, buffer_rows=64))) > 20
    assert len(buffers) > 20
    assert len(set(buffers)) == 1
    assert buffers[0][1] == (64, 16)


def test_the_order_of_a_large_store_has_every_block_once_for_any_readers():
    order = Order(np.array([1000, 1, 32, 33, 7] * 20), block=32, shards_at_once=4, seed=0)
    expected = {(s, at) for s, rows in enumerate(order.rows.tolist()) for at in range(0, rows, 32)}
    for of in (1, 2, 7):
        parts = [list(order.blocks(3, Reader(index, of))) for index in range(of)]
        assert sorted(flat(parts)) == sorted(expected)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
