"""The encoder: x in, the few features that fire out, without ever holding a dense [N, d_sae].

N rows, n rows and f features of a block, D d_model, F d_sae, Z activations.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import NamedTuple, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.saes.encoding.device import DeviceSelection
from pipeline.saes.encoding.normalization import denormalize, normalize
from pipeline.saes.encoding.rule import Rule, candidates, hstack_csr, keys_of
from pipeline.saes.encoding.weights import Weights
from pipeline.saes.metadata import Described, SaeMetadata
from schemas.errors import InputError, ShardError
from schemas.values import I32, SparseFeatures


class Block(NamedTuple):
    """How the product x @ W_enc is cut: so many rows times so many features (on a GPU always all) at once."""

    rows: int
    features: int


class Pending(Protocol):
    """Features that a device still computes or copies."""

    def result(self) -> SparseFeatures:
        """Wait for them."""


class Done(NamedTuple):
    """Features that are there."""

    features: SparseFeatures

    def result(self) -> SparseFeatures:
        """See Pending."""
        return self.features


class Encoder(Protocol):
    """One SAE on one device. Thread-safe, and free of state between calls."""

    @property
    def metadata(self) -> SaeMetadata:
        """Metadata from the SAE's files."""

    @property
    def block(self) -> Block:
        """How its matrix products are cut into blocks."""

    @property
    def dtype(self) -> torch.dtype:
        """What the factors of x @ W_enc are rounded to; sums are float32."""

    @property
    def d_model(self) -> int:
        """Width of x."""

    @property
    def d_sae(self) -> int:
        """Number of features."""

    @property
    def hook_name(self) -> str | None:
        """Where the SAE was trained to read x, if its files say so."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    def accepts(self, width: int) -> bool:
        """Whether x [N, width] can be encoded."""

    def encode(self, x: Tensor) -> SparseFeatures:
        """Encode x [N, d_model] of any float dtype (computed in float32); a stored value is never 0.

        An SAE of one attention head takes x [N, heads * d_model] as well. Raises InputError for a wrong
        width, ShardError for NaN or infinity in x.
        """

    def submit(self, x: Tensor) -> Pending:
        """Begin to encode x, as `encode` does.

        On a GPU this does not wait: ask for the result after the next batch has been submitted.
        """

    def inputs(self, x: Tensor) -> Iterator[Tensor]:
        """What W_enc is multiplied by, [n, d_model] in blocks of rows: x normalised, without b_dec."""

    def decode(self, features: SparseFeatures, like: Tensor | None = None) -> Tensor:
        """Reconstruct x, or for a transcoder x at `hook_name_out`: float32 [N, width_out], on the device.

        `like` is the x that was encoded; SAEs that normalise their input by its own norm, and transcoders
        with a skip connection, require it.
        """

    def directions(self, features: I32) -> Tensor:
        """The rows of W_dec of some features, float32 [n, width_out], on the device."""

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights in use by SAELens' names, float32: W_enc [D, F], W_dec [F, D], b_dec [D], biases [F].

        Rescaling by decoder norms is already folded in, so activations @ W_dec + b_dec is the reconstruction.
        """


class _Scratch(threading.local):
    """One thread's buffers, kept between calls: a block of x @ W_enc float32 [n * f], a mask bool [n * f]."""

    product = torch.empty(0)
    mask = np.empty(0, dtype=np.bool_)


def as_read(x: Tensor, d_model: int, hook: str | None) -> Tensor:
    """X without its gradients; InputError where it is not [N, D]."""
    if x.ndim != 2 or x.shape[1] != d_model:
        raise InputError(
            f"x at {hook} has shape {list(x.shape)}, but the SAE reads [rows, {d_model}]: choose the "
            "hook_name that the SAE was trained on"
        )
    return x.detach()


