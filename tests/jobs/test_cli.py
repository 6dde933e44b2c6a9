"""The command line as users meet it: one sentence and exit code 2 for what they can fix."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from jobs import cli
from pipeline.store import FeatureStore
from schemas.errors import InputError
from tests.fixtures.runs import run_content
from tests.kit import write_sae, write_tiny_gpt2

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def call(capsys, *arguments):
    """Exit code and the last line of stderr of a command run in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    errors = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(errors)
    return stop.value.code or 0, errors[-1] if errors else ""


def write(folder, content):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def refused(capsys, folder, *parts, command="run", **changes):
    """`latentlake run` of a changed run file ends with 2 and one line on stderr that names `parts`."""
    path = write(folder, run_content(folder, **changes))
    code, line = call(capsys, command, path)
    assert code == 2
    assert line.startswith("latentlake: ")
    for part in parts:
        assert part in line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    path = write(folder, run_content(folder))
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(path)])
    assert not stop.value.code
    return folder


def test_help_names_every_command():
    command = [sys.executable, "-m", "jobs", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    for name in (
        "demo",
        "run",
        "tokenize",
        "extract",
        "stats",
        "rank",
        "cluster",
        "heatmap",
        "plots",
        "plan",
        "status",
        "verify",
        "top",
        "diff",
        "check-sae",
    ):
        assert name in done.stdout


def test_a_missing_run_file(capsys, tmp_path):
    assert call(capsys, "run", tmp_path / "no.yaml") == (
        2,
        f"latentlake: run file {tmp_path / 'no.yaml'} does not exist",
    )


def test_a_missing_corpus(capsys, tmp_path):
    refused(capsys, tmp_path, "nowhere.parquet", corpus={"path": str(tmp_path / "nowhere.parquet")})


def test_an_empty_corpus(capsys, tmp_path):
    pl.DataFrame({"text": []}, schema={"text": pl.String}).write_parquet(tmp_path / "empty.parquet")
    refused(
        capsys,
        tmp_path,
        "empty.parquet",
        corpus={"path": str(tmp_path / "empty.parquet"), "label_columns": []},
    )


def test_a_corpus_without_a_counted_token(capsys, tmp_path):
    pl.DataFrame({"text": ["", ""]}).write_parquet(tmp_path / "hollow.parquet")
    refused(
        capsys,
        tmp_path,
        "hollow.parquet",
        corpus={"path": str(tmp_path / "hollow.parquet"), "label_columns": []},
    )


def test_a_wrong_column_names_those_there_are(capsys, tmp_path):
    refused(capsys, tmp_path, "'body'", "text", "party", corpus={"text_column": "body"})
    refused(capsys, tmp_path, "'nation'", "party", corpus={"label_columns": ["nation"]})


def test_an_unknown_key_names_the_nearest(capsys, tmp_path):
    refused(
        capsys,
        tmp_path,
        "unknown key 'contxt_size' in tokens; did you mean 'context_size'?",
        tokens={"contxt_size": 8},
    )


def test_a_hook_that_the_model_lacks(capsys, tmp_path):
    sae = write_sae(tmp_path / "sae", "topk", hook_name="layers.9")
    refused(capsys, tmp_path, "layers.9", "layers.2", sites=[{"name": "mid", "sae": str(sae)}])


def test_an_sae_of_another_width(capsys, tmp_path):
    sae = write_sae(tmp_path / "sae", "topk", d_model=24, hook_name="layers.1")
    refused(capsys, tmp_path, "16", "24", "layers.1", sites=[{"name": "mid", "sae": str(sae)}])


def test_a_model_that_is_not_there(capsys, tmp_path):
    lens = {"loader": "transformer_lens"}
    refused(capsys, tmp_path, "model /no/model does not exist: give a", model={**lens, "path": "/no/model"})
    (tmp_path / "empty").mkdir()
    refused(capsys, tmp_path, "has no config.json", model={**lens, "path": str(tmp_path / "empty")})
    sae = run_content(tmp_path)["sites"][0]["sae"]
    code, line = call(
        capsys, "check-sae", sae, "--model", "/no/model", "--corpus", tmp_path / "corpus.parquet"
    )
    assert code == 2
    assert (
        line
        == "latentlake: model /no/model does not exist: give a model's folder, or its name on the Hugging "
        "Face Hub"
    )


def test_a_context_longer_than_the_models(capsys, tmp_path):
    model = write_tiny_gpt2(tmp_path / "gpt2", n_positions=32)
    sae = write_sae(tmp_path / "sae", "topk", hook_name="blocks.1.hook_resid_post")
    changes = {"model": {"loader": "transformer_lens", "path": str(model)}, "tokens": {"context_size": 48}}
    refused(capsys, tmp_path, "48", "32", sites=[{"name": "mid", "sae": str(sae)}], **changes)


def test_extract_before_tokenize(capsys, tmp_path):
    refused(capsys, tmp_path, "run `latentlake tokenize` first", command="extract")


def test_a_root_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    refused(capsys, tmp_path, str(tmp_path / "file"), store={"root": str(tmp_path / "file" / "store")})


def test_a_second_corpus_needs_append(capsys, finished):
    other = finished / "other.parquet"
    pl.read_parquet(finished / "corpus.parquet").head(5).write_parquet(other)
    refused(capsys, finished, "--append", corpus={"path": str(other)})


def test_another_context_size_on_an_old_store_names_both(capsys, finished):
    refused(capsys, finished, "context_size", "16", "12", tokens={"context_size": 12})


def test_a_truncated_postings_file_is_one_sentence_and_the_store_opens(capsys, tmp_path):
    path = write(tmp_path, run_content(tmp_path))
    assert call(capsys, "run", path)[0] == 0
    store = FeatureStore.open(tmp_path / "store")
    damaged = store.object_path("mid", store.shards[1].name, "postings.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    code, line = call(capsys, "verify", tmp_path / "store")
    assert (code, str(damaged) in line or "1 problem in" in line) == (2, True)
    code, line = call(capsys, "top", tmp_path / "store", "3")
    assert code == 2
    assert str(damaged) in line
    assert FeatureStore.open(tmp_path / "store").csr("mid", store.shards[1].name).nnz > 0


def test_top_prints_the_strongest_contexts(capsys, finished):
    store = FeatureStore.open(finished / "store")
    feature = store.scan_features("mid").sort("n_active").last().collect()["feature"][0]
    with pytest.raises(SystemExit) as stop:
        cli.main(["top", str(finished / "store"), str(feature), "-k", "3", "--where", "party=Whig"])
    shown = capsys.readouterr().out
    assert not stop.value.code
    name = store.names("mid", [feature]).name(feature)
    assert f"feature {feature} “{name}” of mid: its 3 strongest rows" in shown
    assert "Whig" in shown
    assert "Federalist" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["9999"], "9999"),
        (["1", "--where", "party"], "COLUMN=VALUE"),
        (["1", "--where", "nation=x"], "no label 'nation'; it has party, year"),
        (["1", "--where", "year=old"], "'old' is not a number"),
        (["1", "--site", "low"], "no site 'low'; it has mid"),
    ],
)
def test_top_refuses_what_is_not_there(capsys, finished, arguments, message):
    code, line = call(capsys, "top", finished / "store", *arguments)
    assert (code, message in line) == (2, True)


