"""A lake without a model through the whole line: tokens, workers, tables, against the generator's truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from jobs.lake.run import run
from pipeline.plans.plan import resolve
from pipeline.store import FeatureStore
from pipeline.store.records.tokens import read_token_shard
from pipeline.synthetic.generator import Generator
from pipeline.synthetic.planted import planted_rows
from pipeline.synthetic.recipe import parse
from pipeline.synthetic.truth import truth
from schemas.errors import InputError
from schemas.run.file import RunFile, load_run_file, parse_run_file
from tests.fixtures.runs import data_bytes, extracted, write_corpus
from tests.kit import write_tiny_tokenizer

ROOT = Path(__file__).parents[2]
SPEC = "synthetic:d_sae=256,l0=6"


def content(folder: Path, **changes: object) -> dict[str, object]:
    """A run file of some 9,000 rows in a few shards."""
    whole: dict[str, object] = {
        "corpus": {"kind": "synthetic", "documents": 150, "tokens_per_document": 60, "vocabulary": 50},
        "tokens": {"context_size": 32, "shard_tokens": 2500},
        "model": {"loader": "synthetic"},
        "sites": [{"name": "made", "sae": SPEC}],
        "store": {"root": str(folder / "store")},
        "extract": {"executor": "in_process"},
    }
    return whole | changes


def run_file(folder: Path, **changes: object) -> RunFile:
    return parse_run_file(content(folder, **changes), "run.yaml")


def shards_of(store: FeatureStore, site: str = "made"):
    """Token shards as the site counts them."""
    selection = store.site(site).selection
    for record in store.shards:
        yield read_token_shard(store.layout, store.lake, record).restrict(selection, store.lake.context_size)


def stored(store: FeatureStore, site: str = "made"):
    """CSR of each shard: row pointers, features, values."""
    for record in store.shards:
        matrix = store.csr(site, record.name)
        yield matrix.indptr, matrix.indices, matrix.data


def assert_table_is_the_truth(store: FeatureStore, site: str = "made") -> None:
    table = store.scan_features(site).collect()
    result = truth(Generator(parse(store.site(site).sae)), shards_of(store, site))
    assert set(table["counted_rows"]) == {result.counted_rows}
    assert (set(table["contexts"]), set(table["documents"])) == ({result.contexts}, {result.documents})
    for name in ("n_active", "active_contexts", "active_documents"):
        np.testing.assert_array_equal(table[name].to_numpy(), getattr(result, name))
    largest = table["max_activation"].fill_null(0).to_numpy()
    np.testing.assert_array_equal(largest, result.max_k / 64)
    for over in ("all", "active"):
        mean, variance = result.moments(active=over == "active")
        np.testing.assert_allclose(table[f"mean_{over}"].fill_null(np.nan), mean, rtol=1e-12)
        message = table[f"var_{over}"].fill_null(np.nan).to_numpy()
        several = result.n_active > 1 if over == "active" else np.ones(len(message), bool)
        np.testing.assert_allclose(message[several], variance[several], rtol=1e-12)
    l0 = store.scan_table(site, "l0").collect()
    np.testing.assert_array_equal(
        np.repeat(l0["l0"].to_numpy(), l0["rows"].to_numpy()), np.repeat(np.arange(len(result.l0)), result.l0)
    )


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("synthetic")
    return extracted(run_file(folder))


def test_the_worker_writes_what_the_generator_draws(lake):
    generator = Generator(parse(SPEC))
    assert len(lake.shards) > 3
    for shard, (indptr, indices, data) in zip(shards_of(lake), stored(lake), strict=True):
        document, rows = shard.document, np.ones(shard.n_rows, bool)
        drawn = generator.draw(shard.row_start, document, rows)
        np.testing.assert_array_equal(indptr, drawn.indptr)
        np.testing.assert_array_equal(indices, drawn.indices)
        np.testing.assert_array_equal(data, drawn.data)


def test_the_feature_table_is_the_truth(lake):
    assert_table_is_the_truth(lake)
    assert lake.verify().problems == []


def test_the_strongest_contexts_are_the_planted_ones(lake):
    generator = Generator(parse(SPEC))
    rows = sum(record.rows for record in lake.shards)
    tokens = lake.scan_tokens().select("context", "row_start").collect()
    for feature in generator.planted.tolist():
        planted, values = planted_rows(rows, feature, generator.planted)
        assert len(planted)
        top = lake.contexts("made", feature, k=len(planted)).join(tokens, on="context", maintain_order="left")
        assert (top["row_start"] + top["position"]).to_list() == planted.tolist()
        assert top["activation"].to_list() == values.tolist()


def test_shard_cuts_do_not_matter(lake, tmp_path):
    other = extracted(run_file(tmp_path, tokens={"context_size": 32, "shard_tokens": 900}), tables=False)
    assert len(other.shards) > 2 * len(lake.shards)
    for mine, others in zip(*(_joined(store) for store in (lake, other)), strict=True):
        np.testing.assert_array_equal(mine, others)


def _joined(store):
    """Lengths of all rows, and all features and values, of a store."""
    pointers, indices, data = zip(*stored(store), strict=True)
    return np.concatenate([np.diff(p) for p in pointers]), np.concatenate(indices), np.concatenate(data)


def test_several_sites_positions_and_special_tokens_work_as_for_a_model(tmp_path):
    write_corpus(tmp_path / "corpus.parquet")
    write_tiny_tokenizer(tmp_path / "tokenizer")
    made = run_file(
        tmp_path,
        corpus={"path": str(tmp_path / "corpus.parquet"), "label_columns": ["party"]},
        tokens={"context_size": 16, "shard_tokens": 300, "tokenizer": str(tmp_path / "tokenizer")},
        sites=[
            {"name": "all", "sae": SPEC},
            {"name": "late", "sae": f"{SPEC},seed=1", "positions": [8, None]},
        ],
    )
    store = extracted(made)
    for site in ("all", "late"):
        assert_table_is_the_truth(store, site)
        for shard, (indptr, _, _) in zip(shards_of(store, site), stored(store, site), strict=True):
            assert not np.diff(indptr)[~shard.stored].any()
            assert not shard.stored.all()
    special = store.scan_tokens().collect()["counted"].explode()
    assert not special.all()
    assert store.totals("late").counted_rows < store.totals("all").counted_rows < len(special)
    assert store.verify().problems == []


@pytest.mark.slow
@pytest.mark.ray
def test_two_ray_workers_write_the_same_bytes(lake, tmp_path):
    two = {"executor": "ray", "workers": 2, "cpus_per_worker": 1}
    calm = run_file(tmp_path / "calm", extract={"executor": "in_process", "cpus_per_worker": 1})
    ours, theirs = extracted(calm), extracted(run_file(tmp_path / "ray", extract=two))
    assert data_bytes(ours.layout.root) == data_bytes(theirs.layout.root)
    assert (
        len({receipt.plan_hash for store in (ours, theirs) for receipt in store.receipts("made").values()})
        == 1
    )


@pytest.mark.slow
def test_a_run_goes_through_all_its_steps_and_says_what_a_synthetic_site_lacks(tmp_path):
    example = yaml.safe_load((ROOT / "examples/synthetic.yaml").read_text())
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(example | {"store": {"root": str(tmp_path / "store")}}))
    command = [sys.executable, "-m", "jobs", "run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "a synthetic site has no decoder, so its features are not clustered" in done.stdout
    assert "warning" not in done.stdout
    store = FeatureStore.open(tmp_path / "store")
    assert_table_is_the_truth(store)
    assert {"features", "rankings", "context_clusters"} <= set(store.tables("made"))
    assert "feature_clusters" not in store.tables("made")
    assert list(store.layout.figures("made").glob("*.png"))
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "up to date" in again.stdout


def test_what_is_kept_of_a_synthetic_sae_is_its_recipe(lake):
    weights, about = lake.site_weights("made")
    assert weights == {}
    assert about == {
        "format": "synthetic", "d_sae": 256, "l0": 6.0, "exponent": 1.0, "burst": 0.5, "seed": 0
    }  # fmt: skip


def test_nothing_of_it_loads_torch(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content(tmp_path)))
    code = f"""
