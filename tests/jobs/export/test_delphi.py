"""delphi's cache, read by safetensors, and by delphi's own loader (eai-delphi 0.1.3) and constructor."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file

from jobs.cli import main
from jobs.export.delphi import location_dtype, split_edges
from tests.fixtures.exports import built_store, consumer
from tests.fixtures.store import D_SAE
from tests.fixtures.tokens import CONTEXT_SIZE


def run(arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(["export", "delphi", *arguments])
    assert end.value.code == code


@pytest.fixture(scope="module", params=["float16", "float32", "token_major"])
def made(request, tmp_path_factory):
    options = {"layouts": ("token_major",)} if request.param == "token_major" else {"dtype": request.param}
    built, _ = built_store(tmp_path_factory.mktemp("store"), **options)
    out = tmp_path_factory.mktemp("out") / "export"
    run([str(built.layout.root), "--out", str(out), "--hookpoint", "layers.1", "--splits", "4"])
    return built, out / "latents"


def dense_of(built):
    """Activations by context, position and feature, and token ids; pads are BOS, as there is no separator."""
    contexts = built.tokens["context"].max() + 1
    dense = np.zeros((contexts, CONTEXT_SIZE, D_SAE), np.float32)
    tokens = np.zeros((contexts, CONTEXT_SIZE), np.int64)
    for row in built.tokens.iter_rows(named=True):
        dense[row["context"], row["position"]] = built.dense["site"][row["row"]]
        tokens[row["context"], row["position"]] = row["token"]
    return dense, tokens


def read(folder):
    """Activations as the files hold them, dense, and the files' ranges."""
    ranges, result, tokens = [], None, None
    for path in folder.glob("*.safetensors"):
        first, last = map(int, path.stem.split("_"))
        ranges.append((first, last))
        split = load_file(path)
        tokens = split["tokens"] if tokens is None else tokens
        np.testing.assert_array_equal(split["tokens"], tokens)
        result = np.zeros((*tokens.shape, D_SAE), np.float32) if result is None else result
        where = split["locations"].astype(np.int64)
        assert len(where)
        assert (where[:, 2] <= last - first).all()
        place = (where[:, 0], where[:, 1], where[:, 2] + first)
        assert not result[place].any()
        result[place] = split["activations"]
    return result, tokens, sorted(ranges)


def test_the_files_hold_every_activation_once_and_the_tokens(made):
    built, latents = made
    dense, tokens = dense_of(built)
    result, stored, ranges = read(latents / "layers.1")
    np.testing.assert_array_equal(result, dense)
    np.testing.assert_array_equal(stored, tokens)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == D_SAE - 1
    assert all(last + 1 == first for (_, last), (first, _) in pairwise(ranges))
    lengths = built.tokens.group_by("context").len()["len"]
    assert lengths.min() < CONTEXT_SIZE  # some contexts were padded


def test_activations_keep_the_stores_dtype_and_locations_are_small(made):
    built, latents = made
    split = load_file(next((latents / "layers.1").glob("*.safetensors")))
    assert split["activations"].dtype == built.plan.activation_dtype
    assert split["locations"].dtype == np.uint16


@pytest.mark.slow
def test_delphis_own_loader_gives_each_latent_its_activations(made):
    loader, config = consumer("delphi.latents.loader"), consumer("delphi.config")
    built, latents = made
    dense, tokens = dense_of(built)
    data = loader.LatentDataset(
        latents, config.SamplerConfig(), config.ConstructorConfig(), tokenizer=object()
    )
    assert data.modules == ["layers.1"]
    np.testing.assert_array_equal(data.tokens.numpy(), tokens)
    seen = set()
    for buffer in data.buffers:
        for result in buffer:
            latent = result.latent.latent_index
            expected = np.argwhere(dense[:, :, latent])
            np.testing.assert_array_equal(result.activation_data.locations[:, :2].numpy(), expected)
            values = dense[expected[:, 0], expected[:, 1], latent]
            np.testing.assert_array_equal(result.activation_data.activations.float().numpy(), values)
            seen.add(latent)
    assert seen == set(np.flatnonzero(dense.any(axis=(0, 1))).tolist())


