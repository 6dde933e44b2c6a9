"""The two small networks of a study of images, and the folder that they are saved in.

The classifier is pixels -> hidden -> classes, hidden = relu(tanh(.)), hooks `hidden` and `logits`; the image
decoder turns hidden values back into pixels, sigmoid(linear). A folder holds config.json, with the sha256 of
the decoder, model.safetensors (the classifier) and image_decoder.safetensors.

B contexts, T positions, P pixels, H hidden values, C classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.models.loaders.image_decoder import DECODER, DECODER_SHA256
from schemas.errors import InputError
from schemas.records import digest_of_file
from schemas.storage_failures import storage_failure

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "image_classifier"


class ReluTanh(nn.Module):
    """relu(tanh(x)): 0 to 1, and 0 for half of what comes."""

    def forward(self, x: Tensor) -> Tensor:
        """Of each value."""
        return torch.relu(torch.tanh(x))


class ImageClassifier(nn.Module):
    """inputs [..., P] -> logits [..., C]."""

    def __init__(self, pixels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.encode, self.hidden = nn.Linear(pixels, hidden), ReluTanh()
        self.logits = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.logits(self.hidden(self.encode(inputs)))
        return logits


class ImageDecoder(nn.Module):
    """hidden values [..., H] -> pixels [..., P] in 0 to 1."""

    def __init__(self, hidden: int, pixels: int) -> None:
        super().__init__()
        self.decode = nn.Linear(hidden, pixels)

    def forward(self, hidden: Tensor) -> Tensor:
        """The pixels."""
        return torch.sigmoid(self.decode(hidden))


def save_networks(
    folder: Path, classifier: ImageClassifier, decoder: ImageDecoder, about: dict[str, Any]
) -> Path:
    """Write the folder; `about` goes into config.json (names of the classes, shape of an image, accuracy)."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "pixels": classifier.encode.in_features,
        "hidden": classifier.encode.out_features,
        "classes": classifier.logits.out_features,
    }
    save_file(classifier.state_dict(), folder / WEIGHTS)
    save_file(decoder.state_dict(), folder / DECODER)
    # config.json holds the decoder's digest, and is in that of the model: so the decoder is too
    decoder_sha256 = digest_of_file(folder / DECODER)
    config = {"model_type": KIND, **sizes, DECODER_SHA256: decoder_sha256, **about}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def load_classifier(folder: Path) -> ImageClassifier:
    """The classifier of a folder; InputError where it holds none."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        known = config["model_type"] == KIND and all(
            isinstance(config[name], int) and config[name] > 0 for name in ("pixels", "hidden", "classes")
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if (failure := storage_failure(error, folder / CONFIG, "read")) is not None:
            raise failure from None
        known = False
    if not known:
        raise InputError(
            f"model {str(folder)!r} is not a folder of an image classifier (a {CONFIG} with model_type "
            f"{KIND}): run `latentlake train-digits`, or set model.loader"
        )
    classifier = ImageClassifier(config["pixels"], config["hidden"], config["classes"])
    try:
        classifier.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise storage_failure(error, folder / WEIGHTS, "read") or InputError(
            f"{folder / WEIGHTS} does not hold the classifier of its {CONFIG}: {reason}"
        ) from None
    return classifier
