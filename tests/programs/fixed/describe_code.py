"""Prints as JSON what the code on the path promises: run from a checkout's root by `compare_commits`.

The schema of the run file without descriptions and titles, and the public names and parameters of
FeatureStore and load_sae.
"""

from __future__ import annotations

import importlib
import inspect
import json
from contextlib import suppress
from typing import Any

RUN_FILES = ("schemas.run_file", "schemas.run", "schemas.run.file")
"""Modules that may hold `RunFile`: the name of the module is no promise."""


def without_words(schema: Any) -> Any:
    """A JSON schema without what is written for people."""
    if isinstance(schema, dict):
        return {k: without_words(v) for k, v in schema.items() if k not in ("description", "title")}
    return [without_words(item) for item in schema] if isinstance(schema, list) else schema


def parameters(function: Any) -> list[str]:
    """Names, kinds and defaults of a function's parameters."""
    return [
        f"{p.name}:{p.kind.name}:{'' if p.default is p.empty else p.default}"
        for p in inspect.signature(function).parameters.values()
    ]


def run_file() -> Any:
    """The class of the run file, wherever it lies."""
    for name in RUN_FILES:
        with suppress(ImportError, AttributeError):
            return importlib.import_module(name).RunFile
    raise SystemExit(f"none of {', '.join(RUN_FILES)} holds RunFile: add where it lies now")


def main() -> None:
    from pipeline.saes import load_sae
    from pipeline.store import FeatureStore

    members = {name: getattr(FeatureStore, name) for name in dir(FeatureStore) if not name.startswith("_")}
    described = {name: parameters(m) if callable(m) else type(m).__name__ for name, m in members.items()}
    schema = without_words(run_file().model_json_schema(by_alias=True))
    print(json.dumps({"run file": schema, "FeatureStore": described, "load_sae": parameters(load_sae)}))


if __name__ == "__main__":
    main()
