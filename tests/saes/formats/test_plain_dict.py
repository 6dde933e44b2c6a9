"""A bare dict of four tensors: the formula, JumpReLU, what a .json next to it says, every way to be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae, read_metadata, sae_digest
from schemas.errors import InputError
from tests.fixtures.store import to_dense
from tests.saes.golden.check import DATA, assert_equals_golden, copy_of

GOLDEN = DATA / "plain_dict-relu"


def copied(tmp_path: Path) -> Path:
    return copy_of("plain_dict-relu", tmp_path) / "sae"


def weights() -> dict[str, torch.Tensor]:
    stored: dict[str, torch.Tensor] = torch.load(GOLDEN / "sae" / "25.pt")
    return stored


def edit(folder: Path, **changes: Any) -> Path:
    torch.save(torch.load(folder / "25.pt") | changes, folder / "25.pt")
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "25_cfg.json").read_text()) | changes
    (folder / "25_cfg.json").write_text(json.dumps(config))
    return folder


def x() -> torch.Tensor:
    with np.load(GOLDEN / "expected.npz") as expected:
        return torch.from_numpy(expected["x"])


@pytest.mark.parametrize("spec", ["sae", "sae/25.pt"])
def test_a_file_or_the_folder_that_holds_it_equals_the_formula(spec: str) -> None:
    metadata = assert_equals_golden(GOLDEN, str(GOLDEN / spec)).metadata
    assert (metadata.format, metadata.architecture, metadata.k) == ("plain_dict", "standard", None)
    assert (metadata.d_model, metadata.d_sae, metadata.apply_b_dec_to_input) == (16, 64, True)
    assert (metadata.hook_name, metadata.context_size) == ("blocks.5.attn.hook_z", 128)
    assert any("hook_z is read flattened" in note for note in metadata.notes)


def test_without_a_configuration_it_is_read_all_the_same(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "25_cfg.json").unlink()
    metadata = assert_equals_golden(folder.parent, str(folder)).metadata
    assert (metadata.hook_name, metadata.context_size, metadata.model_name) == (None, None, None)
    (folder / "25.json").write_text('{"hook_point": "blocks.9.hook_resid_pre", "model_name": "gpt2"}')
    metadata = read_metadata(str(folder))
    assert (metadata.hook_name, metadata.model_name) == ("blocks.9.hook_resid_pre", "gpt2")


@pytest.mark.parametrize("nest", ["state_dict", "sae", "model"])
def test_a_dict_in_a_dict_is_found_and_what_lies_next_to_it_left_alone(tmp_path: Path, nest: str) -> None:
    folder = copied(tmp_path)
    others = {
        "step": 9,
        "optimizer": {"exp_avg": torch.ones(3), "groups": [{"lr": 1}]},
        "loss": torch.ones(()),
    }
    torch.save({nest: weights(), **others}, folder / "25.pt")
    assert_equals_golden(folder.parent, str(folder))


@pytest.mark.parametrize("subtracts", [True, False])
def test_with_a_threshold_it_is_jumprelu(tmp_path: Path, subtracts: bool) -> None:
    theta = torch.linspace(-0.5, 2, 64)
    folder = edit_config(edit(copied(tmp_path), threshold=theta), apply_b_dec_to_input=subtracts)
    w = weights()
    pre = (x() - subtracts * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    expected = torch.where((pre > theta) & (pre > 0), pre, torch.zeros(())).numpy()
    encoder = load_sae(str(folder))
    result = to_dense(encoder.encode(x()), 64)
    np.testing.assert_array_equal(result != 0, expected != 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert encoder.metadata.architecture == "jumprelu"
    assert encoder.metadata.apply_b_dec_to_input == subtracts


def test_an_activation_equal_to_its_threshold_is_off(tmp_path: Path) -> None:
    eye, zeros = torch.eye(3), torch.zeros(3)
    theta = torch.tensor([0.3, 1.5, 0.0])
    arrays = {"W_enc": eye, "W_dec": eye, "b_enc": zeros, "b_dec": zeros, "threshold": theta}
    torch.save(arrays, tmp_path / "a.pt")
    features = load_sae(str(tmp_path / "a.pt")).encode(
        torch.stack([theta, torch.nextafter(theta, zeros + 9)])
    )
    assert features.indptr.tolist() == [0, 0, 3]


def test_the_digest_follows_the_tensors_and_what_is_taken_from_x(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    digest = sae_digest(str(folder))
    assert sae_digest(str(edit_config(folder, act_name="blocks.1.hook_resid_pre"))) == digest
    assert sae_digest(str(edit_config(folder, apply_b_dec_to_input=False))) != digest
    assert (
        sae_digest(str(edit(edit_config(folder, apply_b_dec_to_input=True), b_dec=torch.ones(16)))) != digest
    )


class Evil:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def spoil(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder, **changes)


def spoil_config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit_config(folder, **changes)


def truncate(folder: Path) -> None:
    whole = (folder / "25.pt").read_bytes()
    (folder / "25.pt").write_bytes(whole[: len(whole) // 2])


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / "25.pt").unlink(), "is in no known format"),
    "an array missing": (
        lambda folder: torch.save({"W_enc": torch.ones(2, 2)}, folder / "25.pt"),
        "no known format",
    ),
    "truncated": (truncate, "is damaged"),
    "empty": (lambda folder: (folder / "25.pt").write_bytes(b""), "is damaged"),
    "W_enc turned": (spoil(W_enc=torch.ones(64, 16)), r"W_enc .*\[64, 16\].*\[16, 64\]"),
    "W_dec turned": (spoil(W_dec=torch.ones(16, 64)), r"W_dec .*\[16, 64\].*\[64, 16\]"),
    "b_enc a matrix": (spoil(b_enc=torch.ones(8, 8)), r"b_enc .*\[8, 8\]; it must be a vector"),
    "b_dec empty": (spoil(b_dec=torch.ones(0)), "b_dec .*it must be a vector"),
    "threshold a number": (spoil(threshold=torch.tensor(1.0)), r"threshold .*shape \[\]"),
    "threshold NaN": (spoil(threshold=torch.full((64,), torch.nan)), "threshold of SAE .* has NaN"),
    "a tensor too many": (spoil(extra=torch.ones(1)), "holds .*extra"),
    "NaN": (spoil(W_enc=torch.full((16, 64), torch.nan)), "W_enc of SAE .* has NaN"),
    "complex": (spoil(W_enc=torch.ones(16, 64, dtype=torch.complex64)), "ComplexFloatStorage"),
    "code": (lambda folder: edit(folder, evil=Evil(folder / "mark")), "would import "),
    "an object": (lambda folder: edit(folder, cfg=np.float64(3)), "would import numpy"),
    "configuration not JSON": (lambda folder: (folder / "25_cfg.json").write_text("{"), "is not JSON"),
    "act_size another": (spoil_config(act_size=17), "act_size 17, .* 16: they belong to two SAEs"),
    "dict_size text": (spoil_config(dict_size="64"), "dict_size '64'; it must be a whole number"),
    "act_name a number": (spoil_config(act_name=5), "act_name 5; it must be text"),
    "seq_len zero": (spoil_config(seq_len=0), "seq_len 0; it must be"),
    "apply_b_dec a text": (spoil_config(apply_b_dec_to_input="no"), "'no'; it must be true or false"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_file_is_reported_in_one_sentence(tmp_path: Path, kind: str) -> None:
    damage, message = SPOILED[kind]
    folder = copied(tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_sae(str(folder / "25.pt" if (folder / "25.pt").exists() else folder))
    assert "\n" not in str(error.value)
    assert not (folder / "mark").exists()


def test_a_stray_pt_file_next_to_other_weights_is_left_alone(tmp_path: Path) -> None:
    folder = copy_of("sparsify-topk", tmp_path) / "layers.12"
    (folder / "optimizer.pt").write_bytes(b"not even torch's")
    assert load_sae(str(folder)).metadata.format == "sparsify"


@pytest.mark.parametrize("other", ["optimizer.pt", "26.pt"])
def test_in_a_folder_with_two_torch_files_the_file_must_be_given(tmp_path: Path, other: str) -> None:
    folder = copied(tmp_path)
    (folder / other).write_bytes(b"not even torch's")
    with pytest.raises(InputError, match=r"or a folder that holds one \.pt file"):
        load_sae(str(folder))
    assert_equals_golden(folder.parent, str(folder / "25.pt"))


def test_a_stray_pt_file_does_not_hide_what_else_a_folder_is(tmp_path: Path) -> None:
    folder = copy_of("llama_scope-res", tmp_path)
    (folder / "expected.npz").unlink()
    (folder / "state.pt").write_bytes(b"not even torch's")
    assert read_metadata(str(folder)).format == "llama_scope"
