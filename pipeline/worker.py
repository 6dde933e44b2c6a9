"""The worker: one shard at a time, from token ids to committed data. It knows no Ray.

What fires is made by a `Features`: a model with its SAEs (`extraction.by_model`), or none
(`extraction.by_recipe`). Legend: N token rows.
"""

from __future__ import annotations

import os
import resource
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from pipeline import statistics
from pipeline.plans.plan import environment
from pipeline.statistics import control as of_control
from pipeline.statistics.l0 import l0_counts
from pipeline.store.formats.dense import NO_DENSE, DenseWriter, DenseWriters
from pipeline.store.formats.transposition import round_activations, to_postings
from pipeline.store.objects.verbs import staged_folder
from pipeline.store.records.commits import read_commit
from pipeline.store.records.dropped import dropped_sites, live_sites
from pipeline.store.records.plans import commit_under, require_plan
from pipeline.store.records.tokens import counted_for, read_links, read_token_shard, require_lake
from pipeline.store.writer import write_dense_site, write_site
from schemas.errors import ShardError
from schemas.layout import DENSE, Layout, StorePath
from schemas.names import CheckSae
from schemas.records import DataObject, Plan, PlannedSite, Receipt, ShardRecord, SiteReceipt
from schemas.values import (
    Agreement,
    ControlSums,
    Encoded,
    Explained,
    Hello,
    SparseFeatures,
    Timed,
    TokenShard,
)


class Features(Protocol):
    """Makes the sparse features of token rows, for all sites of a plan."""

    @property
    def device_model(self) -> str:
        """What the device calls itself."""

    @property
    def agreement(self) -> Agreement | None:
        """How the loaded model differs from transformers' own; None where there is no such model."""

    @property
    def batch_contexts(self) -> int | None:
        """Contexts of a batch of the last shard, where memory forced fewer than the plan's; else None."""

    @property
    def controls(self) -> Mapping[str, ControlSums]:
        """Sums of the controls over the last shard, of the sites that have one."""

    def load(self) -> None:
        """Get ready, writing nothing; NodeError when this node sees another model or SAE than the plan."""

    def keep_weights(self) -> None:
        """Keep the sites' weights in the store, where they are not there."""

    def check_saes(self, shard: str, by_site: dict[str, TokenShard], timed: Timed) -> dict[str, Explained]:
        """Explained variance by site, where it is checked; `by_site` as in `encode`."""

    def width(self, site: str) -> int:
        """Numbers of x at a site's hook."""

    def encode(
        self,
        tokens: TokenShard,
        by_site: dict[str, TokenShard],
        timed: Timed,
        dense: DenseWriters = NO_DENSE,
    ) -> Encoded:
        """Features of all rows of the shard, in order, in pieces; rows that a site does not store are empty.

        `by_site` is the shard restricted to what each site reads. What a site reads goes to its writer in
        `dense`, where there is one. A site without an SAE has no pieces.
        """


