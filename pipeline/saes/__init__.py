"""SAEs: from a folder to an `Encoder` that turns x into sparse features.

A new file format is one reader module with `matches`, `read_metadata`, `digest` and `read`, and one line in
FORMATS; a new architecture is one function that builds a `Rule` (pipeline/saes/encoder.py) and one line in
the reader's registry. Importing this package, and reading metadata or a digest, does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.encoder import Encoder

__all__ = ["FORMATS", "SaeMetadata", "default_block_rows", "load_sae", "read_metadata", "sae_digest"]

FORMATS = {"saelens": "pipeline.saes.saelens"}
"""File format -> module of its reader, asked in this order."""

BLOCK_BYTES = 64 << 20
"""Aimed at for the dense float32 block x @ W_enc."""


def load_sae(spec: str, device: str = "cpu", *, block_rows: int | None = None) -> Encoder:
    """Load the SAE at `spec` (a folder); it computes in float32, whatever its weights are stored in.

    `block_rows` rows are encoded at once (default: `default_block_rows`); the last bits of an activation
    depend on it.
    """
    with _named(spec):
        encoder: Encoder = _reader(spec).read(Path(spec), device, block_rows)
    return encoder


def read_metadata(spec: str) -> SaeMetadata:
    """What the SAE's files say about it."""
    with _named(spec):
        metadata: SaeMetadata = _reader(spec).read_metadata(Path(spec))
    return metadata


def sae_digest(spec: str) -> str:
    """sha256 in hex of the weights and of every setting that moves a number."""
    with _named(spec):
        digest: str = _reader(spec).digest(Path(spec))
    return digest


@contextmanager
def _named(spec: str) -> Iterator[None]:
    """Tell of a key or tensor that the SAE's files lack in one sentence."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"SAE {spec} lacks {error}: is it complete, and of the format it seems?") from error


def default_block_rows(d_sae: int) -> int:
    """Rows of a block: a power of two from 64 to 512 (more leaves the caches), below BLOCK_BYTES if so."""
    fitting = max(BLOCK_BYTES // (4 * d_sae), 1)
    return int(min(max(1 << (fitting.bit_length() - 1), 64), 512))


def _reader(spec: str) -> Any:
    """The module that reads `spec`."""
    folder = Path(spec)
    if not folder.exists():
        raise InputError(f"SAE {spec} does not exist: give the path of a folder as saved by SAELens")
    for module in map(importlib.import_module, FORMATS.values()):
        if module.matches(folder):
            return module
    raise InputError(
        f"SAE {spec} is in no known format (known: {', '.join(FORMATS)}: a folder with cfg.json)"
    )
