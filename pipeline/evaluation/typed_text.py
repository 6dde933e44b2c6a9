"""The features of a typed text, by the model and the SAE that a pass of the store was made with.

The text is laid into contexts as the lake's documents are, and runs through model and SAE as a shard does;
activations are rounded as the stored ones. Shapes: T tokens of the text, BOS not among them, F = d_sae.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from pipeline.models.device import require_device
from pipeline.models.hooks.pooling import RowsRead
from pipeline.plans.reopen import PlannedUse, open_encoder, open_model, use_of
from pipeline.store.formats.transposition import round_activations
from pipeline.store.records.catalog import Catalog
from pipeline.store.records.token_rows import counted_mask, stored_mask
from pipeline.tokens.batches import batches
from pipeline.tokens.packing import ContextRule, pack
from pipeline.tokens.tokenizer import tokenizer_of
from schemas.errors import InputError
from schemas.records import Lake, Plan, PlannedSite
from schemas.values import I32, Bool, SparseFeatures, TokenShard


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


def run_text(store: Catalog, site: str, text: str, places: Places) -> TypedText:
    """Run a text through the model and SAE of a site.

    InputError where the site is synthetic, where model, SAE or tokenizer are not those of the store any more,
    and for a text without tokens.
    """
    if store.lake.inputs is not None:
        raise InputError("the lake holds vectors, not text: only features of a lake of text can be elicited")
    plan = store.plans[store.site(site).pass_name]
    device = _device(plan, places.device)
    use = use_of(plan, site, None, device=device, model=places.model, sae=places.sae)
    shard = _shard(store.lake, text, use.site, places)
    features = _features(use, shard)
    rounded, _, _ = round_activations(features, plan.activation_dtype)
    parts = (rounded.data, rounded.indices, rounded.indptr)
    matrix = sparse.csr_matrix(parts, shape=(shard.n_rows, use.site.d_sae))
    # BOS, which the lake's rule puts before the text, is not of the text
    is_text = shard.position_of_row() >= int(store.lake.bos_id is not None)
    return TypedText(shard.token_ids[is_text], shard.counted[is_text], matrix[np.flatnonzero(is_text)])


def _shard(lake: Lake, text: str, site: PlannedSite, places: Places) -> TokenShard:
    """The text as a shard of one document, counted as the site counts."""
    tokenizer = tokenizer_of(lake, places.tokenizer or lake.tokenizer)
    try:
        text.encode()
    except UnicodeEncodeError:  # what a shell hands on may be bytes that are no text
        raise InputError(f"text {text!r} is not Unicode: type it in UTF-8") from None
    rule = ContextRule.of(lake)
    ids = rule.without_repeated_bos(tokenizer.encode_batch([text], lake.special_text)[0], 0)
    if not len(ids):
        raise InputError(f"text {text!r} has no tokens: type a longer one")
    if rule.by_document and rule.context_of(len(ids)) > rule.context_size:
        raise InputError(
            f"the text has {len(ids)} tokens, more than fit into a context of {rule.context_size}, and here "
            "each document has a context of its own: type a shorter text"
        )
    packed = pack([ids], rule, last_is_cut=True)
    shard = TokenShard(
        name="text",
        row_start=0,
        context_start=0,
        token_ids=packed.token_ids,
        context_ptr=packed.context_ptr,
        counted=counted_mask(packed.token_ids, lake.special_ids, lake.special_tokens),
        stored=stored_mask(packed.token_ids, packed.context_ptr, lake.special_ids, lake.special_tokens),
        document=np.zeros(len(packed.token_ids), np.uint64),
    )
    return shard.restrict(site.selection, lake.context_size)


def _features(use: PlannedUse, shard: TokenShard) -> SparseFeatures:
    """Features of all rows of the shard; rows that are not stored are empty."""
    site, encoded = use.site, list[SparseFeatures]()
    encoder, model = open_encoder(site, use.plan.device), open_model(use, [site.hook_name])
    for batch, rows in batches(shard, use.plan.batch_contexts):
        read = RowsRead.of(shard, rows, batch.lengths)
        if read.stored.any():
            encoded.append(encoder.encode(read.vectors(model.forward(batch)[site.hook_name])))
    return SparseFeatures.concatenate(encoded).scatter_rows(shard.stored)


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
        return "cpu"
    return device
