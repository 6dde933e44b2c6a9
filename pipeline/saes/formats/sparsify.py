"""EleutherAI's sparsify (eai-sparsify 1.3): `cfg.json` and `sae.safetensors`, one folder per hook.

After sparsify/sparse_coder.py and fused_encoder.py: acts = topk(relu((x - b_dec) @ encoder.weight.T +
encoder.bias)), of a transcoder without b_dec; reconstruction = acts @ W_dec + b_dec, plus W_skip @ x.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.encoding.architectures import array_names
from pipeline.saes.files.tensors import (
    flag,
    open_safetensors,
    optional_int,
    optional_text,
    positive_int,
    read_json,
    require,
)
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.encoding.weights import Weights

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
LOOKS_FOR = f"a folder with {CONFIG} and {WEIGHTS}"

NAMES = {
    "W_enc": "encoder.weight.T",
    "b_enc": "encoder.bias",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
    "W_skip": "W_skip",
}

DEFAULT_EXPANSION, DEFAULT_K = 32, 32
"""SparseCoderConfig's, for files that lack the key."""

UNDERSTOOD = {
    "d_in", "num_latents", "expansion_factor", "activation", "k", "transcode", "skip_connection", "signed",
}  # fmt: skip

LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)[._](\d+)(?:\.(\w+))?")
"""A block, or a module of a block, by its Hugging Face name, which is the name of the folder."""

READS_AND_WRITES = {
    None: ("hook_resid_pre", "hook_resid_post", "hook_resid_post"),
    "mlp": ("mlp.hook_in", "mlp.hook_out", "hook_mlp_out"),
    "attn": ("attn.hook_in", "attn.hook_out", "hook_attn_out"),
    "self_attn": ("attn.hook_in", "attn.hook_out", "hook_attn_out"),
    "attention": ("attn.hook_in", "attn.hook_out", "hook_attn_out"),
}
"""Module of a block -> what goes into it, what comes out of it, and what it adds to the residual stream, by
TransformerLens' names. The last two are the same but in models with a norm after the module (Gemma 2)."""

NOTES = {
    "topk": "sparsify takes relu before the k largest, so a row with few positives has fewer than k.",
    "abstopk": "signed: the k largest magnitudes fire, as in the early versions of sparsify that train so.",
}


def matches(path: Path) -> bool:
    """Whether this reader is the one for `path`."""
    return (path / WEIGHTS).is_file() or path.name == WEIGHTS


def read_metadata(path: Path) -> SaeMetadata:
    """Read cfg.json, and the config.json of the run in the folder above."""
    folder = _folder(path)
    where, config, run = folder / CONFIG, read_json(folder / CONFIG), _run(folder)
    d_model = positive_int(config.get("d_in"), "d_in", where)
    activation, signed = config.get("activation", "topk"), flag(config, "signed", where)
    if activation not in ("topk", "groupmax"):
        raise InputError(f"{where} has activation {activation!r}; known: topk, groupmax")
    architecture = "abstopk" if signed and activation == "topk" else str(activation)
    # 0 latents stand for d_in * expansion_factor
    given = config.get("num_latents", 0)
    if given or isinstance(given, bool):
        d_sae = positive_int(given, "num_latents", where)
    else:
        factor = config.get("expansion_factor", DEFAULT_EXPANSION)
        d_sae = d_model * positive_int(factor, "expansion_factor", where)
    k = positive_int(config.get("k", DEFAULT_K), "k", where)
    if k > d_sae or (architecture == "groupmax" and d_sae % k):
        why = "groups are of one size" if k <= d_sae else "there are fewer features"
        raise InputError(f"{where} has k {k} for {d_sae} features: {why}; restore the k it was trained with")
    transcoder = flag(config, "transcode", where)
    hook_name, hook_name_out = _hooks(folder, transcoder)
    return SaeMetadata(
        architecture=architecture,
        d_model=d_model,
        d_sae=d_sae,
        apply_b_dec_to_input=not transcoder,
        k=k,
        transcoder=transcoder,
        skip=flag(config, "skip_connection", where),
        format="sparsify",
        hook_name=hook_name,
        hook_name_out=hook_name_out,
        context_size=optional_int(run, "ctx_len", _run_file(folder)),
        model_name=optional_text(run, "model", _run_file(folder)),
        notes=_notes(architecture, hook_name),
        extra={name: value for name, value in config.items() if name not in UNDERSTOOD},
    )


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [require(_folder(path) / WEIGHTS)]


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats. `normalize_decoder` is of no influence once trained."""
    file = open_safetensors(_folder(path) / WEIGHTS)
    if "W_dec" not in file.shapes and "encoder.weight" in file.shapes:
        raise InputError(
            f"{file.path} holds an encoder without W_dec: save the sparse coder with its decoder"
        )
    wanted = array_names(metadata.architecture, skip=metadata.skip)
    return file.take({name: NAMES[name] for name in wanted}, metadata)


def _folder(path: Path) -> Path:
    return path.parent if path.name == WEIGHTS else path


def _hook_folder(folder: Path) -> Path:
    """The folder that is named after the hook; runs with several seeds have one folder more per seed."""
    folder = folder.absolute()
    return folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder


def _hooks(folder: Path, transcoder: bool) -> tuple[str | None, str | None]:
    """Where it reads, and where a transcoder writes, by TransformerLens' names."""
    name = _hook_folder(folder).name
    if name in ("embed_tokens", "embed_in", "wte") and not transcoder:
        return "hook_embed", None
    match = LAYER.fullmatch(name)
    if match is None or match[2] not in READS_AND_WRITES:
        return None, None
    reads, writes, adds = (f"blocks.{int(match[1])}.{hook}" for hook in READS_AND_WRITES[match[2]])
    return (reads, writes) if transcoder else (adds, None)


def _run_file(folder: Path) -> Path:
    return _hook_folder(folder).parent / "config.json"


def _run(folder: Path) -> dict[str, Any]:
    """The configuration of the training run, if it was copied with its SAEs."""
    content = read_json(_run_file(folder)) if _run_file(folder).is_file() else {}
    return content if "sae" in content else {}


def _notes(architecture: str, reads: str | None) -> tuple[str, ...]:
    notes = [NOTES[architecture]] if architecture in NOTES else []
    if reads is not None and reads.endswith(("mlp_out", "attn_out")):
        exact = reads.replace("hook_", "").replace("_out", ".hook_out")
        notes.append(
            "It was trained on the output of the module itself; in a model with a norm after the module "
            f"(Gemma 2, OLMo 2) that is {exact}, not {reads}."
        )
    return tuple(notes)
