"""A site's weights and SAE metadata, kept so that later jobs need neither torch nor the SAE's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.store.formats.csr import EVERY_CHUNK, checked_codecs
from pipeline.store.formats.zarr_files import absent_chunks, arrays_of, check_chunks, open_group
from pipeline.store.objects.verbs import publish_folder, readable, remove, remove_tree, scratch_folder
from schemas.errors import InputError
from schemas.layout import ZARR_METADATA, Layout, StorePath
from schemas.records import FORMAT_VERSION, PlannedSite, refuse_newer

_CHUNK_BYTES = 1 << 24
_EVERY_CHUNK_SINCE = 7
"""Format version; before it chunks of zeros were not written, and one that is missing may be such a one."""


def write_site_weights(
    layout: Layout,
    pass_name: str,
    site: PlannedSite,
    weights: Mapping[str, NDArray[Any]] | Callable[[], Mapping[str, NDArray[Any]]],
    metadata: Mapping[str, Any],
) -> None:
    """Write passes/<pass>/sites/<site>.zarr unless it is there; whole or not at all.

    One of another site of this name, left by a plan that was replaced, is replaced too. `weights`, or what it
    gives when called, is what `Encoder.weights()` gives (W_enc [d_model, d_sae], W_dec [d_sae, width of the
    output], b_enc …); `metadata` is any JSON object, kept as an attribute next to the planned site.
    """
    path = layout.site(pass_name, site.name)
    if has_site_weights(layout, pass_name, site.name):
        if _is_of(path, site):
            return
        remove_site_weights(path)
    with scratch_folder(path) as temporary:
        _write(temporary, site, weights() if callable(weights) else weights, metadata)
        publish_folder(temporary, path)


def remove_site_weights(path: StorePath) -> None:
    """Remove a site's group as far as possible, first the marker that it is whole."""
    remove(path / ZARR_METADATA)
    remove_tree(path)


def _is_of(path: StorePath, site: PlannedSite) -> bool:
    """Whether the weights there are those of `site`, wherever its SAE lay then."""
    with readable(path):
        kept = PlannedSite.model_validate(open_group(path).attrs["site"])
    return kept.model_copy(update={"sae": site.sae}) == site


def has_site_weights(layout: Layout, pass_name: str, site: str) -> bool:
    """Whether the weights are there, whole: the root's zarr.json is put last."""
    return (layout.site(pass_name, site) / ZARR_METADATA).is_file()


def read_site_weights(
    layout: Layout, pass_name: str, site: str, names: Collection[str] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Weights (all, or those of these names that there are) and metadata as written.

    InputError when they are absent or of a newer format.
    """
    with _reading(layout, pass_name, site) as path:
        weights = _open(path, names)
        arrays = {name: np.asarray(array[...]) for name, array in weights.arrays.items()}
        if _sha256(arrays) != weights.sha256:
            raise ValueError("its weights are not those that were written")
        return arrays, weights.metadata


def open_site_rows(layout: Layout, pass_name: str, site: str, name: str) -> Any | None:
    """One of the weights, to be read in slices, as `read_site_weights` has it; None where there is none.

    On object storage the weights are fetched whole here. Every chunk must be there; of the bits chunks' own
    checksums are checked: `latentlake verify` compares the whole. In a group from before version 7 chunks may
    be absent, where zeros were not written: then the whole is compared here, once a process.
    """
    with _reading(layout, pass_name, site) as path:
        weights = _open(path, (name,))
        array = weights.arrays.get(name)
        if array is not None and (absent := absent_chunks(array)):
            _check_zeros(path, name, weights.sha256[name], absent)
        return array


@contextmanager
def _reading(layout: Layout, pass_name: str, site: str) -> Iterator[StorePath]:
    """Where the weights lie; InputError when they are absent, or damaged."""
    path = layout.site(pass_name, site)
    if not has_site_weights(layout, pass_name, site):
        raise InputError(f"{path} does not exist: run `latentlake run` again, which writes what is missing")
    with readable(path):
        yield path


@dataclass(frozen=True)
class _Weights:
    """Arrays by name, unread, the sha256 of each, and the SAE's metadata."""

    arrays: dict[str, Any]
    sha256: dict[str, str]
    metadata: dict[str, Any]


def _open(path: StorePath, names: Collection[str] | None) -> _Weights:
    """Those of these names that were written; ValueError where an array or a chunk is missing."""
    group = open_group(path, absent_is_zero=True)
    version = group.attrs["format_version"]
    refuse_newer(version, str(path))
    written = {
        name: sha256 for name, sha256 in group.attrs["sha256"].items() if names is None or name in names
    }
    # older groups may lack chunks of zeros; of the others an absent chunk is damage, so they are opened anew
    if version >= _EVERY_CHUNK_SINCE:
        group = open_group(path)
    arrays = arrays_of(group, sorted(written))
    if version >= _EVERY_CHUNK_SINCE:
        check_chunks(arrays)
    return _Weights(arrays, written, dict(group.attrs["metadata"]))


@lru_cache(maxsize=64)
def _check_zeros(path: StorePath, name: str, sha256: str, absent: int) -> None:
    """ValueError unless an array of an old group, whose absent chunks are read as zeros, has this sha256."""
    [array] = arrays_of(open_group(path, absent_is_zero=True), [name]).values()
    digest, step = hashlib.sha256(), array.chunks[0]
    for start in range(0, array.shape[0], step):
        digest.update(np.ascontiguousarray(array[start : start + step]).data)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{absent} chunks of {name} are missing")


def _sha256(weights: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """sha256 of the bytes of each array, by name."""
    return {
        name: hashlib.sha256(np.ascontiguousarray(weights[name]).data).hexdigest() for name in sorted(weights)
    }


def _write(
    path: Path, site: PlannedSite, weights: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]
) -> None:
    numcodecs.blosc.use_threads = False  # equal bytes, see csr.py
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.attrs.update(
        {
            "format_version": FORMAT_VERSION,
            "site": site.model_dump(mode="json"),
            "metadata": dict(metadata),
            "sha256": _sha256(weights),
        }
    )
    for name, values in sorted(weights.items()):
        # cut along the features alone, so that a block of features is read from few chunks
        chunks = [max(1, size) for size in values.shape]
        if site.d_sae in values.shape:
            features = _CHUNK_BYTES * site.d_sae // max(1, values.nbytes)
            chunks[values.shape.index(site.d_sae)] = max(1, min(site.d_sae, features))
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=tuple(chunks),
            compressors=checked_codecs(values.dtype),
            config=EVERY_CHUNK,
        )
        array[...] = values
