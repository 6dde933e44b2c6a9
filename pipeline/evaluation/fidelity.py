"""What a model loses when an SAE's reconstruction, or nothing, stands in for x: totals of each document.

Measured are the rows that the site stores (its positions, without the special tokens that its policy leaves
out or sets to zero), and the predictions of the next token made there. The same rows, and no others, are
replaced: by the reconstruction, by zeros, by the mean of the target over the rows measured.

Under the policy zero_first the notebook that it comes from has another score, measured too and named literal:
there position 0 is replaced as well, by the reconstruction of no features (b_dec) or by zeros, and the
predictions made at it count.

B contexts of a batch, N token rows, n measured rows, N' predictions (rows with a real successor), M
documents, O width of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.patching import StandIn, patch
from pipeline.models import Model
from pipeline.models.device import to_device
from pipeline.models.hooks.losses import divergences, is_followed, losses_of, next_tokens
from pipeline.plans.reopen import PlannedUse, cached_per_process, open_encoder, open_model
from pipeline.saes.encoding.encoder import Encoder
from pipeline.saes.quality.reconstruction import target_of
from pipeline.statistics.documents.clustered import document_rows
from pipeline.statistics.documents.ratios import Moments, moments
from pipeline.statistics.evaluation.fidelity import LITERAL, MEASURED, PREDICTED, QUANTITIES
from pipeline.store.records.tokens import read_token_shard
from pipeline.tokens.batches import batches
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Lake, ShardRecord
from schemas.values import F64, I64, Bool, TokenBatch, TokenShard

LOGITS_BYTES = 1 << 28
"""Of the logits of a batch in float32; there are up to four times as many at once."""


@dataclass(frozen=True)
class Work:
    """What all shards share."""

    layout: Layout
    lake: Lake
    use: PlannedUse
    step: int
    """Contexts of a group; groups are what a sample of a shard is made of."""


class Part(NamedTuple):
    """A shard and the groups of its contexts to run; None: all of them."""

    record: ShardRecord
    groups: tuple[int, ...] | None

    def ranges(self, step: int) -> list[range]:
        """Contexts to run."""
        n = self.record.contexts
        groups = range(-(-n // step)) if self.groups is None else self.groups
        return [range(group * step, min((group + 1) * step, n)) for group in groups]


class Total(NamedTuple):
    """Measured rows, and the sum of the target over them, float64 [O]."""

    rows: int
    total: F64


class Opened(NamedTuple):
    """Model and SAE, and how many contexts go through at once."""

    model: Model
    encoder: Encoder
    contexts: int


def total_of(work: Work, part: Part) -> Total:
    """The target added up over the measured rows of a part of a shard."""
    opened, tokens = _open(work), _tokens(work, part)
    rows, total = 0, np.zeros(opened.encoder.metadata.width_out)
    for batch, place in _batches(tokens, part.ranges(work.step), opened.contexts):
        there = opened.model.forward(batch)[work.use.place.target]
        target = target_of(opened.encoder.metadata, there)
        index = to_device(np.flatnonzero(tokens.stored[place]), there.device)
        rows += len(index)
        total += target[index].double().sum(0).cpu().numpy()
    return Total(rows, total)


def measure(work: Work, mean: F64, part: Part) -> Moments:
    """Moments of the documents' totals (QUANTITIES) in a part of a shard; `mean` is the target's [O]."""
    opened, tokens = _open(work), _tokens(work, part)
    document, counted = document_rows(tokens)
    totals = np.zeros((len(QUANTITIES), len(counted)))
    for batch, place in _batches(tokens, part.ranges(work.step), opened.contexts):
        stored, counted_rows = tokens.stored[place], tokens.counted[place]
        if stored.any():
            one = _Batch(work, opened, batch, stored, counted_rows, document[place], mean)
            one.add_to(totals)
            if work.lake.special_tokens == "zero_first":
                one.add_literal_to(totals)
    return moments(totals[:, totals[QUANTITIES.index("rows")] > 0].T)


class _Batch:
    """One batch of contexts, run as it is and with each stand-in."""

    def __init__(
        self,
        work: Work,
        opened: Opened,
        batch: TokenBatch,
        stored: Bool,
        counted: Bool,
        document: I64,
        mean: F64,
    ) -> None:
        self._place, self._opened, self._batch = work.use.place, opened, batch
        self._stored, self._counted, self._document = stored, counted, document
        self._mean = torch.from_numpy(mean).to(opened.model.device)
        self._rows: list[Tensor] = []

    def add_to(self, totals: F64) -> None:
        """Add what it finds to the documents' totals float64 [m, M]."""
        model, batch = self._opened.model, self._batch
        targets = to_device(next_tokens(batch), model.device)
        clean = model.next_token_logits(batch)
        patched = model.next_token_logits(batch, self._patches(self._stored, self._reconstruct))
        losses = [losses_of(clean, targets), losses_of(patched, targets)]
        divergence = divergences(clean, patched)
        # two batches' logits are what fits: they go before the model runs again
        del clean, patched
        losses.append(model.losses(batch, self._patches(self._stored, lambda *_: 0.0)))
        mean = self._patches(self._stored, lambda _, target: self._mean.expand(target.shape))
        losses.append(model.losses(batch, mean))
        # the last token of a context predicts nothing, so predictions are fewer than rows
        followed = self._followed()
        measured = self._stored[followed]
        values = torch.stack([*losses, divergence]).double().cpu().numpy()[:, measured]
        columns = np.concatenate([np.ones((1, values.shape[1])), values])
        _scatter(totals, PREDICTED, self._document[followed][measured], columns)
        # rows are those that `_reconstruct` has seen on the way
        rows = torch.stack(self._rows).cpu().numpy()
        columns = np.concatenate([np.ones((1, rows.shape[1])), rows])
        _scatter(totals, MEASURED, self._document[self._stored], columns)

    def add_literal_to(self, totals: F64) -> None:
        """Add the notebook's losses: all counted rows replaced, position 0 by what nothing decodes to."""
        model, batch = self._opened.model, self._batch
        # x has the counted rows alone, so the mask is cut to them as well
        zeroed = ~self._stored[self._counted]

        def reconstruct(x: Tensor, target: Tensor) -> Tensor:
            encoder = self._opened.encoder
            features = encoder.encode(x)
            # of no features at position 0 the SAE decodes b_dec, as the notebook's mask makes it do
            kept = np.repeat(~zeroed, np.diff(features.indptr))
            return encoder.decode(features.select(kept), like=x).to(target.device)

        stand_ins: tuple[StandIn, ...] = (reconstruct, lambda *_: 0.0)
        puts = [None, *(self._patches(self._counted, stand_in) for stand_in in stand_ins)]
        values = torch.stack([model.losses(batch, put) for put in puts]).double().cpu().numpy()
        followed = self._followed()
        at = self._counted[followed]
        columns = np.concatenate([np.ones((1, int(at.sum()))), values[:, at]])
        _scatter(totals, LITERAL, self._document[followed][at], columns)

    def _followed(self) -> Bool:
        """Which real tokens have a next one in their context, bool [N]."""
        real = np.arange(self._batch.token_ids.shape[1]) < self._batch.lengths[:, None]
        followed: Bool = is_followed(self._batch)[real.ravel()]
        return followed

    def _patches(self, rows: Bool, stand_in: StandIn) -> Mapping[str, Callable[[Tensor], Tensor]]:
        return patch(self._opened.encoder.metadata, self._place, rows, stand_in)

    def _reconstruct(self, x: Tensor, target: Tensor) -> Tensor:
        """The reconstruction; MEASURED's figures of each row are kept on the way."""
        encoder = self._opened.encoder
        features = encoder.encode(x)
        given = encoder.decode(features, like=x).to(target.device)
        expected, decoded = target.double(), given.double()
        active = torch.from_numpy(np.diff(features.indptr)).to(target.device, torch.float64)
        self._rows = [
            (expected - decoded).square().sum(1),
            (expected - self._mean).square().sum(1),
            torch.cosine_similarity(expected, decoded, dim=1),
            active,
        ]
        return given


