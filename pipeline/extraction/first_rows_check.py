"""Whether the SAEs of a pass explain what the model gives, on the first rows of a worker's first shard.

An SAE at the wrong hook, of another model, or on another scale still fires; that it does not reconstruct
shows only when somebody measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.models.hooks.pooling import RowsRead
from pipeline.tokens.batches import batches
from schemas.records import PlannedSite
from schemas.values import TokenShard

if TYPE_CHECKING:
    from pipeline.models import Model
    from pipeline.saes.encoding.encoder import Encoder
    from pipeline.saes.quality.reconstruction import Reconstruction

ROWS = 4096
"""Token rows that are checked, of sites that give enough rows there."""


def most_rows(shard: TokenShard) -> int:
    """Token rows after which the check ends: a site may give one row a context, or fewer."""
    from pipeline.saes.quality.reconstruction import FEW

    return max(ROWS, 2 * FEW * int(np.diff(shard.context_ptr).max()))


def check_saes(
    model: Model,
    encoders: Mapping[str, Encoder],
    sites: Sequence[PlannedSite],
    by_site: Mapping[str, TokenShard],
    batch_contexts: int,
) -> tuple[dict[str, Reconstruction], set[str]]:
    """How well each site's SAE reconstructs its target, by site; `by_site` is the shard as each reads it.

    Also the sites that can never be checked: transcoders whose target is not known, or not in the model. A
    site with too few rows in this shard is in neither.
    """
    from pipeline.saes.quality.reconstruction import FEW, Reconstruction, reconstruct, target_of

    targets = {site.name: _target(model, site, encoders[site.name], by_site[site.name]) for site in sites}
    known = {name: hook for name, hook in targets.items() if hook is not None}
    reconstructions = {site.name: Reconstruction(site.d_sae) for site in sites if site.name in known}
    most = most_rows(by_site[sites[0].name])
    also = tuple(dict.fromkeys(known.values()))
    for batch, rows in batches(by_site[sites[0].name], batch_contexts):
        checked = {name for name, sums in reconstructions.items() if rows.start < ROWS or sums.n < FEW}
        if rows.start >= most or not checked:
            break
        x = model.forward(batch, also=also)
        for site in sites:
            read = RowsRead.of(by_site[site.name], rows, batch.lengths)
            if site.name in checked and read.stored.any():
                encoder = encoders[site.name]
                target = read.vectors(target_of(encoder.metadata, x[known[site.name]]))
                reconstruct(encoder, read.vectors(x[site.hook_name]), target, reconstructions[site.name])
    enough = {name: sums for name, sums in reconstructions.items() if sums.n >= FEW}
    return enough, targets.keys() - known.keys()


def _target(model: Model, site: PlannedSite, encoder: Encoder, shard: TokenShard) -> str | None:
    """The hook whose x the SAE is to reconstruct; None when its files do not say, or the model lacks it."""
    from pipeline.models import probe
    from pipeline.saes.quality.reconstruction import holds_target

    about = encoder.metadata
    if not about.transcoder:
        return site.hook_name
    target = about.target_at(site.hook_name)
    if target is None or not about.reads_at(site.hook_name):
        return None
    batch, _ = next(batches(shard, 1))
    x = probe(model, batch, [target])
    if x is None or not holds_target(about, x[target].shape[1]):
        return None
    return target
