"""Features by a model and SAEs: what a worker does between reading token ids and writing what fired.

Legend: B contexts of a batch, T positions, N token rows, Z nonzeros.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.extraction.first_rows_check import check_saes, most_rows
from pipeline.models import load_model, weight_bytes
from pipeline.models.device import describe_device, free_memory, is_out_of_memory, to_device, wait_for_memory
from pipeline.models.hooks.pooling import RowsRead, take_rows
from pipeline.monitor import logs
from pipeline.plans.reopen import differing, model_of, open_encoder
from pipeline.saes import NO_SAE
from pipeline.saes.encoding.control import ControlEncoder, ControlTally
from pipeline.saes.quality.reconstruction import worse_than_mean
from pipeline.statistics import control
from pipeline.statistics.l0 import at_most
from pipeline.store.formats.dense import NO_DENSE, DenseWriters
from pipeline.store.records.site import write_site_weights
from pipeline.tokens.batches import batches
from schemas.errors import InputError, NodeError
from schemas.layout import Layout
from schemas.names import CheckSae
from schemas.records import Plan, PlannedSite
from schemas.values import (
    Agreement,
    Bool,
    ControlSums,
    Encoded,
    Explained,
    SparseFeatures,
    Timed,
    TokenShard,
)

if TYPE_CHECKING:
    import torch

    from pipeline.saes.encoding.encoder import Encoder, Pending


class InFlightBatch(NamedTuple):
    """A batch of one site.

    `pending`: the features of the rows that are `stored`, bool [N] of the batch, None where there are none;
    `x` [n, width] of those of them that are in `control`, bool [N], None where there are none; `dense`
    [m, width] of all of them, None where there are none, or where the pass has no layout dense.
    """

    site: PlannedSite
    pending: Pending | None
    stored: Bool
    control: Bool
    x: torch.Tensor | None
    dense: torch.Tensor | None


class ModelFeatures:
    """Holds one model and the SAEs of all sites; one forward pass serves them all."""

    batch_contexts: int | None
    """See `pipeline.worker.Features`."""
    controls: dict[str, ControlSums]
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
        self.batch_contexts, self.controls = None, {}
        self._unchecked = {site.name for site in plan.sites if site.has_sae}
        self._rows_checked = 0

    @property
    def device_model(self) -> str:
        """What the device calls itself."""
        return describe_device(self._plan.device)

    @property
    def agreement(self) -> Agreement | None:
        """See `pipeline.worker.Features`."""
        return self._model.agreement

    def load(self) -> None:
        """Load the model and the SAEs; writes nothing.

        Raises NodeError when this node sees another model or SAE than the plan, or its GPU stays full.
        """
        plan = self._plan
        for what in differing(plan, plan.sites):
            raise NodeError(
                f"node {socket.gethostname()} sees different files for {what} than those in the plan: give "
                "every node the same"
            )
        model = model_of(plan)
        needed = weight_bytes(model) + sum(_weights(site) for site in plan.sites)
        wait_for_memory(plan.device, needed)
        hooks = list(dict.fromkeys(site.hook_name for site in plan.sites))
        self._model = load_model(model, hooks, plan.device, plan.threads, plan.model_inputs)
        self._encoders: dict[str, Encoder] = {}
        for site in (site for site in plan.sites if site.has_sae):
            encoder, width = open_encoder(site, plan.device), self._model.widths[site.hook_name]
            if not encoder.accepts(width):
                raise InputError(
                    f"site {site.name!r}: {site.hook_name} has vectors of width {width}, but the SAE "
                    f"{site.sae} reads {encoder.d_model}; choose the hook_name or the model that the SAE was "
                    "trained on"
                )
            self._encoders[site.name] = encoder
        self._control_encoders = {
            site.name: ControlEncoder(self._encoders[site.name], site.control, site.control_seed)
            for site in plan.sites
            if site.control is not None
        }

    def keep_weights(self) -> None:
        """Keep the SAEs' weights and metadata; of a site without an SAE the width of x alone."""
        for site in self._plan.sites:
            if (encoder := self._encoders.get(site.name)) is not None:
                weights, about = encoder.weights, asdict(encoder.metadata)
            else:
                weights, about = dict, asdict(NO_SAE) | {"d_model": self.width(site.name)}
            write_site_weights(self._layout, self._plan.pass_name, site, weights, about)

    def width(self, site: str) -> int:
        """Numbers of x at a site's hook."""
        hook_name = next(each.hook_name for each in self._plan.sites if each.name == site)
        return self._model.widths[hook_name]

    def check_saes(self, shard: str, by_site: dict[str, TokenShard], timed: Timed) -> dict[str, Explained]:
        """Explained variance by site, of the sites that this worker has not checked in an earlier shard."""
        if self._check_sae == "off" or not self._unchecked:
            return {}
        with timed("check"):
            sites = [site for site in self._plan.sites if site.name in self._unchecked]
            reconstructions, unusable = check_saes(
                self._model, self._encoders, sites, by_site, self._plan.batch_contexts
            )
        for name, sums in reconstructions.items():
            if self._check_sae == "stop" and (sentence := worse_than_mean(sums)):
                raise InputError(
                    f"site {name!r}, shard {shard}: {sentence}; with extract.check_sae: warn it runs "
                    "nevertheless"
                )
        self._unchecked -= reconstructions.keys() | unusable
        tokens = by_site[sites[0].name]
        self._rows_checked += tokens.n_rows
        if self._rows_checked >= most_rows(tokens):
            self._unchecked.clear()  # a site that is left gives hardly any rows
        explained = {name: sums.explained for name, sums in reconstructions.items()}
        return {name: each.rounded() for name, each in explained.items() if not math.isnan(each.of_all)}

    def encode(
        self,
        tokens: TokenShard,
        by_site: dict[str, TokenShard],
        timed: Timed,
        dense: DenseWriters = NO_DENSE,
    ) -> Encoded:
        """Sparse features of each batch and site; one forward pass serves all sites.

        Rows that are not stored go through the model and not through the SAE. Where the GPU's memory does not
        do, the shard is tried once more as planned, then, where the run file allows that, in smaller batches.
        """
        planned, smaller = self._plan.batch_contexts, self._oom_batch_contexts
        sizes = [planned, planned, *([smaller] if smaller is not None and smaller < planned else [])]
        for size in sizes:
            self.batch_contexts = size if size != planned else None
            counter = _RowCounter(timed)
            try:
                return self._encode(tokens, by_site, counter, size, dense)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                full = error.with_traceback(None)  # the frames let go of their tensors
            with timed("forward", -counter.rows):  # the next try begins anew
                free_memory()
                for writer in dense.values():
                    writer.restart()
            logs.log_event("gpu_out_of_memory", logging.WARNING, batch_contexts=size, why=str(full))
        raise full

    def _encode(
        self,
        tokens: TokenShard,
        by_site: dict[str, TokenShard],
        timed: Timed,
        contexts: int,
        dense: DenseWriters,
    ) -> Encoded:
        """The same in batches of so many contexts.

        The features of a batch are taken when the next one was submitted, so that a GPU always has work.
        """
        encoded: Encoded = {name: [] for name in by_site}
        submitted: list[InFlightBatch] = []
        chosen = control.in_control(tokens)
        tallies = {
            name: ControlTally(encoder, [at_most(t) for t in control.THRESHOLDS])
            for name, encoder in self._control_encoders.items()
        }
        for batch, rows in batches(tokens, contexts):
            with timed("forward", rows.stop - rows.start):
                x = self._model.forward(batch)
            with timed("encode"):
                read = {name: RowsRead.of(shard, rows, batch.lengths) for name, shard in by_site.items()}
                before, submitted = submitted, list(self._submit(x, read, chosen[rows]))
                self._take(before, encoded, tallies)
            with timed("write"):
                _keep(before, dense)
        with timed("encode"):
            self._take(submitted, encoded, tallies)
            self.controls = {name: tally.sums() for name, tally in tallies.items()}
        with timed("write"):
            _keep(submitted, dense)
        return encoded

    def _submit(
        self, x: dict[str, torch.Tensor], read: dict[str, RowsRead], chosen: Bool
    ) -> Iterator[InFlightBatch]:
        """Begin to encode a batch for every site; rows in a control's contexts are kept for it."""
        for site in self._plan.sites:
            stored = read[site.name].stored
            vectors = read[site.name].vectors(x[site.hook_name]) if stored.any() else None
            encoder = self._encoders.get(site.name)
            pending = None if vectors is None or encoder is None else encoder.submit(vectors)
            kept = stored & chosen if site.control else np.zeros_like(stored)
            of_control = None if vectors is None or not kept.any() else take_rows(vectors, kept[stored])
            dense = vectors if "dense" in self._plan.layouts else None
            yield InFlightBatch(site, pending, stored, kept, of_control, dense)

    def _take(
        self, batch: list[InFlightBatch], encoded: Encoded, tallies: Mapping[str, ControlTally]
    ) -> None:
        """Wait for the features of a batch, and put empty rows where nothing is stored; then the controls."""
        for site, pending, stored, kept, x, _ in batch:
            if not site.has_sae:
                continue
            some = pending.result() if pending else SparseFeatures.concatenate([])
            features = some.scatter_rows(stored)
            encoded[site.name].append(features)
            if x is None:
                continue
            # Norms of the features of the control's rows, rounded as they will be stored; what the dtype
            # cannot hold is infinite here, and reported when the shard is rounded.
            some = features.select(np.repeat(kept, np.diff(features.indptr)))
            with np.errstate(over="ignore"):
                squares = some.data.astype(self._plan.activation_dtype).astype(np.float64) ** 2
            of_row = np.repeat(np.arange(len(kept)), np.diff(some.indptr))
            norms = np.sqrt(np.bincount(of_row, weights=squares, minlength=len(kept)))[kept]
            tallies[site.name].add(x, to_device(norms.astype(np.float32), x.device))


def _keep(batch: list[InFlightBatch], dense: DenseWriters) -> None:
    """Write x of the stored rows, one batch late, when the device has it."""
    for in_flight in batch:
        if writer := dense.get(in_flight.site.name):
            x = (
                np.empty((0, writer.width), np.float32)
                if in_flight.dense is None
                else in_flight.dense.cpu().numpy()
            )
            writer.add(x, in_flight.stored)


class _RowCounter:
    """`timed`, which counts the rows that went through."""

    def __init__(self, timed: Timed) -> None:
        self._timed, self.rows = timed, 0

    @contextmanager
    def __call__(self, stage: str, rows: int = 0) -> Iterator[None]:
        with self._timed(stage, rows):
            yield
        self.rows += rows


def _weights(site: PlannedSite) -> int:
    """Bytes of an SAE's matrices on the device."""
    return (3 if site.control else 2) * 4 * site.d_model * site.d_sae
