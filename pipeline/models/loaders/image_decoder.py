"""From hidden values to an image, by the decoder that was trained with the classifier; needs no torch.

H hidden values, P pixels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from scipy.special import expit, softmax

from pipeline.store.formats.safetensors import load_tensors
from schemas.errors import InputError
from schemas.storage_failures import file_of, storage_failure
from schemas.values import F32, F64

DECODER = "image_decoder.safetensors"
DECODER_SHA256 = "image_decoder_sha256"
"""In config.json, whose bytes are in the digest of the model: so the decoder is the pass's too."""


@dataclass(frozen=True)
class ImageReader:
    """What a folder of `pipeline.models.loaders.image_networks` holds: `weight` [P, H], `bias` [P], and the
    head of the classifier, `head` [C, H], `head_bias` [C].
    """

    weight: F32
    bias: F32
    head: F32
    head_bias: F32
    shape: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def width(self) -> int:
        """H."""
        return int(self.weight.shape[1])

    def images(self, hidden: F64) -> F64:
        """Pixels [n, P], 0 to 1, of hidden values [n, H]: sigmoid(W h + b), in float64."""
        # expit does not overflow, whatever the hidden values are
        pixels: F64 = expit(hidden @ self.weight.T.astype(np.float64) + self.bias)
        return pixels

    def probabilities(self, hidden: F64) -> F64:
        """What the classifier gives for hidden values [n, H]: the probability of each class [n, C]."""
        shares: F64 = softmax(hidden @ self.head.T.astype(np.float64) + self.head_bias, axis=-1)
        return shares


def read_decoder(folder: Path) -> ImageReader:
    """The decoder of a folder; InputError where there is none, or another than its config.json names."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        content = (folder / DECODER).read_bytes()
        weights = load_tensors(content)
        head = load_tensors((folder / "model.safetensors").read_bytes())
        shape = tuple(config["shape"])
        if config.get(DECODER_SHA256) not in (None, sha256(content).hexdigest()):  # None: of older folders
            raise ValueError(f"{DECODER} is not the one that config.json was written with")
        if len(weights["decode.weight"]) != math.prod(shape):
            raise ValueError(f"{DECODER} does not make images of the shape {list(shape)}")
        return ImageReader(
            weights["decode.weight"],
            weights["decode.bias"],
            head["logits.weight"],
            head["logits.bias"],
            shape,
            tuple(config["class_names"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise storage_failure(error, file_of(error, folder), "read") or InputError(
            f"{folder} has no image decoder that can be read ({reason}): give as --model the folder of "
            "a classifier that `latentlake train-digits` wrote"
        ) from None
