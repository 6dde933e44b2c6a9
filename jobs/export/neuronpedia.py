"""Neuronpedia's import: a folder for each site, with the files that its own export tool would write.

<model>/<source>/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl, features/batch-*.jsonl.gz (table
Neuron), activations/batch-*.jsonl.gz (table Activation), and where features were given names or explanations
explanations/batch-*.jsonl.gz (table Explanation). Followed: hijohnnylin/neuronpedia, in apps/webapp
the files app/api/admin/import/route.ts (3861c05), lib/db/import.ts (efd6e35), prisma/schema.prisma
(008d504); jbloomAus/SAEDashboard, neuronpedia/neuronpedia_export.py (3ea1249). Columns that are left out
have the database's defaults. Cost: all activations of the chosen features are read once (windows.py), and
some 5 ms of one core go into each feature's JSON.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer

from jobs.command.options import Workers
from jobs.command.tasks import choose_tasks
from jobs.export.folder import Features, Layer, Out, Window, exporting
from jobs.export.windows import (
    BINS,
    TENTHS,
    Block,
    Favoured,
    Source,
    blocks,
    favoured,
    read_block,
    source,
    tenths,
)
from jobs.terminal.progress import track
from pipeline.store import FeatureStore
from pipeline.store.records.annotations import read_annotations
from pipeline.tasks import Tasks
from schemas.errors import InputError
from schemas.names import check_name
from schemas.records import digest_of
from schemas.values import U32

BATCH, FILE_CHARACTERS = 1024, 1 << 27
"""Of one file: features, as in Neuronpedia's own exports, fewer where windows are long. The import takes a
file as one string, and inserts up to 65,000 of its lines at once, which must stay below 200 MB."""
MAX_FILES = 1000
"""Of a folder: the import asks the bucket for one list of names (lib/utils/s3.ts, 48c2f88)."""
EXPLANATIONS = 10_000
"""Of one file: the import inserts so many at once."""
_LEVEL = 5
OPTIONAL = ("logits", "decoder_neighbours")

Json = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """Under which names Neuronpedia keeps a site; the source's is that of its layer and its source set."""

    model: str
    source_set: str
    layer: int
    creator: str

    @property
    def source(self) -> str:
        """The source's id, such as 9-res-jb."""
        return f"{self.layer}-{self.source_set}"


