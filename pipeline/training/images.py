"""The classifier of images and the decoder back to images; what an SAE is trained on lies between them.

n images, P pixels in 0 to 1, H hidden values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.models.loaders.image_networks import ImageClassifier, ImageDecoder
from pipeline.training.batches import Steps, trained

HIDDEN = 49


def train_classifier(
    images: Tensor, labels: Tensor, classes: int, steps: Steps, advance: Callable[[int], None]
) -> ImageClassifier:
    """Train on images float32 [n, P] and labels int64 [n] by cross-entropy, with Adam."""
    torch.manual_seed(steps.seed)
    classifier = ImageClassifier(images.shape[1], HIDDEN, classes)

    def loss_of(rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(classifier(images[rows]), labels[rows])

    return trained(classifier, len(images), steps, advance, loss_of)


def train_decoder(
    hidden: Tensor, images: Tensor, steps: Steps, advance: Callable[[int], None]
) -> ImageDecoder:
    """Train hidden values float32 [n, H] -> images [n, P] by the mean squared error, with Adam."""
    torch.manual_seed(steps.seed)
    decoder = ImageDecoder(hidden.shape[1], images.shape[1])

    def loss_of(rows: Tensor) -> Tensor:
        return nn.functional.mse_loss(decoder(hidden[rows]), images[rows])

    return trained(decoder, len(images), steps, advance, loss_of)


def hidden_of(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """The hidden values [n, H] of images [n, P]."""
    with torch.inference_mode():
        hidden: Tensor = classifier.hidden(classifier.encode(images))
    return hidden.clone()


def accuracy(classifier: ImageClassifier, images: Tensor, labels: Tensor) -> float:
    """The share of images that are classified correctly."""
    with torch.inference_mode():
        return float((classifier(images).argmax(dim=1) == labels).float().mean())
