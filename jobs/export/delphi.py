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
from typing import Annotated, Any, BinaryIO

import numpy as np
import typer
from numpy.typing import NDArray

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
        str | None, typer.Option(help="delphi's name of the hook (layers.9). Default: the site's hook.")
    ] = None,
    splits: Annotated[
        int | None, typer.Option(help="Files at most. Default: 5, or more of 2^25 activations.", min=1)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer delphi loads. Default: the plan's.")
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
    n_active = counts(shards, chosen, store.site(site).d_sae)
    total = int(n_active.sum())
    if not total:
        raise InputError(f"site {site!r}: none of the chosen features fires, and delphi reads no empty file")
    edges = split_edges(n_active, splits or max(SPLITS, -(-total // SPLIT_NNZ)))
    tokens = folder / ".tokens"
    contexts = write_tokens(store, tokens)
    with counting(f"export delphi {site}", total, "activations") as advance:
        for first, end in pairwise(edges):
            features = range(first, end)
            with (folder / f"{first}_{end - 1}.safetensors").open("wb") as file:
                split = _Split(
                    file, store, shards, features, chosen, int(n_active[first:end].sum()), contexts
                )
                split.write(tokens, advance)
    tokens.unlink()
    config = cache_config(store, site, model, len(edges) - 1)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    return total


def counts(shards: Sequence[ShardFiles], chosen: U32, d_sae: int) -> I64:
    """Activations of each feature over all shards, int64 [d_sae]; 0 of those that were not chosen."""
    kept = np.zeros(d_sae, np.bool_)
    kept[chosen] = True
    return np.where(kept, read_n_active(shards, d_sae), 0)


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


def write_tokens(store: FeatureStore, path: Path) -> int:
    """Write all contexts of the lake, int32 [contexts, ctx], and return how many there are.

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
    return sum(record.contexts for record in store.shards)


class _Split:
    """One safetensors file: eight bytes of its header's length, the header, then the tensors' bytes."""

    def __init__(
        self,
        file: BinaryIO,
        store: FeatureStore,
        shards: Sequence[ShardFiles],
        features: range,
        chosen: U32,
        nnz: int,
        contexts: int,
    ) -> None:
        self._file, self._store, self._shards, self._features = file, store, shards, features
        self._kept: Bool = np.zeros(len(features), np.bool_)
        self._kept[chosen[(chosen >= features.start) & (chosen < features.stop)] - features.start] = True
        size = store.lake.context_size
        self._location = np.dtype(np.uint16 if max(contexts, size, len(features)) <= 1 << 16 else np.uint32)
        self._activation = np.dtype(shards[0].activation_dtype)
        self._offsets = self._begin(
            {
                "locations": (self._location, (nnz, 3)),
                "activations": (self._activation, (nnz,)),
                "tokens": (np.dtype(np.int32), (contexts, size)),
            }
        )
        self._nnz = nnz

    def _begin(self, tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> dict[str, int]:
        """Write the header; where each tensor begins."""
        header, end = dict[str, Any](), 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + dtype.itemsize * int(np.prod(shape))
            header[name] = {"dtype": _SAFETENSORS[str(dtype)], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
        self._file.write(struct.pack("<Q", len(text)) + text)
        return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}

    def write(self, tokens: Path, advance: Callable[[int], None]) -> None:
        """Write the tensors, locations and activations together."""
        done = 0
        for shard in self._shards:
            path = self._store.layout.tokens(shard.record.name)
            with readable(path):  # where contexts begin, counted from the shard's first row
                starts = read_frame(path, ["row_offset"])["row_offset"].to_numpy().astype(np.int64)
            for feature, row, value in self._activations(shard):
                context = np.searchsorted(starts, row, side="right") - 1
                locations = np.empty((len(row), 3), self._location)
                locations[:, 0] = context + shard.record.context_start
                locations[:, 1] = row - starts[context]
                locations[:, 2] = feature
                self._write_at("locations", done * 3 * self._location.itemsize, locations)
                self._write_at(
                    "activations", done * self._activation.itemsize, value.astype(self._activation)
                )
                done += len(row)
                advance(len(row))
        assert done == self._nnz, f"{done} activations, {self._nnz} in partials"
        self._file.seek(self._offsets["tokens"])
        with tokens.open("rb") as file:
            shutil.copyfileobj(file, self._file, 1 << 24)

    def _write_at(self, name: str, offset: int, values: NDArray[Any]) -> None:
        self._file.seek(self._offsets[name] + offset)
        self._file.write(values.tobytes())

    def _activations(self, shard: ShardFiles) -> Iterator[tuple[I64, I64, F32]]:
        """Latent (from the file's first), row of the shard, and activation, of what was chosen."""
        for postings in shard.postings_of(self._features):
            latent = np.repeat(
                postings.features.astype(np.int64) - self._features.start, np.diff(postings.offsets)
            )
            kept = np.flatnonzero(self._kept[latent])
            yield latent[kept], postings.rows[kept], postings.values[kept]


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
