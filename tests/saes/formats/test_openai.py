"""OpenAI's files: as its own class encodes them, layer norm as its loader decides, every way to be wrong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae, read_metadata, sae_digest
from pipeline.saes.encoding.normalization import normalize
from schemas.errors import InputError
from tests.saes.golden.check import DATA, assert_equals_golden, copy_of

FILES = {
    "topk": "resid_post_mlp_v5_32k/autoencoders/7.pt",
    "relu": "mlp_post_act/autoencoders/0.pt",
}


def golden(case: str) -> Path:
    return DATA / f"openai-{case}"


def copied(tmp_path: Path, case: str = "topk") -> Path:
    return copy_of(f"openai-{case}", tmp_path) / FILES[case]


def edit(file: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    content = torch.load(file) | {name.replace("__", "."): value for name, value in changes.items()}
    torch.save({name: value for name, value in content.items() if name not in drop}, file)
    return file


@pytest.mark.parametrize("case", FILES)
def test_features_and_reconstruction_equal_openais(case: str) -> None:
    metadata = assert_equals_golden(golden(case), str(golden(case) / FILES[case])).metadata
    assert (metadata.format, metadata.d_model, metadata.d_sae) == ("openai", 16, 64)
    assert metadata.apply_b_dec_to_input


@pytest.mark.parametrize("case", FILES)
def test_a_folder_with_just_the_file_will_do(tmp_path: Path, case: str) -> None:
    assert_equals_golden(golden(case), str(copied(tmp_path, case).parent))


def test_an_sae_with_topk_layer_norms_its_input_and_one_with_relu_does_not() -> None:
    topk, relu = (read_metadata(str(golden(case) / FILES[case])) for case in ("topk", "relu"))
    assert (topk.architecture, topk.k, topk.normalize_activations) == ("topk", 8, "layer_norm")
    assert (relu.architecture, relu.k, relu.normalize_activations) == ("standard", None, "none")
    assert "it is, as in OpenAI's loader" in topk.notes[0]
    assert "it is not, as in OpenAI's loader" in relu.notes[0]


def test_the_layer_norm_divides_by_the_unbiased_deviation_plus_a_little() -> None:
    x = 3 * torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) + 1
    centred = x - x.mean(dim=1, keepdim=True)
    expected = centred / ((centred**2).sum(dim=1, keepdim=True) / 15).sqrt().add(1e-5)
    torch.testing.assert_close(normalize(x, "layer_norm"), expected)


def test_encode_and_decode_keep_no_state_between_calls() -> None:
    encoder = load_sae(str(golden("topk") / FILES["topk"]))
    with np.load(golden("topk") / "expected.npz") as expected:
        x, reconstruction = torch.from_numpy(expected["x"]), expected["reconstruction"]
    features = encoder.encode(x)
    encoder.decode(encoder.encode(100 * x - 7), like=100 * x - 7)
    np.testing.assert_allclose(encoder.decode(features, like=x), reconstruction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("resid_post_mlp_v5_32k/autoencoders/7.pt", "blocks.7.hook_resid_post"),
        ("resid_delta_attn_v5_128k/autoencoders/11.pt", "blocks.11.hook_attn_out"),
        ("resid_post_attn_v5_32k/autoencoders/1.pt", "blocks.1.hook_resid_mid"),
        ("resid_delta_mlp_v4/autoencoders/1.pt", "blocks.1.hook_mlp_out"),
        ("mlp_post_act/autoencoders/0.pt", "blocks.0.mlp.hook_post"),
        ("somewhere/7.pt", None),
        ("resid_post_mlp_v5_32k/7.pt", None),
    ],
)
def test_the_published_path_tells_the_hook(tmp_path: Path, place: str, hook: str | None) -> None:
    target = tmp_path / "storage" / place
    target.parent.mkdir(parents=True)
    copied(tmp_path).rename(target)
    metadata = read_metadata(str(target))
    assert (metadata.hook_name, metadata.model_name) == (hook, None if hook is None else "gpt2")


def test_a_file_that_names_no_activation_is_relu_as_for_its_loader(tmp_path: Path) -> None:
    file = edit(copied(tmp_path, "relu"), drop=("activation", "activation_state_dict"))
    assert_equals_golden(golden("relu"), str(file))


def test_copies_of_k_and_missing_statistics_change_nothing(tmp_path: Path) -> None:
    extra = {"activation__k": 8, "activation__postact_fn": "ReLU"}
    gone = ("stats_last_nonzero", "latents_mean_square")
    assert_equals_golden(golden("topk"), str(edit(copied(tmp_path), gone, **extra)))


def test_the_digest_follows_k(tmp_path: Path) -> None:
    file = copied(tmp_path)
    digest = sae_digest(str(file))
    assert sae_digest(str(edit(file, activation_state_dict={"k": 7, "postact_fn": "ReLU"}))) != digest


class Evil:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def spoil(drop: tuple[str, ...] = (), **changes: Any) -> Callable[[Path], object]:
    return lambda file: edit(file, drop, **changes)


def after(**entries: Any) -> Callable[[Path], object]:
    return lambda file: edit(file, activation_state_dict=OrderedDict(entries))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: file.unlink(), "does not exist"),
    "truncated": (truncate, "is damaged"),
    "empty": (lambda file: file.write_bytes(b""), "is damaged"),
    "activation unknown": (spoil(activation="GELU"), "activation 'GELU'"),
    "identity after topk": (
        after(k=8, postact_fn="Identity"),
        "then 'Identity'; known: ReLU, TopK then ReLU",
    ),
    "k missing": (after(postact_fn="ReLU"), "k None; it must be a whole number"),
    "k zero": (after(k=0, postact_fn="ReLU"), "k 0; it must be a whole number"),
    "k text": (after(k="8", postact_fn="ReLU"), "k '8'; it must be a whole number"),
    "k too large": (after(k=65, postact_fn="ReLU"), "k 65, but 64 features"),
    "no decoder": (spoil(("decoder.weight",)), "holds .*; a topk SAE of format openai"),
    "tied": (
        spoil(("decoder.weight",), decoder__linear__weight=torch.ones(64, 16)),
        r"holds .*decoder\.linear",
    ),
    "a tensor too many": (spoil(extra=torch.ones(1)), "holds .*extra"),
    "encoder turned": (
        spoil(encoder__weight=torch.ones(16, 64)),
        r"encoder\.weight .*\[16, 64\].*\[64, 16\]",
    ),
    "pre_bias a matrix": (spoil(pre_bias=torch.ones(4, 4)), "pre_bias .*it must be a vector"),
    "latent_bias short": (spoil(latent_bias=torch.ones(63)), r"\[64, 16\].*\[63, 16\]"),
    "NaN": (spoil(pre_bias=torch.full((16,), torch.nan)), "b_dec of SAE .* has NaN"),
    "a module": (spoil(activation=torch.nn.ReLU()), "would import torch.nn.modules.activation.ReLU"),
    "code": (lambda file: edit(file, evil=Evil(file.parent / "mark")), "would import "),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_file_is_reported_in_one_sentence(tmp_path: Path, kind: str) -> None:
    damage, message = SPOILED[kind]
    file = copied(tmp_path)
    damage(file)
    with pytest.raises(InputError, match=message) as error:
        load_sae(str(file))
    assert "\n" not in str(error.value)
    assert not (file.parent / "mark").exists()
