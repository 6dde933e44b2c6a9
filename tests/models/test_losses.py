"""Losses are transformers' own, also where x is replaced at hooks; what has no such losses is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models import load_model
from pipeline.models.hooks import losses
from schemas.errors import InputError
from schemas.run.file import Model
from schemas.values import TokenBatch
from tests.kit import D_MODEL, tiny_lm, write_tiny_bert, write_tiny_gpt2, write_tiny_llama
from tests.models.reference import SILENT, causal_model, each_alone, load, losses_of, make_batch

WRITERS = {"gpt2": write_tiny_gpt2, "llama": write_tiny_llama}
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}
HOOK = "blocks.1.hook_resid_post"
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("model") / request.param)


def nothing(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def bridge_of(model: Any) -> Any:
    return model._run.__closure__[0].cell_contents


def change(model: nn.Module, module: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A hand-written forward hook of torch."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (function(output[0]), *output[1:])
        return function(output)

    model.get_submodule(module).register_forward_hook(hook)


def test_losses_are_those_of_transformers_padded_and_unpadded(folder: Path) -> None:
    model, reference = load(folder, HOOK), causal_model(folder)
    padded = model.losses(make_batch())
    assert (padded.dtype, padded.shape) == (torch.float32, (9 + 6 + 2,))
    torch.testing.assert_close(padded, losses_of(reference, make_batch()), **CLOSE)
    full = make_batch(np.array([6, 6]), 6)
    ids = torch.from_numpy(full.token_ids)
    torch.testing.assert_close(model.losses(full).mean(), reference(ids, labels=ids).loss.detach(), **CLOSE)


def test_a_context_of_one_token_has_no_loss(folder: Path) -> None:
    model = load(folder, HOOK)
    assert model.losses(TokenBatch(np.array([[5]]), np.array([1]))).shape == (0,)
    others = TokenBatch(np.array([[5, 0, 0], [7, 8, 9]]), np.array([1, 3]))
    torch.testing.assert_close(model.losses(others), losses_of(causal_model(folder), others), **CLOSE)


def test_losses_do_not_depend_on_how_many_logits_are_made_float32_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder, HOOK)
    expected = model.losses(make_batch())
    monkeypatch.setattr(losses, "BLOCK", 5 * 64)
    assert torch.equal(model.losses(make_batch()), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "hook", [HOOK, "blocks.1.attn.hook_z", "blocks.0.mlp.hook_post", "blocks.2.hook_mlp_in"]
)
def test_putting_x_in_its_own_place_changes_nothing(folder: Path, hook: str, dtype: str) -> None:
    model = load(folder, HOOK, dtype=dtype)
    plain = model.losses(make_batch())
    assert torch.equal(model.losses(make_batch(), {hook: lambda x: x}), plain)
    assert not torch.equal(model.losses(make_batch(), {hook: nothing}), plain)
    assert torch.equal(model.losses(make_batch()), plain)


@pytest.mark.parametrize(("hook", "module"), [(HOOK, ".1"), ("blocks.1.hook_mlp_out", ".1.mlp")])
def test_what_is_put_goes_on_through_the_model(folder: Path, hook: str, module: str) -> None:
    model, reference = load(folder, HOOK), causal_model(folder)
    change(reference, BLOCKS[folder.name] + module, lambda x: torch.tanh(3 * x) + 1)
    result = model.losses(make_batch(), {hook: lambda x: torch.tanh(3 * x) + 1})
    torch.testing.assert_close(result, losses_of(reference, make_batch()), **CLOSE)


def test_all_hooks_named_are_replaced_in_the_same_pass(folder: Path) -> None:
    model, reference = load(folder, HOOK), causal_model(folder)
    for module in (".0", ".2.mlp"):
        change(reference, BLOCKS[folder.name] + module, nothing)
    result = model.losses(
        make_batch(), {"blocks.2.hook_mlp_out": nothing, "blocks.0.hook_resid_post": nothing}
    )
    torch.testing.assert_close(result, losses_of(reference, make_batch()), **CLOSE)


def test_heads_are_split_again_when_their_flattened_x_is_put_back(folder: Path) -> None:
    model, reference = load(folder, HOOK), causal_model(folder)
    name = {"gpt2": "transformer.h.1.attn.c_proj", "llama": "model.layers.1.self_attn.o_proj"}[folder.name]
    kept = torch.arange(D_MODEL) >= D_MODEL // 2  # the first of the two heads is ablated
    reference.get_submodule(name).register_forward_pre_hook(lambda _m, inputs: (inputs[0] * kept,))
    result = model.losses(make_batch(), {"blocks.1.attn.hook_z": lambda x: x * kept})
    torch.testing.assert_close(result, losses_of(reference, make_batch()), **CLOSE)


def test_the_function_sees_x_of_real_tokens_and_pads_keep_theirs(folder: Path) -> None:
    model = load(folder, HOOK)
    seen: list[torch.Tensor] = []
    behind: list[torch.Tensor] = []

    def number(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x + torch.arange(len(x))[:, None]

    point = bridge_of(model).hook_dict["blocks.2.hook_resid_pre"]
    point.add_hook(lambda value, hook: behind.append(value.flatten(0, 1)))
    model.losses(make_batch())
    model.losses(make_batch(), {HOOK: number})
    assert torch.equal(seen[0], model.forward(make_batch())[HOOK])
    real = torch.from_numpy(np.arange(10) < make_batch().lengths[:, None]).flatten()
    assert torch.equal(behind[1][real], behind[0][real] + torch.arange(20)[:, None])
    assert torch.equal(behind[1][~real], behind[0][~real])


def test_where_the_bridge_would_replace_less_than_requested_it_is_refused(folder: Path) -> None:
    model = load(folder, "blocks.1.hook_resid_mid")
    with pytest.raises(InputError, match=r"blocks\.1\.hook_resid_mid can be read but not replaced"):
        model.losses(make_batch(), {"blocks.1.hook_resid_mid": nothing})


def test_a_hook_to_replace_that_does_not_exist_or_fire_is_named(folder: Path) -> None:
    model = load(folder, HOOK)
    with pytest.raises(InputError, match=r"no hook 'blocks\.1\.hook_resid'; near: blocks\.1"):
        model.losses(make_batch(), {"blocks.1.hook_resid": nothing})
    with pytest.raises(InputError, match=f"never reached hook {SILENT[folder.name]}"):
        model.losses(make_batch(), {SILENT[folder.name]: nothing})
    assert all(not point.fwd_hooks for point in bridge_of(model).hook_dict.values())


@pytest.mark.parametrize("kind", ["encoder", "headless"])
def test_models_without_a_trained_head_have_no_losses(tmp_path: Path, kind: str) -> None:
    if kind == "encoder":
        write_tiny_bert(tmp_path)
    else:
        causal_model(write_tiny_llama(tmp_path)).model.save_pretrained(tmp_path)
    model = load(tmp_path, HOOK)
    with pytest.raises(
        InputError, match="returns no logits for the next token, which losses need: use a causal"
    ):
        model.losses(make_batch())


def test_a_folder_without_a_head_whose_head_is_the_embedding_has_losses(tmp_path: Path) -> None:
    reference = causal_model(write_tiny_gpt2(tmp_path))
    reference.transformer.save_pretrained(tmp_path)
    torch.testing.assert_close(
        load(tmp_path, HOOK).losses(make_batch()), losses_of(reference, make_batch()), **CLOSE
    )


class Answer(nn.Module):
    """tiny_lm, with its logits given in another shape or wrapping."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.lm = kind, tiny_lm(vocab=64)

    def forward(self, token_ids: torch.Tensor) -> Any:
        logits = self.lm(token_ids)
        return {
            "tuple": (logits, None),
            "narrow": logits[..., :5],
            "flat": logits.flatten(0, 1),
            "dictionary": {"logits": logits},
        }[self.kind]


