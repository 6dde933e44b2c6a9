"""The layer rule, read from the imports; and what stays unloaded until it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("schemas", "pipeline", "jobs")
TORCH = {"torch", "transformers", "transformer_lens", "sae_lens"}
MAY_IMPORT_TORCH = (
    "pipeline.sources",
    "pipeline.models",
    "pipeline.saes",
    "pipeline.extraction.by_model",
    "pipeline.training.dense_dataset",
    "pipeline.evaluation.sae_check",
    "pipeline.evaluation.patching",
    "pipeline.evaluation.intervention",
    "pipeline.evaluation.generation",
    "pipeline.evaluation.direct_logits",
    "pipeline.evaluation.fidelity",
    "pipeline.evaluation.attribution",
    "pipeline.evaluation.integrated_gradients",
    "pipeline.tokens.tokenizer",
    "pipeline.training",
)
JOBS_WITH_THE_MODEL = ("jobs.studies.demo.model", "jobs.bench", "jobs.studies.digits.train_digits")


def modules() -> dict[str, Path]:
    files = [path for folder in OURS for path in (ROOT / folder).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def imported(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Every module named by an import statement of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_import_time else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def is_in(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def test_imports_go_one_way():
    allowed = {"schemas": ("schemas",), "pipeline": ("schemas", "pipeline"), "jobs": OURS}
    wrong = [
        (name, module)
        for name, path in modules().items()
        for module in imported(path)
        if module.split(".")[0] in OURS and not is_in(module, allowed[name.split(".")[0]])
    ]
    assert wrong == []


ORDER = (
    "statistics", "tasks", "store", "synthetic", "sources", "tokens", "models", "saes", "monitor", "plans",
    "extraction", "worker", "executors", "run", "evaluation", "training",
)  # fmt: skip
"""Rooms of `pipeline`: each imports those before it alone."""


def graph() -> dict[str, set[str]]:
    """The modules of ours that each module imports, at once or later; those for types alone are left out."""
    known, edges = modules(), {}
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        only_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        result = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                result |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in only_types:
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(known)
                result |= inside or {node.module}
        edges[name] = result & set(known) - {name}
    return edges


def test_no_module_imports_itself_by_way_of_others():
    assert len(list(TopologicalSorter(graph()).static_order())) == len(modules())


def test_rooms_of_the_pipeline_import_those_before_them():
    edges = {
        (name.split(".")[1], other.split(".")[1])
        for name, others in graph().items()
        for other in others
        if name.startswith("pipeline.") and other.startswith("pipeline.")
    }
    assert len({room for edge in edges for room in edge}) == len(ORDER)
    assert [(a, b) for a, b in sorted(edges) if ORDER.index(b) > ORDER.index(a)] == []


def test_few_modules_lie_outside_of_a_room():
    loose = {name for name in modules() if name.count(".") == 1 and modules()[name].name != "__init__.py"}
    assert {name for name in loose if name.startswith("pipeline.")} == {
        "pipeline.run", "pipeline.tasks", "pipeline.worker"
    }  # fmt: skip
    assert {name for name in loose if name.startswith("jobs.")} == {
        "jobs.__main__", "jobs.cli"
    }  # fmt: skip


@pytest.mark.parametrize("walk", ["From a token shard to a receipt", "From an activation to a figure"])
def test_each_file_of_a_walk_is_imported_by_one_before_it(walk):
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition(f"## {walk}")[2]
    lines = re.findall(r"^\d+\. `(.+?)\.py`: ", text.partition("\n## ")[0], re.MULTILINE)
    names = [line.replace("/", ".").removesuffix(".__init__") for line in lines]
    edges = graph()
    edges["jobs.lake.derive"] |= {name for name in edges if name.startswith("jobs.tables.")}  # by their names
    assert len(names) >= 10
    assert [
        n for i, n in enumerate(names) if i and not any(n in edges[earlier] for earlier in names[:i])
    ] == []


def test_the_page_of_the_architecture_has_the_order_of_the_rooms():
    text = " ".join((ROOT / "docs/architecture.md").read_text(encoding="utf-8").split())
    assert f"only those before it: {', '.join(ORDER)}." in text


@pytest.mark.parametrize("room", ["pipeline.sources", "pipeline.models", "pipeline.saes"])
def test_sources_models_and_saes_do_not_know_each_other(room):
    others = tuple({"pipeline.sources", "pipeline.models", "pipeline.saes"} - {room})
    mine = [path for name, path in modules().items() if is_in(name, (room,))]
    assert not {module for path in mine for module in imported(path) if is_in(module, others)}


def test_only_the_ray_executor_imports_ray():
    users = {
        name for name, path in modules().items() if any(m.split(".")[0] == "ray" for m in imported(path))
    }
    assert users
    assert all(name.startswith("pipeline.executors.on_ray.") for name in users)


def test_only_the_rooms_of_the_model_import_torch():
    users = {n for n, path in modules().items() if any(m.split(".")[0] in TORCH for m in imported(path))}
    assert not {name for name in users if not is_in(name, MAY_IMPORT_TORCH + JOBS_WITH_THE_MODEL)}


def test_values_and_paths_load_neither_pydantic_nor_yaml():
    code = "import sys, schemas.values, schemas.layout; print({'pydantic', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


WITHOUT_TORCH = (
    "cli", "lake.run", "tables.stats", "tables.rank", "tables.cluster", "figures.plots", "lake.status",
    "lake.verify", "views.top", "lake.compact", "tables.diff", "tables.coactivation", "tables.match",
    "views.neighbours", "lake.submit", "tables.profile", "tables.examples", "views.feature",
    "evaluation.elicit", "views.heatmap", "report.build", "evaluation.logits", "evaluation.fidelity",
    "evaluation.attribute", "export.neuronpedia", "export.delphi", "export.anndata_zarr",
    "studies.known.truth", "studies.known.make_dictionary", "studies.known.demo_synthetic",
    "tables.importance", "tables.feature_images", "studies.digits.steer", "studies.digits.train_digits",
)  # fmt: skip


def test_jobs_without_a_model_load_neither_torch_nor_ray():
    modules = ["pipeline.store", "schemas.run.file", *(f"jobs.{name}" for name in WITHOUT_TORCH)]
    look = "print(module, *({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    code = f"import sys, importlib\nfor module in {modules}: importlib.import_module(module); {look}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split("\n")[:-1] == modules