def refuse_not_finite(x: Tensor, hook: str | None) -> None:
    """Name the first row of x [N, D] that is not finite, if one is."""
    bad = (~x.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise ShardError(f"x at {hook} has NaN or infinity in row {int(bad[0])}: check the model's dtype")


@final
class RuleEncoder(Described):
    """An Encoder by the rule of its architecture; a thread has its own buffers."""

    def __init__(
        self,
        metadata: SaeMetadata,
        weights: Weights,
        rule: Rule,
        block: Block,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`weights` lie on the device to compute on.

        With `dtype` bfloat16 x (after normalisation and b_dec) and W_enc are rounded to it, and their
        products are summed in float32; on the CPU by float32 arithmetic, which gives the same numbers and no
        speed.
        """
        self.metadata, self.block, self.dtype = metadata, block, dtype
        self._weights = weights | {"W_enc": self._rounded(weights["W_enc"])}
        self._rule = rule
        self._scratch = _Scratch()
        self._on_device = DeviceSelection(rule) if self.device.type != "cpu" else None

    @property
    def device(self) -> torch.device:
        """See Encoder."""
        return self._weights["W_dec"].device

    def encode(self, x: Tensor) -> SparseFeatures:
        """See Encoder."""
        return self.submit(x).result()

    def submit(self, x: Tensor) -> Pending:
        """See Encoder."""
        x = self._read(x)
        with torch.inference_mode():
            if self._on_device is None:
                if not math.isfinite(float(x.sum())):  # a quarter of the price of isfinite
                    refuse_not_finite(x, self.hook_name)
                blocks = [
                    self._encode_rows(rows, n * self.block.rows) for n, rows in enumerate(self._row_blocks(x))
                ]
                return Done(SparseFeatures.concatenate(blocks))
            return self._on_device.submit(x, self._products, self._refuse_not_finite)

    def inputs(self, x: Tensor) -> Iterator[Tensor]:
        """See Encoder."""
        return self._row_blocks(self._read(x))

    def decode(self, features: SparseFeatures, like: Tensor | None = None) -> Tensor:
        """See Encoder."""
        how = self.metadata.normalize_activations
        with torch.no_grad():
            # activations @ W_dec from the nonzeros alone: no dense [N, F]
            y = self._weights["b_dec"] + torch.nn.functional.embedding_bag(
                torch.from_numpy(features.indices).to(self.device, torch.int64),
                self._weights["W_dec"],
                torch.from_numpy(features.indptr).to(self.device),
                mode="sum",
                per_sample_weights=torch.from_numpy(features.data).to(self.device),
                include_last_offset=True,
            )
            scaled_back = how not in ("none", "expected_average_only_in") and not self.metadata.transcoder
            if not scaled_back and not self.metadata.skip:
                return y
            if like is None:
                why = f"normalises x by {how}" if scaled_back else "adds W_skip @ x"
                raise InputError(f"this SAE {why}: decode(features, like=x) needs the x that was encoded")
            like = self._read(like)
            if len(like) != len(y):
                raise InputError(
                    f"like has {len(like)} rows, but the features have {len(y)}: give the x that was encoded"
                )
            if self.metadata.skip:
                return y + like @ self._weights["W_skip"].T
            return denormalize(y, like, how)

    def directions(self, features: I32) -> Tensor:
        """See Encoder."""
        return self._weights["W_dec"][torch.from_numpy(features).to(self.device)]

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """See Encoder."""
        return {name: tensor.float().cpu().numpy() for name, tensor in self._weights.items()}

    def _rounded(self, tensor: Tensor) -> Tensor:
        """A factor of the matmul in `dtype`; on the CPU back in float32, which holds it exactly."""
        rounded = tensor.to(self.dtype)
        return rounded.float() if tensor.device.type == "cpu" else rounded

    def _read(self, x: Tensor) -> Tensor:
        """What the SAE reads of x [N, width]: float32 [N, D] on its device."""
        # hook_z comes flattened, [rows, heads * d_head]: an SAE of one head takes its columns
        if x.ndim == 2 and self._reads_one_head_of(x.shape[1]):
            heads = x.reshape(len(x), x.shape[1] // self.d_model, self.d_model)
            x = heads[:, self.metadata.hook_head_index]
        return as_read(x, self.d_model, self.hook_name).to(self.device, torch.float32)

    def accepts(self, width: int) -> bool:
        """See Encoder."""
        return width == self.d_model or self._reads_one_head_of(width)

    def _reads_one_head_of(self, width: int) -> bool:
        head = self.metadata.hook_head_index
        return head is not None and width % self.d_model == 0 and self.d_model < width > head * self.d_model

    def _refuse_not_finite(self, x: Tensor) -> None:
        """Name the first row of x [N, D] that is not finite, or whose products are not, if one is."""
        refuse_not_finite(x, self.hook_name)
        first = 0
        for product in self._products(x):
            self._refuse_product(product, first)
            first += len(product)

    def _refuse_product(self, product: Tensor, first: int) -> None:
        """Name the first row of a product [n, f] that is not finite, if one is, counted from row `first`."""
        bad = (~product.isfinite()).any(dim=1).nonzero()
        if len(bad):
            raise ShardError(
                f"x at {self.hook_name} cannot be encoded in row {first + int(bad[0])}: it overflows, or "
                f"is 0 and should be normalised ({self.metadata.normalize_activations}); check hook and model"
            )

    def _row_blocks(self, x: Tensor) -> Iterator[Tensor]:
        """Blocks of rows [n, D], as they are multiplied by W_enc."""
        for rows in torch.split(x, self.block.rows):
            block = normalize(rows, self.metadata.normalize_activations)
            if self.metadata.apply_b_dec_to_input:
                block = block - self._weights["b_dec"]
            yield self._rounded(block)

    def _encode_rows(self, x: Tensor, first_row: int) -> SparseFeatures:
        """Encode x [n, D] on the CPU, n <= block.rows; its first row is `first_row` of all."""
        # a full block's size at once, so that a short first one does not make the next allocate again
        scratch, size = self._scratch, self.block.rows * min(self.block.features, self.d_sae)
        if len(scratch.product) < size:
            scratch.product, scratch.mask = torch.empty(size), np.empty(size, dtype=np.bool_)
        # one set of limits for all blocks of these rows: those of TopK tighten as blocks go by
        limits, parts = self._rule.limits(), []
        for first in range(0, self.d_sae, self.block.features):
            features = slice(first, min(first + self.block.features, self.d_sae))
            shape = len(x), features.stop - first
            product = scratch.product[: math.prod(shape)].view(shape)
            mask = scratch.mask[: math.prod(shape)].reshape(shape)
            w_enc = self._weights["W_enc"][:, features]
            if self._rule.bias is None:
                torch.mm(x, w_enc, out=product)
            else:
                torch.addmm(self._rule.bias[features], x, w_enc, out=product)
            keys = keys_of(product, features, signed=self._rule.signed)
            if not keys.finite:
                self._refuse_product(product, first_row)
            parts.append(candidates(product, keys, limits(keys), mask))
        return self._rule.finish(hstack_csr(parts))

    def _products(self, x: Tensor) -> Iterator[Tensor]:
        """Blocks x @ W_enc + bias, float32 [n, F], on a GPU."""
        for rows in self._row_blocks(x):
            w_enc, bias = self._weights["W_enc"], self._rule.bias
            # the third argument says that sums of bfloat16 products are left in float32
            product = rows @ w_enc if w_enc.dtype == torch.float32 else torch.mm(rows, w_enc, torch.float32)
            yield product if bias is None else product.add_(bias)
