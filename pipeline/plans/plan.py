"""The plan of a pass: a run file with every default filled in, and everything that can change the data."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

from pipeline.models import check_inputs, is_earlier_digest, model_digest
from pipeline.models.device import choose_device
from pipeline.monitor.run_state import run_at_work
from pipeline.plans import sae_defaults
from pipeline.plans.reopen import model_of
from pipeline.saes import NO_SAE, SaeMetadata, choose_block, read_metadata, sae_digest
from pipeline.store.records.catalog import read_plans
from pipeline.store.records.commits import has_commits
from pipeline.store.records.dropped import dropped_sites, live_sites
from pipeline.store.records.plans import put_plan
from pipeline.store.records.tokens import read_lake
from pipeline.tokens.number_tokenizer import PREFIX as NUMBERS
from schemas import __version__
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.names import check_name
from schemas.records import CHOSEN, Lake, Plan, PlannedSite
from schemas.run.file import Corpus, RunFile, Site

LIBRARIES = (
    "torch", "transformers", "transformer-lens", "numpy", "scipy", "polars", "pyarrow", "zarr",
    "numcodecs",
)  # fmt: skip


def resolve(run: RunFile) -> tuple[RunFile, list[str]]:
    """Fill the run file's gaps; return it with a sentence for each contradiction.

    First its tokenizer and the defaults of its kind of corpus, then what the metadata of the SAEs says. A
    sentence that begins with `sentences.NOTE` is not a warning. Raises InputError where no choice is right.
    """
    if run.store.pass_name is not None:
        check_name(run.store.pass_name, "pass")
    tokens: dict[str, Any] = {
        key: value
        for key, value in OF_KINDS.get(run.corpus.kind, {}).items()
        if getattr(run.tokens, key) is None
    }
    vocabulary = _numbers(run.corpus)
    default = run.model.path if vocabulary is None else f"{NUMBERS}{vocabulary}"
    tokens["tokenizer"] = run.tokens.tokenizer or default
    if not tokens["tokenizer"]:
        raise InputError("model.loader: synthetic has no tokenizer: set tokens.tokenizer")
    if vocabulary is not None:  # a tokenizer of numbers has no BOS of its own
        named = run.tokens.bos is not None
        tokens["prepend_bos"] = named if run.tokens.prepend_bos is None else run.tokens.prepend_bos
    sections: dict[str, Any] = {"tokens": run.tokens.model_copy(update=tokens)}
    if run.model.loader == "synthetic":  # without a model there is nothing to check an SAE by
        sections["extract"] = run.extract.model_copy(update={"check_sae": "off"})
    return sae_defaults.filled(run.model_copy(update=sections), [_about(site) for site in run.sites])


OF_KINDS: dict[str, dict[str, Any]] = {
    "images": {"contexts": "document", "context_size": 1},
    "prompts": {"contexts": "document"},
}
"""Kind of corpus -> values of the tokens section where the run file says nothing."""

MOST_CLASSES = 256
"""Of a corpus of images, whose tokens are the numbers of their classes, unless tokens.tokenizer says more."""


def _numbers(corpus: Corpus) -> int | None:
    """How many numbers a corpus may hold whose documents are numbers; None where they are text."""
    if corpus.dictionary is not None:
        return corpus.dictionary.features + 1
    if corpus.kind == "images":
        return MOST_CLASSES
    return corpus.vocabulary if corpus.kind == "synthetic" else None


def _about(site: Site) -> SaeMetadata:
    """What the SAE's files say; of a site without one, nothing."""
    return NO_SAE if site.sae is None else read_metadata(site.sae)


def default_pass_name(sites: Sequence[str]) -> str:
    """The sites' names, joined."""
    return "+".join(sites)[:128]


def make_plan(run: RunFile, lake: Lake) -> Plan:
    """The plan of a resolved run file over the tokens of `lake`; reads digests, loads no weights."""
    device = choose_device(run.model.device, run.extract.gpus_per_worker or 0)
    check_inputs(run.model.loader, lake.inputs)
    return Plan(
        pass_name=run.store.pass_name or default_pass_name([site.name for site in run.sites]),
        lake_digest=lake.digest,
        model=run.model.path,
        model_loader=run.model.loader,
        model_digest=model_digest(run.model),
        model_dtype=run.model.dtype,
        model_processing=dict.fromkeys(run.model.weight_processing, True) or None,
        model_inputs=lake.inputs,
        device=device,
        batch_contexts=run.extract.batch_contexts,
        threads=run.extract.cpus_per_worker,
        sites=tuple(_planned_site(site, device, lake.context_size) for site in run.sites),
        activation_dtype=run.store.activation_dtype,
        layouts=run.store.layouts,
        dense_dtype=run.store.dense_dtype if "dense" in run.store.layouts else "float32",
        environment=environment(),
    )


def _planned_site(site: Site, device: str, context_size: int) -> PlannedSite:
    """The site of the run file, each key as it is there or, below, as it is resolved."""
    about = _about(site)
    rows, features = choose_block(about.d_sae, device)
    resolved = {
        "sae": site.sae or "",
        "sae_digest": sae_digest(site.sae) if site.sae is not None else "",
        "architecture": about.architecture,
        "d_model": about.d_model,
        "d_sae": about.d_sae,
        "encode_block": rows,
        "encode_features": min(features, about.d_sae),
        "feature_block": feature_block(about.d_sae),
        "positions": _positions(site.positions, context_size),
        "control_seed": site.control_seed if site.control else 0,
    }
    return PlannedSite(**dict(site) | resolved)


