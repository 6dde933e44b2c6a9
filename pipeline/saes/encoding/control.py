"""A control: another W_enc in place of the learnt one, with the SAE's own biases and b_dec.

About half of its activations are above 0, so it is never stored: a block of rows is dense for a moment, and
goes into sums over features and counts over rows, which lie on the device until a shard is done. Nothing
waits for the device before that.

- `random_encoder`: entries of W_enc from the standard normal distribution, as
  `numpy.random.default_rng(seed).standard_normal((d_model, d_sae), dtype=float32)` draws them.
- `shuffled_rows`: the learnt W_enc with its rows, one for each entry of x, in the order of
  `numpy.random.default_rng(seed).permutation(d_model)`. The same is to shuffle the entries of each row of x
  (without b_dec) by one permutation: features keep the lengths and the entries of their directions, and
  point elsewhere.

Either is relu(inputs @ W_enc + bias), whatever the architecture of the SAE: a threshold or a k that was
trained for other weights says nothing here. Each row's feature vector is then rescaled to the norm of the
row's learnt one. The control of the GPT-2 notebook is random_encoder.

The matmul costs what the SAE's own does, over the control's rows alone; memory: W_enc once more, a block of
DENSE_BYTES, and 60 bytes a feature.

N rows, n rows of a block, D d_model, F d_sae, f features of a piece, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from pipeline.saes.encoding.encoder import Encoder
from schemas.names import Control
from schemas.values import F32, ControlSums

DENSE_BYTES = {"cpu": 1 << 26, "cuda": 1 << 28}
"""Most memory for a dense block [n, F] of float32."""
PIECE_BYTES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Of it, what is processed together: on a CPU it stays in the caches."""


@final
class ControlEncoder:
    """The control of one SAE, on its device."""

    def __init__(self, encoder: Encoder, kind: Control, seed: int) -> None:
        weights = encoder.weights()
        zeros = np.zeros(encoder.d_sae, np.float32)
        # gated SAEs have a bias for what fires and one for how strongly, which is what ReLU gives here
        bias = weights.get("b_enc", weights.get("b_mag", zeros))
        learnt, rng = weights["W_enc"], np.random.default_rng(seed)
        w_enc: F32 = (
            rng.standard_normal(learnt.shape, dtype=np.float32)
            if kind == "random_encoder"
            else learnt[rng.permutation(len(learnt))]
        )
        self.encoder, self.d_sae, self.device = encoder, encoder.d_sae, encoder.device
        self._w_enc = torch.from_numpy(w_enc).to(self.device)
        self._bias = torch.from_numpy(bias).to(self.device)
        self._rows = max(1, DENSE_BYTES[self.device.type] // (4 * self.d_sae))

    def blocks(self, x: Tensor) -> Iterator[Tensor]:
        """Activations before they are rescaled, float32 [n, F], of x [N, width]."""
        for inputs in self.encoder.inputs(x):
            for rows in torch.split(inputs.float(), self._rows):
                yield torch.addmm(self._bias, rows, self._w_enc).relu_()


@final
class ControlTally:
    """The sums of one control over the rows of one shard."""

    def __init__(self, control: ControlEncoder, thresholds: Sequence[float]) -> None:
        n, device = control.d_sae, control.device
        self._control, self._thresholds = control, thresholds
        self._n_active = torch.zeros(n, dtype=torch.int64, device=device)
        self._total = torch.zeros(n, dtype=torch.float64, device=device)
        self._squares = torch.zeros(n, dtype=torch.float64, device=device)
        self._largest = torch.zeros(n, device=device)
        self._l0 = torch.zeros(len(thresholds), n + 1, dtype=torch.int64, device=device)

    def add(self, x: Tensor, norms: Tensor) -> None:
        """Take in rows x [N, width]; `norms` float32 [N] are those of their learnt features.

        A row in which nothing of the control is above 0 stays 0.
        """
        first = 0
        with torch.inference_mode():
            for dense in self._control.blocks(x):
                wanted = norms[first : first + len(dense)]
                first += len(dense)
                own = torch.linalg.vector_norm(dense, dim=1)
                factor = torch.where(own > 0, wanted / own, 0)[:, None]
                l0 = torch.zeros(len(self._thresholds), len(dense), dtype=torch.int64, device=dense.device)
                # by pieces of features, for the rescaled block would take as much memory again
                width = max(1, PIECE_BYTES[dense.device.type] // (4 * len(dense)))
                for start in range(0, dense.shape[1], width):
                    features = slice(start, start + width)
                    self._add_piece(dense[:, features] * factor, features, l0)
                # a row's L0 is known only after all pieces: now it is counted, without a copy to the host
                self._l0.scatter_add_(1, l0, torch.ones_like(l0))

    def _add_piece(self, values: Tensor, features: slice, l0: Tensor) -> None:
        """Values [n, f] of some features; `l0` int64 [T, n] is added to."""
        # ones as float32, of which 2**24 add up exactly: 5 times as quick as booleans
        above = torch.gt(values, 0, out=torch.empty_like(values))
        self._n_active[features] += above.sum(dim=0).long()
        for counts, threshold in zip(l0, self._thresholds, strict=True):
            counts += torch.gt(values, threshold, out=above).sum(dim=1).long()
        self._largest[features] = torch.maximum(self._largest[features], values.amax(dim=0))
        # squares of float32 are exact in float64, so only the order of the sums rounds
        wide = values.double()
        self._total[features] += wide.sum(dim=0)
        self._squares[features] += wide.square_().sum(dim=0)

    def sums(self) -> ControlSums:
        """What was added, on the host; this waits for the device."""
        return ControlSums(
            n_active=self._n_active.cpu().numpy(),
            total=self._total.cpu().numpy(),
            squares=self._squares.cpu().numpy(),
            largest=self._largest.cpu().numpy(),
            l0=self._l0.cpu().numpy(),
        )
