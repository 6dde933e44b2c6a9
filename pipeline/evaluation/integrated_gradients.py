"""How much each feature adds to the gap between a model's probabilities of two answers, at a prompt's end.

Integrated gradients (M. Sundararajan, A. Taly, Q. Yan, "Axiomatic attribution for deep networks", ICML 2017)
along the straight path on which all latents of a prompt grow from 0 to what they are, f(a) = a f. What the
SAE does not explain, x - decode(f), is held fixed: at the hook stands x + (a - 1) f W_dec. So

    gap(a) = p(answer) - p(other),   ig_i = f_i W_dec,i . G,   G = integral over a of d gap / d x,

and the sum of ig over features is gap(1) - gap(0), the gap of the prompt minus that with no latent active:
completeness, by which the quadrature is checked. IG2, after Y. Liu et al., "The devil is in the neurons"
(ICLR 2024), is the same of the squared gap, d gap^2 = 2 gap d gap: its sum is gap(1)^2 - gap(0)^2. A latent
that is 0 gets 0. The integral is a Gauss-Legendre quadrature: a tiny smooth model's gaps have float32's
digits at 16 nodes; a language model's, whose norms turn fast where x is small, lacked 7 % at 8 nodes, and
0.7 % at 32.

One vector x per context, pooled before the SAE, moves every row that it was pooled from alike: the mean of
rows that all move by v moves by v. Without pooling each stored row has a vector of its own.

C contexts of a batch, N token rows, V vectors, Z active features of them, S nodes, O width of the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.patching import output_scale, patch
from pipeline.models import Model
from pipeline.models.device import to_device
from pipeline.models.hooks.pooling import RowsRead
from pipeline.models.hooks.replay import Begun
from pipeline.plans.reopen import Place
from pipeline.saes.encoding.encoder import Encoder
from pipeline.store.reading.windows import concatenated_ranges
from schemas.values import F64, I64, Bool, SparseFeatures, TokenBatch, TokenShard

STARTING_NODES, MOST_NODES = 16, 128


class Opened(NamedTuple):
    """Model, SAE, where it reads, and how many token rows, pads included, go through the model at once."""

    model: Model
    encoder: Encoder
    place: Place
    rows: int

    def contexts(self, length: int) -> int:
        """How many contexts of so many tokens go through at once; one always does."""
        return max(1, self.rows // length)


@dataclass(frozen=True)
class Prompts:
    """Contexts of a shard, each a prompt, the rows of them that matter, and the two answers of each.

    `last` int64 [C]: the row, counted from the context's first, at whose end the answers are compared;
    `answers` int64 [C, 2]: token ids; `owner` int64 [N]: for each row of the contexts the vector that moves
    it, -1 for none; `vector_context` int64 [V]: whose vector it is; `begun`: where passes over them begin
    at the SAE's place, None where they run the whole model.
    """

    batch: TokenBatch
    last: I64
    answers: I64
    owner: I64
    vector_context: I64
    begun: Begun | None = None

    @property
    def starts(self) -> I64:
        """First row of each context among all N, int64 [C]."""
        return np.cumsum(self.batch.lengths) - self.batch.lengths

    @property
    def ends(self) -> I64:
        """The rows at whose end the answers are compared, among all N, int64 [C]."""
        return self.starts + self.last

    @property
    def first(self) -> I64:
        """The first position of each context that a vector moves, its length where there is none, [C]."""
        context = np.repeat(np.arange(len(self.last)), self.batch.lengths)[self.moved]
        positions = self.batch.lengths.copy()
        np.minimum.at(positions, context, np.flatnonzero(self.moved) - self.starts[context])
        return positions

    @property
    def moved(self) -> Bool:
        """Rows that a vector moves, bool [N]."""
        return self.owner >= 0

    def repeated(self, contexts: I64) -> tuple[Prompts, I64]:
        """Some of the contexts, again and again as `contexts` names them; and which vector each has, [V']."""
        lengths = self.batch.lengths[contexts]
        owner = self.owner[concatenated_ranges(self.starts[contexts], self.starts[contexts] + lengths)]
        # vectors are numbered context by context: a copy's start where the copy before it ends
        sizes = np.bincount(self.vector_context, minlength=len(self.last))
        firsts, sizes = (np.cumsum(sizes) - sizes)[contexts], sizes[contexts]
        shift = np.repeat(np.cumsum(sizes) - sizes - firsts, lengths)
        begun = self.begun and self.begun.again(contexts)
        again = Prompts(
            TokenBatch(self.batch.token_ids[contexts], lengths),
            self.last[contexts],
            self.answers[contexts],
            np.where(owner >= 0, owner + shift, -1),
            np.repeat(np.arange(len(contexts)), sizes),
            begun,
        )
        return again, concatenated_ranges(firsts, firsts + sizes)


class Attributed(NamedTuple):
    """The attributions of the prompts of a batch.

    `gap`, `baseline` float64 [C]: the gap as it is, and with every latent at 0; of each active feature of
    each vector, float64 [Z]: `ig` of the gap, `ig2` of its square; `context` and `feature` int64 [Z];
    `nodes` int64 [C]: of the quadrature that was accepted; `missing`, `missing2` float64 [C]: completeness,
    the sum of attributions minus the difference of the gaps, or of their squares.
    """

    gap: F64
    baseline: F64
    context: I64
    feature: I64
    activation: F64
    ig: F64
    ig2: F64
    nodes: I64
    missing: F64
    missing2: F64

    def complete(self, tolerance: float) -> Bool:
        """Which prompts' attributions add up, bool [C]: to this share of the difference, or to FLOOR."""
        difference = np.abs(self.gap - self.baseline)
        squares = np.abs(self.gap**2 - self.baseline**2)
        exact = np.abs(self.missing) <= np.maximum(tolerance * difference, FLOOR)
        floor = FLOOR * (np.abs(self.gap) + np.abs(self.baseline))
        exact2: Bool = np.abs(self.missing2) <= np.maximum(tolerance * squares, floor)
        return exact & exact2


FLOOR = 1e-6
"""Of a probability: what float32 leaves of the gap's digits; of a square, times the sum of both gaps."""


class Latents:
    """The vectors of some prompts, their features, and what these add to the target."""

    def __init__(self, opened: Opened, prompts: Prompts, x: Tensor) -> None:
        """`x` float32 [V, width], as the SAE reads it."""
        self._opened, self._prompts = opened, prompts
        self.features: SparseFeatures = opened.encoder.encode(x)
        self._scale = output_scale(opened.encoder.metadata, x)

    @cached_property
    def vector(self) -> I64:
        """The vector of each active feature, int64 [Z]."""
        return np.repeat(np.arange(len(self.features.indptr) - 1), np.diff(self.features.indptr))

    @cached_property
    def directions(self) -> Tensor:
        """What each active feature adds to the target, float32 [Z, O]."""
        weights = self._opened.encoder.directions(self.features.indices)
        data = torch.from_numpy(self.features.data).to(weights.device)
        return weights * data[:, None] * self._scale[to_device(self.vector, weights.device)]

    def total(self, kept: Bool | None = None) -> Tensor:
        """The directions added up for each vector, float32 [V, O]; with `kept` bool [Z] of some of them."""
        directions = self.directions
        index = to_device(self.vector, directions.device)
        if kept is not None:
            directions = directions * to_device(kept.astype(np.float32), directions.device)[:, None]
        zeros = directions.new_zeros((len(self.features.indptr) - 1, directions.shape[1]))
        return zeros.index_add(0, index, directions)


def gaps(opened: Opened, prompts: Prompts, shift: Tensor | None = None, *, gradients: bool = False) -> Tensor:
    """p(answer) - p(other) at the end of each prompt, float32 [C], where vectors moved by `shift` [V, O]."""
    replace = {}
    if shift is not None:
        owner = to_device(prompts.owner[prompts.moved], shift.device)

        def moved(_x: Tensor, target: Tensor) -> Tensor:
            return target + shift[owner]

        replace = patch(opened.encoder.metadata, opened.place, prompts.moved, moved)
    logits = opened.model.logits_at(
        prompts.batch, prompts.ends, replace, gradients=gradients, begun=prompts.begun
    )
    with torch.set_grad_enabled(gradients):
        return gap_of(logits, prompts.answers)


def gap_of(logits: Tensor, answers: I64) -> Tensor:
    """p(answer) - p(other), float32 [C], of logits [C, vocabulary] and token ids int64 [C, 2]."""
    chances = logits.softmax(dim=1).gather(1, to_device(answers, logits.device))
    return chances[:, 0] - chances[:, 1]


def attribute(opened: Opened, prompts: Prompts, latents: Latents, nodes: int) -> Attributed:
    """Attributions by a quadrature of so many nodes."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    # moved from [-1, 1] to [0, 1]; the path's two ends have no weight, but their gaps are needed
    places, weights = np.append((places + 1) / 2, [0.0, 1.0]), np.append(weights / 2, [0.0, 0.0])
    total, c = latents.total(), len(prompts.last)
    mean = torch.zeros_like(total, dtype=torch.float64)
    mean2, gap_at = torch.zeros_like(mean), np.empty((len(places), c))
    for some in _portions(len(places), opened.contexts(prompts.batch.token_ids.size)):
        # nodes s of a portion go through the model as so many copies of the prompts, each moved its own way
        s = len(places[some])
        tiled, vectors = prompts.repeated(np.tile(np.arange(c), s))
        index = to_device(vectors, total.device)
        place = torch.from_numpy(np.repeat(places[some] - 1, len(vectors) // s).astype(np.float32))
        shift = (place.to(total.device)[:, None] * total[index]).detach().clone().requires_grad_(True)
        gaps_of_copies = gaps(opened, tiled, shift, gradients=True)
        # prompts do not see each other, so one backward pass of the sum gives the gradient of each
        (slope,) = torch.autograd.grad(gaps_of_copies.sum(), shift)
        slope = slope.double().view(s, *total.shape)
        gap = gap_at[some] = gaps_of_copies.detach().double().cpu().numpy().reshape(s, c)
        weight = torch.from_numpy(weights[some]).to(slope.device)
        mean += torch.einsum("s,svo->vo", weight, slope)
        # d gap^2 = 2 gap d gap
        per_vector = torch.from_numpy(2 * gap[:, prompts.vector_context]).to(slope.device)
        mean2 += torch.einsum("s,sv,svo->vo", weight, per_vector, slope)
    return _attributed(prompts, latents, gap_at[-1], gap_at[-2], (mean, mean2), nodes)


def _attributed(
    prompts: Prompts, latents: Latents, gap: F64, baseline: F64, means: tuple[Tensor, Tensor], nodes: int
) -> Attributed:
    """The mean gradients [V, O] shared out among the active features, and what is missing."""
    directions = latents.directions.double()
    index = to_device(latents.vector, directions.device)
    ig, ig2 = ((directions * mean[index]).sum(1).cpu().numpy() for mean in means)
    context = prompts.vector_context[latents.vector]
    c = len(prompts.last)
    return Attributed(
        gap=gap,
        baseline=baseline,
        context=context,
        feature=latents.features.indices.astype(np.int64),
        activation=latents.features.data.astype(np.float64),
        ig=ig,
        ig2=ig2,
        nodes=np.full(c, nodes),
        missing=np.bincount(context, ig, c) - (gap - baseline),
        missing2=np.bincount(context, ig2, c) - (gap**2 - baseline**2),
    )


def ablated_gaps(opened: Opened, prompts: Prompts, latents: Latents, pairs: I64) -> F64:
    """The gap of a context when a feature of it is set to 0, float64 [n], for pairs int64 [n, 2] of both."""
    context = prompts.vector_context[latents.vector]
    ablated = [np.empty(0)]
    for some in _portions(len(pairs), opened.contexts(prompts.batch.token_ids.shape[1])):
        tiled, vectors = prompts.repeated(pairs[some, 0])
        shift = torch.zeros(len(vectors), latents.directions.shape[1], device=latents.directions.device)
        for n, (of, feature) in enumerate(pairs[some].tolist()):
            # the feature's entries in this prompt, and where the copy keeps the vectors that they are of
            entries = np.flatnonzero((context == of) & (latents.features.indices == feature))
            here = np.flatnonzero(tiled.vector_context == n)
            at = here[np.searchsorted(vectors[here], latents.vector[entries])]
            shift[at] = -latents.directions[entries]
        ablated.append(gaps(opened, tiled, shift).double().cpu().numpy())
    return np.concatenate(ablated)


def prompts_of(tokens: TokenShard, contexts: I64, answers: I64, counted: Bool) -> tuple[Prompts, RowsRead]:
    """Prompts of some contexts of a shard cut to what a site reads, and how their vectors are read of x [N].

    `answers` int64 [C, 2] are theirs; the answers follow each context's last row that is `counted`, bool over
    all rows of the shard, in the lake.
    """
    starts, lengths = tokens.context_ptr[contexts], np.diff(tokens.context_ptr)[contexts]
    rows = concatenated_ranges(starts, starts + lengths)
    padded = np.zeros((len(contexts), int(lengths.max())), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = tokens.token_ids[rows]
    # the last counted row of each context, by its place there: rows ascend, so the largest
    context = np.repeat(np.arange(len(contexts)), lengths)
    last = np.zeros(len(contexts), np.int64)
    ends = counted[rows]
    np.maximum.at(last, context[ends], (rows - np.repeat(starts, lengths))[ends])
    # pooled: a context has one vector, which moves every row it is the mean of; else each stored row its own
    averaged = None if tokens.averaged is None else tokens.averaged[rows]
    stored = tokens.stored[rows]
    vector_context = context[stored]
    vector_of = np.full(len(contexts), -1)
    vector_of[vector_context] = np.arange(len(vector_context))
    alone = np.where(stored, np.cumsum(stored) - 1, -1)
    owner = alone if averaged is None else np.where(averaged, vector_of[context], -1)
    prompts = Prompts(TokenBatch(padded, lengths), last, answers, owner, vector_context)
    return prompts, RowsRead(stored, averaged, lengths)


def _portions(n: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover 0 .. n - 1."""
    return (slice(first, min(first + size, n)) for first in range(0, n, size))
