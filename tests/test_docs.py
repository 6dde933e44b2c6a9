"""The pages that people read: links lead somewhere, commands exist, figures are those measured."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from jobs.cli import app
from jobs.command.registry import EXPORTS, GROUPS
from schemas.run.file import RunFile
from tests.fixtures.runs import extracted, run_content

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]
WITH_COMMANDS = [*(page for page in PAGES if page != "CHANGELOG.md"), "deploy/README.md", "schemas/README.md"]
NUMBERS = {"N": "1", "HOURS": "24", "P": "0", "F": "3", "R": "0.1", "FEATURE": "3"}
"""What stands for a number in the pages, and one."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands_in(page: str, start: str = "latentlake ") -> Iterator[str]:
    """Every command of a page: lines of fenced blocks, and code in a line."""
    text = text_of(page)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in (*(line for block in blocks for line in block.splitlines()), *inline):
        command = line.partition("  #")[0].strip()
        if command.startswith(start) and not re.match(r"latentlake (COMMAND|began|exists)", command):
            yield command


def run_python_of(page: str) -> dict[str, Any]:
    """The names that the Python of a page leaves, run in the working directory."""
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL):
        exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_that_are_there(page: str) -> None:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    text = text_of("README.md")
    assert [page for page in PAGES[1:] if f"]({page})" not in text] == []


def test_the_readme_is_short() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.split()) <= 1_500


def arguments_of(command: str) -> list[str]:
    """The arguments of a command of a page, with its optional parts, and a number where one is meant."""
    words = shlex.split(re.sub(r"[\[\]…]", " ", command))[1:]
    return [NUMBERS.get(word, word) for word in words if word != "&"]


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_each_command_of_a_page_has_the_arguments_and_options_that_it_is_given(page: str) -> None:
    group = typer.main.get_command(app)
    for command in commands_in(page):
        name, *arguments = arguments_of(command)
        if not arguments:  # the name of a command, in prose, or an option of them all
            options = {option for parameter in group.params for option in parameter.opts}
            assert name in group.commands.keys() | options, command
            continue
        found: Any = group.commands[name]
        if name == "export" and not arguments[0].startswith("-") and arguments[0] != "FORMAT":
            found, arguments = found.commands[arguments[0]], arguments[1:]
        elif name == "export":
            continue
        found.make_context(name, arguments)  # raises what click says of a wrong option


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_each_module_and_target_that_a_page_names_is_there(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    for command in commands_in(page, "make "):
        assert command.split()[1] in targets, command
    for command in commands_in(page, "python -m "):
        module = command.split()[2]
        if module.split(".")[0] in ("jobs", "examples", "tests"):
            assert importlib.util.find_spec(module), command


@pytest.mark.parametrize("page", PAGES)
def test_each_run_file_of_a_page_has_keys_and_values_that_exist(page: str) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        content = yaml.safe_load(block)
        if content.keys() >= {"corpus", "model", "sites", "store"}:
            RunFile.model_validate(content)
        for section, value in content.items():
            TypeAdapter(RunFile.model_fields[section].annotation).validate_python(value)


def test_the_python_of_the_page_on_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = run_content(
        tmp_path, sites=[{"name": "x9", "hook_name": "layers.1"}], store={"layouts": ["dense"]}
    )
    content["store"]["root"] = str(tmp_path / "out" / "demo")
    extracted(RunFile.model_validate(content))
    monkeypatch.chdir(tmp_path)
    names = run_python_of("docs/training.md")
    assert names["batch"].shape == (256, names["x"].width)


def test_every_page_with_python_is_run() -> None:
    with_python = {page for page in PAGES if "```python" in text_of(page)}
    assert with_python == {"README.md", "docs/queries.md", "docs/saes.md", "docs/training.md"}


def table_of(measured: dict[str, Any]) -> str:
    """Caption and table of a file of measurements."""
    columns = measured["columns"]
    lines = [columns, ["---"] * len(columns), *measured["rows"]]
    return f"**{measured['caption']}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


MEASURED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("docs/measurements/*.json"))
}
QUOTED: dict[str, list[str]] = json.loads(text_of("docs/quoted.json"))
"""Page -> sentences of it that hold measured numbers, as `{file[row or value]}`."""
QUANTITY = re.compile(
    r"\d[\d.,]*\s(?:(?:tokens|rows)/s|[mµn]?s|seconds|minutes|min|hours|[kMG]B)\b|\b0\.\d{3,}"
)
"""Numbers that have most likely been measured."""
NOT_MEASURED = {
    "docs/benchmarks.md": ["The targets are 50 M activations/s and 3 GB", "6 M/s and 3 GB for `verify`"],
    "docs/progress.md": ["`stopped 5 s ago", "`no sign for 12 min:"],
    "docs/storage.md": ["timeouts (30 s per request", "older than 24 hours"],
    "docs/trust.md": ["256 levels, 16 MB"],
}
"""Page -> targets, limits and examples among such numbers."""


