"""Models whose files or code are broken are refused in one sentence, by every loader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.models import load_model, max_context
from schemas.errors import InputError
from schemas.run.file import Model
from tests.kit import write_tiny_gpt2

HOOK = "blocks.1.hook_resid_post"
ROOT = Path(__file__).parents[2]


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


BROKEN = {
    "truncated weights": truncate,
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "a configuration that is not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "a configuration that is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "a configuration that is binary": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "another width": lambda folder: edit(folder, n_embd=18, n_head=2),
    "another vocabulary": lambda folder: edit(folder, vocab_size=70),
    "a length of text": lambda folder: edit(folder, n_positions="64"),
    "no architecture": lambda folder: edit(folder, model_type="nothing-known"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_one_sentence(tmp_path: Path, kind: str) -> None:
    folder = write_tiny_gpt2(tmp_path / "model")
    BROKEN[kind](folder)
    with pytest.raises(InputError) as message:
        use(folder)
    assert str(folder) in str(message.value)
    assert "\n" not in str(message.value)


def use(folder: Path) -> None:
    max_context(Model(path=str(folder)))
    load_model(Model(path=str(folder)), [HOOK], "cpu", 1)


def write_module(folder: Path, body: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "module_of_the_user.py").write_text(body)
    return {**os.environ, "PYTHONPATH": ""}


LOAD = (
    "import sys; sys.path[:] = [p for p in sys.path if p]\n"
    f"sys.path.append({str(ROOT)!r})\n"
    "from pipeline.models import load_model, model_digest\n"
    "from schemas.run.file import Model\n"
    "model = Model(loader='torch_module', path='module_of_the_user:build')\n"
    "model_digest(model); print(load_model(model, ['0'], 'cpu', 1).widths)"
)


def test_a_module_in_the_working_directory_is_found(tmp_path: Path) -> None:
    body = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Embedding(9, 5))\n"
    environment = write_module(tmp_path, body)
    command = [sys.executable, "-c", LOAD]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'0': 5}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def build(:", "imported: SyntaxError"),
        ("def build():\n    raise RuntimeError('no disk')\n", "without arguments: RuntimeError: no disk"),
        ("def build(size):\n    pass\n", "without arguments: TypeError"),
    ],
)
def test_errors_in_the_code_of_the_user_are_reported_with_its_name(
    tmp_path: Path, body: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(tmp_path, body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "module_of_the_user", raising=False)
    with pytest.raises(InputError, match=f"model module_of_the_user:build cannot be .*{message}"):
        load_model(Model(loader="torch_module", path="module_of_the_user:build"), ["0"], "cpu", 1)
