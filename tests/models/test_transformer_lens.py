"""The TransformerLens loader gives what transformers computes, for real tokens only, and stops early."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models import max_context, model_digest
from schemas.errors import InputError
from schemas.run.file import Model
from schemas.values import TokenBatch
from tests.kit import D_MODEL, write_tiny_gpt2, write_tiny_llama
from tests.models.reference import SILENT, load, make_batch

WRITERS = {"gpt2": write_tiny_gpt2, "llama": write_tiny_llama}


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("model") / request.param)


def hugging_face(folder: Path, batch: TokenBatch) -> list[torch.Tensor]:
    """x before each block, and after all of them, of the real tokens; each context is run alone, unpadded."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    last: list[torch.Tensor] = []
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    blocks[-1].register_forward_hook(
        lambda _m, _i, out: last.append(out[0] if isinstance(out, tuple) else out)
    )
    states = []
    for row, length in zip(torch.from_numpy(batch.token_ids), batch.lengths, strict=True):
        with torch.no_grad():
            hidden = model(row[None, :length], output_hidden_states=True).hidden_states
        states.append([*(h[0] for h in hidden[:-1]), last.pop().view(-1, D_MODEL)])
    return [torch.cat(parts) for parts in zip(*states, strict=True)]


def test_hidden_states_equal_transformers_and_pads_are_dropped(folder: Path) -> None:
    hooks = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    result = load(folder, *hooks).forward(make_batch())
    expected = hugging_face(folder, make_batch())
    assert list(result) == hooks
    for hook, depth in zip(hooks, (0, 2, 3), strict=True):
        assert result[hook].shape == (20, D_MODEL)
        assert result[hook].dtype == torch.float32
        torch.testing.assert_close(result[hook], expected[depth], rtol=1e-4, atol=1e-5)


def test_an_unpadded_batch_gives_the_same_rows_as_a_padded_one(folder: Path) -> None:
    model = load(folder, "blocks.1.hook_resid_post")
    padded = model.forward(make_batch())["blocks.1.hook_resid_post"]
    alone = model.forward(TokenBatch(make_batch().token_ids[1:2, :7], np.array([7])))[
        "blocks.1.hook_resid_post"
    ]
    torch.testing.assert_close(padded[10:17], alone, rtol=1e-4, atol=1e-5)


def test_the_same_batch_gives_the_same_bits_again_and_in_another_model_object(folder: Path) -> None:
    hook = "blocks.2.hook_resid_post"
    first = load(folder, hook)
    expected = first.forward(make_batch())[hook]
    first.forward(make_batch(np.array([4, 4]), 4))
    assert torch.equal(first.forward(make_batch())[hook], expected)
    assert torch.equal(load(folder, hook).forward(make_batch())[hook], expected)


def test_heads_are_flattened_once(folder: Path) -> None:
    model = load(folder, "blocks.0.attn.hook_z")
    assert model.widths == {"blocks.0.attn.hook_z": D_MODEL}
    assert model.forward(make_batch())["blocks.0.attn.hook_z"].shape == (20, D_MODEL)


def test_nothing_after_the_last_hook_is_computed(folder: Path) -> None:
    model = load(folder, "blocks.0.hook_resid_post")
    seen: list[str] = []
    bridge = model._run.__closure__[0].cell_contents
    for name in ("blocks.0.hook_in", "blocks.1.hook_in"):
        bridge.hook_dict[name].add_hook(lambda value, hook, name=name: seen.append(name))
    model.forward(make_batch())
    assert seen == ["blocks.0.hook_in"]


def test_a_hook_name_that_does_not_exist_names_near_ones(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"no hook 'blocks\.1\.hook_resid_pst'; near: blocks\.1\.hook_resid_post"
    ):
        load(folder, "blocks.0.hook_resid_post", "blocks.1.hook_resid_pst")


def test_a_hook_that_never_fires_is_an_error_and_not_an_empty_result(folder: Path) -> None:
    silent = SILENT[folder.name]
    with pytest.raises(InputError, match=f"never reached hook {silent}"):
        load(folder, silent, "blocks.0.hook_resid_post")
    model = load(folder, "blocks.0.hook_resid_post")
    with pytest.raises(InputError, match=f"never reached hook {silent}"):
        model.forward(make_batch(), also=[silent])


