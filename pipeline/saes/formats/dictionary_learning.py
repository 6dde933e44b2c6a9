"""dictionary_learning (0.1): `ae.pt` and `config.json`, and the checkpoints `ae_<step>.pt` of its training.

After dictionary_learning/dictionary.py and trainers/*.py. BatchTopK and matryoshka SAEs use their learnt
threshold, as their `encode` does by default.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.saes.files.tensors import (
    TensorFile,
    open_torch,
    optional_int,
    optional_text,
    positive_int,
    read_json,
    require,
    single_torch_file,
    torch_names,
)
from pipeline.saes.metadata import SaeMetadata, finite
from schemas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.saes.encoding.weights import Weights

CONFIG, WEIGHTS, EVALUATION = "config.json", "ae.pt", "eval_results.json"
LOOKS_FOR = f"a folder with {WEIGHTS} and {CONFIG}, or such a .pt file"

LINEAR = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T"}
DIRECT = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec"}
"""The two layouts: torch's linear layers, and matrices as they are multiplied."""


class Kind(NamedTuple):
    """A class of dictionary_learning: our architecture, and its own names in addition to LINEAR or DIRECT."""

    architecture: str
    apply_b_dec_to_input: bool
    names: dict[str, str]
    buffers: frozenset[str] = frozenset()


BUFFERS = frozenset({"k", "threshold"})

KINDS = {
    "AutoEncoder": Kind("standard", True, {"b_dec": "bias"}),
    "AutoEncoderNew": Kind("standard", False, {"b_dec": "decoder.bias"}),
    "GatedAutoEncoder": Kind(
        "gated", True, {"b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
    ),
    "AutoEncoderTopK": Kind("topk", True, {"b_dec": "b_dec"}, BUFFERS),
    "BatchTopKSAE": Kind("jumprelu", True, {"b_dec": "b_dec"}, BUFFERS),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", True, {"b_dec": "b_dec"}, BUFFERS | {"group_sizes"}),
    "JumpReluAutoEncoder": Kind("jumprelu", False, {"b_dec": "b_dec", "threshold": "threshold"}),
}

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attention_out": "hook_attn_out",
    "attn_out": "hook_attn_out",
}
"""Beginning of a submodule_name -> TransformerLens' name in a block."""

SUBMODULE = re.compile(rf"({'|'.join(HOOKS)})(?:_layer_(\d+))?")

CARD = {
    "l0": "l0", "frac_variance_explained": "explained_variance", "cossim": "cosine",
    "frac_recovered": "loss_recovered",
}  # fmt: skip
"""Figures of eval_results.json by our names."""


def matches(path: Path) -> bool:
    """Whether this reader is the one for `path`."""
    if (path / WEIGHTS).is_file() or (path.is_file() and re.fullmatch(r"ae(_\d+)?\.pt", path.name)):
        return True
    names = torch_names(path)
    return "pre_bias" not in names and (
        {"encoder.weight", "decoder.weight"} <= names or {"W_enc", "W_dec", "group_sizes"} <= names
    )


