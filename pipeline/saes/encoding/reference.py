"""SAEs that we have no rule for, encoded by the class of the sae-lens package: rows in blocks, each of them
dense, then sparsified. The interface is that of `pipeline.saes.encoding.encoder.Encoder`.

N rows, n rows of a block, D d_model, F d_sae.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.saes.encoding.encoder import Block, Done, as_read, refuse_not_finite
from pipeline.saes.metadata import Described, SaeMetadata
from schemas.errors import InputError
from schemas.values import I32, SparseFeatures

DENSE_BYTES = 64 << 20
"""Most memory for one dense block [n, F] of float32; sae-lens holds a few of them at a time."""


@final
class ReferenceEncoder(Described):
    """One SAE of the sae-lens package on one device. Thread-safe: one call at a time reaches the package."""

    def __init__(self, sae: Any, metadata: SaeMetadata, rows: int) -> None:
        """`sae` is the package's module on the device to compute on, in float32.

        InputError when what a row gives depends on the rows next to it: it reads more than a token.
        """
        self.metadata = metadata
        self.block = Block(max(1, min(rows, DENSE_BYTES // (4 * metadata.d_sae))), metadata.d_sae)
        self._sae = sae
        # sae-lens keeps the mean and norm of the last x on the module
        self._lock = threading.Lock()
        self._refuse_unless_token_local()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self._sae.W_dec.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return torch.float32

    def accepts(self, width: int) -> bool:
        """Whether x [N, width] can be encoded."""
        return width == self.d_model

    def encode(self, x: Tensor) -> SparseFeatures:
        """Encode x [N, D] of any float dtype; a stored value is never 0.

        Raises InputError for a wrong width, ShardError for NaN or infinity in x.
        """
        x = self._read(x)
        refuse_not_finite(x, self.hook_name)
        with self._lock, torch.no_grad():
            parts = []
            for block in self._blocks(x):
                dense: NDArray[np.float32] = self._sae.encode(block).float().cpu().numpy()
                rows, indices = np.nonzero(dense)
                # rows ascend, so row n begins where the first place of n, or of a later row, stands
                indptr = np.searchsorted(rows, np.arange(len(dense) + 1)).astype(np.int64)
                parts.append(SparseFeatures(indptr, indices.astype(np.int32), dense[rows, indices]))
        return SparseFeatures.concatenate(parts)

    def submit(self, x: Tensor) -> Done:
        """Encode x, as `encode` does, and wait for it."""
        return Done(self.encode(x))

    def inputs(self, x: Tensor) -> Iterator[Tensor]:
        """What the package makes of x before it encodes it, in blocks of rows."""
        for rows in self._blocks(self._read(x)):
            with self._lock, torch.no_grad():
                read = self._sae.process_sae_in(rows).float()
            yield read

    def decode(self, features: SparseFeatures, like: Tensor | None = None) -> Tensor:
        """Reconstruct x, float32 [N, D]; `like`, the x encoded, where x is normalised by its own norm."""
        how = self.metadata.normalize_activations
        normalises = how not in ("none", "expected_average_only_in")
        if normalises and like is None:
            raise InputError(
                f"this SAE normalises x by {how}: decode(features, like=x) needs the x that was encoded"
            )
        rows = len(features.indptr) - 1
        x_blocks = self._blocks(self._read(like)) if like is not None and normalises else None
        decoded = []
        with self._lock, torch.no_grad():
            for n, first in enumerate(range(0, rows, self.block.rows)):
                if x_blocks is not None:
                    # the package scales back by the norm of the x that it read last
                    self._sae.process_sae_in(x_blocks[n])
                decoded.append(self._sae.decode(self._dense(features, first)))
        return torch.cat(decoded) if decoded else torch.empty(0, self.metadata.width_out, device=self.device)

    def directions(self, features: I32) -> Tensor:
        """The rows of W_dec of some features, float32 [n, width_out], on the device."""
        rows: Tensor = self._sae.W_dec.detach()[torch.from_numpy(features).to(self.device)]
        return rows.float()

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The package's tensors by its names, float32; W_enc [D, F] too when it is tied to W_dec."""
        tensors = {"W_enc": self._sae.W_enc} | dict(self._sae.state_dict())
        return {name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in tensors.items()}

    def _read(self, x: Tensor) -> Tensor:
        """X as the SAE reads it, float32 [N, D] on its device."""
        return as_read(x, self.d_model, self.hook_name).to(self.device, torch.float32)

    def _blocks(self, x: Tensor) -> list[Tensor]:
        """X [N, D] in blocks of rows; one empty block of no rows."""
        return list(torch.split(x, self.block.rows)) if len(x) else [x]

    def _dense(self, features: SparseFeatures, first: int) -> Tensor:
        """Rows of a block from `first` on, float32 [n, F]."""
        # one pointer more than rows, which is where the last row ends; a slice past the end is cut
        indptr = features.indptr[first : first + self.block.rows + 1]
        dense = torch.zeros(len(indptr) - 1, self.d_sae)
        row = np.repeat(np.arange(len(dense)), np.diff(indptr))
        inside = slice(int(indptr[0]), int(indptr[-1]))
        dense[torch.from_numpy(row), torch.from_numpy(features.indices[inside]).long()] = torch.from_numpy(
            features.data[inside]
        )
        return dense.to(self.device)

    def _refuse_unless_token_local(self) -> None:
        """Compare rows together, alone and in another order."""
        x = torch.randn(4, self.d_model, generator=torch.Generator().manual_seed(0)).to(self.device)
        what = f"SAE architecture {self.metadata.architecture!r} of the sae-lens package"
        with torch.no_grad():
            try:
                together = self._sae.encode(x)
                alone = torch.cat([self._sae.encode(row[None]) for row in x])
                turned = self._sae.encode(x.flip(0)).flip(0)
            except (ValueError, RuntimeError, IndexError, TypeError) as error:
                raise InputError(
                    f"{what} does not encode rows [N, d_model]; a site needs an SAE that reads single tokens"
                ) from error
        same = together.shape == (4, self.d_sae) and all(
            torch.allclose(together, other, rtol=1e-3, atol=1e-5) for other in (alone, turned)
        )
        if not same:
            raise InputError(
                f"{what} encodes a token differently next to other tokens; a site needs an SAE that reads "
                "single tokens"
            )
