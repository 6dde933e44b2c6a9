"""dictionary_learning: each class as the package encodes it, what its files tell, every way to be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae, read_metadata, sae_digest
from schemas.errors import InputError
from tests.saes.golden.check import DATA, assert_equals_golden, copy_of

CLASSES = {
    "standard": ("AutoEncoder", "standard", True),
    "new": ("AutoEncoderNew", "standard", False),
    "gated": ("GatedAutoEncoder", "gated", True),
    "topk": ("AutoEncoderTopK", "topk", True),
    "batchtopk": ("BatchTopKSAE", "jumprelu", True),
    "matryoshka": ("MatryoshkaBatchTopKSAE", "jumprelu", True),
    "jumprelu": ("JumpReluAutoEncoder", "jumprelu", False),
}
"""Case -> their class, our architecture, whether the decoder's bias is taken from x."""

BIAS = {"standard": "bias", "new": "decoder.bias", "gated": "decoder_bias"}


def golden(case: str) -> Path:
    return DATA / f"dictionary_learning-{case}"


def copied(case: str, tmp_path: Path) -> Path:
    return copy_of(f"dictionary_learning-{case}", tmp_path)


def edit(folder: Path, part: str = "trainer", drop: tuple[str, ...] = (), **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    merged = config[part] | changes
    config[part] = {name: value for name, value in merged.items() if name not in drop}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def edit_weights(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    weights = torch.load(folder / "ae.pt") | changes
    torch.save({name: w for name, w in weights.items() if name not in drop}, folder / "ae.pt")
    return folder


def x_of(case: str) -> torch.Tensor:
    with np.load(golden(case) / "expected.npz") as expected:
        return torch.from_numpy(expected["x"])


def same_features(first: Path, second: Path, x: torch.Tensor) -> bool:
    a, b = load_sae(str(first)).encode(x), load_sae(str(second)).encode(x)
    return np.array_equal(a.indices, b.indices) and np.array_equal(a.data, b.data)


@pytest.mark.parametrize("case", CLASSES)
def test_features_and_reconstruction_equal_dictionary_learning(case: str) -> None:
    metadata = assert_equals_golden(golden(case)).metadata
    name, architecture, subtracts = CLASSES[case]
    assert metadata.extra["dict_class"] == name
    assert (metadata.architecture, metadata.apply_b_dec_to_input) == (architecture, subtracts)
    assert (metadata.k is None) == (case != "topk")


@pytest.mark.parametrize("case", CLASSES)
def test_the_weights_file_tells_the_sae_as_its_folder_does(case: str) -> None:
    assert_equals_golden(golden(case), str(golden(case) / "ae.pt"))


@pytest.mark.parametrize("case", CLASSES)
def test_the_bias_of_the_decoder_is_taken_from_x_by_some_classes_only(tmp_path: Path, case: str) -> None:
    name = BIAS.get(case, "b_dec")
    moved = edit_weights(copied(case, tmp_path), **{name: torch.full((16,), 0.7)})
    assert same_features(golden(case), moved, x_of(case)) == (not CLASSES[case][2])


def test_metadata_tells_what_the_files_say(tmp_path: Path) -> None:
    folder = copied("batchtopk", tmp_path)
    figures = {"l0": 31.5, "frac_variance_explained": 0.8, "frac_alive": 0.75, "cossim": 0.9, "l2_loss": 3}
    (folder / "eval_results.json").write_text(json.dumps(figures | {"frac_recovered": 0.97, "note": "x"}))
    metadata = read_metadata(str(folder))
    assert (metadata.format, metadata.d_model, metadata.d_sae) == ("dictionary_learning", 16, 64)
    assert (metadata.hook_name, metadata.model_name) == ("blocks.8.hook_mlp_out", "org/model")
    assert metadata.context_size == 1024
    assert dict(metadata.card) == {
        "l0": 31.5,
        "explained_variance": 0.8,
        "cosine": 0.9,
        "loss_recovered": 0.97,
        "dead": 0.25,
    }
    assert "learnt threshold" in metadata.notes[0]


def test_figures_that_are_no_finite_numbers_are_left_out(tmp_path: Path) -> None:
    folder = copied("topk", tmp_path)
    figures = '{"l0": NaN, "frac_variance_explained": 1e999, "frac_alive": true, "cossim": 1%s,' % ("0" * 400)
    (folder / "eval_results.json").write_text(figures + ' "frac_recovered": 0.97}')
    assert dict(read_metadata(str(folder)).card) == {"loss_recovered": 0.97}


@pytest.mark.parametrize(
    ("said", "hook"),
    [
        ({"submodule_name": "resid_post_layer_3"}, "blocks.3.hook_resid_post"),
        ({"submodule_name": "attention_out_layer_3"}, "blocks.3.hook_attn_out"),
        ({"submodule_name": "mlp_out_layer_11"}, "blocks.11.hook_mlp_out"),
        ({"submodule_name": "resid_pre_layer_0"}, "blocks.0.hook_resid_pre"),
        ({"submodule_name": "resid_post", "layer": 5}, "blocks.5.hook_resid_post"),
        ({"submodule_name": None, "layer": 5}, "blocks.5.hook_resid_post"),
        ({"submodule_name": None, "layer": None}, None),
        ({"submodule_name": "model.layers.5"}, None),
    ],
)
def test_the_submodule_tells_the_hook(tmp_path: Path, said: dict[str, Any], hook: str | None) -> None:
    metadata = read_metadata(str(edit(copied("topk", tmp_path), **said)))
    assert metadata.hook_name == hook
    assumed = said["submodule_name"] is None and hook is not None
    assert any("is assumed" in note for note in metadata.notes) == assumed


def test_an_sae_of_what_goes_into_a_module_says_so(tmp_path: Path) -> None:
    metadata = read_metadata(str(edit(copied("topk", tmp_path), "buffer", io="in")))
    assert metadata.hook_name is None
    assert not metadata.transcoder
    assert any("reads the in of its submodule" in note for note in metadata.notes)
    assert read_metadata(
        str(edit(tmp_path / "dictionary_learning-topk", "buffer", io="in_and_out"))
    ).transcoder


@pytest.mark.parametrize("case", ["standard", "new", "gated", "matryoshka", "jumprelu"])
def test_a_file_alone_is_reported_by_its_tensors(tmp_path: Path, case: str) -> None:
    folder = copied(case, tmp_path)
    (folder / "config.json").unlink()
    metadata = assert_equals_golden(folder, str(folder / "ae.pt")).metadata
    assert metadata.extra["dict_class"] == CLASSES[case][0]
    assert metadata.hook_name is None


@pytest.mark.parametrize("case", ["topk", "batchtopk"])
def test_a_topk_file_alone_could_be_two_classes(tmp_path: Path, case: str) -> None:
    folder = copied(case, tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"AutoEncoderTopK or BatchTopKSAE: put its config\.json next to it"):
        load_sae(str(folder))


def test_a_checkpoint_of_the_training_finds_the_configuration_above_it(tmp_path: Path) -> None:
    folder = copied("batchtopk", tmp_path)
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints" / "ae_500.pt")
    metadata = assert_equals_golden(folder, str(folder / "checkpoints" / "ae_500.pt")).metadata
    assert metadata.hook_name == "blocks.8.hook_mlp_out"


def test_batchtopk_rows_do_not_depend_on_the_rows_next_to_them() -> None:
    encoder, x = load_sae(str(golden("batchtopk"))), x_of("batchtopk")
    together = encoder.encode(x)
    for row in range(0, len(x), 7):
        alone = encoder.encode(x[row : row + 1])
        part = slice(together.indptr[row], together.indptr[row + 1])
        np.testing.assert_array_equal(alone.indices, together.indices[part])
        np.testing.assert_allclose(alone.data, together.data[part], rtol=1e-5)


@pytest.mark.parametrize("case", ["batchtopk", "matryoshka"])
def test_a_threshold_that_was_never_set_keeps_every_positive_activation(tmp_path: Path, case: str) -> None:
    folder = edit_weights(copied(case, tmp_path), threshold=torch.tensor(-1.0))
    zero = edit_weights(copied(case, tmp_path / "zero"), threshold=torch.tensor(0.0))
    assert same_features(folder, zero, x_of(case))
    assert any("never set" in note for note in read_metadata(str(folder)).notes)
    assert not any("never set" in note for note in read_metadata(str(zero)).notes)


def test_decoder_norms_are_folded_as_by_its_loader_and_unit_norms_left_alone(tmp_path: Path) -> None:
    encoder = load_sae(str(golden("standard")))
    stored = torch.load(golden("standard") / "ae.pt")
    norms = stored["decoder.weight"].norm(dim=0)
    np.testing.assert_allclose(np.linalg.norm(encoder.weights()["W_dec"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(encoder.weights()["b_enc"], stored["encoder.bias"] * norms, rtol=1e-6)
    unit = {"decoder.weight": stored["decoder.weight"] / norms}
    left = load_sae(str(edit_weights(copied("standard", tmp_path), **unit)))
    np.testing.assert_array_equal(left.weights()["b_enc"], stored["encoder.bias"])
    np.testing.assert_array_equal(left.weights()["W_enc"], stored["encoder.weight"].T)


def test_weights_in_bfloat16_and_strange_strides_are_read(tmp_path: Path) -> None:
    weights = torch.load(golden("new") / "ae.pt")
    folder = copied("new", tmp_path)
    turned = {"encoder.weight": weights["encoder.weight"].T.contiguous().T}
    assert not turned["encoder.weight"].is_contiguous()
    assert same_features(golden("new"), edit_weights(folder, **turned), x_of("new"))
    torch.save({name: w.bfloat16() for name, w in weights.items()}, folder / "ae.pt")
    rounded = load_sae(str(folder)).weights()["W_enc"]
    np.testing.assert_array_equal(rounded, weights["encoder.weight"].bfloat16().float().T)


def test_parameters_and_files_from_before_torch_1_6_are_read(tmp_path: Path) -> None:
    folder = copied("gated", tmp_path)
    weights = {name: torch.nn.Parameter(w) for name, w in torch.load(folder / "ae.pt").items()}
    torch.save(weights, folder / "ae.pt", _use_new_zipfile_serialization=False)
    assert_equals_golden(folder)


def test_names_and_shapes_are_read_without_torch() -> None:
    code = (
        "import sys; from pipeline.saes import read_metadata, sae_digest\n"
        f"read_metadata({str(golden('gated'))!r}); sae_digest({str(golden('gated'))!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_digest_follows_numbers_and_nothing_else(tmp_path: Path) -> None:
    folder = copied("topk", tmp_path)
    assert sae_digest(str(edit(folder, lr=3, layer=2, submodule_name=None))) == sae_digest(
        str(golden("topk"))
    )
    as_batch = sae_digest(str(edit(folder, dict_class="BatchTopKSAE")))
    assert as_batch != sae_digest(str(golden("topk")))


class Evil:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def spoil_config(
    part: str = "trainer", drop: tuple[str, ...] = (), **changes: Any
) -> Callable[[Path], object]:
    return lambda folder: edit(folder, part, drop, **changes)


def spoil_weights(drop: tuple[str, ...] = (), **changes: Any) -> Callable[[Path], object]:
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda folder: edit_weights(folder, drop, **changes)


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder: Path) -> None:
    whole = (folder / "ae.pt").read_bytes()
    (folder / "ae.pt").write_bytes(whole[: len(whole) // 2])


SPOILED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "config not JSON": ("topk", write("config.json", b"{"), "is not JSON"),
    "config a list": ("topk", write("config.json", b"[]"), "not a JSON object"),
    "trainer a text": (
        "topk",
        write("config.json", b'{"trainer": "x"}'),
        "trainer 'x'; it must be a JSON object",
    ),
    "figures not JSON": ("topk", write("eval_results.json", b"?"), r"eval_results\.json is not JSON"),
    "class unknown": (
        "topk",
        spoil_config(dict_class="CrossCoder"),
        "dict_class 'CrossCoder'; known: AutoEncoder",
    ),
    "class a list": ("topk", spoil_config(dict_class=["AutoEncoder"]), "dict_class .*known: AutoEncoder"),
    "class another": ("topk", spoil_config(dict_class="AutoEncoder"), "a standard SAE of format"),
    "k another": ("topk", spoil_config(k=9), "has k 8, but .* has 9"),
    "k zero": ("topk", spoil_config(k=0), "k 0; it must be a whole number from 1"),
    "k text": ("topk", spoil_config(k="8"), "k '8'; it must be a whole number"),
    "k too large": (
        "topk",
        lambda f: edit_weights(edit(f, k=65), k=torch.tensor(65)),
        "k 65, but there are 64",
    ),
    "k in the file zero": ("topk", spoil_weights(k=torch.tensor(0)), "k 0; it must be"),
    "k in the file NaN": ("topk", spoil_weights(k=torch.tensor(torch.nan)), "k nan; it must be"),
    "k a vector": ("topk", spoil_weights(k=torch.ones(3)), r"k in .*shape \[3\]; it must be one number"),
    "k nowhere": ("topk", lambda f: edit_weights(edit(f, drop=("k",)), ("k",)), "neither .* has the k"),
    "width another": ("topk", spoil_config(activation_dim=17), "activation_dim 17, ae.pt has 16"),
    "dict_size another": ("topk", spoil_config(dict_size=65), "dict_size 65, ae.pt has 64"),
    "layer text": (
        "topk",
        spoil_config(submodule_name=None, layer="8"),
        "layer '8'; it must be a whole number",
    ),
    "layer negative": ("topk", spoil_config(submodule_name=None, layer=-1), "layer -1; it must be"),
    "submodule a number": ("topk", spoil_config(submodule_name=4), "submodule_name 4; it must be text"),
    "context a text": ("topk", spoil_config("buffer", ctx_len="long"), "ctx_len 'long'"),
    "no decoder": ("topk", spoil_weights(("decoder.weight",)), "holds .*; a topk SAE"),
    "no encoder": ("topk", spoil_weights(("encoder.weight",)), "lacks 'encoder.weight'"),
    "no threshold": ("batchtopk", spoil_weights(("threshold",)), "lacks 'threshold'"),
    "a tensor too many": ("topk", spoil_weights(extra=torch.ones(1)), "holds .*extra"),
    "encoder a vector": ("topk", spoil_weights(encoder__weight=torch.ones(64)), "it must be a matrix"),
    "decoder turned": ("topk", spoil_weights(decoder__weight=torch.ones(64, 16)), r"\[64, 16\].*\[16, 64\]"),
    "bias of another length": ("topk", spoil_weights(encoder__bias=torch.ones(63)), r"\[63\].*\[64\]"),
    "NaN": ("topk", spoil_weights(b_dec=torch.full((16,), torch.nan)), "b_dec of SAE .* has NaN"),
    "threshold NaN": (
        "batchtopk",
        spoil_weights(threshold=torch.tensor(torch.nan)),
        "threshold of SAE .* has NaN",
    ),
    "threshold a vector": ("batchtopk", spoil_weights(threshold=torch.ones(64)), "it must be one number"),
    "threshold a number": ("jumprelu", spoil_weights(threshold=torch.tensor(1.0)), r"shape \[\].*\[64\]"),
    "groups do not sum": (
        "matryoshka",
        spoil_weights(group_sizes=torch.tensor([8, 8])),
        "do not sum to its 64",
    ),
    "decoder vector 0": ("standard", spoil_weights(decoder__weight=torch.zeros(16, 64)), "vector of norm 0"),
    "empty": ("topk", write("ae.pt", b""), "is damaged"),
    "noise": ("topk", write("ae.pt", bytes(range(256)) * 9), "is damaged"),
    "truncated": ("topk", truncate, "is damaged"),
    "a list": (
        "topk",
        lambda f: torch.save([torch.ones(1)], f / "ae.pt"),
        "it holds a list, not a dict of tensors",
    ),
    "a module": (
        "topk",
        lambda f: torch.save(torch.nn.Linear(2, 2), f / "ae.pt"),
        "would import torch.nn.modules",
    ),
    "code": ("topk", lambda f: edit_weights(f, evil=Evil(f / "mark")), "would import "),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_sae_is_reported_in_one_sentence(tmp_path: Path, kind: str) -> None:
    case, spoil, message = SPOILED[kind]
    folder = copied(case, tmp_path)
    spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        load_sae(str(folder))
    assert "\n" not in str(error.value)
    assert not (folder / "mark").exists()