def in_tuple() -> nn.Module:
    return Answer("tuple")


def narrow() -> nn.Module:
    return Answer("narrow")


def flat() -> nn.Module:
    return Answer("flat")


def dictionary() -> nn.Module:
    return Answer("dictionary")


def module(name: str, hook: str) -> Any:
    return load_model(Model(loader="torch_module", path=name), [hook], "cpu", 1)


def here(name: str) -> Any:
    return module(f"tests.models.test_losses:{name}", "lm.layers.1")


def test_a_torch_module_has_losses_and_its_x_can_be_replaced() -> None:
    model, by_hand = module("tests.kit:tiny_lm", "layers.0"), tiny_lm()

    def expected() -> torch.Tensor:
        cross_entropy = nn.CrossEntropyLoss(reduction="none")
        return each_alone(make_batch(), lambda ids: cross_entropy(by_hand(ids)[0, :-1], ids[0, 1:]))

    torch.testing.assert_close(model.losses(make_batch()), expected())
    change(by_hand, "layers.1", lambda x: x.flip(-1))
    torch.testing.assert_close(model.losses(make_batch(), {"layers.1": lambda x: x.flip(-1)}), expected())


class Pairs(nn.Module):
    """A language model whose block gives a named tuple, of which what follows uses both parts."""

    def __init__(self) -> None:
        super().__init__()
        self.lm, self.block = tiny_lm(vocab=64), Pair()

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        out = self.block(self.lm.embed(token_ids))
        return self.lm.head(out.values + out.indices)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.max(torch.stack([x, -x]), 0)


def pairs() -> nn.Module:
    return Pairs()


def test_of_a_tuple_the_first_is_replaced_and_the_rest_kept() -> None:
    model = module("tests.models.test_losses:pairs", "block")
    by_hand = pairs()
    with torch.no_grad():
        ids = torch.from_numpy(make_batch(np.array([10]), 10).token_ids)
        x = by_hand.lm.embed(ids)
        logits = by_hand.lm.head(2 * x.abs() + (x < 0))[0]
        expected = nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    result = model.losses(make_batch(np.array([10]), 10), {"block": lambda x: 2 * x})
    torch.testing.assert_close(result, expected)


def test_what_a_module_returns_must_be_logits() -> None:
    expected = module("tests.kit:tiny_lm", "layers.1").losses
    assert here("in_tuple").losses(make_batch()).shape == expected(make_batch()).shape
    with pytest.raises(InputError, match=r"returns \[3, 10, 5\] and not logits \[3, 10, more than 5\d\]"):
        here("narrow").losses(make_batch())
    with pytest.raises(InputError, match=r"returns \[30, 64\] and not logits"):
        here("flat").losses(make_batch())
    with pytest.raises(InputError, match="returns no logits for the next token"):
        here("dictionary").losses(make_batch())
