"""Code of others can neither end a run nor raise through it, and is only run where the user names it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from pipeline.models import load_model, model_digest
from pipeline.models.files.foreign_code import refuse_run, refusing, without_foreign_code
from pipeline.plans.reopen import use_in
from pipeline.store import FeatureStore
from schemas.errors import EndedBySignal, InputError
from schemas.run.file import Model
from tests.fixtures.runs import extracted, run_content, run_file
from tests.kit import write_tiny_gpt2, write_tiny_llama
from tests.models.reference import load, make_batch
from tests.models.test_model_files import LOADERS

pytestmark = pytest.mark.slow

HOOK = "blocks.1.hook_resid_post"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
RAISES = {
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit()": "SystemExit",
    "sys.exit('done')": "SystemExit: done",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "raise MemoryError": "MemoryError",
    "raise type('Own', (BaseException,), {})('x')": "Own: x",
}


def put_module(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Model:
    """A module of the user, `mine`, found in the folder."""
    (folder / "mine.py").write_text(f"import sys\nfrom torch import nn\n{body}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return Model(loader="torch_module", path="mine:build")


@pytest.mark.parametrize("statement", RAISES)
def test_what_a_module_raises_when_it_is_imported_or_built_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    model = put_module(tmp_path, monkeypatch, statement)
    with pytest.raises(InputError) as refused:
        load_model(model, ["0"], "cpu", 1)
    assert str(refused.value) == f"model mine:build cannot be imported: {RAISES[statement]}"
    model = put_module(tmp_path, monkeypatch, f"def build():\n    {statement}")
    with pytest.raises(InputError, match="model mine:build cannot be built without arguments: "):
        load_model(model, ["0"], "cpu", 1)


@pytest.mark.parametrize(
    "statement", ["sys.exit(0)", "raise RuntimeError('no such kernel')", "raise MemoryError"]
)
def test_what_a_module_raises_when_it_runs_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    body = f"class M(nn.Embedding):\n    def forward(self, ids):\n        {statement}\n"
    model = put_module(tmp_path, monkeypatch, f"{body}def build():\n    return nn.Sequential(M(9, 5))\n")
    with pytest.raises(InputError, match=r"model mine:build cannot be run by model\.loader: torch_module: "):
        load_model(model, ["0"], "cpu", 1)


def test_a_command_whose_module_ends_the_process_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    content = run_content(tmp_path, model={"loader": "torch_module", "path": "mine:build"})
    (tmp_path / "run.yaml").write_text(json.dumps(content))
    for command in ("tokenize", "extract"):
        done = subprocess.run(
            [sys.executable, "-m", "jobs", command, "run.yaml"],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "model mine:build cannot be imported: SystemExit: 0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt; a process that a shell starts with `&` ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_signals_pass() -> None:
    with pytest.raises(EndedBySignal), refusing("a", "b"):
        raise EndedBySignal(128 + 15)
    refuse_run("m", "torch_module", EndedBySignal(128 + 15))
    with pytest.raises(KeyboardInterrupt), refusing("a", "b"):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(InputError, match=r"^ours$"), refusing("a", "b"):
        raise InputError("ours")


def test_a_bridge_that_raises_at_its_first_use_is_a_sentence_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(write_tiny_gpt2(tmp_path), HOOK)

    def broken(*_: object, **__: object) -> Tensor:
        raise AttributeError("'X' object has no attribute 'causal_conv1d_fn'")

    module = model._run.__closure__[0].cell_contents.original_model.transformer.h[0]
    monkeypatch.setitem(vars(module), "forward", broken)
    message = (
        r"cannot be run by model\.loader: transformer_lens \(AttributeError: 'X' object has no attribute "
        r"'causal_conv1d_fn'\): use another model, or build this one .* model\.loader: torch_module$"
    )
    for use in (lambda: model.forward(make_batch()), lambda: model.losses(make_batch())):
        with pytest.raises(InputError, match=message):
            use()
    with pytest.raises(InputError, match=message):
        model.logits_at(make_batch(), np.array([1]))
    with pytest.raises(InputError, match=message):
        model.begin(make_batch(), np.array([1]), np.zeros(3, np.int64))


def test_a_full_or_broken_gpu_is_no_fault_of_the_model() -> None:
    import torch

    refuse_run("m", "transformer_lens", torch.cuda.OutOfMemoryError("full"))
    refuse_run("m", "transformer_lens", RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(InputError, match="RuntimeError: other"):
        refuse_run("m", "transformer_lens", RuntimeError("other"))


@pytest.mark.parametrize("module", ["package.inner", "package", "package.deep.inner", "bare.inner"])
def test_a_digest_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    spoilt = "raise RuntimeError('this was run')\n"
    for place in (
        "package/__init__.py",
        "package/inner.py",
        "package/deep/__init__.py",
        "package/deep/inner.py",
    ):
        (tmp_path / place).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / place).write_text(spoilt)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "inner.py").write_text(spoilt)
    monkeypatch.syspath_prepend(tmp_path)
    model = Model(loader="torch_module", path=f"{module}:build")
    before = model_digest(model)
    assert not {name for name in sys.modules if name.split(".")[0] in ("package", "bare")}
    source = tmp_path / module.replace(".", "/")
    file = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
    file.write_text(spoilt + "#")
    assert model_digest(model) != before
    with pytest.raises(InputError, match=r"there is no module 'package\.inner\.more'"):
        model_digest(Model(loader="torch_module", path="package.inner.more:build"))


def test_a_store_s_module_is_imported_only_where_the_user_names_it(tmp_path: Path) -> None:
    store = extracted(run_file(tmp_path))
    message = r"names 'tests\.kit:tiny_lm' as the model of site 'mid', .*give --model tests\.kit:tiny_lm"
    with pytest.raises(InputError, match=message):
        use_in(store, "mid", device="cpu")
    assert use_in(store, "mid", device="cpu", model="tests.kit:tiny_lm").plan.model == "tests.kit:tiny_lm"


@pytest.mark.parametrize("arguments", [["elicit", "w1 w2"], ["fidelity"], ["logits"], ["attribute"]])
def test_no_command_runs_what_a_stranger_s_store_names(tmp_path: Path, arguments: list[str]) -> None:
    store = extracted(run_file(tmp_path))
    plan = store.layout.plan("mid")
    plan.write_text(plan.read_text().replace("tests.kit:tiny_lm", "helpers:build"))
    (tmp_path / "helpers.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    command, *rest = arguments
    done = subprocess.run(
        [sys.executable, "-m", "jobs", command, str(store.layout.root), *rest],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "was_run").exists()
    assert FeatureStore.open(store.layout.root).plans["mid"].model == "helpers:build"


REMOTE = {
    "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    "AutoConfig": "modeling_baichuan.Config",
    "AutoTokenizer": ["modeling_baichuan.Tokenizer", None],
}


@pytest.mark.parametrize("architecture", ["BaichuanForCausalLM", "OpenELMForCausalLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_folder_s_own_code_never_runs(tmp_path: Path, architecture: str, loader: str) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    ran = tmp_path / "was_run"
    for name in ("modeling_baichuan.py", "modeling_openelm.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w')\nclass BaichuanForCausalLM: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"auto_map": REMOTE, "architectures": [architecture]}
        (folder / name).write_text(json.dumps(content))
    try:
        load(folder, HOOK, loader=loader)
    except InputError as refused:
        assert "model.loader: torch_module" in str(refused)  # noqa: PT017 - it may be accepted, too
    assert not ran.exists()


def test_nothing_is_installed_while_a_model_is_loaded() -> None:
    before = subprocess.check_call
    with without_foreign_code(), pytest.raises(PermissionError):
        subprocess.check_call(["true"])
    assert subprocess.check_call is before


def test_a_longest_context_that_is_no_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "def build():\n    m = nn.Sequential(nn.Embedding(9, 5))\n    m.max_context = '8'\n    return m\n"
    with pytest.raises(InputError, match="max_context '8', which is not a whole number"):
        load_model(put_module(tmp_path, monkeypatch, body), ["0"], "cpu", 1)
