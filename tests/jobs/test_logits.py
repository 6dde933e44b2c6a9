"""Direct unembedding equals the dense formula on transformers' modules, as do random directions."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from matplotlib import rc_context
from scipy.special import log_softmax

from jobs import cli
from jobs.evaluation.logits import LOGITS, LOGITS_HISTOGRAM, evenly, logits, of_random
from jobs.figures.fidelity import draw_fidelity
from jobs.figures.logits import draw_logit_entropy, draw_logit_max_probability
from jobs.figures.plots import render
from jobs.figures.style import STYLE
from pipeline.evaluation import direct_logits
from pipeline.statistics.evaluation.fidelity import FIDELITY, MEASURES
from schemas.errors import InputError
from tests.fixtures.runs import extracted, run_file, write_corpus
from tests.kit import WORDS_VOCAB, write_sae, write_tiny_llama, write_tiny_tokenizer
from tests.models.reference import causal_model

pytestmark = pytest.mark.slow

HOOKS = {
    "stream": "blocks.1.hook_resid_post",
    "mlp": "blocks.0.hook_mlp_out",
    "module": "blocks.0.mlp.hook_out",
    "heads": "blocks.0.attn.hook_z",
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A store of three sites of a tiny Llama, BOS counted with activations set to 0; its folder."""
    folder = tmp_path_factory.mktemp("logits")
    write_tiny_llama(folder / "model")
    write_corpus(folder / "corpus.parquet", documents=12)
    write_tiny_tokenizer(folder / "tokenizer")
    sites = []
    for seed, (name, hook) in enumerate(HOOKS.items()):
        sae = write_sae(folder / name, "topk", d_sae=40, hook_name=hook, context_size=16, seed=seed)
        sites.append({"name": name, "sae": str(sae)})
    model = {"loader": "transformer_lens", "path": str(folder / "model")}
    tokens = {"special_tokens": "zero_first", "prepend_bos": True}
    return extracted(run_file(folder, sites=sites, model=model, tokens=tokens), tables=False), folder


def by_hand(store, folder, site):
    """log p [F, V] and logits [F, V] by the formula, on dense activations and transformers' modules."""
    records = store.committed(site)
    dense = np.concatenate([store.csr(site, record.name).toarray() for record in records]).astype(np.float64)
    counted = np.concatenate([store.token_shard(site, record.name).counted for record in records])
    norm = np.linalg.norm(dense[counted], axis=1).mean()
    weights = store.site_weights(site)[0]
    model = causal_model(folder / "model")
    vectors = torch.from_numpy(norm * weights["W_dec"].astype(np.float64) + weights["b_dec"]).float()
    with torch.no_grad():
        values = model.lm_head(model.model.norm(vectors)).double().numpy()
        effects = (torch.from_numpy(weights["W_dec"]) @ model.lm_head.weight.T).double().numpy()
    return values, effects - effects.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("site", ["stream", "mlp", "module"])
def test_entropy_probability_and_tokens_are_those_of_the_formula(lake, site):
    store, folder = lake
    table = logits(store, site, k=7)
    values, effects = by_hand(store, folder, site)
    assert values.std(axis=0).mean() > 0.1  # features differ, b_dec is not all there is
    log_p = log_softmax(values, axis=1)
    entropy = -(np.exp(log_p) * log_p).sum(axis=1) / np.log(2)
    assert table.schema == pl.Schema(LOGITS)
    assert table["feature"].to_list() == list(range(40))
    np.testing.assert_allclose(table["entropy_bits"], entropy, rtol=1e-4)
    np.testing.assert_allclose(table["max_probability"], np.exp(log_p.max(axis=1)), rtol=1e-4)
    for name, of, sign in (
        ("top_tokens", values, -1),
        ("bottom_tokens", values, 1),
        ("promoted_tokens", effects, -1),
        ("suppressed_tokens", effects, 1),
    ):
        expected = np.argsort(sign * of, axis=1)[:, :7]
        assert table[name].to_list() == expected.tolist(), name
    at = np.take_along_axis(values, np.array(table["top_tokens"].to_list()), axis=1)
    np.testing.assert_allclose(np.array(table["top_logits"].to_list()), at, rtol=1e-4, atol=1e-5)
    at = np.take_along_axis(effects, np.array(table["suppressed_tokens"].to_list()), axis=1)
    np.testing.assert_allclose(np.array(table["suppressed_effects"].to_list()), at, rtol=1e-4, atol=1e-5)