@pytest.mark.slow
def test_delphis_own_loader_finds_chosen_latents_in_any_file(made):
    import torch

    loader, config = consumer("delphi.latents.loader"), consumer("delphi.config")
    built, latents = made
    fired = np.flatnonzero(built.dense["site"].any(axis=0))
    chosen = {"layers.1": torch.tensor(fired[[0, 5, -1]])}
    options = (config.SamplerConfig(), config.ConstructorConfig())
    data = loader.LatentDataset(latents, *options, tokenizer=object(), modules=["layers.1"], latents=chosen)
    result = [item.latent.latent_index for buffer in data.buffers for item in buffer]
    assert sorted(result) == fired[[0, 5, -1]].tolist()
    assert data.tokens is not None


@pytest.mark.slow
def test_delphis_own_constructor_makes_examples_of_a_latent(made):
    loader, config = consumer("delphi.latents.loader"), consumer("delphi.config")
    built, latents = made

    class Tokenizer:
        def batch_decode(self, tokens):
            return [str(int(token)) for token in tokens]

    dense, _ = dense_of(built)
    constructor = config.ConstructorConfig(example_ctx_len=CONTEXT_SIZE, min_examples=1, n_non_activating=2)
    sampler = config.SamplerConfig(n_examples_train=4, n_examples_test=4, n_quantiles=2)
    data = loader.LatentDataset(latents, sampler, constructor, tokenizer=Tokenizer())
    process = loader.LatentDataset._process_latent
    process = getattr(process, "__wrapped__", process)
    item = next(iter(data.buffers[0]))
    record = process(data, item)
    latent = item.latent.latent_index
    assert len(record.examples) == dense[:, :, latent].any(axis=1).sum()
    assert record.max_activation == pytest.approx(dense[:, :, latent].max())
    assert record.per_token_frequency == (dense[:, :, latent] != 0).sum() / dense[:, :, 0].size


def test_the_config_names_the_model_and_the_context(made):
    _, latents = made
    config = json.loads((latents / "layers.1" / "config.json").read_text())
    assert config["model_name"] == "model"
    assert config["cache_ctx_len"] == CONTEXT_SIZE
    assert config["latentlake"]["pad_token"] == 0
    assert config["n_splits"] == len(list((latents / "layers.1").glob("*.safetensors")))


def test_chosen_features_alone_are_in_files_that_cover_the_sae(made, tmp_path):
    built, _ = made
    run([str(built.layout.root), "--out", str(tmp_path / "o"), "--features", "3,17:23,38"])
    dense, _ = dense_of(built)
    result, _, ranges = read(tmp_path / "o" / "latents" / "hook")
    chosen = [3, *range(17, 23), 38]
    expected = np.zeros_like(dense)
    expected[:, :, chosen] = dense[:, :, chosen]
    np.testing.assert_array_equal(result, expected)
    assert (ranges[0][0], ranges[-1][1]) == (0, D_SAE - 1)


def test_features_that_never_fire_are_refused_for_delphi_reads_no_empty_file(made, tmp_path, capsys):
    built, _ = made
    assert not built.dense["site"][:, 0].any()
    run([str(built.layout.root), "--out", str(tmp_path / "o"), "--features", "0"], 2)
    assert "none of the chosen features fires" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_edges_leave_no_file_empty_however_uneven_the_features_are():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n_active = (
            rng.integers(0, 50, rng.integers(1, 30)) * (rng.random() < rng.random(1)) * (rng.random(1) < 0.7)
        )
        n_active = (n_active * (rng.random(len(n_active)) < 0.5)).astype(np.int64)
        if not n_active.sum():
            continue
        edges = split_edges(n_active, int(rng.integers(1, 12)))
        assert edges[0] == 0
        assert edges[-1] == len(n_active)
        assert edges == sorted(set(edges))
        assert all(n_active[first:end].sum() for first, end in pairwise(edges))
    assert split_edges(np.full(100, 7), 4) == [0, 25, 50, 75, 100]


@pytest.mark.parametrize("sizes", [((1 << 16) + 1, 1, 1), (1, 1 << 17, 1), (1, 1, (1 << 16) + 1)])
def test_wide_rows_positions_or_files_take_four_bytes(sizes):
    assert location_dtype(1 << 16, 1 << 16, 1 << 16) == np.uint16
    assert location_dtype(*sizes) == np.uint32
