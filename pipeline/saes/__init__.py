"""SAEs: from a folder, a file or a name to an `Encoder` that turns x into sparse features.

A new file format is one module in pipeline/saes/formats/ and one line in FORMATS; a new architecture is one
rule (pipeline/saes/encoding/rule.py) and one line in ARCHITECTURES. Importing this package does not import
torch; neither do metadata and digests, but of SAEs whose only file is one of torch's.

A spec is a path (`~` is expanded), `hf:...` (pipeline/saes/files/hub.py: the same formats, from the hub),
`saelens:...` (pipeline/saes/formats/saelens_package.py: whatever the sae-lens package reads), or
`synthetic:...` (pipeline/synthetic: a recipe that features are drawn from; it has metadata and a digest, but
no weights).
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.files.hub import PREFIX as HUB
from pipeline.saes.files.hub import snapshot
from pipeline.saes.formats.saelens_package import PREFIX as SAELENS
from pipeline.saes.formats.saelens_package import Opened, open_sae
from pipeline.saes.metadata import NO_SAE, SaeMetadata, checked
from pipeline.synthetic.generator import Generator
from pipeline.synthetic.recipe import parse
from schemas.errors import InputError
from schemas.names import SYNTHETIC, EncodeDtype
from schemas.records import digest_of, digest_of_file

if TYPE_CHECKING:
    import torch

    from pipeline.saes.encoding.encoder import Encoder

__all__ = ["FORMATS", "NO_SAE", "SaeMetadata", "choose_block", "load_sae", "read_metadata", "sae_digest"]

FORMATS = {
    "saelens": "pipeline.saes.formats.saelens",
    "sparsify": "pipeline.saes.formats.sparsify",
    "dictionary_learning": "pipeline.saes.formats.dictionary_learning",
    "plain_dict": "pipeline.saes.formats.plain_dict",
    "openai": "pipeline.saes.formats.openai",
    "gemma_scope": "pipeline.saes.formats.gemma_scope",
    "gemma_scope_2": "pipeline.saes.formats.gemma_scope_2",
    "llama_scope": "pipeline.saes.formats.llama_scope",
}
"""File format -> module of its reader."""

CPU_BLOCK = (1024, 1024)
"""Rows and features of a block: 4 MiB of float32, which stay in the caches between matmul and selection.
Measured on two cores at 768 x 24,576: 4,800 rows/s against 4,350 in one piece (`make bench` measures it)."""

GPU_BLOCK_BYTES = 1 << 30
"""Most memory for one block of the float32 product on a GPU, where a block holds all features."""


def load_sae(
    spec: str | Path,
    device: str = "cpu",
    dtype: EncodeDtype | torch.dtype | None = None,
    *,
    block: tuple[int, int] | None = None,
) -> Encoder:
    """Load the SAE at `spec`: a folder or a file of one of FORMATS, `hf:...` or `saelens:...`.

    It computes in float32, whatever its weights are stored in; with `dtype` bfloat16 the factors of x @ W_enc
    are rounded to it and summed in float32. `block` (rows, features) cuts that product (default:
    `choose_block`); the last bits of an activation depend on it. InputError says what is wrong with an SAE.
    """
    import torch

    from pipeline.saes.encoding.encoder import Block, RuleEncoder
    from pipeline.saes.encoding.weights import finished, rule_of

    spec, kind = str(spec), str(dtype or "float32").removeprefix("torch.")
    if kind not in ("float32", "bfloat16"):
        raise InputError(f"encode dtype {kind!r} is not possible: use float32 or bfloat16")
    with _named(spec):
        if spec.startswith(SAELENS):
            opened = open_sae(spec)
            metadata, raw = checked(opened.metadata, spec), opened.weights()
            if not opened.has_rule:
                return _reference_encoder(opened, device, kind, block)
        else:
            module, path = reader_of(spec)
            metadata = checked(module.read_metadata(path), spec)
            raw = module.read_weights(path, metadata)
        stored: dict[str, torch.Tensor] = finished(raw, metadata, spec)
    weights = {name: tensor.to(device) for name, tensor in stored.items()}
    cut = Block(*_checked_block(block or choose_block(metadata.d_sae, device), metadata.d_sae, device))
    return RuleEncoder(metadata, weights, rule_of(metadata, weights), cut, getattr(torch, kind))


def read_metadata(spec: str | Path) -> SaeMetadata:
    """What the SAE's files say about it."""
    spec = str(spec)
    if spec.startswith(SYNTHETIC):
        return SaeMetadata("synthetic", 0, parse(spec).d_sae, format="synthetic", hook_name="synthetic")
    with _named(spec):
        if spec.startswith(SAELENS):
            return checked(open_sae(spec).metadata, spec)
        module, path = reader_of(spec)
        return checked(module.read_metadata(path), spec)