def test_further_hooks_can_be_read_in_one_pass_and_only_in_that(folder: Path) -> None:
    requested, further = "blocks.1.hook_resid_post", ["blocks.0.mlp.hook_out", "blocks.2.attn.hook_z"]
    model = load(folder, requested)
    result = model.forward(make_batch(), also=[*further, requested])
    assert list(result) == [requested, *further]
    for hook in result:
        assert torch.equal(result[hook], load(folder, hook).forward(make_batch())[hook])
    assert list(model.forward(make_batch())) == [requested]
    with pytest.raises(InputError, match=r"no hook 'blocks\.9\.hook_resid_post'; near: blocks\."):
        model.forward(make_batch(), also=["blocks.9.hook_resid_post"])


def test_widths_may_differ_between_the_hooks_of_a_pass(folder: Path) -> None:
    model = load(folder, "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post")
    assert model.widths["blocks.1.mlp.hook_post"] > model.widths["blocks.1.hook_resid_post"] == D_MODEL
    assert {hook: x.shape[1] for hook, x in model.forward(make_batch()).items()} == model.widths


def test_a_hook_that_needs_a_setting_of_transformer_lens_gets_it_while_it_is_read(folder: Path) -> None:
    model = load(folder, "blocks.1.hook_mlp_in", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post")
    actual = model.forward(make_batch())
    assert torch.equal(actual["blocks.1.hook_mlp_in"], actual["blocks.1.hook_resid_mid"])
    assert not model._run.__closure__[0].cell_contents.cfg.use_hook_mlp_in
    result = model.forward(make_batch(), also=["blocks.1.attn.hook_result"])["blocks.1.attn.hook_result"]
    assert result.shape == (20, 2 * D_MODEL)


def test_a_setting_that_was_on_before_stays_on(folder: Path) -> None:
    hook = "blocks.1.hook_mlp_in"
    model = load(folder, "blocks.1.hook_resid_post")
    bridge = model._run.__closure__[0].cell_contents
    bridge.set_use_hook_mlp_in(True)
    model.forward(make_batch(), also=[hook])
    assert bridge.cfg.use_hook_mlp_in
    bridge.set_use_hook_mlp_in(False)
    model.forward(make_batch(), also=[hook, "blocks.0.hook_mlp_in"])
    assert not bridge.cfg.use_hook_mlp_in


def test_a_hook_without_one_vector_per_token_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"hook blocks\.0\.attn\.hook_pattern returns \[2, 2, 7, 7\]"):
        load(folder, "blocks.0.attn.hook_pattern")


def test_a_context_longer_than_the_model_takes_is_refused(folder: Path) -> None:
    model = load(folder, "blocks.0.hook_resid_post")
    assert model.max_context == max_context(Model(path=str(folder))) == 64
    with pytest.raises(
        InputError, match=r"65 tokens is longer than the model's 64: lower tokens\.context_size"
    ):
        model.forward(TokenBatch(np.zeros((1, 65), dtype=np.int64), np.array([65])))


def test_lower_precision_is_computed_in_it_and_given_as_float32(folder: Path) -> None:
    hook = "blocks.1.hook_resid_post"
    exact = load(folder, hook).forward(make_batch())[hook]
    rounded = load(folder, hook, dtype="bfloat16").forward(make_batch())[hook]
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded.bfloat16().float(), rounded)
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_the_digest_follows_weights_and_configuration_but_not_the_tokenizer(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return model_digest(Model(path=str(folder)))

    first, same = write_tiny_gpt2(tmp_path / "first"), write_tiny_gpt2(tmp_path / "same")
    other = write_tiny_gpt2(tmp_path / "other", seed=1)
    (same / "tokenizer.json").write_text("{}")
    assert digest(first) == digest(same) != digest(other)
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-3}))
    assert digest(same) != digest(first)


def test_the_digest_covers_processing_only_where_there_is_some(tmp_path: Path) -> None:
    def digest(processing: dict[str, bool] | None) -> str:
        return model_digest(Model(path=str(tmp_path), processing=processing))

    write_tiny_gpt2(tmp_path)
    assert digest(None) == digest({}) == digest({"fold_ln": False})
    folded = digest({"fold_ln": True, "center_unembed": False})
    assert folded == digest({"fold_ln": True}) != digest(None)
    assert folded != digest({"center_unembed": True})


def test_folders_that_hold_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(tmp_path, "blocks.0.hook_resid_post")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"cannot be loaded by transformer_lens .*set model\.loader: torch_module$"
    ):
        load(tmp_path, "blocks.0.hook_resid_post")
    assert max_context(Model(path="org/name")) is None