def _positions(positions: tuple[int | None, ...] | None, context_size: int) -> tuple[int, ...] | None:
    """The positions as start, stop and a step other than 1, alike for equal ones; None: all there are."""
    chosen = range(context_size)[slice(*(positions or (None,)))]
    if len(chosen) == context_size:
        return None
    if not chosen:
        return (0, 0)
    start, stop = min(chosen), max(chosen) + 1
    # A range of one place has any step; a descending range has the same places as one that ascends.
    step = abs(chosen.step) if len(chosen) > 1 else 1
    return (start, stop) if step == 1 else (start, stop, step)


def feature_block(d_sae: int) -> int:
    """Features in a row group of the postings: a power of two that makes 32 to 64 groups of a wide SAE."""
    return max(64, 1 << max(d_sae // 64, 1).bit_length())


def environment() -> dict[str, str]:
    """Versions of Python and of the libraries that data passes through: others may differ in low bits."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "latentlake": __version__, **versions}


class Agreed(NamedTuple):
    """The plan that a run works under, and plans without a receipt that make way for it."""

    plan: Plan
    unused: tuple[Plan, ...] = ()


def agree_on_plan(layout: Layout, plan: Plan, *, accept_environment: bool = False) -> Plan:
    """Write the plan, or check that the pass was begun with the same one; return the one in force."""
    agreed = find_plan(layout, plan, accept_environment=accept_environment)
    put_plan(layout, *agreed)
    return agreed.plan


def find_plan(layout: Layout, plan: Plan, *, accept_environment: bool = False) -> Agreed:
    """The plan that a run of `plan` has to work under; writes nothing.

    In a pass that was begun that is the old recipe, what latentlake chose then (`CHOSEN`) with it, and the
    places where model and SAEs lie now. A plan without a receipt, of this pass or of one with a site of the
    same name, makes way for another recipe; InputError where shards are committed under it, or a run is at
    work on it.
    """
    plans = read_plans(layout)
    old = plans.pop(plan.pass_name, None)
    others = [other for other in plans.values() if _shared_site(layout, plan, other)]
    for other in others:
        if has_commits(layout, other.pass_name):
            # Tables go by site, so two passes of a store may not share a site's name.
            raise InputError(
                f"site {_shared_site(layout, plan, other)!r} of pass {plan.pass_name!r} has the name of a "
                f"site of pass {other.pass_name!r}: give it another name"
            )
    if old is not None:
        is_begun = has_commits(layout, old.pass_name)
        resumed = _with_choices_of(old, plan, read_lake(layout), is_begun=is_begun)
        changed = differences(old.recipe(), resumed.recipe())
        if accept_environment:
            changed = [line for line in changed if not line.startswith("environment.")]
        if not changed:
            plan = resumed.model_copy(update={"environment": old.environment})
        elif is_begun:
            remedy = "give it another pass or site name to keep both"
            if all(line.startswith("environment.") for line in changed):
                remedy += ", or use --accept-environment to join the old data deliberately"
            raise InputError(
                f"pass {plan.pass_name!r} was begun with another recipe: {'; '.join(changed)}; {remedy}"
            )
        else:
            others.append(old)
    # A pass without a shard may still have a run, whose model loads: its plan is not replaced under it.
    for name in (other.pass_name for other in others):
        if running := run_at_work(layout, name):
            raise InputError(
                f"pass {name!r} has no committed shard yet, but {running} with another recipe: stop it, or "
                "wait until it ends, and run again"
            )
    return Agreed(plan, tuple(others))


def _with_choices_of(old: Plan, plan: Plan, lake: Lake | None, *, is_begun: bool) -> Plan:
    """The plan in the old one's format, with what latentlake chose for sites of the same name.

    Positions that are equal over the lake's contexts are written as the old plan has them, and so is the
    digest of a model's name from before version 0.7. A pass that `is_begun` keeps its other sites as they
    are: it is extended as a whole.
    """
    # Of a pass that is begun all old sites come first, in their order, with or without a new one of the name;
    # then the new ones that are left.
    unmatched = {site.name: site for site in plan.sites}
    sites = [
        _with_choices(previous, unmatched.pop(previous.name), lake)
        if previous.name in unmatched
        else previous
        for previous in (old.sites if is_begun else ())
    ]
    before = {site.name: site for site in old.sites}
    sites += [_with_choices(before.get(name, site), site, lake) for name, site in unmatched.items()]
    if plan.model_digest != old.model_digest and is_earlier_digest(model_of(plan), old.model_digest):
        plan = plan.model_copy(update={"model_digest": old.model_digest})
    return plan.model_copy(update={"sites": tuple(sites), "format_version": old.format_version})


def _with_choices(previous: PlannedSite, site: PlannedSite, lake: Lake | None) -> PlannedSite:
    chosen = {name: getattr(previous, name) for name in CHOSEN}
    if lake is not None and _positions(previous.positions, lake.context_size) == site.positions:
        chosen["positions"] = previous.positions
    return site.model_copy(update=chosen)


def _shared_site(layout: Layout, plan: Plan, other: Plan) -> str | None:
    """A site of the plan that is one of another pass too, and was not dropped there."""
    names = {site.name for site in live_sites(other, dropped_sites(layout, other.pass_name))}
    return next((site.name for site in plan.sites if site.name in names), None)


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """The places where two JSON values differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line for k in keys for line in differences(old.get(k), new.get(k), f"{place}.{k}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{place}.{i}")]
    return [] if old == new else [f"{place} was {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
