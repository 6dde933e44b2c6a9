"""Sites that were dropped: plan and receipts of their pass name them still, and readers pass them over."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.store.objects.verbs import listed, read_bytes
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Dropped, Plan, PlannedSite, Receipt


def dropped_sites(layout: Layout, pass_name: str) -> frozenset[str]:
    """Names of the sites of a pass that have a marker; a damaged marker is an InputError."""
    sites = set[str]()
    for path in listed(layout.dropped(pass_name)):
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        marker = Dropped.from_json(read_bytes(path), str(path))
        if marker.site != path.stem:
            raise InputError(f"{path} is the marker of site {marker.site!r}: remove it, and run again")
        sites.add(marker.site)
    return frozenset(sites)


def live_sites(plan: Plan, dropped: Collection[str]) -> tuple[PlannedSite, ...]:
    """The sites of a plan but for those that were dropped."""
    return tuple(site for site in plan.sites if site.name not in dropped)


def live_part(receipt: Receipt, dropped: Collection[str]) -> Receipt:
    """A receipt without its entries of dropped sites; not what digests are made of."""
    if not dropped:
        return receipt
    sites = {name: site for name, site in receipt.sites.items() if name not in dropped}
    objects = tuple(item for item in receipt.objects if item.path.split("/")[0] not in dropped)
    return receipt.model_copy(update={"sites": sites, "objects": objects})
