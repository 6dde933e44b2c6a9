"""`latentlake explanations`: files of Neuronpedia and delphi as a table, and on a feature's page."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from jobs.tables.explanations import LONGEST, explanations
from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from schemas.errors import InputError
from tests.fixtures.store import D_SAE, build, commit_shard, random_features
from tests.store.test_remote_run import copied

MODEL = {"modelId": "gpt2-small", "layer": "9-res-jb"}
BY = {"typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "store"
    build(folder, shards=2)
    stats(FeatureStore.open(folder), "site")
    return folder


@pytest.fixture(params=["folder", "memory"])
def store(made: Path, tmp_path: Path, request: pytest.FixtureRequest) -> FeatureStore:
    if request.param == "folder":
        return FeatureStore.open(shutil.copytree(made, tmp_path / "store"))
    return FeatureStore.open(copied(made, f"memory://{tmp_path.name}-{tmp_path.parent.name}/store"))


def jsonl(*lines: object) -> bytes:
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def rows(store: FeatureStore) -> list[tuple[object, ...]]:
    return store.scan_table("site", "explanations").collect().rows()


@pytest.mark.parametrize("packed", [False, True])
def test_neuronpedias_lines_become_rows_by_feature(store: FeatureStore, tmp_path: Path, packed: bool) -> None:
    data = jsonl(
        {**MODEL, **BY, "id": "x", "index": "7", "description": " time-related phrases", "embedding": [0.5]},
        {**MODEL, "index": 3, "description": "전쟁과 평화", "typeName": None},
        {**MODEL, **BY, "index": "3", "description": "wars\nand battles"},
        {**MODEL, **BY, "index": "3", "description": "wars\nand battles"},
        {**MODEL, **BY, "index": "4", "description": "  "},
        {**MODEL, **BY, "index": "4", "description": None},
    )
    file = tmp_path / ("batch-0.jsonl.gz" if packed else "batch-0.jsonl")
    file.write_bytes(gzip.compress(data) if packed else data)
    explanations(store, "site", file)
    origin, by = ("neuronpedia", "gpt2-small/9-res-jb"), ("oai_token-act-pair", "gpt-4o-mini")
    assert rows(store) == [
        (3, "전쟁과 평화", *origin, None, None),
        (3, "wars\nand battles", *origin, *by),
        (7, "time-related phrases", *origin, *by),
    ]


def test_a_folder_of_batches_is_read_in_their_order(store: FeatureStore, tmp_path: Path) -> None:
    for number in (10, 2, 0):
        line = {**MODEL, "index": "1", "description": f"of batch {number}"}
        (tmp_path / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(jsonl(line)))
    (tmp_path / "README.md").write_text("not an explanation")
    explanations(store, "site", tmp_path)
    assert [row[1] for row in rows(store)] == ["of batch 0", "of batch 2", "of batch 10"]


def test_delphis_folder_is_read_and_what_it_could_not_explain_is_left_out(
    store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "explanations"
    folder.mkdir()
    for number, text in enumerate(["wars", "Explanation could not be parsed.", "x" * (LONGEST + 5)]):
        (folder / f"layers.9_latent{number}.txt").write_text(json.dumps(text))
    explanations(store, "site", folder)
    delphi = ("delphi", "layers.9", None, None)
    assert rows(store) == [(0, "wars", *delphi), (2, "x" * LONGEST, *delphi)]
    assert "2 explanations of 2 of 40 features, from 'layers.9'; 1 line without a text left out" in " ".join(
        capsys.readouterr().out.split()
    )


def test_of_several_origins_one_is_chosen(store: FeatureStore, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    other = {**MODEL, "layer": "10-res-jb", "index": 39000, "description": "of another SAE"}
    file.write_bytes(jsonl({**MODEL, "index": 1, "description": "wars"}, other, other))
    several = r"'gpt2-small/10-res-jb' \(2\); 'gpt2-small/9-res-jb' \(1\): choose one with --origin"
    with pytest.raises(InputError, match=several):
        explanations(store, "site", file)
    for origin in ("9-res-jb", "gpt2-small/9-res-jb"):
        explanations(store, "site", file, origin=origin)
        assert [row[:2] for row in rows(store)] == [(1, "wars")]
    with pytest.raises(InputError, match="holds no explanation of --origin '8-res-jb'"):
        explanations(store, "site", file, origin="8-res-jb")


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl", jsonl({"index": D_SAE, "description": "x"}), "line 1 of .* explains feature 40, but"),
        ("a.jsonl", jsonl({"index": 10**30, "description": "x"}), "line 1 of .* explains feature 1000"),
        ("a.jsonl", jsonl({"index": -1, "description": "x"}), "explains feature -1"),
        ("a.jsonl", jsonl({"index": True, "description": "x"}), "line 1 of .* is not an explanation"),
        ("a.jsonl", jsonl({"index": "١", "description": "x"}), "line 1 of .* is not an explanation"),
        ("a.jsonl", jsonl({"index": 1, "description": ["x"]}), "line 1 of .* is not an explanation"),
        ("a.jsonl", jsonl([1]), "line 1 of .* is not an explanation"),
        ("a.jsonl", b"{", "line 1 of .* is not JSON"),
        ("a.jsonl", b"", "holds no explanation: give Neuronpedia's"),
        ("a.jsonl.gz", b"x", "is damaged after line 0"),
        ("a.txt", b"x", "is not a file of explanations: give"),
        ("none.jsonl", None, "cannot be read"),
        ("d/layers.9_latent0.txt", b"{}", "delphi's files hold a JSON string"),
        ("d/layers.9_latent0.txt", b"wars", "delphi's files hold a JSON string"),
        ("d/x.txt", b"wars", "holds no explanation"),
    ],
)
def test_what_is_not_of_the_format_is_one_sentence(
    made: Path, tmp_path: Path, name: str, data: bytes | None, sentence: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if data is not None:
        path.write_bytes(data)
    store = FeatureStore.open(made)
    with pytest.raises(InputError, match=sentence):
        explanations(store, "site", path.parent if name.startswith("d/") else path)
    assert not store.has_table("site", "explanations")


def test_an_imported_table_is_on_the_page_of_a_feature_and_never_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(tmp_path / "store", shards=2, commits=1)
    store, file = FeatureStore.open(tmp_path / "store"), tmp_path / "a.jsonl"
    stats(store, "site")
    hostile = "[bold]x[/] <script> \u202e\x1b[31m\nwars"
    file.write_bytes(jsonl({**MODEL, **BY, "index": 3, "description": hostile}))
    explanations(store, "site", file)
    record = built.shards[1]
    frame = built.tokens.filter(built.tokens["context"] >= record.context_start)
    features = {"site": random_features(np.random.default_rng(0), (frame["token"] != 0).to_numpy())}
    commit_shard(built.layout, built.plan, record, frame, features)
    store = store.again()
    assert store.is_stale("site", "features")
    assert not store.is_stale("site", "explanations")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(rows(store)) == 1
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["feature", str(tmp_path / "store"), "3"])
    output = " ".join(capsys.readouterr().out.split())
    assert "[bold]x[/] <script> \ufffd␛[31m↩wars" in output
    assert "neuronpedia, gpt2-small/9-res-jb, oai_token-act-pair, gpt-4o-mini" in output
    with pytest.raises(SystemExit):
        main(["feature", str(tmp_path / "store"), "4"])
    assert "explanations" not in capsys.readouterr().out
