"""How much memory a model's weights take is read from its files, each tensor once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.models import weight_bytes
from schemas.run_file import Model

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def needed(folder: Path, dtype: str = "bfloat16") -> int:
    return weight_bytes(Model.model_validate({"path": str(folder), "dtype": dtype}))


def write(folder: Path, *names: str) -> None:
    for name in names:
        save_file({name: np.zeros((10, 10), dtype=np.float32)}, folder / name)


@pytest.mark.parametrize("has_index", [True, False])
def test_a_consolidated_copy_beside_the_shards_is_not_counted(tmp_path: Path, has_index: bool) -> None:
    write(tmp_path, *SHARDS, "consolidated.safetensors")
    if has_index:
        write(tmp_path, "extra.safetensors")
        index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert needed(tmp_path) == 2 * 100 * 2
    assert needed(tmp_path, "float32") == 2 * 100 * 4


def test_a_consolidated_file_alone_is_the_model(tmp_path: Path) -> None:
    write(tmp_path, "consolidated.safetensors")
    assert needed(tmp_path) == 200
