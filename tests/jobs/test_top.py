"""`latentlake top` and `latentlake feature` over a small lake."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.tables.cluster import cluster
from jobs.tables.coactivation import coactivation
from jobs.tables.examples import examples
from jobs.tables.rank import rank
from jobs.terminal.names import labelled
from jobs.terminal.strips import DEEPEST
from jobs.views.top import top
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.run.file import Cluster
from tests.fixtures.runs import extracted, run_file
from tests.jobs.test_strips import Tokens


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return extracted(run_file(tmp_path_factory.mktemp("lake")))


@pytest.fixture(scope="module")
def feature(store: FeatureStore) -> int:
    """One that fires in several documents."""
    return int(store.scan_features("mid").sort("n_active").last().collect()["feature"][0])


def said(store: FeatureStore, command: str, *arguments: object) -> str:
    done = CliRunner().invoke(app, [command, str(store.layout.root), *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.output


def window(store: FeatureStore, row: dict, before: int, after: int) -> str:
    """The text of a strip, from a row with its whole context."""
    pieces = [piece.replace(" ", "·") for piece in store.pieces(row["token_ids"])]
    at = row["position"]
    pieces[at] = f"|{pieces[at]}|"
    return "".join(pieces[max(0, at - before) : at + after + 1])


def test_windows_are_as_long_as_requested_and_reach_to_the_last_token(
    store: FeatureStore, feature: int
) -> None:
    result = store.contexts("mid", feature, 1000)
    last = result.filter(pl.col("position") == pl.col("token_ids").list.len() - 1)
    assert last.height
    for before, after in ((30, 2), (3, 0), (0, 5)):
        lines = said(store, "top", feature, "-k", 1000, "--before", before, "--after", after).splitlines()
        strips = [line.strip() for line in lines[2::2]]
        assert strips == [window(store, row, before, after) for row in result.iter_rows(named=True)]


def test_one_per_document_shows_each_document_once(store: FeatureStore, feature: int) -> None:
    every = store.contexts("mid", feature, 1000)
    shown = said(store, "top", feature, "-k", 1000, "--one-per-document").splitlines()
    assert len(shown) == 1 + 2 * every["document"].n_unique() < 1 + 2 * every.height


def test_a_page_shades_every_token_by_its_activation(
    store: FeatureStore, feature: int, tmp_path: Path
) -> None:
    path = tmp_path / "top.html"
    shown = said(store, "top", feature, "-k", 3, "--strip", "--html", path, "--before", 50, "--after", 50)
    assert str(path) in shown.replace("\n", "")
    page = Tokens(path.read_text(encoding="utf-8"))
    result = store.contexts("mid", feature, 3)
    rows, values = store.rows_of("mid", feature)
    dense = np.zeros(int(rows.max()) + 100, np.float32)
    dense[rows.astype(np.int64)] = values
    expected = []
    for row in result.iter_rows(named=True):
        start = row["row"] - row["position"]
        expected += dense[start : start + len(row["token_ids"])].tolist()
    assert [float(span.get("title") or 0) for span, _ in page.spans] == pytest.approx(expected, rel=1e-5)
    assert sum(text.startswith("|") for _, text in page.spans) == 3


def test_full_shade_from_0_on_shades_each_firing_token_fully(
    store: FeatureStore, feature: int, tmp_path: Path
) -> None:
    said(store, "top", feature, "-k", 3, "--html", tmp_path / "top.html", "--maximum", 0)
    page = Tokens((tmp_path / "top.html").read_text(encoding="utf-8"))
    firing = [span["style"] for span, _ in page.spans if float(span.get("title") or 0)]
    assert len(firing) > 3
    assert all(f"/{DEEPEST}%" in style for style in firing)


def test_a_feature_page_tells_what_there_is_and_the_command_for_what_there_is_not(
    store: FeatureStore, feature: int
) -> None:
    bare = said(store, "feature", feature, "-k", 2)
    row = store.scan_features("mid").filter(pl.col("feature") == feature).collect().row(0, named=True)
    assert f"{row['n_active']:,} of {row['counted_rows']:,} counted rows" in bare
    for job in ("profile", "rank", "coactivation", "cluster", "logits", "examples"):
        assert f"latentlake {job} makes" in bare
    assert "latentlake stats makes" not in bare
    rank(store, "mid")
    coactivation(store, "mid", support=2)
    cluster(store, "mid", Cluster.model_validate({}))
    examples(store, "mid")
    full = said(store, "feature", feature, "-k", 2, "--after", 1)
    for part in ("by sigma_over_mu", "features that fire with it", "by decoder direction", "does not fire"):
        assert part in full
    near = store.scan_table("mid", "neighbours").filter(pl.col("feature") == feature).collect()
    assert f"{near['n_both'][0]:,}" in full
    assert "latentlake examples makes" not in full
    strongest = store.contexts("mid", feature, 1).row(0, named=True)
    assert window(store, strongest, 30, 1) in full


def test_a_feature_page_reads_the_tables_of_other_jobs(store: FeatureStore, feature: int) -> None:
    tables = {
        "profile": {
            "frequency_low": 0.1, "frequency_high": 0.25, "dead_upper": None, "tokens": 7, "top_token": 5,
            "top_token_share": 0.5, "token_entropy_bits": 2.5, "position_entropy_bits": 3.5,
            "first_positions_share": 0.125, "first_context": 1, "last_context": 9,
        },
        "labels": {
            "label": "party", "value": "Whig", "rows": 1234, "frequency": 0.5, "difference": -0.0625,
            "z": -4.5, "q": 0.03125,
        },
        "label_trends": {
            "label": "year", "documents": 1071, "slope": -0.00390625, "se": 0.001, "z": -3.75, "q": 0.046875,
        },
        "decoder_neighbours": {"neighbour": 17, "rank": 0, "cosine": 0.8125},
        "logits": {
            "entropy_bits": 5.125, "max_probability": 0.375, "top_tokens": [4, 6], "top_logits": [2.5, 1.5],
            "bottom_tokens": [8], "bottom_logits": [-3.25],
            "promoted_tokens": [9, 5], "promoted_effects": [0.5, 0.25],
        },
        "coactivation_clusters": {"cluster": 3, "rank": 0},
        "matches_other": {
            "match": 21, "assigned": True, "cosine": 0.9375, "n_both": 1007, "jaccard": 0.25,
        },
        "matches_synthetic": {
            "match": 33, "assigned": False, "cosine": None, "n_both": 12, "jaccard": 0.125,
        },
    }  # fmt: skip
    for name, row in tables.items():
        store.write_table(
            "mid", name, pl.DataFrame({"feature": [feature]} | {k: [v] for k, v in row.items()})
        )
    full = said(store, "feature", feature)
    parts = [
        "0.1 to 0.25", "|·w2| on 50.0%", "Whig", "1,234", "-0.0625", "1,071", "-0.003906", "0.04688",
        f"{labelled(store.names('mid'), 17)} (0.812)", "5.125 bits",
        "|·w1| 2.5, |·w3| 1.5", "|·w5| -3.25", "promoted: |·w6| 0.5, |·w2| 0.25",
        "by co-activation: cluster 3",
        "other 21: cosine 0.938, jaccard 0.250, 1,007 rows", "synthetic 33: jaccard 0.125, 12 rows",
    ]  # fmt: skip
    assert [part for part in parts if part not in full] == []
    assert "latentlake profile makes l" not in full


def test_a_feature_that_never_fires_has_a_page_too(tmp_path: Path) -> None:
    store = extracted(run_file(tmp_path, "jumprelu", tokens={"limit": 300}))
    silent = store.scan_features("mid").filter(pl.col("n_active") == 0).collect()["feature"]
    assert len(silent)
    assert "never fires" in said(store, "feature", silent[0])
    assert "never fires" in said(store, "top", silent[0], "--strip")


def test_a_feature_that_is_not_there_is_refused(store: FeatureStore) -> None:
    with pytest.raises(InputError, match=r"features are 0 to 63"):
        said(store, "feature", 64)


def test_a_site_without_a_committed_shard_is_no_site_that_never_fires(
    store: FeatureStore, tmp_path: Path
) -> None:
    shutil.copytree(store.layout.root, tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "passes" / "mid" / "commits")
    with pytest.raises(InputError, match="'mid' has no committed shard: run `latentlake extract`"):
        top(FeatureStore.open(tmp_path / "begun"), "mid", 3)
