"""What the SAEs of a run were trained with against what the run file asks for.

Each function takes a run file's sites and their SAEs' metadata, gives a default, or checks the options that
are set, and adds to `notes` a sentence for each contradiction. Those that begin with NOTE contradict nothing.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.models import max_context
from pipeline.models.files.model_files import width_of
from pipeline.saes import SaeMetadata
from pipeline.saes.module_points import by_module
from schemas.errors import InputError
from schemas.names import PROCESSING, check_name
from schemas.run.file import Model, RunFile, Site, Tokens
from schemas.sentences import NOTE

DEFAULT_CONTEXT_SIZE = 128

DTYPES = ("torch_dtype", "dtype")

WITHOUT_INFLUENCE = {
    "n_ctx", "first_n_layers", "device", "device_map", "n_devices", "move_to_device", "low_cpu_mem_usage",
    "cache_dir", "local_files_only", "trust_remote_code", "token", "use_auth_token", "use_safetensors",
    "attn_implementation", "use_cache", "default_padding_side", "default_prepend_bos",
}  # fmt: skip
"""Options of loading a model that leave activations as they are, but for rounding; the last two concern
tokens, which are ours."""

CLASSES = {
    "transformer_lens": ("HookedTransformer", "AutoModelForCausalLM"),
    "hooked_transformer": ("HookedTransformer",),
}
"""`model.loader` -> each model_class_name whose hook names it knows."""

HEADS = re.compile(r"hook_(z|q|k|v|rot_q|rot_k|result)$")
"""Hooks that have heads."""

RESIDUAL = re.compile(r"blocks\.\d+\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
"""Hooks whose x is as wide as the residual stream."""

OF_MODULES = ("sparsify", "dictionary_learning")
"""Formats whose SAEs were trained on what a module of Hugging Face's itself gives."""

NORMS_AFTER = r"gemma[23]|olmo[23]|t5gemma|vaultgemma|glm4|exaone4"
"""Beginnings of the model_type of models in which a norm follows a sublayer, before what it adds."""

ALIASES = {"gpt2-small": "gpt2", "gpt2-xlarge": "gpt2-xl"}
"""TransformerLens' names -> Hugging Face's, where their last parts differ."""


class Trained(NamedTuple):
    """A site of the run file, its name and hook filled in, and what its SAE's files say."""

    site: Site
    about: SaeMetadata


def filled(run: RunFile, metadata: list[SaeMetadata]) -> tuple[RunFile, list[str]]:
    """The run file with what its SAEs, and the model, say where it says nothing; and the notes.

    `metadata` is that of each site's SAE, in the order of the sites.
    """
    trained = [
        Trained(_named(site, about, run.model), about)
        for site, about in zip(run.sites, metadata, strict=True)
    ]
    names = [pair.site.name for pair in trained]
    if len(set(names)) < len(names):
        raise InputError(f"sites: two sites share a name among {names}; give each its own name")
    notes: list[str] = []
    for pair in trained:
        check_width(run.model, *pair)
        check_site(*pair, notes)
        check_model(run.model, pair, notes)
    size, bos = context_size(run.tokens, run.model, trained, notes), prepend_bos(run.tokens, trained, notes)
    tokens = run.tokens.model_copy(update={"context_size": size, "prepend_bos": bos})
    model = run.model.model_copy(update={"processing": processing(run.model, trained, notes)})
    sites = tuple(
        site.model_copy(update={"positions": positions(site, about, size, notes)}) for site, about in trained
    )
    changes = {"sites": sites, "tokens": tokens, "model": model}
    return run.model_copy(update=changes), list(dict.fromkeys(notes))


def _named(site: Site, about: SaeMetadata, model: Model) -> Site:
    """The site with its hook and its name."""
    hook_name = site.hook_name or default_hook(about, model)
    if not hook_name and site.sae is None:
        raise InputError("sites: a site without an SAE needs a hook_name, which says where x is read")
    if not hook_name:
        raise InputError(f"the SAE {site.sae} does not say what it reads: give its site a hook_name")
    name = check_name(site.name or hook_name, "site")
    return site.model_copy(update={"hook_name": hook_name, "name": name})


def check_site(site: Site, about: SaeMetadata, notes: list[str]) -> None:
    """Where the site reads, what kind of SAE it is, and what the SAE's reader had to decide."""
    where = f"site {site.name!r}"
    if about.hook_name and not about.reads_at(site.hook_name) and site.hook_name != _module_output(about):
        notes.append(f"{where}: hook_name is {site.hook_name}, but its SAE was trained at {about.hook_name}")
    if about.hook_head_index is not None and not HEADS.search(str(site.hook_name)):
        notes.append(
            f"{where}: its SAE reads attention head {about.hook_head_index}, hook_name is {site.hook_name}, "
            "which has no heads in TransformerLens"
        )
    if about.transcoder:
        target = about.target_at(str(site.hook_name)) or "a hook that its files do not name"
        notes.append(f"{NOTE}{where}: a transcoder, it reads {site.hook_name} and reconstructs x at {target}")
    if site.control and about.architecture != "standard":
        notes.append(
            f"{NOTE}{where}: control {site.control} uses ReLU in place of the SAE's rule, which is "
            f"{about.architecture}"
        )
    if about.normalize_activations == "expected_average_only_in":
        notes.append(
            f"{NOTE}{where}: its SAE has normalize_activations expected_average_only_in; nothing is scaled, "
            "because the factor is in the weights"
        )
    notes += [f"{NOTE}{where}: {sentence}" for sentence in about.notes]