class Worker:
    """Turns a token shard into a receipt."""

    def __init__(
        self,
        root: StorePath,
        plan: Plan,
        gpus: tuple[str, ...] = (),
        check_sae: CheckSae = "off",
        oom_batch_contexts: int | None = None,
        on_rows: Callable[[str, int], None] = lambda shard, rows: None,
    ) -> None:
        self._layout = Layout(root)
        self._plan, self._gpus = plan, gpus
        self._sites = live_sites(plan, dropped_sites(self._layout, plan.pass_name))
        live = plan.model_copy(update={"sites": self._sites})
        self._features: Features
        if plan.model_loader == "synthetic":
            from pipeline.extraction.by_recipe import SyntheticFeatures

            self._features = SyntheticFeatures(self._layout, live)
        else:  # torch is imported with a model
            from pipeline.extraction.by_model import ModelFeatures

            self._features = ModelFeatures(self._layout, live, check_sae, oom_batch_contexts)
        self._lake = require_lake(self._layout)
        self._records: dict[str, tuple[int, ShardRecord]] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._on_rows, self._in_flight = on_rows, ("", 0)
        self._has_begun = False

    def setup(self) -> Hello:
        """Get the features ready, and say where this is; errors as `Features.load`."""
        self._features.load()
        return Hello(
            node=socket.gethostname(),
            pid=os.getpid(),
            gpus=self._gpus,
            device=self._plan.device,
            device_model=self._features.device_model,
            environment=environment(),
            agreement=self._features.agreement,
        )

    def begin(self) -> None:
        """Keep the sites' weights; the plan must be in the store by now, InputError where another one is."""
        if not self._has_begun:
            require_plan(self._layout, self._plan)
            self._features.keep_weights()
            self._has_begun = True

    def rows_done(self, shard: str) -> int:
        """Rows of the shard that went through, while it is in flight; another thread may read it."""
        name, rows = self._in_flight
        return rows if name == shard else 0

    def process(self, shard: str) -> Receipt:
        """Write and commit one shard, unless that was done; return the receipt in force.

        Raises ShardError, with the shard's name, when its activations cannot be stored, and InputError when
        an SAE explains less of the first shard than its mean does, or when the pass has another plan by now.
        """
        self.begin()
        done = read_commit(self._layout, self._plan.pass_name, shard)
        if done is not None and done.plan_hash == self._plan.hash:
            return done
        self._seconds.clear()
        self._in_flight = (shard, 0)
        try:
            return self._process(shard)
        except ShardError as error:
            raise ShardError(f"shard {shard}: {error}") from error

    def _record(self, shard: str) -> tuple[int, ShardRecord]:
        """Number of the corpus link, and record, of a shard; the chain is read again for a later one."""
        if shard not in self._records:
            links = enumerate(read_links(self._layout))
            self._records = {record.name: (n, record) for n, link in links for record in link.shards}
        return self._records[shard]

    def _process(self, shard: str) -> Receipt:
        with self._timed("read"):
            link, record = self._record(shard)
            tokens = read_token_shard(self._layout, self._lake, record, inputs=True)
        by_site = {
            site.name: tokens.restrict(site.selection, self._lake.context_size) for site in self._sites
        }
        explained = self._features.check_saes(shard, by_site, self._timed)
        # Every attempt has a folder of its own: two at once, or one after a dead one, never share a file.
        attempt = uuid.uuid4().hex
        folder = self._layout.attempt(self._plan.pass_name, shard, attempt)
        objects: list[DataObject] = []
        sites: dict[str, SiteReceipt] = {}
        # x is written while the shard is encoded. All objects are stored for good once the stack is closed,
        # and only then may a receipt name them.
        with ExitStack() as stack:
            staging = stack.enter_context(staged_folder(folder))
            names, width = by_site if "dense" in self._plan.layouts else (), self._features.width
            dense = {
                name: stack.enter_context(
                    DenseWriter(staging / name / DENSE, tokens.n_rows, width(name), self._plan.dense_dtype)
                )
                for name in names
            }
            encoded = self._features.encode(tokens, by_site, self._timed, dense)
            with self._timed("write"):
                for site in self._sites:
                    parts, writer = encoded.pop(site.name), dense.get(site.name)
                    about, written = self._write(staging, site, parts, by_site[site.name], writer)
                    of_all, of_rest = explained.get(site.name, (None, None))
                    sites[site.name] = replace(
                        about, explained_variance=of_all, explained_variance_rest=of_rest
                    )
                    objects += written
                stack.close()
        place = {"device_model": self._features.device_model, "host": socket.gethostname()}
        receipt = Receipt(
            shard=shard,
            attempt=attempt,
            plan_hash=self._plan.hash,
            tokens_sha256=record.sha256,
            rows=tokens.n_rows,
            sites=sites,
            objects=tuple(objects),
            seconds={name: round(seconds, 4) for name, seconds in self._seconds.items()},
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            environment=place | environment(),
            batch_contexts=self._features.batch_contexts,
            link=link,
        )
        return commit_under(self._layout, self._plan, receipt)

    def _write(
        self,
        folder: Path,
        site: PlannedSite,
        parts: list[SparseFeatures],
        tokens: TokenShard,
        dense: DenseWriter | None,
    ) -> tuple[SiteReceipt, list[DataObject]]:
        """Round, transpose, count and write one site of the shard, `tokens` cut to the site's positions."""
        counted = counted_for(tokens, site.selection)
        if not site.has_sae:
            assert dense is not None
            nothing = SiteReceipt(nnz=0, underflow=0, rounding=0.0, counted=counted)
            return nothing, write_dense_site(folder, site, dense)
        exact = SparseFeatures.concatenate(parts)
        parts.clear()  # freed before the copy that is sorted by feature is made
        features, underflow, rounding = round_activations(exact, self._plan.activation_dtype)
        postings = to_postings(features, site.d_sae)
        sums = self._features.controls.get(site.name)
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
            control=None if sums is None else _control_tables(features, sums, tokens, site),
            dense=dense,
            format_version=self._plan.format_version,
        )
        receipt = SiteReceipt(nnz=features.nnz, underflow=underflow, rounding=rounding, counted=counted)
        return receipt, objects

    @contextmanager
    def _timed(self, stage: str, rows: int = 0) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - start
        if rows:
            # Name and rows are replaced as one, for another thread reads both.
            shard, done = self._in_flight
            self._in_flight = (shard, done + rows)
            self._on_rows(*self._in_flight)


def _control_tables(
    features: SparseFeatures, sums: ControlSums, tokens: TokenShard, site: PlannedSite
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """States, and counts over rows, of the learnt features and of the control over the control's contexts."""
    if not np.isfinite(sums.squares).all():
        raise ShardError(f"the control of site {site.name!r} overflows: remove its key control")
    chosen = of_control.in_control(tokens)
    kept = features.select(np.repeat(chosen, np.diff(features.indptr)))
    learnt = of_control.learnt_state(to_postings(kept, site.d_sae))
    empty_rows = int((tokens.counted & chosen & ~tokens.stored).sum())
    l0 = [
        of_control.learnt_l0(kept, int((tokens.counted & chosen).sum())),
        of_control.control_l0(sums, empty_rows),
    ]
    return of_control.partial(learnt, of_control.control_state(sums)), of_control.combine_l0(l0)
