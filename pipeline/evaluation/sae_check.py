"""One SAE and one model over some thousand tokens: figures, losses, and rows to search for a mistake.

N token rows of a batch, D d_model, O width of the target.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.patching import patch
from pipeline.models import Model, probe
from pipeline.plans.reopen import Place
from pipeline.saes.encoding.encoder import Encoder
from pipeline.saes.quality.alternatives import Rows
from pipeline.saes.quality.diagnosis import ROWS, OtherRows
from pipeline.saes.quality.reconstruction import Reconstruction, holds_target, reconstruct, target_of
from pipeline.sources import Source
from pipeline.store.records.token_rows import counted_mask
from pipeline.tokens.batches import batches
from pipeline.tokens.packing import ContextRule, pack
from pipeline.tokens.tokenizer import Tokenizer
from schemas.errors import InputError
from schemas.records import Lake
from schemas.values import I32, Bool, TokenBatch, TokenShard

DOCUMENTS, CHARACTERS = 40, 16
"""Documents that the tokens are taken from, where there are so many; most characters read for a token."""

BATCH_TOKENS, LOSS_TOKENS = 1024, 2048
"""Tokens of a forward pass, and of the losses, each of which is a pass through the whole model."""

POOR = 0.5
"""Below this explained variance every layer is tried in place of the hook's, not just its neighbours."""

LAYER = re.compile(r"(?<![^.])\d+(?![^.])")
"""The layer in a hook's name: the first part that is a number."""

Observe = Callable[[int], None]
"""Called with the number of tokens that have just been done."""


class Piece(NamedTuple):
    """A batch of contexts; `counted` bool [N] says which of its real tokens enter the figures."""

    batch: TokenBatch
    counted: Bool


class Losses(NamedTuple):
    """Mean next-token losses in nats over `n` predictions, x put back as what it was, decoded, or 0."""

    clean: float
    patched: float
    zero: float
    n: int

    @property
    def recovered(self) -> float:
        """(zero - patched) / (zero - clean), NaN where zeros do no harm."""
        increase = self.zero - self.clean
        return (self.zero - self.patched) / increase if increase > 0 else float("nan")


class Subject(NamedTuple):
    """What is checked."""

    model: Model
    encoder: Encoder
    place: Place

    def rows(self, piece: Piece, place: Place | None = None, also: tuple[str, ...] = ()) -> Rows:
        """The counted rows of a piece, at the SAE's own place or another."""
        x_by_hook = self.model.forward(piece.batch, also=also)
        return self.cut(x_by_hook, place or self.place, piece.counted)

    def cut(self, x_by_hook: dict[str, Tensor], place: Place, kept: Bool) -> Rows:
        """What the SAE reads and its target, in the rows marked in `kept`."""
        index = torch.from_numpy(np.flatnonzero(kept)).to(x_by_hook[place.read].device)
        target = target_of(self.encoder.metadata, x_by_hook[place.target])[index]
        return Rows(target if place.read == place.target else x_by_hook[place.read][index], target)

    def fits(self, x_by_hook: dict[str, Tensor], place: Place) -> bool:
        """Whether the SAE reads and reconstructs vectors as wide as those at the place."""
        reads = self.encoder.accepts(x_by_hook[place.read].shape[1])
        return reads and holds_target(self.encoder.metadata, x_by_hook[place.target].shape[1])


