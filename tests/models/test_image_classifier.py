"""The classifier reads the images of a batch; its hooks are what the formulas give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pipeline.models import load_model, model_digest
from pipeline.models.loaders.image_decoder import read_decoder
from pipeline.models.loaders.image_networks import ImageClassifier, ImageDecoder, save_networks
from schemas.errors import InputError
from schemas.records import Inputs
from schemas.run.file import Model
from schemas.values import TokenBatch

PIXELS, HIDDEN, CLASSES = 12, 5, 3
INPUTS = Inputs(width=PIXELS, dtype="float32", shape=(3, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    classifier, decoder = ImageClassifier(PIXELS, HIDDEN, CLASSES), ImageDecoder(HIDDEN, PIXELS)
    about = {"shape": [3, 4], "class_names": ["a", "b", "c"]}
    return save_networks(tmp_path_factory.mktemp("networks") / "model", classifier, decoder, about)


def model(folder: Path) -> Model:
    return Model(loader="image_classifier", path=str(folder))


def test_hidden_and_logits_are_the_formulas(folder: Path) -> None:
    x = np.random.default_rng(0).random((4, 2, PIXELS), dtype=np.float32)
    batch = TokenBatch(np.zeros((4, 2), np.int64), np.array([2, 1, 2, 2]), x)
    result = load_model(model(folder), ["hidden", "logits"], "cpu", 1, INPUTS).forward(batch)
    w = load_file(folder / "model.safetensors")
    real = np.delete(x.reshape(8, PIXELS), 3, axis=0)
    hidden = np.maximum(np.tanh(real @ w["encode.weight"].T + w["encode.bias"]), 0)
    np.testing.assert_allclose(result["hidden"], hidden, atol=1e-6)
    assert 0.2 < (hidden == 0).mean() < 0.8
    logits = hidden @ w["logits.weight"].T + w["logits.bias"]
    np.testing.assert_allclose(result["logits"], logits, atol=1e-6)
    reader = read_decoder(folder)
    np.testing.assert_allclose(
        reader.probabilities(hidden), np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-5
    )


def test_the_image_decoder_is_read_without_torch_as_torch_computes_it(folder: Path) -> None:
    reader = read_decoder(folder)
    decoder = ImageDecoder(HIDDEN, PIXELS)
    weights = load_file(folder / "image_decoder.safetensors")
    decoder.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    hidden = np.random.default_rng(1).random((6, HIDDEN))
    with torch.no_grad():
        expected = decoder(torch.from_numpy(hidden).float()).numpy()
    np.testing.assert_allclose(reader.images(hidden), expected, atol=1e-6)
    assert (reader.shape, reader.classes, reader.width) == ((3, 4), ("a", "b", "c"), HIDDEN)


def test_the_digest_is_of_its_files_and_of_the_decoder(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    classifier, decoder = ImageClassifier(PIXELS, HIDDEN, CLASSES), ImageDecoder(HIDDEN, PIXELS)
    about = {"shape": [3, 4], "class_names": ["a", "b", "c"]}
    other = save_networks(tmp_path / "other", classifier, decoder, about)
    digest = model_digest(model(other))
    assert digest != model_digest(model(folder))
    save_networks(other, classifier, decoder, about)
    assert model_digest(model(other)) == digest
    save_networks(other, classifier, ImageDecoder(HIDDEN, PIXELS), about)
    assert model_digest(model(other)) != digest


def test_a_decoder_that_was_changed_alone_is_refused_and_older_folders_are_read(
    folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "image_decoder.safetensors")
    save_file({name: array + 1 for name, array in weights.items()}, copy / "image_decoder.safetensors")
    with pytest.raises(InputError, match=r"image_decoder\.safetensors is not the one that config\.json"):
        read_decoder(copy)
    config = json.loads((copy / "config.json").read_text())
    del config["image_decoder_sha256"]
    (copy / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(read_decoder(copy).bias, weights["decode.bias"] + 1)
    for wrong in (config | {"shape": None}, config | {"shape": [4, 4]}, [config]):
        (copy / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="has no image decoder that can be read"):
            read_decoder(copy)


def test_what_does_not_fit_is_said(folder: Path, tmp_path: Path) -> None:
    wide = Inputs(width=9, dtype="uint8", shape=(3, 3))
    (tmp_path / "config.json").write_text("{}")

    def refused(path: Path, hook: str, message: str, inputs: Any = INPUTS) -> None:
        with pytest.raises(InputError, match=message):
            load_model(model(path), [hook], "cpu", 1, inputs)

    refused(folder, "hidden", "reads images of 12 pixels, but the corpus holds vectors of 9", wide)
    refused(folder, "hidden", "but the corpus holds tokens", None)
    refused(folder, "hiden", "no hook 'hiden'; near: hidden")
    refused(tmp_path, "hidden", "not a folder of an image classifier")
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        model_digest(model(tmp_path))
    with pytest.raises(InputError, match="has no image decoder"):
        read_decoder(tmp_path)