def _scatter(totals: F64, names: tuple[str, ...], document: I64, columns: F64) -> None:
    """Add columns float64 [len(names), n] to the documents' totals."""
    for name, column in zip(names, columns, strict=True):
        row = totals[QUANTITIES.index(name)]
        row += np.bincount(document, weights=column, minlength=len(row))


def _tokens(work: Work, part: Part) -> TokenShard:
    """The shard as the site counts it."""
    shard = read_token_shard(work.layout, work.lake, part.record, inputs=True)
    return shard.restrict(work.use.site.selection, work.lake.context_size)


def _batches(tokens: TokenShard, ranges: list[range], contexts: int) -> Iterator[tuple[TokenBatch, slice]]:
    for some in ranges:
        yield from batches(tokens, contexts, some)


def _open(work: Work) -> Opened:
    """Model and SAE, loaded once in a process."""
    return cached_per_process(("fidelity", *work.use.key), lambda: _load(work))


def _load(work: Work) -> Opened:
    """Model and SAE; InputError where they do not fit, or the model predicts nothing."""
    use = work.use
    model = open_model(use, dict.fromkeys(use.place))
    encoder = open_encoder(use.site, use.plan.device)
    if not encoder.accepts(model.widths[use.place.read]):
        raise InputError(f"SAE {use.site.sae} does not read {use.place.read}: restore its original files")
    # what a model gives says how wide its vocabulary is; two tokens are the fewest that predict one
    two = TokenBatch(np.zeros((1, 2), dtype=np.int64), np.array([2]))
    vocabulary = model.next_token_logits(two).shape[1]
    fit = max(1, LOGITS_BYTES // (4 * vocabulary * work.lake.context_size))
    return Opened(model, encoder, min(use.plan.batch_contexts, fit))