def token_shard(source: Source, lake: Lake, tokenizer: Tokenizer, tokens: int) -> TokenShard:
    """About so many tokens from the beginnings of documents, laid out by the lake's rule."""
    rule = ContextRule.of(lake)
    packed = pack(_beginnings(source, tokenizer, lake, tokens), rule, last_is_cut=True)
    # whole contexts alone: the first so many that hold about the tokens wanted
    ptr = packed.context_ptr[: max(tokens // lake.context_size, 1) + 1]
    ids = packed.token_ids[: ptr[-1]]
    counted = counted_mask(ids, lake.special_ids, lake.special_tokens)
    if not counted.any():
        raise InputError("the corpus has no token that is counted: give another file as --corpus")
    return TokenShard("check", 0, 0, ids, ptr, counted, counted, np.zeros(len(ids), dtype=np.uint64))


def _beginnings(source: Source, tokenizer: Tokenizer, lake: Lake, tokens: int) -> list[I32]:
    """Beginnings of equal length of many documents; longer ones where there are few."""
    share = max(tokens // DOCUMENTS, 1)
    while True:
        beginnings, is_cut = [], False
        for document in source.documents():
            text = document.text[: share * CHARACTERS]
            ids = tokenizer.encode_batch([text], lake.special_text)[0][:share]
            is_cut |= len(ids) == share or len(text) < len(document.text)
            beginnings.append(ids)
            if sum(map(len, beginnings)) >= tokens:
                return beginnings
        if not is_cut:
            return beginnings
        share *= 4  # every document was too short, or cut: read further into each


def pieces(shard: TokenShard, context_size: int) -> list[Piece]:
    """The shard in batches of about BATCH_TOKENS."""
    contexts = max(BATCH_TOKENS // context_size, 1)
    return [Piece(batch, shard.counted[rows]) for batch, rows in batches(shard, contexts)]


def sample(pieces: list[Piece], tokens: int, *, counted: bool = False) -> list[Piece]:
    """Evenly spaced pieces with at least so many tokens together, `counted` ones only or any, or all."""
    sizes = [int(piece.counted.sum() if counted else piece.batch.lengths.sum()) for piece in pieces]
    # as many as hold enough tokens if each is as large as the largest, rounded up
    n = min(-(-tokens // max(*sizes, 1)), len(pieces))
    return [pieces[i * len(pieces) // n] for i in range(n)]


def measure(subject: Subject, pieces: list[Piece], observe: Observe) -> Reconstruction:
    """Figures over the counted rows of all pieces."""
    sums = Reconstruction(subject.encoder.d_sae)
    for piece in pieces:
        rows = subject.rows(piece)
        reconstruct(subject.encoder, rows.x, rows.target, sums)
        observe(int(piece.batch.lengths.sum()))
    return sums


def losses(subject: Subject, pieces: list[Piece], observe: Observe) -> Losses:
    """Losses with the counted rows at the target's hook left, reconstructed and set to 0.

    InputError for a model that predicts no tokens, or a hook where nothing can be put.
    """
    model, encoder, sums, n = subject.model, subject.encoder, np.zeros(3), 0

    def reconstructed(x: Tensor, _: Tensor) -> Tensor:
        return encoder.decode(encoder.encode(x), like=x)

    for piece in pieces:
        decoded, zero = (
            patch(encoder.metadata, subject.place, piece.counted, stand_in)
            for stand_in in (reconstructed, lambda *_: 0.0)
        )
        values = [model.losses(piece.batch, replace) for replace in (None, decoded, zero)]
        sums += [float(value.double().sum()) for value in values]
        n += len(values[0])
        observe(int(piece.batch.lengths.sum()))
    clean, patched, zeroed = (sums / max(n, 1)).tolist()
    return Losses(clean, patched, zeroed, n)


def loaded_rows(subject: Subject, pieces: list[Piece]) -> Rows:
    """Rows at the SAE's own place."""
    return _joined([subject.rows(piece) for piece in pieces])


def other_hooks(
    subject: Subject, pieces: list[Piece], trained_at: Place | None, *, poor: bool
) -> Iterator[OtherRows]:
    """Rows at the place that the SAE's files name, and at the same hooks of other layers.

    These are the next layers; all of them when the SAE as loaded does poorly, on fewer rows then.
    """
    places = [place for place in (trained_at,) if place is not None and place != subject.place]
    places = [place for place in places if probe(subject.model, pieces[0].batch, place) is not None]
    places += list(_other_layers(subject, pieces[0], reach=None if poor else 1))
    # one forward pass serves every place; a hook is named once, however many places share it
    also = tuple(dict.fromkeys(hook for place in places for hook in place))
    gathered: list[list[Rows]] = [[] for _ in places]
    for piece in pieces[: 1 if poor else len(pieces)] if also else []:
        x_by_hook = subject.model.forward(piece.batch, also=also)
        for place, rows in zip(places, gathered, strict=True):
            if subject.fits(x_by_hook, place):
                rows.append(subject.cut(x_by_hook, place, piece.counted))
    for place, rows in zip(places, gathered, strict=True):
        if rows:
            change = f"read x at {place.read}, not at {subject.place.read}"
            yield OtherRows(f"hook {place.read}", change, _joined(rows))


def _other_layers(subject: Subject, piece: Piece, reach: int | None) -> Iterator[Place]:
    """The place in layers below and above, as far as the model has them, and as `reach` says."""
    for step in (-1, 1):
        by = step
        while reach is None or abs(by) <= reach:
            hooks = [hook for hook in (shifted(hook, by) for hook in subject.place) if hook is not None]
            if len(hooks) < len(subject.place) or probe(subject.model, piece.batch, hooks) is None:
                break
            yield Place(*hooks)
            by += step


def shifted(hook: str, layers: int) -> str | None:
    """The hook of the same kind so many layers above; None below layer 0 and for a hook of no layer."""
    layer = LAYER.search(hook)
    if layer is None or int(layer[0]) + layers < 0:
        return None
    return hook[: layer.start()] + str(int(layer[0]) + layers) + hook[layer.end() :]


def other_tokens(
    subject: Subject, pieces: list[Piece], flipped: list[Piece], *, has_bos: bool
) -> Iterator[OtherRows]:
    """Rows of the model run without BOS, or with it, and rows without those at position 0."""
    if flipped:
        rows = _joined([subject.rows(piece) for piece in flipped])
        name, to = ("model run without BOS", "false") if has_bos else ("model run with BOS", "true")
        yield OtherRows(name, f"set prepend_bos to {to}", rows)
    without = []
    for piece in pieces:
        # rows lie context after context: the first of each comes after those of all contexts before
        counted = piece.counted.copy()
        counted[np.cumsum(piece.batch.lengths) - piece.batch.lengths] = False
        without.append(piece._replace(counted=counted))
    if any((a.counted != b.counted).any() for a, b in zip(pieces, without, strict=True)):
        rows = _joined([subject.rows(piece) for piece in without])
        yield OtherRows("position 0 left out", "leave position 0 of each context out", rows)


def with_special(pieces: list[Piece]) -> list[Piece]:
    """The pieces with every token counted."""
    return [piece._replace(counted=np.ones_like(piece.counted)) for piece in pieces]


def _joined(parts: list[Rows]) -> Rows:
    """Rows one after another, at most ROWS of them."""
    x = torch.cat([part.x for part in parts])
    same = all(part.x is part.target for part in parts)
    return Rows(x, x if same else torch.cat([part.target for part in parts])).thinned(ROWS)
