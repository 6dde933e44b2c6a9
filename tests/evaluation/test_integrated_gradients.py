"""Attributions equal a dense computation by hand, and add up to the gap; ablation is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.evaluation.integrated_gradients import (
    Latents,
    Opened,
    ablated_gaps,
    attribute,
    gaps,
    prompts_of,
)
from pipeline.models import load_model
from pipeline.plans.reopen import Place
from pipeline.saes import load_sae
from schemas.run.file import Model
from schemas.values import TokenShard
from tests.kit import dense_activations, tiny_lm, write_sae

LENGTHS = np.array([7, 4, 9])


def likely_answers() -> np.ndarray:
    """The two likeliest tokens after the first two contexts; the third has one answer twice."""
    tokens, module = shard_of("none").token_ids.astype(np.int64), tiny_lm().eval()
    pieces = np.split(tokens, np.cumsum(LENGTHS))[:2]
    with torch.no_grad():
        logits = [module(torch.from_numpy(ids)[None])[0, -1] for ids in pieces]
    return np.array([*(logit.topk(2).indices.tolist() for logit in logits), [7, 7]])


def shard_of(stored: str) -> TokenShard:
    """Three contexts of random tokens; stored are all rows but each first, or each last."""
    rng, ptr = np.random.default_rng(0), np.append(0, np.cumsum(LENGTHS))
    kept = np.ones(ptr[-1], np.bool_)
    kept[ptr[:-1]] = False
    averaged = kept.copy() if stored == "mean" else None
    if stored != "none":
        kept[:] = False
        kept[ptr[1:] - 1] = True
    return TokenShard(
        name="made",
        row_start=0,
        context_start=0,
        token_ids=rng.integers(3, 60, ptr[-1]).astype(np.int32),
        context_ptr=ptr,
        counted=kept,
        stored=kept,
        document=np.repeat(np.arange(3), LENGTHS).astype(np.uint64),
        averaged=averaged,
    )


ANSWERS = likely_answers()


CASES = [
    ("standard", "none"),
    ("standard", "mean"),
    ("gated", "last_token"),
    ("topk", "none"),
    ("layer_norm", "mean"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory):
    """A tiny model and an SAE after its second layer; the SAE's folder; which rows it reads."""
    kind, stored = request.param
    folder = tmp_path_factory.mktemp(kind)
    how = kind if kind == "layer_norm" else "none"
    write_sae(folder, "standard" if how == "layer_norm" else kind, normalize_activations=how)
    model = load_model(Model(loader="torch_module", path="tests.kit:tiny_lm"), ["layers.1"], "cpu", 1)
    return Opened(model, load_sae(folder), Place("layers.1", "layers.1"), 36), folder, stored


def set_up(opened, stored):
    tokens = shard_of(stored)
    counted = np.ones(len(tokens.token_ids), np.bool_)
    prompts, read = prompts_of(tokens, np.arange(3), ANSWERS, counted)
    x = opened.model.forward(prompts.batch)["layers.1"]
    return tokens, prompts, x, Latents(opened, prompts, read.vectors(x))


def begun(opened, prompts):
    """The same prompts, so that passes begin at the SAE's place."""
    result = opened.model.begin(prompts.batch, prompts.ends, prompts.first)
    assert result.calls is not None
    return replace(prompts, begun=result)


def by_hand(opened, folder, tokens, stored, context, nodes=150):
    """ig, ig2 [F] and the gap with each feature at 0 [F], of one prompt, by the module itself in float64."""
    module, w = (
        tiny_lm().double().eval(),
        {k: torch.tensor(v).double() for k, v in load_sae(folder).weights().items()},
    )
    first, last = tokens.context_ptr[context : context + 2]
    with torch.no_grad():
        ids = torch.from_numpy(tokens.token_ids[first:last].astype(np.int64))
        x = module.layers[1](module.layers[0](module.embed(ids)[None]))[0]
    rows = [len(ids) - 1] if stored == "last_token" else list(range(1, len(ids)))
    read = x[rows].mean(0, keepdim=True) if stored == "mean" else x[rows]
    normal = "layer_norm" in folder.name
    std = read.std(1, keepdim=True) if normal else torch.ones_like(read[:, :1])
    seen = (read - read.mean(1, keepdim=True)) / (std + 1e-5) if normal else read
    f = torch.tensor(dense_activations(folder, seen.float().numpy())).double()

    def gap(latents):
        """Of latents [n, V, F]: [n]."""
        y = x.repeat(len(latents), 1, 1)
        y[:, rows] = x[rows] + std * ((latents - f) @ w["W_dec"])
        chances = module.head(module.layers[2](y))[:, -1].softmax(1)
        return chances[:, ANSWERS[context, 0]] - chances[:, ANSWERS[context, 1]]

    latents = (torch.arange(nodes)[:, None, None] + 0.5) / nodes * f
    latents.requires_grad_(True)
    values = gap(latents)  # by the midpoint rule, another than that of the job
    (slopes,) = torch.autograd.grad(values.sum(), latents)
    ig = (f * slopes).mean(0).sum(0)
    ig2 = (2 * values.detach()[:, None, None] * f * slopes).mean(0).sum(0)
    with torch.no_grad():
        without = gap(f * (1 - torch.eye(f.shape[1]))[:, None])
        return ig.numpy(), ig2.numpy(), without.numpy(), float(gap(f[None])), float(gap(0 * f[None]))