def default_hook(about: SaeMetadata, model: Model) -> str | None:
    """Where the SAE was trained to read, by the names that hooks have under this loader."""
    if model.loader == "torch_module":
        return by_module(about.extra).read or about.hook_name
    exact = _module_output(about)
    return exact if exact is not None and has_norms_after(model) else about.hook_name


def _module_output(about: SaeMetadata) -> str | None:
    """The output of the module itself, where the SAE was trained on that and its files name what it adds."""
    block, _, sublayer = (about.hook_name or "").rpartition(".hook_")
    if about.format not in OF_MODULES or sublayer not in ("mlp_out", "attn_out"):
        return None
    return f"{block}.{sublayer.removesuffix('_out')}.hook_out"


def has_norms_after(model: Model) -> bool:
    """Whether a norm stands between a sublayer and hook_mlp_out or hook_attn_out, as its files say."""
    return re.match(NORMS_AFTER, config_of_model(model).get("model_type") or "") is not None


def check_width(model: Model, site: Site, about: SaeMetadata) -> None:
    """InputError where x at the hook has another width than the SAE reads, as far as the files say."""
    is_residual = model.loader in CLASSES and RESIDUAL.fullmatch(str(site.hook_name))
    width = width_of(config_of_model(model)) if is_residual and about.d_model else None
    if width not in (None, about.d_model):
        trained = f", {about.model_name}" if about.model_name else ""
        raise InputError(
            f"the SAE {site.sae} reads vectors of width {about.d_model}, but the model {model.path} has "
            f"width {width}: give the model that the SAE was trained on{trained}"
        )


def config_of_model(model: Model) -> dict[str, Any]:
    """The configuration of a model that lies here, as a folder or in the hub's cache; else nothing."""
    folder = Path(model.path)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model.path, "config.json")
        folder = Path(cached).parent if isinstance(cached, str) else folder
    return _config(folder)


def context_size(tokens: Tokens, model: Model, trained: list[Trained], notes: list[str]) -> int:
    """The run file's, else the least that an SAE was trained on, else what the model takes at most."""
    sizes = {pair.site.name: pair.about.context_size for pair in trained if pair.about.context_size}
    size, longest = tokens.context_size, max_context(model)
    if size is None and not sizes:
        return DEFAULT_CONTEXT_SIZE if longest is None else min(DEFAULT_CONTEXT_SIZE, longest)
    if size is None:
        size = min(sizes.values())
        if len(set(sizes.values())) > 1:
            notes.append(
                f"the SAEs were trained on contexts of {_each(sizes)}: tokens.context_size is {size}"
            )
    notes += [
        f"site {name!r}: tokens.context_size is {size}, its SAE was trained on contexts of {known}"
        for name, known in sizes.items()
        if size > known
    ]
    if longest is not None and size > longest:
        raise InputError(
            f"tokens.context_size is {size}, but the model {model.path} allows at most {longest}"
        )
    return size


def prepend_bos(tokens: Tokens, trained: list[Trained], notes: list[str]) -> bool:
    """The run file's, which may name the token, else what all SAEs were trained with, else true."""
    known = {p.site.name: p.about.prepend_bos for p in trained if p.about.prepend_bos is not None}
    prepend, named = tokens.prepend_bos, tokens.bos
    if named is not None:
        if prepend is False:
            raise InputError(
                f"tokens.bos {named!r} begins every context, but tokens.prepend_bos is false: leave one out"
            )
        prepend = True
    if prepend is None:
        if len(set(known.values())) > 1:
            raise InputError(f"the SAEs were trained with prepend_bos {_each(known)}: set tokens.prepend_bos")
        return next(iter(known.values()), True)
    notes += [
        f"site {name!r}: tokens.prepend_bos is {prepend}, its SAE was trained with {value}"
        for name, value in known.items()
        if value != prepend
    ]
    return prepend


