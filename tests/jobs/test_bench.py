"""The benchmark runs; what it measures is for quiet machines, so no test looks at its ratio."""

from __future__ import annotations

import pytest

from jobs.bench import Shape, markdown, measure


@pytest.mark.slow
def test_a_small_shape_is_measured_over_all_its_tokens(tmp_path):
    shape = Shape("tiny", 2, 32, 2, 0, 256, 8, 4_096, 0.5)
    result = measure(shape, tmp_path, threads=1, shards=4)
    assert result.lowest <= result.ratio <= result.highest
    assert result.extraction == pytest.approx(result.ratio * result.bare, rel=1e-6)
    assert 4 < result.bytes_per_nonzero < 20
    assert "| tiny | 4,096 |" in markdown([result])
