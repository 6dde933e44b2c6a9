"""The features of a typed text against a dense computation, and what cannot be read in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.evaluation.elicit import ELICITED, elicit, elicited, ranked, selected_rows
from jobs.terminal.names import labelled
from pipeline.evaluation.typed_text import Places, run_text
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.run.file import parse_run_file
from tests.fixtures.runs import extracted, run_content, run_file
from tests.fixtures.synthetic import content_without_model
from tests.jobs.test_strips import Tokens
from tests.kit import D_MODEL, dense_activations, tiny_lm, write_sae, write_tiny_tokenizer

SHORT = "w3 w5 w9 nonsense w60"
LONG = " ".join(f"w{n * 7 % 60}" for n in range(40))
TINY = "tests.kit:tiny_lm"
IDS = {"<bos>": 0, "nonsense": 2}


def ids_of(text: str) -> list[int]:
    return [IDS.get(word, int(word[1:]) + 3 if word[1:].isdigit() else 2) for word in text.split()]


def dense(folder: Path, text: str, architecture: str, *, bos: bool = True) -> np.ndarray:
    """Activations [tokens, d_sae] of a text cut as the corpus is, by the module and the SAE's formulas."""
    import torch

    model, rows = tiny_lm(), []
    taken = []
    model.layers[1].register_forward_hook(lambda _module, _inputs, output: taken.append(output[0].numpy()))
    ids, body = ids_of(text), 16 - bos
    for start in range(0, len(ids), body):
        context = [0] * bos + ids[start : start + body]
        with torch.inference_mode():
            model(torch.tensor([context]))
        rows.append(dense_activations(folder / f"sae-{architecture}", taken.pop())[bos:])
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def store(folder: Path) -> FeatureStore:
    return extracted(run_file(folder, "abstopk"))


def read(store: FeatureStore, text: str, position: int | None = None) -> pl.DataFrame:
    typed = run_text(store, "mid", text, Places(model=TINY))
    return elicited(store, "mid", typed, selected_rows(store, typed, position))


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_activations_are_those_of_a_dense_computation_without_bos(
    store: FeatureStore, folder: Path, text: str
) -> None:
    typed = run_text(store, "mid", text, Places(model=TINY))
    ids, expected = ids_of(text), dense(folder, text, "abstopk")
    assert typed.token_ids.tolist() == ids
    assert typed.counted.tolist() == [i != 2 for i in ids]  # <unk> is special: excluded
    expected[~typed.counted] = 0
    result = typed.activations.toarray()
    assert ((result != 0) == (expected != 0)).all()
    np.testing.assert_allclose(result, expected, rtol=2e-3)
    np.testing.assert_array_equal(result, result.astype(np.float16))


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_means_over_positions_and_single_positions(store: FeatureStore, text: str) -> None:
    typed = run_text(store, "mid", text, Places(model=TINY))
    every = typed.activations.toarray().astype(np.float64)
    for position in (None, 0, 2, -1):
        rows = every[typed.counted] if position is None else every[[position]]
        result = read(store, text, position)
        assert dict(result.schema) == ELICITED
        fires = np.flatnonzero((rows != 0).any(0))
        assert result["feature"].to_list() == fires.tolist()
        np.testing.assert_allclose(result["activation"], rows.mean(0)[fires], rtol=1e-12)
        for row in result.iter_rows(named=True):
            assert abs(row["strongest"]) == np.abs(rows[:, row["feature"]]).max()
            assert every[row["position"], row["feature"]] == row["strongest"]
        best = ranked(result, "activation")["activation"].abs()
        assert best.to_list() == sorted(best.to_list(), reverse=True)


def test_surprise_is_that_of_a_count_over_all_stored_rows(store: FeatureStore) -> None:
    typed = run_text(store, "mid", LONG, Places(model=TINY))
    stored = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    counted = store.totals("mid").counted_rows
    for row in read(store, LONG).iter_rows(named=True):
        values, exact, slack = stored[:, row["feature"]], [], []
        for x in typed.activations[:, [row["feature"]]].toarray()[:, 0]:
            if x:
                exact.append((values >= x).sum() if x > 0 else (values <= x).sum())
                slack.append(
                    ((values >= x / 1.125) & (values <= x * 1.125)).sum()
                    if x > 0
                    else ((values <= x / 1.125) & (values >= x * 1.125)).sum()
                )
        low = np.log2((1 + counted) / (1 + np.array(exact) + slack))
        high = np.log2((1 + counted) / np.maximum(1 + np.array(exact) - slack, 1))
        assert low.max() <= row["surprise_bits"] <= high.max()


@pytest.mark.parametrize("requested", [{"pooling": "mean"}, {"positions": [0, 4]}, {}])
def test_a_text_longer_than_a_context_is_refused_where_a_document_has_one(tmp_path: Path, requested) -> None:
    content = run_content(tmp_path)
    content["sites"][0] |= requested
    tokens = {**content["tokens"], "contexts": "document", "context_size": 130}
    lake = extracted(parse_run_file(content | {"tokens": tokens}, "run.yaml"), tables=False)
    fits = " ".join(["w1"] * (130 - 2))
    assert len(run_text(lake, "mid", fits, Places(model=TINY)).token_ids) >= 128
    with pytest.raises(InputError, match="has 200 tokens, more than fit into a context of 130"):
        run_text(lake, "mid", " ".join(["w1"] * 200), Places(model=TINY))


