"""Each hook that a format's reader names gives the numbers of the Hugging Face module that it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.models.loaders.torch_module import attacher
from pipeline.plans import sae_defaults as trained_with
from pipeline.plans.reopen import Place
from pipeline.saes import SaeMetadata, load_sae
from pipeline.saes.formats import dictionary_learning, gemma_scope, gemma_scope_2, openai, saelens, sparsify
from pipeline.saes.module_points import HOOKS
from pipeline.saes.quality.reconstruction import Reconstruction, reconstruct
from schemas.run.file import Model, Site
from schemas.sentences import NOTE
from tests.kit import D_MODEL, write_tiny_gemma, write_tiny_gpt2, write_tiny_llama
from tests.models.reference import TRANSFORMER_LENS_4, causal_model, each_alone, load, make_batch

WRITERS: dict[str, Callable[[Path], Path]] = {
    "gemma3": write_tiny_gemma,
    "gemma2": partial(write_tiny_gemma, generation=2),
    "llama": write_tiny_llama,
    "gpt2": write_tiny_gpt2,
}
FF = "feedforward_layernorm"


def rms(x: torch.Tensor) -> torch.Tensor:
    """A norm without its gain."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def same(x: torch.Tensor) -> torch.Tensor:
    return x


CASES: list[tuple[str, str, str, str, Callable[[torch.Tensor], torch.Tensor]]] = [
    *(
        ("gemma3", f"blocks.1.{hook}", *f".{point or 'output'}".rsplit(".", 1), same)
        for point, hook in HOOKS.items()
    ),
    *(
        ("gemma3", f"blocks.1.{gemma_scope_2.HOOKS[kind][side]}", module, way, same)
        for kind, side, module, way in (
            ("resid_post", 0, "", "output"),
            ("attn_out", 0, ".self_attn.o_proj", "input"),
            ("mlp_out", 0, f".post_{FF}", "output"),
            ("transcoder", 0, f".pre_{FF}", "output"),
            ("transcoder", 1, f".post_{FF}", "output"),
        )
    ),
    *(
        ("gemma2", f"blocks.1.{gemma_scope.HOOKS[kind][side]}", module, way, change)
        for kind, side, module, way, change in (
            ("res", 0, "", "output", same),
            ("att", 0, ".self_attn.o_proj", "input", same),
            ("mlp", 0, f".post_{FF}", "output", same),
            ("transcoders", 0, f".pre_{FF}", "input", rms),
            ("transcoders", 1, f".post_{FF}", "output", same),
        )
    ),
    *(
        (
            model,
            f"blocks.1.{sparsify.READS_AND_WRITES[module][side]}",
            f".{module}" if module else "",
            way,
            same,
        )
        for model, modules in (("gemma2", (None, "mlp", "self_attn")), ("gpt2", (None, "mlp", "attn")))
        for module in modules
        for side, way in ((0, "input"), (1, "output"))
        if (module, way) != ("self_attn", "input")  # which is given by name: see its norm in the next case
    ),
    ("gemma2", f"blocks.1.{sparsify.READS_AND_WRITES['self_attn'][0]}", ".input_layernorm", "output", same),
    *(
        ("llama", f"blocks.1.{dictionary_learning.HOOKS[name]}", module, way, same)
        for name, module, way in (
            ("resid_pre", "", "input"),
            ("resid_mid", ".post_attention_layernorm", "input"),
            ("resid_post", "", "output"),
            ("mlp_out", ".mlp", "output"),
            ("attention_out", ".self_attn", "output"),
            ("attn_out", ".self_attn", "output"),
        )
    ),
    *(
        ("gpt2", f"blocks.1.{openai.LOCATIONS[name]}", module, way, same)
        for name, module, way in (
            ("mlp_post_act", ".mlp.c_proj", "input"),
            ("resid_delta_attn", ".attn", "output"),
            ("resid_post_attn", ".ln_2", "input"),
            ("resid_delta_mlp", ".mlp", "output"),
            ("resid_post_mlp", "", "output"),
        )
    ),
    # what the files of Llama Scope, of its transcoders and of mwhanna's say themselves
    ("llama", "blocks.1.ln2.hook_normalized", ".post_attention_layernorm", "input", rms),
    ("llama", "blocks.1.hook_mlp_out", ".mlp", "output", same),
    ("llama", "blocks.1.hook_attn_out", ".self_attn", "output", same),
    ("llama", "blocks.1.mlp.hook_in", ".mlp", "input", same),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


def at_module(folder: Path, module: str, way: str) -> torch.Tensor:
    """What goes into a module of block 1 of transformers' own model, or what it gives: [N, d]."""
    model, seen = causal_model(folder), list[torch.Tensor]()
    block = "transformer.h.1" if "gpt2" in folder.name else "model.layers.1"
    part = model.get_submodule(block + module)

    def take(_module: Any, inputs: Any, output: Any) -> None:
        value = inputs if way == "input" else output
        seen.append(value[0] if isinstance(value, tuple) else value)

    part.register_forward_hook(take)

    def run(ids: torch.Tensor) -> torch.Tensor:
        model(ids)
        return seen.pop()[0]

    return each_alone(make_batch(), run)


@pytest.mark.parametrize(("model", "hook", "module", "way", "change"), CASES)
def test_a_hook_is_the_place_that_its_format_means(
    folders: dict[str, Path],
    model: str,
    hook: str,
    module: str,
    way: str,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    result = load(folders[model], hook).forward(make_batch())[hook]
    torch.testing.assert_close(result, change(at_module(folders[model], module, way)), rtol=1e-4, atol=1e-4)


def write_exact_transcoder(folder: Path, x: torch.Tensor, target: torch.Tensor) -> Path:
    """A Gemma Scope 2 transcoder whose feature i is 1 on row i of x, 0 on the others, and decodes to row i of
    the target; as its publishers' files do, it names modules of Hugging Face's.
    """
    folder.mkdir(parents=True)
    tensors = {
        "w_enc": torch.linalg.pinv(x.double()).float(),
        "b_enc": torch.zeros(len(x)),
        "w_dec": target.clone(),
        "b_dec": torch.zeros(target.shape[1]),
        "threshold": torch.full((len(x),), 0.5),
    }
    save_file(tensors, folder / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "hf_hook_point_in": f"model.layers.1.pre_{FF}.output",
        "hf_hook_point_out": f"model.layers.1.post_{FF}.output",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


BATCH = make_batch(np.array([D_MODEL - 4]), D_MODEL - 4)


def in_hugging_face(folder: Path) -> Any:
    """The same model as a module that torch_module builds: hooks are paths of modules."""
    from pipeline.models.hooks.hooked import HookedModel

    module, paths = causal_model(folder), [f"model.layers.1.{side}_{FF}" for side in ("pre", "post")]
    return HookedModel(
        paths,
        attacher(module),
        lambda ids, mask: module(ids, attention_mask=mask).logits,
        torch.device("cpu"),
        None,
    )


@pytest.mark.parametrize("loader", ["transformer_lens", "torch_module"])
def test_a_gemma_scope_2_transcoder_explains_all_where_its_file_says_that_it_reads(
    folders: dict[str, Path], tmp_path: Path, loader: str
) -> None:
    by_paths = in_hugging_face(folders["gemma3"])
    x, target = by_paths.forward(BATCH).values()
    sae = write_exact_transcoder(tmp_path / "transcoder" / "layer_1_width_16k", x, target)
    encoder = load_sae(str(sae))
    about, model = encoder.metadata, Model(path="m:build" if loader == "torch_module" else "m", loader=loader)
    read = trained_with.default_hook(about, model)
    assert read == {"transformer_lens": "blocks.1.ln2.hook_out"}.get(loader, f"model.layers.1.pre_{FF}")
    message: list[str] = []
    trained_with.check_site(Site(name="s", sae=str(sae), hook_name=read), about, message)
    assert all(sentence.startswith(NOTE) for sentence in message)
    place = Place(str(read), str(about.target_at(str(read))))
    loaded = by_paths if loader == "torch_module" else load(folders["gemma3"], *place)
    result = Reconstruction(encoder.d_sae)
    at = loaded.forward(BATCH)
    reconstruct(encoder, at[place.read], at[place.target], result)
    assert result.explained_variance == pytest.approx(1, abs=1e-6)
    assert result.l0_mean == 1


def test_before_the_norm_it_explains_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """Which is what SAELens' loader names."""
    x, target = in_hugging_face(folders["gemma3"]).forward(BATCH).values()
    encoder = load_sae(str(write_exact_transcoder(tmp_path / "transcoder" / "layer_1", x, target)))
    hooks = ["blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"]
    result = Reconstruction(encoder.d_sae)
    reconstruct(encoder, *load(folders["gemma3"], *hooks).forward(BATCH).values(), result)
    assert result.explained_variance < 0.5


def test_saelens_metadata_of_it_name_the_same_place() -> None:
    about = {
        "hook_name": "blocks.4.hook_mlp_in",
        "hook_name_out": "blocks.4.hook_mlp_out",
        "hf_hook_name": f"model.layers.4.pre_{FF}.output",
        "hf_hook_name_out": f"model.layers.4.post_{FF}.output",
        "sae_lens_version": "6.54.12",
    }
    config = {"architecture": "jumprelu_transcoder", "d_in": 4, "d_out": 4, "d_sae": 8, "metadata": about}
    metadata = saelens.metadata_of(config, "cfg.json")
    assert (metadata.hook_name, metadata.hook_name_out) == ("blocks.4.ln2.hook_out", "blocks.4.hook_mlp_out")
    assert "hook_name is blocks.4.hook_mlp_in, another place" in metadata.notes[-1]


@pytest.mark.parametrize(
    ("format_name", "model", "hook"),
    [
        ("sparsify", "gemma2", "blocks.1.mlp.hook_out"),
        ("dictionary_learning", "gemma3", "blocks.1.mlp.hook_out"),
        ("sparsify", "llama", "blocks.1.hook_mlp_out"),
        ("gemma_scope", "gemma2", "blocks.1.hook_mlp_out"),
    ],
)
def test_saes_of_a_module_s_own_output_read_it_before_a_norm_that_follows(
    folders: dict[str, Path], format_name: str, model: str, hook: str
) -> None:
    about = SaeMetadata("topk", D_MODEL, 8, k=2, format=format_name, hook_name="blocks.1.hook_mlp_out")
    assert trained_with.default_hook(about, Model(path=str(folders[model]))) == hook
    message: list[str] = []
    trained_with.check_site(Site(name="s", sae="s", hook_name=hook), about, message)
    assert message == []
    if format_name != "gemma_scope":
        result = load(folders[model], hook).forward(make_batch())[hook]
        torch.testing.assert_close(result, at_module(folders[model], ".mlp", "output"), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(TRANSFORMER_LENS_4, reason="transformer-lens 4 has no HookedTransformer")
@pytest.mark.parametrize(("hook", "module"), [("mlp.hook_out", ".mlp"), ("attn.hook_out", ".attn")])
def test_hooked_transformer_knows_a_module_s_output_by_the_bridge_s_name(
    folders: dict[str, Path], hook: str, module: str
) -> None:
    name = f"blocks.1.{hook}"
    result = load(folders["gpt2"], name, loader="hooked_transformer").forward(make_batch())[name]
    expected = at_module(folders["gpt2"], module, "output")
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_a_point_that_is_no_module_s_output_has_no_path() -> None:
    about = SaeMetadata(
        "jumprelu", 4, 8, hook_name="blocks.3.attn.hook_z",
        extra={"hf_hook_point_in": "model.layers.3.self_attn.o_proj.input"},
    )  # fmt: skip
    model = Model(path="m:build", loader="torch_module")
    assert trained_with.default_hook(about, model) == "blocks.3.attn.hook_z"