def batch_features(window: int) -> int:
    """Features of one file: 40 examples each, some 16 characters a token."""
    return max(1, min(BATCH, FILE_CHARACTERS // (40 * 16 * window)))


def check_files(chosen: U32, todo: Sequence[range], window: int) -> None:
    """InputError where there would be more files than the import sees."""
    # each block fills files of its own, the last of which may be short
    counts = np.histogram(chosen, [features.start for features in todo] + [todo[-1].stop])[0]
    n = int((-(-counts // batch_features(window))).sum())
    if n > MAX_FILES:
        raise InputError(
            f"these features would take {n:,} files, but Neuronpedia's import lists only {MAX_FILES:,}: "
            f"choose fewer --features, or a --window below {window}"
        )


def names(
    store: FeatureStore, site: str, model: str | None, source_set: str | None, layer: int | None, creator: str
) -> Names:
    """Names of a site; defaults come from the model's name, the site's, and the number in its hook's."""
    info = store.site(site)
    # a default is made to fit; a name that was typed is taken as it is, or refused
    given = model or Path(store.plans[info.pass_name].model).name.lower()
    return Names(
        model=check_name(re.sub(r"[^A-Za-z0-9_-]", "-", given) if model is None else given, "--model"),
        source_set=check_name(source_set or site, "--source-set"),
        layer=layer if layer is not None else layer_of(info.hook_name),
        creator=creator,
    )


def layer_of(hook_name: str) -> int:
    """The number in a hook's name (blocks.9.hook_resid_post, layers.9)."""
    if (match := re.search(r"(?:^|\.)(\d+)(?:\.|$)", hook_name)) is None:
        raise InputError(f"hook {hook_name!r} has no number that could be its layer: give --layer")
    return int(match[1])


def command(
    store: FeatureStore,
    sites: list[str],
    out: Out,
    features: Features = "all",
    model: Annotated[
        str | None, typer.Option(help="Neuronpedia's id of the model, such as gpt2-small.")
    ] = None,
    source_set: Annotated[
        str | None, typer.Option(help="Source set, such as res-jb. Default: the site's name.")
    ] = None,
    layer: Layer = None,
    creator: Annotated[
        str,
        typer.Option(help="Neuronpedia's id of the user who owns the rows.", envvar="DEFAULT_CREATOR_ID"),
    ] = "clkht01d40000jv08hvalcvly",
    window: Window = 128,
    workers: Workers = None,
) -> None:
    """Export the chosen features of the sites."""
    with exporting(store, sites, out, "neuronpedia", features) as new, choose_tasks(store, workers) as tasks:
        for site, chosen in new.chosen.items():
            named = names(store, site, model, source_set, layer, creator)
            n = export(store, site, chosen, new.folder, tasks, named=named, window=window)
            new.reports[site] = f"{n:,} examples as {named.model}/{named.source}"


def export(
    store: FeatureStore, site: str, chosen: U32, out: Path, tasks: Tasks, *, named: Names, window: int
) -> int:
    """Write one site below `out`; how many example rows were written."""
    folder = out / named.model / named.source
    if folder.exists():
        raise InputError(
            f"two sites would be Neuronpedia's source {named.source}: export one --site at a time"
        )
    for name in ("features", "activations"):
        (folder / name).mkdir(parents=True)
    for name, record in records(store, site, named).items():
        (folder / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    about = source(store, site, window, OPTIONAL)
    write = partial(write_block, about, named, store.receipts_digest(site), chosen, folder)
    todo = blocks(chosen, store.site(site).feature_block)
    check_files(chosen, todo, window)
    write_explanations(store, site, chosen, named, folder)
    counts = tasks.map(write, todo)
    return sum(track(counts, f"export neuronpedia {site}", len(todo), "blocks"))


def write_explanations(store: FeatureStore, site: str, chosen: U32, named: Names, folder: Path) -> None:
    """Rows of the table Explanation: names that people gave to features, and imported explanations.

    Method and model are keys of other tables of Neuronpedia, so only its own are repeated.
    """
    own = read_annotations(store, site).table.drop_nulls("name").select("feature", text="name")
    given = [own.with_columns(method=pl.lit(None, pl.String), model=pl.lit(None, pl.String))]
    if store.has_table(site, "explanations"):
        known = pl.when(pl.col("source") == "neuronpedia")
        columns = (known.then(pl.col(name)).alias(name) for name in ("method", "model"))
        given.append(store.scan_table(site, "explanations").select("feature", "text", *columns).collect())
    wanted = pl.Series(chosen).implode()
    table = pl.concat(given).filter(pl.col("feature").is_in(wanted)).unique(maintain_order=True)
    table = table.sort("feature", maintain_order=True)
    if table.height:
        (folder / "explanations").mkdir()
    for start in range(0, table.height, EXPLANATIONS):
        part = table.slice(start, EXPLANATIONS).iter_rows(named=True)
        _write(
            folder / "explanations" / f"batch-{start // EXPLANATIONS}.jsonl.gz",
            map(partial(_explanation, named), part),
        )


def _explanation(named: Names, row: Json) -> Json:
    key = [named.model, named.source, *(row[name] for name in ("feature", "text", "method", "model"))]
    return {
        "id": "l" + digest_of(key)[:24],
        "modelId": named.model,
        "layer": named.source,
        "index": str(row["feature"]),
        "authorId": named.creator,
        "description": row["text"],
        "typeName": row["method"],
        "explanationModelName": row["model"],
    }


def records(store: FeatureStore, site: str, named: Names) -> dict[str, Json]:
    """The rows of SourceRelease, Model, SourceSet and Source that the features hang on."""
    info, lake = store.site(site), store.lake
    creator = {"creatorId": named.creator, "visibility": "PUBLIC"}
    text = f"{Path(info.sae).name} at {info.hook_name}, exported by latentlake"
    return {
        "release": {
            "name": named.source_set,
            "description": text,
            "creatorName": "latentlake",
            "urls": [],
            **creator,
        },
        "model": {
            "id": named.model,
            "displayNameShort": named.model,
            "displayName": named.model,
            "layers": 0,
            "neuronsPerLayer": 0,
            "owner": "",
            **creator,
        },
        "sourceset": {
            "modelId": named.model,
            "name": named.source_set,
            "description": text,
            "creatorName": "latentlake",
            "urls": [],
            "releaseName": named.source_set,
            **creator,
        },
        "source": {
            "id": named.source,
            "modelId": named.model,
            "setName": named.source_set,
            "num_prompts": store.totals(site).contexts,
            "num_tokens_in_prompt": lake.context_size,
            "dataset": _corpus(store),
            "notes": text,
            **creator,
        },
    }


def _corpus(store: FeatureStore) -> str:
    """What the corpus chain calls its sources, without their folders."""
    sources = [str(link.source.get("path") or link.source.get("kind") or "") for link in store.links]
    return ", ".join(dict.fromkeys(text if text.count("/") == 1 else Path(text).name for text in sources))


def write_block(about: Source, named: Names, digest: str, chosen: U32, folder: Path, features: range) -> int:
    """Write the files of a range of features; how many example rows they hold."""
    block = read_block(about, chosen, features)
    logits = favoured(about, features)
    nearest = _nearest(about, features)
    numbers = block.features["feature"].to_numpy()
    # examples are sorted by feature: those of a file lie between two bounds
    bounds = np.searchsorted(block.examples["feature"].to_numpy(), numbers)
    step = batch_features(about.window)
    for start in range(0, len(numbers), step):
        places = range(start, min(start + step, len(numbers)))
        name = f"batch-{numbers[start]:08d}.jsonl.gz"
        neurons = (_neuron(about, named, block, place, logits, nearest) for place in places)
        _write(folder / "features" / name, neurons)
        last = bounds[places.stop] if places.stop < len(numbers) else block.examples.height
        activations = _activations(about, named, digest, block, range(int(bounds[start]), int(last)))
        _write(folder / "activations" / name, activations)
    return block.examples.height


def _write(path: Path, rows: Iterator[Json]) -> None:
    """A file of JSON lines, the same bytes for the same rows; none where there is no row."""
    # drawn before the file is made, for where there is no row there is no file
    if (first := next(rows, None)) is None:
        return
    with path.open("wb") as file, gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
        for row in chain([first], rows):
            packed.write(json.dumps(row).encode() + b"\n")


def _neuron(
    about: Source,
    named: Names,
    block: Block,
    place: int,
    logits: dict[int, Favoured],
    nearest: dict[int, Json],
) -> Json:
    row = block.features.row(place, named=True)
    feature = int(row["feature"])
    tokens, values, against, least = logits.get(feature, ([], [], [], []))
    near = nearest.get(feature, {})
    return {
        "modelId": named.model,
        "layer": named.source,
        "index": str(feature),
        "creatorId": named.creator,
        "sourceSetName": named.source_set,
        "maxActApprox": row["max_activation"] or 0.0,
        "frac_nonzero": row["frequency"],
        **_histogram(block, place),
        "pos_str": [about.vocabulary.texts[token] for token in tokens],
        "pos_values": values,
        "neg_str": [about.vocabulary.texts[token] for token in against],
        "neg_values": least,
        "topkCosSimIndices": near.get("neighbour", []),
        "topkCosSimValues": near.get("cosine", []),
    }


def _histogram(block: Block, place: int) -> Json:
    """As many heights as values: the middle of each bin."""
    low, high = float(block.low[place]), float(block.high[place])
    counts = block.histogram[place]
    if not counts.any():
        return {"freq_hist_data_bar_values": [], "freq_hist_data_bar_heights": []}
    if low == high:
        return {"freq_hist_data_bar_values": [low], "freq_hist_data_bar_heights": [int(counts.sum())]}
    middles = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    return {"freq_hist_data_bar_values": middles.tolist(), "freq_hist_data_bar_heights": counts.tolist()}


def _activations(about: Source, named: Names, digest: str, block: Block, examples: range) -> Iterator[Json]:
    """Rows of the table Activation, one for each example."""
    edges = {row["feature"]: tenths(row) for row in block.features.select(*TENTHS).iter_rows(named=True)}
    rows = block.examples.slice(examples.start, len(examples))
    for place, row in zip(examples, rows.iter_rows(named=True), strict=True):
        n = int(block.lengths[place])
        values, bounds = block.values[place, :n], edges[row["feature"]]
        # SAEDashboard's marks: -1, the maximum and -1 of top examples; bounds and share of an interval.
        low, high, share = -1.0, bounds[-1], -1.0
        if row["kind"] != "top":
            low, high, share = bounds[row["interval"]], bounds[row["interval"] + 1], 0.1
        key = [digest, named.model, named.source, *(row[n] for n in ("feature", "kind", "interval", "rank"))]
        yield {
            "id": "l" + digest_of(key)[:24],
            "modelId": named.model,
            "layer": named.source,
            "index": str(row["feature"]),
            "creatorId": named.creator,
            "dataIndex": str(row["context"]),
            "tokens": about.vocabulary.pieces(block.token_ids[place, :n].tolist()),
            "values": values.tolist(),
            "maxValue": float(values.max()),
            "maxValueTokenIndex": int(values.argmax()),
            "minValue": float(values.min()),
            "qualifyingTokenIndex": row["place"],
            "binMin": low,
            "binMax": high,
            "binContains": share,
        }


def _nearest(about: Source, features: range) -> dict[int, Json]:
    """The nearest decoder directions of each feature, by rank."""
    if "decoder_neighbours" not in about.tables:
        return {}
    table = about.table("decoder_neighbours", features).sort("feature", "rank")
    lists = table.group_by("feature", maintain_order=True).agg(pl.col("neighbour", "cosine"))
    return {int(row["feature"]): row for row in lists.iter_rows(named=True)}
