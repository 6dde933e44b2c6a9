"""SAE metadata fill the run file's gaps, what contradicts them is reported, and plans keep their hashes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.terminal.console import warn
from pipeline.plans import plan as plan_module
from pipeline.plans import sae_defaults
from pipeline.plans.plan import agree_on_plan, make_plan, resolve
from pipeline.saes import choose_block, read_metadata
from pipeline.store import FeatureStore
from pipeline.store.records.tokens import read_lake
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Plan, canonical_json
from schemas.run.file import Model, Site, parse_run_file
from tests.fixtures.runs import data_bytes, extracted, run_content, run_file
from tests.kit import write_sae, write_tiny_gpt2

OLD_STORE = Path(__file__).parents[1] / "data" / "store-v1"
KWARGS = "model_from_pretrained_kwargs"


def site(folder, name="mid", architecture="topk", **metadata):
    """A site with an SAE of its own; `metadata` are its files' fields."""
    sae = write_sae(folder / f"sae-of-{name}", architecture, **{"context_size": 16} | metadata)
    return {"name": name, "sae": str(sae)}


def printed(folder, *sites, **changes):
    """The resolved run file, and the notes."""
    return resolve(run_file(folder, sites=list(sites), **changes))


def gpt2(folder, name="gpt2"):
    """Sections of a run file that reads a tiny GPT-2."""
    path = folder / name
    if not path.exists():
        write_tiny_gpt2(path)
    return {"model": {"path": str(path), "loader": "transformer_lens"}, "tokens": {"tokenizer": None}}


def test_metadata_that_agree_are_the_defaults_and_nothing_is_reported(tmp_path):
    saes = [site(tmp_path, name, context_size=12, prepend_bos=False) for name in ("a", "b")]
    resolved, sentences = printed(tmp_path, *saes, tokens={"context_size": None})
    assert (resolved.tokens.context_size, resolved.tokens.prepend_bos) == (12, False)
    assert [s.hook_name for s in resolved.sites] == ["layers.1", "layers.1"]
    assert sentences == []


def test_what_the_run_file_says_otherwise_is_reported_with_both_values_and_the_site(tmp_path):
    saes = [
        site(tmp_path, "a") | {"hook_name": "layers.0"},
        site(tmp_path, "b", prepend_bos=False, context_size=32),
    ]
    resolved, sentences = printed(tmp_path, *saes, tokens={"context_size": 24, "prepend_bos": True})
    assert (resolved.tokens.context_size, resolved.tokens.prepend_bos) == (24, True)
    assert resolved.sites[0].hook_name == "layers.0"
    assert sorted(sentences) == [
        "site 'a': hook_name is layers.0, but its SAE was trained at layers.1",
        "site 'a': tokens.context_size is 24, its SAE was trained on contexts of 16",
        "site 'b': tokens.prepend_bos is True, its SAE was trained with False",
    ]


def test_saes_of_different_context_sizes_share_the_smaller_one_and_it_is_reported(tmp_path):
    saes = [site(tmp_path, "a", context_size=32), site(tmp_path, "b", context_size=20)]
    resolved, sentences = printed(tmp_path, *saes, tokens={"context_size": None})
    assert resolved.tokens.context_size == 20
    assert sentences == [
        "the SAEs were trained on contexts of 32 (site 'a') and 20 (site 'b'): tokens.context_size is 20"
    ]


def test_saes_that_disagree_on_bos_need_an_answer(tmp_path):
    saes = [site(tmp_path, "a", prepend_bos=True), site(tmp_path, "b", prepend_bos=False)]
    with pytest.raises(InputError, match=r"True \(site 'a'\) and False \(site 'b'\): set tokens.prepend_bos"):
        printed(tmp_path, *saes)


def test_a_context_that_the_model_cannot_take_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"context_size is 65, but the model .*gpt2 allows at most 64"):
        printed(
            tmp_path, site(tmp_path, context_size=65), **gpt2(tmp_path) | {"tokens": {"context_size": None}}
        )


