"""Passes that begin at a hook give the logits of the whole pass, for any hook, loader and contexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.models import load_model
from pipeline.models.hooks.replay import Recorder
from schemas.run.file import Model
from schemas.values import TokenBatch
from tests.kit import write_tiny_gpt2, write_tiny_llama
from tests.models.reference import TRANSFORMER_LENS_4, load, make_batch

HOOKS = [
    "blocks.1.hook_resid_post",
    "blocks.2.hook_resid_pre",
    "blocks.1.hook_mlp_out",
    "blocks.2.attn.hook_z",
]
ORDER = np.array([2, 0, 0, 1, 2])
ENDS = np.array([9, 16, 19])
FIRST = {"all": np.array([0, 0, 0]), "last": np.array([9, 6, 2]), "some": np.array([4, 7, 1])}


@pytest.fixture(scope="module", params=[write_tiny_gpt2, write_tiny_llama], ids=["gpt2", "llama"])
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("model"))


def repeated(batch):
    """Contexts in another order, some twice, and the last row of each."""
    again = TokenBatch(batch.token_ids[ORDER], batch.lengths[ORDER])
    return again, np.cumsum(again.lengths) - 1


def changed(x, batch=None, first=None):
    """What is put at a hook: another number for every row, from the first positions on, and column."""
    put = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    if batch is None:
        return put
    at = np.concatenate([np.arange(length) for length in batch.lengths])
    return torch.where(torch.from_numpy(at >= np.repeat(first, batch.lengths))[:, None], put, x)


def compare(model, hook, batch, first=FIRST["all"]):
    begun = model.begin(batch, ENDS, first)
    assert begun.calls, "passes do not begin at the hook"
    torch.testing.assert_close(begun.x[hook], model.forward(batch)[hook])
    torch.testing.assert_close(begun.logits, model.logits_at(batch, ENDS), rtol=1e-4, atol=1e-4)
    again, ends = repeated(batch)
    for replace in ({}, {hook: lambda x: changed(x, again, first[ORDER])}):
        whole = model.logits_at(again, ends, replace)
        short = model.logits_at(again, ends, replace, begun=begun.again(ORDER))
        torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-4)
    assert (whole - begun.logits[ORDER]).abs().max() > 0.01  # what was put there had an effect
    return begun


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("hook", HOOKS)
def test_the_logits_are_those_of_the_whole_model(folder, hook, first):
    model = load(folder, hook)
    before = dict(vars(torch.nn.modules.module)["_global_forward_hooks"])
    compare(model, hook, make_batch(), FIRST[first])
    assert vars(torch.nn.modules.module)["_global_forward_hooks"] == before
    assert not any("forward" in vars(module) for module in model_modules(model))


def model_modules(model):
    """Modules of which a call was kept."""
    return [call.module for call in model.begin(make_batch(), ENDS, FIRST["all"]).calls]


@pytest.mark.skipif(TRANSFORMER_LENS_4, reason="version 4 has no HookedTransformer")
def test_so_it_is_with_hooked_transformer(folder):
    compare(load(folder, HOOKS[0], loader="hooked_transformer"), HOOKS[0], make_batch())


def test_so_it_is_where_lengths_differ_not_or_there_is_one_context(folder):
    model = load(folder, HOOKS[0])
    compare(model, HOOKS[0], make_batch(np.array([10, 7, 3])))
    one = make_batch(np.array([8]), 8)
    begun = model.begin(one, np.array([7]), np.array([0]))
    twice = TokenBatch(one.token_ids[[0, 0]], one.lengths[[0, 0]])
    short = model.logits_at(
        twice, np.array([7, 15]), {HOOKS[0]: changed}, begun=begun.again(np.array([0, 0]))
    )
    whole = model.logits_at(twice, np.array([7, 15]), {HOOKS[0]: changed})
    torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_whole_model(folder):
    model, batch = load(folder, HOOKS[0]), make_batch()
    begun, (again, ends) = model.begin(batch, ENDS, FIRST["all"]), repeated(batch)
    result = []
    for way in (None, begun.again(ORDER)):
        shift = torch.zeros(int(again.lengths.sum()), 16, requires_grad=True)
        replace = {HOOKS[0]: lambda x, shift=shift: x + shift}
        logits = model.logits_at(again, ends, replace, gradients=True, begun=way)
        result.append(torch.autograd.grad(logits.square().sum(), shift)[0])
    torch.testing.assert_close(result[1], result[0], rtol=1e-3, atol=1e-4)
    assert result[0].abs().max() > 0.01


class Biased(torch.nn.Module):
    """A model whose bias by position [H, T, D] may be mistaken for values of H contexts; no causal one."""

    def __init__(self, heads):
        super().__init__()
        self.embed, self.bias = torch.nn.Embedding(64, 8), Bias(heads)
        self.last, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 64)

    def forward(self, token_ids):
        bias = self.bias(token_ids)
        return self.head(torch.tanh(self.last(self.embed(token_ids)) + bias.sum(0)))


class Bias(torch.nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(heads, 16, 8))

    def forward(self, token_ids):
        return self.weight[:, : token_ids.shape[1]]


def three():
    """As many heads as the batch has contexts."""
    torch.manual_seed(0)
    return Biased(3)


def two():
    torch.manual_seed(0)
    return Biased(2)


@pytest.mark.parametrize(("path", "shortened"), [("two", True), ("three", False)])
def test_a_shape_that_deceives_is_noticed_and_the_whole_model_run(path, shortened):
    model = load_model(
        Model(loader="torch_module", path=f"tests.models.test_replay:{path}"), ["last"], "cpu", 1
    )
    batch = make_batch()
    begun = model.begin(batch, ENDS, FIRST["all"])
    assert (begun.calls is not None) == shortened
    again, ends = repeated(batch)
    whole = model.logits_at(again, ends, {"last": changed})
    short = model.logits_at(again, ends, {"last": changed}, begun=begun.again(ORDER))
    torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-4)


def test_a_call_stands_for_those_within_it_if_it_can_be_kept():
    recorder, shape = Recorder(torch.Size([2, 3])), (2, 3, 4)
    outer, inner, odd = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()
    for module in (odd, outer, inner):
        recorder.begin(module, ())
    kept = torch.ones(shape)
    recorder.end(inner, (), kept)
    recorder.end(outer, (), (kept, None))
    recorder.end(odd, (), {"angles": torch.ones(7)})
    recorder.stop()
    recorder.end(inner, (), kept)
    kept.zero_()  # by a later module, in place
    assert [call.module for call in recorder.calls] == [outer, odd]
    assert recorder.calls[1].output is None
    assert recorder.calls[0].output[0].sum() == 24


class Both(torch.nn.Module):
    """Embedding, two linear layers between which each row sees the mean of all, head: it is not causal."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(64, 8)
        self.one, self.two, self.head = (torch.nn.Linear(8, n) for n in (8, 8, 64))

    def forward(self, token_ids):
        x = self.one(self.embed(token_ids))
        return self.head(torch.tanh(self.two(x + x.mean(1, keepdim=True))).cumsum(1))


def both():
    torch.manual_seed(0)
    return Both()


@pytest.mark.parametrize(("first", "shortened"), [("all", True), ("last", False)])
def test_a_model_that_is_not_causal_is_noticed(first, shortened):
    described = Model(loader="torch_module", path="tests.models.test_replay:both")
    begun = load_model(described, ["one"], "cpu", 1).begin(make_batch(), ENDS, FIRST[first])
    assert (begun.calls is not None) == shortened
