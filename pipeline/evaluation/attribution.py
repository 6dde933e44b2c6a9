"""Attributions, and ablations, of the prompts of a lake: a part of a shard at a time, with model and SAE.

C prompts of a part, Z active features of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.evaluation.integrated_gradients import (
    MOST_NODES,
    STARTING_NODES,
    Attributed,
    Latents,
    Opened,
    Prompts,
    ablated_gaps,
    attribute,
    gap_of,
    prompts_of,
)
from pipeline.plans.reopen import PlannedUse, cached_per_process, open_encoder, open_model
from pipeline.statistics.evaluation.attribution import EVERY_PROMPT, partial
from pipeline.store.records.tokens import read_document_labels, read_token_shard
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Lake, ShardRecord
from schemas.tables.attribution import ATTRIBUTION_PROMPTS
from schemas.values import I64, Bool, TokenShard

LOGITS_BYTES = 1 << 27
"""Of the logits of a batch in float32; with their gradients there are some four times as many at once."""


@dataclass(frozen=True)
class Work:
    """What all parts share; `tolerance` is a share of the gap that attributions may lack.

    Without `labels` all prompts have EVERY_PROMPT's.
    """

    layout: Layout
    lake: Lake
    use: PlannedUse
    labels: tuple[str, ...]
    answers: tuple[str, str]
    tokenizer: str
    tolerance: float


class Part(NamedTuple):
    """Contexts first .. stop - 1 of a shard."""

    record: ShardRecord
    first: int
    stop: int

    @property
    def name(self) -> str:
        """Of this part alone, as long as parts are equally large."""
        return f"{self.record.name}-{self.first}"


@dataclass(frozen=True)
class _PartPrompts:
    """The prompts of a part whose answers differ: `contexts` int64 [C] of the shard, `answers` int64 [C, 2].

    `counted` bool: rows of the shard that the lake counts; `values` a row for each prompt, labels as columns.
    """

    tokens: TokenShard
    counted: Bool
    contexts: I64
    answers: I64
    values: pl.DataFrame


def attribute_part(work: Work, part: Part) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Attributions of the prompts of a part, by quadratures that are refined until they add up.

    ATTRIBUTION_PROMPTS, of those whose answers differ in their first tokens, and SUMS.
    """
    (opened, _), prompts_of_part = _open(work), _part_prompts(work, part)
    completed = [
        _complete(opened, prompts_of_part, some, work.tolerance) for some in _batches(opened, prompts_of_part)
    ]
    batches = [each for batch in completed for each in batch]
    d_sae = opened.encoder.d_sae
    context = np.concatenate([np.empty(0, np.int64), *(some[one.context] for some, one in batches)])
    feature = np.concatenate([np.empty(0, np.int64), *(one.feature for _, one in batches)])
    ig, ig2 = (
        np.concatenate([np.empty(0), *(getattr(one, name) for _, one in batches)]) for name in ("ig", "ig2")
    )
    # prompts came as their quadratures ended; sums of floats must not depend on that order
    order = np.lexsort((feature, context))
    sums = partial(prompts_of_part.values, context[order], feature[order], (ig[order], ig2[order]), d_sae)
    rows = [_prompts(prompts_of_part, some, one, work.tolerance) for some, one in batches]
    prompts = pl.concat([pl.DataFrame(schema=ATTRIBUTION_PROMPTS), *rows]).sort("context")
    return prompts, sums


def ablate_part(work: Work, chosen: pl.DataFrame, part: Part) -> tuple[pl.DataFrame]:
    """SUMS of what the gap, and its square, lose when one latent is set to 0.

    `chosen`: label, value, feature; it is ablated in the prompts with that value in which it is active.
    """
    (opened, _), prompts_of_part = _open(work), _part_prompts(work, part)
    context, feature = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    effect, effect2 = [np.empty(0)], [np.empty(0)]
    features_of = _features_by_prompt(prompts_of_part.values, chosen)
    for some in _batches(opened, prompts_of_part):
        prompts, latents = _read(opened, prompts_of_part, some)
        # a feature is active in several vectors of a prompt; it is set to 0 in all of them at once
        of = prompts.vector_context[latents.vector]
        active = np.unique(np.stack([of, latents.features.indices], axis=1), axis=0)
        pairs = active[[f in features_of[some[c]] for c, f in active.tolist()]]
        assert prompts.begun is not None
        gap = gap_of(prompts.begun.logits, prompts.answers).double().cpu().numpy()[pairs[:, 0]]
        without = ablated_gaps(opened, prompts, latents, pairs)
        context.append(some[pairs[:, 0]])
        feature.append(pairs[:, 1])
        effect.append(gap - without)
        effect2.append(gap**2 - without**2)
    effects = (np.concatenate(effect), np.concatenate(effect2))
    entries = (np.concatenate(context), np.concatenate(feature))
    sums = partial(prompts_of_part.values, *entries, effects, opened.encoder.d_sae)
    wanted = [chosen, sums.filter(pl.col("feature").is_null()).select("label", "value", "feature")]
    on = ["label", "value", "feature"]
    return (sums.join(pl.concat(wanted), on=on, how="semi", nulls_equal=True, maintain_order="left"),)


def _features_by_prompt(values: pl.DataFrame, chosen: pl.DataFrame) -> list[set[int]]:
    """The features to ablate in each prompt."""
    wanted: dict[tuple[str, str], set[int]] = {}
    for label, value, feature in chosen.iter_rows():
        wanted.setdefault((label, value), set()).add(feature)
    return [
        set().union(*(wanted.get((label, value), set()) for label, value in row.items()))
        for row in values.iter_rows(named=True)
    ]


