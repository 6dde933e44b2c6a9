"""The dense layout: the array on disk, and a pass that writes it."""

import json
import pickle
import shutil
import threading

import numpy as np
import pytest

from jobs.cli import main
from jobs.lake.extract import extract
from jobs.lake.run import run as run_all
from jobs.lake.status import status
from jobs.lake.tokenize import tokenize
from pipeline.store import FeatureStore
from pipeline.store.formats import dense as dense_module
from pipeline.store.formats.dense import DenseWriter, open_dense, round_dense
from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import measure, remove, walk, write_atomic
from schemas.errors import InputError, ShardError
from schemas.run.file import parse_run_file
from tests.fixtures.runs import run_content, run_file
from tests.kit import tiny_lm

BOTH = ["token_major", "feature_major", "dense"]
X = np.random.default_rng(0).standard_normal((700, 16)).astype(np.float32)


def copied(folder, url):
    """A store on a folder, once more on object storage."""
    root = store_path(url)
    for name, _, _ in walk(folder):
        write_atomic(root / name, (folder / name).read_bytes())
    return root


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A store with all layouts and a site without an SAE, and its run file."""
    folder = tmp_path_factory.mktemp("lake")
    content = run_content(folder, store={"layouts": BOTH})
    content["sites"] += [{"name": "low", "hook_name": "layers.0", "sae": "none"}]
    content["sites"][0]["positions"] = [0, 12]
    run = parse_run_file(content, "run.yaml")
    tokenize(run)
    extract(run)
    return FeatureStore.open(run.store.root), run


def literal_x(store, hook, shard):
    """x of a shard by one forward of each context alone, 0 where nothing is stored."""
    import torch

    model = tiny_lm()
    result = []
    tokens = store.token_shard({"layers.1": "mid", "layers.0": "low"}[hook], shard)
    for first, last in zip(tokens.context_ptr[:-1], tokens.context_ptr[1:], strict=True):
        x = model.embed(torch.as_tensor(tokens.token_ids[first:last].astype(np.int64))[None])
        for layer in model.layers[: int(hook[-1]) + 1]:
            x = layer(x)
        result.append(x[0].detach().numpy())
    return np.concatenate(result) * tokens.stored[:, None]


@pytest.mark.parametrize(("site", "hook"), [("mid", "layers.1"), ("low", "layers.0")])
def test_a_shard_holds_x_of_each_stored_row_and_0_elsewhere(lake, site, hook):
    store, _ = lake
    for shard in store.dense(site):
        assert shard.array.dtype == np.float32
        np.testing.assert_allclose(shard.read(), literal_x(store, hook, shard.name), rtol=1e-5, atol=1e-5)
        assert (shard.read().any(axis=1) == store.dense(site).stored(shard)).all()
    assert not store.dense("mid").stored(shard).all()


def test_rows_of_the_lake_come_in_the_order_requested(lake):
    store, _ = lake
    dense = store.dense("low")
    every = np.concatenate([shard.read() for shard in dense])
    requested = np.random.default_rng(1).integers(0, len(every), 200).astype(np.uint64)
    assert (dense.rows(requested) == every[requested]).all()
    assert dense.rows(requested[:0]).shape == (0, dense.width)
    with pytest.raises(InputError, match=f"row {len(every)} of site 'low' is in no committed shard"):
        dense.rows(np.array([0, len(every)]))


def test_a_shard_goes_to_another_process(lake):
    store, _ = lake
    shard = store.dense("low").shards[0]
    x = shard.read(3, 9)
    assert (pickle.loads(pickle.dumps(shard)).read(3, 9) == x).all()


def test_a_store_with_x_verifies(lake):
    store, _ = lake
    report = store.verify()
    assert report.problems == []
    assert report.nonzeros > 0


def test_a_site_without_an_sae_has_x_alone_and_says_so(lake):
    store, run = lake
    receipt = next(iter(store.receipts("low").values()))
    assert [item.path for item in receipt.objects if item.path.startswith("low/")] == ["low/x.zarr"]
    assert store.site("low").d_sae == 0
    assert store.totals("low").counted_rows > store.totals("mid").counted_rows
    for ask in (
        lambda: store.shard_files("low"),
        lambda: store.scan_activations("low"),
        lambda: store.contexts("low", 0),
        lambda: store.scan_features("low"),
        lambda: store.partials("low", receipt.shard),
    ):
        with pytest.raises(InputError, match=r"site 'low' has no SAE.*layers\.0"):
            ask()
    extract(run)  # nothing to do


@pytest.mark.parametrize("url", ["memory://dense", pytest.param("s3://lake/dense", marks=pytest.mark.slow)])
def test_x_on_object_storage_is_read_by_ranges(lake, url, request):
    from pipeline.training.dense_dataset import DenseDataset

    if url.startswith("s3"):
        request.getfixturevalue("s3")
    store, _ = lake
    there = FeatureStore.open(copied(store.layout.root, url))
    assert there.verify().problems == []
    for here, shard in zip(store.dense("low"), there.dense("low"), strict=True):
        assert (shard.read(5, 70) == here.read(5, 70)).all()
    options = {"batch_rows": 100, "numbers": True}
    roots = (str(store.layout.root), url)
    for one, two in zip(*(DenseDataset(root, "low", **options) for root in roots), strict=True):
        assert all((a == b).all() for a, b in zip(one, two, strict=True))
    missing = there.dense("low").shards[0]
    remove(missing.path / "c" / "0" / "0")
    with pytest.raises(InputError, match="chunks are missing"):
        missing.read()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_torchs_own_loader_of_two_processes_reads_from_object_storage(lake, s3):
    from torch.utils.data import DataLoader

    from pipeline.training.dense_dataset import DenseDataset

    store, _ = lake
    url = "s3://lake/loader"
    copied(store.layout.root, url)
    dataset = DenseDataset(url, "low", batch_rows=50, numbers=True)
    with pytest.raises(InputError, match="loader cannot be read in a forked process: use spawn to start it"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=2)))  # it would wait for ever
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    x, rows = (np.concatenate(parts) for parts in zip(*loader, strict=True))
    here = store.dense("low")
    known = [np.flatnonzero(here.stored(shard)) + shard.record.row_start for shard in here]
    assert sorted(rows.tolist()) == np.concatenate(known).tolist()
    np.testing.assert_array_equal(x, here.rows(rows))


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_a_pooled_site_holds_the_pooled_vectors_at_their_rows(tmp_path, pooling):
    every = {"name": "low", "hook_name": "layers.0"}
    sites = [every, every | {"name": "one", "pooling": pooling}]
    content = run_content(tmp_path, store={"layouts": ["dense"]}, tokens={"shard_tokens": 600}, sites=sites)
    run = parse_run_file(content, "run.yaml")
    tokenize(run)
    extract(run)
    result = FeatureStore.open(run.store.root)
    for whole, one in zip(result.dense("low"), result.dense("one"), strict=True):
        x, tokens = whole.read(), result.token_shard("one", one.name)
        expected, stored = np.zeros_like(x), result.dense("low").stored(whole)
        for first, last in zip(tokens.context_ptr[:-1], tokens.context_ptr[1:], strict=True):
            rows = np.arange(first, last)[stored[first:last]]
            expected[rows[-1]] = x[rows].mean(0) if pooling == "mean" else x[rows[-1]]
        np.testing.assert_allclose(one.read(), expected, rtol=1e-5, atol=1e-6)
    assert result.verify().problems == []


def test_a_shard_that_ran_out_of_memory_holds_x_once(lake, tmp_path, monkeypatch):
    """The second try begins anew, in the batches of the plan, and gives the same bytes."""
    import torch

    from pipeline.models.hooks.hooked import HookedModel

    store, run = lake
    forward, calls = HookedModel.forward, []

    def full_once(self, batch, also=()):
        calls.append(1)
        if len(calls) == 5:  # the first is the loader's own
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, also)

    monkeypatch.setattr(HookedModel, "forward", full_once)
    again = run.model_copy(update={"store": run.store.model_copy(update={"root": str(tmp_path / "again")})})
    tokenize(again)
    extract(again)
    result = FeatureStore.open(again.store.root)
    for here, shard in zip(store.dense("mid"), result.dense("mid"), strict=True):
        assert measure(here.path) == measure(shard.path)


@pytest.mark.parametrize(
    "command",
    [
        ["stats"], ["rank"], ["profile"], ["report"], ["compact"], ["top", "3"], ["feature", "3"],
        ["elicit", "w1 w2"], ["fidelity"],
    ],
)  # fmt: skip
def test_commands_about_features_say_that_there_are_none(lake, capsys, command):
    store, _ = lake
    with pytest.raises(SystemExit) as ended:
        main([command[0], str(store.layout.root), *command[1:], "--site", "low"])
    output = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert "site 'low' has no SAE, so it has no features" in output


def test_the_whole_line_leaves_tables_of_a_site_without_an_sae_out(lake, capsys):
    store, run = lake
    run_all(run.model_copy(update={"derive": run.derive.model_copy(update={"jobs": ("stats",)})}))
    assert "tables of low: none, because it has no SAE" in " ".join(capsys.readouterr().out.split())
    assert store.has_table("mid", "features")
    assert not store.has_table("low", "features")
    status(str(store.layout.root))
    assert "site low (layers.0, only x, no SAE)" in " ".join(capsys.readouterr().out.split())


def test_two_runs_write_equal_bytes(lake, tmp_path):
    store, run = lake
    again = run.model_copy(update={"store": run.store.model_copy(update={"root": str(tmp_path / "again")})})
    tokenize(again)
    extract(again)
    result = [
        {
            (shard, item.path): item.sha256
            for shard, receipt in each.receipts("mid").items()
            for item in receipt.objects
        }
        for each in (store, FeatureStore.open(again.store.root))
    ]
    assert result[0] == result[1]


@pytest.mark.parametrize("damage", ["piece", "bits", "row"])
def test_verify_names_an_x_that_is_not_what_was_written(lake, tmp_path, damage):
    store, _ = lake
    root = tmp_path / "copy"
    shutil.copytree(store.layout.root, root)
    shard = FeatureStore.open(root).dense("low").shards[0]
    [piece] = [path for path in shard.path.rglob("*") if path.is_file() and path.name != "zarr.json"]
    if damage == "piece":
        piece.unlink()
    elif damage == "bits":
        data = bytearray(piece.read_bytes())
        data[100] ^= 1
        piece.write_bytes(data)
    else:
        _write_where_nothing_is_stored(root, shard)
    problems = FeatureStore.open(root).verify().problems
    assert any("special-token policy" in p if damage == "row" else "x.zarr" in p for p in problems)
    if damage == "piece":
        with pytest.raises(InputError, match="chunks are missing"):
            FeatureStore.open(root).dense("low").shards[0].read()


def _write_where_nothing_is_stored(root, shard):
    """An x for a BOS, with the receipt's checksums made right."""
    import zarr

    array = zarr.open_array(shard.path, mode="r+")
    array[0] = 1.0
    marker = root / "passes" / "mid+low" / "commits" / f"{shard.name}.json"
    receipt = json.loads(marker.read_bytes())
    size, sha256 = measure(shard.path)
    for item in receipt["objects"]:
        if item["path"] == "low/x.zarr":
            item.update(bytes=size, sha256=sha256)
    marker.write_text(json.dumps(receipt, sort_keys=True, separators=(",", ":")) + "\n")


