"""delphi's cache of latents: latents/<hookpoint>/<first>_<last>.safetensors and config.json, for each site.

Followed: eai-delphi 0.1.3, delphi/latents/loader.py (TensorBuffer, LatentDataset), cache.py (save_splits).
Of each activation `locations` [nnz, 3] holds the sequence, the position and the latent counted from the
file's first, `activations` [nnz] the stored value; `tokens` [sequences, ctx] are in every file. Here a
sequence is a context of the lake, padded at its end. Files are written shard by shard: memory is bounded by
a run of postings and a shard's tokens; the disk holds the tokens once more meanwhile. Cost: one reading of
the postings.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jobs.export.folder import Features, Out, distinct_names, exporting, safe_name
from jobs.terminal.progress import counting
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import read_frame
from pipeline.store.objects.verbs import readable
from pipeline.store.reading.shard_files import ShardFiles, read_n_active
from pipeline.store.records.tokens import read_token_shard
from schemas.errors import InputError
from schemas.records import Lake
from schemas.values import F32, I64, U32, Bool

SPLITS = 5
"""Files at least, as delphi makes them."""
SPLIT_NNZ = 1 << 25
"""Activations of a file at most, where features allow it: delphi holds some 40 bytes of each in memory."""

_SAFETENSORS = {"uint16": "U16", "uint32": "U32", "int32": "I32", "float16": "F16", "float32": "F32"}


def command(
    store: FeatureStore,
    sites: list[str],
    out: Out,
    features: Features = "all",
    hookpoint: Annotated[
        str | None, typer.Option(help="Delphi's name for the hook (layers.9). Default: the site's hook name.")
    ] = None,
    splits: Annotated[
        int | None,
        typer.Option(
            help="Largest number of files. Default: 5, or one per 2^25 activations if that is more.", min=1
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer delphi loads. Default: that of the plan.")
    ] = None,
) -> None:
    """Export the chosen features of the sites, a folder for each hookpoint."""
    with exporting(store, sites, out, "delphi", features) as new:
        folders = distinct_names([store.site(site).hook_name for site in sites], sites)
        if hookpoint is not None:
            if len(sites) > 1:
                raise InputError(f"--hookpoint names one site, the store has {', '.join(sites)}: give --site")
            folders = [safe_name(hookpoint)]
        for site, folder in zip(sites, folders, strict=True):
            plan = store.plans[store.site(site).pass_name]
            to = new.folder / "latents" / folder
            n = export(store, site, new.chosen[site], to, splits=splits, model=model or plan.model)
            new.reports[site] = f"{n:,} activations as latents/{folder}"


def export(
    store: FeatureStore, site: str, chosen: U32, folder: Path, *, splits: int | None, model: str
) -> int:
    """Write one site into a new folder; how many activations were written.

    Raises InputError when none of the chosen features fires.
    """
    folder.mkdir(parents=True)
    shards = store.shard_files(site)
    kept = np.zeros(store.site(site).d_sae, np.bool_)
    kept[chosen] = True
    n_active = np.where(kept, read_n_active(shards, range(len(kept))), 0)
    total = int(n_active.sum())
    if not total:
        raise InputError(
            f"site {site!r}: none of the chosen features fires, and delphi cannot read an empty file"
        )
    edges = split_edges(n_active, splits or max(SPLITS, -(-total // SPLIT_NNZ)))
    tokens = folder / ".tokens"
    write_tokens(store, tokens)
    with counting(f"export delphi {site}", total, "activations") as advance:
        for first, end in pairwise(edges):
            path, nnz = folder / f"{first}_{end - 1}.safetensors", int(n_active[first:end].sum())
            write_split(path, store, shards, kept, nnz, range(first, end), tokens, advance)
    tokens.unlink()
    config = cache_config(store, site, model, len(edges) - 1)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    return total


def split_edges(n_active: I64, splits: int) -> list[int]:
    """First features of at most `splits` files, then d_sae: about as many activations in each, none empty.

    delphi cannot read a file without activations, and wants the files' ranges to follow on one another.
    """
    reached = np.cumsum(n_active)
    # each file ends with the feature that reaches its share, where it is not empty and leaves some
    wanted = reached[-1] * np.arange(1, splits) // splits
    inner = np.searchsorted(reached, np.maximum(wanted, 1)) + 1
    edges = [0]
    for edge in inner.tolist():
        before = reached[edges[-1] - 1] if edges[-1] else 0
        if reached[edge - 1] > before and reached[edge - 1] < reached[-1]:
            edges.append(edge)
    return [*edges, len(n_active)]


def pad_id(lake: Lake) -> int:
    """What shorter contexts end in: the separator (EOS), else BOS, else token 0."""
    return next((token for token in (lake.separator_id, lake.bos_id) if token is not None), 0)


def write_tokens(store: FeatureStore, path: Path) -> None:
    """Write all contexts of the lake, int32 [contexts, ctx].

    Those of shards that are not committed are there too, so that a sequence is the context of that number.
    """
    lake, size = store.lake, store.lake.context_size
    with path.open("wb") as file:
        for record in store.shards:
            shard = read_token_shard(store.layout, lake, record, verify=False)
            lengths = np.diff(shard.context_ptr)
            padded = np.full((len(lengths), size), pad_id(lake), np.int32)
            # a mask fills row by row, in the order of the tokens
            padded[np.arange(size) < lengths[:, None]] = shard.token_ids
            file.write(padded.tobytes())


def write_split(
    path: Path,
    store: FeatureStore,
    shards: Sequence[ShardFiles],
    kept: Bool,
    nnz: int,
    features: range,
    tokens: Path,
    advance: Callable[[int], None],
) -> None:
    """One safetensors file, locations and activations together; `kept` bool [d_sae]: what was chosen."""
    size, contexts = store.lake.context_size, sum(record.contexts for record in store.shards)
    location = location_dtype(contexts, size, len(features))
    activation = np.dtype(shards[0].activation_dtype)
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "locations": (location, (nnz, 3)),
        "activations": (activation, (nnz,)),
        "tokens": (np.dtype(np.int32), (contexts, size)),
    }
    # The header has each tensor's place counted from its own end; before it stand eight bytes of its length.
    header, end, done = dict[str, Any](), 0, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + dtype.itemsize * int(np.prod(shape))
        header[name] = {"dtype": _SAFETENSORS[str(dtype)], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    starts = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for context, position, latent, value in _activations(store, shards, features, kept):
            locations = np.column_stack((context, position, latent)).astype(location)
            file.seek(starts["locations"] + done * 3 * location.itemsize)
            file.write(locations.tobytes())
            file.seek(starts["activations"] + done * activation.itemsize)
            file.write(value.astype(activation).tobytes())
            done += len(value)
            advance(len(value))
        assert done == nnz, f"{done} activations, {nnz} in partials"
        file.seek(starts["tokens"])
        with tokens.open("rb") as all_tokens:
            shutil.copyfileobj(all_tokens, file, 1 << 24)


def location_dtype(contexts: int, context_size: int, features: int) -> np.dtype[Any]:
    """The narrower of delphi's types that holds every sequence, position and latent of a file."""
    return np.dtype(np.uint16 if max(contexts, context_size, features) <= 1 << 16 else np.uint32)


