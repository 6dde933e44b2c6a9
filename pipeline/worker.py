"""The worker: one shard at a time, from token ids to committed data. It knows no Ray.

Legend: B contexts of a batch, T positions, N token rows, Z nonzeros.
"""

from __future__ import annotations

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
from pipeline.models import load_model, model_digest
from pipeline.models.device import describe_device
from pipeline.plan import environment
from pipeline.saes import load_sae, sae_digest
from pipeline.statistics.rows import l0_counts
from pipeline.store.commits import commit, read_commit
from pipeline.store.site import write_site_weights
from pipeline.store.tokens import read_links, read_token_shard
from pipeline.store.transposition import round_activations, to_postings
from pipeline.store.writer import write_site
from schemas.errors import InputError, ShardError
from schemas.layout import Layout
from schemas.records import DataObject, Lake, Plan, PlannedSite, Receipt, SiteReceipt
from schemas.run_file import Model
from schemas.values import Bool, Hello, SparseFeatures, TokenBatch, TokenShard

if TYPE_CHECKING:
    from pipeline.saes.encoder import Encoder

Encoded = dict[str, list[SparseFeatures]]


class Worker:
    """Holds one model and the SAEs of all sites; `process` turns a token shard into a receipt."""

    def __init__(self, root: Path, plan: Plan, gpus: tuple[str, ...] = ()) -> None:
        self._layout = Layout(root)
        self._plan, self._gpus = plan, gpus
        self._lake: Lake = Lake.from_json(self._layout.lake.read_bytes(), str(self._layout.lake))
        self._records = {record.name: record for link in read_links(self._layout) for record in link.shards}
        self._seconds: dict[str, float] = defaultdict(float)

    def setup(self) -> Hello:
        """Load the model and the SAEs, keep the sites' weights in the store, and say where this is.

        Raises InputError when this node sees another model or SAE than the plan.
        """
        plan = self._plan
        model = Model(loader=plan.model_loader, path=plan.model, dtype=plan.model_dtype)
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
        encoder = load_sae(site.sae, self._plan.device, block=block)
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

        Raises ShardError, with the shard's name, when its activations can not be stored.
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
        encoded = self._encode(tokens)
        attempt = uuid.uuid4().hex
        folder = self._layout.attempt(self._plan.pass_name, shard, attempt)
        objects: list[DataObject] = []
        sites: dict[str, SiteReceipt] = {}
        with self._timed("write"), _removed_on_error(folder):
            for site in self._plan.sites:
                sites[site.name], written = self._write(folder, site, encoded.pop(site.name), tokens)
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

    def _encode(self, tokens: TokenShard) -> Encoded:
        """Sparse features of each batch and site; one forward pass serves all sites.

        Rows that the special-token policy keeps out go through the model and not through the SAE.
        """
        encoded: Encoded = {site.name: [] for site in self._plan.sites}
        for batch, rows in batches(tokens, self._plan.batch_contexts):
            stored = tokens.stored[rows]
            with self._timed("forward"):
                x = self._model.forward(batch)
            with self._timed("encode"):
                for site in self._plan.sites:
                    read = x[site.hook_name]
                    some = self._encoders[site.name].encode(
                        read if stored.all() else read[stored.nonzero()[0]]
                    )
                    encoded[site.name].append(_spread(some, stored))
        return encoded

    def _write(
        self, folder: Path, site: PlannedSite, parts: list[SparseFeatures], tokens: TokenShard
    ) -> tuple[SiteReceipt, list[DataObject]]:
        """Round, transpose, count and write one site of the shard."""
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
        return SiteReceipt(nnz=features.nnz, underflow=underflow, rounding=rounding), objects

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - start


def batches(tokens: TokenShard, batch_contexts: int) -> Iterator[tuple[TokenBatch, slice]]:
    """Cut a shard's contexts, in order, into batches, each with the rows that it covers."""
    for first in range(0, tokens.n_contexts, batch_contexts):
        ptr = tokens.context_ptr[first : first + batch_contexts + 1]
        lengths = np.diff(ptr)
        padded = np.zeros((len(lengths), int(lengths.max())), dtype=np.int64)
        real = np.arange(padded.shape[1]) < lengths[:, None]
        padded[real] = tokens.token_ids[ptr[0] : ptr[-1]]
        yield TokenBatch(padded, lengths), slice(int(ptr[0]), int(ptr[-1]))


@contextmanager
def _removed_on_error(attempt: Path) -> Iterator[None]:
    """Nobody will commit an attempt that failed at one of its sites."""
    try:
        yield
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)
        raise


def _spread(features: SparseFeatures, stored: Bool) -> SparseFeatures:
    """Put empty rows where `stored` is false."""
    lengths = np.zeros(len(stored), dtype=np.int64)
    lengths[stored] = np.diff(features.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return SparseFeatures(indptr, features.indices, features.data)
