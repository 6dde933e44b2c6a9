"""External scores: a file that is none, or holds a column twice, is one sentence."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluation.external_scores import read_scores
from schemas.errors import InputError


def test_scores_with_a_column_twice_or_that_may_not_be_read_are_a_sentence(tmp_path):
    feature, score = pa.array([0, 1]), pa.array([0.5, 0.25])
    twice = pa.Table.from_arrays([feature, score, score], ["feature", "score", "score"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="has several columns 'score'"):
        read_scores(tmp_path / "twice.parquet", 4)
    (tmp_path / "twice.csv").write_text("feature,score,score\n0,0.5,0.25\n")
    with pytest.raises(InputError, match="has several columns 'score'"):
        read_scores(tmp_path / "twice.csv", 4)
    with pytest.raises(InputError, match=r"--scores .*/none\.csv does not exist"):
        read_scores(tmp_path / "none.csv", 4)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"damaged\.parquet cannot be read"):
        read_scores(tmp_path / "damaged.parquet", 4)
    other = pa.Table.from_arrays([feature, score, feature, feature], ["feature", "score", "a", "a"])
    pq.write_table(other, tmp_path / "other.parquet")
    assert read_scores(tmp_path / "other.parquet", 4)["score"].to_list() == [0.5, 0.25]
