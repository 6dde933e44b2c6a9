"""Importance, images and steering from a store equal the formulas on dense arrays of the same rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.special import expit
from scipy.stats import pearsonr

from jobs import cli
from jobs.studies.digits.steer import steer
from jobs.tables.feature_images import decoders_of, images
from jobs.tables.importance import importance, top_features
from pipeline.models.loaders.image_decoder import read_decoder
from pipeline.statistics.evaluation import importance as statistic
from pipeline.tasks import Processes
from schemas.errors import InputError
from schemas.tables.importance import (
    CLASS_IMAGES,
    FEATURE_IMAGES,
    FEATURE_SIMILARITY,
    IMPORTANCE,
    IMPORTANCE_CLASSES,
)
from tests.fixtures.digits import EACH, store_of
from tests.fixtures.store import build

pytestmark = pytest.mark.slow

CLASSES = ["across", "down", "scrambled", "square"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("digits"))


class Dense:
    """All rows of the store: activations [N, F], x [N, 49] by the classifier's formula, class [N]."""

    def __init__(self, store, site):
        records = store.committed(site)
        shards = [store.token_shard(site, record.name) for record in records]
        self.pixels = np.concatenate([shard.inputs for shard in shards]) / 255
        self.activations = np.concatenate([store.csr(site, r.name).toarray() for r in records]).astype(float)
        self.model = store.plans[store.site(site).pass_name].model
        w = load_file(f"{self.model}/model.safetensors")
        hidden = np.tanh(self.pixels.astype(np.float32) @ w["encode.weight"].T + w["encode.bias"])
        self.x = np.maximum(hidden, 0)
        self.decoder = load_file(f"{self.model}/image_decoder.safetensors")
        result = store.scan_tokens().select("class").collect()["class"]
        self.classes = np.array(result.to_list())
        weights, _ = store.site_weights(site)
        self.w_dec, self.b_dec = weights["W_dec"].astype(float), weights["b_dec"].astype(float)

    def loss(self, activations, x, rho):
        error = ((x - activations @ self.w_dec - self.b_dec) ** 2).mean()
        mean = activations.mean(axis=0).clip(1e-7, 1 - 1e-7)
        return error + 1e-4 * (rho * np.log(rho / mean) + (1 - rho) * np.log((1 - rho) / (1 - mean))).sum()

    def image(self, values):
        return expit(values @ self.decoder["decode.weight"].T.astype(float) + self.decoder["decode.bias"])


