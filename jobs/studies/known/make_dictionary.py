"""`latentlake make-dictionary RUN.yaml --out DIR`: the truth of a dictionary, and SAEs made of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.markup import escape

from jobs.terminal.console import say
from pipeline.sources.generated.dictionary import open_dictionary
from pipeline.store.objects.local import storage_errors
from pipeline.store.objects.verbs import write_atomic
from pipeline.synthetic.dictionary.sae import MadeLike, write_dictionary_sae
from pipeline.synthetic.dictionary.truth import KnownTruth, truth_of, write_truth
from schemas.errors import InputError
from schemas.run.file import Corpus

TRUTH_FILE = "truth.npz"


def make_dictionary(corpus: Corpus, out: Path, made: Sequence[MadeLike]) -> KnownTruth:
    """Write `truth.npz` and, for each way of making one, an SAE's folder (see `sae_name`) into `out`.

    InputError where the corpus is not a dictionary.
    """
    if corpus.dictionary is None:
        raise InputError(
            f"corpus.kind is {corpus.kind}: a truth and SAEs are made of corpus.kind: dictionary alone"
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
        say(f"  SAE of noise {one.noise:g}, {_told(one)}: {escape(str(folder))}")
    return truth


def sae_name(made: MadeLike) -> str:
    """`sae-<noise>`."""
    return f"sae-{made.noise:g}"


def _told(made: MadeLike) -> str:
    where = f"thresholds at {made.threshold:g} of mean values" if made.threshold else "ReLU"
    return f"{where}, {'in random order' if made.shuffled else 'in the order of the features'}"