def _complete(
    opened: Opened, prompts_of_part: _PartPrompts, some: I64, tolerance: float
) -> Iterator[tuple[I64, Attributed]]:
    """Prompts `some` of the part's, and their attributions; nodes are doubled where these lack some."""
    nodes = STARTING_NODES
    while len(some):
        prompts, latents = _read(opened, prompts_of_part, some)
        attributed = attribute(opened, prompts, latents, nodes)
        done = attributed.complete(tolerance) | (nodes >= MOST_NODES)
        # entries say whose they are by the prompt's place, so those that stay are numbered anew
        number, entries = np.cumsum(done) - 1, done[attributed.context]
        of_entries = {
            name: getattr(attributed, name)[entries] for name in ("feature", "activation", "ig", "ig2")
        }
        of_prompts = {
            name: getattr(attributed, name)[done]
            for name in ("gap", "baseline", "nodes", "missing", "missing2")
        }
        context = number[attributed.context[entries]]
        yield some[done], Attributed(context=context, **of_entries, **of_prompts)
        some, nodes = some[~done], 2 * nodes


def _prompts(
    prompts_of_part: _PartPrompts, some: I64, attributed: Attributed, tolerance: float
) -> pl.DataFrame:
    """Rows of ATTRIBUTION_PROMPTS."""
    contexts, tokens = prompts_of_part.contexts[some], prompts_of_part.tokens
    difference = (attributed.gap - attributed.baseline, attributed.gap**2 - attributed.baseline**2)
    columns = {
        "document": tokens.document[tokens.context_ptr[contexts]],
        "context": (tokens.context_start + contexts).astype(np.uint64),
        "gap": attributed.gap,
        "baseline": attributed.baseline,
        "ig_sum": difference[0] + attributed.missing,
        "ig2_sum": difference[1] + attributed.missing2,
        "nodes": attributed.nodes,
        "complete": attributed.complete(tolerance),
    }
    return pl.DataFrame(columns, schema=ATTRIBUTION_PROMPTS)


def _read(opened: Opened, prompts_of_part: _PartPrompts, some: I64) -> tuple[Prompts, Latents]:
    prompts, read = prompts_of(
        prompts_of_part.tokens,
        prompts_of_part.contexts[some],
        prompts_of_part.answers[some],
        prompts_of_part.counted,
    )
    begun = opened.model.begin(prompts.batch, prompts.ends, prompts.first)
    prompts = replace(prompts, begun=begun)
    return prompts, Latents(opened, prompts, read.vectors(begun.x[opened.place.read]))


def _batches(opened: Opened, prompts_of_part: _PartPrompts) -> Iterator[I64]:
    """Places of the part's prompts, so many at a time."""
    places = np.arange(len(prompts_of_part.contexts))
    # every batch holds as many as fit if all are as long as the longest, for shorter ones are padded
    n = opened.contexts(
        int(np.diff(prompts_of_part.tokens.context_ptr)[prompts_of_part.contexts].max(initial=1))
    )
    return (places[first : first + n] for first in range(0, len(places), n))


def _part_prompts(work: Work, part: Part) -> _PartPrompts:
    """The prompts of a part, their answers' first tokens and their labels."""
    whole = read_token_shard(work.layout, work.lake, part.record, inputs=True)
    tokens = whole.restrict(work.use.site.selection, work.lake.context_size)
    contexts = np.arange(part.first, part.stop)
    table = read_document_labels(work.layout, part.record, (*work.labels, *work.answers))
    documents = tokens.document[tokens.context_ptr[contexts]]
    values = table[np.searchsorted(table["document"].to_numpy(), documents)]
    # an answer is known by its first token, -1 where it is empty: one position's logits compare them
    texts = values.select(work.answers).fill_null("").to_numpy().ravel().tolist()
    _, tokenizer = _open(work)
    ids = tokenizer.encode_batch(texts, work.lake.special_text)
    answers = np.array([int(first[0]) if len(first) else -1 for first in ids], np.int64).reshape(-1, 2)
    known = (answers[:, 0] != answers[:, 1]) & (answers >= 0).all(axis=1)
    label, value = EVERY_PROMPT
    named = work.labels or (pl.lit(value).alias(label),)
    values = values.filter(pl.Series(known)).with_columns(named).select(work.labels or label)
    return _PartPrompts(tokens, whole.counted, contexts[known], answers[known], values)


def _open(work: Work) -> tuple[Opened, Tokenizer]:
    """Model, SAE and tokenizer, loaded once in a process."""
    return cached_per_process(("attribution", *work.use.key, work.tokenizer), lambda: _load(work))


def _load(work: Work) -> tuple[Opened, Tokenizer]:
    """Model, SAE and tokenizer; InputError where they do not fit."""
    use = work.use
    model = open_model(use, dict.fromkeys(use.place))
    encoder = open_encoder(use.site, use.plan.device)
    if not encoder.accepts(model.widths[use.place.read]):
        raise InputError(f"SAE {use.site.sae} does not read {use.place.read}: restore its original files")
    tokenizer = load_tokenizer(work.tokenizer, work.lake.tokenizer_digest)
    if tokenizer.digest != work.lake.tokenizer_digest:
        raise InputError(
            f"the tokenizer at {work.tokenizer} is not the one that the lake was tokenized with: give "
            "the location of that one as --tokenizer"
        )
    rows = min(use.plan.batch_contexts * work.lake.context_size, LOGITS_BYTES // (4 * tokenizer.size))
    return Opened(model, encoder, use.place, rows), tokenizer
