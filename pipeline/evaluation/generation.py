"""What a model goes on to write after a prompt: as it is, and with some features changed at the SAE's hook.

The prompt is laid into a context as the lake's documents are, BOS before it. The model reads the whole
context for each token, so every row has what a single pass over the text so far would have; changed are the
rows that the site reads (its positions, and not the special tokens that the lake's policy leaves out), all
alike where it reads their mean. Both texts draw with the same random numbers.

T tokens of a context, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.intervention import Intervention
from pipeline.evaluation.patching import patch
from pipeline.evaluation.steering import Changes, Sampling, Steered, require_text
from pipeline.evaluation.typed_text import Places, TextSession
from pipeline.models.hooks.rows import Replace
from pipeline.tokens.packing import ContextRule
from schemas.errors import InputError
from schemas.values import I32, TokenBatch

if TYPE_CHECKING:
    from pipeline.store import FeatureStore


def steer_text(
    store: FeatureStore,
    site: str,
    prompt: str,
    changes: Changes,
    *,
    n_tokens: int = 40,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    places: Places = Places(),  # noqa: B008 - it cannot be changed
) -> Steered:
    """Continue a prompt by the site's model, as it is and with features changed while it writes.

    `changes`: a mapping {184: 20.0} sets the activation of feature 184 to 20 at every token of prompt and
    continuation that the site reads; a list of `Change(feature, operation, value)` also adds, scales and
    ablates. The rest of x, what the SAE does not explain among it, stays as it is. Temperature 0 takes the
    likeliest token; above it tokens are drawn, by the same random numbers for both texts, so that they differ
    by the changes alone, and one seed gives one result on one machine. Model and SAE are loaded for this
    call, which takes seconds: `steer` uses a `TextSession`, which keeps them.

    InputError for a site whose model does not write text (images, known dictionaries, encoders) or takes no
    changes at the hook, for features and values that are not possible, for an empty prompt, and where prompt
    and continuation do not fit into the lake's context size.
    """
    sampling = Sampling(n_tokens, temperature, top_k, seed)
    sampling.check()
    require_text(store, site)
    return steer(TextSession(store, site, places), prompt, changes, sampling)


def steer(session: TextSession, prompt: str, changes: Changes, sampling: Sampling) -> Steered:
    """The same with a session, whose model and SAE stay loaded."""
    writing = Writing(session, prompt, changes, sampling)
    for _ in writing.steps():
        pass
    return writing.result()


class Writing:
    """A prompt that is being continued; `steps` may be left at any time."""

    def __init__(
        self,
        session: TextSession,
        prompt: str,
        changes: Changes,
        sampling: Sampling,
        known: Sequence[int] = (),
    ) -> None:
        """Checks all that can be checked before the model runs; loads the SAE. InputError as `steer_text`.

        `known`: tokens of the plain text, as far as the prompt was continued before by the same sampling.
        """
        sampling.check()
        self._session, self._sampling, self.prompt, self._known = session, sampling, prompt, known
        self.prompt_ids = session.token_ids(prompt)
        rule = ContextRule.of(session.lake)
        self._context = [*([] if rule.bos_id is None else [rule.bos_id]), *self.prompt_ids.tolist()]
        # where each document has a context of its own, its separator has a place there too
        separators = int(rule.by_document and rule.separator_id is not None)
        left = rule.context_size - len(self._context) - separators
        if sampling.n_tokens > left:
            remedy = f"generate at most {left}, or " if left > 0 else ""
            raise InputError(
                f"{sampling.n_tokens} tokens do not fit after a prompt of {len(self._context)} (BOS among "
                f"them) into the lake's contexts of {rule.context_size} tokens: {remedy}shorten the prompt"
            )
        self._intervention = Intervention(session.encoder, changes)
        self._vocabulary = session.tokenizer.size
        self.plain, self.steered = list[int](), list[int]()
        """Tokens written so far."""

    def steps(self) -> Iterator[None]:
        """Write a token of each text a step, until both are long enough or ended."""
        # what the tokenizer or the lake's documents end with; of some chat models these are two
        ends = (self._session.tokenizer.eos_id, self._session.lake.separator_id)
        for step, drawn in enumerate(gumbel_noise(self._sampling, self._vocabulary)):
            texts = [(self.plain, False), (self.steered, True)]
            going_on = [(text, changed) for text, changed in texts if not text or text[-1] not in ends]
            if not going_on:
                return
            for text, changed in going_on:
                if not changed and step < len(self._known):
                    text.append(self._known[step])
                    continue
                logits = self.logits([*self._context, *text], changed=changed)
                text.append(chosen(logits, self._sampling, drawn))
            yield

    def logits(self, context: list[int], *, changed: bool) -> Tensor:
        """The logits of the token after a context, float32 [V] of the tokenizer's vocabulary."""
        session, ids = self._session, np.array(context, np.int64)
        batch = TokenBatch(ids[None], np.array([len(ids)]))
        replace = self._replace(ids.astype(np.int32)) if changed else None
        # a model's vocabulary may be padded beyond the tokenizer's
        logits = session.model.logits_at(batch, np.array([len(ids) - 1]), replace)[0]
        logits = logits[: self._vocabulary].cpu()
        if logits.isnan().any() or logits.isposinf().any():
            raise InputError(
                "the model's logits are not finite with these changes: give smaller values"
                if changed
                else "the model's logits are not finite: check the model's dtype"
            )
        return logits

    def result(self) -> Steered:
        """What was written so far."""
        plain, steered = np.array(self.plain, np.int32), np.array(self.steered, np.int32)
        return Steered(self.prompt, self.prompt_ids, self._text(plain), plain, self._text(steered), steered)

    def _replace(self, context: I32) -> dict[str, Replace]:
        """The changes, in the rows of the context that the site reads."""
        shard, change = self._session.context(context), self._intervention
        rows, stand_in = (
            (shard.stored, change.stand_in)
            if shard.averaged is None
            else (shard.averaged, change.stand_in_of_mean)
        )
        if not rows.any():
            return {}
        return patch(self._session.encoder.metadata, self._session.place, rows, stand_in)

    def _text(self, ids: I32) -> str:
        return b"".join(self._session.tokenizer.piece_bytes(ids.tolist())).decode("utf-8", "replace")


def gumbel_noise(sampling: Sampling, vocabulary: int) -> Iterator[Tensor]:
    """Standard Gumbel numbers float64 [V] for each token.

    argmax(logits / temperature + noise) has the probabilities softmax(logits / temperature); with the same
    noise two texts draw the same token wherever their logits are alike (common random numbers).
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    for _ in range(sampling.n_tokens):
        if sampling.temperature == 0:
            yield torch.zeros(vocabulary, dtype=torch.float64)
        else:
            exponential = torch.empty(vocabulary, dtype=torch.float64).exponential_(generator=generator)
            yield -exponential.log()


def chosen(logits: Tensor, sampling: Sampling, noise: Tensor) -> int:
    """The token drawn by noise float64 [V] from logits float32 [V]."""
    logits = logits.double()
    if sampling.top_k is not None and sampling.top_k < len(logits):
        kept = logits.topk(sampling.top_k).indices
        logits = torch.full_like(logits, -math.inf).index_copy(0, kept, logits[kept])
    return int((logits + sampling.temperature * noise).argmax())