def _activations(
    store: FeatureStore, shards: Sequence[ShardFiles], features: range, kept: Bool
) -> Iterator[tuple[I64, I64, I64, F32]]:
    """Sequence, position, latent (from the file's first) and activation, of what was chosen."""
    for shard in shards:
        path = store.layout.tokens(shard.record.name)
        with readable(path):  # where contexts begin, counted from the shard's first row
            starts = read_frame(path, ["row_offset"])["row_offset"].to_numpy().astype(np.int64)
        for postings in shard.postings_of(features):
            feature = np.repeat(postings.features.astype(np.int64), np.diff(postings.offsets))
            chosen = np.flatnonzero(kept[feature])
            row = postings.rows[chosen]
            context = np.searchsorted(starts, row, side="right") - 1
            sequence, latent = context + shard.record.context_start, feature[chosen] - features.start
            yield sequence, row - starts[context], latent, postings.values[chosen]


def cache_config(store: FeatureStore, site: str, model: str, splits: int) -> dict[str, Any]:
    """config.json: delphi's CacheConfig, model_name (it loads the tokenizer by it), then words of our own."""
    info, lake = store.site(site), store.lake
    return {
        "dataset_repo": "",
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": store.plans[info.pass_name].batch_contexts,
        "cache_ctx_len": lake.context_size,
        "n_tokens": sum(record.rows for record in store.shards),
        "n_splits": splits,
        "model_name": model,
        "latentlake": {
            "site": site,
            "hook_name": info.hook_name,
            "sae": info.sae,
            "d_sae": info.d_sae,
            "pad_token": pad_id(lake),
            "special_tokens": lake.special_tokens,
        },
    }
