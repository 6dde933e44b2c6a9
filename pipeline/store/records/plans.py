"""The plan of a pass: put when a worker is ready, replaced while no shard is committed, then fixed forever.

Nothing locks it. Who replaces a plan searches for receipts on both sides of removing the old one, and a
worker reads the plan on both sides of putting its receipt, so that of a worker and a driver that disagree at
least one sees the other and gives up. What that cannot cover is a worker that is killed between its receipt
and its second read: the next run then refuses the receipt by its plan's hash.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.store.objects.verbs import put_if_absent, read_record, remove
from pipeline.store.records.commits import commit, has_commits
from pipeline.store.records.site import remove_site_weights
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Plan, Receipt


def read_plan(layout: Layout, pass_name: str) -> Plan | None:
    """The plan of one pass; None where there is none."""
    return read_record(Plan, layout.plan(pass_name))


def put_plan(layout: Layout, plan: Plan, unused: Iterable[Plan] = ()) -> None:
    """Put the plan, in place of `unused` ones, under which no shard is committed.

    InputError where another run has put another plan meanwhile, or has committed a shard under an unused one.
    """
    for old in unused:
        _remove_unused(layout, old)
    if not layout.plan(plan.pass_name).exists():  # a run with nothing left to do writes nothing
        put_if_absent(layout.plan(plan.pass_name), plan.to_json())
    require_plan(layout, plan)


def _remove_unused(layout: Layout, old: Plan) -> None:
    """Remove a plan and its sites' weights; a run that puts another one at this moment is left alone."""
    stored = read_plan(layout, old.pass_name)
    if stored is None or stored.hash != old.hash:
        return
    if not has_commits(layout, old.pass_name):
        remove(layout.plan(old.pass_name))
        # a receipt put before the plan was gone is seen now; who puts one later finds the plan gone
        if not has_commits(layout, old.pass_name):
            for site in old.sites:
                remove_site_weights(layout.site(old.pass_name, site.name))
            return
        put_if_absent(layout.plan(old.pass_name), stored.to_json())
    raise InputError(
        f"another run has just committed a shard of pass {old.pass_name!r} under another recipe: give this "
        "run another pass name and other site names"
    )


def require_plan(layout: Layout, plan: Plan) -> None:
    """InputError where this plan is not, or no longer, that of its pass in the store."""
    if not _is_in_force(layout, plan):
        raise InputError(
            f"{layout.plan(plan.pass_name)} is not the plan that this run began with, because another "
            "run replaced or removed it: let one run end before its pass gets another recipe, and run "
            "again"
        )


def _is_in_force(layout: Layout, plan: Plan) -> bool:
    stored = read_plan(layout, plan.pass_name)
    return stored is not None and stored.hash == plan.hash


def commit_under(layout: Layout, plan: Plan, receipt: Receipt) -> Receipt:
    """`commits.commit` under the plan of the pass; a receipt under a plan that was replaced does not stay."""
    require_plan(layout, plan)
    kept = commit(layout, plan.pass_name, receipt)
    # the plan may have been replaced between the first check and the receipt
    if kept.attempt == receipt.attempt and not _is_in_force(layout, plan):
        remove(layout.commit(plan.pass_name, receipt.shard))
    require_plan(layout, plan)
    return kept
