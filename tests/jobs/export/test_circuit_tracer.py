"""circuit-tracer's feature files, read as its viewer reads them, and by the viewer's own code.

circuit-tracer 0.5.0, circuit_tracer/frontend: assets/feature_examples/init-feature-examples.js asks for the
bytes `offsets[f]` to `offsets[f + 1]` of the index (HTTP ranges, whose ends are included), assets/util.js
takes four bytes of length, little-endian, and inflates so many; feature_models.py has the fields.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import subprocess
from pathlib import Path

import polars as pl
import pytest

from jobs.cli import main
from tests.fixtures.exports import built_store, consumer, context_of, put_logits

VIEWER = """
const fs = require('fs'), vm = require('vm'), zlib = require('zlib');
const [assets, folder, asked] = [process.argv[1], process.argv[2], JSON.parse(process.argv[3])];
globalThis.window = globalThis;
globalThis.location = {hostname: 'here', href: 'http://here/'};
globalThis.pako = {inflate: bytes => zlib.unzipSync(bytes).toString()};
const get = (target, name) => name === 'then' ? undefined : chain;
const chain = new Proxy(function () {}, {get, apply: () => chain});
globalThis.d3 = chain;
globalThis.fetch = async (url, {method, headers} = {}) => {
  const path = url.replace('https://huggingface.co/made/repo/resolve/main/features', folder);
  if (!fs.existsSync(path)) return {ok: false, status: 404};
  let bytes = fs.readFileSync(path);
  const range = /bytes=([0-9]+)-([0-9]+)/.exec(headers?.Range ?? '');
  if (range) bytes = bytes.subarray(+range[1], +range[2] + 1);
  return {ok: true, status: 200, arrayBuffer: async () => new Uint8Array(bytes).buffer};
};
for (const name of ['util.js', 'feature_examples/init-feature-examples.js'])
  vm.runInThisContext(fs.readFileSync(`${assets}/${name}`, 'utf8'));
const viewer = window.initFeatureExamples({containerSel: chain, showLogits: false, showExamples: false});
(async () => {
  const found = [];
  for (const [layer, feature] of asked) {
    const paired = (layer + feature) * (layer + feature + 1) / 2 + feature;
    const {colorScale, ...record} = await viewer.loadFeature('made/repo', paired);
    found.push(record);
  }
  console.log(JSON.stringify(found));
})();
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    built, store = built_store(tmp_path_factory.mktemp("store"))
    put_logits(store)
    out = tmp_path_factory.mktemp("out") / "export"
    run(["circuit-tracer", str(built.layout.root), "--out", str(out), "--layer", "7"])
    return built, store, out / "features"


def run(arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(["export", *arguments])
    assert end.value.code == code


def index_of(folder: Path) -> dict:
    return json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))


def record_of(folder: Path, layer: int, feature: int) -> dict:
    entry = index_of(folder)[str(layer)]
    start, end = entry["offsets"][feature : feature + 2]
    data = (folder / entry["filename"]).read_bytes()[start : end + 1]
    (length,) = struct.unpack("<I", data[:4])
    assert 4 + length == end - start
    return json.loads(gzip.decompress(data[4 : 4 + length]))


def test_every_feature_of_the_sae_has_a_record_and_the_file_nothing_else(made):
    _, _, folder = made
    entry = index_of(folder)["7"]
    assert len(entry["offsets"]) == 41
    assert entry["offsets"][-1] == (folder / entry["filename"]).stat().st_size
    assert [record_of(folder, 7, feature)["index"] for feature in range(40)] == list(range(40))
    assert sorted(path.name for path in folder.iterdir()) == ["index.json.gz", "layer_7.bin"]


def test_examples_show_whole_contexts_with_the_stores_values(made):
    built, store, folder = made
    by_row = built.tokens.select("row", "context").to_dict(as_series=False)
    context_by_row = dict(zip(by_row["row"], by_row["context"], strict=True))
    table = store.scan_table("site", "examples").collect()
    for feature in range(40):
        record = record_of(folder, 7, feature)
        dense = built.dense["site"][:, feature]
        assert record["act_max"] == max(0, dense.max())
        assert record["act_min"] == min(0, dense.min())
        assert sum(record["histogram"]) == (dense != 0).sum()
        assert record["activation_frequency"] == (dense != 0).sum() / (built.tokens["token"] != 0).sum()
        own = table.filter((pl.col("feature") == feature) & (pl.col("kind") == "top")).sort("rank")
        titles = [quantile["quantile_name"] for quantile in record["examples_quantiles"]]
        assert titles == sorted(titles, reverse=True)  # Top, then intervals 9 to 0
        if not own.height:
            assert record["examples_quantiles"] == record["quantile_values"] == []
            continue
        for row, example in zip(own["row"], record["examples_quantiles"][0]["examples"], strict=True):
            context = context_of(built, context_by_row[row])
            assert example["tokens_acts_list"] == dense[context["row"].to_numpy()].tolist()
            assert context["row"][example["train_token_ind"]] == row
            texts = ['ü"\n\x00<b>' if token == 3 else f" t{token}" for token in context["token"]]
            assert example["tokens"] == texts
            assert not example["is_repeated_datapoint"]


def test_logits_are_texts_where_the_table_is(made):
    _, _, folder = made
    assert record_of(folder, 7, 2)["top_logits"] == ['ü"\n\x00<b>', " t4"]
    assert record_of(folder, 7, 2)["bottom_logits"] == [" t5"]
    assert record_of(folder, 7, 3)["top_logits"] == []


def test_features_that_were_not_chosen_have_a_record_without_examples(made, tmp_path):
    built, _, folder = made
    run(
        [
            "circuit-tracer",
            str(built.layout.root),
            "--out",
            str(tmp_path / "o"),
            "--layer",
            "0",
            "--features",
            "4,21",
        ]
    )
    some = tmp_path / "o" / "features"
    assert record_of(some, 0, 4) == record_of(folder, 7, 4)
    assert record_of(some, 0, 6)["examples_quantiles"] == []
    assert (
        record_of(some, 0, 6)["activation_frequency"] == record_of(folder, 7, 6)["activation_frequency"] > 0
    )


def test_sites_are_layers_of_one_index_and_may_not_share_one(tmp_path, capsys):
    built, _ = built_store(tmp_path / "store", sites=("a", "b"), shards=1)
    root = str(built.layout.root)
    run(["circuit-tracer", root, "--out", str(tmp_path / "o"), "--layer", "1"], 2)
    assert "two sites would be layer 1: export one --site at a time" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_viewers_own_code_reads_it_and_its_model_agrees(made):
    models = consumer("circuit_tracer.frontend.feature_models")
    if (node := shutil.which("node")) is None:
        pytest.skip("the viewer's code needs node")
    _, _, folder = made
    assets = Path(models.__file__).parent / "assets"
    requested = [[7, feature] for feature in (0, 1, 2, 17, 39)]
    command = [node, "-e", VIEWER, str(assets), str(folder), json.dumps(requested)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for (layer, feature), record in zip(requested, json.loads(done.stdout), strict=True):
        del record["featureIndex"], record["scan"]
        assert record == record_of(folder, layer, feature)
        assert models.Model.model_validate(record, strict=False).index == feature