def test_a_document_that_is_typed_fires_as_it_is_stored(store: FeatureStore) -> None:
    first = store.scan_tokens().head(1).collect()
    ids = first["token_ids"][0].to_list()[1:]
    assert len(first["segments"][0]) == 1
    typed = run_text(store, "mid", "".join(store.pieces(ids)), Places(model=TINY))
    stored = store.csr("mid", first["shard"][0])[1 : len(ids) + 1].toarray()
    assert typed.token_ids.tolist() == ids
    np.testing.assert_allclose(typed.activations.toarray(), stored, rtol=2e-3)


def test_positions_that_are_not_there_or_not_counted(store: FeatureStore) -> None:
    for position in (5, -6):
        with pytest.raises(InputError, match=rf"position {position} is not in the text: its 5 tokens"):
            read(store, SHORT, position)
    for position in (3, -2):
        with pytest.raises(InputError, match="is not one that the site counts"):
            read(store, SHORT, position)
    with pytest.raises(InputError, match="the site reads none of the text's tokens"):
        read(store, "nonsense")
    with pytest.raises(InputError, match="has no tokens"):
        read(store, " \n ")
    with pytest.raises(InputError, match="is not Unicode"):
        read(store, "w3 \udcff")


def said(store: FeatureStore, *arguments: object) -> str:
    done = CliRunner().invoke(app, ["elicit", str(store.layout.root), "--model", TINY, *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_command_ranks_by_both_and_shows_examples(store: FeatureStore) -> None:
    shown = said(store, LONG, "-n", 4)
    assert "40 tokens, mean over 40 positions of 3 contexts of the lake's 16 tokens, " in shown
    assert f", {read(store, LONG).height} features fire" in shown
    for by in ("activation", "surprise_bits"):
        for feature in ranked(read(store, LONG), by)["feature"].head(4):
            assert f"\n{feature:>9}  " in shown
            best = store.contexts("mid", feature, 1, before=0, after=0)
            assert f"|·{store.pieces(best['token_ids'][0].to_list())[0].strip()}|" in shown
    without = FeatureStore.open(store.layout.root)
    without.layout.table("mid", "examples").rename(store.layout.root / "kept.parquet")
    # names are made of the examples; all else is the same without them
    lines = zip(said(store, LONG, "-n", 4).splitlines(), shown.splitlines(), strict=True)
    assert all(named.startswith(line.rstrip()) for line, named in lines)
    (store.layout.root / "kept.parquet").rename(store.layout.table("mid", "examples"))


def test_a_text_is_shaded_by_the_features_requested(store: FeatureStore, tmp_path: Path) -> None:
    typed = run_text(store, "mid", LONG, Places(model=TINY))
    fires = ranked(read(store, LONG, -1), "activation")["feature"].head(2).to_list()
    path = tmp_path / "text.html"
    shown = said(store, LONG, "--position", -1, "--feature", fires[0], "--feature", fires[1], "--html", path)
    labels = [labelled(store.names("mid"), feature) for feature in fires]
    assert all(f"feature {label}: activation" in shown for label in labels)
    assert all("“·w" in label for label in labels)
    page = Tokens(path.read_text(encoding="utf-8"))
    expected = [value for feature in fires for value in typed.activations[:, [feature]].toarray()[:, 0]]
    assert [float(span.get("title") or 0) for span, _ in page.spans] == pytest.approx(expected, rel=1e-5)
    assert [text[0] == "|" for _, text in page.spans] == ([False] * 39 + [True]) * 2
    with pytest.raises(InputError, match="features are 0 to 63"):
        said(store, LONG, "--feature", 64)


def test_a_model_that_is_gone_is_reported_before_a_tokenizer_is_looked_for(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.evaluation.typed_text.tokenizer_of", lambda lake, path: pytest.fail(f"asked for {path}")
    )
    with pytest.raises(InputError, match="give its current path as --model"):
        run_text(store, "mid", SHORT, Places(model="no.such:module"))


def test_without_bos_the_first_token_stays_and_zero_first_keeps_its_row(tmp_path: Path) -> None:
    run = run_file(tmp_path, "topk", tokens={"prepend_bos": False, "special_tokens": "zero_first"})
    store = extracted(run)
    expected = dense(tmp_path, LONG, "topk", bos=False)
    expected[[0, 16, 32]] = 0
    typed = run_text(store, "mid", LONG, Places(model=TINY))
    assert typed.counted.all()
    np.testing.assert_allclose(typed.activations.toarray(), expected, rtol=2e-3)


def test_a_site_of_some_positions_reads_those(tmp_path: Path) -> None:
    sae = write_sae(tmp_path / "sae-topk", "topk", d_sae=64, hook_name="layers.1", context_size=16)
    site = {"name": "mid", "sae": str(sae), "positions": [4, None]}
    store = extracted(run_file(tmp_path, "topk", sites=[site]))
    typed = run_text(store, "mid", LONG, Places(model=TINY))
    assert np.flatnonzero(~typed.counted).tolist() == [0, 1, 2, 15, 16, 17, 30, 31, 32]
    expected = dense(tmp_path, LONG, "topk")
    expected[~typed.counted] = 0
    np.testing.assert_allclose(typed.activations.toarray(), expected, rtol=2e-3)


def test_what_is_gone_or_changed_is_refused_and_a_new_place_is_taken(
    store: FeatureStore, folder: Path, tmp_path: Path
) -> None:
    plan = store.plans["mid"]
    moved = shutil.copytree(folder / "sae-abstopk", tmp_path / "moved")
    other = write_sae(tmp_path / "other", "abstopk", d_sae=64, hook_name="layers.1", seed=5)
    words = write_tiny_tokenizer(tmp_path / "words", "bytes")
    for places, message in (
        (
            Places(model=TINY, sae=str(other)),
            f"{other} is not the SAE that the pass was made with",
        ),
        (
            Places(model=TINY, sae=str(tmp_path / "nowhere")),
            "nowhere does not exist.*give its current path as --sae",
        ),
        (Places(model="tests.kit:write_sae"), "is not the model|is gone from"),
        (Places(model="no.such:module"), "no module 'no.such'.*give its current path as --model"),
        (Places(model=TINY, tokenizer=str(words)), "is not the one that the lake was tokenized with"),
        (Places(model=TINY, device="tpu"), "give auto, cpu or cuda"),
    ):
        with pytest.raises(InputError, match=message):
            run_text(store, "mid", SHORT, places)
    here = run_text(store, "mid", SHORT, Places(model=TINY)).activations
    there = run_text(
        store, "mid", SHORT, Places(model=TINY, sae=str(moved), tokenizer=str(folder / "tokenizer"))
    )
    assert (here != there.activations).nnz == 0
    assert plan.sites[0].d_model == D_MODEL


def test_a_synthetic_site_reads_no_text(tmp_path: Path) -> None:
    content = content_without_model(tmp_path / "store")
    store = extracted(parse_run_file(content, "run.yaml"))
    with pytest.raises(InputError, match="synthetic: its features were generated from a recipe"):
        run_text(store, "made", SHORT, Places())


def test_before_stats_it_says_so(tmp_path: Path) -> None:
    store = extracted(run_file(tmp_path, "topk"), tables=False)
    with pytest.raises(InputError, match="run `latentlake stats`"):
        elicit(store, "mid", SHORT)


@pytest.mark.slow
def test_real_weights_agree_with_dense_transformers_and_sae_lens(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.studies.demo.demo import write_run_file
    from jobs.studies.demo.model import ensure_demo_model
    from tests.saes.reference import reference

    content = yaml.safe_load(write_run_file("2000", tmp_path / "store").read_text())
    content["extract"] = {"executor": "in_process", "cpus_per_worker": 1}
    store = extracted(parse_run_file(content, "run.yaml"))
    text = "So long as the war goes on, the courts may be closed.\n\tWe carry on."
    typed = run_text(store, "l9", text, Places())
    model = AutoModelForCausalLM.from_pretrained(ensure_demo_model(), dtype=torch.float32)
    sae = reference(Path(store.site("l9").sae))
    ids = [store.lake.bos_id, *typed.token_ids.tolist()]
    assert "".join(store.pieces(ids[1:])) == text
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[10][0]
        expected = sae.encode(hidden).numpy()[1:]
    result = typed.activations.toarray()
    assert ((result != 0) == (expected != 0)).all()
    np.testing.assert_allclose(result, expected, rtol=2e-3)
    for position, rows in ((None, slice(None)), (-2, slice(-2, -1))):
        mean = expected[rows].astype(np.float64).mean(0)
        table = elicited(store, "l9", typed, selected_rows(store, typed, position))
        best = ranked(table, "activation").head(20)
        np.testing.assert_allclose(best["activation"], np.sort(mean)[::-1][:20], rtol=1e-3)
        np.testing.assert_allclose(best["activation"], mean[best["feature"].to_numpy()], rtol=1e-3)


def test_a_text_is_read_on_the_device_of_the_pass_or_a_warning_says_why_not(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.evaluation import typed_text

    plan = store.plans[store.site("mid").pass_name]
    assert typed_text._device(plan, "auto") == "cpu"
    on_gpu = plan.model_copy(update={"device": "cuda"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(typed_text, "why_no_gpu", lambda: "the driver is too old")
    with pytest.warns(UserWarning, match="device auto: the CPU, because the driver is too old"):
        assert typed_text._device(on_gpu, "auto") == "cpu"
    with pytest.raises(InputError, match="torch finds none here"):
        typed_text._device(on_gpu, "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert typed_text._device(on_gpu, "auto") == "cuda"