def positions(
    site: Site, about: SaeMetadata, context_size: int, notes: list[str]
) -> tuple[int | None, ...] | None:
    """The site's, else the SAE's slice of positions; some position must be in it."""
    where = f"site {site.name!r}"
    known: tuple[int | None, ...] | None = None
    if about.seqpos_slice is not None:
        # The arguments of slice(), of which the files may name one, two or three.
        value, what = about.seqpos_slice, f"{where}: its SAE's seqpos_slice"
        if not 1 <= len(value) <= 3 or any(not (part is None or isinstance(part, int)) for part in value):
            raise InputError(f"{what} is {list(value)}, which is not a slice: set the site's positions")
        cut = slice(*value)
        if cut.step == 0:
            raise InputError(f"{what} is {list(value)}, a slice with step 0: set the site's positions")
        known = (cut.start, cut.stop) if cut.step is None else (cut.start, cut.stop, cut.step)
    requested = site.positions or known
    if requested is None:
        return None
    chosen = range(context_size)[slice(*requested)]
    if not chosen:
        raise InputError(
            f"{where}: positions {list(requested)} lie outside the {context_size} positions of a context; "
            "change positions or tokens.context_size"
        )
    if known is not None and set(chosen) != set(range(context_size)[slice(*known)]):
        notes.append(f"{where}: positions is {list(requested)}, its SAE was trained on {list(known)}")
    return requested


def processing(model: Model, trained: list[Trained], notes: list[str]) -> dict[str, bool] | None:
    """The run file's `model.processing`, else the weight processing that the SAEs were trained with.

    Raises InputError where two SAEs want different weights: no pass can serve both.
    """
    wanted = {
        site.name: {name: True for name in PROCESSING if about.model_kwargs.get(name)}
        for site, about in trained
        if about.model_kwargs.keys() & PROCESSING
    }
    if model.loader == "torch_module" or model.processing is not None:
        have = dict.fromkeys(model.weight_processing, True)
        notes += [
            f"site {name!r}: the model's weights are processed with {_options(have)}, but its SAE was "
            f"trained on weights processed with {_options(wants)}"
            for name, wants in wanted.items()
            if wants != have
        ]
        return model.processing
    (first, wants), *others = wanted.items() or [("", {})]
    for name, differs in others:
        if differs != wants:
            raise InputError(
                f"site {first!r} was trained on weights processed with {_options(wants)}, site {name!r} with "
                f"{_options(differs)}: use a run file for each, or set model.processing"
            )
    if not wants:
        return None
    notes.append(f"{NOTE}model.processing is {_options(wants)}, as the SAE of site {first!r} was trained")
    notes += [
        f"site {p.site.name!r}: its SAE does not say that the model's weights were processed; here they are, "
        f"with {_options(wants)}, as site {first!r} requires"
        for p in trained
        if p.site.name not in wanted
    ]
    return wants


def check_model(model: Model, pair: Trained, notes: list[str]) -> None:
    """Name and class of the model, and the options that it was loaded with when the SAE was trained."""
    site, about = pair
    where = f"site {site.name!r}"
    if about.model_name and not _may_be(about.model_name, model):
        notes.append(f"{where}: model.path is {model.path}, its SAE was trained on {about.model_name}")
    known = CLASSES.get(model.loader)
    if known and about.model_class_name not in (None, *known) and site.hook_name == about.hook_name:
        notes.append(
            f"{where}: hook_name is {site.hook_name}, as in {about.model_class_name}, model.loader is "
            f"{model.loader}, which knows the hook names of {' and '.join(known)}: set hook_name to the "
            "name used there"
        )
    for name, value in sorted(about.model_kwargs.items()):
        if name in DTYPES and str(value).removeprefix("torch.") not in ("None", "auto", model.dtype):
            notes.append(f"{where}: model.dtype is {model.dtype}, its SAE was trained with {name}={value}")
        elif value is not None and name not in WITHOUT_INFLUENCE and name not in (*PROCESSING, *DTYPES):
            notes.append(
                f"{where}: its SAE was trained with the model option {name}={value!r}, not applied here"
            )


def _options(options: dict[str, bool]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "nothing"


def _each(values: dict[str, Any]) -> str:
    """`16 (site 'a') and 32 (site 'b')`."""
    return " and ".join(f"{value} (site {name!r})" for name, value in values.items())


def _may_be(trained: str, model: Model) -> bool:
    """Whether the model may be the one of this name; nothing is known of one that a function builds."""
    if model.loader == "torch_module":
        return True
    wanted, given, called = (
        _plain(trained),
        _plain(model.path),
        _config(Path(model.path)).get("_name_or_path"),
    )
    if wanted in (given, _plain(called if isinstance(called, str) else "")):
        return True
    # A folder's name may be the beginning of the model's; but `gemma-2-2b` is another model than
    # `gemma-2-2b-it`: one with a number in it is a model's own.
    is_cut_short = len(given) > 4 and not re.search(r"\d", given) and wanted.startswith(f"{given}-")
    return is_cut_short and Path(model.path).is_dir()


def _config(folder: Path) -> dict[str, Any]:
    """A model's configuration; nothing where there is none to read."""
    with suppress(OSError, ValueError, RecursionError):  # a damaged file is reported when the model is loaded
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _plain(name: str) -> str:
    """The last part of a model's name in lower case, by one of its names where it has several."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower().replace("_", "-")
    return ALIASES.get(last, last)