def read_metadata(path: Path) -> SaeMetadata:
    """Read the names and shapes of ae.pt, and config.json."""
    file = open_torch(_weights(path))
    # config.json lies next to ae.pt; of a checkpoint it lies one folder above
    folder = file.path.parent.absolute()
    where = (folder.parent if folder.name == "checkpoints" else file.path.parent) / CONFIG
    config = read_json(where) if where.is_file() else {}
    trainer, buffer = _part(config, "trainer", where), _part(config, "buffer", where)
    name = _class(trainer, file, where)
    d_model, d_sae = _widths(file, trainer, where)
    hook_name, about_hook = _hook(trainer, buffer, where)
    evaluation = file.path.with_name(EVALUATION)
    numbers = finite(read_json(evaluation) if evaluation.is_file() else {})
    card = {ours: numbers[published] for published, ours in CARD.items() if published in numbers}
    return SaeMetadata(
        architecture=KINDS[name].architecture,
        d_model=d_model,
        d_sae=d_sae,
        apply_b_dec_to_input=KINDS[name].apply_b_dec_to_input,
        k=_k(file, trainer, d_sae, where) if KINDS[name].architecture == "topk" else None,
        transcoder=buffer.get("io") == "in_and_out",
        format="dictionary_learning",
        hook_name=hook_name,
        context_size=optional_int(buffer, "ctx_len", where),
        model_name=optional_text(trainer, "lm_name", where),
        card=card | ({"dead": 1 - numbers["frac_alive"]} if "frac_alive" in numbers else {}),
        notes=(*_notes(name, file), *about_hook),
        extra={"dict_class": name, "trainer": trainer, "buffer": buffer},
    )


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [require(_weights(path))]


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats. Decoder norms of an AutoEncoder are folded in, as its loader does."""
    import torch

    from pipeline.saes.encoding.weights import fold_decoder_norms

    file = open_torch(_weights(path))
    name = metadata.extra["dict_class"]
    kind = KINDS[name]
    names = {**(DIRECT if "W_enc" in file.shapes else LINEAR), **kind.names}
    if kind.architecture == "gated":
        names.pop("b_enc")
    weights = file.take(names, metadata, kind.buffers)
    if name == "AutoEncoder":
        # rows of W_dec of norm 1, activations that many times larger, as by AutoEncoder.normalize_decoder
        norms = weights["W_dec"].norm(dim=1)
        if bool((norms == 0).any()):
            raise InputError(
                f"{file.path} has a decoder vector of norm 0, which its own loader cannot normalise either"
            )
        return (
            weights if torch.allclose(norms, torch.ones_like(norms)) else fold_decoder_norms(weights, norms)
        )
    if kind.architecture == "jumprelu" and "threshold" not in names:
        weights["threshold"] = torch.full((metadata.d_sae,), float(_scalar(file, "threshold")))
    if "group_sizes" in file.shapes and int(file.load("group_sizes").sum()) != metadata.d_sae:
        raise InputError(
            f"group_sizes in {file.path} do not sum to its {metadata.d_sae} features: copy it again"
        )
    return weights


def _weights(path: Path) -> Path:
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    return single_torch_file(path) or path / WEIGHTS


def _part(config: dict[str, Any], name: str, where: Path) -> dict[str, Any]:
    part = config.get(name) or {}
    if not isinstance(part, dict):
        raise InputError(f"{where} has {name} {part!r}; it must be a JSON object")
    return part


def _class(trainer: dict[str, Any], file: TensorFile, where: Path) -> str:
    """The dict_class that config.json names; without it, the one whose names the file has."""
    name = trainer.get("dict_class")
    if isinstance(name, str) and name in KINDS:
        return name
    if name is not None:
        raise InputError(f"{where} has dict_class {name!r}; known: {', '.join(KINDS)}")
    layouts = [(known, kind, direct) for direct in (False, True) for known, kind in KINDS.items()]
    fitting = [known for known, kind, direct in layouts if _names(kind, direct) == file.shapes.keys()]
    if len(fitting) != 1:
        why = f"could be of {' or '.join(fitting)}" if fitting else "is of no known class"
        raise InputError(f"{file.path} {why}: put its {CONFIG} next to it, which names trainer.dict_class")
    return fitting[0]


def _names(kind: Kind, direct: bool) -> set[str]:
    """Names in the file of a class, in one of the two layouts."""
    matrices = dict(DIRECT if direct else LINEAR)
    if kind.architecture == "gated":
        matrices.pop("b_enc")
    return {name.removesuffix(".T") for name in (*matrices.values(), *kind.names.values())} | kind.buffers


def _widths(file: TensorFile, trainer: dict[str, Any], where: Path) -> tuple[int, int]:
    """d_model and d_sae, of the file and as the configuration has them."""
    direct = "W_enc" in file.shapes
    shape = file.shapes["W_enc" if direct else "encoder.weight"]
    if len(shape) != 2:
        raise InputError(f"the encoder in {file.path} has shape {list(shape)}; it must be a matrix")
    d_model, d_sae = shape if direct else shape[::-1]
    for name, width in (("activation_dim", d_model), ("dict_size", d_sae)):
        if optional_int(trainer, name, where) not in (None, width):
            raise InputError(
                f"{where} has {name} {trainer[name]}, {file.path.name} has {width}: they belong to two SAEs"
            )
    return d_model, d_sae


def _k(file: TensorFile, trainer: dict[str, Any], d_sae: int, where: Path) -> int:
    """The k of a TopK SAE, which stands in both files."""
    configured = k = optional_int(trainer, "k", where)
    if "k" in file.shapes:
        k = positive_int(_scalar(file, "k").item(), "k", file.path)
    if k is None:
        raise InputError(f"neither {where} nor {file.path} has the k of a TopK SAE: put trainer.k there")
    if configured not in (None, k) or k > d_sae:
        limit = f"{where} has {configured}" if configured not in (None, k) else f"there are {d_sae} features"
        raise InputError(f"{file.path} has k {k}, but {limit}: restore the k it was trained with")
    return k


def _scalar(file: TensorFile, name: str) -> Tensor:
    if file.shapes[name] != ():
        raise InputError(f"{name} in {file.path} has shape {list(file.shapes[name])}; it must be one number")
    return file.load(name)


def _hook(trainer: dict[str, Any], buffer: dict[str, Any], where: Path) -> tuple[str | None, tuple[str, ...]]:
    """TransformerLens' name of what it was trained on, and what had to be assumed for it."""
    io, module = buffer.get("io") or "out", optional_text(trainer, "submodule_name", where)
    if io != "out":
        return None, (f"It reads the {io} of its submodule ({module}): name the hook in the run file.",)
    match = SUBMODULE.fullmatch(module or "resid_post")
    if match is None:
        return None, (
            f"Its submodule {module} has no name in TransformerLens: name the hook in the run file.",
        )
    layer = trainer.get("layer") if match[2] is None else int(match[2])
    if layer is None:
        return None, ()
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise InputError(f"{where} has layer {layer!r}; it must be a whole number from 0")
    assumed = "No submodule is named: the residual stream after the layer is assumed, the package's default."
    return f"blocks.{layer}.{HOOKS[match[1]]}", () if module else (assumed,)


def _notes(name: str, file: TensorFile) -> tuple[str, ...]:
    if name == "AutoEncoder":
        return (
            "As by its own loader, activations are times the norms of the decoder's vectors, which have norm "
            "1 then.",
        )
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        if "threshold" in file.shapes and float(_scalar(file, "threshold")) < 0:
            return (
                "Its threshold was never set in training (it is below 0): every positive activation fires.",
            )
        return ("Its learnt threshold decides what fires, not the k largest of a batch.",)
    return ()
