"""Models: from the run file's `model` section to x at the hooks.

A new loader is one module with `load`, `digest` and `max_context`, and one line in LOADERS. Importing this
package, and taking the digest of what lies here, does not import torch.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.models.device import require_device
from pipeline.models.files.weight_files import weight_bytes
from schemas.errors import InputError
from schemas.records import Inputs, digest_of
from schemas.run import file as run_file
from schemas.values import I64, Agreement, TokenBatch

if TYPE_CHECKING:
    import torch

    from pipeline.models.hooks.replay import Begun

__all__ = [
    "LOADERS",
    "Model",
    "check_inputs",
    "digest_as_planned",
    "is_earlier_digest",
    "load_model",
    "max_context",
    "model_digest",
    "weight_bytes",
]

LOADERS = {
    "transformer_lens": "pipeline.models.loaders.transformer_lens",
    "hooked_transformer": "pipeline.models.loaders.hooked_transformer",
    "torch_module": "pipeline.models.loaders.torch_module",
    "image_classifier": "pipeline.models.loaders.image_classifier",
    "inputs": "pipeline.models.loaders.inputs",
    "synthetic": "pipeline.models.loaders.synthetic",
}
"""`model.loader` of the run file -> module."""

READS_VECTORS = {"image_classifier", "inputs", "torch_module"}
"""Loaders that take a fourth argument: what a corpus of vectors holds (`schemas.records.Inputs`), or None."""


class Model(Protocol):
    """A model that was loaded for some hooks. One forward at a time."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def max_context(self) -> int | None:
        """Longest context that it takes, None when it does not say."""

    @property
    def widths(self) -> dict[str, int]:
        """Hook name -> width d of x there."""

    @property
    def agreement(self) -> Agreement | None:
        """How it differs from transformers' own model on a few tokens; None where there is none."""

    def forward(self, batch: TokenBatch, also: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """Hook name -> x float32 [sum(lengths), d] on the device: real tokens only, in (context, position)
        order; at the hooks it was loaded for, and at those in `also`.

        The computation stops after the last hook. A hook that does not exist or fire is an InputError.
        """

    def losses(
        self,
        batch: TokenBatch,
        replace: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """-ln p(next token), float32 [sum(lengths - 1)] on the device: of every real token with a real
        successor in its context, in (context, position) order.

        `replace`: hook name -> function of x, float32 [sum(lengths), d], whose answer of the same shape goes
        on through the model in place of x, in the model's precision; pads keep what they have.
        InputError for a model that gives no logits for the next token.
        """

    def next_token_logits(
        self,
        batch: TokenBatch,
        replace: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """The logits [sum(lengths - 1), vocabulary] that `losses` are of, in the model's dtype."""

    def logits_at(
        self,
        batch: TokenBatch,
        rows: I64,
        replace: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        *,
        gradients: bool = False,
        begun: Begun | None = None,
    ) -> torch.Tensor:
        """The logits of the token after some rows, float32 [n, vocabulary], a context's last row among them.

        `rows` int64 [n] are places among the sum(lengths) real tokens. With `gradients` the logits carry the
        gradients of what `replace` puts in; the weights have none. With `begun`, whose contexts the batch's
        are (`Begun.again`), the pass begins at the first of the hooks that the model was loaded for: nothing
        may be replaced before that. Only these rows are unembedded, where the model allows it.
        """

    def begin(self, batch: TokenBatch, rows: I64, first: I64) -> Begun:
        """Run a batch, keeping x at the hooks, the logits of some rows, and what is needed to begin there.

        `first` int64 [B]: the first position in each context at which something else may be put.
        `Begun.x` is what `forward` gives, `Begun.logits` what `logits_at` gives. Whether passes that begin at
        the hooks give the same logits is tried for each batch; where they do not, they run the whole model.
        """

    def unembed(self, x: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, vocabulary] of vectors x [N, d] in the residual stream after the last block.

        By the model's own final norm, unembedding, scales and soft-cap, in its dtype. InputError for a model
        of which no unembedding is known (encoders, modules of `torch_module`).
        """

    def logit_effects(self, directions: torch.Tensor) -> torch.Tensor | None:
        """Directions [N, d] @ W_U, each row less its mean, float32 [N, vocabulary]; no norm is applied.

        W_U is the unembedding as the model's weights stand: with fold_ln it holds the final norm's gain. None
        for a model whose unembedding does not read vectors of that width.
        """


def load_model(
    model: run_file.Model, hooks: Sequence[str], device: str, threads: int, inputs: Inputs | None = None
) -> Model:
    """Load `model` on `device` (cpu or cuda; see `device.choose_device`) to read x at `hooks`.

    `inputs`: what the corpus holds in place of tokens. Sets this process's torch threads. A hook that
    does not exist, or never fires, is an InputError that names near ones; a few tokens are run to find out.
    """
    import torch

    require_device(device)
    check_inputs(model.loader, inputs)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")  # no TF32, whatever the environment says
    reads = (inputs,) if model.loader in READS_VECTORS else ()
    loaded: Model = _loader(model).load(model, list(hooks), device, *reads)
    return loaded


def check_inputs(loader: str, inputs: Inputs | None) -> None:
    """InputError where the corpus holds vectors and the loader reads tokens, or the other way round."""
    if inputs is not None and loader not in READS_VECTORS:
        known = ", ".join(sorted(READS_VECTORS))
        raise InputError(
            f"the corpus holds vectors of width {inputs.width}, but model.loader: {loader} reads tokens: set "
            f"model.loader to one that reads vectors ({known})"
        )
    if inputs is None and loader == "inputs":
        raise InputError("model.loader: inputs reads the vectors of a corpus, but this one holds tokens")


def probe(model: Model, batch: TokenBatch, hooks: Sequence[str]) -> dict[str, torch.Tensor] | None:
    """X at `hooks` [n, d] for the first n <= 2 tokens of a batch; None where the model lacks one of them."""
    few = batch.token_ids[:1, :2]
    inputs = None if batch.inputs is None else batch.inputs[:1, :2]
    try:
        return model.forward(TokenBatch(few, np.array([few.shape[1]]), inputs), also=hooks)
    except InputError:
        return None


def model_digest(model: run_file.Model) -> str:
    """sha256 in hex of the weights and the configuration, as far as they lie in files here.

    A local folder: its weight, configuration and code files. A Hugging Face name: the name and the commit
    that the hub, or without a network its cache, has now. A torch_module: the import path and the source file
    of its function. Weight processing counts where there is any. Nothing of a model is run.
    """
    return _processed(model, _loader(model).digest(model.path))


def digest_as_planned(model: run_file.Model, planned: str) -> str:
    """The model's digest; that of its name alone where a plan from before version 0.7 has that."""
    return planned if is_earlier_digest(model, planned) else model_digest(model)


def is_earlier_digest(model: run_file.Model, planned: str) -> bool:
    """Whether a plan's digest is of a Hugging Face name alone, as before version 0.7; that is a warning."""
    name = getattr(_loader(model), "digest_of_name", lambda path: None)(model.path)
    if name is None or planned != _processed(model, name):
        return False
    warnings.warn(
        f"the digest of model {model.path} in the pass's plan covers only its name, as before version 0.7: "
        "the commit that the pass was made with is unknown",
        stacklevel=2,
    )
    return True


def _processed(model: run_file.Model, digest: str) -> str:
    """The digest together with the weight processing, where there is any."""
    processing = list(model.weight_processing)
    return digest_of({"model": digest, "processing": processing}) if processing else digest


def max_context(model: run_file.Model) -> int | None:
    """Longest context of a local model folder, from its config.json; None when that cannot be known here."""
    limit: int | None = _loader(model).max_context(model.path)
    return limit


def _loader(model: run_file.Model) -> Any:
    """The module that loads `model`."""
    return importlib.import_module(LOADERS[model.loader])
