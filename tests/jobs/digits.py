"""A tiny corpus of images, the networks of `train-digits` trained on it, and its store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from jobs.studies.digits.train_digits import train_digits
from pipeline.store import FeatureStore
from schemas.run.file import RunFile, parse_run_file
from tests.lakes import extracted

SIDE, EACH = 8, 40


def write_images(path: Path) -> Path:
    """A bar across, a bar down, a square: `EACH` of either, moved about, with noise."""
    random, pixels = np.random.default_rng(0), np.zeros((3 * EACH, SIDE, SIDE))
    for number, image in enumerate(pixels):
        at = int(random.integers(1, SIDE - 3))
        here, along = slice(at, at + 2), slice(1, 7)
        form = [(here, along), (along, here), (slice(2, 6), slice(2, 6))][number % 3]
        image[form] = random.uniform(120, 255)
    pixels = np.clip(pixels + random.uniform(0, 30, pixels.shape), 0, 255).astype(np.uint8)
    np.savez(path, image=pixels, label=np.array(["across", "down", "square"] * EACH))
    return path


def trained(folder: Path, **settings: object) -> RunFile:
    """The run file of networks trained in a second or so, in three shards."""
    images = str(write_images(folder / "images.npz"))
    run_file = train_digits(folder / "out", images, features=24, **settings)  # type: ignore[arg-type]
    content = yaml.safe_load(run_file.read_text())
    content["tokens"]["shard_tokens"] = 60
    content["extract"] |= {"cpus_per_worker": 1, "check_sae": "off"}
    return parse_run_file(content, "run.yaml")


def store_of(folder: Path) -> FeatureStore:
    """The store, extracted, without tables."""
    return extracted(trained(folder, epochs=0.1), tables=False)
