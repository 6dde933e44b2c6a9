"""SAEs of the Hugging Face hub in one of FORMATS: `hf:OWNER/REPOSITORY/PATH/IN/IT[@REVISION]`.

Only the folder of the SAE is downloaded, into the hub's own cache, from which it is read without a network
the next time.
"""

from __future__ import annotations

import functools
import glob
from pathlib import Path, PurePosixPath

from schemas.errors import InputError
from schemas.storage_failures import forbidden_in_hub_cache

PREFIX = "hf:"

FORM = "hf:OWNER/REPOSITORY/PATH/IN/IT[@REVISION], with . as the path of an SAE that is the whole repository"

WEIGHTS_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")

CONFIGS = ("cfg.json", "config.json", "hyperparams.json")
"""Configurations that some formats keep next to the weights' file or above the folder of an SAE."""


@functools.lru_cache(maxsize=16)
def snapshot(spec: str) -> Path:
    """Path of the SAE in the local cache, downloaded first where it has to be; a process asks the hub once.

    InputError for a malformed spec, and for whatever keeps the hub from giving the files.
    """
    from huggingface_hub import snapshot_download

    repository, inside, revision = parse(spec)
    patterns = None
    if inside != ".":
        # the folder, or the file, and the configurations above it; by name, for to the hub `*` means any
        # number of folders, too; a pattern that ends in / means all that is below
        folder = PurePosixPath(inside).parent
        above = [str(place / name) for place in dict.fromkeys((folder, folder.parent)) for name in CONFIGS]
        own = inside if inside.endswith(WEIGHTS_SUFFIXES) else f"{inside}/"
        patterns = [glob.escape(name) for name in (own, *above)]
    try:
        root = snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:  # the hub's own errors are one or the other
        raise forbidden_in_hub_cache(error, repository) or InputError(
            f"SAE {spec} could not be downloaded from the hub ({_first_sentence(error)}): check its name "
            "and the network, or download it on a machine with a network and copy the hub's cache"
        ) from error
    path = Path(root) / inside
    if not path.exists():
        raise InputError(f"SAE {spec}: the repository {repository} has no {inside} at this revision")
    return path


def parse(spec: str) -> tuple[str, str, str | None]:
    """Repository, path in it and revision of `spec`."""
    name, at, revision = spec.removeprefix(PREFIX).partition("@")
    owner, _, rest = name.partition("/")
    repository, _, inside = rest.partition("/")
    inside = inside.removesuffix("/")
    parts = inside.split("/")
    strange = "\\" in name or (inside != "." and any(part in ("", ".", "..") for part in parts))
    if not owner or not repository or strange or owner.startswith(".") or (at and not revision):
        raise InputError(f"SAE {spec} is malformed: write {FORM}")
    return f"{owner}/{repository}", inside, revision or None


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__
