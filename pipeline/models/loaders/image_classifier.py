"""Loader of the classifier that `latentlake train-digits` trains: a folder; it reads the images of a corpus.

Hooks: `encode` (before relu(tanh(.))), `hidden`, `logits`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import InputError
from schemas.records import Inputs, digest_of, digest_of_file
from schemas.run import file as run_file

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.hooks.hooked import HookedModel

FILES = ("config.json", "model.safetensors")


def load(model: run_file.Model, hooks: list[str], device: str, inputs: Inputs | None) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch

    from pipeline.models.hooks.hooked import HookedModel
    from pipeline.models.loaders.image_networks import load_classifier
    from pipeline.models.loaders.torch_module import attacher

    if model.weight_processing:
        raise InputError("model.processing is TransformerLens': set model.processing: {}")
    classifier = load_classifier(Path(model.path).expanduser())
    pixels = classifier.encode.in_features
    if inputs is None or inputs.width != pixels:
        given = "holds tokens" if inputs is None else f"holds vectors of {inputs.width}"
        raise InputError(
            f"model {model.path} reads images of {pixels} pixels, but the corpus {given}: set corpus.kind: "
            "images, and a path of such images"
        )
    classifier = classifier.to(device, getattr(torch, model.dtype)).eval()

    def run(x: Tensor, mask: Tensor | None) -> object:  # noqa: ARG001 - rows do not see each other
        return classifier(x.to(classifier.encode.weight.dtype))

    return HookedModel(hooks, attacher(classifier), run, torch.device(device), None, inputs=inputs)


def digest(path: str) -> str:
    """See pipeline.models.model_digest; config.json holds the sha256 of the image decoder."""
    folder = Path(path).expanduser()
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"model {path!r} has no {missing[0]}: run `latentlake train-digits`")
    return digest_of([digest_of_file(folder / name) for name in FILES])


def max_context(path: str) -> None:
    """Contexts may have any size."""
