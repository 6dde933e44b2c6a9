"""The encoder: x in, the few features that fire out, without ever holding a dense [N, d_sae].

N rows, n rows of a block, D d_model, F d_sae, Z activations.
"""

from __future__ import annotations

import math
import threading
from typing import Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.saes.metadata import SaeMetadata
from pipeline.saes.normalization import denormalize, normalize
from schemas.errors import InputError, ShardError
from schemas.values import Bool, SparseFeatures

Weights = dict[str, Tensor]
"""Tensors by SAELens' names: W_enc [D, F], W_dec [F, D], b_dec [D], and the architecture's biases [F]."""


class Rule(Protocol):
    """An architecture: which features fire, and how strongly, given a block of x @ W_enc (+ bias)."""

    @property
    def bias(self) -> Tensor | None:
        """Added to the product before selection, float32 [F]; None when the rule adds its own later."""

    def select(self, product: Tensor, mask: Bool) -> SparseFeatures:
        """Select on the CPU: product float32 [n, F], `mask` bool [n, F] is scratch."""

    def select_on_device(self, product: Tensor) -> SparseFeatures:
        """Select with torch where the product lies, and copy only what fired."""


class _Scratch(threading.local):
    """One thread's buffers, kept between calls: x @ W_enc float32 [n, F], and a mask bool [n, F]."""

    product: Tensor | None = None
    mask: Bool = np.empty((0, 0), dtype=np.bool_)


@final
class Encoder:
    """One SAE on one device. Thread-safe: a thread has its own buffers."""

    def __init__(self, metadata: SaeMetadata, weights: Weights, rule: Rule, block_rows: int) -> None:
        self.metadata = metadata
        self.block_rows = block_rows
        self._weights = weights
        self._rule = rule
        self._scratch = _Scratch()

    @property
    def d_model(self) -> int:
        """Width of x."""
        return self.metadata.d_model

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.metadata.d_sae

    @property
    def hook_name(self) -> str | None:
        """Where the SAE was trained to read x, if its files say so."""
        return self.metadata.hook_name

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self._weights["W_enc"].device

    def encode(self, x: Tensor) -> SparseFeatures:
        """Encode x [N, d_model] of any float dtype (computed in float32); a stored value is never 0.

        Raises InputError for a wrong width, ShardError for NaN or infinity in x.
        """
        x = self._checked(x)
        with torch.inference_mode():
            blocks = [self._encode_block(block) for block in torch.split(x, self.block_rows)]
        return SparseFeatures.concatenate(blocks)

    def decode(self, features: SparseFeatures, like: Tensor | None = None) -> Tensor:
        """Reconstruct x float32 [N, d_model] on the encoder's device.

        `like` is the x that was encoded; SAEs that normalise their input by its own norm can not do without
        it.
        """
        how = self.metadata.normalize_activations
        with torch.no_grad():
            y = self._sum_of_directions(features) + self._weights["b_dec"]
            if how in ("none", "expected_average_only_in"):
                return y
            if like is None:
                raise InputError(
                    f"this SAE normalises x by {how}: decode(features, like=x) needs the x encoded"
                )
            return denormalize(y, like.to(self.device, torch.float32), how)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights in use by SAELens' names, float32: W_enc [D, F], W_dec [F, D], b_dec [D], biases [F].

        Rescaling by decoder norms is already folded in, so activations @ W_dec + b_dec is the reconstruction.
        """
        return {name: tensor.cpu().numpy() for name, tensor in self._weights.items()}

    def _checked(self, x: Tensor) -> Tensor:
        """X in float32 on the encoder's device, of the right shape and finite."""
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise InputError(
                f"x at {self.hook_name} has shape {list(x.shape)}, the SAE reads [rows, {self.d_model}]: "
                "choose the hook_name that the SAE was trained on"
            )
        x = x.detach().to(self.device, torch.float32)
        # One sum is a quarter of the price of isfinite; it can overflow for finite x, so look again.
        if not math.isfinite(float(x.sum())):
            self._refuse_bad_rows(x)
        return x

    def _refuse_bad_rows(self, x: Tensor) -> None:
        """Name the first row of x that is not finite, if there is one."""
        bad = (~x.isfinite()).any(dim=1).nonzero()
        if len(bad):
            raise ShardError(
                f"x at {self.hook_name} has NaN or infinity in row {int(bad[0])}: check the model's dtype"
            )

    def _encode_block(self, x: Tensor) -> SparseFeatures:
        """Encode x [n, D] with n <= block_rows."""
        x = normalize(x, self.metadata.normalize_activations)
        if self.metadata.apply_b_dec_to_input:
            x = x - self._weights["b_dec"]
        product, mask = self._buffers(len(x))
        if self._rule.bias is None:
            torch.mm(x, self._weights["W_enc"], out=product)
        else:
            torch.addmm(self._rule.bias, x, self._weights["W_enc"], out=product)
        if product.device.type == "cpu":
            return self._rule.select(product, mask)
        return self._rule.select_on_device(product)

    def _buffers(self, rows: int) -> tuple[Tensor, Bool]:
        """Buffers of the calling thread, cut to `rows`; allocated at their full height once."""
        scratch = self._scratch
        if scratch.product is None or len(scratch.product) < rows:
            scratch.product = torch.empty((max(rows, self.block_rows), self.d_sae), device=self.device)
            if self.device.type == "cpu":
                scratch.mask = np.empty(scratch.product.shape, dtype=np.bool_)
        return scratch.product[:rows], scratch.mask[:rows]

    def _sum_of_directions(self, features: SparseFeatures) -> Tensor:
        """Activations @ W_dec, float32 [N, D], from the nonzeros alone."""
        return torch.nn.functional.embedding_bag(
            torch.from_numpy(features.indices).to(self.device, torch.int64),
            self._weights["W_dec"],
            torch.from_numpy(features.indptr).to(self.device),
            mode="sum",
            per_sample_weights=torch.from_numpy(features.data).to(self.device),
            include_last_offset=True,
        )
