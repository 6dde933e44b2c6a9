"""What is read is what was digested: a folder whatever its name, and a name at the commit that it has."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.lake.tokenize import tokenize
from pipeline.models import digest_as_planned, load_model, max_context, model_digest
from pipeline.models.files import model_files
from pipeline.models.files.model_files import folder_of, pinned, repository_of, width_of
from pipeline.plans.plan import agree_on_plan, make_plan, resolve
from pipeline.store.records.tokens import require_lake
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.names import Loader
from schemas.records import digest_of
from schemas.run.file import Model
from tests.fixtures.runs import run_file
from tests.kit import D_MODEL, WORDS_VOCAB, _write_model, write_sae, write_tiny_gpt2, write_tiny_llama
from tests.models.reference import TRANSFORMER_LENS_4, causal_model, each_alone, make_batch

COMMITS = ("a" * 40, "b" * 40)
HOOK = "blocks.1.hook_resid_post"
LOADERS: list[Loader] = (
    ["transformer_lens"] if TRANSFORMER_LENS_4 else ["transformer_lens", "hooked_transformer"]
)


def write_tiny_neox(folder: Path, seed: int = 0) -> Path:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {
        "hidden_size": D_MODEL,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    config = GPTNeoXConfig(**shape, vocab_size=WORDS_VOCAB, max_position_embeddings=64)
    return _write_model(folder, GPTNeoXForCausalLM, config, seed)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the hub, of which nothing is remembered, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pinned.cache_clear()
    yield tmp_path / "cache"
    pinned.cache_clear()


def put_into_cache(cache: Path, repository: str, seed: int, commit: str = COMMITS[0]) -> Path:
    """A model of a repository as the hub's cache holds it, `main` being at the commit."""
    at = cache / f"models--{repository.replace('/', '--')}"
    folder = write_tiny_neox(at / "snapshots" / commit, seed)
    (at / "refs").mkdir(exist_ok=True)
    (at / "refs" / "main").write_text(commit)
    return folder


def x_of(path: str, loader: Loader = "transformer_lens") -> torch.Tensor:
    loaded = load_model(Model(path=path, loader=loader), [HOOK], "cpu", 1)
    return loaded.forward(make_batch())[HOOK]


def x_by_transformers(folder: Path) -> torch.Tensor:
    model = causal_model(folder)
    return each_alone(make_batch(), lambda ids: model(ids, output_hidden_states=True).hidden_states[2][0])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["pythia-70m", "EleutherAI/pythia-70m", "EleutherAI/pythia-19m", "gpt2"])
def test_a_folder_with_the_name_of_a_known_model_is_read_itself(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, loader: Loader
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_tiny_neox(tmp_path / name, seed=3)
    for known in ("EleutherAI/pythia-70m", "gpt2"):
        put_into_cache(cache, known, seed=5)
    expected = x_by_transformers(folder)
    torch.testing.assert_close(x_of(name, loader), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x_of(f"./{name}", loader), expected, rtol=1e-4, atol=1e-5)
    assert model_digest(Model(path=name)) == model_digest(Model(path=str(folder)))


def test_no_alias_of_transformer_lens_is_looked_up_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.supported_models import MODEL_ALIASES

    monkeypatch.chdir(tmp_path)
    names = {name for official, aliases in MODEL_ALIASES.items() for name in (official, *aliases)}
    for name in names:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.json").write_text("{}")
    assert len(names) > 400
    assert {folder_of(name) for name in names} == {tmp_path / name for name in names}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["pythia-70m", "EleutherAI/pythia-70m", "Pythia-70M"])
def test_a_name_is_read_from_the_cache_at_the_commit_of_its_digest(
    cache: Path, name: str, loader: Loader
) -> None:
    folder = put_into_cache(cache, "EleutherAI/pythia-70m", seed=5)
    torch.testing.assert_close(x_of(name, loader), x_by_transformers(folder), rtol=1e-4, atol=1e-5)
    assert model_digest(Model(path=name)) == digest_of({"hugging_face": name, "commit": COMMITS[0]})


def test_the_digest_of_a_name_changes_with_its_commit(cache: Path) -> None:
    model = Model(path="org/model")
    put_into_cache(cache, "org/model", seed=1)
    before = model_digest(model)
    put_into_cache(cache, "org/model", seed=2, commit=COMMITS[1])
    assert model_digest(model) == before  # what a process has looked up stays
    pinned.cache_clear()
    assert model_digest(model) != before


