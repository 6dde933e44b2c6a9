"""The benchmarks run; what they measure is for quiet machines, so no test looks at a speed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jobs.bench import encode, extraction, jobs, memory, peers, scale, shards
from jobs.bench.inputs import Shape, write_sae
from jobs.bench.report import Section, in_turn, ratio
from pipeline.store import FeatureStore

JOBS = dict(jobs.JOBS)
COMING = {"profile", "examples", "report, 1,000 features", "feature", "heatmap"}
"""Jobs of the benchmark whose commands may not be there yet."""

TINY = Shape("tiny", 2, 32, 2, 0, 256, 8, 4_096, 0.5)


@pytest.mark.slow
def test_a_small_shape_is_measured_over_all_its_tokens(tmp_path):
    result = extraction.measure(TINY, tmp_path, threads=1, shards=4)
    assert result.lowest <= result.ratio <= result.highest
    assert result.extraction == pytest.approx(result.ratio * result.bare, rel=1e-6)
    assert 4 < result.bytes_per_nonzero < 20
    assert "| tiny | 4,096 |" in extraction.section_of([result]).markdown()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", encode.TARGETS)
def test_an_encoder_is_measured_next_to_saelens_with_the_same_result(tmp_path, architecture):
    result = encode.measure(architecture, tmp_path / "sae", d_model=64, d_sae=2_048, rows=256)
    expected = 32 if architecture == "topk" else 32 * 2_048 / 24_576
    assert result.mean_l0 == pytest.approx(expected, rel=0.3)
    assert result.of_limit[1] <= result.of_limit[0] <= result.of_limit[2]


@pytest.mark.slow
def test_the_hand_written_loop_sums_what_the_extraction_stores(tmp_path, monkeypatch):
    fired = np.zeros(TINY.d_sae)

    def loop(shape, folder, batch_contexts):
        work = peers.loop(shape, folder, batch_contexts)
        return lambda tokens: np.add(fired, work(tokens)[0].numpy(), out=fired)

    monkeypatch.setattr(peers, "OTHERS", {"delphi": lambda *_: lambda tokens: None, "loop": loop})
    result = peers.measure(TINY, tmp_path, threads=1, shards=2)
    assert result.over_loop[1] <= result.over_loop[0] <= result.over_loop[2]
    stored = FeatureStore.open(tmp_path / "store").scan_activations("bench")
    counts = stored.group_by("feature").len().sort("feature").collect()
    # the loop takes BOS and EOS as any token, which the extraction leaves out
    assert (fired[counts["feature"]] >= counts["len"].to_numpy()).all()
    assert counts["len"].sum() == pytest.approx(fired.sum() * 126 / 128, rel=0.01)


@pytest.mark.slow
def test_the_peak_of_an_encoder_is_measured_in_a_process_of_its_own(tmp_path):
    write_sae(tmp_path / "sae", "topk", 16, 65_536, k=8)
    result = memory.measure(tmp_path / "sae", rows=256, threads=1)
    assert result.nnz == 256 * 8
    assert 0 <= result.above < 0.25


@pytest.mark.ray
@pytest.mark.slow
def test_many_shards_are_committed_by_actors_that_do_nothing_and_the_store_opens(tmp_path):
    result = shards.measure(tmp_path, shards=20)
    assert result.driver_ms > 0
    assert result.resume_s > 0
    store = FeatureStore.open(tmp_path / "committed" / "store")
    assert len(store.receipts("bench")) == len(store.shards) == 20
    assert result.dispatch_ms > 0
    assert "| driver's memory" in shards.section_of(result).markdown()


@pytest.mark.slow
def test_every_job_over_a_small_lake_is_measured_or_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "D_SAE", 512)
    monkeypatch.setattr(scale, "L0", 16)
    chosen = ("stats", "export delphi")
    some = {name: jobs.JOBS[name] for name in chosen}
    wrong = {"tomorrow's": ("divine", jobs.STORE), "wrong": ("top", jobs.STORE, "512")}
    monkeypatch.setattr(jobs, "JOBS", some | wrong)
    section = jobs.run(tmp_path, 1, nonzeros=20_000)
    results = {result["name"]: result for result in section.raw}
    assert list(results) == [*chosen, *wrong]
    for name in chosen:
        assert not results[name]["said"], results[name]
        assert results[name]["rate"] * results[name]["seconds"] == pytest.approx(results[name]["nnz"])
    assert results["tomorrow's"]["said"] == "not there yet"
    assert "feature 512 is not in site" in results["wrong"]["said"]
    assert "| tomorrow's | not there yet |  |  |" in section.markdown()
    assert {name for name, (command, *_) in JOBS.items() if command not in jobs.commands()} <= COMING


def test_turns_alternate_and_leave_the_first_out():
    order = []
    seconds = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_a_ratio_is_that_of_the_sums_with_its_range():
    assert ratio([2.0, 6.0], [1.0, 4.0]) == (1.6, 1.5, 2.0)


def test_a_section_is_written_for_people_and_for_machines(tmp_path):
    Section("name", "Title", ["a", "b"], [["x", "1"]], [{"b": 1}]).write(tmp_path / "out")
    assert (tmp_path / "out" / "name.md").read_text() == "Title\n\n| a | b |\n| --- | --- |\n| x | 1 |\n"
    assert json.loads((tmp_path / "out" / "name.json").read_text())["raw"] == [{"b": 1}]