def test_the_histogram_of_effects_counts_every_token_once(lake):
    store, folder = lake
    table = logits(store, "stream")
    _, effects = by_hand(store, folder, "stream")
    counts = np.array(table["effect_counts"].to_list())
    assert (counts.sum(axis=1) == effects.shape[1]).all()
    np.testing.assert_allclose(table["effect_low"], effects.min(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table["effect_high"], effects.max(axis=1), rtol=1e-4, atol=1e-5)
    slack = 1e-5
    for row, own in zip(table.iter_rows(named=True), effects, strict=True):
        edges = np.linspace(row["effect_low"], row["effect_high"], direct_logits.BINS + 1)[1:-1]
        # values next to an edge may be on either side of it, by rounding
        below = np.cumsum(row["effect_counts"])[:-1]
        assert (below >= [(own < edge - slack).sum() for edge in edges]).all()
        assert (below <= [(own < edge + slack).sum() for edge in edges]).all()


def test_bins_of_even_width_hold_their_lower_edge():
    values = torch.tensor([[0.0, 1.0, 2.0, 48.0, 47.5], [3.0, 3.0, 3.0, 3.0, 3.0]])
    made = direct_logits.histograms(values)
    assert (made.low.tolist(), made.high.tolist()) == ([0.0, 3.0], [48.0, 3.0])
    assert np.flatnonzero(made.counts[0]).tolist() == [0, 1, 2, 47]
    assert made.counts[0][[0, 1, 2, 47]].tolist() == [1, 1, 1, 2]
    assert made.counts[1].tolist() == [5] + [0] * (direct_logits.BINS - 1)


def test_rows_without_activations_count_in_the_mean_norm(lake):
    store, _ = lake
    records = store.committed("stream")
    counted = sum(int(store.token_shard("stream", record.name).counted.sum()) for record in records)
    stored = sum(int(store.token_shard("stream", record.name).stored.sum()) for record in records)
    assert stored < counted  # BOS is counted with zeros: by_hand divides by all


def test_blocks_do_not_change_what_is_found(lake, monkeypatch):
    store, _ = lake
    whole = logits(store, "stream")
    monkeypatch.setattr(direct_logits, "LOGITS", 7 * WORDS_VOCAB)
    blocks = logits(store, "stream")
    assert blocks["top_tokens"].to_list() == whole["top_tokens"].to_list()
    np.testing.assert_allclose(blocks["entropy_bits"], whole["entropy_bits"], rtol=1e-5)


def test_random_directions_have_the_features_norms_and_the_bias_once():
    norms, b_dec = np.linspace(1, 9, 25, dtype=np.float32), np.arange(16, dtype=np.float32)
    parts = list(of_random(norms, b_dec, 10))
    assert [len(part.vectors) for part in parts] == [10, 10, 5]
    directions = np.concatenate([part.vectors for part in parts]) - b_dec
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), norms, rtol=1e-4)
    unit = directions / norms[:, None]
    assert np.abs(unit @ unit.T - np.eye(25)).max() < 0.9  # all of them differ
    again = np.concatenate([part.vectors for part in of_random(norms, b_dec, 10)])
    np.testing.assert_array_equal(again - b_dec, directions)


def test_random_directions_are_spread_over_the_features():
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 5) == [0, 1, 2, 0, 1]
    assert evenly(4, 4) == [0, 1, 2, 3]


