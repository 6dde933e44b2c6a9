"""Features by a model and SAEs: what a worker does between reading token ids and writing what fired.

Legend: B contexts of a batch, T positions, N token rows, Z nonzeros.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from pipeline import logs
from pipeline.batches import batches
from pipeline.first_look import first_look
from pipeline.models import load_model, weight_bytes
from pipeline.models.device import describe_device, free_memory, is_out_of_memory, to_device, wait_for_memory
from pipeline.planned import differing, model_of, open_encoder
from pipeline.saes.reconstruction import worse_than_mean
from pipeline.store.site import write_site_weights
from schemas.errors import InputError, NodeError
from schemas.layout import Layout
from schemas.records import Plan, PlannedSite
from schemas.run_file import CheckSae
from schemas.values import Bool, Encoded, SparseFeatures, Stored, Timed, TokenShard

if TYPE_CHECKING:
    import torch

    from pipeline.saes.encoder import Encoder, Pending

Submitted = list[tuple[str, "Pending | None", Bool]]
"""By site, the features on their way of the rows that are stored; None where there are none."""


class ModelFeatures:
    """Holds one model and the SAEs of all sites; one forward pass serves them all."""

    batch_contexts: int | None
    """See `pipeline.worker.Features`."""

    def __init__(
        self,
        layout: Layout,
        plan: Plan,
        check_sae: CheckSae = "off",
        oom_batch_contexts: int | None = None,
    ) -> None:
        self._layout, self._plan, self._check_sae = layout, plan, check_sae
        self._oom_batch_contexts = oom_batch_contexts
        self.batch_contexts = None
        self._to_look_at = {site.name for site in plan.sites}

    @property
    def device_model(self) -> str:
        """What the device calls itself."""
        return describe_device(self._plan.device)

    def load(self) -> None:
        """Load the model and the SAEs, and keep the sites' weights in the store.

        Raises NodeError when this node sees another model or SAE than the plan, or its GPU stays full.
        """
        plan = self._plan
        for what in differing(plan, plan.sites):
            raise NodeError(
                f"node {socket.gethostname()} sees other files for {what} than the plan was made with: give "
                "every node the same"
            )
        model = model_of(plan)
        needed = weight_bytes(model) + sum(8 * site.d_model * site.d_sae for site in plan.sites)
        wait_for_memory(plan.device, needed)
        hooks = list(dict.fromkeys(site.hook_name for site in plan.sites))
        self._model = load_model(model, hooks, device=plan.device, threads=plan.threads)
        self._encoders = {site.name: self._load_encoder(site) for site in plan.sites}

    def _load_encoder(self, site: PlannedSite) -> Encoder:
        encoder = open_encoder(site, self._plan.device)
        self._check_width(site, encoder)
        metadata = asdict(encoder.metadata)
        write_site_weights(self._layout, self._plan.pass_name, site, encoder.weights(), metadata)
        return encoder

    def _check_width(self, site: PlannedSite, encoder: Encoder) -> None:
        """The SAE must read vectors as wide as the model gives at its hook."""
        width = self._model.widths[site.hook_name]
        if not encoder.accepts(width):
            raise InputError(
                f"site {site.name!r}: {site.hook_name} gives vectors of {width}, the SAE {site.sae} reads "
                f"{encoder.d_model}; choose the hook_name or the model that the SAE was trained on"
            )

    def look(self, shard: str, at: dict[str, TokenShard], timed: Timed) -> dict[str, float]:
        """Explained variance by site, of the sites that this worker has not looked at in an earlier shard."""
        if self._check_sae == "off" or not self._to_look_at:
            return {}
        with timed("check"):
            sites = [site for site in self._plan.sites if site.name in self._to_look_at]
            found, hopeless = first_look(self._model, self._encoders, sites, at, self._plan.batch_contexts)
        for name, sums in found.items():
            if self._check_sae == "stop" and (sentence := worse_than_mean(sums)):
                raise InputError(
                    f"site {name!r}, shard {shard}: {sentence}; extract.check_sae: warn runs all the same"
                )
        self._to_look_at -= found.keys() | hopeless
        told = {name: sums.explained_variance for name, sums in found.items()}
        return {name: round(value, 4) for name, value in told.items() if not math.isnan(value)}

    def encode(self, tokens: TokenShard, stored: Stored, timed: Timed) -> Encoded:
        """Sparse features of each batch and site; one forward pass serves all sites.

        Rows that are not stored go through the model and not through the SAE. Where the GPU's memory does not
        do, the shard is tried once more as planned, then, where the run file allows that, in smaller batches.
        """
        planned, smaller = self._plan.batch_contexts, self._oom_batch_contexts
        sizes = [planned, planned, *([smaller] if smaller is not None and smaller < planned else [])]
        for size in sizes:
            self.batch_contexts = size if size != planned else None
            through = _Through(timed)
            try:
                return self._encode(tokens, stored, through, size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                full = error.with_traceback(None)  # the frames let go of their tensors
            with timed("forward", -through.rows):  # the next try begins anew
                free_memory()
            logs.tell("gpu_out_of_memory", logging.WARNING, batch_contexts=size, why=str(full))
        raise full

    def _encode(self, tokens: TokenShard, stored: Stored, timed: Timed, contexts: int) -> Encoded:
        """The same in batches of so many contexts.

        The features of a batch are taken when the next one was submitted, so that a GPU always has work.
        """
        encoded: Encoded = {name: [] for name in stored}
        submitted: Submitted = []
        for batch, rows in batches(tokens, contexts):
            with timed("forward", rows.stop - rows.start):
                x = self._model.forward(batch)
            with timed("encode"):
                before, submitted = submitted, self._submit(x, {name: s[rows] for name, s in stored.items()})
                _take(before, encoded)
        with timed("encode"):
            _take(submitted, encoded)
        return encoded

    def _submit(self, x: dict[str, torch.Tensor], stored: Stored) -> Submitted:
        """Begin to encode a batch for every site."""
        submitted: Submitted = []
        for site in self._plan.sites:
            mask, read = stored[site.name], x[site.hook_name]
            pending = self._encoders[site.name].submit(_rows(read, mask)) if mask.any() else None
            submitted.append((site.name, pending, mask))
        return submitted


class _Through:
    """`timed`, which counts the rows that went through."""

    def __init__(self, timed: Timed) -> None:
        self._timed, self.rows = timed, 0

    @contextmanager
    def __call__(self, stage: str, rows: int = 0) -> Iterator[None]:
        with self._timed(stage, rows):
            yield
        self.rows += rows


def _rows(x: torch.Tensor, stored: Bool) -> torch.Tensor:
    """The rows of x that are stored; nothing waits for the device."""
    if stored.all():
        return x
    return x.index_select(0, to_device(stored.nonzero()[0], x.device))


def _take(submitted: Submitted, encoded: Encoded) -> None:
    """Wait for the features of a batch, and put empty rows where nothing is stored."""
    for name, pending, stored in submitted:
        some = pending.result() if pending else SparseFeatures.concatenate([])
        encoded[name].append(_spread(some, stored))


def _spread(features: SparseFeatures, stored: Bool) -> SparseFeatures:
    """Put empty rows where `stored` is false."""
    lengths = np.zeros(len(stored), dtype=np.int64)
    lengths[stored] = np.diff(features.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return SparseFeatures(indptr, features.indices, features.data)