def test_status_reads_the_store_alone(capsys, finished):
    with pytest.raises(SystemExit):
        cli.main(["status", str(finished / "store")])
    shown = capsys.readouterr().out
    store = FeatureStore.open(finished / "store")
    assert f"{len(store.shards)}/{len(store.shards)} shards committed; finished" in shown
    assert "tables/mid/features.parquet" in shown


def test_plan_predicts_and_the_run_ends_by_comparing(capsys, tmp_path):
    path, log = write(tmp_path, run_content(tmp_path)), tmp_path / "log.jsonl"
    assert call(capsys, "plan", path, "--seconds", "1", "--workers", "3")[0] == 0
    kept = (tmp_path / "store/passes/mid/prediction.json").read_bytes()
    assert json.loads(kept)["workers"] == 3
    with pytest.raises(SystemExit):
        cli.main(["extract", str(write(tmp_path, run_content(tmp_path))), "--log-json", str(log)])
    assert "run `latentlake tokenize` first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["run", str(path), "--log-json", str(log)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "prediction (from a probe of" in shown
    assert "nonzeros per token" in shown
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert (events[0], events[1], events[-1]) == ("begin", "ready", "end")
    assert (tmp_path / "store/passes/mid/prediction.json").read_bytes() == kept


def test_a_folder_that_is_no_store(capsys, tmp_path):
    code, line = call(capsys, "status", tmp_path)
    assert (code, "is not a store" in line) == (2, True)


@pytest.mark.parametrize(
    "name", ["partials.parquet", "row_counts.parquet", "csr.zarr", "tokens", "vocabulary"]
)
@pytest.mark.parametrize("command", ["stats", "cluster", "top"])
def test_a_damaged_file_of_the_store_is_one_sentence_for_every_command(
    capsys, finished, tmp_path, name, command
):
    shutil.copytree(finished / "store", tmp_path / "store")
    store = FeatureStore.open(tmp_path / "store")
    shard = store.shards[0].name
    if name in ("tokens", "vocabulary"):
        path = store.layout.tokens(shard) if name == "tokens" else store.layout.vocabulary
    else:
        path = store.object_path("mid", shard, name)
    damaged = path / "data" / "c" / "0" if name == "csr.zarr" else path
    damaged.write_bytes(damaged.read_bytes()[:-40])
    used = {
        "stats": ("partials.parquet", "row_counts.parquet"),
        "cluster": ("csr.zarr", "tokens", "vocabulary"),
        "top": ("tokens", "vocabulary"),
    }
    extra = ["3"] if command == "top" else []
    code, line = call(capsys, command, tmp_path / "store", *extra)
    assert (code, str(path) in line) == ((2, True) if name in used[command] else (0, False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": {"root": ""}}, "store.root"),
        ({"tokens": {"context_size": 2**70}}, "tokens.context_size"),
        ({"extract": {"cpus_per_worker": 100_000}}, "extract.cpus_per_worker"),
        ({"model": {"path": "tests.kit:D_MODEL"}}, "tests.kit:D_MODEL"),
        ({"model": {"path": "tests.jobs.test_cli:small_vocabulary"}}, "its vocabulary is not that of"),
        ({"extract": {"executor": "ray", "gpus_per_worker": 3}}, "this machine has 0 GPUs"),
    ],
)
def test_more_run_files_that_cannot_work(capsys, tmp_path, changes, message):
    refused(capsys, tmp_path, message, **changes)


def small_vocabulary():
    """A model of fewer tokens than the tokenizer has."""
    from tests.kit import tiny_lm

    return tiny_lm(vocab=20)


def test_a_store_inside_its_corpus_folder_is_refused(capsys, tmp_path):
    content = run_content(tmp_path, corpus={"path": str(tmp_path), "label_columns": []})
    code, line = call(capsys, "run", write(tmp_path, content))
    assert (code, "is inside corpus.path" in line) == (2, True)


def test_paths_are_printed_as_they_are(capsys, tmp_path):
    code, _ = call(
        capsys, "run", write(tmp_path, run_content(tmp_path, store={"root": f"{tmp_path}/x[/red]y*{{z}}"}))
    )
    assert code == 0
    code, _ = call(capsys, "status", f"{tmp_path}/x[/red]y*{{z}}")
    assert code == 0


@pytest.mark.parametrize("arguments", [{"k": 0}, {"before": -1}, {"where": pl.col("party")}])
def test_queries_refuse_what_makes_no_sense(finished, arguments):
    with pytest.raises(InputError):
        FeatureStore.open(finished / "store").contexts("mid", 3, **arguments)
