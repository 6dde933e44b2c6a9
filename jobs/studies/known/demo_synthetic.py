"""`latentlake demo --synthetic`: vectors of a known dictionary through the pipeline, against their truth.

No model is run and nothing is fetched; the SAEs are made of the dictionary, one exactly, one with noise.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.panel import Panel

from jobs.figures.plots import plots
from jobs.lake.run import run
from jobs.studies.known.make_dictionary import TRUTH_FILE, make_dictionary, sae_name
from jobs.studies.known.truth import truth
from jobs.terminal.console import console, say
from jobs.terminal.outputs import write_once
from pipeline.store import FeatureStore
from pipeline.synthetic.dictionary.sae import SaeOptions
from schemas.run.file import parse_run_file

SITES = {"exact": SaeOptions(noise=0.0), "noisy": SaeOptions(noise=0.02)}

RECIPE: dict[str, Any] = {
    "features": 64,
    "width": 96,
    "documents": 2000,
    "rows": 20,
    "cosine": 0.0,
    "probability": {"first": 0.25, "last": 0.01},
    "magnitude": {"first": 1.0, "last": 3.0},
    "magnitude_std": {"first": 0.1, "last": 0.3},
    "noise": 0.02,
    "bias": 1.0,
    "correlated": [
        {"features": [20, 21], "correlation": 0.9},
        {"features": [30, 31, 32], "correlation": 0.7},
        {"features": [40, 41], "correlation": -0.5},
    ],
    "trees": [
        {
            "feature": 0,
            "children": [
                {"feature": 10, "children": [{"feature": 1}]},
                {"exclusive": True, "children": [{"feature": 2}, {"feature": 3}, {"feature": 4}]},
            ],
        },
        {"exclusive": True, "children": [{"feature": 5}, {"feature": 6}, {"feature": 7}]},
    ],
}


def demo_synthetic(out: Path) -> None:
    """Make the dictionary, its truth and SAEs in `out`, run all of it, and show truth against measured."""
    began = time.monotonic()
    console.print(
        Panel(
            f"{RECIPE['documents'] * RECIPE['rows']:,} vectors are sums of {RECIPE['features']} features: "
            "their directions, frequencies, values, correlations and trees are known. Two SAEs built "
            "from them read the vectors: one exact, one with noise. The contents of the store are compared "
            "with the truth.",
            title="latentlake demo --synthetic",
        )
    )
    path = write_once(out, run_content(out))
    run_file = parse_run_file(run_content(out), str(path))
    known = make_dictionary(run_file.corpus, out, list(SITES.values()))
    run(run_file)
    store = FeatureStore.open(run_file.store.root)
    truth(store, list(SITES), known)
    plots(store, "exact")
    root = escape(str(out / "store"))
    say(
        f"{time.monotonic() - began:.0f} s. The rows that differ in `noisy` come from the noise on its "
        "weights; `exact` shows what the pipeline itself adds.\n\n"
        "Try next:\n"
        f"  latentlake truth {root} --truth {escape(str(out / TRUTH_FILE))} --site noisy\n"
        f"  latentlake top {root} 0 --site exact\n"
        f"  latentlake match {root} exact noisy\n"
        f"  latentlake verify {root}\n\n"
        f"The run file is {escape(str(path))}: change a copy, then `latentlake make-dictionary`, `run`, "
        "`truth`."
    )


def run_content(out: Path) -> dict[str, Any]:
    """The run file: the SAEs lie next to the store."""
    return {
        "corpus": {"kind": "dictionary", "dictionary": RECIPE},
        "tokens": {"context_size": 64, "shard_tokens": 10_000},
        "model": {"loader": "inputs"},
        "sites": [{"name": name, "sae": str(out / sae_name(made))} for name, made in SITES.items()],
        "store": {"root": str(out / "store"), "activation_dtype": "float32"},
        "extract": {"executor": "in_process", "cpus_per_worker": 1, "batch_contexts": 32},
        "derive": {"jobs": ["stats", "profile", "rank", "coactivation"]},
    }
