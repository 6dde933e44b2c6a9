"""`saelens:` specs: SAEs as the sae-lens package gives them, and the ones that only it can encode."""

from __future__ import annotations

import builtins
import importlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae, read_metadata, sae_digest
from pipeline.saes.encoding.encoder import RuleEncoder
from pipeline.saes.encoding.reference import ReferenceEncoder
from pipeline.saes.formats.saelens_package import _open, open_sae
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError, ShardError
from tests.kit import write_sae
from tests.saes.golden.check import DATA
from tests.saes.parity import assert_equals_module, rows_of
from tests.saes.reference import reference, sae_lens

D_MODEL, D_SAE = 16, 80

RELEASE, SAE_ID = "gpt2-small-res-jb", "blocks.0.hook_resid_pre"


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    _open.cache_clear()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub in which every SAE is the one in tmp_path / "hub"; gives the repositories asked for."""
    sae_lens()
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")
    requested: list[str] = []

    def serve(repo_id: str, filename: str, force_download: bool = False, subfolder: str = "") -> str:
        requested.append(f"{repo_id}/{filename}")
        file = tmp_path / "hub" / ("checkpoints" if "checkpoints" in subfolder else "") / Path(filename).name
        if not file.is_file():
            raise loaders.EntryNotFoundError(f"no {filename}")
        return str(file)

    monkeypatch.setattr(loaders, "hf_hub_download", serve)
    return requested


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_a_folder_gives_the_same_numbers_by_either_route(tmp_path: Path, architecture: str) -> None:
    folder = write_sae(tmp_path, architecture, D_MODEL, D_SAE, context_size=32, model_name="gpt2")
    encoder, native = load_sae(f"saelens:{folder}", block=(64, 32)), load_sae(str(folder), block=(64, 32))
    x = rows_of(D_MODEL)
    assert isinstance(encoder, RuleEncoder)
    features, expected = encoder.encode(x), native.encode(x)
    np.testing.assert_array_equal(features.indices, expected.indices)
    np.testing.assert_array_equal(features.data, expected.data)
    assert encoder.metadata.recipe() == native.metadata.recipe()
    assert (encoder.metadata.context_size, encoder.metadata.model_name) == (32, "gpt2")
    assert encoder.metadata.format == "saelens_package"
    assert "Read by the sae-lens package, version" in encoder.metadata.notes[-1]


def test_a_published_sae_is_loaded_by_release_and_id(tmp_path: Path, published: list[str]) -> None:
    folder = write_sae(tmp_path / "hub", "standard", D_MODEL, D_SAE, SAE_ID)
    encoder = load_sae(f"saelens:{RELEASE}/{SAE_ID}")
    assert all(name.startswith("jbloom/GPT2-Small-SAEs-Reformatted/") for name in published)
    assert_equals_module(encoder, reference(folder), rows_of(D_MODEL))
    assert encoder.hook_name == SAE_ID


def test_figures_of_the_directory_are_on_the_card(
    tmp_path: Path, published: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sae(tmp_path / "hub")
    directory = importlib.import_module("sae_lens.loading.pretrained_saes_directory")
    entry = directory.get_pretrained_saes_directory()[RELEASE]
    monkeypatch.setitem(entry.expected_l0, SAE_ID, 32.5)
    monkeypatch.setitem(entry.expected_var_explained, SAE_ID, 0.9)
    assert dict(read_metadata(f"saelens:{RELEASE}/{SAE_ID}").card) == {"l0": 32.5, "explained_variance": 0.9}
    _open.cache_clear()
    monkeypatch.setitem(entry.expected_l0, SAE_ID, float("nan"))
    monkeypatch.setitem(entry.expected_var_explained, SAE_ID, float("inf"))
    assert dict(read_metadata(f"saelens:{RELEASE}/{SAE_ID}").card) == {}
    _open.cache_clear()
    monkeypatch.setitem(entry.expected_l0, SAE_ID, 0.0)
    monkeypatch.setitem(entry.expected_var_explained, SAE_ID, 1.0)
    assert dict(read_metadata(f"saelens:{RELEASE}/{SAE_ID}").card) == {}


def test_an_id_with_slashes_and_a_repository_of_the_hub_are_understood(
    tmp_path: Path, published: list[str]
) -> None:
    write_sae(tmp_path / "hub", "topk", D_MODEL, D_SAE, k=5)
    assert load_sae("saelens:me/mine/layers/3").metadata.k == 5
    assert {name.rpartition("/")[0] for name in published} == {"me/mine/layers/3"}


def test_the_directorys_factor_of_x_is_folded_in_as_by_the_package(
    tmp_path: Path, published: list[str]
) -> None:
    (tmp_path / "hub").symlink_to(DATA / "llama_scope-res")
    spec = "llama_scope_lxr_8x/l0r_8x"
    expected = sae_lens().SAE.from_pretrained(*spec.split("/"), dtype="float32")
    encoder = load_sae(f"saelens:{spec}")
    assert_equals_module(encoder, expected, rows_of(D_MODEL, scale=0.3))
    assert encoder.metadata.normalize_activations == "none"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2-small-res-jb/blocks.0.hook_resid_pr", "has no 'blocks.0.hook_resid_pr'; the nearest of"),
        ("gpt2-small-res-j/x", r"has no release 'gpt2-small-res-j'; the nearest of \d+ are .*res-jb"),
        ("gpt2-small-res-jb", "has no release 'gpt2-small-res-jb'"),
        ("", "there is no folder ; write saelens:RELEASE/ID"),
        ("./nowhere", r"there is no folder \./nowhere"),
        ("~/nowhere-at-all", "there is no folder ~/nowhere-at-all"),
        ("~nosuchuser/x", "there is no folder ~nosuchuser/x"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_sae(f"saelens:{name}")


def test_a_hub_without_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    sae_lens()
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")

    def refuse(*request: Any, **options: Any) -> str:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(loaders, "hf_hub_download", refuse)
    with pytest.raises(
        InputError, match="could not be loaded by the sae-lens package: We couldn't connect to"
    ):
        load_sae(f"saelens:{RELEASE}/{SAE_ID}")


def test_a_broken_folder_is_one_sentence(tmp_path: Path) -> None:
    folder = write_sae(tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(b"\x09")
    with pytest.raises(InputError, match="could not be loaded by the sae-lens package"):
        load_sae(f"saelens:{folder}")


def test_without_the_package_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *rest: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("pipeline.saes.formats.saelens_package.importlib.import_module", absent)
    with pytest.raises(InputError, match=r'pip install "latentlake\[saelens\]"'):
        sae_digest("saelens:gpt2-small-res-jb/x")


def test_the_digest_follows_tensors_and_recipe(tmp_path: Path) -> None:
    def digest(name: str, **options: Any) -> str:
        return sae_digest(f"saelens:{write_sae(tmp_path / name, 'topk', **options)}")

    first = digest("a", k=8)
    assert digest("b", k=8, model_name="other") == first
    assert digest("c", k=9) != first
    assert digest("d", k=8, seed=1) != first


def test_native_folders_do_not_import_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plain = write_sae(tmp_path), builtins.__import__

    def watched(name: str, *rest: Any) -> Any:
        assert not name.startswith("sae_lens")
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", watched)
    assert load_sae(str(folder)).d_sae == 64


@pytest.mark.parametrize("options", [{}, {"k": 8, "rescale_acts_by_decoder_norm": True}])
def test_a_folder_is_loaded_once_while_it_stays_and_again_when_it_changed(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    architecture = "topk" if options else "standard"
    spec = f"saelens:{write_sae(tmp_path, architecture, **options)}"
    digest, before = sae_digest(spec), {n: t.clone() for n, t in open_sae(spec).weights().items()}
    first, opened = load_sae(spec).encode(rows_of(16)), open_sae(spec)
    np.testing.assert_array_equal(load_sae(spec).encode(rows_of(16)).data, first.data)
    for name, tensor in open_sae(spec).weights().items():
        np.testing.assert_array_equal(tensor, before[name])
    assert open_sae(spec) is opened
    write_sae(tmp_path, architecture, seed=1, **options)
    assert sae_digest(spec) != digest


def matching_pursuit(folder: Path, **options: Any) -> tuple[str, Any]:
    """A matching-pursuit SAE that takes up to five features of a row; its spec and its module."""
    sae_lens()
    module = importlib.import_module("sae_lens.saes.matching_pursuit_sae")
    chosen = {"max_iterations": 5, "residual_threshold": 0.5, **options}
    sae = module.MatchingPursuitSAE(module.MatchingPursuitSAEConfig(d_in=D_MODEL, d_sae=D_SAE, **chosen))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        w_dec = torch.randn(D_SAE, D_MODEL, generator=generator)
        sae.W_dec.copy_(w_dec / w_dec.norm(dim=1, keepdim=True))
        sae.b_dec.copy_(0.1 * torch.randn(D_MODEL, generator=generator))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.save_model(folder)
    return f"saelens:{folder}", sae


@pytest.mark.parametrize("rows", [1, 7, 1024])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_matching_pursuit_equals_the_package_in_blocks_of_any_size(
    tmp_path: Path, rows: int, apply_b_dec_to_input: bool
) -> None:
    spec, sae = matching_pursuit(tmp_path, apply_b_dec_to_input=apply_b_dec_to_input)
    encoder: Any = load_sae(spec, block=(rows, 32))
    assert isinstance(encoder, ReferenceEncoder)
    assert tuple(encoder.block) == (rows, D_SAE)
    assert encoder.metadata.architecture == "matching_pursuit"
    features = assert_equals_module(encoder, sae, rows_of(D_MODEL))
    assert np.diff(features.indptr).max() <= 5
    pending = encoder.submit(rows_of(D_MODEL)).result()
    np.testing.assert_array_equal(pending.data, features.data)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_matching_pursuit_of_normalised_x_is_scaled_back_by_its_own_rows(tmp_path: Path, how: str) -> None:
    spec, sae = matching_pursuit(tmp_path, normalize_activations=how)
    x = 3 * rows_of(D_MODEL) + 1
    encoder = load_sae(spec, block=(13, 80))
    features = assert_equals_module(encoder, sae, x)
    encoder.encode(rows_of(D_MODEL, seed=9))  # sae-lens keeps what it saw last
    with torch.no_grad():
        expected = sae.decode(sae.encode(x))
    np.testing.assert_allclose(encoder.decode(features, like=x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="like=x"):
        encoder.decode(features)


def test_threads_share_the_packages_module(tmp_path: Path) -> None:
    spec, _ = matching_pursuit(tmp_path, normalize_activations="layer_norm")
    encoder = load_sae(spec, block=(8, 80))
    xs = [rows_of(D_MODEL, 60, seed) for seed in range(4)]
    expected = [encoder.decode(encoder.encode(x), like=x) for x in xs]
    result: dict[int, torch.Tensor] = {}

    def work(n: int) -> None:
        for _ in range(5):
            result[n] = encoder.decode(encoder.encode(xs[n]), like=xs[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for n in range(4):
        np.testing.assert_allclose(result[n], expected[n], rtol=1e-5, atol=1e-6)


def test_its_weights_and_digest_are_those_of_the_package(tmp_path: Path) -> None:
    spec, sae = matching_pursuit(tmp_path / "a")
    weights = load_sae(spec).weights()
    assert weights.keys() == {"W_enc", "W_dec", "b_dec"}
    np.testing.assert_array_equal(weights["W_enc"], sae.W_dec.detach().numpy().T)
    other, _ = matching_pursuit(tmp_path / "b", residual_threshold=0.6)
    same, _ = matching_pursuit(tmp_path / "c")
    assert sae_digest(spec) == sae_digest(same) != sae_digest(other)


def test_what_it_cannot_encode_is_refused(tmp_path: Path) -> None:
    spec, _ = matching_pursuit(tmp_path)
    encoder = load_sae(spec)
    assert encoder.accepts(D_MODEL)
    assert not encoder.accepts(2 * D_MODEL)
    with pytest.raises(InputError, match=r"blocks\.0\.hook_resid_post has shape \[5, 7\]"):
        encoder.encode(torch.zeros(5, 7))
    x = rows_of(D_MODEL)
    x[3, 2] = torch.nan
    with pytest.raises(ShardError, match="NaN or infinity in row 3"):
        encoder.encode(x)
    with pytest.raises(InputError, match="encode_dtype bfloat16 is not possible"):
        load_sae(spec, dtype="bfloat16")


def test_no_rows_give_no_features(tmp_path: Path) -> None:
    encoder = load_sae(matching_pursuit(tmp_path)[0])
    features = encoder.encode(torch.empty(0, D_MODEL))
    assert (features.nnz, features.indptr.tolist()) == (0, [0])
    assert encoder.decode(features).shape == (0, D_MODEL)


def test_a_temporal_sae_is_refused_with_the_reason(tmp_path: Path) -> None:
    sae_lens()
    module = importlib.import_module("sae_lens.saes.temporal_sae")
    config = module.TemporalSAEConfig(d_in=D_MODEL, d_sae=64, n_heads=1, bottleneck_factor=8, kval_topk=4)
    module.TemporalSAE(config).save_model(tmp_path)
    with pytest.raises(InputError, match="temporal, which cannot be used: it attends over the context"):
        load_sae(f"saelens:{tmp_path}")
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "temporal"


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: x @ torch.ones(D_MODEL, D_SAE) - x.mean(), "differently next to other tokens"),
        (lambda x: x[:, None] @ torch.ones(D_MODEL, D_SAE), "differently next to other tokens"),
        (lambda x: x.view(1, 2, 3), "does not encode rows"),
    ],
)
def test_an_architecture_that_looks_next_to_the_token_is_found_out(
    tmp_path: Path, encode: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, sae = matching_pursuit(tmp_path)
    monkeypatch.setattr(type(sae), "encode", lambda self, x: encode(x))
    with pytest.raises(InputError, match=message):
        load_sae(spec)


def test_an_sae_that_depends_on_the_batch_before_is_found_out() -> None:
    class Drifting:
        W_dec, batches = torch.eye(4), 0

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            self.batches += len(x) > 1
            return x.relu() + (self.batches > 1)

    with pytest.raises(InputError, match="differently next to other tokens"):
        ReferenceEncoder(Drifting(), SaeMetadata("drifting", 4, 4), 8)


def test_another_version_of_the_package_is_another_digest_where_it_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pursuit, _ = matching_pursuit(tmp_path / "pursuit")
    standard = f"saelens:{write_sae(tmp_path / 'standard')}"
    before = [sae_digest(spec) for spec in (pursuit, standard)]
    monkeypatch.setattr(sae_lens(), "__version__", "0.0.0")
    _open.cache_clear()
    after = [sae_digest(spec) for spec in (pursuit, standard)]
    assert after[0] != before[0]
    assert after[1] == before[1]
