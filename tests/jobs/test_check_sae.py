"""`latentlake check-sae` on an SAE that knows the embedding of every token, on its mistakes, and on the demo.

The SAE: TopK with k 1 and pre-activations 2 e_t x - |e_t|^2 + 100, which are largest for the token t whose
embedding e_t is nearest; so it reconstructs x at `embed` exactly.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import cli
from jobs.evaluation.check_report import as_json, sentences
from jobs.studies.demo.model import FOLDER_NAME, cache_root
from pipeline.evaluation import sae_check as check
from schemas.run.file import Corpus
from tests.evaluation.test_check import MODEL, embedding_sae, lake
from tests.kit import write_sae, write_tiny_tokenizer


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer, and a corpus of words that it knows."""
    folder = tmp_path_factory.mktemp("check")
    write_tiny_tokenizer(folder / "tokenizer")
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 61, 300)) for _ in range(6)]
    lines = [json.dumps({"said": text}) for text in texts]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return folder


def call(capsys, sae, words, *more):
    """Exit code, standard output and the JSON file of a check of 1,000 tokens."""
    out = Path(sae).parent / "report.json"
    out.unlink(missing_ok=True)
    arguments = [
        *("check-sae", sae, "--model", MODEL, "--loader", "torch_module", "--tokens", 1000),
        *("--tokenizer", words / "tokenizer", "--corpus", words / "corpus.jsonl", "--text-column", "said"),
        *("--device", "cpu", "--json", out, *more),
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    report = json.loads(out.read_text()) if out.exists() else None
    return stop.value.code or 0, " ".join((printed.out + printed.err).split()), report


def test_an_sae_that_fits_ends_with_0_and_all_figures(capsys, tmp_path, words):
    code, printed, report = call(capsys, embedding_sae(tmp_path / "sae"), words)
    assert code == 0, printed
    figures, losses = report["figures"], report["losses"]
    assert figures["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert figures["mse"] < 1e-6
    assert figures["cosine"] == pytest.approx(1, abs=1e-6)
    assert figures["l0_mean"] == figures["l0_median"] == 1
    assert figures["dead"] == 3  # <bos>, <eos> and <unk> are not counted
    assert 900 < figures["tokens"] < 1000
    assert losses["patched"] == pytest.approx(losses["clean"], rel=1e-5)
    assert losses["zero"] < 0.99 * losses["clean"]  # they do a random model good
    assert losses["recovered"] is None
    assert report["is_fine"]
    assert report["likely"] is None
    assert report["context_size"] == 32
    assert "As loaded the SAE explains the data" in printed
    assert "4.69% (3 of 64)" in printed


def test_a_likely_mistake_ends_with_1_and_is_named(capsys, tmp_path, words):
    code, printed, report = call(capsys, embedding_sae(tmp_path / "sae", scale=3.0), words)
    assert code == 1
    assert not report["is_fine"]
    assert report["likely"]["name"] in ("W_dec on another scale", "W_dec with unit rows")
    assert report["likely"]["explained_variance"] > 0.99
    assert report["as_loaded"]["explained_variance"] < -2
    assert "Likely mistake" in printed


def test_the_hook_of_the_saes_own_files_is_named(capsys, tmp_path, words):
    sae = embedding_sae(tmp_path / "sae")
    code, printed, report = call(capsys, sae, words, "--hook-name", "layers.1")
    assert code == 1
    assert "read x at embed, not at layers.1" in printed
    tried = [finding["name"] for finding in report["alternatives"]]
    assert {"hook embed", "hook layers.0", "hook layers.2", "model run without BOS"} <= set(tried)


def test_a_card_is_shown_next_to_the_figures_and_a_special_token_that_dominates_is_reported():
    report = stub_report(card={"l0": 10.0, "explained_variance": 0.8}, with_special=-3.0)
    message = sentences(report)
    assert "L0 is 1.0, but its card says 10." in message
    assert "Leave special tokens out: with them, explained variance is -3.000." in message
    assert sentences(stub_report(card={"l0": 0.7}, with_special=0.9)) == []
    assert as_json(report)["card"] == {"l0": 10.0, "explained_variance": 0.8}


def sinking_lm():
    """`tiny_lm` in which the word w7 is an attention sink: 500 times as long, and not what its SAE knows."""
    from tests.kit import tiny_lm

    model = tiny_lm()
    with torch.no_grad():
        model.embed.weight[10] = -500 * model.embed.weight[11]
    return model


def test_a_few_massive_rows_neither_break_a_good_sae_nor_name_a_remedy(capsys, tmp_path, words, monkeypatch):
    monkeypatch.setattr("tests.jobs.test_check_sae.MODEL", f"{__name__}:sinking_lm")
    lines = (words / "corpus.jsonl").read_text().replace("w7 ", "w8 ", 10_000)
    rare = lines.replace("w20 ", "w7 ", 4)  # 4 rows of a thousand
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(rare)
    more = ("--corpus", corpus)
    code, printed, report = call(capsys, embedding_sae(tmp_path / "sae"), words, *more)
    figures = report["figures"]
    assert 1 <= figures["massive_rows"] <= 4
    assert figures["explained_variance"] < 0.5
    assert figures["explained_variance_without_massive_rows"] == pytest.approx(1, abs=1e-6)
    assert code == 0, printed
    assert report["likely"] is None
    assert f"{figures['massive_rows']} of {figures['tokens']} rows" in printed
    assert "decide the explained variance: their norm is above 10 times the median" in printed
    assert "As loaded the SAE explains the data" in printed


def test_what_is_not_a_number_is_null_in_json():
    content = as_json(stub_report(card={}, with_special=math.nan))
    assert content["figures"]["explained_variance_with_special_tokens"] is None
    assert content["no_losses"] == "no logits"
    assert "NaN" not in json.dumps(content)


def stub_report(card, with_special):
    """A report of four rows that are reconstructed well."""
    from jobs.evaluation.check_sae import Report
    from pipeline.saes import SaeMetadata
    from pipeline.saes.quality.diagnosis import Diagnosis, Finding
    from pipeline.saes.quality.reconstruction import Reconstruction
    from schemas.run.file import parse_run_file
    from schemas.values import SparseFeatures

    result, x = Reconstruction(2), torch.arange(8.0).view(4, 2)
    features = SparseFeatures(np.arange(5), np.zeros(4, np.int32), np.ones(4, np.float32))
    result.add(x, x + 0.1, features)
    finding = Finding("as loaded", "", 4, 1.0, result.explained_variance)
    content = {
        "corpus": {"path": "c"},
        "model": {"path": "m"},
        "sites": [{"sae": "s"}],
        "store": {"root": "r"},
    }
    return Report(
        parse_run_file(content, "test"),
        lake(4, 0),
        check.Place("h", "h"),
        SaeMetadata("standard", 2, 2, card=card),
        result,
        with_special,
        "no logits",
        Diagnosis(finding, (), None, "fine", True),
    )


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["check-sae", *map(str, arguments)])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("latentlake: ")
    return line


def test_bad_input_ends_with_2_and_one_sentence(capsys, tmp_path, words):
    sae = write_sae(tmp_path / "sae", hook_name="embed")
    assert "does not exist" in refused(capsys, tmp_path / "none", "--model", MODEL)
    assert "give --model" in refused(capsys, sae)
    assert "model.loader" in refused(capsys, sae, "--model", MODEL, "--loader", "none")
    wide = write_sae(tmp_path / "wide", d_model=24, hook_name="embed")
    options = ("--loader", "torch_module", "--model", MODEL, "--tokenizer", words / "tokenizer")
    assert "no token that is counted" in refused(capsys, sae, *options)  # speeches have none of the words
    corpus = ("--corpus", words / "corpus.jsonl", "--text-column", "said", "--device", "cpu")
    assert "gives vectors of 16" in refused(capsys, wide, *options, *corpus)
    assert "layers.7" in refused(capsys, sae, *options, *corpus, "--hook-name", "layers.7")
    assert "nothing.jsonl" in refused(capsys, sae, *options, "--corpus", tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("name", ["here", "org/../x", "/root/model", "a:b", "org/x/y", "org/x y"])
def test_files_of_an_sae_choose_no_model_that_lies_here(capsys, tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    sae = write_sae(tmp_path / "sae", hook_name="embed", model_name=name)
    assert f"name the model {name!r}, which is neither the name of a published model" in refused(capsys, sae)


def test_the_model_that_the_saes_files_choose_is_reported(capsys, tmp_path):
    from jobs.evaluation.check_sae import _model
    from pipeline.saes import read_metadata

    sae = str(write_sae(tmp_path / "sae", hook_name="embed", model_name="org/tiny-1.5_b"))
    assert _model(sae, read_metadata(sae)) == "org/tiny-1.5_b"
    assert "The model is org/tiny-1.5_b, according to the SAE's files" in capsys.readouterr().out


def test_a_context_size_that_holds_no_token_is_the_saes_fault(capsys, tmp_path, words):
    sae = write_sae(tmp_path / "short", hook_name="embed", context_size=1)
    options = ("--loader", "torch_module", "--model", MODEL, "--tokenizer", words / "tokenizer")
    assert f"SAE {sae} has context_size 1; it must be" in refused(capsys, sae, *options)


def test_too_few_tokens_accuse_nobody_and_none_at_all_are_refused(capsys, tmp_path, words):
    sae = embedding_sae(tmp_path / "sae", scale=3.0)
    code, printed, report = call(capsys, sae, words, "--tokens", 40)
    assert code == 0, printed
    assert "There are too few tokens to tell" in printed
    assert report["likely"] is None
    bos = embedding_sae(tmp_path / "bos", seqpos_slice=[0, 1])
    code, printed, _ = call(capsys, bos, words)
    assert code == 2
    assert "no token is at the positions (0, 1), which the SAE reads: give more --tokens" in printed


DEMO = Path(str(resources.files("jobs") / "demo_data" / "smollm2-135m-l9"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not (cache_root() / FOLDER_NAME / "model.safetensors").is_file(),
    reason="the demo's model is not there: run `python -m jobs.studies.demo.model`",
)
def test_the_demos_sae_does_what_its_card_says_and_a_factor_in_it_is_named(capsys, tmp_path):
    def run(sae, tokens):
        arguments = [sae, "--tokens", tokens, "--model", cache_root() / FOLDER_NAME, "--device", "cpu"]
        with pytest.raises(SystemExit) as stop:
            cli.main(["check-sae", *map(str, arguments), "--json", str(tmp_path / "report.json")])
        capsys.readouterr()
        return stop.value.code or 0, json.loads((tmp_path / "report.json").read_text())

    code, report = run(DEMO, 2048)
    card = (DEMO / "README.md").read_text()
    published = {
        name: float(re.search(rf"^\| {row}[^|]*\|[^|]*\| *([0-9.]+)", card, re.M)[1])
        for name, row in {"l0": "L0", "variance": "explained variance", "share": "share recovered"}.items()
    }
    figures = report["figures"]
    assert code == 0, report["verdict"]
    assert figures["explained_variance"] == pytest.approx(published["variance"], abs=0.02)
    assert figures["l0_mean"] == pytest.approx(published["l0"], rel=0.1)
    # 2,032 predictions against the card's 15,240: their loss varies by some 0.02 nats of 6.5
    assert report["losses"]["recovered"] == pytest.approx(published["share"], abs=0.008)

    broken = multiplied(tmp_path / "broken", {"W_enc": 3.0, "W_dec": 1 / 3, "b_dec": 1 / 3})
    code, report = run(broken, 1024)
    assert code == 1
    assert report["likely"]["name"] == "x on another scale"
    factor = float(re.search(r"multiplied by about ([0-9.]+) ", report["verdict"])[1])
    assert factor == pytest.approx(1 / 3, rel=0.15)


def multiplied(folder, factors):
    """The demo's SAE with some weights multiplied."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(DEMO, folder)
    weights = load_file(folder / "sae_weights.safetensors")
    changed = {name: (array * factors.get(name, 1)).astype(np.float32) for name, array in weights.items()}
    save_file(changed, folder / "sae_weights.safetensors")
    return folder


def test_a_corpus_section_is_read_as_extraction_reads_it(words):
    from pipeline.sources import open_source
    from pipeline.tokens.tokenizer import load_tokenizer

    source = open_source(Corpus(path=str(words / "corpus.jsonl"), text_column="said"))
    tokenizer = load_tokenizer(str(words / "tokenizer"))
    shard = check.token_shard(source, lake(32, 0), tokenizer, 320)
    first = tokenizer.encode_batch([next(iter(source.documents())).text], "parse")[0]
    assert shard.token_ids[1:9].tolist() == first[:8].tolist()
    assert shard.n_rows == 320
