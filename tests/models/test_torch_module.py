"""Any torch module can be read: hooks by module path, early stop, and sentences for what is wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models import load_model, max_context, model_digest
from schemas.errors import InputError
from schemas.run.file import Model
from schemas.values import TokenBatch
from tests.kit import D_MODEL, tiny_lm

LENGTHS = np.array([6, 2])
TOKEN_IDS = np.array([[5, 9, 11, 3, 3, 8], [7, 4, 0, 0, 0, 0]])


class InPlace(nn.Module):
    """Works in place on what its first layer gave, returns tuples, and must not come to its last layer."""

    max_context = 8

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pair, self.end = nn.Embedding(16, 4), Pair(), Forbidden()

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(token_ids)
        x += 100
        return self.end(self.pair(x)[0])


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x * 2, None


class Forbidden(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the pass should have ended before")


def in_place() -> nn.Module:
    torch.manual_seed(0)
    return InPlace()


class Twice(nn.Module):
    """Calls a layer twice, the second time on what it gave the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.shared, self.last = nn.Embedding(16, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.shared(self.shared(self.embed(token_ids))))


def twice() -> nn.Module:
    torch.manual_seed(0)
    return Twice()


def no_module() -> int:
    return 3


def model(name: str = "tests.kit:tiny_lm") -> Model:
    return Model(loader="torch_module", path=name)


def here(name: str) -> Model:
    return model(f"tests.models.test_torch_module:{name}")


def test_x_equals_the_module_run_by_hand() -> None:
    loaded = load_model(model(), ["embed", "layers.1"], "cpu", 1)
    result = loaded.forward(TokenBatch(TOKEN_IDS, LENGTHS))
    by_hand = tiny_lm()
    with torch.no_grad():
        x = by_hand.embed(torch.from_numpy(TOKEN_IDS))
        deep = by_hand.layers[1](by_hand.layers[0](x))
    assert loaded.widths == {"embed": D_MODEL, "layers.1": D_MODEL}
    torch.testing.assert_close(result["embed"], torch.cat([x[0], x[1, :2]]))
    torch.testing.assert_close(result["layers.1"], torch.cat([deep[0], deep[1, :2]]))


def test_x_is_what_the_hook_saw_even_if_the_module_works_in_place_after_it() -> None:
    loaded = load_model(here("in_place"), ["embed", "pair"], "cpu", 1)
    result = loaded.forward(TokenBatch(TOKEN_IDS, LENGTHS))
    torch.testing.assert_close(result["pair"], (result["embed"] + 100) * 2)


def test_a_module_called_twice_gives_what_it_gave_first() -> None:
    result = load_model(here("twice"), ["shared", "last"], "cpu", 1).forward(TokenBatch(TOKEN_IDS, LENGTHS))
    module = twice()
    with torch.no_grad():
        first = module.shared(module.embed(torch.from_numpy(TOKEN_IDS)))
        last = module.last(module.shared(first))
    torch.testing.assert_close(result["shared"], torch.cat([first[0], first[1, :2]]))
    torch.testing.assert_close(result["last"], torch.cat([last[0], last[1, :2]]))


def test_hooks_are_gone_after_a_forward() -> None:
    loaded = load_model(model(), ["layers.0"], "cpu", 1)
    held = [cell.cell_contents for cell in loaded._run.__closure__]  # type: ignore[attr-defined]
    module = next(each for each in held if isinstance(each, nn.Module))
    loaded.forward(TokenBatch(TOKEN_IDS, LENGTHS))
    assert all(not part._forward_hooks for part in module.modules())
    assert module(torch.from_numpy(TOKEN_IDS)).shape == (2, 6, 512)


def test_a_module_may_tell_its_longest_context() -> None:
    loaded = load_model(here("in_place"), ["embed"], "cpu", 1)
    assert loaded.max_context == 8
    with pytest.raises(InputError, match="9 tokens is longer than the model's 8"):
        loaded.forward(TokenBatch(np.zeros((1, 9), dtype=np.int64), np.array([9])))
    assert load_model(model(), ["embed"], "cpu", 1).max_context is None
    assert max_context(here("in_place")) is None


@pytest.mark.parametrize(
    ("name", "hook", "message"),
    [
        ("tests.kit:tiny_lm", "layer.1", "no hook 'layer.1'; near: layers.1"),
        ("tests.kit:tiny_lm", "layers", "never reached hook layers"),
        ("tests.kit", "embed", "not package.module:function"),
        ("tests.kit:gone", "embed", "cannot be imported: .*gone"),
        ("tests.nowhere:gone", "embed", "cannot be imported: .*nowhere"),
        ("tests.models.test_torch_module:no_module", "embed", "builds a int"),
    ],
)
def test_what_is_wrong_is_said(name: str, hook: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(model(name), [hook], "cpu", 1)


def test_the_digest_is_of_the_source_file_and_needs_no_torch() -> None:
    assert model_digest(model()) == model_digest(model())
    assert model_digest(model()) != model_digest(model("tests.kit:other")) != model_digest(here("in_place"))
    with pytest.raises(InputError, match=r"no module 'tests\.nowhere'"):
        model_digest(model("tests.nowhere:gone"))
    code = (
        "import sys; from pipeline.models import model_digest; from schemas.run.file import Model\n"
        "model_digest(Model(loader='torch_module', path='tests.kit:tiny_lm'))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
