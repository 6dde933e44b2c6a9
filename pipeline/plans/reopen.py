"""The model and the SAE that a pass's plan names, opened again: by its workers, and by jobs that need them.

Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.models import digest_as_planned, load_model
from pipeline.models.device import device_here
from pipeline.saes import choose_block, load_sae, sae_digest
from pipeline.saes.module_points import target_at
from schemas.errors import InputError
from schemas.records import Plan, PlannedSite
from schemas.run.file import Model

if TYPE_CHECKING:
    from pipeline.models import Model as LoadedModel
    from pipeline.saes.encoding.encoder import Encoder
    from pipeline.store import FeatureStore


T = TypeVar("T")


class Place(NamedTuple):
    """Where the SAE reads, and where its target is (the same place but for transcoders)."""

    read: str
    target: str


class PlannedUse(NamedTuple):
    """What a job opens of a plan, on which device; small, so that tasks carry it."""

    plan: Plan
    """With the device and the paths that hold here."""
    site: PlannedSite
    place: Place

    @property
    def key(self) -> tuple[str, ...]:
        """What decides which weights and numbers come of it."""
        return (self.plan.hash, self.plan.model, self.site.name, self.site.sae, *self.place)


def model_of(plan: Plan) -> Model:
    """The run file's `model` section that the plan was made from."""
    where: dict[str, Any] = {"path": plan.model} if plan.model else {}
    return Model(loader=plan.model_loader, dtype=plan.model_dtype, processing=plan.model_processing, **where)


def differing(plan: Plan, sites: Iterable[PlannedSite]) -> Iterator[str]:
    """The model and the SAEs of which other files are seen here than the plan was made with."""
    if digest_as_planned(model_of(plan), plan.model_digest) != plan.model_digest:
        yield f"model {plan.model}"
    for site in sites:
        if site.has_sae and sae_digest(site.sae) != site.sae_digest:
            yield f"SAE {site.sae}"


def use_of(
    plan: Plan,
    name: str,
    about: Mapping[str, Any] | None,
    *,
    device: str,
    model: str | None = None,
    sae: str | None = None,
    needs_sae: bool = True,
) -> PlannedUse:
    """How to open the model, and the SAE, of a site on `device` (`auto`: a GPU where torch sees one).

    `model` and `sae` say where they lie now.

    `about` is the SAE's metadata as the store has it; None where only the place where it reads matters.
    InputError where the plan has no model, where the files are gone or are not those of the plan, and where
    the plan, not the user, names a module to import: a store may be anybody's.
    """
    if plan.model_loader == "synthetic":
        raise InputError(
            f"site {name!r} is synthetic: its features were generated from a recipe, without a model or an "
            "SAE: give a site with a model"
        )
    if plan.model_loader == "torch_module" and model is None:
        raise InputError(
            f"the store names {plan.model!r} as the model of site {name!r}, which would be imported and run: "
            f"if you trust that code, give --model {plan.model}, or the package.module:function to use"
        )
    site = next(site for site in plan.sites if site.name == name)
    if not site.has_sae:
        raise InputError(f"site {name!r} has no SAE, it stores only x: give a site with an SAE")
    site = site.model_copy(update={"sae": sae or site.sae})
    device = device_here(device)
    # Blocks are chosen for a device; on the plan's own they stay, for the bits of a sum depend on them.
    if device != plan.device:
        rows, features = choose_block(site.d_sae, device)
        site = site.model_copy(update={"encode_block": rows, "encode_features": min(features, site.d_sae)})
    plan = plan.model_copy(update={"device": device, "model": model or plan.model, "sites": (site,)})
    opened, planned = model_of(plan), plan.model_digest
    _require_same("model", plan.model, lambda: digest_as_planned(opened, planned), planned)
    if needs_sae:
        _require_same("SAE", site.sae, lambda: sae_digest(site.sae), site.sae_digest)
    return PlannedUse(plan, site, place_of(site, about))


def place_of(site: PlannedSite, about: Mapping[str, Any] | None) -> Place:
    """Where the SAE of a site reads, and where its target is; `about` is its metadata (None: no transcoder).

    InputError for a transcoder whose files do not name its target.
    """
    target: str | None = site.hook_name
    if about is not None and about["transcoder"]:
        target = target_at(about, site.hook_name)
    if target is None:
        raise InputError(f"the files of transcoder {site.sae} do not name the hook that it reconstructs")
    return Place(site.hook_name, target)


def use_in(
    store: FeatureStore, site: str, *, device: str, model: str | None = None, sae: str | None = None
) -> PlannedUse:
    """The same for a site of a store."""
    plan = store.plans[store.site(site).pass_name]
    about = None if plan.model_loader == "synthetic" else store.site_weights(site, ())[1]
    return use_of(plan, site, about, device=device, model=model, sae=sae)


def _require_same(what: str, path: str, digest: Callable[[], str], planned: str) -> None:
    """Model and SAE must be those that the pass was made with; else their features mean something else."""
    remedy = f"give its current path as --{what.lower()}"
    try:
        current = digest()
    except InputError as error:
        raise InputError(f"{error}; or {remedy}") from None
    if current == planned:
        return
    if not Path(path).exists():
        raise InputError(f"the {what} of the pass is gone from {path}: {remedy}")
    raise InputError(
        f"{path} is not the {what} that the pass was made with (its digest is {current[:12]}…, "
        f"the plan has {planned[:12]}…): {remedy}"
    )


def open_model(use: PlannedUse, hooks: Iterable[str]) -> LoadedModel:
    """The model, to read x at `hooks`."""
    return load_model(
        model_of(use.plan), list(hooks), use.plan.device, use.plan.threads, use.plan.model_inputs
    )


def open_encoder(site: PlannedSite, device: str) -> Encoder:
    """The SAE, cut into the plan's blocks."""
    block = (site.encode_block, site.encode_features or site.d_sae)
    return load_sae(site.sae, device, site.encode_dtype, block=block)


def open_both(use: PlannedUse) -> tuple[LoadedModel, Encoder]:
    """Model and SAE, x read where the SAE reads and where its target is; InputError where they do not fit."""
    model, encoder = open_model(use, dict.fromkeys(use.place)), open_encoder(use.site, use.plan.device)
    if not encoder.accepts(model.widths[use.place.read]):
        raise InputError(f"SAE {use.site.sae} does not read {use.place.read}: restore its original files")
    return model, encoder


_CACHED: dict[tuple[str, ...], Any] = {}


def cached_per_process(key: tuple[str, ...], make: Callable[[], T]) -> T:
    """What `make` gives, cached in this process until another key is requested, so that tasks share it."""
    if key not in _CACHED:
        _CACHED.clear()
        _CACHED[key] = make()
    value: T = _CACHED[key]
    return value