@pytest.mark.parametrize("name", ["gpt2", "GPT2", "gpt2-small", "openai-community/gpt2", "x/GPT2-small"])
def test_a_model_by_another_of_its_names_is_not_reported(tmp_path, name):
    assert printed(tmp_path, site(tmp_path, model_name=name), **gpt2(tmp_path))[1] == []


def test_another_model_is_reported_by_both_names(tmp_path):
    sentences = printed(tmp_path, site(tmp_path, model_name="pythia-70m"), **gpt2(tmp_path))[1]
    assert sentences == [f"site 'mid': model.path is {tmp_path / 'gpt2'}, its SAE was trained on pythia-70m"]


@pytest.mark.parametrize(
    ("folder", "trained", "warns"),
    [
        ("gemma-2-2b", "google/gemma-2-2b-it", True),
        ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("pythia-70m", "EleutherAI/pythia-70m-deduped", True),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", False),
        ("pythia", "EleutherAI/pythia-70m-deduped", False),
        ("pyth", "pyth-70m", True),
        ("gemma", "EleutherAI/pythia-70m", True),
    ],
)
def test_a_folder_is_cut_short_only_where_it_names_no_size(tmp_path, folder, trained, warns):
    sentences = printed(tmp_path, site(tmp_path, model_name=trained), **gpt2(tmp_path, folder))[1]
    assert len(sentences) == warns
    assert all(f"its SAE was trained on {trained}" in sentence for sentence in sentences)


def test_a_published_models_name_is_never_cut_short(tmp_path):
    result = sae_defaults.Trained(None, read_metadata(site(tmp_path, model_name="a/bloom-x")["sae"]))
    for path, warns in (("a/bloom", True), ("b/bloom-x", False)):
        sentences = []
        pair = result._replace(site=Site(name="mid", sae="s", hook_name="layers.1"))
        sae_defaults.check_model(Model(path=path, loader="transformer_lens"), pair, sentences)
        assert len(sentences) == warns


