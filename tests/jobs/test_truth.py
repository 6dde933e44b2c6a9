"""From the recipe of a dictionary through the whole line to its truth."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from jobs.figures import FIGURES
from jobs.figures.plots import draw, plots
from jobs.lake.extract import extract
from jobs.lake.tokenize import tokenize
from jobs.studies.known.compare import detected_hierarchy
from jobs.studies.known.drawn import draws_again
from jobs.studies.known.make_dictionary import make_dictionary
from jobs.studies.known.truth import _can_draw_again, _of_rows, truth
from jobs.tables.coactivation import coactivation
from jobs.tables.profile import profile
from jobs.tables.rank import rank
from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from pipeline.synthetic.dictionary.generator import NumpyDictionary, all_blocks
from pipeline.synthetic.dictionary.sae import SaeOptions, order_of
from pipeline.synthetic.dictionary.truth import KnownTruth, read_truth, write_truth
from schemas.errors import InputError
from schemas.run.file import parse_run_file
from schemas.values import RowSelection
from tests.saes.reference import sae_lens

pytestmark = pytest.mark.slow

MADE = [SaeOptions(noise=0.0, seed=2), SaeOptions(noise=0.03, seed=5)]

RECIPE = {
    "features": 40,
    "width": 48,
    "documents": 600,
    "rows": 20,
    "seed": 3,
    "cosine": 0.0,
    "cosines": [{"features": [38, 39], "cosine": 0.3}],
    "probability": {"first": 0.3, "last": 0.03},
    "magnitude": {"first": 1.0, "last": 3.0},
    "magnitude_std": {"first": 0.1, "last": 0.3},
    "noise": 0.01,
    "bias": 1.5,
    "correlated": [
        {"features": [20, 21], "correlation": 0.9},
        {"features": [22, 23, 24], "correlation": 0.8},
    ],
    "trees": [
        {
            "feature": 0,
            "children": [
                {"feature": 1, "children": [{"feature": 2}]},
                {"exclusive": True, "children": [{"feature": 3}, {"feature": 4}, {"feature": 5}]},
            ],
        }
    ],
}


def content(folder: Path, recipe: dict[str, Any], made: list[SaeOptions]) -> dict[str, Any]:
    return {
        "corpus": {"kind": "dictionary", "dictionary": recipe},
        "tokens": {"context_size": 64, "shard_tokens": 4000},
        "model": {"loader": "inputs"},
        "sites": [{"name": name, "sae": str(folder / f"sae-{one.noise:g}")} for name, one in named(made)],
        "store": {"root": str(folder / "store"), "activation_dtype": "float32"},
        "extract": {"executor": "in_process", "cpus_per_worker": 1, "batch_contexts": 16},
    }


def named(made: list[SaeOptions]) -> list[tuple[str, SaeOptions]]:
    return list(zip(("exact", "noisy"), made, strict=False))


def measured(folder: Path, recipe: dict[str, Any], made: list[SaeOptions]) -> tuple[FeatureStore, KnownTruth]:
    """A store of the recipe with the tables that the truth is compared with."""
    run_file = parse_run_file(content(folder, recipe, made), "run.yaml")
    known = make_dictionary(run_file.corpus, folder, made)
    tokenize(run_file)
    extract(run_file)
    store = FeatureStore.open(folder / "store")
    for site in store.sites:
        stats(store, site)
        coactivation(store, site, decoder=False)
        profile(store, site)
    return store, known


@pytest.fixture(scope="module")
def known_store(tmp_path_factory):
    store, known = measured(tmp_path_factory.mktemp("known"), RECIPE, MADE)
    truth(store, ["exact", "noisy"], known, figures=False)
    return store, known


def table(store: FeatureStore, site: str, name: str = "truth") -> pl.DataFrame:
    return store.scan_table(site, name).collect()


def drawn(known: KnownTruth) -> tuple[sparse.csr_matrix, np.ndarray]:
    blocks = list(all_blocks(NumpyDictionary(known.recipe)))
    return sparse.vstack([b.values for b in blocks]).tocsr(), np.concatenate([b.x for b in blocks])


def dense(store: FeatureStore, site: str) -> np.ndarray:
    return sparse.vstack([store.csr(site, shard.name) for shard in store.shards]).toarray()


def test_what_is_stored_is_the_sae_computed_densely_on_the_vectors_drawn(known_store):
    store, known = known_store
    _, x = drawn(known)
    for site in ("exact", "noisy"):
        weights, _ = store.site_weights(site)
        pre = (x.astype(np.float64) - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        expected = np.where(pre > weights["threshold"], pre, 0)
        result = dense(store, site)
        near = np.abs(pre - weights["threshold"]) < 1e-5
        assert near.sum() < 5
        np.testing.assert_allclose(result[~near], expected[~near], rtol=1e-5, atol=1e-5)


def test_every_feature_is_matched_with_its_own(known_store):
    store, _ = known_store
    for site, made in named(MADE):
        result = table(store, site)
        np.testing.assert_array_equal(result["true_feature"], order_of(made, 40))
        np.testing.assert_array_equal(result["nearest_true_feature"], order_of(made, 40))
        assert result["decoder_cosine"].min() > (0.9999 if made.noise == 0 else 0.95)
        np.testing.assert_allclose(result["encoder_cosine"], result["decoder_cosine"], atol=1e-6)


def test_the_literal_order_is_that_of_the_best_site_for_both(known_store):
    store, _ = known_store
    best = order_of(MADE[0], 40)
    for site in ("exact", "noisy"):
        np.testing.assert_array_equal(table(store, site)["place"], best)


def test_the_exact_sae_fires_in_exactly_the_rows_that_were_drawn(known_store):
    store, known = known_store
    values, _ = drawn(known)
    own = order_of(MADE[0], 40)
    result = table(store, "exact")
    n_drawn = np.asarray((values > 0).sum(axis=0)).ravel()[own]
    for name in ("n_active", "n_drawn", "n_hits"):
        np.testing.assert_array_equal(result[name], n_drawn)
    assert result["precision"].to_list() == result["recall"].to_list() == [1.0] * 40
    means = np.asarray(values.sum(axis=0)).ravel()[own] / n_drawn
    is_alone = ~np.isin(own, [38, 39])  # these two see each other
    np.testing.assert_allclose(result["mean_active"].to_numpy()[is_alone], means[is_alone], rtol=0.01)


def test_hits_and_drawn_rows_of_a_noisy_sae_are_those_counted_densely(known_store):
    store, known = known_store
    values, _ = drawn(known)
    true = values.toarray()[:, order_of(MADE[1], 40)] > 0
    active = dense(store, "noisy") > 0
    result = table(store, "noisy")
    np.testing.assert_array_equal(result["n_drawn"], true.sum(axis=0))
    np.testing.assert_array_equal(result["n_hits"], (true & active).sum(axis=0))
    np.testing.assert_allclose(result["precision"], (true & active).sum(axis=0) / active.sum(axis=0))
    np.testing.assert_allclose(result["recall"], (true & active).sum(axis=0) / true.sum(axis=0))


class Drawn:
    """Rows that were drawn, as sae-lens asks a generator for them; a batch after another."""

    def __init__(self, values: np.ndarray, x: np.ndarray) -> None:
        self.values, self.x, self.place = values, x, 0

    def sample(self, n: int) -> Any:
        import torch

        self.place += n
        return torch.from_numpy(self.values[self.place - n : self.place])

    def vectors_of(self, n: int) -> Any:
        import torch

        return torch.from_numpy(self.x[self.place - n : self.place])


def evaluated_by_sae_lens(sae: Path, known: KnownTruth) -> dict[str, Any]:
    """Its own evaluation of the SAE on the rows of the store."""
    import torch

    package = sae_lens()
    evals = importlib.import_module("sae_lens.synthetic.evals")
    values, x = drawn(known)
    rows = Drawn(values.toarray(), x)

    def dictionary(acts: Any) -> Any:
        return rows.vectors_of(len(acts))

    dictionary.feature_vectors = torch.from_numpy(known.vectors)  # type: ignore[attr-defined]
    its = package.SAE.load_from_disk(sae, dtype="float32")
    result = evals.eval_sae_on_synthetic_data(its, dictionary, rows, num_samples=len(x), batch_size=1000)
    message: dict[str, Any] = result.to_dict()
    return message | message.pop("classification")


SAME = {"l0": "sae_l0", "dead": "dead_latents", "f1": "f1_score"}


def assert_as_sae_lens_says(result: pl.DataFrame, theirs: dict[str, Any]) -> None:
    names = ("true_l0", "l0", "dead", "explained_variance", "shrinkage", "mcc", "uniqueness")
    for name in (*names, "precision", "recall", "f1", "accuracy"):
        assert abs(result[name][0] - theirs[SAME.get(name, name)]) < 2e-5, name


def test_the_summary_of_each_sae_is_the_evaluation_of_sae_lens_on_the_same_rows(known_store):
    store, known = known_store
    for site, made in named(MADE):
        theirs = evaluated_by_sae_lens(store.layout.root.parent / f"sae-{made.noise:g}", known)
        assert_as_sae_lens_says(table(store, site, "truth_summary"), theirs)
    exact, noisy = (table(store, site, "truth_summary").row(0, named=True) for site in ("exact", "noisy"))
    assert abs(exact["true_l0"] - exact["expected_l0"]) < 0.05
    assert (exact["l0"], exact["dead"], exact["precision"], exact["f1"]) == (exact["true_l0"], 0, 1.0, 1.0)
    assert exact["explained_variance"] > 0.999 > noisy["explained_variance"] > 0.9
    assert exact["mcc"] > 0.9999 > noisy["mcc"] > 0.95
    assert 0.99 < noisy["f1"] < 1


@pytest.mark.slow  # another store
def test_an_sae_of_which_half_is_dead_and_one_that_is_random_are_reported(known_store, tmp_path):
    """Both are copies of the exact SAE: half of its thresholds out of reach; its directions random."""
    store, known = known_store
    half, random = (tmp_path / name for name in ("half", "random"))
    for folder in (half, random):
        shutil.copytree(store.layout.root.parent / "sae-0", folder)
    rng = np.random.default_rng(9)
    with changed(half) as weights:
        weights["threshold"][::2] = 1e6
    with changed(random) as weights:
        rows = rng.standard_normal((40, 48)).astype(np.float32) / 48**0.5
        weights["W_enc"], weights["W_dec"] = np.ascontiguousarray(rows.T), rows
    run = content(tmp_path, RECIPE, MADE)
    run["sites"] = [{"name": folder.name, "sae": str(folder)} for folder in (half, random)]
    run_file = parse_run_file(run, "run.yaml")
    tokenize(run_file)
    extract(run_file)
    other = FeatureStore.open(tmp_path / "store")
    for site in other.sites:
        stats(other, site)
    truth(other, list(other.sites), known, figures=False)
    result = {site: table(other, site, "truth_summary").row(0, named=True) for site in other.sites}
    for folder in (half, random):
        assert_as_sae_lens_says(
            table(other, folder.name, "truth_summary"), evaluated_by_sae_lens(folder, known)
        )
    exact, one, two = (
        table(store, "exact", "truth_summary").row(0, named=True),
        result["half"],
        result["random"],
    )
    assert (one["dead"], one["mcc"], one["uniqueness"]) == (20, exact["mcc"], 1.0)
    assert (one["precision"], one["recall"]) == (0.5, 0.5)
    assert one["l0"] < 0.7 * exact["l0"]
    assert one["explained_variance"] < 0.8 * exact["explained_variance"]
    assert one["shrinkage"] < exact["shrinkage"]
    assert two["mcc"] < 0.5
    assert two["f1"] < 0.5 * one["f1"]
    assert two["explained_variance"] < one["explained_variance"]


@contextmanager
def changed(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """The weights of an SAE, saved again."""
    from safetensors.numpy import load_file, save_file

    path = folder / "sae_weights.safetensors"
    weights = load_file(path)
    yield weights
    save_file(weights, path)


def held(result: pl.DataFrame, true: str, ends: str) -> int:
    return result.filter(pl.col(true).is_between(pl.col(f"{ends}_low"), pl.col(f"{ends}_high"))).height


def test_intervals_of_one_store_hold_most_of_the_truth_and_the_noisy_mean_is_the_encoders(known_store):
    store, _ = known_store
    exact, noisy = table(store, "exact"), table(store, "noisy")
    assert held(exact, "true_frequency", "frequency") >= 34  # fewer: one case in 600
    assert held(exact, "expected_mean", "mean") >= 34
    assert held(noisy, "expected_mean", "mean") >= 33
    assert held(noisy, "true_mean", "mean") < 15
    by_document = store.scan_table("exact", "profile").select("feature", "frequency_low", "frequency_high")
    both = exact.drop("frequency_low", "frequency_high").join(by_document.collect(), on="feature")
    assert held(both, "true_frequency", "frequency") >= 34


def test_pairs_are_counted_as_densely_and_agree_with_the_closed_form(known_store):
    store, known = known_store
    active = dense(store, "exact") > 0
    result = table(store, "exact", "truth_pairs")
    kinds = result["kind"].value_counts().sort("kind").rows()
    assert kinds == [("ancestor", 1), ("correlated", 4), ("exclusive", 3), ("parent", 5)]
    for row in result.iter_rows(named=True):
        a, b = active[:, row["a"]], active[:, row["b"]]
        assert row["n_both"] == (a & b).sum()
        assert abs(row["phi"] - np.corrcoef(a, b)[0, 1]) < 1e-9
        assert row["true_frequency"] == known.both(row["true_a"], row["true_b"])
        error = (row["true_frequency"] / len(active)) ** 0.5
        assert abs(row["frequency"] - row["true_frequency"]) <= 4.5 * error


def test_co_activation_finds_correlated_pairs_first_and_children_only_with_parents(known_store):
    store, _ = known_store
    for site in ("exact", "noisy"):
        pairs = table(store, site, "truth_pairs")
        correlated = pairs.filter(pl.col("kind") == "correlated")
        partners = np.where(correlated["true_a"] == 20, 1, 2)
        for name in ("jaccard", "npmi", "phi"):
            assert (correlated[f"rank_{name}"].to_numpy() < partners).all()
        exclusive = pairs.filter(pl.col("kind") == "exclusive")
        assert exclusive["n_both"].sum() <= (0 if site == "exact" else 5)
    children = table(store, "exact", "truth_pairs").filter(pl.col("kind").is_in(["parent", "ancestor"]))
    assert children["conditional"].to_list() == [1.0] * 6
    assert children["rank_conditional"].max() < 2


def test_the_hierarchy_is_found_from_co_activation_alone(known_store):
    store, known = known_store
    own = {true: feature for feature, true in enumerate(order_of(MADE[0], 40).tolist())}
    edges = detected_hierarchy(
        store.scan_table("exact", "neighbours").collect(), store.scan_features("exact").collect()
    )
    expected = {(own[child], own[above]) for child, above in known.relations.ancestors.tolist()}
    assert set(edges.select("child", "parent").rows()) == expected


def test_a_frequent_feature_that_fires_next_to_another_by_chance_is_no_parent():
    pair = {"feature": 0, "neighbour": 1, "by": "conditional", "n_both": 600, "n_a": 1000, "n_b": 6000}
    features = pl.DataFrame({"counted_rows": [10_000] * 2})
    for n_both, result in ((600, 0), (720, 1)):  # of 1,000 rows at 0.6: the mean, and 7.7 deviations above
        neighbours = pl.DataFrame([pair | {"n_both": n_both, "conditional": n_both / 1000}])
        assert detected_hierarchy(neighbours, features, least=0.5).height == result


def test_figures_are_drawn_of_its_tables_and_the_cosines_of_the_heat_map_are_in_its_order(known_store):
    store, known = known_store
    cosines = table(store, "noisy", "truth_cosines")
    assert cosines.height == 40 * 40
    on_the_diagonal = cosines.filter(pl.col("place") == pl.col("true_feature"))
    weights, _ = store.site_weights("noisy")
    first = on_the_diagonal.row(7, named=True)
    row, true = weights["W_dec"][first["feature"]].astype(float), known.vectors[7].astype(float)
    assert abs(first["decoder"] - row @ true / np.linalg.norm(row) / np.linalg.norm(true)) < 1e-5
    for name in ("truth_frequency", "truth_mean", "truth_cosines"):
        paths = draw(store, "noisy", name, table(store, "noisy", FIGURES[name].table))
        assert [path.stat().st_size > 10_000 for path in paths] == [True, True]


@pytest.mark.slow  # starts two processes
def test_the_answer_is_the_same_from_another_file_of_the_truth_and_in_two_processes(known_store, tmp_path):
    from pipeline.tasks import Processes

    store, known = known_store
    before = table(store, "noisy"), table(store, "noisy", "truth_pairs")
    write_truth(known, (tmp_path / "truth.npz").write_bytes)
    with Processes(2) as tasks:
        truth(store, ["exact", "noisy"], read_truth(tmp_path / "truth.npz"), tasks, figures=False)
    assert table(store, "noisy").equals(before[0])
    assert table(store, "noisy", "truth_pairs").equals(before[1])


def test_plots_names_no_command_that_such_a_corpus_has_no_use_for(known_store, capsys):
    store, _ = known_store
    rank(store, "exact", ("frequency",))
    names = {path.stem for path in plots(store, "exact")}
    output = " ".join(capsys.readouterr().out.split())
    assert {"truth_frequency", "l0_thresholds"} < names
    assert "label_differences" not in names  # there are no labels
    assert "`latentlake cluster`" in output
    assert not [
        name for name in ("logits", "fidelity", "profile", "attribute") if f"latentlake {name}`" in output
    ]


def test_what_it_says_is_truth_against_measured(known_store, capsys):
    store, known = known_store
    truth(store, ["exact"], known, figures=False)
    output = " ".join(capsys.readouterr().out.split())
    assert "40 features against 40 true ones" in output
    assert "explained variance 0.999" in output
    assert "F1, of the nearest true feature 1.0000" in output
    assert "every feature fires in exactly the right rows" in output
    assert "recovered from co-activation alone: 6 of 6, and no other" in output
    assert "exclusive pairs: 3 of 3 (100.0%) never fire together" in output


def test_the_truth_of_another_recipe_is_refused(known_store):
    store, known = known_store
    other = KnownTruth(known.recipe.model_copy(update={"seed": 4}), known.vectors, known.bias)
    with pytest.raises(InputError, match="was drawn with seed 3, the truth is of seed 4"):
        truth(store, ["exact"], other)


def test_a_truth_with_other_directions_than_the_store_is_refused_in_a_sentence(known_store, tmp_path):
    """As an older version, or another machine, made them of the same recipe."""
    store, known = known_store
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(48, 48)))[0]
    other = replace(known, first=known.first @ turned)
    write_truth(other, (tmp_path / "truth.npz").write_bytes)
    with pytest.raises(InputError, match="differ from those that its recipe gave when the truth was made"):
        truth(store, ["exact"], read_truth(tmp_path / "truth.npz"), figures=False)


def test_where_numpy_draws_other_rows_than_the_store_holds_they_are_not_compared(
    known_store, monkeypatch, capsys
):
    store, known = known_store
    block = NumpyDictionary.block
    monkeypatch.setattr(NumpyDictionary, "block", lambda made, number: block(made, number + 1))
    assert not draws_again(known)
    assert draws_again(replace(known, first=known.first[:0]))
    monkeypatch.undo()
    assert draws_again(known)
    monkeypatch.setattr("jobs.studies.known.truth.draws_again", lambda known: False)
    assert not _can_draw_again(store, "exact", known)
    assert "rows are not compared one by one, this version of NumPy" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_pooled_site_is_passed_over_and_refused_where_it_is_the_only_one(known_store, monkeypatch, capsys):
    store, _ = known_store
    pooled = SimpleNamespace(selection=RowSelection(pooling="mean"))
    site = store.site
    monkeypatch.setattr(type(store), "site", lambda _, name: pooled if name == "noisy" else site(name))
    assert _of_rows(store, ["noisy", "exact"]) == ["exact"]
    assert "site 'noisy' pools the rows of a context" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(InputError, match=r"site 'noisy' pools the rows .*: give a site without pooling"):
        _of_rows(store, ["noisy"])


def test_a_corpus_of_text_has_no_dictionary_to_make(tmp_path):
    from schemas.run.file import Corpus

    with pytest.raises(InputError, match=r"corpus\.kind is text"):
        make_dictionary(Corpus(path="x"), tmp_path, MADE)


def test_over_seeds_95_in_100_intervals_hold_the_truth(tmp_path):
    shares = {name: [] for name in ("rows", "documents", "means")}
    for seed in range(8):
        recipe = RECIPE | {"seed": 100 + seed, "correlated": [], "trees": [], "documents": 300}
        store, known = measured(tmp_path / str(seed), recipe, MADE[:1])
        truth(store, ["exact"], known, figures=False)
        result = table(store, "exact")
        by_document = store.scan_table("exact", "profile").select(
            "feature", "frequency_low", "frequency_high"
        )
        both = result.drop("frequency_low", "frequency_high").join(by_document.collect(), on="feature")
        shares["rows"].append(held(result, "true_frequency", "frequency"))
        shares["documents"].append(held(both, "true_frequency", "frequency"))
        shares["means"].append(held(result, "expected_mean", "mean"))
    n = 8 * 40
    for name, counts in shares.items():
        share, error = sum(counts) / n, (0.05 * 0.95 / n) ** 0.5
        assert 0.95 - 3.5 * error < share, (name, share)
    assert sum(shares["means"]) / n < 0.995


def test_a_dictionary_of_sae_lens_goes_the_same_way(tmp_path):
    sae_lens()
    recipe = RECIPE | {"generator": "saelens"}
    store, known = measured(tmp_path, recipe, MADE[:1])
    truth(store, ["exact"], known, figures=False)
    result, pairs = table(store, "exact"), table(store, "exact", "truth_pairs")
    assert result["n_drawn"].is_null().all()
    assert held(result, "true_frequency", "frequency") >= 34
    assert held(result, "expected_mean", "mean") >= 34
    correlated = pairs.filter(pl.col("kind") == "correlated")
    assert (correlated["rank_phi"].to_numpy() < np.where(correlated["true_a"] == 20, 1, 2)).all()
    assert pairs.filter(pl.col("kind") == "parent")["conditional"].to_list() == [1.0] * 5
