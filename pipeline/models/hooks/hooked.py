"""One forward pass over a batch of contexts: x is read or replaced at hooks, and losses are taken.

B contexts, T positions, N real tokens, D width of x, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from pipeline.models.device import to_device
from pipeline.models.hooks.attach import Attach, Take
from pipeline.models.hooks.losses import next_token_logits, next_token_losses, row_logits
from pipeline.models.hooks.replay import Begun, recording, replaying
from pipeline.models.hooks.rows import Replace, put_rows, rows_of
from pipeline.models.hooks.unembedding import (
    Head,
    is_same,
    one_token,
    replace_block_output,
    require_same,
    rows_of_logits,
    select_rows,
)
from schemas.errors import InputError
from schemas.records import Inputs
from schemas.values import I64, Agreement, TokenBatch

Run = Callable[[Tensor, Tensor | None], object]
"""Forward token ids int64 [B, T], or vectors float32 [B, T, width], with an attention mask int64 [B, T], or
None when nothing is padded; returns the logits [B, T, V] of the next token, or None where there are none."""

PROBE = (2, 7)
"""Contexts and tokens run once when a model is loaded; an odd shape, so that [B, heads, ...] is not
mistaken for it."""


class _AllTaken(Exception):  # noqa: N818 - it carries no error
    """Ends a forward pass: nothing after this point is wanted."""


@dataclass(frozen=True)
class _Inputs:
    """A batch on the device.

    `ids` int64 [B, T]; `mask` int64 [B, T], None when nothing is padded; `rows` int64 [N], the places of the
    real tokens among all B * T; `given` what the model reads: the ids, or vectors float32 [B, T, width].
    """

    ids: Tensor
    given: Tensor
    mask: Tensor | None
    rows: Tensor


class _RowsOutput(NamedTuple):
    """What a model gave for the requested rows alone, not for a batch."""

    given: object


@final
class HookedModel:
    """A loaded model and the hooks to read; see `pipeline.models.Model`.

    At a hook in `read_only`, what is put does not reach all that reads it.
    """

    def __init__(
        self,
        hooks: list[str],
        attach: Attach,
        run: Run,
        device: torch.device,
        max_context: int | None,
        read_only: Collection[str] = (),
        head: Head | None = None,
        inputs: Inputs | None = None,
        *,
        agreement: Agreement | None = None,
        refuse: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        """`refuse` raises InputError for what the model's code raised, where that is none of ours."""
        self.agreement, self._refuse = agreement, refuse
        self.hooks, self.device, self.max_context = list(dict.fromkeys(hooks)), device, max_context
        self._attach, self._run, self._read_only = attach, run, read_only
        self._head, self._head_is_checked = head, False
        vectors = None if inputs is None else np.zeros((*PROBE, inputs.width), dtype=np.float32)
        ids, lengths = np.zeros(PROBE, dtype=np.int64), np.full(PROBE[0], PROBE[1])
        probe = self.forward(TokenBatch(ids, lengths, vectors))
        self.widths = {hook: x.shape[1] for hook, x in probe.items()}

    def forward(self, batch: TokenBatch, also: Sequence[str] = ()) -> dict[str, Tensor]:
        """See `pipeline.models.Model`."""
        hooks = list(dict.fromkeys([*self.hooks, *also]))
        inputs = self._put(batch)
        taken: dict[str, Tensor] = {}

        def take(hook: str, output: object) -> None:
            if hook not in taken:  # a module that is called twice gives what it gave first
                taken[hook] = rows_of(output, inputs.ids.shape, inputs.rows, hook)
            if len(taken) == len(hooks):
                raise _AllTaken

        with suppress(_AllTaken):
            self._pass(batch, inputs, {hook: partial(take, hook) for hook in hooks})
        _refuse_silent(hooks, taken)
        return {hook: taken[hook] for hook in hooks}

    def losses(self, batch: TokenBatch, replace: Mapping[str, Replace] | None = None) -> Tensor:
        """See `pipeline.models.Model`."""
        with torch.inference_mode():
            return next_token_losses(self._replaced(batch, replace or {}), batch, self.device)

    def next_token_logits(self, batch: TokenBatch, replace: Mapping[str, Replace] | None = None) -> Tensor:
        """See `pipeline.models.Model`."""
        with torch.inference_mode():
            return next_token_logits(self._replaced(batch, replace or {}), batch, self.device)

    def logits_at(
        self,
        batch: TokenBatch,
        rows: I64,
        replace: Mapping[str, Replace] | None = None,
        *,
        gradients: bool = False,
        begun: Begun | None = None,
    ) -> Tensor:
        """See `pipeline.models.Model`."""
        return self._logits_at(
            batch, rows, replace or {}, gradients, begun, rows_alone=self._ends_by_rows
        ).float()

    def begin(self, batch: TokenBatch, rows: I64, first: I64) -> Begun:
        """See `pipeline.models.Model`."""
        inputs, x = self._put(batch), dict[str, Tensor]()
        with recording(inputs.ids.shape) as recorder:

            def take(hook: str, output: object) -> None:
                if hook in self.hooks:
                    recorder.stop()
                    x.setdefault(hook, rows_of(output, inputs.ids.shape, inputs.rows, hook))
                if self._head is not None and hook == self._head.last:
                    recorder.close()

            ends = [] if self._head is None else [self._head.last]
            output = self._pass(batch, inputs, {hook: partial(take, hook) for hook in [*self.hooks, *ends]})
        _refuse_silent(self.hooks, x)
        with torch.inference_mode():
            logits = row_logits(output, batch, rows, self.device).float()
        begun = Begun(x, logits, recorder.calls, np.arange(len(batch.lengths)), first)
        return begun if self._begins(batch, begun) else replace(begun, calls=None)

    def _begins(self, batch: TokenBatch, begun: Begun) -> bool:
        """Whether a pass that begins at the hooks gives the whole one's logits.

        Tried at the last row of each context, for the contexts turned round and one of them twice, with x
        half as large again at the last hook.
        """
        # another order and a context twice, as later passes have them: a bias by context would show
        order = np.append(np.arange(len(batch.lengths))[::-1], 0)
        turned, again = TokenBatch(batch.token_ids[order], batch.lengths[order]), begun.again(order)
        # each row's position in its context, and 1.5 from the first on at which something else may be put
        ends = np.cumsum(turned.lengths) - 1
        at = np.arange(ends[-1] + 1) - np.repeat(ends + 1 - turned.lengths, turned.lengths)
        more = torch.from_numpy(1 + 0.5 * (at >= np.repeat(again.first, turned.lengths))).float()
        put = {self.hooks[-1]: lambda x: x * more.to(x.device)[:, None]}
        try:
            resumed = self._logits_at(turned, ends, put, begun=again, rows_alone=self._ends_by_rows)
        except Exception:  # noqa: BLE001 - modules that get what they do not expect raise anything
            return False
        return is_same(self._logits_at(turned, ends, put, rows_alone=self._ends_by_rows), resumed)

    def _logits_at(
        self,
        batch: TokenBatch,
        rows: I64,
        replace: Mapping[str, Replace],
        gradients: bool = False,
        begun: Begun | None = None,
        *,
        rows_alone: bool = False,
    ) -> Tensor:
        """The same in the model's dtype; with `rows_alone` other rows do not go beyond the blocks."""
        with ExitStack() as around:
            if begun is not None and begun.calls is not None:
                around.enter_context(replaying(begun, batch, self.device))
            around.enter_context(torch.enable_grad() if gradients else torch.inference_mode())
            output = self._replaced(batch, replace, gradients, rows if rows_alone else None)
            if isinstance(output, _RowsOutput):
                return rows_of_logits(output.given, len(rows))
            return row_logits(output, batch, rows, self.device)

    @cached_property
    def _ends_by_rows(self) -> bool:
        """Whether rows of what the last block gives have the logits that they have among all rows."""
        if self._head is None:
            return False
        # a padded context and rows out of order: an end that looks at its neighbours gives other logits
        batch = TokenBatch(np.arange(np.prod(PROBE)).reshape(PROBE), np.array([PROBE[1], PROBE[1] - 2]))
        rows = np.array([PROBE[1] - 1, 2, PROBE[1]])
        try:
            by_rows = self._logits_at(batch, rows, {}, rows_alone=True)
        except Exception:  # noqa: BLE001 - what is after the last block may raise anything
            return False
        return is_same(self._logits_at(batch, rows, {}), by_rows)

    def unembed(self, x: Tensor) -> Tensor:
        """See `pipeline.models.Model`."""
        head = self._require_head()
        if not self._head_is_checked:
            self._head_is_checked = True  # before the check, which comes here again
            # a few tokens' logits must come from what the last block gives for them
            batch = TokenBatch(np.arange(PROBE[1], dtype=np.int64)[None], np.array([PROBE[1]]))
            last = self.forward(batch, also=[head.last])[head.last]
            require_same(self.next_token_logits(batch).float(), self.unembed(last[:-1]))
        token = one_token()
        takes: dict[str, Take] = {head.last: lambda output: replace_block_output(x, output)}
        return rows_of_logits(self._pass(token, self._put(token), takes), len(x)).float()

    def logit_effects(self, directions: Tensor) -> Tensor | None:
        """See `pipeline.models.Model`."""
        matrix = self._require_head().matrix
        if matrix is None or matrix.shape[0] != directions.shape[1]:
            return None
        with torch.inference_mode():
            effects = (directions.to(matrix.device, matrix.dtype) @ matrix).float()
            return effects - effects.mean(1, keepdim=True)

    def _require_head(self) -> Head:
        if self._head is None:
            raise InputError(
                "no unembedding was found in the model (an encoder, or a model of model.loader "
                "torch_module): features have logits only under causal language models of Hugging Face"
            )
        return self._head

    def _replaced(
        self,
        batch: TokenBatch,
        replace: Mapping[str, Replace],
        gradients: bool = False,
        head_rows: I64 | None = None,
    ) -> object:
        """What the model returns when x is replaced at some hooks.

        With `head_rows` int64 [n] that is _RowsOutput of these rows, where nothing is replaced after them.
        """
        inputs = self._put(batch)
        fired: set[str] = set()

        def take(hook: str, output: object) -> object:
            fired.add(hook)
            return put_rows(output, inputs.ids.shape, inputs.rows, hook, replace[hook])

        for hook in replace:
            if hook in self._read_only:
                raise InputError(
                    f"x at hook {hook} can be read but not replaced with this loader, because a replacement "
                    "there reaches only the next sublayer and not the residual stream: use model.loader: "
                    "hooked_transformer, or another hook"
                )
        takes: dict[str, Take] = {hook: partial(take, hook) for hook in replace}
        put = None if self._head is None else takes.get(self._head.last)
        cut = list[bool]()

        def take_last(output: object) -> object:
            output = output if put is None else put(output)
            if head_rows is None or len(fired) < len(replace):
                return output  # something is put after the last block: all rows must go on
            cut.append(True)
            return select_rows(output, inputs.rows[to_device(head_rows, self.device)])

        if self._head is not None and head_rows is not None:
            takes[self._head.last] = take_last
        output = self._pass(batch, inputs, takes, gradients)
        _refuse_silent(replace, fired)
        return _RowsOutput(output) if cut else output

    def _put(self, batch: TokenBatch) -> _Inputs:
        """The batch on the device, without waiting for it."""
        length = batch.token_ids.shape[1]
        if self.max_context is not None and length > self.max_context:
            raise InputError(
                f"a context of {length} tokens is longer than the model's {self.max_context}: "
                "lower tokens.context_size"
            )
        real = np.arange(length) < batch.lengths[:, None]
        mask = to_device(real.astype(np.int64), self.device) if batch.is_padded else None
        rows = to_device(np.flatnonzero(real), self.device)
        ids = to_device(batch.token_ids, self.device)
        given = ids if batch.inputs is None else to_device(batch.inputs, self.device)
        return _Inputs(ids, given, mask, rows)

    def _pass(
        self, batch: TokenBatch, inputs: _Inputs, takes: Mapping[str, Take], gradients: bool = False
    ) -> object:
        """Run the model with `takes` attached; what it returns, with the gradients of what they put in."""
        with ExitStack() as attached, torch.enable_grad() if gradients else torch.inference_mode():
            for hook, take in takes.items():
                attached.callback(self._attach(hook, take))
            try:
                return self._run(inputs.given, inputs.mask)
            except _AllTaken:
                raise
            except IndexError as error:
                raise InputError(
                    f"the model refused token ids up to {batch.token_ids.max()} ({error}): its vocabulary is "
                    "not that of tokens.tokenizer"
                ) from error
            except (Exception, SystemExit) as error:
                self._refuse(error)
                raise


def _refuse_silent(hooks: Iterable[str], fired: Collection[str]) -> None:
    """Every hook must have fired."""
    silent = [hook for hook in hooks if hook not in fired]
    if silent:
        raise InputError(
            f"the model never reached hook {', '.join(silent)}: choose a hook that its forward pass visits"
        )
