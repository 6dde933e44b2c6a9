"""Makes tests/data/saes/{sparsify,dictionary_learning,openai,plain_dict}-*; run as a script.

Small seeded SAEs, saved by the packages that own the formats, and in expected.npz what those packages' own
encode and decode give for 40 rows. Made with eai-sparsify 1.3.3 and dictionary-learning 0.1.0, and with
sparse_autoencoder/model.py of github.com/openai/sparse_autoencoder at 764586a, under torch 2.13:

    pip install --no-deps eai-sparsify==1.3.3 dictionary-learning==0.1.0 einops natsort simple-parsing
    pip install --no-deps git+https://github.com/openai/sparse_autoencoder

What they need for training alone is replaced by a stand-in. A bare dict has no package: its formula stands
at the bottom.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import datasets  # noqa: F401 - looks for zstandard itself, so before the stand-in
import numpy as np
import torch

for training_only in ("schedulefree", "nnsight", "zstandard"):
    sys.modules.setdefault(training_only, MagicMock())

import dictionary_learning.dictionary as dl  # noqa: E402
import dictionary_learning.utils as dl_utils  # noqa: E402
import sparse_autoencoder.model as openai  # noqa: E402
import sparsify  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402

DATA = Path(__file__).parents[2] / "data" / "saes"
D_MODEL, D_SAE, K, ROWS = 16, 64, 8, 40


def rows() -> torch.Tensor:
    return 1.5 * torch.randn(ROWS, D_MODEL) + 0.3


def save_expected(
    folder: Path, x: torch.Tensor, activations: torch.Tensor, reconstruction: torch.Tensor
) -> None:
    arrays = {"x": x, "activations": activations, "reconstruction": reconstruction}
    np.savez_compressed(
        folder / "expected.npz", **{name: array.detach().float().numpy() for name, array in arrays.items()}
    )
    print(f"{folder.name}: L0 {float((activations != 0).sum(1).float().mean()):.1f}")


def fill(parameters: dict[str, torch.Tensor], scales: dict[str, float | Callable[[], torch.Tensor]]) -> None:
    """Give every parameter seeded values: normal ones of a scale, or what a function says."""
    with torch.no_grad():
        for name, scale in scales.items():
            tensor = parameters[name]
            tensor.copy_(scale() if callable(scale) else scale * torch.randn(tensor.shape))


def bias() -> torch.Tensor:
    """From features that hardly ever fire to features that often do."""
    return torch.linspace(-3.5, 0.5, D_SAE)[torch.randperm(D_SAE)]


def make_sparsify(case: str, hook: str, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    folder = DATA / f"sparsify-{case}"
    coder = sparsify.SparseCoder(D_MODEL, sparsify.SparseCoderConfig(k=K, **options), dtype=torch.float32)
    parameters = dict(coder.named_parameters())
    fill(parameters, {"encoder.weight": 0.3, "encoder.bias": bias, "W_dec": 0.3, "b_dec": 0.5})
    if options.get("skip_connection"):
        fill(parameters, {"W_skip": 0.2})
    coder.to(dtype).save_to_disk(folder / hook)
    run = {"sae": coder.cfg.to_dict(), "model": "org/model", "ctx_len": 2048, "dataset": "org/corpus"}
    (folder / "config.json").write_text(json.dumps(run))
    loaded, x = sparsify.SparseCoder.load_from_disk(folder / hook).float(), rows()
    top, indices, _ = loaded.encode(x)
    dense = torch.zeros(ROWS, loaded.num_latents).scatter(1, indices, top)
    save_expected(folder, x, dense, loaded(x).sae_out)


def make_dictionary_learning(
    case: str, dictionary: Any, scales: dict[str, float | Callable[[], torch.Tensor]], **trainer: Any
) -> None:
    folder = DATA / f"dictionary_learning-{case}"
    folder.mkdir(parents=True, exist_ok=True)
    fill(dict(dictionary.named_parameters()), scales)
    torch.save(dictionary.state_dict(), folder / "ae.pt")
    said = {
        "dict_class": type(dictionary).__name__, "activation_dim": D_MODEL, "dict_size": D_SAE, "layer": 8,
        "lm_name": "org/model", "device": "cuda:0", "submodule_name": "resid_post_layer_8", "lr": 5e-05,
    }  # fmt: skip
    buffer = {"d_submodule": D_MODEL, "io": "out", "ctx_len": 1024, "device": "cuda:0"}
    (folder / "config.json").write_text(json.dumps({"trainer": said | trainer, "buffer": buffer}, indent=1))
    loaded, x = dl_utils.load_dictionary(str(folder), None)[0], rows()
    activations = loaded.encode(x)
    save_expected(folder, x, activations, loaded.decode(activations))


def make_dictionaries() -> None:
    linear = {"encoder.weight": 0.3, "encoder.bias": bias, "decoder.weight": 0.4}
    make_dictionary_learning("standard", dl.AutoEncoder(D_MODEL, D_SAE), linear | {"bias": 0.5})
    make_dictionary_learning("new", dl.AutoEncoderNew(D_MODEL, D_SAE), linear | {"decoder.bias": 0.5})
    gated = {
        "encoder.weight": 0.3, "decoder.weight": 0.4, "decoder_bias": 0.5, "r_mag": 0.3, "gate_bias": bias,
        "mag_bias": 0.7,
    }  # fmt: skip
    make_dictionary_learning("gated", dl.GatedAutoEncoder(D_MODEL, D_SAE), gated)
    linear["b_dec"] = 0.5
    make_dictionary_learning("topk", AutoEncoderTopK(D_MODEL, D_SAE, K), linear, k=K)
    batch = BatchTopKSAE(D_MODEL, D_SAE, K)
    batch.threshold.fill_(0.6)
    make_dictionary_learning("batchtopk", batch, linear, k=K, submodule_name="mlp_out_layer_8")
    direct = {"W_enc": 0.3, "W_dec": 0.4, "b_enc": bias, "b_dec": 0.5}
    matryoshka = MatryoshkaBatchTopKSAE(D_MODEL, D_SAE, K, group_sizes=[8, 24, 32])
    matryoshka.threshold.fill_(0.4)
    make_dictionary_learning("matryoshka", matryoshka, direct, k=K, group_sizes=[8, 24, 32])
    jumping = direct | {"b_enc": 0.3, "threshold": lambda: torch.linspace(0, 3, D_SAE)}
    make_dictionary_learning("jumprelu", dl.JumpReluAutoEncoder(D_MODEL, D_SAE), jumping)


def make_openai(case: str, activation: Any, place: str) -> None:
    folder = DATA / f"openai-{case}"
    file = folder / place
    file.parent.mkdir(parents=True, exist_ok=True)
    normalize = isinstance(activation, openai.TopK)
    coder = openai.Autoencoder(D_SAE, D_MODEL, activation, normalize=normalize)
    scales = {"pre_bias": 0.3, "encoder.weight": 0.3, "latent_bias": bias, "decoder.weight": 0.3}
    fill(dict(coder.named_parameters()), scales)
    # its own loader refuses the copies of k and postact_fn that today's torch makes
    stored = {name: value for name, value in coder.state_dict().items() if not name.startswith("activation.")}
    torch.save(stored, file)
    loaded, x = openai.Autoencoder.from_state_dict(torch.load(file)), 4 * rows() + 1
    activations, info = loaded.encode(x)
    save_expected(folder, x, activations, loaded.decode(activations, info))


def make_plain_dict() -> None:
    folder = DATA / "plain_dict-relu"
    (folder / "sae").mkdir(parents=True, exist_ok=True)
    w = {
        "W_enc": 0.3 * torch.randn(D_MODEL, D_SAE), "W_dec": 0.3 * torch.randn(D_SAE, D_MODEL),
        "b_enc": bias(), "b_dec": 0.5 * torch.randn(D_MODEL),
    }  # fmt: skip
    torch.save(w, folder / "sae" / "25.pt")
    said = {"act_name": "blocks.5.attn.hook_z", "act_size": D_MODEL, "dict_size": D_SAE, "seq_len": 128}
    (folder / "sae" / "25_cfg.json").write_text(json.dumps(said))
    x = rows()
    activations = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    save_expected(folder, x, activations, activations @ w["W_dec"] + w["b_dec"])


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    make_sparsify("topk", "layers.12", num_latents=D_SAE)
    make_sparsify("groupmax", "h.5.attn", expansion_factor=4, activation="groupmax")
    make_sparsify("transcoder", "layers.3.mlp", torch.bfloat16, num_latents=D_SAE, transcode=True)
    make_sparsify("skip", "gpt_neox.layers.3.mlp", num_latents=D_SAE, transcode=True, skip_connection=True)
    make_dictionaries()
    make_openai("topk", openai.TopK(K), "resid_post_mlp_v5_32k/autoencoders/7.pt")
    make_openai("relu", torch.nn.ReLU(), "mlp_post_act/autoencoders/0.pt")
    make_plain_dict()


if __name__ == "__main__":
    main()
