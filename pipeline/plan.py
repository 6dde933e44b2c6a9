"""The plan of a pass: a run file with every default filled in, and all that can move a bit of the data."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from pipeline.models import max_context, model_digest
from pipeline.models.device import choose_device
from pipeline.saes import SaeMetadata, choose_block, read_metadata, sae_digest
from pipeline.store.objects import put_if_absent
from schemas import __version__
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Lake, Plan, PlannedSite, digest_of
from schemas.run_file import RunFile, Site, check_name

LIBRARIES = (
    "torch", "transformers", "transformer-lens", "numpy", "scipy", "polars", "pyarrow", "zarr",
    "numcodecs",
)  # fmt: skip
DEFAULT_CONTEXT_SIZE = 128


def resolve(run: RunFile) -> tuple[RunFile, list[str]]:
    """Fill the run file's gaps from the SAEs' metadata; return it with a warning for each contradiction."""
    found = [read_metadata(site.sae) for site in run.sites]
    warnings: list[str] = []
    sites = tuple(_resolve_site(*pair, warnings) for pair in zip(run.sites, found, strict=True))
    tokens = run.tokens.model_copy(
        update={
            "context_size": _context_size(run, found, warnings),
            "prepend_bos": _prepend_bos(run, found, warnings),
            "tokenizer": run.tokens.tokenizer or run.model.path,
        }
    )
    pass_name = check_name(run.store.pass_name or "+".join(site.name for site in sites)[:128], "pass")
    store = run.store.model_copy(update={"pass_name": pass_name})
    names = [site.name for site in sites]
    if len(set(names)) < len(names):
        raise InputError(f"sites: two sites share a name among {names}; give each its own name")
    return run.model_copy(update={"sites": sites, "tokens": tokens, "store": store}), warnings


def _resolve_site(site: Site, found: SaeMetadata, warnings: list[str]) -> Site:
    hook_name = site.hook_name or found.hook_name
    if not hook_name:
        raise InputError(f"the SAE {site.sae} does not say where it reads: give its site a hook_name")
    if found.hook_name and hook_name != found.hook_name:
        warnings.append(
            f"site {site.sae}: hook_name is {hook_name}, the SAE was trained at {found.hook_name}"
        )
    if found.model_kwargs:
        asked = ", ".join(f"{name}={value!r}" for name, value in sorted(found.model_kwargs.items()))
        warnings.append(
            f"site {site.sae}: the SAE was trained with model options ({asked}), not applied here"
        )
    name = check_name(site.name or hook_name, "site")
    return site.model_copy(update={"hook_name": hook_name, "name": name})


def _context_size(run: RunFile, found: list[SaeMetadata], warnings: list[str]) -> int:
    trained = [item.context_size for item in found if item.context_size]
    size = run.tokens.context_size or min(trained, default=DEFAULT_CONTEXT_SIZE)
    if trained and size > min(trained):
        warnings.append(f"tokens.context_size is {size}, an SAE was trained on contexts of {min(trained)}")
    longest = max_context(run.model)
    if longest is not None and size > longest:
        raise InputError(f"tokens.context_size is {size}, the model {run.model.path} takes at most {longest}")
    return size


def _prepend_bos(run: RunFile, found: list[SaeMetadata], warnings: list[str]) -> bool:
    trained = {item.prepend_bos for item in found if item.prepend_bos is not None}
    if run.tokens.prepend_bos is None:
        if len(trained) > 1:
            raise InputError("the SAEs disagree on prepend_bos: set tokens.prepend_bos in the run file")
        return next(iter(trained), True)
    if trained - {run.tokens.prepend_bos}:
        asked = run.tokens.prepend_bos
        warnings.append(f"tokens.prepend_bos is {asked}, an SAE was trained with {not asked}")
    return run.tokens.prepend_bos


def make_plan(run: RunFile, lake: Lake) -> Plan:
    """The plan of a resolved run file over the tokens of `lake`; reads digests, loads no weights."""
    assert run.store.pass_name is not None
    device = choose_device(run.model.device, run.extract.gpus_per_worker)
    return Plan(
        pass_name=run.store.pass_name,
        lake_digest=digest_of(lake.model_dump(mode="json")),
        model=run.model.path,
        model_loader=run.model.loader,
        model_digest=model_digest(run.model),
        model_dtype=run.model.dtype,
        device=device,
        batch_contexts=run.extract.batch_contexts,
        threads=run.extract.cpus_per_worker,
        sites=tuple(_planned_site(site, device) for site in run.sites),
        activation_dtype=run.store.activation_dtype,
        layouts=run.store.layouts,
        environment=environment(),
    )


def _planned_site(site: Site, device: str) -> PlannedSite:
    found = read_metadata(site.sae)
    rows, features = choose_block(found.d_sae, device)
    assert site.hook_name is not None
    return PlannedSite(
        name=site.name,
        hook_name=site.hook_name,
        sae=site.sae,
        sae_digest=sae_digest(site.sae),
        architecture=found.architecture,
        d_model=found.d_model,
        d_sae=found.d_sae,
        encode_block=rows,
        encode_features=min(features, found.d_sae),
        feature_block=feature_block(found.d_sae),
    )


def feature_block(d_sae: int) -> int:
    """Features in a row group of the postings: a power of two that makes 32 to 64 groups of a wide SAE."""
    return max(64, 1 << max(d_sae // 64, 1).bit_length())


def environment() -> dict[str, str]:
    """Versions of Python and of the libraries that data passes through: others may differ in low bits."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "latentlake": __version__, **versions}


def agree_on_plan(layout: Layout, plan: Plan, *, accept_environment: bool = False) -> Plan:
    """Write the plan, or check that the pass was begun with the same one; return the one in force.

    That is the old recipe, and the places where model and SAEs lie now.
    """
    _check_site_names(layout, plan)
    path = layout.plan(plan.pass_name)
    if not path.exists():
        put_if_absent(path, plan.to_json())
    old: Plan = Plan.from_json(path.read_bytes(), str(path))
    changed = differences(old.recipe(), plan.recipe())
    if accept_environment:
        changed = [line for line in changed if not line.startswith("environment.")]
    if changed:
        remedy = "give it another pass or site name to keep both"
        if all(line.startswith("environment.") for line in changed):
            remedy += ", or join the old data knowingly with --accept-environment"
        raise InputError(
            f"pass {plan.pass_name!r} was begun with another recipe: {'; '.join(changed)}; {remedy}"
        )
    return plan.model_copy(update={"environment": old.environment})


def _check_site_names(layout: Layout, plan: Plan) -> None:
    """Tables go by site, so two passes of a store may not share a site's name."""
    names = {site.name for site in plan.sites}
    for path in sorted(layout.passes.glob("[!.]*/plan.json")):
        other: Plan = Plan.from_json(path.read_bytes(), str(path))
        taken = names & {site.name for site in other.sites}
        if taken and other.pass_name != plan.pass_name:
            raise InputError(
                f"site {min(taken)!r} of pass {plan.pass_name!r} has the name of a site of pass "
                f"{other.pass_name!r}: give it another name"
            )


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