def test_a_pass_without_dense_says_so(tmp_path):
    run = run_file(tmp_path)
    tokenize(run)
    extract(run)
    with pytest.raises(InputError, match=r"site 'mid' has no x: pass 'mid' was made with store\.layouts"):
        FeatureStore.open(run.store.root).dense("mid")


@pytest.mark.parametrize(
    ("store", "sites", "sentence"),
    [
        ({"layouts": ["dense"]}, None, "'mid' has an SAE, but store.layouts is only dense"),
        ({}, [{"name": "low", "hook_name": "layers.0"}], "'low' has no SAE, so only its x can be stored"),
        ({"layouts": ["dense", "dense"]}, None, "each once"),
        (
            {"layouts": ["dense"]},
            [{"hook_name": "layers.0", "control": "random_encoder"}],
            "needs an SAE with weights, and the site has no SAE",
        ),
    ],
)
def test_a_run_file_whose_layouts_do_not_fit_its_sites_is_refused(tmp_path, store, sites, sentence):
    changes = {"store": store} | ({"sites": sites} if sites else {})
    with pytest.raises(InputError, match=sentence):
        run_file(tmp_path, **changes)


def test_a_site_with_neither_sae_nor_hook_is_refused(tmp_path):
    run = run_file(tmp_path, store={"layouts": ["dense"]}, sites=[{"name": "low"}])
    with pytest.raises(InputError, match="needs a hook_name"):
        extract(run)


