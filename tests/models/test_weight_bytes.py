"""How much memory a model's weights take is read from its files, each tensor once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.models import load_model, weight_bytes
from pipeline.models.files.weight_files import check_size
from schemas.errors import InputError
from schemas.run.file import Model
from tests.kit import write_tiny_gpt2

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def needed(folder: Path, dtype: str = "bfloat16") -> int:
    return weight_bytes(Model.model_validate({"path": str(folder), "dtype": dtype}))


def write(folder: Path, *names: str) -> None:
    for name in names:
        save_file({name: np.zeros((10, 10), dtype=np.float32)}, folder / name)


@pytest.mark.parametrize("has_index", [True, False])
def test_a_consolidated_copy_next_to_the_shards_is_not_counted(tmp_path: Path, has_index: bool) -> None:
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


def header(content: bytes, length: int | None = None) -> bytes:
    return (len(content) if length is None else length).to_bytes(8, "little") + content


DAMAGED = {
    "empty": b"",
    "an infinite header": header(b"{}", 2**64 - 1),
    "a header longer than the file": header(b"{}", 1000),
    "a header that is not JSON": header(b"{'a'"),
    "a header that is not text": header(b"\xff\xfe"),
    "a header that is a list": header(b"[1]"),
    "deep JSON": header(b'{"a":' * 50_000),
    "a tensor that is a number": header(b'{"a": 3}'),
    "a tensor without a shape": header(b'{"a": {"dtype": "F32"}}'),
    "a negative shape": header(b'{"a": {"shape": [3, -1]}}'),
    "a shape of texts": header(b'{"a": {"shape": ["3"]}}'),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_weights_are_a_sentence_already_when_they_are_measured(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(DAMAGED[kind])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged, its header cannot be read: copy"):
        needed(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": 3}', "\xff"])
def test_a_damaged_index_is_a_sentence(tmp_path: Path, index: str) -> None:
    write(tmp_path, *SHARDS)
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="latin-1")
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json .*copy the model again"):
        needed(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_layer", 10**9),
        ("n_layer", 100),
        ("n_embd", 10**12),
        ("vocab_size", 10**12),
        ("n_positions", 10**9),
        ("n_inner", 10**10),
        ("n_head", 10**9),
        ("num_decoder_layers", 10**9),
        ("attention_types", [[["global", "local"], 10**9]]),
        ("vision_config", {"depth": 10**9}),
    ],
)
def test_a_configuration_of_more_than_the_weights_hold_is_refused_before_it_is_built(
    tmp_path: Path, key: str, value: Any
) -> None:
    folder = write_tiny_gpt2(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    message = rf"({key}|depth) is ({re.escape(str(value))}|{10**9}) in its config\.json.*copy the model again"
    with pytest.raises(InputError, match=message):
        load_model(Model(path=str(folder)), ["blocks.0.hook_resid_post"], "cpu", 1)


def test_layers_are_bounded_also_where_weights_have_no_header(tmp_path: Path) -> None:
    import torch

    folder = write_tiny_gpt2(tmp_path)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 10**9}))
    with pytest.raises(InputError, match="n_layer is 1000000000"):
        check_size(folder, str(folder))