def tables_of(page: str) -> list[str]:
    """The tables of a page that are files of measurements."""
    return [
        table_of(measured)
        for measured in MEASURED.values()
        if "columns" in measured and measured.get("page", "docs/benchmarks.md") == page
    ]


def quotes_of(page: str) -> list[str]:
    """The sentences of a page with measured numbers, with the numbers of the files."""
    numbers = {
        name: {row[0]: row[1:] for row in measured.get("rows", [])} | measured.get("values", {})
        for name, measured in MEASURED.items()
    }
    return [sentence.format(**numbers) for sentence in QUOTED.get(page, [])]


@pytest.mark.parametrize("page", PAGES)
def test_tables_and_sentences_have_the_numbers_that_were_measured(page: str) -> None:
    text = text_of(page)
    assert [table for table in tables_of(page) if table not in text] == []
    assert [sentence for sentence in quotes_of(page) if sentence not in " ".join(text.split())] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_measured_number_of_a_page_is_in_a_file(page: str) -> None:
    text = text_of(page)
    for table in tables_of(page):
        text = text.replace(table, "")
    text = " ".join(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).split())
    for quoted in (*quotes_of(page), *NOT_MEASURED.get(page, [])):
        text = text.replace(quoted, "")
    sought = re.compile(r"\S+ \*\*\[M\]\*\*(?! measured)") if page == "docs/scaling.md" else QUANTITY
    assert sought.findall(text) == []


def test_messages_of_the_page_of_faults_are_those_of_the_code() -> None:
    files = [path for room in ("schemas", "pipeline", "jobs") for path in (ROOT / room).rglob("*.py")]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))
    messages = text_of("docs/faults.md").partition("## Messages")[2].partition("\n## ")[0]
    phrases = re.findall(r"^\| `([^`]+)`", messages, re.MULTILINE)
    assert len(phrases) > 5
    assert [phrase for phrase in phrases if phrase not in code] == []


def test_the_command_that_extending_points_to_is_in_the_history_of_the_registry() -> None:
    assert '"neighbours"' in text_of("jobs/command/registry.py")
    assert 'git log --grep "The command neighbours moves to the registry"' in text_of("docs/extending.md")


@pytest.fixture(scope="module")
def hooks() -> Any:
    """docs/hooks.py."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_the_site_has_every_command_with_its_options(hooks: Any) -> None:
    page = hooks.commands()
    commands = [command for group in GROUPS.values() for command in group]
    assert all(f"### latentlake {command.name}\n" in page for command in commands)
    assert all(f"### latentlake export {command.name}\n" in page for command in EXPORTS)
    for row in ("| `STORE` | Store folder", "| `--where TEXT` |", "| `-k NUMBER` | How many rows. | `20` |"):
        assert row in page
    assert len(re.findall(r"^\| `", page, re.MULTILINE)) > 150


def test_the_site_has_every_key_of_the_run_file(hooks: Any) -> None:
    page = hooks.run_file_keys()
    for name, field in RunFile.model_fields.items():
        (section,) = hooks._sections(field.annotation)
        own = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert re.findall(r"^\| `(\w+)`", own, re.MULTILINE) == [
            each.alias or key for key, each in section.model_fields.items()
        ]


def test_links_become_those_of_the_site(hooks: Any) -> None:
    links = "[a](../schemas/README.md#b) [c](tokens.md) [d](../examples/x.yaml) [`e`](../jobs/f.py) [g](https://h)"
    assert hooks.linked(links, "docs/queries.md") == (
        "[a](store.md#b) [c](tokens.md) `examples/x.yaml` `e` [g](https://h)"
    )