def test_attributions_are_those_of_a_dense_computation_by_hand(case):
    opened, folder, stored = case
    tokens, prompts, _, latents = set_up(opened, stored)
    result = attribute(opened, prompts, latents, 32)
    for context in range(3):
        ig, ig2, _, gap, baseline = by_hand(opened, folder, tokens, stored, context)
        mine = result.context == context
        sums = [np.bincount(result.feature[mine], values[mine], 64) for values in (result.ig, result.ig2)]
        np.testing.assert_allclose(sums[0], ig, rtol=2e-3, atol=2e-6)
        np.testing.assert_allclose(sums[1], ig2, rtol=2e-3, atol=2e-6)
        assert (result.gap[context], result.baseline[context]) == pytest.approx((gap, baseline), abs=1e-5)
    assert np.abs(result.ig).sum() > 1e-3
    assert not result.ig[result.context == 2].any()  # both answers begin with the same token


def test_attributions_add_up_to_the_gap_minus_that_without_latents(case):
    opened, _, stored = case
    _, prompts, _, latents = set_up(opened, stored)
    result = attribute(opened, prompts, latents, 32)
    sums = [np.bincount(result.context, values, 3) for values in (result.ig, result.ig2)]
    np.testing.assert_allclose(sums[0], result.gap - result.baseline, atol=2e-6)
    np.testing.assert_allclose(sums[1], result.gap**2 - result.baseline**2, atol=2e-6)
    assert result.complete(0.01).all()
    np.testing.assert_allclose(result.missing, sums[0] - result.gap + result.baseline, atol=1e-12)
    np.testing.assert_array_equal(gaps(opened, prompts).numpy(), result.gap.astype(np.float32))


def test_too_few_nodes_are_noticed(case):
    opened, _, stored = case
    _, prompts, _, latents = set_up(opened, stored)
    assert not attribute(opened, prompts, latents, 1).complete(1e-4).all()


def test_ablation_sets_one_latent_to_0_and_leaves_the_rest(case):
    opened, folder, stored = case
    tokens, prompts, _, latents = set_up(opened, stored)
    context = prompts.vector_context[latents.vector]
    pairs = np.unique(np.stack([context, latents.features.indices], axis=1), axis=0)[::2]
    result = ablated_gaps(opened, prompts, latents, pairs)
    expected = [by_hand(opened, folder, tokens, stored, c, nodes=1)[2] for c in range(3)]
    np.testing.assert_allclose(result, [expected[c][f] for c, f in pairs], atol=1e-5)


def test_passes_that_begin_at_the_hook_give_the_same_and_run_no_layer_below(case, monkeypatch):
    opened, _, stored = case
    _, prompts, _, latents = set_up(opened, stored)
    pairs = np.array([[2, 5], [0, 3], [0, 9]])
    expected = attribute(opened, prompts, latents, 8), ablated_gaps(opened, prompts, latents, pairs)
    calls, own = [], torch.nn.Linear.forward
    short = begun(opened, prompts)
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda self, x: calls.append(x[..., 0].numel()) or own(self, x)
    )
    result = attribute(opened, short, latents, 8), ablated_gaps(opened, short, latents, pairs)
    for name, values in expected[0]._asdict().items():
        np.testing.assert_allclose(getattr(result[0], name), values, rtol=1e-3, atol=5e-6)
    np.testing.assert_allclose(result[1], expected[1], atol=5e-6)
    assert sum(calls) < 2 * (10 * 3 + 3) * 9  # at most the third block's rows, and the head's


def test_what_is_attributed_does_not_depend_on_the_batch(case):
    opened, _, stored = case
    tokens, prompts, _, latents = set_up(opened, stored)
    together = attribute(opened, prompts, latents, 16)
    alone, read = prompts_of(tokens, np.array([1]), ANSWERS[[1]], np.ones(20, np.bool_))
    x = read.vectors(opened.model.forward(alone.batch)["layers.1"])
    one = attribute(opened, alone, Latents(opened, alone, x), 16)
    np.testing.assert_allclose(one.ig, together.ig[together.context == 1], atol=1e-6)
    few = attribute(opened._replace(rows=1), prompts, latents, 16)
    np.testing.assert_allclose(few.ig, together.ig, atol=1e-6)