def test_plans_without_dense_keep_their_hash(lake, tmp_path):
    from tests.fixtures.store import make_plan, planned_site

    plan = make_plan([planned_site()], ["token_major"], "float16")
    assert "dense_dtype" not in plan.recipe()
    assert plan.model_copy(update={"dense_dtype": "float16"}).hash != plan.hash


# ---------------------------------------------------------------- the array


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("pieces", [(700,), (1, 255, 0, 444), (300, 400)])
def test_what_is_written_in_pieces_is_read_whole(tmp_path, monkeypatch, dtype, pieces):
    monkeypatch.setattr(dense_module, "CHUNK_BYTES", 16 * 4 * 8)  # chunks of 8 or 16 rows
    stored = np.random.default_rng(2).random(len(X)) < 0.8
    writer, place = DenseWriter(tmp_path / "x.zarr", len(X), 16, dtype), 0
    for rows in pieces:
        mask = stored[place : place + rows]
        writer.add(X[place : place + rows][mask], mask)
        place += rows
    writer.finish(tmp_path / "x.zarr")
    array = open_dense(tmp_path / "x.zarr")
    assert array.nchunks > 32
    assert (array[:] == np.where(stored[:, None], round_dense(X, dtype), 0)).all()


def test_a_writer_that_begins_anew_writes_the_same(tmp_path):
    stored = np.ones(len(X), bool)
    for name, broken in (("a", False), ("b", True)):
        writer = DenseWriter(tmp_path / name, len(X), 16, "float32")
        if broken:
            writer.add(X[:123] + 1, stored[:123])
            writer.restart()
        writer.add(X, stored)
        writer.finish(tmp_path / name)
    assert measure(tmp_path / "a") == measure(tmp_path / "b")


