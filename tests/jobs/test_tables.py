"""The registry of derived tables: what else names tables names those of it."""

from __future__ import annotations

from pathlib import Path

from jobs.command.registry import find
from jobs.figures import FIGURES
from jobs.report.overview import FIGURES as IN_REPORT
from jobs.report.tables import CLUSTERS
from jobs.views.feature import SECTIONS
from pipeline.store.records.registry import NEEDS, TABLES, find_table, job_of

NAMES = {table.name for table in TABLES}


def test_each_name_is_found_as_itself_and_its_command_is_one():
    for table in TABLES:
        assert find_table(table.name) is table
        assert find(table.job).name == table.job


def test_names_that_are_made_up_find_the_command_that_makes_such_tables():
    assert job_of("matches_other") == "match"
    assert job_of("feature_cluster_summary") == job_of("feature_clusters_summary") == "cluster"
    assert job_of("unknown") == "stats"


def test_needs_figures_and_pages_are_of_registered_tables():
    assert {name for names in NEEDS.values() for name in names} <= NAMES
    assert {figure.table for figure in FIGURES.values()} <= NAMES
    assert IN_REPORT.keys() <= FIGURES.keys()
    assert {f"{kind}_clusters" for kind in CLUSTERS} <= NAMES


def test_a_features_page_has_a_section_for_each_table_that_the_registry_says():
    shown = {name for section in SECTIONS for name in section.tables}
    assert shown | {"matches*"} == {table.name for table in TABLES if table.page == "feature"}


def test_the_documentation_lists_the_tables():
    lines = [f"| `{table.name}` | `{table.job}` | {table.row} |" for table in TABLES]
    expected = "\n".join(["| table | made by | a row is |", "|---|---|---|", *lines])
    page = (Path(__file__).parents[2] / "docs/queries.md").read_text(encoding="utf-8")
    assert f"## The tables\n\n{expected}\n\n" in page, f"docs/queries.md should have:\n{expected}"
