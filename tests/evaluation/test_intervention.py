"""What stands at a hook when features change equals a dense computation by hand, for every kind of SAE."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from pipeline.evaluation.intervention import Intervention
from pipeline.evaluation.patching import patch
from pipeline.evaluation.steering import Change
from pipeline.models import load_model
from pipeline.plans.reopen import Place
from pipeline.saes import load_sae
from schemas.errors import InputError
from schemas.run.file import Model
from schemas.values import TokenBatch
from tests.kit import D_MODEL, dense_activations, tiny_lm, write_sae

F = 64
KINDS = ("standard", "jumprelu", "gated", "topk", "abstopk", "layer_norm", "constant_norm_rescale")


def x_of(rows=40, seed=1):
    return torch.randn(rows, D_MODEL, generator=torch.Generator().manual_seed(seed)) * 1.5


@pytest.fixture(scope="module", params=KINDS)
def sae(request, tmp_path_factory):
    """A folder and what it normalises by."""
    kind = request.param
    how = kind if "norm" in kind else "none"
    folder = write_sae(
        tmp_path_factory.mktemp(kind), kind if how == "none" else "standard", normalize_activations=how
    )
    return folder, how


def by_hand(folder, how, x):
    """Activations [n, F], and what an activation times a row of W_dec is multiplied by, [n, 1]."""
    x = x.double().numpy()
    if how == "layer_norm":
        std = x.std(1, ddof=1, keepdims=True)
        return dense_activations(folder, ((x - x.mean(1, keepdims=True)) / (std + 1e-5)).astype("f4")), std
    if how == "constant_norm_rescale":
        norm = np.linalg.norm(x, axis=1, keepdims=True) / math.sqrt(D_MODEL)
        return dense_activations(folder, (x / norm).astype("f4")), norm
    return dense_activations(folder, x.astype("f4")), np.ones((len(x), 1))


def used(f):
    """Two features that fire in some rows, and one that fires in none."""
    often = np.argsort(-(f != 0).sum(0), kind="stable")
    return int(often[3]), int(often[8]), int(often[-1])


def test_each_operation_moves_the_target_by_the_difference_along_the_decoder(sae):
    folder, how = sae
    x, encoder = x_of(), load_sae(folder)
    f, scale = by_hand(folder, how, x)
    w = encoder.weights()["W_dec"].astype(np.float64)
    a, b, silent = used(f)
    for operation, value, new in (
        ("add", 2.5, f[:, a] + 2.5),
        ("set", -1.25, np.full(len(f), -1.25)),
        ("scale", 3.0, 3 * f[:, a]),
        ("ablate", 0.0, np.zeros(len(f))),
    ):
        changes = [Change(a, operation, value), Change(b, "ablate"), Change(silent, "add", 0.5)]
        expected = x.double().numpy() + scale * (
            (new - f[:, a])[:, None] * w[a] - f[:, [b]] * w[b] + (0.5 * w[silent])
        )
        moved = Intervention(encoder, changes).stand_in(x, x)
        np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-4, atol=1e-4)
        assert np.abs(expected - x.numpy()).max() > 0.1


def test_the_target_is_not_decoded_but_moved(sae):
    folder, how = sae
    x, encoder = x_of(), load_sae(folder)
    f, scale = by_hand(folder, how, x)
    every = [Change(int(feature), "ablate") for feature in np.flatnonzero(f.any(0))]
    w = encoder.weights()["W_dec"]
    moved = Intervention(encoder, every).stand_in(x, x)
    np.testing.assert_allclose(moved.numpy(), x.numpy() - scale * (f @ w), rtol=1e-3, atol=1e-4)


def test_rows_in_which_the_feature_is_silent_stay_to_the_last_bit(sae):
    folder, how = sae
    x, encoder = x_of(), load_sae(folder)
    f, _ = by_hand(folder, how, x)
    feature = int(np.argmax((f != 0).sum(0) * ((f == 0).sum(0) > 0)))
    moved = Intervention(encoder, [Change(feature, "ablate")]).stand_in(x, x)
    same = (moved == x).all(1).numpy()
    assert same.tolist() == (f[:, feature] == 0).tolist()
    assert 0 < same.sum() < len(x)


def test_changes_of_one_feature_are_made_one_after_another(tmp_path):
    encoder, x = load_sae(write_sae(tmp_path)), x_of()
    f = dense_activations(tmp_path, x.numpy())
    a = int(np.argmax((f != 0).sum(0)))
    changes = [Change(a, "add", 2.0), Change(a, "scale", 3.0), Change(a, "add", 1.0)]
    shift = Intervention(encoder, changes).shift(x).numpy()
    expected = (3 * (f[:, a] + 2) + 1 - f[:, a])[:, None] * encoder.weights()["W_dec"][a]
    np.testing.assert_allclose(shift, expected, rtol=1e-4, atol=1e-4)
    last = Intervention(encoder, [*changes, Change(a, "set", 4.0)]).shift(x)
    assert torch.equal(last, Intervention(encoder, {a: 4.0}).shift(x))


def test_what_is_only_added_needs_no_encoding(tmp_path, monkeypatch):
    encoder = load_sae(write_sae(tmp_path))
    monkeypatch.setattr(type(encoder), "encode", lambda *_: pytest.fail("encoded"))
    shift = Intervention(encoder, [Change(3, "add", 2.0), Change(3, "add", -0.5)]).shift(x_of(2))
    np.testing.assert_allclose(shift.numpy(), 1.5 * encoder.weights()["W_dec"][[3, 3]], rtol=1e-6)


def test_an_sae_of_one_head_moves_that_head_alone_by_its_own_norm(tmp_path):
    folder = write_sae(tmp_path, normalize_activations="layer_norm")
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"]["hook_head_index"] = 1
    (folder / "cfg.json").write_text(json.dumps(config))
    encoder, x = load_sae(folder), torch.randn(6, 3 * D_MODEL)
    assert encoder.metadata.hook_head_index == 1
    head = x[:, D_MODEL : 2 * D_MODEL]
    f, std = by_hand(folder, "layer_norm", head)
    a, w = int(np.argmax((f != 0).sum(0))), encoder.weights()["W_dec"]
    put = patch(
        encoder.metadata, Place("h", "h"), np.arange(6) != 2, Intervention(encoder, {a: 5.0}).stand_in
    )
    moved = put["h"](x)
    expected = x.clone()
    expected[:, D_MODEL : 2 * D_MODEL] += torch.from_numpy(std * (5 - f[:, [a]]) * w[a]).float()
    expected[2] = x[2]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


def test_a_transcoder_moves_its_target_by_what_fires_where_it_reads(tmp_path):
    how = {"hook_name": "embed", "apply_b_dec_to_input": False}
    folder, plain = (write_sae(tmp_path / name, "jumprelu", **how) for name in ("sae", "plain"))
    config = json.loads((folder / "cfg.json").read_text())
    config |= {"architecture": "jumprelu_transcoder", "d_out": D_MODEL}
    config["metadata"]["hook_name_out"] = "layers.1"
    (folder / "cfg.json").write_text(json.dumps(config))
    encoder = load_sae(folder)
    model = load_model(Model(loader="torch_module", path="tests.kit:tiny_lm"), ["embed"], "cpu", 1)
    ids = np.random.default_rng(0).integers(3, 500, (1, 9))
    batch, module = TokenBatch(ids, np.array([9])), tiny_lm().eval()
    read = module.embed.weight[torch.from_numpy(ids[0])].detach()
    f = dense_activations(plain, read.numpy())
    a = int(np.argmax((f != 0).sum(0)))
    assert f[:, a].any()
    w, intervention = encoder.weights()["W_dec"], Intervention(encoder, [Change(a, "scale", 4.0)])
    put = patch(encoder.metadata, Place("embed", "layers.1"), np.ones(9, bool), intervention.stand_in)
    with torch.no_grad():
        y = module.layers[1](module.layers[0](read[None]))
        y += torch.from_numpy(3 * f[:, [a]] * w[a])
        expected = module.head(module.layers[2](y))[0, -1]
    torch.testing.assert_close(model.logits_at(batch, np.array([8]), put)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({64: 1.0}, "feature 64 is not in the SAE: its features are 0 to 63"),
        ({-1: 1.0}, "feature -1 is not in the SAE"),
        ({1.5: 1.0}, "feature 1.5 is not in the SAE"),
        ({True: 1.0}, "feature True is not in the SAE"),
        ({1: math.nan}, "value nan of feature 1 is not a finite number"),
        ({1: math.inf}, "value inf of feature 1 is not a finite number"),
        ({1: 1e39}, r"value 1e\+39 of feature 1 is not a finite number"),
        ({1: "much"}, "value 'much' of feature 1"),
        ([Change(1, "scale", 1e30), Change(1, "scale", 1e30)], "too large together"),
        ([Change(1, "double", 2.0)], "operation 'double' is not known: give set, add, scale, ablate"),
        ({}, "no feature is changed"),
    ],
)
def test_changes_that_cannot_be_made_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        Intervention(load_sae(write_sae(tmp_path)), changes)
