"""`latentlake init`: what it infers from SAEs and corpora of each kind, and a run of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from jobs.lake.run import run
from jobs.lake.try_next import next_commands
from pipeline.store import FeatureStore
from schemas.run.file import RunFile, load_run_file
from tests.jobs.conformance import end
from tests.kit import dense_activations, draw_sae_weights, write_sae, write_tiny_gpt2
from tests.saes.golden.check import DATA

ROWS = {
    "id": ["u1", "u2", "u3"],
    "body": ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w3 w3 w3 w4 w4 w4 w5 w5 w5 w6", "w9 w8 w7 w6 w5 w4 w3 w2 w1"],
    "party": ["a", "b", "a"],
    "year": [1900, 1901, None],
    "won": [True, False, True],
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gpt2(tmp_path_factory.mktemp("model") / "tiny-gpt2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an SAE and a corpus; nobody is at the keyboard."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    write_sae(tmp_path / "sae", hook_name="blocks.1.hook_resid_post", context_size=32, prepend_bos=False)
    pl.DataFrame(ROWS).write_parquet(tmp_path / "corpus.parquet")
    return tmp_path


def written(*arguments: object) -> RunFile:
    """The run file that `init` writes."""
    assert end("init", *map(str, arguments)) == 0
    return load_run_file("run.yaml")


def refusal(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence of a refusal, after which nothing was written."""
    assert end("init", *map(str, arguments)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert not Path("run.yaml").exists()
    return line.removeprefix("latentlake: ")


def test_a_saelens_folder_says_hook_context_and_bos(folder: Path, gpt2: Path) -> None:
    result = written("--sae", "sae", "--model", gpt2, "--corpus", "corpus.parquet", "--store", "my store")
    (site,) = result.sites
    assert (site.name, site.hook_name, site.sae) == ("l1", "blocks.1.hook_resid_post", "sae")
    assert (result.tokens.context_size, result.tokens.prepend_bos) == (32, False)
    assert (result.model.path, result.model.loader) == (str(gpt2), "transformer_lens")
    assert (result.corpus.text_column, result.corpus.label_columns) == ("body", ("party", "year", "won"))
    assert result.store.root == "my store"


def test_the_file_says_what_the_sae_was_trained_on(folder: Path, gpt2: Path) -> None:
    write_sae(folder / "sae", hook_name="blocks.1.hook_resid_post", dataset_path="org/web\n# text")
    written("--sae", "sae", "--model", gpt2, "--corpus", "corpus.parquet")
    shape = "standard, 64 features of vectors of width 16; format saelens"
    assert f"    sae: sae  # {shape}; trained on org/web # text\n" in Path("run.yaml").read_text()


def test_only_hooks_as_wide_as_the_residual_stream_are_checked(folder: Path, gpt2: Path) -> None:
    write_sae(folder / "sae", d_model=64, hook_name="blocks.1.mlp.hook_post")
    result = written("--sae", "sae", "--model", gpt2, "--corpus", "corpus.parquet")
    assert (result.sites[0].name, result.sites[0].hook_name) == ("l1", "blocks.1.mlp.hook_post")


def test_the_screen_says_where_each_value_comes_from_and_what_comes_next(
    folder: Path, gpt2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert end("init", "--sae", "sae", "--model", str(gpt2), "--corpus", "corpus.parquet") == 0
    lines = capfd.readouterr().out.splitlines()
    assert "corpus.text_column: body (the only column of long texts)" in lines
    types = "party String, year Int64, won Boolean; left out: id"
    assert f"corpus.label_columns: ['party', 'year', 'won'] ({types})" in lines
    assert f"model.path: {gpt2} (--model)" in lines
    assert "tokens.context_size: 32 (from the SAE's metadata)" in lines
    assert lines[-2:] == ["init wrote run.yaml. Next:", "  latentlake run run.yaml"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_columns_of_json_lines_and_csv_are_those_of_parquet(folder: Path, gpt2: Path, kind: str) -> None:
    frame = pl.DataFrame(ROWS)
    frame.write_ndjson(folder / "corpus.jsonl")
    frame.write_csv(folder / "corpus.csv")
    result = written("--sae", "sae", "--model", gpt2, "--corpus", f"corpus.{kind}")
    assert (result.corpus.text_column, result.corpus.label_columns) == ("body", ("party", "year", "won"))


def test_a_folder_of_text_files_has_no_columns(folder: Path, gpt2: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("w1 w2")
    result = written("--sae", "sae", "--model", gpt2, "--corpus", "texts")
    assert (result.corpus.path, result.corpus.label_columns) == ("texts", ())


def test_a_column_called_text_is_the_text_whatever_else_is_long(folder: Path, gpt2: Path) -> None:
    pl.DataFrame(ROWS).with_columns(text=pl.col("party")).write_parquet(folder / "corpus.parquet")
    result = written("--sae", "sae", "--model", gpt2, "--corpus", "corpus.parquet", "--labels", "none")
    assert (result.corpus.text_column, result.corpus.label_columns) == ("text", ())


def test_the_column_labels_and_hook_that_are_given_count(folder: Path, gpt2: Path) -> None:
    options = ("--text-column", "party", "--labels", "year,id", "--hook-name", "blocks.0.hook_resid_pre")
    result = written("--sae", "sae", "--model", gpt2, "--corpus", "corpus.parquet", *options)
    assert (result.corpus.text_column, result.corpus.label_columns) == ("party", ("year", "id"))
    assert (result.sites[0].name, result.sites[0].hook_name) == ("l0", "blocks.0.hook_resid_pre")


def test_gemma_scope_says_by_its_path_what_it_reads(folder: Path) -> None:
    sae = folder / "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    sae.mkdir(parents=True)
    np.savez(sae / "params.npz", **draw_sae_weights("jumprelu", 16, 80, 0))
    result = written("--sae", sae, "--corpus", "corpus.parquet")
    assert (result.model.path, result.sites[0].hook_name) == ("gemma-2-2b", "blocks.12.hook_resid_post")
    assert (result.tokens.context_size, result.tokens.prepend_bos) == (1024, True)


def test_dictionary_learning_says_hook_and_model(folder: Path) -> None:
    result = written("--sae", DATA / "dictionary_learning-topk", "--corpus", "corpus.parquet")
    (site,) = result.sites
    assert (site.name, site.hook_name, result.model.path) == ("l8", "blocks.8.hook_resid_post", "org/model")
    assert result.tokens.context_size == 1024


def test_a_plain_file_of_tensors_says_its_shapes_alone(
    folder: Path, gpt2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    weights = draw_sae_weights("standard", 16, 80, 0)
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, folder / "sae.pt")
    options = ("--sae", "sae.pt", "--model", gpt2, "--corpus", "corpus.parquet")
    sentence = "the hook that the SAE reads, such as blocks.9.hook_resid_post, is not known: give --hook-name"
    assert refusal(capfd, *options) == sentence
    result = written(*options, "--hook-name", "blocks.1.hook_mlp_out")
    assert (result.sites[0].hook_name, result.tokens.context_size, result.tokens.prepend_bos) == (
        "blocks.1.hook_mlp_out", 64, True
    )  # fmt: skip
    text = Path("run.yaml").read_text(encoding="utf-8")
    assert "sae: sae.pt  # standard, 80 features of vectors of width 16; format plain_dict" in text
    assert "context_size: 64  # the default; the SAE's files do not say it" in text


def test_what_is_not_known_is_typed_where_a_person_is_at_the_keyboard(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sae(folder / "sae", hook_name="blocks.1.hook_resid_post", dataset_path="corpus.parquet")
    pl.DataFrame(ROWS).with_columns(other=pl.col("body")).write_parquet(folder / "corpus.parquet")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = {"the SAE": "sae", "the model": "gpt2", "the column of the text": "other"}

    def answer(question: str, default: str | None = None) -> str:
        return answers.get(question.partition(" (")[0]) or str(default)

    monkeypatch.setattr("typer.prompt", answer)
    result = written()
    assert (result.sites[0].sae, result.model.path, result.corpus.path, result.corpus.text_column) == (
        "sae", "gpt2", "corpus.parquet", "other"
    )  # fmt: skip


def test_a_file_that_is_there_is_replaced_with_force_alone(
    folder: Path, gpt2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--sae", "sae", "--model", str(gpt2), "--corpus", "corpus.parquet")
    (folder / "run.yaml").write_text("mine")
    assert end("init", *options) == 2
    assert "--out run.yaml exists: give it another name, or replace it with --force" in capfd.readouterr().err
    assert (folder / "run.yaml").read_text() == "mine"
    assert written(*options, "--force").sites[0].name == "l1"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--corpus": None}, "the corpus is not known: give --corpus"),
        ({"--model": None}, "the model is not known: give --model"),
        ({"--sae": "nowhere"}, "SAE nowhere does not exist: give the path of an SAE's folder or file"),
        ({"--corpus": "nowhere.csv"}, "corpus.path 'nowhere.csv' does not exist"),
        (
            {"--corpus": "s3://me:secret@bucket/x"},
            "run.yaml: corpus.path is 's3://***@bucket/x': holds a user, …",
        ),
        (
            {"--sae": "synthetic:d_sae=8,l0=2"},
            "run.yaml: sites: model.loader: transformer_lens needs an SAE…",
        ),
        ({"--labels": "yaer"}, "corpus.parquet has no column 'yaer'; it has id, body, party, year, won…"),
        ({"--corpus": "two.parquet"}, "the text may be in body or other: give --text-column"),
        (
            {"--corpus": "none.parquet"},
            "--corpus none.parquet has no column of text, only year (Int64), won (Boolean): give another "
            "corpus",
        ),
        (
            {"--sae": "wide"},
            "the SAE wide reads vectors of width 24, but the model {gpt2} has width 16: give the model that "
            "the SAE was trained on, gpt2-xl",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path,
    gpt2: Path,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, str | None],
    sentence: str,
) -> None:
    frame = pl.DataFrame(ROWS)
    frame.with_columns(other=pl.col("body")).write_parquet(folder / "two.parquet")
    frame.select("year", "won").write_parquet(folder / "none.parquet")
    write_sae(folder / "wide", d_model=24, hook_name="blocks.1.hook_resid_post", model_name="gpt2-xl")
    given: dict[str, Any] = {"--sae": "sae", "--model": gpt2, "--corpus": "corpus.parquet"} | changes
    options = [part for name, value in given.items() if value for part in (name, value)]
    refused, beginning = refusal(capfd, *options), sentence.replace("{gpt2}", str(gpt2))
    assert refused.startswith(beginning[:-1]) if beginning.endswith("…") else refused == beginning


@pytest.mark.slow
def test_a_run_of_the_file_stores_the_activations_of_transformers_and_the_formula(
    folder: Path, gpt2: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    result = written("--sae", "sae", "--model", gpt2, "--corpus", "corpus.parquet")
    in_process = result.extract.model_copy(update={"executor": "in_process", "check_sae": "off"})
    stats = result.derive.model_copy(update={"jobs": ("stats",)})
    run(result.model_copy(update={"extract": in_process, "derive": stats}))
    store = FeatureStore.open("out/lake")
    model, expected = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32), []
    for context in store.scan_tokens().collect().iter_rows(named=True):
        with torch.inference_mode():
            x = model(torch.tensor([context["token_ids"]]), output_hidden_states=True).hidden_states[2]
        dense = dense_activations(folder / "sae", x[0].numpy())
        dense[~np.array(context["counted"])] = 0
        expected.append(dense)
    segments = store.scan_tokens().select(pl.col("segments").explode()).unnest("segments").collect()
    documents = segments.select("document", "party", "year", "won").unique(maintain_order=True)
    assert documents.rows() == [(0, "a", 1900, True), (1, "b", 1901, False), (2, "a", None, True)]
    stored = np.concatenate([store.csr("l1", record.name).toarray() for record in store.shards])
    assert (stored != 0).any()
    np.testing.assert_allclose(stored, np.concatenate(expected), rtol=2e-3, atol=1e-4)
    assert [command.split()[1] for command in next_commands(store)] == [
        "explore", "feature", "elicit", "top", "rank", "verify"
    ]  # fmt: skip
    (folder / "sae").rename(folder / "elsewhere")
    assert not any(" elicit " in command for command in next_commands(store))