def test_histograms_count_every_feature_and_direction(lake):
    store, _ = lake
    table = logits(store, "stream", random=30)
    drawn = store.scan_table("stream", "logits_random").collect()
    histogram = store.scan_table("stream", "logits_histogram").collect()
    assert drawn["direction"].to_list() == list(range(30))
    assert histogram.schema == pl.Schema(LOGITS_HISTOGRAM)
    for of, frame in (("feature", table), ("random", drawn)):
        for measure in ("entropy_bits", "max_probability"):
            part = histogram.filter(pl.col("of") == of, pl.col("measure") == measure)
            edges = [*part["low"], part["high"][-1]]
            assert part["n"].to_list() == np.histogram(frame[measure], bins=edges)[0].tolist()
            assert part["n"].sum() == frame.height
            assert part["median"][0] == frame[measure].median()


def test_lists_name_tokens_of_the_tokenizer_alone(lake, monkeypatch):
    """A model's vocabulary may be padded beyond the tokenizer's."""
    store, _ = lake
    monkeypatch.setattr(type(store), "vocabulary_size", 20)
    table = logits(store, "stream")
    assert max(max(row) for name in ("top_tokens", "bottom_tokens") for row in table[name].to_list()) < 20


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["logits", *map(str, arguments)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err.strip().splitlines()[-1]


def test_what_has_no_logits_is_refused(capsys, lake, tmp_path):
    store, folder = lake
    line = refused(capsys, store.layout.root, "--site", "heads")
    assert "the decoder of site 'heads' writes at blocks.0.attn.hook_z, which is not the residual" in line
    other = write_tiny_llama(tmp_path / "other", seed=1)
    line = refused(capsys, store.layout.root, "--site", "stream", "--model", other)
    assert "is not the model that the pass was made with" in line
    assert "give its current path as --model" in line
    plain = extracted(run_file(tmp_path / "module"), tables=False)
    line = refused(capsys, plain.layout.root, "--model", "tests.kit:tiny_lm")
    assert "no unembedding was found in the model" in line
    moved = shutil.copytree(folder / "model", tmp_path / "moved")
    assert logits(store, "stream", model=str(moved)).height == 40


def test_vectors_of_another_width_are_refused(lake):
    store, _ = lake
    from jobs.evaluation.logits import use_for_logits

    with pytest.raises(InputError, match="vectors of 5 are not in the residual stream, which is 16 wide"):
        direct_logits.vocabulary_of(use_for_logits(store, "stream", "cpu"), 5)


def svg(figure):
    return render(figure, "svg").decode()


def test_figures_say_what_they_show(lake):
    store, _ = lake
    logits(store, "stream", random=30)
    histogram = store.scan_table("stream", "logits_histogram").collect()
    with rc_context(STYLE):
        for draw in (draw_logit_entropy, draw_logit_max_probability):
            text = svg(draw(histogram, "stream"))
            assert "stream · 40 features · 30 random directions" in text
            assert "random directions of the same norms, median" in text
            assert "no feature was unembedded" in svg(draw(histogram.head(0), "stream"))
        row = {"value": 2.0, "se": 0.1, "low": 1.8, "high": 2.2, "tokens": 70, "documents": 3}
        fidelity = pl.DataFrame([{"measure": name, **row} for name in MEASURES], schema=FIDELITY)
        text = svg(draw_fidelity(fidelity, "stream"))
        assert "70 predictions · 3 documents · recovered 2.000 · explained variance 2.000" in text
        assert "Loss of the model with reconstructed x" in text
        unknown = fidelity.with_columns(pl.lit(None, pl.Float64).alias(name) for name in ("low", "high"))
        assert "zeros" in svg(draw_fidelity(unknown, "stream"))
        assert "no loss was measured" in svg(draw_fidelity(fidelity.head(0), "stream"))
