"""SAELens as the reference implementation."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any


def sae_lens() -> Any:
    """The package; importing it warns about its own use of TransformerLens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("sae_lens")


def reference(folder: Path) -> Any:
    """SAELens' own SAE of this folder, in float32."""
    return sae_lens().SAE.load_from_disk(folder, dtype="float32")
