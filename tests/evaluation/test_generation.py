"""Continuations against transformers' own, and steered ones against a loop by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.evaluation.generation import Writing, chosen, gumbel_noise, steer, steer_text
from pipeline.evaluation.steering import Change, Sampling, require_text
from pipeline.evaluation.typed_text import Places, TextSession
from schemas.errors import InputError
from schemas.run.file import parse_run_file
from tests.fixtures.runs import extracted, run_content, run_file
from tests.fixtures.synthetic import content_without_model
from tests.kit import (
    dense_activations,
    tiny_lm,
    write_sae,
    write_tiny_bert,
    write_tiny_gpt2,
    write_tiny_llama,
)
from tests.models.reference import causal_model

PROMPT = "w3 w5 w9 w60"
IDS = [6, 8, 12, 63]
HOOK = "blocks.1.hook_resid_post"
TINY = Places(model="tests.kit:tiny_lm")
CONTEXT = 32


def store_of(folder, model, hook, architecture="standard", *, site=None, **tokens):
    """A store of a site `mid` at a hook of a model, with contexts of CONTEXT tokens."""
    sae = write_sae(folder / "sae", architecture, hook_name=hook, context_size=CONTEXT)
    tokens = {"context_size": CONTEXT, "shard_tokens": 300, **tokens}
    content = run_content(folder, tokens=tokens, sites=[{"name": "mid", "sae": str(sae), **(site or {})}])
    return extracted(parse_run_file(content | {"model": model}, "run.yaml"), tables=False)


CASES = [
    ("transformer_lens", write_tiny_gpt2),
    ("transformer_lens", write_tiny_llama),
    ("hooked_transformer", write_tiny_gpt2),
]


@pytest.fixture(scope="module", params=CASES, ids=["bridge-gpt2", "bridge-llama", "hooked-gpt2"])
def case(request, tmp_path_factory):
    """A session, and the folders of its model and SAE."""
    loader, write = request.param
    folder = tmp_path_factory.mktemp("lake")
    model = write(folder / "model")
    store = store_of(folder, {"loader": loader, "path": str(model)}, HOOK, "topk")
    return TextSession(store, "mid", Places()), model, folder / "sae"


def layer_of(reference, number):
    inner = getattr(reference, "transformer", None)
    return inner.h[number] if inner is not None else reference.model.layers[number]


def loop_by_hand(reference, sae, change, n):
    """Tokens by a loop over transformers' own model in which `change` of f [T, F] is put after layer 1."""
    w = torch.from_numpy(np.load(sae / "w.npy")) if (sae / "w.npy").exists() else decoder(sae)

    def hook(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        f = dense_activations(sae, x[0].float().numpy())
        new = change(f.copy())
        new[0] = f[0]  # BOS is no row of the site
        y = x + torch.from_numpy(new - f)[None] @ w
        return (y, *output[1:]) if isinstance(output, tuple) else y

    handle = layer_of(reference, 1).register_forward_hook(hook)
    ids = [0, *IDS]
    try:
        for _ in range(n):
            with torch.no_grad():
                ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
    finally:
        handle.remove()
    return ids[len(IDS) + 1 :]


def decoder(sae):
    from safetensors.numpy import load_file

    return torch.from_numpy(load_file(sae / "sae_weights.safetensors")["W_dec"])


def firing(session):
    """Two features that fire in the prompt and what follows, and one that does in neither."""
    written = steer(session, PROMPT, {0: 0.0}, Sampling(12)).plain_ids
    f = session.read(np.array([*IDS, *written], np.int32)).activations.toarray()
    often = np.argsort(-(f[: len(IDS)] != 0).sum(0), kind="stable")
    assert f[: len(IDS), often[0]].any()
    silent = np.flatnonzero(~f.any(0))
    return int(often[0]), int(often[1]), int(silent[0])


def test_a_plain_continuation_is_that_of_transformers_token_for_token(case):
    session, model, _ = case
    result = steer(session, PROMPT, {0: 0.0}, Sampling(20))
    expected = causal_model(model).generate(
        torch.tensor([[0, *IDS]]), max_new_tokens=20, do_sample=False, pad_token_id=2
    )[0, len(IDS) + 1 :]
    assert result.plain_ids.tolist() == expected.tolist()
    assert result.prompt_ids.tolist() == IDS
    words = "".join(session.tokenizer.pieces(result.plain_ids.tolist()))
    assert result.plain == words


def test_a_steered_continuation_is_that_of_a_loop_by_hand(case):
    session, model, sae = case
    a, b, _ = firing(session)
    reference = causal_model(model)

    def moved(f):
        f[:, a] = 2 * f[:, a] + 9
        f[:, b] = 0
        return f

    changes = [Change(a, "scale", 2.0), Change(a, "add", 9.0), Change(b, "ablate")]
    result = steer(session, PROMPT, changes, Sampling(20))
    assert result.steered_ids.tolist() == loop_by_hand(reference, sae, moved, 20)
    assert result.steered_ids.tolist() != result.plain_ids.tolist()
    assert result.plain_ids.tolist() == loop_by_hand(reference, sae, lambda f: f, 20)


def test_ablating_a_silent_feature_leaves_the_logits_to_the_last_bit(case):
    session, _, _ = case
    fires, _, silent = firing(session)
    context = [0, *IDS]
    writing = Writing(session, PROMPT, [Change(silent, "ablate")], Sampling(9))
    assert torch.equal(writing.logits(context, changed=True), writing.logits(context, changed=False))
    other = Writing(session, PROMPT, [Change(fires, "ablate")], Sampling(9))
    assert not torch.equal(other.logits(context, changed=True), other.logits(context, changed=False))


def test_one_seed_gives_one_result_and_both_texts_the_same_random_numbers(case):
    session, _, _ = case
    a, _, silent = firing(session)
    warm = Sampling(20, 1.5, seed=3)
    first, again = (steer(session, PROMPT, {a: 20.0}, warm) for _ in range(2))
    assert first.plain_ids.tolist() == again.plain_ids.tolist()
    assert first.steered_ids.tolist() == again.steered_ids.tolist() != first.plain_ids.tolist()
    nothing = steer(session, PROMPT, [Change(silent, "ablate")], warm)
    assert nothing.steered_ids.tolist() == nothing.plain_ids.tolist() == first.plain_ids.tolist()
    others = {tuple(steer(session, PROMPT, {a: 0.0}, Sampling(8, 1.5, seed=n)).plain_ids) for n in range(6)}
    assert len(others) > 3


def test_tokens_are_drawn_with_the_probabilities_of_softmax():
    logits, n = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5]), 4000
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        sampling = Sampling(n, temperature, top_k, seed=1)
        drawn = [chosen(logits, sampling, noise) for noise in gumbel_noise(sampling, 5)]
        kept = logits.clone() if top_k is None else torch.where(logits >= 0.5, logits, -math.inf)
        expected = n * (kept / temperature).softmax(0).numpy()
        counts = np.bincount(drawn, minlength=5)
        assert counts[expected == 0].sum() == 0
        some = expected > 0
        chi2 = ((counts[some] - expected[some]) ** 2 / expected[some]).sum()
        assert chi2 < 18.5  # 0.1 % of 4 degrees of freedom
    assert chosen(logits, Sampling(), torch.zeros(5, dtype=torch.float64)) == 3
    assert chosen(logits, Sampling(1, 9.0, 1), torch.tensor([9.0, 0, 0, 0, 0])) == 3