import sys
from jobs.lake.tokenize import tokenize
from jobs.lake.extract import extract
from schemas.run.file import load_run_file
run = load_run_file({str(path)!r})
tokenize(run); extract(run)
print(sorted({{"torch", "transformers", "tokenizers", "ray"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_another_recipe_under_the_same_pass_is_refused(tmp_path):
    extracted(run_file(tmp_path), tables=False)
    with pytest.raises(InputError, match=r"begun with another recipe: sites\.0\.sae_digest was"):
        run(run_file(tmp_path, sites=[{"name": "made", "sae": f"{SPEC},seed=1"}]))
    with pytest.raises(InputError, match=r"holds another corpus \(synthetic, 150 documents, seed 0"):
        run(run_file(tmp_path, corpus={"kind": "synthetic", "documents": 151, "tokens_per_document": 60,
                                       "vocabulary": 50}))  # fmt: skip


def test_a_node_that_draws_otherwise_is_refused(tmp_path, monkeypatch):
    run_it = run_file(tmp_path)
    extracted(run_it, tables=False)
    plan = json.loads((tmp_path / "store/passes/made/plan.json").read_text())
    monkeypatch.setattr("pipeline.synthetic.generator._GROUPS", 4)
    from pipeline.worker import Worker
    from schemas.records import Plan

    with pytest.raises(
        InputError, match="generates different features for site 'made' than those in the plan"
    ):
        Worker(tmp_path / "store", Plan.model_validate(plan)).setup()


def test_the_defaults_of_a_synthetic_run_file():
    resolved, notes = resolve(run_file(Path("nowhere"), tokens={}))
    tokens = resolved.tokens
    assert notes == []
    assert (tokens.tokenizer, tokens.prepend_bos, tokens.separator) == ("numbers:50", False, None)
    assert (tokens.context_size, resolved.extract.check_sae) == (128, "off")
    assert (resolved.sites[0].hook_name, resolved.sites[0].name) == ("synthetic", "made")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {"path": "a.txt", "documents": 3}}, "corpus.documents is for corpus.kind: synthetic"),
        ({"corpus": {"kind": "synthetic", "path": "a.txt"}}, "corpus.path is for corpus.kind: text"),
        (
            {"corpus": {"kind": "synthetic", "label_columns": ["a"]}},
            "corpus.label_columns is for corpus.kind: text",
        ),
        ({"corpus": {}}, "corpus.path is missing"),
        ({"corpus": {"kind": "synthetic", "documents": 0}}, "corpus.documents is 0: input should be greater"),
        ({"model": {}}, "model.path is missing"),
        ({"model": {"loader": "synthetic", "path": "gpt2"}}, "model.path requires a model"),
        ({"model": {"path": "gpt2"}}, f"needs an SAE with weights, but a site has '{SPEC}'"),
        ({"sites": [{"sae": "saes/x"}]}, "one that begins with 'synthetic:', but a site has 'saes/x'"),
        ({"corpus": {"path": "a.txt"}}, "model.loader: synthetic has no tokenizer: set tokens.tokenizer"),
        ({"sites": [{"sae": "synthetic:l0=3"}]}, "SAE synthetic:l0=3: d_sae is missing"),
        ({"tokens": {"prepend_bos": True}}, "'numbers:50' has neither a BOS nor an EOS token: name a token"),
        ({"tokens": {"separator": "eos"}}, "'numbers:50' has no EOS token; set tokens.separator: none"),
        ({"tokens": {"tokenizer": "numbers:9"}}, "beyond the vocabulary of 'numbers:9'"),
    ],
)
def test_what_does_not_fit_together_is_reported_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        run(run_file(tmp_path, **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_the_example_is_as_small_as_it_says():
    made = load_run_file(ROOT / "examples/synthetic.yaml")
    assert made.corpus.documents * made.corpus.tokens_per_document < 20_000
    assert pl.Series([parse(site.sae).l0 for site in made.sites]).max() < 20
