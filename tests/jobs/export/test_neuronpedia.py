"""Neuronpedia's import, stated again as its code reads it, over an export.

hijohnnylin/neuronpedia, apps/webapp: app/api/admin/import/route.ts (3861c05) takes <model>/<source>/, in it
release.jsonl, model.jsonl, sourceset.jsonl and source.jsonl with prisma.create, then every file of features/
into the table Neuron and every file of activations/ into Activation by importJsonlString (lib/db/import.ts,
efd6e35), which replaces \\u0000, takes the columns from a file's first line, and leaves out those that the
table has not. Columns: prisma/schema.prisma (008d504).
"""

from __future__ import annotations

import gzip
import json

import numpy as np
import polars as pl
import pytest

from jobs.cli import main
from jobs.evaluation.logits import LOGITS
from jobs.export.neuronpedia import batch_features, check_files
from jobs.export.windows import blocks
from schemas.errors import InputError
from tests.fixtures.exports import built_store, context_of

NEURON = {
    "modelId": str, "layer": str, "index": str, "creatorId": str, "sourceSetName": str, "maxActApprox": float,
    "frac_nonzero": float, "freq_hist_data_bar_heights": list, "freq_hist_data_bar_values": list,
    "pos_str": list, "pos_values": list, "neg_str": list, "neg_values": list, "topkCosSimIndices": list,
    "topkCosSimValues": list,
}  # fmt: skip
ACTIVATION = {
    "id": str, "tokens": list, "dataIndex": str, "index": str, "layer": str, "modelId": str,
    "maxValue": float, "maxValueTokenIndex": int, "minValue": float, "values": list, "creatorId": str,
    "binMin": float,
    "binMax": float, "binContains": float, "qualifyingTokenIndex": int,
}  # fmt: skip
REQUIRED = {  # columns without a default that prisma.create insists on
    "release": {"name", "description", "creatorName", "creatorId"},
    "model": {"id", "creatorId", "layers", "neuronsPerLayer", "owner"},
    "sourceset": {"modelId", "name", "description", "creatorName", "creatorId"},
    "source": {"id", "modelId", "setName", "creatorId"},
}


def imported(folder, table):
    """The rows that importJsonlString would insert."""
    rows = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        text = gzip.decompress(path.read_bytes()).decode().replace("\\u0000", " ")
        lines = [json.loads(line) for line in text.strip().split("\n")]
        assert all(list(line) == list(lines[0]) for line in lines)
        rows += lines
    for row in rows:
        assert set(row) <= set(table)
        assert all(isinstance(value, table[name]) for name, value in row.items())
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    built, store = built_store(tmp_path_factory.mktemp("store"))
    rows = {"feature": [1, 2], "neighbour": [7, 9], "rank": [0, 0], "cosine": [0.5, 0.25]}
    schema = {"feature": pl.UInt32, "neighbour": pl.UInt32, "rank": pl.UInt16, "cosine": pl.Float32}
    store.write_table("site", "decoder_neighbours", pl.DataFrame(rows, schema=schema))
    logits = {
        "top_tokens": [[3, 4]],
        "top_logits": [[2.5, 1.5]],
        "bottom_tokens": [[5]],
        "bottom_logits": [[-1.0]],
    }
    effects = {
        "promoted_tokens": [[6]],
        "promoted_effects": [[0.75]],
        "suppressed_tokens": [[7]],
        "suppressed_effects": [[-0.5]],
    }
    none = {name: pl.Series([None], dtype=LOGITS[name]) for name in effects}
    two, five = (pl.Series([n], dtype=pl.UInt32) for n in (2, 5))
    rows = [{"feature": two} | logits | none, {"feature": five} | logits | effects]
    store.write_table("site", "logits", pl.concat(map(pl.DataFrame, rows), how="vertical_relaxed"))
    out = tmp_path_factory.mktemp("out")
    options = ["--model", "tiny", "--source-set", "res-ll", "--layer", "3", "--creator", "me"]
    main_ends(["export", "neuronpedia", str(built.layout.root), "--out", str(out), *options])
    return built, store, out / "tiny" / "3-res-ll"


