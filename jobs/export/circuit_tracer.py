"""circuit-tracer's feature files: features/index.json.gz and features/layer_<n>.bin, one for each site.

A record is four bytes of its length, little-endian, then a gzip of JSON; the index has, for each layer, the
file's name and where each feature's record begins, and the end. Followed: circuit-tracer 0.5.0, in
circuit_tracer/frontend the files assets/feature_examples/init-feature-examples.js, assets/util.js
(getFile), local_server.py and feature_models.py (the fields of a record), equal in this to
safety-research/circuit-tracer (196e2ce). The viewer asks for bytes by neighbouring offsets, so every
feature of the SAE has a record; one that was not chosen, or never fires, has no examples. Cost as
neuronpedia.py's.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from jobs.command.options import Workers
from jobs.command.tasks import choose_tasks
from jobs.export.folder import Features, Layer, Out, Window, exporting
from jobs.export.neuronpedia import layer_of
from jobs.export.windows import Block, Source, favoured, read_block, source
from jobs.terminal.progress import track
from pipeline.statistics.features.histogram import PERCENTS
from pipeline.store import FeatureStore
from pipeline.tasks import Tasks
from schemas.errors import InputError
from schemas.values import U32

_LEVEL = 6


def command(
    store: FeatureStore,
    sites: list[str],
    out: Out,
    features: Features = "all",
    layer: Layer = None,
    window: Window = 128,
    workers: Workers = None,
) -> None:
    """Export the chosen features of the sites, a layer for each."""
    with (
        exporting(store, sites, out, "circuit-tracer", features) as new,
        choose_tasks(store, workers) as tasks,
    ):
        layers: dict[int, dict[str, Any]] = {}
        folder = new.folder / "features"
        folder.mkdir()
        for site, chosen in new.chosen.items():
            number = layer if layer is not None else layer_of(store.site(site).hook_name)
            if number in layers:
                raise InputError(f"two sites would be layer {number}: export one --site at a time")
            layers[number] = export(store, site, chosen, folder, tasks, layer=number, window=window)
            new.reports[site] = f"{layers[number]['offsets'][-1]:,} bytes as layer {number}"
        index = json.dumps({str(n): layers[n] for n in sorted(layers)}, separators=(",", ":"))
        (folder / "index.json.gz").write_bytes(gzip.compress(index.encode(), _LEVEL, mtime=0))


def export(
    store: FeatureStore, site: str, chosen: U32, out: Path, tasks: Tasks, *, layer: int, window: int
) -> dict[str, Any]:
    """Write one site's layer_<layer>.bin into `out`; its entry of the index."""
    info = store.site(site)
    about = source(store, site, window, ("logits",))
    name = f"layer_{layer}.bin"
    ranges = [
        range(first, min(first + info.feature_block, info.d_sae))
        for first in range(0, info.d_sae, info.feature_block)
    ]
    lengths = list[int]()
    write = partial(write_block, about, chosen, out, name)
    with (out / name).open("wb") as file:
        done = track(tasks.map(write, ranges), f"export circuit-tracer {site}", len(ranges), "blocks")
        for features, block_lengths in zip(ranges, done, strict=True):
            part = _part(out, name, features)
            with part.open("rb") as written:
                shutil.copyfileobj(written, file, 1 << 24)
            part.unlink()
            lengths += block_lengths
    return {"filename": name, "offsets": [0, *accumulate(lengths)]}


def write_block(about: Source, chosen: U32, out: Path, name: str, features: range) -> list[int]:
    """Write the records of a range of features next to the layer's file; the length of each."""
    block = read_block(about, chosen, features)
    logits = _logits(about, features)
    places = {feature: place for place, feature in enumerate(block.features["feature"].to_list())}
    # examples are sorted by feature: those of one lie between two bounds
    bounds = np.searchsorted(
        block.examples["feature"].to_numpy(), np.arange(features.start, features.stop + 1)
    )
    frequency = dict(about.table("features", features).select("feature", "frequency").iter_rows())
    lengths = list[int]()
    with _part(out, name, features).open("wb") as file:
        for number, feature in enumerate(features):
            examples = range(int(bounds[number]), int(bounds[number + 1]))
            record = {"transcoder_id": about.site, "index": feature, **_EMPTY} | logits.get(feature, {})
            record["activation_frequency"] = frequency[feature]
            if feature in places:
                place = places[feature]
                row, counts = block.features.row(place, named=True), block.histogram[place]
                record |= {  # the scale of colours, act_min to act_max, holds 0
                    "act_min": min(0.0, float(block.low[place])),
                    "act_max": max(0.0, float(block.high[place])),
                    "quantile_values": [row[f"q{p:02d}_active"] for p in PERCENTS] if row["n_active"] else [],
                    "histogram": counts.tolist() if counts.any() else [],
                    "examples_quantiles": _quantiles(about, block, examples),
                }
            data = gzip.compress(json.dumps(record, separators=(",", ":")).encode(), _LEVEL, mtime=0)
            lengths.append(file.write(struct.pack("<I", len(data)) + data))
    return lengths


_EMPTY: dict[str, Any] = {
    "examples_quantiles": [],
    "top_logits": [],
    "bottom_logits": [],
    "act_min": 0.0,
    "act_max": 0.0,
    "quantile_values": [],
    "histogram": [],
}


def _quantiles(about: Source, block: Block, examples: range) -> list[dict[str, Any]]:
    """Examples under the names that circuit-tracer's own files give them, the strongest first."""
    by_title: dict[str, list[dict[str, Any]]] = {}
    rows = block.examples.slice(examples.start, len(examples)).iter_rows(named=True)
    shown = set[int]()
    for place, row in zip(examples, rows, strict=True):
        title = "Top activations" if row["kind"] == "top" else f"Subsample interval {row['interval']}"
        n = int(block.lengths[place])
        example = {
            "tokens": about.vocabulary.pieces(block.token_ids[place, :n].tolist()),
            "tokens_acts_list": block.values[place, :n].tolist(),
            "train_token_ind": row["place"],
            "is_repeated_datapoint": row["row"] in shown,  # an example before it shows the same row
        }
        shown.add(row["row"])
        by_title.setdefault(title, []).append(example)
    tail = [name for name in reversed(by_title) if name != "Top activations"]
    return [
        {"quantile_name": name, "examples": by_title[name]}
        for name in ["Top activations", *tail]
        if name in by_title
    ]


def _logits(about: Source, features: range) -> dict[int, dict[str, Any]]:
    """Texts of the most and the least favoured tokens, where `latentlake logits` was run."""
    return {
        feature: {"top_logits": _texts(about, tokens), "bottom_logits": _texts(about, against)}
        for feature, (tokens, _, against, _) in favoured(about, features).items()
    }


def _texts(about: Source, tokens: Sequence[int]) -> list[str]:
    return [about.vocabulary.texts[token] for token in tokens]


def _part(out: Path, name: str, features: range) -> Path:
    return out / f".{name}.{features.start}"
