"""`latentlake make-dictionary RUN.yaml --out DIR`: the truth of a dictionary, and SAEs made of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from jobs.terminal.console import say
from pipeline.sources.generated.dictionary import open_dictionary
from pipeline.store.objects.local import storage_errors
from pipeline.store.objects.verbs import write_atomic
from pipeline.synthetic.dictionary.sae import SaeOptions, write_dictionary_sae
from pipeline.synthetic.dictionary.truth import KnownTruth, truth_of, write_truth
from schemas.errors import InputError
from schemas.run.file import Corpus, RunFile

TRUTH_FILE = "truth.npz"


def command(
    run_file: RunFile,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the ground truth and the SAEs.")
    ],
    noise: Annotated[
        list[float] | None,
        typer.Option(help="Standard deviation of the noise on an SAE's weights; may be repeated.", min=0),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Thresholds of the SAEs, as a share of each feature's mean; 0: ReLU.", min=0)
    ] = 0.5,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="Put an SAE's features in a random order.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the noise and the order.", min=0)] = 0,
) -> None:
    """Make the dictionary of the run file's corpus, with an SAE for each level of noise."""
    make_dictionary(
        run_file.corpus, out, [SaeOptions(level, threshold, shuffle, seed) for level in noise or [0.0]]
    )


def make_dictionary(corpus: Corpus, out: Path, made: Sequence[SaeOptions]) -> KnownTruth:
    """Write `truth.npz` and, for each way of making one, an SAE's folder (see `sae_name`) into `out`.

    InputError where the corpus is not a dictionary.
    """
    if corpus.dictionary is None:
        raise InputError(
            f"corpus.kind is {corpus.kind}: ground truth and SAEs can be made only for corpus.kind: "
            "dictionary"
        )
    truth = truth_of(open_dictionary(corpus.dictionary))
    with storage_errors(out, "give --out another place"):
        out.mkdir(parents=True, exist_ok=True)
        write_truth(truth, partial(write_atomic, out / TRUTH_FILE))
    shape = f"{truth.recipe.features:,} features of width {truth.recipe.width:,}"
    say(f"[bold]make-dictionary[/] {shape}: {escape(str(out / TRUTH_FILE))}")
    for one in made:
        folder = out / sae_name(one)
        with storage_errors(folder, "give --out another place"):
            write_dictionary_sae(folder, truth, one)
        where = f"thresholds at {one.threshold:g} of mean values" if one.threshold else "ReLU"
        order = "in random order" if one.shuffled else "in the order of the features"
        say(f"  SAE with noise {one.noise:g}, {where}, {order}: {escape(str(folder))}")
    return truth


def sae_name(made: SaeOptions) -> str:
    """`sae-<noise>`."""
    return f"sae-{made.noise:g}"
