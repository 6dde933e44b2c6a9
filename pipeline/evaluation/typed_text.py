"""The features of a typed text, by the model and the SAE that a pass of the store was made with.

The text is laid into contexts as the lake's documents are, and runs through model and SAE as a shard does;
activations are rounded as the stored ones. Shapes: T tokens of the text, BOS not among them, F = d_sae.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse

from pipeline.models.device import require_device, why_no_gpu
from pipeline.models.hooks.pooling import RowsRead
from pipeline.plans.reopen import Place, open_encoder, open_model, place_of, use_of
from pipeline.store.formats.transposition import round_activations
from pipeline.store.records.catalog import Catalog
from pipeline.store.records.token_rows import counted_mask, stored_mask
from pipeline.tokens.batches import batches
from pipeline.tokens.packing import ContextRule, pack
from pipeline.tokens.tokenizer import tokenizer_of
from schemas.errors import InputError
from schemas.records import Lake, Plan
from schemas.values import I32, I64, Bool, RowSelection, SparseFeatures, TokenShard

if TYPE_CHECKING:
    from pipeline.models import Model
    from pipeline.saes.encoding.encoder import Encoder
    from pipeline.store import FeatureStore
    from pipeline.tokens.tokenizer import Tokenizer


class Places(NamedTuple):
    """Where model, SAE and tokenizer lie now (None: where they lay), and the device: auto, cpu or cuda."""

    model: str | None = None
    sae: str | None = None
    tokenizer: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class TypedText:
    """What fires in a text.

    `token_ids` int32 [T]; `counted` bool [T]: which rows the store would count for the site; `activations`
    float32 [T, F], as they would be stored.
    """

    token_ids: I32
    counted: Bool
    activations: sparse.csr_matrix


class TextSession:
    """The model and the SAE of a site, kept loaded from one text to the next.

    They are loaded when the first text runs, which may take seconds. One text at a time.
    """

    def __init__(self, store: Catalog, site: str, places: Places) -> None:
        """InputError where the site is synthetic, and where its model or SAE are not those of the store."""
        if store.lake.inputs is not None:
            raise InputError(
                "the lake holds vectors, not text: a model reads typed texts only where the lake is of text"
            )
        plan = store.plans[store.site(site).pass_name]
        device = _device(plan, places.device)
        self.lake, self._places = store.lake, places
        self.use = use_of(plan, site, None, device=device, model=places.model, sae=places.sae)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of the lake."""
        return tokenizer_of(self.lake, self._places.tokenizer or self.lake.tokenizer)

    @cached_property
    def encoder(self) -> Encoder:
        """The SAE."""
        return open_encoder(self.use.site, self.use.plan.device)

    @cached_property
    def model(self) -> Model:
        """The model, to read x where the SAE reads."""
        return open_model(self.use, [self.use.site.hook_name])

    @cached_property
    def place(self) -> Place:
        """Where the SAE reads, and where its target is."""
        return place_of(self.use.site, vars(self.encoder.metadata))

    def run(self, text: str) -> TypedText:
        """Run a text through the model and the SAE; InputError for a text without tokens."""
        return self.read(self.token_ids(text))

    def read(self, token_ids: I32) -> TypedText:
        """The same for the tokens of a text, BOS not among them: int32 [T], T > 0."""
        plan, site = self.use.plan, self.use.site
        shard = self._shard(token_ids)
        rounded, _, _ = round_activations(self._features(shard), plan.activation_dtype)
        parts = (rounded.data, rounded.indices, rounded.indptr)
        matrix = sparse.csr_matrix(parts, shape=(shard.n_rows, site.d_sae))
        # BOS, which the lake's rule puts before the text, is not of the text
        is_text = shard.position_of_row() >= int(self.lake.bos_id is not None)
        return TypedText(shard.token_ids[is_text], shard.counted[is_text], matrix[np.flatnonzero(is_text)])

    def token_ids(self, text: str) -> I32:
        """The tokens of a text, BOS not among them: int32 [T], T > 0."""
        try:
            text.encode()
        except UnicodeEncodeError:  # what a shell hands on may be bytes that are no text
            raise InputError(f"text {text!r} is not Unicode: type it in UTF-8") from None
        ids = self.tokenizer.encode_batch([text], self.lake.special_text)[0]
        ids = ContextRule.of(self.lake).without_repeated_bos(ids, 0)
        if not len(ids):
            raise InputError(f"text {text!r} has no tokens: type a longer one")
        return ids

    def context(self, token_ids: I32) -> TokenShard:
        """Tokens with their BOS as one context, however many they are, counted as the site counts."""
        return _shard_of(
            self.lake, self.use.site.selection, token_ids, np.array([0, len(token_ids)], np.int64)
        )

    def _shard(self, ids: I32) -> TokenShard:
        """A text as a shard of one document, counted as the site counts."""
        lake, rule = self.lake, ContextRule.of(self.lake)
        if rule.by_document and rule.context_of(len(ids)) > rule.context_size:
            raise InputError(
                f"the text has {len(ids)} tokens, more than fit into a context of {rule.context_size}, and "
                "here each document has a context of its own: type a shorter text"
            )
        packed = pack([ids], rule, last_is_cut=True)
        return _shard_of(lake, self.use.site.selection, packed.token_ids, packed.context_ptr)

    def _features(self, shard: TokenShard) -> SparseFeatures:
        """Features of all rows of the shard; rows that are not stored are empty."""
        encoded = list[SparseFeatures]()
        for batch, rows in batches(shard, self.use.plan.batch_contexts):
            read = RowsRead.of(shard, rows, batch.lengths)
            if read.stored.any():
                x = self.model.forward(batch)[self.use.site.hook_name]
                encoded.append(self.encoder.encode(read.vectors(x)))
        return SparseFeatures.concatenate(encoded).scatter_rows(shard.stored)


def stored_text(store: FeatureStore, site: str, context: int) -> TypedText:
    """A context of the lake with what fires in it, from the store alone; InputError where it is not there."""
    _, ids = store.context_tokens(context)
    matrix = store.context_activations(site, context)
    shard = _shard_of(store.lake, store.site(site).selection, ids, np.array([0, len(ids)], np.int64))
    first = int(store.lake.bos_id is not None)
    return TypedText(ids[first:], shard.counted[first:], matrix[first:])


def _shard_of(lake: Lake, selection: RowSelection, token_ids: I32, context_ptr: I64) -> TokenShard:
    """Contexts as a shard of one document, counted as a site counts."""
    shard = TokenShard(
        name="text",
        row_start=0,
        context_start=0,
        token_ids=token_ids,
        context_ptr=context_ptr,
        counted=counted_mask(token_ids, lake.special_ids, lake.special_tokens),
        stored=stored_mask(token_ids, context_ptr, lake.special_ids, lake.special_tokens),
        document=np.zeros(len(token_ids), np.uint64),
    )
    return shard.restrict(selection, lake.context_size)


def run_text(store: Catalog, site: str, text: str, places: Places) -> TypedText:
    """Run one text through the model and SAE of a site; InputError as `TextSession`."""
    return TextSession(store, site, places).run(text)


def _device(plan: Plan, requested: str) -> str:
    """The device requested; `auto` is the plan's where it is here, else the processor."""
    if requested not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {requested!r} is not known: give auto, cpu or cuda")
    device = plan.device if requested == "auto" else requested
    try:
        require_device(device)
    except InputError:
        if requested != "auto":  # only a choice of our own may be given up
            raise
        warnings.warn(f"device auto: the CPU, because {why_no_gpu()}", stacklevel=2)
        return "cpu"
    return device
