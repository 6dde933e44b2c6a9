"""Whether the SAEs of a pass explain what the model gives, on the first rows of a worker's first shard.

An SAE at the wrong hook, of another model, or on another scale still fires; that it does not reconstruct
shows only when somebody looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.batches import batches
from schemas.records import Plan, PlannedSite
from schemas.values import TokenShard

if TYPE_CHECKING:
    from pipeline.models import Model
    from pipeline.saes.encoder import Encoder
    from pipeline.saes.reconstruction import Reconstruction

ROWS = 4096
"""Rows looked at."""

ENOUGH = 64
"""Fewer rows of a site say nothing."""


def first_look(
    model: Model, encoders: Mapping[str, Encoder], plan: Plan, at: Mapping[str, TokenShard]
) -> dict[str, Reconstruction]:
    """How well each site's SAE reconstructs its target, by site; `at` is the shard as each site takes it.

    A site is left out when it has too few rows, or when it is a transcoder whose target is not known.
    """
    from pipeline.saes.reconstruction import Reconstruction, reconstruct, target_of

    hooks = {site.name: _target(site, encoders[site.name]) for site in plan.sites}
    targets = {name: hook for name, hook in hooks.items() if hook is not None}
    found = {site.name: Reconstruction(site.d_sae) for site in plan.sites if site.name in targets}
    tokens, also = at[plan.sites[0].name], tuple(dict.fromkeys(targets.values()))
    for batch, rows in batches(tokens, plan.batch_contexts):
        if rows.start >= ROWS or not targets:
            break
        x = model.forward(batch, also=also)
        for site in plan.sites:
            stored = at[site.name].stored[rows].nonzero()[0]
            if site.name in targets and len(stored):
                encoder = encoders[site.name]
                target = target_of(encoder.metadata, x[targets[site.name]])
                reconstruct(encoder, x[site.hook_name][stored], target[stored], found[site.name])
    return {name: sums for name, sums in found.items() if sums.n >= ENOUGH}


def _target(site: PlannedSite, encoder: Encoder) -> str | None:
    """The hook whose x the SAE is to reconstruct; None when its files do not tell."""
    about = encoder.metadata
    if not about.transcoder:
        return site.hook_name
    return about.hook_name_out if site.hook_name == about.hook_name else None