def sae_digest(spec: str | Path) -> str:
    """sha256 in hex of the weights and of every setting that moves a number."""
    spec = str(spec)
    if spec.startswith(SYNTHETIC):
        return Generator(parse(spec)).digest
    with _named(spec):
        if spec.startswith(SAELENS):
            return digest_of(open_sae(spec).digest())
        module, path = reader_of(spec)
        metadata: SaeMetadata = module.read_metadata(path)
        weights = [digest_of_file(file) for file in module.weight_files(path)]
        settings = module.settings(path) if hasattr(module, "settings") else {}
    # one file's digest stands without a list: the digests in stores are made so
    content: Any = weights[0] if len(weights) == 1 else weights
    return digest_of({"format": metadata.format, "weights": content, **settings, **metadata.recipe()})


def choose_block(d_sae: int, device: str = "cpu") -> tuple[int, int]:
    """Rows and features of a block: measured on a CPU, by a memory budget on a GPU."""
    if device == "cpu":
        return CPU_BLOCK
    rows = max(GPU_BLOCK_BYTES // (4 * max(d_sae, 1)), 1)
    return min(1 << (rows.bit_length() - 1), 8192), d_sae


def _checked_block(block: tuple[int, int], d_sae: int, device: str) -> tuple[int, int]:
    """The block, when a product can be cut so; on a GPU only where float32 products are exact."""
    import torch

    rows, features = block
    if rows < 1 or features < 1:
        raise InputError(f"block {rows} x {features} is not a cut of a product: rows and features are from 1")
    # the selection calls nonzero, which on a GPU takes fewer than 2**31 elements
    if device != "cpu" and rows * d_sae >= 2**31:
        raise InputError(
            f"block of {rows} rows times {d_sae} features is too large for a GPU: use fewer rows"
        )
    if device != "cpu" and torch.get_float32_matmul_precision() != "highest":
        raise InputError(
            f"torch's float32 matmul precision is {torch.get_float32_matmul_precision()!r}, which changes "
            "activations: call torch.set_float32_matmul_precision('highest'), or use dtype bfloat16"
        )
    return block


def reader_of(spec: str) -> tuple[Any, Path]:
    """The reader's module, and the path that it reads; `hf:...` is downloaded first."""
    if spec.startswith(SYNTHETIC):
        raise InputError(
            f"SAE {spec} has no weights, its features are generated: set model.loader: synthetic"
        )
    path = snapshot(spec) if spec.startswith(HUB) else Path(os.path.expanduser(spec))  # noqa: PTH111
    if not path.exists():
        raise InputError(f"SAE {spec} does not exist: give the path of an SAE's folder or file")
    modules = {name: importlib.import_module(module) for name, module in FORMATS.items()}
    readers = {name: module for name, module in modules.items() if module.matches(path)}
    if len(readers) == 1:
        return next(iter(readers.values())), path
    looked_for = "; ".join(f"{name}: {module.LOOKS_FOR}" for name, module in (readers or modules).items())
    if readers:
        raise InputError(
            f"SAE {spec} could be of several formats ({looked_for}): give the path of its weights' file"
        )
    raise InputError(f"SAE {spec} is in no known format; expected {looked_for}; {_what_is_there(path)}")


def _what_is_there(path: Path) -> str:
    """The contents of an unknown folder, for a sentence."""
    if not path.is_dir():
        return f"it is a file named {path.name}"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"it holds {', '.join(names[:12])}{more}" if names else "it is empty"


def _reference_encoder(opened: Opened, device: str, dtype: str, block: tuple[int, int] | None) -> Encoder:
    """For an architecture that has no rule here."""
    from pipeline.saes.encoding.reference import ReferenceEncoder

    if dtype != "float32":
        raise InputError(
            f"an SAE of architecture {opened.metadata.architecture} is encoded by the sae-lens package in "
            f"float32; encode_dtype {dtype} is not possible"
        )
    rows, _ = block or choose_block(opened.metadata.d_sae, device)
    # a copy, for open_sae keeps its module for the next caller, and to() moves in place
    return ReferenceEncoder(copy.deepcopy(opened.sae).to(device), opened.metadata, rows)


@contextmanager
def _named(spec: str) -> Iterator[None]:
    """Report a key or tensor that the SAE's files lack in one sentence."""
    try:
        yield
    except KeyError as error:
        raise InputError(
            f"SAE {spec} lacks {error}: is it complete, and in the format that it seems to be?"
        ) from error
