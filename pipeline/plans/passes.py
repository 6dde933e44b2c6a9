"""Which passes of its store a run file is about: a stored site stays in its pass, new sites form one pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pipeline.models.device import choose_gpus
from pipeline.plans.plan import default_pass_name
from pipeline.store.records.catalog import read_plans
from pipeline.store.records.commits import has_commits
from pipeline.store.records.dropped import dropped_sites, live_sites
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.run.file import RunFile


def by_pass(run: RunFile, layout: Layout) -> list[RunFile]:
    """A resolved run file cut by passes: each with some of its sites, in their order, and the pass's name.

    A pass counts once a shard of it is committed, and a site until it is dropped.
    """
    stored = {
        name: [site.name for site in live_sites(plan, dropped_sites(layout, name))]
        for name, plan in read_plans(layout).items()
        if has_commits(layout, name)
    }
    parts = []
    for name, names in passes_of([site.name for site in run.sites], run.store.pass_name, stored):
        sites = tuple(site for site in run.sites if site.name in names)
        store = run.store.model_copy(update={"pass_name": name})
        parts.append(run.model_copy(update={"sites": sites, "store": store}))
    return parts


def with_gpus(part: RunFile, layout: Layout) -> tuple[RunFile, str | None]:
    """One of those parts with the GPUs of its workers; and, where model.device auto is the CPU, why."""
    if part.model.loader == "synthetic":
        return part, None
    name = str(part.store.pass_name)
    begun = read_plans(layout).get(name) if has_commits(layout, name) else None
    choice = choose_gpus(part.model.device, part.extract, begun.device if begun else None)
    extract = part.extract.model_copy(update={"gpus_per_worker": choice.gpus})
    return part.model_copy(update={"extract": extract}), choice.why_cpu


def passes_of(
    sites: Sequence[str], given: str | None, stored: Mapping[str, Collection[str]]
) -> list[tuple[str, list[str]]]:
    """Each pass with its sites of the run file, in the order of these; `stored`: pass -> its sites.

    New sites form the pass `given`, or one named after them. InputError where `given` has other sites.
    """
    holder = {site: name for name, held in stored.items() for site in held}
    new = [site for site in sites if site not in holder]
    if given is not None and new and given in stored:
        raise InputError(
            f"store.pass: pass {given!r} was begun with {', '.join(stored[given]) or 'no site'} and cannot "
            f"take another site, such as {new[0]!r}: leave store.pass out, so that new sites form a pass of "
            "their own, or name another one"
        )
    if given is not None and not new and given not in {holder[site] for site in sites}:
        raise InputError(
            f"site {sites[0]!r} of pass {given!r} has the name of a site of pass {holder[sites[0]]!r}: give "
            "it another name, or leave store.pass out"
        )
    # The new sites' names joined, with a number where another pass is called that; one is free, for there are
    # more of these names than passes. It is cut before the number, for a name has at most 128 characters.
    name = default_pass_name(new)
    names = (name, *(f"{name[:120]}-{number}" for number in range(2, len(stored) + 3)))
    fresh = given or next(each for each in names if each not in stored)
    by_pass: dict[str, list[str]] = {}
    for site in sites:
        by_pass.setdefault(holder.get(site, fresh), []).append(site)
    return list(by_pass.items())
