"""A billion activations, made without a model, through the commands that users type, against the truth.

python -m jobs.bench scale        # some 15 minutes and 20 GB of disk
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from jobs.bench.report import Section, seconds_of
from jobs.bench.watched import Watched, watched
from pipeline.store import FeatureStore
from pipeline.store.records.tokens import read_token_shard
from pipeline.synthetic.generator import Generator
from pipeline.synthetic.planted import planted_rows
from pipeline.synthetic.recipe import parse
from pipeline.synthetic.truth import Truth, truth
from schemas.layout import CSR, PARTIALS, POSTINGS

SITE = "made"
D_SAE, L0 = 65_536, 62.5
TOKENS_PER_DOCUMENT, SHARD_TOKENS = 512, 256_000
QUERIES, STRONGEST = 100, 20


@dataclass(frozen=True)
class Step:
    """One command: wall seconds, activations a second, and the peak memory of all its processes."""

    name: str
    seconds: float
    rate: float
    peak_gb: float


def run(folder: Path, threads: int, nonzeros: float = 1e9) -> Section:
    """Measure every step; AssertionError where a result is not the generator's truth."""
    config = write_run_file(folder, nonzeros, threads)
    steps = [step("tokenize", config, 0), step("extract", config, 0)]
    store = FeatureStore.open(folder / "store")
    nnz = sum(receipt.sites[SITE].nnz for receipt in store.receipts(SITE).values())
    steps[1] = Step("extract", steps[1].seconds, nnz / steps[1].seconds, steps[1].peak_gb)
    steps.append(step("stats", config, nnz))
    made = Generator(parse(store.site(SITE).sae))
    tokens = (read_token_shard(store.layout, store.lake, record) for record in store.shards)
    check(store, made, truth(made, tokens))
    steps.append(step("verify", config, nnz))
    before = queries(folder / "store", made)
    steps.append(step("compact", config, nnz))
    after = queries(folder / "store", made)
    again = step("verify", config, nnz)
    steps.append(replace(again, name="verify, with the compaction"))
    return section(store, nnz, steps, before, after)


def write_run_file(folder: Path, nonzeros: float, workers: int) -> Path:
    """The run file of a lake with about so many activations."""
    documents = max(1, round(nonzeros / L0 / TOKENS_PER_DOCUMENT))
    content = {
        "corpus": {
            "kind": "synthetic",
            "documents": documents,
            "tokens_per_document": TOKENS_PER_DOCUMENT,
            "vocabulary": 4096,
        },
        "tokens": {"shard_tokens": SHARD_TOKENS},
        "model": {"loader": "synthetic"},
        "sites": [{"name": SITE, "sae": f"synthetic:d_sae={D_SAE},l0={L0}"}],
        "store": {"root": str(folder / "store")},
        "extract": {"workers": workers, "cpus_per_worker": 1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def step(command: str, config: Path, nnz: int) -> Step:
    """Run one command over the store, when what was written before is on the disk."""
    os.sync()
    done: Watched = watched(["jobs", command, str(config)])
    return Step(command, done.seconds, nnz / done.seconds, done.peak_gb)


def check(store: FeatureStore, made: Generator, true: Truth) -> None:
    """The tables against the truth: counts exactly, means and variances to 1e-12."""
    table = store.scan_features(SITE).collect()
    exact = {
        "n_active": true.n_active,
        "active_contexts": true.active_contexts,
        "active_documents": true.active_documents,
    }
    for name, values in exact.items():
        assert np.array_equal(table[name].to_numpy(), values), name
    fired = true.n_active > 0
    largest = table["max_activation"].fill_null(0).to_numpy()
    assert np.array_equal(largest[fired], (true.max_k / 64)[fired]), "max_activation"
    for kind in ("active", "all"):
        for name, expected in zip(("mean", "var"), true.moments(active=kind == "active"), strict=True):
            column = table[f"{name}_{kind}"].to_numpy()
            has = np.isfinite(column)
            np.testing.assert_allclose(column[has], expected[has], rtol=1e-12, err_msg=f"{name}_{kind}")
    # the strongest rows of the planted features are where they were put
    n_rows = table["rows"][0]
    examples = store.scan_table(SITE, "examples").filter(pl.col("kind") == "top").collect()
    for feature in made.planted.tolist():
        rows, activations = planted_rows(n_rows, feature, made.planted)
        strongest = examples.filter(pl.col("feature") == feature).sort("rank")
        n = min(STRONGEST, len(rows))
        assert strongest["row"].to_list()[:n] == rows[:n].tolist(), f"strongest rows of {feature}"
        assert strongest["activation"].to_list()[:n] == activations[:n].tolist(), f"strongest of {feature}"


def queries(root: Path, made: Generator) -> list[float]:
    """Seconds of the 20 strongest contexts of each of 100 features, as a store just opened answers them.

    Features are drawn evenly over the SAE, and some are the planted ones. The first question, which reads
    where contexts begin, is not counted.
    """
    store = FeatureStore.open(root)
    drawn = np.random.default_rng(0).choice(made.recipe.d_sae, QUERIES - len(made.planted), replace=False)
    features = [*drawn.tolist(), *made.planted.tolist()]
    store.contexts(SITE, features[0], STRONGEST)
    return [seconds_of(partial(store.contexts, SITE, feature, STRONGEST)) for feature in features]


def section(
    store: FeatureStore, nnz: int, steps: Sequence[Step], before: list[float], after: list[float]
) -> Section:
    """All that was measured."""
    objects = [o for receipt in store.receipts(SITE).values() for o in receipt.objects]
    size = {
        name: sum(o.bytes for o in objects if o.path == f"{SITE}/{name}") / nnz
        for name in (CSR, POSTINGS, PARTIALS)
    }
    medians = {"shards": float(np.median(before)), "compacted": float(np.median(after))}
    rows = [[s.name, f"{s.seconds:,.1f}", f"{s.rate / 1e6:,.1f}", f"{s.peak_gb:.2f}"] for s in steps]
    rows += [
        [
            f"top {STRONGEST} of a feature, median of {QUERIES}, {kind}",
            f"{seconds:.4f} (p95 {np.quantile(all_, 0.95):.4f})",
            "",
            "",
        ]
        for (kind, seconds), all_ in zip(medians.items(), (before, after), strict=True)
    ]
    facts = ", ".join(f"{name} {value:.2f}" for name, value in size.items())
    title = (
        f"{nnz:,} activations in {store.totals(SITE).rows:,} rows, {len(store.shards)} shards, "
        f"d_sae {D_SAE:,}; bytes an activation: {facts}; tables equal the generator's truth"
    )
    raw = [asdict(s) for s in steps] + [{"nnz": nnz, "bytes": size, "before": before, "after": after}]
    return Section("scale", title, ("step", "seconds", "M activations/s", "peak GB"), rows, raw)