def test_a_writer_goes_on_while_its_thread_compresses_and_lets_only_so_much_wait(tmp_path, monkeypatch):
    gate, begun = threading.Event(), []
    rounded = dense_module.round_dense
    monkeypatch.setattr(dense_module, "AHEAD_BYTES", X[:100].nbytes * 3)

    def slow(x, dtype):
        begun.append(len(x))
        assert gate.wait(20)
        return rounded(x, dtype)

    monkeypatch.setattr(dense_module, "round_dense", slow)
    ones, added = np.ones(100, bool), []
    with DenseWriter(tmp_path / "x.zarr", len(X), 16, "float32") as writer:

        def add_all():
            for n in range(7):
                writer.add(X[n * 100 : (n + 1) * 100], ones)
                added.append(n)

        adding = threading.Thread(target=add_all)
        adding.start()
        adding.join(0.5)
        assert (added, begun) == ([0, 1, 2], [100])
        gate.set()
        adding.join()
        writer.finish(tmp_path / "x.zarr")
    assert (open_dense(tmp_path / "x.zarr")[:] == X).all()


def test_what_goes_wrong_in_the_thread_is_raised_and_the_thread_ends(tmp_path, monkeypatch):
    ones, bad = np.ones(100, bool), np.full((100, 16), np.nan, np.float32)
    before = threading.active_count()
    with DenseWriter(tmp_path / "x.zarr", len(X), 16, "float32") as writer:
        writer.add(bad, ones)
        with pytest.raises(ShardError, match="x is nan"):
            writer.finish(tmp_path / "x.zarr")
    with DenseWriter(tmp_path / "y.zarr", len(X), 16, "float32") as writer:
        writer.add(bad, ones)
        writer._waiting[0][0].exception()  # until it is there
        with pytest.raises(ShardError, match="x is nan"):
            writer.add(X[:0], ones[:0])
    monkeypatch.setattr(dense_module, "CHUNK_BYTES", 16 * 4)  # a Zarr shard of 32 rows
    with DenseWriter(tmp_path / "z.zarr", len(X), 16, "float32") as writer:
        shutil.rmtree(tmp_path / "z.zarr")
        (tmp_path / "z.zarr").write_bytes(b"")
        writer.add(X[:100], ones)
        with pytest.raises(InputError, match="a part of its path is a file"):
            writer.finish(tmp_path / "z.zarr")
    assert threading.active_count() == before


def test_an_empty_shard_has_an_empty_array(tmp_path):
    writer = DenseWriter(tmp_path / "x.zarr", 0, 16, "float32")
    writer.finish(tmp_path / "x.zarr")
    assert open_dense(tmp_path / "x.zarr").shape == (0, 16)


def test_bfloat16_rounds_as_torch_does_and_lies_in_half_the_room(tmp_path):
    import torch

    wide = np.concatenate([X * 10.0**power for power in range(-38, 38, 4)]).astype(np.float32)
    expected = torch.from_numpy(wide).bfloat16().float().numpy()
    assert (round_dense(wide, "bfloat16") == expected).all()
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        writer = DenseWriter(tmp_path / dtype, len(wide), 16, dtype)
        writer.add(wide, np.ones(len(wide), bool))
        writer.finish(tmp_path / dtype)
        sizes[dtype] = measure(tmp_path / dtype)[0]
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]


@pytest.mark.parametrize(
    ("value", "dtype", "sentence"),
    [
        (70000.0, "float16", "x of 70000 does not fit float16: set store.dense_dtype: float32"),
        (3.4e38, "bfloat16", "does not fit bfloat16"),
        (np.nan, "bfloat16", "x is nan: the model overflows"),
        (np.inf, "float32", "x is inf: the model overflows"),
    ],
)
def test_an_x_that_cannot_be_stored_is_reported(value, dtype, sentence):
    with pytest.raises(ShardError, match=sentence):
        round_dense(np.array([[1.0, value]], np.float32), dtype)