def test_a_local_copy_is_known_by_the_name_in_its_configuration(tmp_path):
    sections = gpt2(tmp_path, "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "EleutherAI/pythia-70m"}))
    assert printed(tmp_path, site(tmp_path, model_name="pythia-70m"), **sections)[1] == []


def test_a_hook_named_as_another_class_of_models_names_it_is_reported(tmp_path):
    named = site(tmp_path, model_class_name="AutoModelForCausalLM", hook_name="transformer.h.1")
    assert printed(tmp_path, named, **gpt2(tmp_path))[1] == []  # TransformerLens' bridge is given both
    sections = gpt2(tmp_path)
    sections["model"]["loader"] = "hooked_transformer"
    (sentence,) = printed(tmp_path, named, **sections)[1]
    assert sentence.startswith("site 'mid': hook_name is transformer.h.1, as in AutoModelForCausalLM")
    assert "hooked_transformer, which knows the hook names of HookedTransformer:" in sentence
    again = printed(tmp_path, named | {"hook_name": "blocks.1.hook_resid_post"}, **sections)[1]
    assert again == [
        "site 'mid': hook_name is blocks.1.hook_resid_post, but its SAE was trained at transformer.h.1"
    ]


def test_the_weight_processing_of_the_sae_becomes_that_of_the_model(tmp_path):
    asks = site(tmp_path, **{KWARGS: {"center_writing_weights": True, "fold_ln": False}})
    resolved, sentences = printed(tmp_path, asks, **gpt2(tmp_path))
    assert resolved.model.processing == {"center_writing_weights": True}
    assert sentences == [
        "note: model.processing is center_writing_weights=True, as the SAE of site 'mid' was trained"
    ]


def test_processing_that_the_run_file_says_otherwise_stays_and_is_reported(tmp_path):
    asks = site(tmp_path, **{KWARGS: {"fold_ln": True}})
    sections = gpt2(tmp_path)
    sections["model"]["processing"] = {"center_unembed": True}
    resolved, sentences = printed(tmp_path, asks, **sections)
    assert resolved.model.processing == {"center_unembed": True}
    assert sentences == [
        "site 'mid': the model's weights are processed with center_unembed=True, but its SAE was trained "
        "on weights processed with fold_ln=True"
    ]


def test_saes_that_want_different_weights_are_refused_by_name_until_the_run_file_decides(tmp_path):
    saes = [site(tmp_path, name, **{KWARGS: {"fold_ln": on}}) for name, on in (("a", True), ("b", False))]
    with pytest.raises(InputError, match=r"site 'a' was .*fold_ln=True, site 'b' with nothing"):
        printed(tmp_path, *saes, **gpt2(tmp_path))
    sections = gpt2(tmp_path)
    sections["model"]["processing"] = {}
    resolved, sentences = printed(tmp_path, *saes, **sections)
    assert resolved.model.processing == {}
    assert [line.split(":")[0] for line in sentences] == ["site 'a'"]


def test_a_site_that_says_nothing_of_the_processing_it_gets_is_reported(tmp_path):
    saes = [site(tmp_path, "a", **{KWARGS: {"fold_ln": True}}), site(tmp_path, "b")]
    sentences = printed(tmp_path, *saes, **gpt2(tmp_path))[1]
    assert [line.split(";")[0] for line in sentences[1:]] == [
        "site 'b': its SAE does not say that the model's weights were processed"
    ]


def test_options_without_influence_are_passed_over_and_others_reported_by_name(tmp_path):
    silent = {"n_ctx": 512, "first_n_layers": 2, "device_map": "auto", "torch_dtype": "torch.float32"}
    assert printed(tmp_path, site(tmp_path, **{KWARGS: silent}), **gpt2(tmp_path))[1] == []
    loud = {"dtype": "bfloat16", "checkpoint_index": 5, "revision": None}
    assert printed(tmp_path, site(tmp_path, **{KWARGS: loud}), **gpt2(tmp_path))[1] == [
        "site 'mid': its SAE was trained with the model option checkpoint_index=5, not applied here",
        "site 'mid': model.dtype is float32, its SAE was trained with dtype=bfloat16",
    ]


def test_notes_are_reported_once_and_are_no_warnings(tmp_path, monkeypatch, capsys):
    def with_note(spec):
        return replace(read_metadata(spec), notes=("its threshold was folded.",))

    monkeypatch.setattr(plan_module, "read_metadata", with_note)
    sentences = printed(tmp_path, site(tmp_path))[1]
    assert sentences == ["note: site 'mid': its threshold was folded."]
    warn([*sentences, "something"])
    assert capsys.readouterr().out == f"{sentences[0]}\nwarning: something\n"


def test_a_transcoder_is_reported_with_both_of_its_places(tmp_path, monkeypatch):
    def transcoder(spec):
        return replace(read_metadata(spec), transcoder=True, hook_name_out="layers.2")

    monkeypatch.setattr(plan_module, "read_metadata", transcoder)
    (note,) = printed(tmp_path, site(tmp_path))[1]
    assert note.startswith("note: site 'mid': a transcoder, it reads layers.1")
    assert note.endswith("reconstructs x at layers.2")


def test_a_plan_of_the_first_stores_has_the_hash_that_its_receipts_name():
    for path in sorted(OLD_STORE.glob("passes/*/plan.json")):
        plan = Plan.from_json(path.read_bytes(), str(path))
        hashes = {json.loads(p.read_bytes())["plan_hash"] for p in (path.parent / "commits").glob("*.json")}
        assert hashes == {plan.hash}


def test_the_hash_covers_dtype_positions_and_processing_where_they_are_not_the_default():
    (path,) = OLD_STORE.glob("passes/*/plan.json")
    plan = Plan.from_json(path.read_bytes(), str(path))

    def hash_with(**changes):
        first = plan.sites[0].model_copy(update=changes)
        return plan.model_copy(update={"sites": (first, *plan.sites[1:])}).hash

    hashes = [
        hash_with(encode_dtype="bfloat16"),
        hash_with(positions=(1, None)),
        hash_with(positions=(2, None)),
        plan.model_copy(update={"model_processing": {"fold_ln": True}}).hash,
    ]
    assert hash_with(encode_dtype="float32", positions=None) == plan.hash
    assert len({plan.hash, *hashes}) == 5


def test_a_pass_goes_on_with_the_blocks_that_it_was_begun_with(tmp_path, monkeypatch):
    extracted(run_file(tmp_path), tables=False)
    before = data_bytes(tmp_path / "store")
    layout = Layout(tmp_path / "store")
    first = min(layout.commits("mid").iterdir())
    first.unlink()
    shutil.rmtree(layout.pass_folder("mid") / "data" / first.stem)
    monkeypatch.setattr(plan_module, "choose_block", lambda *_: (7, 5))
    monkeypatch.setattr(plan_module, "feature_block", lambda _: 8)
    extracted(run_file(tmp_path), tables=False)
    assert FeatureStore.open(layout.root).receipts("mid")[first.stem]
    assert data_bytes(layout.root).keys() == before.keys()
    assert data_bytes(layout.root) == before
    resolved, _ = resolve(run_file(tmp_path, store={"pass": "new"}, sites=[site(tmp_path, "new")]))
    fresh = agree_on_plan(layout, make_plan(resolved, read_lake(layout))).sites[0]
    assert (fresh.encode_block, fresh.encode_features, fresh.feature_block) == (7, 5, 8)
    old = FeatureStore.open(layout.root).plans["mid"].sites[0]
    assert (old.encode_block, old.encode_features) == (choose_block(64)[0], 64)


def test_a_pass_whose_plan_knows_nothing_of_later_fields_goes_on(tmp_path):
    extracted(run_file(tmp_path), tables=False)
    layout = Layout(tmp_path / "store")
    resolved, _ = resolve(run_file(tmp_path))
    plan = make_plan(resolved, read_lake(layout))
    old = json.loads(plan.to_json())
    del old["model_processing"]
    for name in ("encode_features", "encode_dtype", "positions"):
        del old["sites"][0][name]
    old["sites"][0]["encode_block"] = 300
    path = layout.plan("mid")
    path.write_bytes(canonical_json(old) + b"\n")
    agreed = agree_on_plan(layout, plan)
    assert agreed.hash == Plan.from_json(path.read_bytes(), "plan.json").hash != plan.hash
    assert (agreed.sites[0].encode_block, agreed.sites[0].encode_features) == (300, 0)


def test_bfloat16_goes_into_the_plan_and_into_the_activations(tmp_path):
    content = run_content(tmp_path)
    half = content["sites"][0] | {"name": "half", "encode_dtype": "bfloat16"}
    store = extracted(run_file(tmp_path, sites=[*content["sites"], half]), tables=False)
    dtypes = {name: store.site(name).encode_dtype for name in store.sites}
    assert dtypes == {"mid": "float32", "half": "bfloat16"}
    exact, rounded = (store.csr(name, "000000").toarray() for name in ("mid", "half"))
    both = (exact != 0) & (rounded != 0)
    relative = abs(rounded[both] / exact[both] - 1)
    assert 2**-12 < relative.mean() < 2**-6


def test_a_context_size_that_nobody_requested_is_cut_to_what_the_model_takes(tmp_path):
    write_tiny_gpt2(tmp_path / "gpt2", n_positions=64)
    sae = write_sae(tmp_path / "sae-of-any-size", hook_name="blocks.1.hook_resid_post")
    content = run_content(
        tmp_path,
        model={"loader": "transformer_lens", "path": str(tmp_path / "gpt2")},
        sites=[{"name": "mid", "sae": str(sae)}],
    )
    del content["tokens"]["context_size"]
    assert resolve(parse_run_file(content, "run.yaml"))[0].tokens.context_size == 64
    content["tokens"]["context_size"] = 65
    with pytest.raises(InputError, match=r"context_size is 65, but the model .* allows at most 64"):
        resolve(parse_run_file(content, "run.yaml"))


def test_one_head_of_a_hook_without_heads_is_reported(tmp_path):
    sentences = printed(tmp_path, site(tmp_path, hook_head_index=1))[1]
    assert any("reads attention head 1, hook_name is layers.1" in sentence for sentence in sentences)
