"""A probe of a small lake predicts what extraction then finds, and writes nothing but into its folder."""

from __future__ import annotations

import pytest

from jobs.lake import probe as module
from jobs.lake.probe import Probe, rows_of_text
from pipeline.monitor.tally import Tally
from pipeline.plans.plan import resolve
from pipeline.sources import open_source
from pipeline.store import FeatureStore
from pipeline.store.records.commits import read_commits
from pipeline.store.records.tokens import read_lake
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.worker import Worker
from tests.fixtures.runs import extracted, run_file, write_corpus

pytestmark = pytest.mark.slow


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def folder_with(tmp_path, documents):
    (tmp_path / "lake").mkdir()
    write_corpus(tmp_path / "lake" / "corpus.parquet", documents)
    from tests.kit import write_tiny_tokenizer

    write_tiny_tokenizer(tmp_path / "lake" / "tokenizer")
    return tmp_path / "lake"


def tally(store):
    result = Tally()
    for receipt in read_commits(store.layout, "mid").values():
        result.add(receipt)
    return result


@pytest.fixture
def timed(monkeypatch):
    """A worker that takes a second to load, and by its clock 10 ms a row, 3 s more on its first shard."""
    clock, cold = Clock(), [3.0]

    class Timed(Worker):
        def setup(self):
            clock.now += 1.0
            return super().setup()

        def process(self, shard):
            receipt = super().process(shard)
            seconds = 0.01 * receipt.rows + cold.pop() if cold else 0.01 * receipt.rows
            clock.now += seconds
            return receipt.model_copy(update={"seconds": {"forward": seconds}})

    monkeypatch.setattr(module, "Worker", Timed)
    return clock


def test_rates_bytes_and_nonzeros_are_those_of_the_run_within_a_few_percent(tmp_path, timed):
    folder = folder_with(tmp_path, 400)
    run, _ = resolve(run_file(folder, tokens={"shard_tokens": 3000}))
    probe = Probe(run, tmp_path / "scratch", 60.0, clock=timed)
    result = probe.predict()
    assert result.tokens_per_second.value == pytest.approx(100, rel=1e-6)
    assert result.load_seconds == 1.0
    assert 60 <= timed.now <= 60 + 1 + 10 + 35  # the time asked for, loading, warming up, the last shard
    assert sum(s.rows for s in probe.samples) < 0.4 * result.rows
    assert not (folder / "store").exists()

    store = extracted(run_file(folder, tokens={"shard_tokens": 3000}), tables=False)
    fact = tally(store)
    assert result.rows == pytest.approx(fact.rows, rel=0.02)
    assert result.nonzeros_per_token.value == pytest.approx(fact.nonzeros / fact.rows, rel=0.02)
    for kind, each in result.bytes_by_kind.items():
        tolerance = 0.25 if kind in ("partials.parquet", "row_counts.parquet") else 0.1
        assert each == pytest.approx(fact.bytes[kind] / fact.rows, rel=tolerance), kind
    assert result.plan_hash == store.plans["mid"].hash


def test_partials_of_small_probe_shards_are_scaled_to_the_runs_large_ones(tmp_path, timed):
    folder = folder_with(tmp_path, 400)
    run, _ = resolve(run_file(folder, tokens={"shard_tokens": 12_000}))
    result = Probe(run, tmp_path / "scratch", 60.0, clock=timed).predict()
    assert any("to the power" in line for line in result.assumed)
    fact = tally(extracted(run_file(folder, tokens={"shard_tokens": 12_000}), tables=False))
    one = fact.bytes["partials.parquet"] / fact.rows
    assert result.bytes_by_kind["partials.parquet"] == pytest.approx(one, rel=0.4)


def test_a_corpus_smaller_than_the_probe_is_run_whole(tmp_path):
    folder = folder_with(tmp_path, 3)
    run, _ = resolve(run_file(folder))
    result = Probe(run, tmp_path / "scratch", 5.0).predict()
    store = extracted(run_file(folder), tables=False)
    fact = tally(store)
    assert result.rows == fact.rows
    assert result.nonzeros_per_token.value == pytest.approx(fact.nonzeros / fact.rows, rel=0.02)


def test_the_size_is_the_stores_own_where_tokens_are_there(tmp_path):
    run, _ = resolve(run_file(tmp_path / "lake"))
    store = extracted(run_file(tmp_path / "lake"), tables=False)
    result = Probe(run, tmp_path / "scratch", 1.0).predict()
    assert result.rows == sum(record.rows for record in store.shards)


def test_tokens_limit_bounds_the_size(tmp_path):
    run, _ = resolve(run_file(tmp_path / "lake", tokens={"limit": 500}))
    assert Probe(run, tmp_path / "scratch", 1.0).predict().rows in (499, 500)


def test_a_probe_knows_how_much_of_each_document_is_taken(tmp_path):
    changed = run_file(tmp_path / "lake", tokens={"document_limit": 7})
    run, _ = resolve(changed)
    predicted = Probe(run, tmp_path / "scratch", 1.0).predict().rows
    assert predicted == sum(record.rows for record in extracted(changed, tables=False).shards)


def test_rows_of_text_are_those_that_tokenizing_lays_out(tmp_path, monkeypatch):
    store = extracted(run_file(tmp_path, tokens={"shard_tokens": 10**6}), tables=False)
    run = run_file(tmp_path)
    source, tokenizer = open_source(run.corpus), load_tokenizer(run.tokens.tokenizer)
    lake = read_lake(store.layout)
    rows, read, is_all = rows_of_text(source, tokenizer, lake)
    assert (rows, is_all) == (FeatureStore.open(store.layout.root).shards[0].rows, True)
    assert read == sum(len(document.text) for document in source.documents())
    monkeypatch.setattr(module, "TEXT_BYTES", read // 2)
    half, read_half, is_all = rows_of_text(source, tokenizer, lake)
    assert not is_all
    assert half / read_half == pytest.approx(rows / read, rel=0.05)


def test_a_probe_of_x_alone_predicts_its_bytes(tmp_path):
    folder = folder_with(tmp_path, documents=40)
    sites = [{"name": "low", "hook_name": "layers.0"}]
    tokens = {"shard_tokens": 400}
    run, _ = resolve(run_file(folder, sites=sites, tokens=tokens, store={"layouts": ["dense"]}))
    result = Probe(run, tmp_path / "scratch", 5.0).predict()
    assert result.nonzeros_per_token.value == 0
    assert set(result.bytes_by_kind) == {"x.zarr"}
    assert 30 < result.bytes_per_token.value < 80
