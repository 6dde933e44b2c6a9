"""The worker: one shard at a time, from token ids to committed data. It knows no Ray.

Legend: B contexts of a batch, T positions, N token rows, Z nonzeros.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import statistics
from pipeline.batches import batches
from pipeline.first_look import first_look
from pipeline.models import load_model, model_digest
from pipeline.models.device import describe_device, to_device
from pipeline.plan import environment
from pipeline.saes import load_sae, sae_digest
from pipeline.statistics.rows import l0_counts
from pipeline.store.commits import commit, read_commit
from pipeline.store.site import write_site_weights
from pipeline.store.tokens import counted_for, read_links, read_token_shard
from pipeline.store.transposition import round_activations, to_postings
from pipeline.store.writer import write_site
from schemas.errors import InputError, ShardError
from schemas.layout import Layout
from schemas.records import DataObject, Lake, Plan, PlannedSite, Receipt, SiteReceipt
from schemas.run_file import CheckSae, Model
from schemas.values import Bool, Hello, SparseFeatures, TokenShard

if TYPE_CHECKING:
    import torch

    from pipeline.saes.encoder import Encoder, Pending

Encoded = dict[str, list[SparseFeatures]]
Stored = dict[str, Bool]
"""By site, which rows are encoded, bool [N] of a shard or of a batch."""
Submitted = list[tuple[str, "Pending | None", Bool]]
"""By site, the features on their way of the rows that are stored; None where there are none."""


class Worker:
    """Holds one model and the SAEs of all sites; `process` turns a token shard into a receipt."""

    def __init__(
        self, root: Path, plan: Plan, gpus: tuple[str, ...] = (), check_sae: CheckSae = "off"
    ) -> None:
        self._layout = Layout(root)
        self._plan, self._gpus, self._check_sae = plan, gpus, check_sae
        self._to_look_at = {site.name for site in plan.sites}
        self._lake: Lake = Lake.from_json(self._layout.lake.read_bytes(), str(self._layout.lake))
        self._records = {record.name: record for link in read_links(self._layout) for record in link.shards}
        self._seconds: dict[str, float] = defaultdict(float)

    def setup(self) -> Hello:
        """Load the model and the SAEs, keep the sites' weights in the store, and say where this is.

        Raises InputError when this node sees another model or SAE than the plan.
        """
        plan = self._plan
        model = Model(
            loader=plan.model_loader,
            path=plan.model,
            dtype=plan.model_dtype,
            processing=plan.model_processing,
        )
        self._check_digest(f"model {plan.model}", model_digest(model), plan.model_digest)
        for site in plan.sites:
            self._check_digest(f"SAE {site.sae}", sae_digest(site.sae), site.sae_digest)
        hooks = list(dict.fromkeys(site.hook_name for site in plan.sites))
        self._model = load_model(model, hooks, device=plan.device, threads=plan.threads)
        self._encoders = {site.name: self._load_encoder(site) for site in plan.sites}
        return Hello(
            node=socket.gethostname(),
            pid=os.getpid(),
            gpus=self._gpus,
            device=plan.device,
            device_model=describe_device(plan.device),
            environment=environment(),
        )

    def _check_digest(self, what: str, found: str, planned: str) -> None:
        if found != planned:
            raise InputError(
                f"node {socket.gethostname()} sees other files for {what} than the plan was made with: give "
                "every node the same"
            )

    def _load_encoder(self, site: PlannedSite) -> Encoder:
        block = (site.encode_block, site.encode_features or site.d_sae)
        encoder = load_sae(site.sae, self._plan.device, site.encode_dtype, block=block)
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

    def process(self, shard: str) -> Receipt:
        """Write and commit one shard, unless that was done; return the receipt in force.

        Raises ShardError, with the shard's name, when its activations can not be stored, and InputError when
        an SAE explains less of the first shard than its mean does.
        """
        if (done := read_commit(self._layout, self._plan.pass_name, shard)) is not None:
            return done
        self._seconds.clear()
        try:
            return self._process(shard)
        except ShardError as error:
            raise ShardError(f"shard {shard}: {error}") from error

    def _process(self, shard: str) -> Receipt:
        with self._timed("read"):
            tokens = read_token_shard(self._layout, self._lake, self._records[shard])
        at = {site.name: tokens.at(site.positions, self._lake.context_size) for site in self._plan.sites}
        explained = self._look(shard, at)
        encoded = self._encode(tokens, {name: shard.stored for name, shard in at.items()})
        attempt = uuid.uuid4().hex
        folder = self._layout.attempt(self._plan.pass_name, shard, attempt)
        objects: list[DataObject] = []
        sites: dict[str, SiteReceipt] = {}
        with self._timed("write"), _removed_on_error(folder):
            for site in self._plan.sites:
                about, written = self._write(folder, site, encoded.pop(site.name), at[site.name])
                sites[site.name] = about.model_copy(update={"explained_variance": explained.get(site.name)})
                objects += written
        receipt = Receipt(
            shard=shard,
            attempt=attempt,
            plan_hash=self._plan.hash,
            tokens_sha256=self._records[shard].sha256,
            rows=tokens.n_rows,
            sites=sites,
            objects=tuple(objects),
            seconds={name: round(seconds, 4) for name, seconds in self._seconds.items()},
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            environment={
                "device_model": describe_device(self._plan.device),
                "host": socket.gethostname(),
                **environment(),
            },
        )
        return commit(self._layout, self._plan.pass_name, receipt)

    def _look(self, shard: str, at: dict[str, TokenShard]) -> dict[str, float]:
        """Explained variance by site, of the sites that this worker has not looked at in an earlier shard."""
        if self._check_sae == "off" or not self._to_look_at:
            return {}
        from pipeline.saes.reconstruction import worse_than_mean

        with self._timed("check"):
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

    def _encode(self, tokens: TokenShard, stored: Stored) -> Encoded:
        """Sparse features of each batch and site; one forward pass serves all sites.

        Rows that are not stored go through the model and not through the SAE. The features of a batch are
        taken when the next one was submitted, so that a GPU always has work.
        """
        encoded: Encoded = {name: [] for name in stored}
        submitted: Submitted = []
        for batch, rows in batches(tokens, self._plan.batch_contexts):
            with self._timed("forward"):
                x = self._model.forward(batch)
            with self._timed("encode"):
                before, submitted = submitted, self._submit(x, {name: s[rows] for name, s in stored.items()})
                _take(before, encoded)
        with self._timed("encode"):
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

    def _write(
        self, folder: Path, site: PlannedSite, parts: list[SparseFeatures], tokens: TokenShard
    ) -> tuple[SiteReceipt, list[DataObject]]:
        """Round, transpose, count and write one site of the shard, `tokens` cut to the site's positions."""
        exact = SparseFeatures.concatenate(parts)
        parts.clear()
        features, underflow, rounding = round_activations(exact, self._plan.activation_dtype)
        postings = to_postings(features, site.d_sae)
        objects = write_site(
            folder,
            site,
            features,
            postings,
            partials=lambda: statistics.partials(postings, tokens),
            row_counts=l0_counts(features.indptr, tokens.counted),
            row_start=tokens.row_start,
            layouts=self._plan.layouts,
            activation_dtype=self._plan.activation_dtype,
        )
        counted = counted_for(tokens, site.positions)
        receipt = SiteReceipt(nnz=features.nnz, underflow=underflow, rounding=rounding, counted=counted)
        return receipt, objects

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - start


@contextmanager
def _removed_on_error(attempt: Path) -> Iterator[None]:
    """Nobody will commit an attempt that failed at one of its sites."""
    try:
        yield
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)
        raise


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
