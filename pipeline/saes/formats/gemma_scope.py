"""Gemma Scope: `params.npz` with W_enc [D, F], b_enc, W_dec, b_dec and threshold, a JumpReLU SAE.

The file says nothing about itself. Where it lies does: `gemma-scope-2b-pt-res/layer_12/width_16k/
average_l0_82/params.npz`, or the same below a folder of the hub's cache (`models--google--gemma-scope-...`).
What the path does not say is left open, and the run file must say it.

Lieberum et al. 2024, arXiv:2408.05147; the hooks are those of SAELens' loader.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.saes.files.tensors import TensorFile, open_npz
from pipeline.saes.metadata import SaeMetadata, finite
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.encoding.weights import Weights

WEIGHTS = "params.npz"
LOOKS_FOR = f"a folder with {WEIGHTS}"

ARRAYS = ("W_enc", "W_dec", "b_dec", "b_enc", "threshold")

HOOKS = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""Kind of SAE in the name of its repository -> the hook in a block, and that of what it reconstructs."""

CONTEXT_SIZE = 1024
"""Tokens of a context that all of them were trained on, with BOS first."""

EMBEDDING_NOTE = (
    "An SAE of embeddings before Gemma multiplies them by sqrt(d_model); that factor is folded into its "
    "weights, so it reads hook_embed of a HookedTransformer, which has it. SAELens leaves b_dec as it "
    "is, here it is scaled too: features are the same, reconstructions differ."
)


class PathInfo(NamedTuple):
    """What a path says."""

    model_name: str | None
    kind: str | None
    layer: int | None
    l0: float | None
    embedding: bool


def matches(path: Path) -> bool:
    """Whether this reader is the one for `path`."""
    return (path / WEIGHTS).is_file() or path.suffix == ".npz"


def read_metadata(path: Path) -> SaeMetadata:
    """From the shapes of the arrays, and the path."""
    path_info = _path_info(path)
    file = open_npz(_file(path))
    d_model, d_sae, d_out = _widths(file)
    transcoder = path_info.kind == "transcoders"
    hook_in, hook_out = _hooks(path_info)
    return SaeMetadata(
        architecture="jumprelu",
        d_model=d_model,
        d_sae=d_sae,
        apply_b_dec_to_input=False,
        transcoder=transcoder,
        d_out=d_out if transcoder else None,
        format="gemma_scope",
        hook_name=hook_in,
        hook_name_out=hook_out,
        prepend_bos=True if path_info.model_name else None,
        context_size=CONTEXT_SIZE if path_info.model_name else None,
        model_name=path_info.model_name,
        card=finite({"l0": path_info.l0}),
        notes=(EMBEDDING_NOTE,) if path_info.embedding else (),
    )


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [_file(path)]


def settings(path: Path) -> dict[str, Any]:
    """See pipeline.saes.formats: an SAE of embeddings is recognised by its path alone."""
    return {"embedding": True} if _path_info(path).embedding else {}


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats."""
    from pipeline.saes.encoding.weights import fold_input_scale

    file = open_npz(_file(path))
    weights = file.take(_names(file), metadata)
    if _path_info(path).embedding:
        return fold_input_scale(weights, metadata.d_model**-0.5)
    return weights


def _file(path: Path) -> Path:
    return path if path.suffix == ".npz" else path / WEIGHTS


def _names(file: TensorFile) -> dict[str, str]:
    """Our names -> the file's, which are written w_enc in some repositories."""
    by_lower = {name.lower(): name for name in file.shapes}
    return {name: by_lower.get(name.lower(), name) for name in ARRAYS}


def _widths(file: TensorFile) -> tuple[int, int, int]:
    """D, F and the width of a reconstruction."""
    names = _names(file)
    w_enc, w_dec = (tuple(file.shapes.get(names[name], ())) for name in ("W_enc", "W_dec"))
    if len(w_enc) != 2 or len(w_dec) != 2:
        raise InputError(
            f"{file.path} holds {', '.join(sorted(file.shapes)) or 'no arrays'}; a Gemma Scope SAE has "
            f"{', '.join(sorted(ARRAYS))}, W_enc and W_dec with two dimensions"
        )
    return w_enc[0], w_enc[1], w_dec[1]


def _path_info(path: Path) -> PathInfo:
    """What the parts of the path say; symbolic links, as in the hub's cache, are not followed."""
    text = _file(path).absolute().as_posix()
    repository = re.findall(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)", text)
    size, tuned, kind = repository[-1] if repository else (None, None, None)
    layer = re.findall(r"/layer_(\d+)(?=/)", text)
    l0 = re.findall(r"/average_l0_(\d+)(?=/)", text)
    return PathInfo(
        model_name=f"gemma-2-{size}{'-it' if tuned == 'it' else ''}" if size else None,
        kind=kind,
        layer=int(layer[-1]) if layer else None,
        l0=float(l0[-1]) if l0 else None,
        embedding="/embedding/" in text and not layer,
    )


def _hooks(path_info: PathInfo) -> tuple[str | None, str | None]:
    """TransformerLens' names of where it reads and of what it reconstructs."""
    if path_info.embedding:
        return "hook_embed", None
    if path_info.kind is None or path_info.layer is None:
        return None, None
    hook_in, hook_out = HOOKS[path_info.kind]
    block = f"blocks.{path_info.layer}"
    return f"{block}.{hook_in}", f"{block}.{hook_out}" if hook_out else None
