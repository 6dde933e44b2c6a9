"""An encoder against numbers that the reference implementation of its format gave (expected.npz).

Scripts next to this file made them. expected.npz holds x [N, d_model], activations [N, d_sae] and
reconstruction [N, width_out], all float32; perhaps near [N, d_sae], bool: pre-activations within 1e-6 of
their threshold, whose feature may fire in one implementation and not in the other.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from pipeline.saes import load_sae
from pipeline.saes.encoding.encoder import Encoder

DATA = Path(__file__).parents[2] / "data" / "saes"
"""Where the SAEs lie, one folder <format>-<case> each."""

SPECS = {
    "openai-relu": "mlp_post_act/autoencoders/0.pt",
    "openai-topk": "resid_post_mlp_v5_32k/autoencoders/7.pt",
    "plain_dict-relu": "sae/25.pt",
    "sparsify-groupmax": "h.5.attn",
    "sparsify-skip": "gpt_neox.layers.3.mlp",
    "sparsify-topk": "layers.12",
    "sparsify-transcoder": "layers.3.mlp",
}
"""Case -> where its SAE lies, below the case's folder, if not there itself."""

CASES = (
    "dictionary_learning-batchtopk", "dictionary_learning-gated", "dictionary_learning-jumprelu",
    "dictionary_learning-matryoshka", "dictionary_learning-new", "dictionary_learning-standard",
    "dictionary_learning-topk", "llama_scope-res", "llama_scope-transcoder", *SPECS,
)  # fmt: skip

BLOCKS = (None, (7, 5), (64, 64))
"""Ways to cut the product that must not matter: the default, ragged in rows and features, in one piece."""


def assert_equals_golden(folder: Path, spec: str | None = None, device: str = "cpu") -> Encoder:
    """Load the SAE at `spec` (default: `folder`) and compare it with folder/expected.npz."""
    with np.load(folder / "expected.npz") as expected:
        golden = dict(expected)
    x, activations = golden["x"], golden["activations"]
    certain = ~golden.get("near", np.zeros(activations.shape, dtype=np.bool_))
    assert 0 < np.count_nonzero(activations) < activations.size
    for block in BLOCKS:
        encoder = load_sae(spec or str(folder), device, block=block)
        features = encoder.encode(torch.from_numpy(x))
        assert (np.diff(features.indptr) >= 0).all()
        assert (features.data != 0).all()
        result = sp.csr_matrix(
            (features.data, features.indices, features.indptr), activations.shape
        ).toarray()
        np.testing.assert_array_equal((result != 0) & certain, (activations != 0) & certain)
        np.testing.assert_allclose(result[certain], activations[certain], rtol=1e-5, atol=1e-6)
        reconstruction = encoder.decode(features, like=torch.from_numpy(x)).cpu().numpy()
        assert reconstruction.dtype == np.float32
        np.testing.assert_allclose(reconstruction, golden["reconstruction"], rtol=1e-4, atol=1e-4)
    return encoder


def spec_of(case: str) -> str:
    """The spec of a case's SAE."""
    return str(DATA / case / SPECS.get(case, "."))


def copy_of(case: str, folder: Path) -> Path:
    """A copy of an SAE in DATA that a test may spoil."""
    return Path(shutil.copytree(DATA / case, folder / case))
