"""A prediction is the ratio of sums over the shards that were looked at, with their range."""

from __future__ import annotations

import pytest

from pipeline.monitor.prediction import Forecast, compared, predict, read_prediction, sample, write_prediction
from pipeline.monitor.tally import Tally
from schemas.errors import InputError
from schemas.layout import Layout
from tests.fixtures.receipts import receipt

RECEIPTS = [receipt(rows=100, nnz=700, seconds=2.0), receipt(rows=300, nnz=1500, seconds=4.0)]


def made(**changes):
    requested = {"rows": 10_000, "shard_rows": 1000, "workers": 2, "load_seconds": 5.0}
    return predict(
        [sample(each) for each in RECEIPTS], plan_hash="plan", source="two shards", **(requested | changes)
    )


def test_rates_and_sizes_are_those_of_the_sums_with_the_range_over_shards():
    result = made()
    assert (result.tokens_per_second.value, result.tokens_per_second.low, result.tokens_per_second.high) == (
        pytest.approx(400 / 6),
        50,
        75,
    )
    assert result.nonzeros_per_token.value == 2200 / 400
    assert (result.nonzeros_per_token.low, result.nonzeros_per_token.high) == (5, 7)
    assert result.bytes_per_token.value == 8800 / 400
    assert result.bytes_by_kind == {"csr.zarr": 6600 / 400, "partials.parquet": 2200 / 400}
    assert result.objects_per_shard == 2


@pytest.mark.parametrize(
    ("rows", "workers", "longest"),
    [(10_000, 1, 10_000), (10_000, 2, 5000), (10_000, 4, 3000), (10_000, 50, 1000), (400, 2, 400)],
)
def test_the_time_is_that_of_the_worker_with_the_most_shards(rows, workers, longest):
    wall = made().seconds(rows, workers)
    assert wall.value == pytest.approx(5 + longest * 6 / 400)
    assert (wall.low, wall.high) == (pytest.approx(5 + longest / 75), pytest.approx(5 + longest / 50))


def test_it_is_kept_with_the_pass_and_read_back(tmp_path):
    assert read_prediction(Layout(tmp_path), "mid") is None
    write_prediction(Layout(tmp_path), "mid", made())
    result = read_prediction(Layout(tmp_path), "mid")
    assert result.model_copy(update={"made": 0}) == made().model_copy(update={"made": 0})


def test_the_fact_next_to_it():
    fresh = Tally()
    for each in RECEIPTS:
        fresh.add(each)
    figures = {name: (span.value, fact) for name, span, fact in compared(made(), fresh, 9.0, 1)}
    assert figures["tokens/s per worker"] == (pytest.approx(400 / 6), pytest.approx(400 / 6))
    assert figures["bytes per token"] == (22, 22)
    assert figures["seconds"] == (pytest.approx(11), 9.0)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_run_without_a_prediction_makes_one_of_its_first_eighth_but_the_cold_shards(tmp_path):
    clock = Clock()
    forecast = Forecast(Layout(tmp_path), clock)
    forecast.begin("plan", "mid", rows=3200, shards=32, workers=2)
    clock.now = 7.0
    forecast.ready()
    for number in range(5):
        assert forecast.prediction is None
        forecast.observe(receipt(f"{number:06d}", seconds=20.0 if number < 2 else 2.0))
    assert forecast.prediction.tokens_per_second.value == 50
    assert (forecast.prediction.load_seconds, forecast.prediction.shard_rows) == (7, 100)
    forecast.observe(receipt(seconds=100.0))
    assert forecast.prediction.tokens_per_second.value == 50
    assert read_prediction(Layout(tmp_path), "mid") == forecast.prediction


def test_or_of_its_first_minute(tmp_path):
    clock = Clock()
    forecast = Forecast(Layout(tmp_path), clock)
    forecast.begin("plan", "mid", rows=100_000, shards=1000, workers=1)
    forecast.observe(receipt())
    forecast.observe(receipt())
    assert forecast.prediction is None
    clock.now = 61.0
    forecast.observe(receipt())
    assert forecast.prediction.source == "the run's own first 3 shards"


def test_the_stored_prediction_of_the_same_plan_is_taken_and_that_of_another_is_not(tmp_path):
    write_prediction(Layout(tmp_path), "mid", made())
    same, other = Forecast(Layout(tmp_path)), Forecast(Layout(tmp_path))
    same.begin("plan", "mid", rows=1000, shards=10, workers=1)
    other.begin("another", "mid", rows=1000, shards=10, workers=1)
    assert same.prediction.source == "two shards"
    assert other.prediction is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), InputError("the storage is away")])
def test_a_prediction_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, error):
    def fail(path, data):
        raise error

    monkeypatch.setattr("pipeline.monitor.prediction.write_atomic", fail)
    forecast = Forecast(Layout(tmp_path))
    forecast.begin("plan", "mid", rows=600, shards=6, workers=1)
    for number in range(4):
        forecast.observe(receipt(f"{number:06d}"))
    assert forecast.prediction.tokens_per_second.value == 50


def test_a_damaged_prediction_is_none(tmp_path):
    write_prediction(Layout(tmp_path), "mid", made())
    path = Layout(tmp_path).prediction("mid")
    path.write_bytes(path.read_bytes()[:40])
    assert read_prediction(Layout(tmp_path), "mid") is None
    Forecast(Layout(tmp_path)).begin("plan", "mid", rows=200, shards=2, workers=1)