@pytest.mark.parametrize(("site", "rho"), [("rho0.1", 0.1), ("rho0.999", 0.999)])
def test_importance_is_what_ablating_each_feature_over_each_class_finds(store, site, rho):
    assert len(store.committed(site)) >= 3
    table = importance(store, site)
    message = store.scan_table(site, "importance_classes").collect()
    assert (table.schema, message.schema) == (pl.Schema(IMPORTANCE), pl.Schema(IMPORTANCE_CLASSES))
    assert message["value"].to_list() == [*CLASSES, None]
    assert message["against"].unique().to_list() == ["x"]
    assert message["rows"].to_list() == [EACH] * 4 + [4 * EACH]
    rows = Dense(store, site)
    for value in (*CLASSES, None):
        mine = slice(None) if value is None else rows.classes == value
        activations, x = rows.activations[mine], rows.x[mine]
        whole = rows.loss(activations, x, rho)
        samples = zip(activations, x, strict=True)
        literal = whole if value is None else np.mean([rows.loss(a, row, rho) for a, row in samples])
        ablated = []
        for feature in range(24):
            without = activations.copy()
            without[:, feature] = 0
            ablated.append(rows.loss(without, x, rho))
        change, slipped = np.array(ablated) - whole, np.array(ablated) - literal
        part = table.filter(pl.col("value").eq_missing(value)).sort("feature")
        np.testing.assert_allclose(part["loss_change"], change, rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(part["importance"], change / change.sum(), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(part["literal_importance"], slipped / slipped.sum(), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(part["mean_all"], activations.mean(axis=0), rtol=1e-6)
        assert part["n_active"].to_list() == (activations != 0).sum(axis=0).tolist()
        order = np.argsort(-part["importance"], kind="stable").tolist()
        assert part.sort("rank")["feature"].to_list() == order
        row = message.filter(pl.col("value").eq_missing(value)).row(0, named=True)
        assert row["loss"] == pytest.approx(whole, rel=1e-5)
        assert row["literal_loss"] == pytest.approx(literal, rel=1e-5)


def by_the_notebook(rows, rho):
    """Its own two loops, in torch: importances of each class, and of all, where the batch's loss is taken."""
    w_dec, b_dec = torch.from_numpy(rows.w_dec), torch.from_numpy(rows.b_dec)
    acts, x = torch.from_numpy(rows.activations), torch.from_numpy(rows.x.astype(float))

    def loss(hidden, target):
        mean = hidden.mean(dim=0).clamp(1e-7, 1 - 1e-7)
        divergence = rho * torch.log(rho / mean) + (1 - rho) * torch.log((1 - rho) / (1 - mean))
        return torch.nn.functional.mse_loss(hidden @ w_dec + b_dec, target) + 1e-4 * divergence.sum()

    def without(hidden, target):
        return torch.stack([loss(hidden * (torch.arange(hidden.shape[1]) != f), target) for f in range(24)])

    shares = {}
    for value in CLASSES:
        mine = torch.from_numpy(rows.classes == value)
        before = torch.stack([loss(a, row) for a, row in zip(acts[mine], x[mine], strict=True)]).mean()
        change = without(acts[mine], x[mine]) - before
        shares[value] = change / change.sum()
    change = without(acts, x) - loss(acts, x)
    return shares | {None: change / change.sum()}


@pytest.mark.parametrize(("site", "rho"), [("rho0.1", 0.1), ("rho0.999", 0.999)])
def test_literal_importance_is_the_notebook_s_of_each_class_and_of_all(store, site, rho):
    table = importance(store, site)
    for value, expected in by_the_notebook(Dense(store, site), rho).items():
        part = table.filter(pl.col("value").eq_missing(value)).sort("feature")
        np.testing.assert_allclose(part["literal_importance"], expected, rtol=1e-3, atol=1e-6)
    every = table.filter(pl.col("value").is_null())
    assert every["literal_importance"].equals(every["importance"].rename("literal_importance"))
    message = store.scan_table(site, "importance_classes").collect().filter(pl.col("value").is_null())
    assert message["literal_loss_change"].to_list() == message["loss_change"].to_list()


def test_any_number_of_workers_gives_the_same_bits(store):
    one = importance(store, "rho0.1")
    with Processes(2) as tasks:
        assert importance(store, "rho0.1", tasks=tasks).equals(one)


def test_without_a_penalty_the_error_alone_counts(store):
    table = importance(store, "rho0.1", penalty=0.0)
    classes = store.scan_table("rho0.1", "importance_classes").collect()
    assert (
        classes["loss"].to_list()
        == classes["mean_squared_error"].to_list()
        == classes["literal_loss"].to_list()
    )
    assert table["importance"].to_list() == table["literal_importance"].to_list()
    importance(store, "rho0.1")


def test_images_are_decoded_means_and_similarities_those_of_the_vectors(store):
    site = "rho0.1"
    table, rows = importance(store, site), Dense(store, site)
    alone = images(store, site)
    together = store.scan_table(site, "class_images").collect()
    similar = store.scan_table(site, "feature_similarity").collect()
    for result, schema in ((alone, FEATURE_IMAGES), (together, CLASS_IMAGES), (similar, FEATURE_SIMILARITY)):
        assert result.schema == pl.Schema(schema)
    best = top_features(table, 3)
    union = sorted({feature for value, some in best.items() if value is not None for feature in some})
    assert alone.filter(pl.col("classes").list.len() > 0)["feature"].to_list() == union
    vectors = []
    for row in alone.iter_rows(named=True):
        kept = np.zeros_like(rows.activations)
        kept[:, row["feature"]] = rows.activations[:, row["feature"]]
        values = (kept @ rows.w_dec + rows.b_dec).mean(axis=0)
        np.testing.assert_allclose(row["values"], values, atol=1e-6)
        np.testing.assert_allclose(row["image"], rows.image(values), atol=1e-6)
        assert row["classes"] == [value for value in CLASSES if row["feature"] in best[value]]
        if row["feature"] in union:
            vectors.append((values, rows.image(values)))
    distances = []
    for column, some in zip(("cosine", "image_cosine"), zip(*vectors, strict=True), strict=True):
        units = np.array(some) / np.linalg.norm(some, axis=1, keepdims=True)
        result = similar[column].to_numpy().reshape(len(union), -1)
        np.testing.assert_allclose(result, units @ units.T, atol=1e-6)
        distances.append((1 - units @ units.T).ravel())
    assert similar["agreement"][0] == pytest.approx(pearsonr(*distances).statistic, abs=1e-6)
    for row in together.iter_rows(named=True):
        mine = rows.classes == row["value"]
        if row["of"] == "pixels":
            np.testing.assert_allclose(row["image"], rows.pixels[mine].mean(axis=0), atol=1e-6)
            continue
        features = top_features(table, 30)[row["value"]]
        kept = np.zeros_like(rows.activations)
        kept[:, features] = rows.activations[:, features]
        own = kept if row["of"] == "all_rows" else kept[mine]
        values = (own @ rows.w_dec + rows.b_dec).mean(axis=0)
        np.testing.assert_allclose(row["values"], values, atol=1e-5)
        np.testing.assert_allclose(row["image"], rows.image(values), atol=1e-5)
        assert row["rows"] == len(own)
    assert together["of"].value_counts()["count"].to_list() == [4, 4, 4]


def test_a_classifier_that_is_not_the_pass_s_is_refused(store, tmp_path, monkeypatch):
    path = Path(store.plans[store.site("rho0.1").pass_name].model)
    other = shutil.copytree(path, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"shape": [4, 16]}))
    importance(store, "rho0.1")
    with pytest.raises(InputError, match=r"other is not the model that the pass was made with .* --model"):
        images(store, "rho0.1", str(other))
    assert decoders_of(store, "rho0.1", str(shutil.copytree(path, tmp_path / "same"))).sides == (8, 8)
    whole = read_decoder(path)
    monkeypatch.setattr("jobs.tables.feature_images.read_decoder", lambda _: replace(whole, shape=(4, 16)))
    with pytest.raises(InputError, match=r"of the shape \[4, 16\], but those of the store have \[8, 8\]"):
        images(store, "rho0.1")


def test_a_classifier_trained_anew_in_its_place_is_refused(store, tmp_path):
    """As `train-digits OUT --seed 7` leaves it, over the folder that the plan names."""
    path, site = Path(store.plans[store.site("rho0.1").pass_name].model), "rho0.1"
    before = shutil.copytree(path, tmp_path / "before")
    weights = load_file(path / "image_decoder.safetensors")
    try:
        save_file({name: array + 1 for name, array in weights.items()}, path / "image_decoder.safetensors")
        with pytest.raises(InputError, match="is not the one that config"):
            steer(store, site, ["3=1"])
        config = json.loads((path / "config.json").read_text())
        config["image_decoder_sha256"] = sha256((path / "image_decoder.safetensors").read_bytes()).hexdigest()
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="is not the model that the pass was made with"):
            steer(store, site, ["3=1"])
        result = steer(store, site, ["3=1"], model=str(before))
        assert result.pixels[1].shape == (64,)
    finally:
        shutil.copytree(before, path, dirs_exist_ok=True)