def main_ends(arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code


def test_the_rows_that_features_hang_on_have_what_the_database_wants_and_name_one_another(made):
    _, _, folder = made
    rows = {name: json.loads((folder / f"{name}.jsonl").read_text()) for name in REQUIRED}
    assert all(required <= set(rows[name]) for name, required in REQUIRED.items())
    assert rows["source"]["id"] == folder.name
    assert rows["source"]["setName"] == rows["sourceset"]["name"] == "res-ll"
    assert rows["sourceset"]["releaseName"] == rows["release"]["name"]
    assert {rows[name]["modelId"] for name in ("sourceset", "source")} == {rows["model"]["id"]} == {"tiny"}


def test_every_feature_has_its_statistics_and_histogram(made):
    built, store, folder = made
    neurons = imported(folder / "features", NEURON)
    table = store.scan_features("site").collect()
    assert [int(row["index"]) for row in neurons] == list(range(40))
    counted = table["counted_rows"][0]
    for row in neurons:
        values = built.dense["site"][:, int(row["index"])]
        values = values[values != 0]
        assert row["frac_nonzero"] == len(values) / counted
        assert row["maxActApprox"] == (values.max() if len(values) else 0)
        heights, middles = row["freq_hist_data_bar_heights"], row["freq_hist_data_bar_values"]
        assert len(heights) == len(middles)
        assert sum(heights) == len(values)
    assert neurons[2]["pos_str"] == ['ü"\n <b>', " t4"]
    assert neurons[2]["neg_values"] == [-1.0]
    effects = [neurons[5][name] for name in ("pos_str", "pos_values", "neg_str", "neg_values")]
    assert effects == [[" t6"], [0.75], [" t7"], [-0.5]]  # the plain effect, where there is one
    assert (neurons[1]["topkCosSimIndices"], neurons[1]["topkCosSimValues"]) == ([7], [0.5])
    assert neurons[3]["pos_str"] == neurons[3]["topkCosSimIndices"] == []


def test_every_example_shows_its_whole_context_with_the_stores_values(made):
    built, store, folder = made
    activations = imported(folder / "activations", ACTIVATION)
    assert len({row["id"] for row in activations}) == len(activations)
    examples = store.scan_table("site", "examples").collect()
    assert len(activations) == examples.height
    top = examples.filter(pl.col("kind") == "top")["activation"].to_list()
    shown = [row["values"][row["qualifyingTokenIndex"]] for row in activations if row["binContains"] == -1]
    assert sorted(shown) == sorted(top)
    for row in activations:
        context = context_of(built, int(row["dataIndex"]))
        dense = built.dense["site"][context["row"].to_numpy(), int(row["index"])]
        assert row["values"] == dense.tolist()
        texts = ['ü"\n <b>' if token == 3 else f" t{token}" for token in context["token"]]
        assert row["tokens"] == texts
        assert row["maxValue"] == dense.max() == row["values"][row["maxValueTokenIndex"]]
        assert row["minValue"] == dense.min()


def test_examples_of_an_interval_lie_in_its_bounds(made):
    _, _, folder = made
    result = [row for row in imported(folder / "activations", ACTIVATION) if row["binContains"] == 0.1]
    assert result
    for row in result:
        value = row["values"][row["qualifyingTokenIndex"]]
        width = abs(value) / 8  # a bin of the store's histogram
        assert row["binMin"] - width <= value <= row["binMax"] + width


def test_top_examples_name_the_largest_activation_and_no_tenth_goes_beyond_it(made):
    _, store, folder = made
    columns = store.scan_features("site").select("feature", "min_activation", "max_activation").collect()
    ends = {str(feature): (low, high) for feature, low, high in columns.iter_rows()}
    result = imported(folder / "activations", ACTIVATION)
    for row in result:
        low, high = ends[row["index"]]
        if row["binContains"] == -1:
            assert row["binMax"] == high
        else:
            assert low <= row["binMin"] <= row["binMax"] <= high
    assert {row["binContains"] for row in result} == {-1, 0.1}


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_store_gives_the_same_bytes(made, tmp_path):
    built, _, folder = made
    options = ["--model", "tiny", "--source-set", "res-ll", "--layer", "3", "--creator", "me"]
    main_ends(["export", "neuronpedia", str(built.layout.root), "--out", str(tmp_path / "again"), *options])
    again = tmp_path / "again" / "tiny" / "3-res-ll"
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {
        path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()
    } == files


def test_some_features_alone_and_what_is_wrong(made, tmp_path, capsys):
    built, _, _ = made
    root, out = str(built.layout.root), tmp_path / "out"
    main_ends(["export", "neuronpedia", root, "--out", str(out), "--layer", "0", "--features", "3,20:22"])
    neurons = imported(out / "model" / "0-site" / "features", NEURON)
    assert [row["index"] for row in neurons] == ["3", "20", "21"]
    activations = imported(out / "model" / "0-site" / "activations", ACTIVATION)
    fired = {str(f) for f in (3, 20, 21) if built.dense["site"][:, f].any()}
    assert {row["index"] for row in activations} == fired
    capsys.readouterr()
    main_ends(["export", "neuronpedia", root, "--out", str(tmp_path / "no")], 2)
    assert "give --layer" in capsys.readouterr().err
    main_ends(
        ["export", "neuronpedia", root, "--out", str(tmp_path / "no"), "--layer", "1", "--model", "../up"], 2
    )
    assert "--model '../up' is not a folder name" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_more_files_than_the_import_lists_are_refused():
    every = np.arange(1 << 20, dtype=np.uint32)
    check_files(every[: 1000 << 10], blocks(every[: 1000 << 10], 1 << 14), 128)
    with pytest.raises(InputError, match="take 1,024 files, but Neuronpedia's import lists only 1,000"):
        check_files(every, blocks(every, 1 << 14), 128)
    some = every[:65_536]
    with pytest.raises(InputError, match="--window below 4096"):
        check_files(some, blocks(some, 2048), 4096)
    assert batch_features(128) == 1024
    assert batch_features(4096) == 51


def test_a_feature_of_one_value_has_one_bar():
    from jobs.export.neuronpedia import _histogram
    from jobs.export.windows import Block

    nothing = np.zeros(0)
    counts = np.array([[5] + [0] * 49])
    low = np.array([1.5], np.float32)
    block = Block(pl.DataFrame(), pl.DataFrame(), nothing, nothing, nothing, counts, low, low)
    assert _histogram(block, 0) == {"freq_hist_data_bar_values": [1.5], "freq_hist_data_bar_heights": [5]}
