"""SAEs through the sae-lens package, an optional extra: `saelens:RELEASE/ID` of its directory of published
SAEs, `saelens:OWNER/REPOSITORY/ID` of the hub, and `saelens:PATH` for a folder.

The package reads the files; an architecture that we have a rule for is then encoded by our encoder, any other
by the package's own class, if it reads one token at a time.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.saes.encoding.architectures import array_names
from pipeline.saes.formats import saelens
from pipeline.saes.metadata import SaeMetadata, finite
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.encoding.weights import Weights

PREFIX = "saelens:"

FORM = "saelens:RELEASE/ID, saelens:OWNER/REPOSITORY/ID or saelens:PATH"

NOT_TOKEN_LOCAL = {
    "temporal": "it attends over the context, so a token's features depend on the tokens before it"
}
"""Architecture of the package -> why it cannot be used."""

FAILURES = (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError)
"""What the package and the hub raise for a name, a network or a file that is not what it should be."""


class Opened(NamedTuple):
    """An SAE as the package gives it."""

    sae: Any
    """The package's module, float32 on the CPU."""
    metadata: SaeMetadata

    @property
    def has_rule(self) -> bool:
        """Whether our own encoder knows the architecture."""
        return self.sae.cfg.architecture() in saelens.ARCHITECTURES

    def weights(self) -> Weights:
        """Its tensors, by the names that an encoder uses; of an unknown architecture all of them.

        They are those of the module, which others have too: not to be changed in place.
        """
        state = {name: tensor.detach() for name, tensor in self.sae.state_dict().items()}
        if not self.has_rule:
            return state
        return {
            name: state[name] for name in array_names(self.metadata.architecture, skip=self.metadata.skip)
        }

    def digest(self) -> dict[str, Any]:
        """What the SAE's digest is made of: every tensor, and the recipe."""
        tensors = {}
        for name, tensor in sorted(self.weights().items()):
            digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
            digest.update(tensor.float().cpu().contiguous().numpy().data)
            tensors[name] = digest.hexdigest()
        content = {"format": "saelens_package", "weights": tensors}
        if not self.has_rule:
            # the package encodes it: its version and its settings move numbers too
            config = self.sae.cfg.to_dict()
            settings = {name: config[name] for name in config.keys() - {"metadata", "device", "dtype"}}
            content |= {"settings": settings, "sae_lens": _package().__version__}
        return content | self.metadata.recipe()


def open_sae(spec: str) -> Opened:
    """Load the SAE of `spec`, in float32 on the CPU. InputError says in a sentence what is in the way.

    The last two folders are kept as long as their files do not change, and so are published SAEs, so that
    metadata, digest and weights of a run are of one load: nobody may change the module.
    """
    name = spec.removeprefix(PREFIX)
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - that of Path fails for an unknown user
    files = sorted(folder.iterdir()) if name and folder.is_dir() else []
    return _open(spec, tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@functools.lru_cache(maxsize=2)
def _open(spec: str, files: tuple[tuple[str, int, int], ...]) -> Opened:  # noqa: ARG001 - distinguishes states
    """Load the SAE of `spec`, whose folder, if it is one, holds `files` of these times and sizes."""
    from safetensors import SafetensorError

    package = _package()
    name = spec.removeprefix(PREFIX)
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - that of Path fails for an unknown user
    card: dict[str, float] = {}
    try:
        if name and folder.is_dir():
            sae = package.SAE.load_from_disk(folder, device="cpu", dtype="float32")
        elif name.startswith(("/", ".", "~")) or not name:
            raise InputError(f"SAE {spec}: there is no folder {name}; write {FORM}")
        else:
            sae, card = _published(package, spec, name)
    except InputError:
        raise
    except (*FAILURES, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"SAE {spec} could not be loaded by the sae-lens package: {reason}") from error
    why = NOT_TOKEN_LOCAL.get(sae.cfg.architecture())
    if why:
        raise InputError(
            f"SAE {spec} is of architecture {sae.cfg.architecture()}, which cannot be used: {why}"
        )
    sae.turn_off_forward_pass_hook_z_reshaping()  # x has one row for a token already
    metadata = _metadata(sae, spec, card, package.__version__)
    return Opened(sae.eval(), metadata)


def _package() -> Any:
    """The package; importing it warns of its own use of TransformerLens."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("sae_lens")
    except ModuleNotFoundError as error:
        if error.name != "sae_lens":
            raise
        raise InputError(
            'an SAE given as saelens:... needs the sae-lens package: pip install "latentlake[saelens]"'
        ) from None


def _published(package: Any, spec: str, name: str) -> tuple[Any, dict[str, float]]:
    """An SAE of the directory or the hub, and what the directory says about its quality."""
    directory = importlib.import_module("sae_lens.loading.pretrained_saes_directory")
    known = directory.get_pretrained_saes_directory()
    release, sae_id = split(spec, name, known)
    entry = known.get(release)
    if entry is not None and sae_id not in entry.saes_map:
        raise InputError(
            f"SAE {spec}: release {release} has no {sae_id!r}; {_closest(sae_id, list(entry.saes_map))}"
        )
    sae = package.SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
    if entry is None:
        return sae, {}
    # the directory has 0 and 1 where it has no figure
    l0, explained = entry.expected_l0.get(sae_id), entry.expected_var_explained.get(sae_id)
    return sae, finite({"l0": l0 or None, "explained_variance": explained if explained != 1 else None})


def split(spec: str, name: str, known: Any) -> tuple[str, str]:
    """Release and ID of `name`; a release that the directory `known` has is searched for first."""
    parts = name.split("/")
    for length in (1, 2):
        if "/".join(parts[:length]) in known and len(parts) > length:
            return "/".join(parts[:length]), "/".join(parts[length:])
    if len(parts) < 3 or "" in parts:
        raise InputError(
            f"SAE {spec}: the sae-lens package has no release {parts[0]!r}; "
            f"{_closest(parts[0], list(known))}; write {FORM}"
        )
    return "/".join(parts[:2]), "/".join(parts[2:])


def _closest(name: str, names: list[str]) -> str:
    """A few names to choose from."""
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:5]
    return f"the nearest of {len(names)} are {', '.join(near)}" if near else "it has none"


def _metadata(sae: Any, spec: str, card: dict[str, float], version: str) -> SaeMetadata:
    """From the package's configuration."""
    config = sae.cfg.to_dict()
    architecture = sae.cfg.architecture()
    has_rule = architecture in saelens.ARCHITECTURES
    metadata = saelens.metadata_of(config if has_rule else config | {"architecture": "standard"}, spec)
    notes = (*metadata.notes, f"Read by the sae-lens package, version {version}.")
    if not has_rule:
        notes = (*notes, f"Encoded by the package's own {type(sae).__name__}: dense in blocks, so slower.")
    return replace(
        metadata, architecture=metadata.architecture if has_rule else architecture, card=card, notes=notes,
        format="saelens_package",
    )  # fmt: skip