def test_a_plan_with_the_digest_of_a_name_alone_still_opens_with_a_note(cache: Path) -> None:
    put_into_cache(cache, "org/model", seed=1)
    model, folded = Model(path="org/model"), Model(path="org/model", processing={"fold_ln": True})
    old = digest_of({"hugging_face": "org/model"})
    with pytest.warns(UserWarning, match="digest of model org/model .* covers only its name"):
        assert digest_as_planned(model, old) == old
    processed = digest_of({"model": old, "processing": ["fold_ln"]})
    with pytest.warns(UserWarning, match=r"before version 0\.7"):
        assert digest_as_planned(folded, processed) == processed
    assert digest_as_planned(model, digest_of({"hugging_face": "org/other"})) == model_digest(model)


def test_a_pass_that_was_begun_with_the_digest_of_a_name_goes_on(tmp_path: Path, cache: Path) -> None:
    put_into_cache(cache, "org/model", seed=1)
    sae = write_sae(tmp_path / "sae", "topk", hook_name=HOOK, context_size=16)
    model = {"loader": "transformer_lens", "path": "org/model"}
    run, _ = resolve(run_file(tmp_path, model=model, sites=[{"name": "mid", "sae": str(sae)}]))
    tokenize(run)
    layout = Layout(Path(run.store.root))
    made = make_plan(run, require_lake(layout))
    old = made.model_copy(update={"model_digest": digest_of({"hugging_face": "org/model"})})
    agree_on_plan(layout, old)
    with pytest.warns(UserWarning, match="covers only its name"):
        agreed = agree_on_plan(layout, made)
    assert agreed.hash == old.hash != made.hash


@pytest.mark.parametrize("name", ["no/such", "a b", "pickle:loads", "a//b", "-x", "a/b/c"])
def test_a_name_that_the_hub_does_not_give_is_a_sentence(cache: Path, name: str) -> None:
    with pytest.raises(
        InputError, match=rf"model {name} is not a folder here, and the hub does not provide it \("
    ):
        model_digest(Model(path=name))
    with pytest.raises(InputError, match=rf"model {name} (is not a folder here|does not exist)"):
        load_model(Model(path=name), [HOOK], "cpu", 1)


@pytest.mark.parametrize("closed", [".", "models--org--model", "models--org--model/snapshots"])
def test_a_cache_that_may_not_be_read_is_not_called_a_hub_that_gives_nothing(
    cache: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_cache(cache, "org/model", seed=1)
    from pipeline.saes.files.hub import snapshot

    listed = Path.iterdir

    def list_folder(path: Path) -> Iterator[Path]:
        if path == cache / closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", list_folder)
    shutil.rmtree(cache / "models--org--model/refs")  # as if it could not be seen
    for read in (lambda: model_digest(Model(path="org/model")), lambda: snapshot("hf:org/model/sae")):
        with pytest.raises(
            InputError, match=rf"{cache / closed} cannot be read \(Permission denied\): allow"
        ):
            read()


def test_an_alias_is_found_however_it_is_written() -> None:
    assert repository_of("pythia-70m") == repository_of("PYTHIA-70m") == "EleutherAI/pythia-70m"
    assert repository_of("EleutherAI/pythia-19m") == "EleutherAI/pythia-70m"
    assert repository_of("org/name") == "org/name"


def test_the_digest_of_a_folder_needs_no_torch(tmp_path: Path) -> None:
    folder = write_tiny_gpt2(tmp_path)
    code = (
        "import sys; from pipeline.models import model_digest; from schemas.run.file import Model\n"
        f"model_digest(Model(path={str(folder)!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names '\.\./elsewhere\.safetensors', which lies outside"):
        folder_of(str(folder))


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other"}))
    with pytest.raises(InputError, match=r"holds an adapter.*merge the two"):
        load_model(Model(path=str(folder)), [HOOK], "cpu", 1)


def test_a_folder_is_read_before_the_hub_is_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "pinned", None)
    folder = write_tiny_llama(tmp_path / "model")
    assert max_context(Model(path=str(folder))) == 64
    assert load_model(Model(path=str(folder)), [HOOK], "cpu", 1).widths == {HOOK: D_MODEL}


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"hidden_size": 16}, 16),
        ({"n_embd": 16}, 16),
        ({"hidden_size": 9, "text_config": {"hidden_size": 16}}, 16),
        ({"hidden_size": "16"}, None),
        ({}, None),
    ],
)
def test_a_configuration_says_how_wide_the_residual_stream_is(
    config: dict[str, Any], width: int | None
) -> None:
    assert width_of(config) == width
