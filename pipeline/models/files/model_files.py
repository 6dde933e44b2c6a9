"""The files of a Hugging Face model: where they lie, what they say, and a digest of them.

A path of the run file is a folder here, or a name at Hugging Face. A folder that is there always wins,
whatever TransformerLens or the hub knows by its name. A name stands for the commit that the hub has now, or,
without a network, that the hub's cache has; a process looks that up once. Importing this imports no torch.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from schemas.errors import InputError
from schemas.records import digest_of, digest_of_file
from schemas.storage_failures import forbidden_in_hub_cache

CONFIG = "config.json"

INDEX = "model.safetensors.index.json"

CONTENT = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".py"}
"""Files that make the model what it is, in addition to config.json."""

CONTEXT_KEYS = ("n_positions", "max_position_embeddings", "n_ctx", "max_sequence_length", "seq_length")
"""Where the configurations of different architectures keep the longest context."""

WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
"""Where they keep the width of the residual stream."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
"""What may be the name of a model at Hugging Face."""

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_WEIGHTS = ("*.safetensors", "*.bin")
"""Files that are downloaded: the second kind of weights only where the first is not there."""

_BELOW = ("*/*", "consolidated*")
"""Files of a repository that are never downloaded: other formats, and second copies."""


class Pinned(NamedTuple):
    """A repository of the hub at one commit."""

    repository: str
    commit: str


def digest(path: str) -> str:
    """See pipeline.models.model_digest."""
    if not Path(path).is_dir():
        return digest_of({"hugging_face": path, "commit": pinned(path).commit})
    files = sorted(f for f in Path(path).glob("[!.]*") if f.suffix in CONTENT or f.name == CONFIG)
    return digest_of({file.name: digest_of_file(file) for file in files})


def digest_of_name(path: str) -> str | None:
    """What a name's digest was before version 0.7, which did not know of commits; None for a folder."""
    return None if Path(path).is_dir() else digest_of({"hugging_face": path})


def max_context(path: str) -> int | None:
    """See pipeline.models.max_context; the first to read the path, so it reports where nothing is there."""
    require_folder(path)
    config = Path(path) / CONFIG
    return longest_context(config_of(config)) if config.is_file() else None


def require_folder(path: str) -> None:
    """A folder must hold a model; a name is Hugging Face's to know."""
    if not Path(path).exists() and not _HUB_NAME.fullmatch(path):
        raise InputError(
            f"model {path} does not exist: give a model's folder, or its name on the Hugging Face Hub"
        )
    if Path(path).is_dir() and not (Path(path) / CONFIG).is_file():
        raise InputError(f"model folder {path} has no {CONFIG}: give a folder that save_pretrained wrote")


def folder_of(path: str) -> Path:
    """The folder that is read for a path of the run file, absolute: it cannot be taken for a name.

    A name's files are downloaded where the hub's cache lacks them. InputError where there is no such model,
    and where a folder names files outside of it, which no digest would hold.
    """
    require_folder(path)
    folder = Path(path).absolute() if Path(path).is_dir() else _snapshot(path, *pinned(path))
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"model folder {path} holds an adapter, whose base model is named in a file: merge the two and "
            "give the folder that merge_and_unload and save_pretrained write"
        )
    for index in sorted(folder.glob("[!.]*.index.json")):
        named = config_of(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise InputError(f"{index} has no weight_map of file names: copy the model again")
        for name in sorted(set(named.values())):
            if Path(name).name != name:
                raise InputError(
                    f"the index of the weights in {path} names {name!r}, which lies outside of that folder: "
                    "give a folder that holds all of its weights"
                )
    return folder


@functools.lru_cache(maxsize=16)
def pinned(name: str) -> Pinned:
    """The repository that a name means (TransformerLens' aliases among them), at the commit of now."""
    from huggingface_hub import hf_hub_download

    repository = repository_of(name)
    try:
        config = hf_hub_download(repository, CONFIG)
    except (OSError, ValueError) as error:  # the hub's own errors are one or the other
        raise _unavailable(name, error) from None
    return Pinned(repository, Path(config).parent.name)


def repository_of(name: str) -> str:
    """The hub's name of a model that may be called by one of TransformerLens' aliases."""
    from transformer_lens.supported_models import MODEL_ALIASES

    aliases = {alias: official for official, known in MODEL_ALIASES.items() for alias in known}
    lowered = {alias.lower(): official for alias, official in aliases.items()}
    return str(aliases.get(name) or lowered.get(name.lower(), name))


def _snapshot(name: str, repository: str, commit: str) -> Path:
    """The folder of the hub's cache with a commit's configuration, tokenizer and weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        for weights in _WEIGHTS:
            wanted = [*_SMALL_FILES, weights]
            folder = Path(
                snapshot_download(
                    repository, revision=commit, allow_patterns=wanted, ignore_patterns=list(_BELOW)
                )
            )
            # most repositories have both kinds: the second is a second copy of the same weights
            if any(folder.glob(weights)):
                break
    except (OSError, ValueError) as error:
        raise _unavailable(name, error) from None
    return folder


def _unavailable(name: str, error: Exception) -> InputError:
    """The sentence about a model that the hub does not give, or whose files in its cache may not be read."""
    reason = " ".join(str(error).split()).partition(". ")[0][:300]
    return forbidden_in_hub_cache(error, repository_of(name)) or InputError(
        f"model {name} is not a folder here, and the hub does not provide it ({reason}): check the name and "
        "the network, or give a folder that save_pretrained wrote"
    )


def config_of(path: Path) -> dict[str, Any]:
    """The object in a config.json, or in another JSON file of a model."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON: copy the model again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object: copy the model again")
    return config


def longest_context(config: dict[str, Any]) -> int | None:
    """Longest context by a Hugging Face configuration (of a multimodal model: of its text part)."""
    return _number(config, CONTEXT_KEYS)


def width_of(config: dict[str, Any]) -> int | None:
    """Width of the residual stream by a Hugging Face configuration, as `longest_context`."""
    return _number(config, WIDTH_KEYS)


def _number(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    text = config.get("text_config")
    config = text if isinstance(text, dict) and text else config
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)