def test_features_are_set_added_to_and_multiplied(store, tmp_path, capsys):
    site, rows = "rho0.1", Dense(store, "rho0.1")
    result = steer(store, site, ["3=2.5", "4=+1", "5=*0"], row=7, out=tmp_path / "a.png")
    expected = rows.activations[7].copy()
    expected[3], expected[4], expected[5] = 2.5, expected[4] + 1, 0
    np.testing.assert_allclose(result.activations[0], rows.activations[7])
    np.testing.assert_allclose(result.activations[1], expected)
    values = expected @ rows.w_dec + rows.b_dec
    np.testing.assert_allclose(result.values[1], values, atol=1e-6)
    np.testing.assert_allclose(result.pixels[1], rows.image(values), atol=1e-6)
    assert result.probabilities[1].sum() == pytest.approx(1)
    assert (tmp_path / "a.png").stat().st_size > 5_000
    assert "before: " in capsys.readouterr().out
    alone = steer(store, site, ["3=2.5"], row=7, only=True)
    assert np.flatnonzero(alone.activations[1]).tolist() == [3]
    nothing = steer(store, site, ["3=0"])
    np.testing.assert_allclose(nothing.values[1], rows.b_dec)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["steer", "--site", "rho0.1", "--set", "24=1"], "its features are 0 to 23"),
        (["steer", "--site", "rho0.1", "--set", "x"], "is not FEATURE=VALUE"),
        (["steer", "--site", "rho0.1", "--set", "1=1", "--row", "999"], "rows go from 0 to 159"),
        (["steer", "--site", "rho0.1", "--set", "3=1e999"], "'1e999' is not a finite number"),
        (["steer", "--site", "rho0.1", "--set", "3=1e300", "--set", "3=*1e300"], "too large to compute"),
        (["importance", "--label", "party"], "has the label columns class, not 'party'"),
        (["importance", "--rho", "1"], "must lie between 0 and 1"),
        (["importance", "--penalty", "-1"], "give 0 or more"),
        (["images", "--model", "nowhere"], "has no image decoder"),
    ],
)
def test_what_can_be_fixed_is_reported_in_a_sentence(store, capsys, command, message):
    importance(store, "rho0.1")
    with pytest.raises(SystemExit) as stop:
        cli.main([command[0], str(store.layout.root), *command[1:]])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a.gif", "must end with .png or .svg"),
        ("folder", "must end with .png or .svg"),
        ("folder.png", "cannot be a file"),
        ("file/a.png", "cannot be a file"),
    ],
)
def test_where_nothing_can_be_drawn_is_reported_before_the_work(store, tmp_path, monkeypatch, out, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr("jobs.studies.digits.steer.decoders_of", None)  # fails where it is called
    with pytest.raises(InputError, match=message):
        steer(store, "rho0.1", ["3=1"], out=tmp_path / out)


def test_a_store_of_words_has_importances_by_a_label_and_says_that_x_is_not_there(tmp_path, capsys):
    from pipeline.store import FeatureStore
    from pipeline.store.records.site import write_site_weights

    built = build(tmp_path / "store", shards=2)
    opened = FeatureStore.open(built.layout.root)
    random = np.random.default_rng(0)
    weights = {
        "W_dec": random.standard_normal((40, 4)).astype(np.float32),
        "b_dec": np.zeros(4, np.float32),
    }
    write_site_weights(built.layout, "p", built.plan.sites[0], weights, {})
    table = importance(opened, "site", label="party")
    assert "has no x" in " ".join(capsys.readouterr().out.split())
    message = opened.scan_table("site", "importance_classes").collect()
    stored = built.tokens.filter(pl.col("token") != 0)
    assert message["rows"][-1] == stored.height
    expected = dict(stored.drop_nulls("party").group_by("party").len().iter_rows())
    assert dict(message.drop_nulls("value").select("value", "rows").iter_rows()) == expected
    dense, w_dec = built.dense["site"].astype(float), weights["W_dec"].astype(float)
    change = (dense**2).sum(axis=0) * (w_dec**2).sum(axis=1) / 4 / stored.height
    result = table.filter(pl.col("value").is_null()).sort("feature")["loss_change"]
    np.testing.assert_allclose(result, change, rtol=1e-9)
    with pytest.raises(InputError, match="choose one with `latentlake importance --label COLUMN`"):
        importance(opened, "site")


def test_too_many_classes_are_refused(store, monkeypatch):
    monkeypatch.setattr("jobs.tables.importance.MOST_CELLS", 24 * 4)
    with pytest.raises(InputError, match="label 'class' has 4 values, too many for 24 features"):
        importance(store, "rho0.1")
    assert statistic.CLAMP == 1e-7
