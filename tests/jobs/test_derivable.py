"""Jobs of `derive.jobs`: what they need is added in order, and what cannot be done is said at once."""

from __future__ import annotations

from itertools import chain, combinations

import pytest

from jobs.lake import derivable
from jobs.lake.derivable import closed, needs_of, with_needed
from jobs.lake.derive import PAGES
from jobs.lake.run import run
from pipeline.store import FeatureStore
from pipeline.store.records.registry import NEEDS, TABLES
from schemas.errors import InputError
from schemas.names import DERIVED_JOBS as JOBS
from tests.fixtures.runs import run_file


def test_every_subset_of_the_jobs_is_closed_and_in_an_order_in_which_none_waits_for_a_later_one(tmp_path):
    needs = needs_of(run_file(tmp_path, rank={"by": ["token_entropy_bits"]}))
    place = {name: number for number, name in enumerate(JOBS)}
    for jobs in chain.from_iterable(combinations(JOBS, n) for n in range(len(JOBS) + 1)):
        result = closed(jobs, needs)
        assert set(jobs) <= set(result)
        assert result == sorted(result, key=place.__getitem__)
        for job in result:
            assert all(place[needed] < place[job] and needed in result for needed in needs.get(job, ()))
        assert closed(result, needs) == result
        wanted = set(jobs)
        for _ in JOBS:
            wanted |= {needed for job in wanted for needed in needs.get(job, ())}
        assert set(result) == wanted, "nothing more is added than is needed"


def test_the_jobs_of_the_registry_are_those_of_the_run_file():
    assert {table.job for table in TABLES} - {"match", "truth", "explanations"} == {*JOBS} - {
        "examples"
    } - PAGES.keys()
    assert {*NEEDS, *derivable.REFUSED} <= set(JOBS)


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"derive": {"jobs": ["stats", "plots", "report"]}}, "rank"),
        ({"derive": {"jobs": ["report"]}}, "stats"),
        ({"derive": {"jobs": ["plots"]}}, "stats, rank"),
        ({"derive": {"jobs": ["stats", "rank"]}, "rank": {"by": ["tokens"]}}, "profile"),
        ({"derive": {"jobs": ["stats", "report"], "report": "top:5:tokens"}}, "profile"),
        ({"derive": {"jobs": ["report", "stats"]}}, ""),
    ],
)
def test_what_is_added_is_said_in_one_line(tmp_path, capsys, changes, added):
    given = run_file(tmp_path, **changes)
    jobs = with_needed(given).derive.jobs
    message = f"derive {added} too, because other jobs of derive.jobs need it\n" if added else ""
    assert capsys.readouterr().out == message
    assert set(jobs) == {*given.derive.jobs, *filter(None, added.split(", "))}


def test_plots_and_report_without_a_ranking_are_made_to_the_end(tmp_path, capsys):
    run(run_file(tmp_path, derive={"jobs": ["stats", "plots", "report"], "report": "top:2"}))
    assert "derive rank too" in capsys.readouterr().out
    store = FeatureStore.open(tmp_path / "store")
    assert store.has_table("mid", "rankings")
    assert (store.layout.figures("mid") / "sigma_over_mu.png").is_file()
    assert (store.layout.report / "sites" / "mid" / "index.html").is_file()


@pytest.mark.parametrize(
    ("jobs", "changes", "why"),
    [
        (["logits"], {}, "model.loader: torch_module has no unembedding"),
        (["attribute"], {}, "the corpus names no two columns of answers"),
        (
            ["images"],
            {"corpus": {"label_columns": ["party"]}},
            "model.loader: torch_module has no image decoder",
        ),
        (["importance"], {}, r"the store has the label columns party, year: choose one"),
        (["importance"], {"corpus": {"label_columns": []}}, r"the store has no label columns"),
        (["rank"], {"rank": {"by": ["sigma_over_my"]}}, "did you mean 'sigma_over_mu'"),
        (["report"], {"derive": {"report": "top:9:frequenzy"}}, "did you mean 'frequency'"),
        (["report"], {"derive": {"report": "1,64"}}, "there are 0 to 63"),
        (["stats", "fidelity"], {"pooling": "mean"}, "it reads one vector of each context"),
    ],
)
def test_what_could_not_be_done_is_refused_before_the_first_shard(tmp_path, jobs, changes, why):
    changes = dict(changes)
    derive = {"jobs": jobs} | changes.pop("derive", {})
    given = run_file(tmp_path, derive=derive, **{k: v for k, v in changes.items() if k != "pooling"})
    if "pooling" in changes:
        sites = [site.model_copy(update={"pooling": "mean"}) for site in given.sites]
        given = given.model_copy(update={"sites": tuple(sites)})
    with pytest.raises(InputError, match=f"derive.jobs: .* is impossible for site 'mid': .*{why}"):
        run(given)
    assert not (tmp_path / "store" / "passes").exists()