@pytest.mark.parametrize(
    ("site", "tokens"),
    [
        ({}, {"prepend_bos": False, "special_tokens": "zero_first"}),
        ({"positions": [2, 7]}, {}),
        ({"pooling": "last_token"}, {}),
        ({"pooling": "mean"}, {}),
        ({"pooling": "mean", "positions": [2, None]}, {}),
    ],
)
def test_the_rows_that_the_site_reads_are_changed_and_no_others(tmp_path, site, tokens):
    model = {"loader": "torch_module", "path": "tests.kit:tiny_lm"}
    store = store_of(tmp_path, model, "layers.1", site=site, **tokens)
    session, module = TextSession(store, "mid", TINY), tiny_lm().eval()
    bos = [0] if tokens.get("prepend_bos", True) else []
    w, context = decoder(tmp_path / "sae"), [*bos, *IDS, 2, 20, 21, 22]  # 2 is special: no row of the site
    writing = Writing(session, PROMPT, {5: 3.0}, Sampling(9))
    result = writing.logits(context, changed=True)
    inside = range(len(context))[slice(*site.get("positions", (None,)))]
    special = (0, 2) if bos else ()
    read = [at for at in inside if context[at] not in special and (bos or at > 0)]
    if site.get("pooling") == "last_token":
        read = read[-1:]
    with torch.no_grad():
        x = module.layers[1](module.layers[0](module.embed(torch.tensor([context]))))
        seen = x[0, read].mean(0, keepdim=True) if site.get("pooling") == "mean" else x[0, read]
        f = torch.from_numpy(dense_activations(tmp_path / "sae", seen.numpy()))
        x[0, read] += (3 - f[:, [5]]) * w[5]
        expected = module.head(module.layers[2](x))[0, -1]
    torch.testing.assert_close(result, expected[:64], rtol=1e-4, atol=1e-4)
    plain = writing.logits(context, changed=False)
    assert not torch.allclose(plain, result, atol=1e-3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return extracted(run_file(tmp_path_factory.mktemp("lake"), "abstopk"), tables=False)


def test_eos_ends_a_text_and_the_other_goes_on(store, monkeypatch):
    session = TextSession(store, "mid", TINY)
    scripted = {False: iter([5, 1]), True: iter([7, 8, 9, 10])}

    def logits(self, context, *, changed):
        return torch.nn.functional.one_hot(torch.tensor(next(scripted[changed])), 64).float()

    monkeypatch.setattr(Writing, "logits", logits)
    result = steer(session, "w1", {0: 1.0}, Sampling(4))
    assert (result.plain_ids.tolist(), result.steered_ids.tolist()) == ([5, 1], [7, 8, 9, 10])
    assert (result.plain, result.steered) == ("".join(session.tokenizer.pieces([5, 1])), " w4 w5 w6 w7")


def test_steps_may_be_left_at_any_time(store):
    writing = Writing(TextSession(store, "mid", TINY), "w1 w2", {0: 1.0}, Sampling(6, seed=1))
    steps = writing.steps()
    next(steps), next(steps)
    steps.close()
    assert [len(writing.plain), len(writing.steered)] == [2, 2]
    full = steer_text(store, "mid", "w1 w2", {0: 1.0}, n_tokens=6, places=TINY)
    assert full.plain_ids[:2].tolist() == writing.result().plain_ids.tolist()


@pytest.mark.parametrize(
    ("prompt", "changes", "options", "message"),
    [
        ("", {1: 1.0}, {}, "has no tokens"),
        (" \n ", {1: 1.0}, {}, "has no tokens"),
        ("w1 \udcff", {1: 1.0}, {}, "is not Unicode"),
        ("w1", {64: 1.0}, {}, "feature 64 is not in the SAE"),
        ("w1", {}, {}, "no feature is changed"),
        ("w1", {1: 1.0}, {"n_tokens": 0}, "n_tokens 0 is not possible"),
        ("w1", {1: 1.0}, {"n_tokens": 15}, "generate at most 14, or shorten the prompt"),
        ("w1 " * 15, {1: 1.0}, {"n_tokens": 1}, "after a prompt of 16 .* of 16 tokens: shorten the prompt"),
        ("w1 " * 400, {1: 1.0}, {"n_tokens": 1}, "after a prompt of 401 .* of 16 tokens: shorten the prompt"),
        ("w1", {1: 1.0}, {"temperature": -1.0}, "temperature -1.0 is not possible"),
        ("w1", {1: 1.0}, {"temperature": math.nan}, "temperature nan is not possible"),
        ("w1", {1: 1.0}, {"top_k": 0}, "top_k 0 is not possible"),
        ("w1", {1: 1.0}, {"seed": -1}, "seed -1 is not a whole number from 0"),
        ("w1", {1: 1.0}, {"seed": 2**63}, "is not a whole number from 0"),
        ("w1", {1: 3e38}, {"n_tokens": 2}, "not finite with these changes: give smaller values"),
    ],
)
def test_what_cannot_be_continued_is_refused(store, prompt, changes, options, message):
    with pytest.raises(InputError, match=message):
        steer_text(store, "mid", prompt, changes, places=TINY, **{"n_tokens": 3, **options})


def test_a_text_that_spells_special_tokens_is_text(store):
    result = steer_text(store, "mid", "w1 <eos> <script>", {1: 1.0}, n_tokens=2, places=TINY)
    assert result.prompt_ids.tolist()[0] == 4
    assert len(result.plain_ids) in (1, 2)


def test_a_model_that_predicts_nothing_is_named(tmp_path):
    model = write_tiny_bert(tmp_path / "model")
    store = store_of(tmp_path, {"loader": "transformer_lens", "path": str(model)}, HOOK)
    with pytest.raises(InputError, match="use a causal language model with its head"):
        steer_text(store, "mid", PROMPT, {1: 1.0}, n_tokens=2)


def test_a_hook_where_nothing_can_be_put_is_named(tmp_path):
    model = write_tiny_gpt2(tmp_path / "model")
    hook = "blocks.1.hook_resid_mid"
    store = store_of(tmp_path, {"loader": "transformer_lens", "path": str(model)}, hook)
    with pytest.raises(InputError, match="can be read but not replaced with this loader"):
        steer_text(store, "mid", PROMPT, {1: 1.0}, n_tokens=2)


def test_a_lake_without_a_model_says_so(tmp_path):
    content = content_without_model(tmp_path / "store")
    store = extracted(parse_run_file(content, "run.yaml"), tables=False)
    for refuse in (lambda: require_text(store, "made"), lambda: steer_text(store, "made", "1", {1: 1.0})):
        with pytest.raises(InputError, match="site 'made' is synthetic"):
            refuse()
