"""The feature lake for sparse autoencoders: the names that programs and notebooks import.

    import latentlake

    lake = latentlake.open("out/demo")
    lake.feature(184)
    lake.scan_features().collect()

Each name is imported when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.lake.run import run
    from jobs.notebook.lake import Lake
    from pipeline.saes import load_sae
    from pipeline.store import FeatureStore
    from schemas import __version__
    from schemas.run.file import load_run_file

__all__ = ["FeatureStore", "Lake", "__version__", "load_run_file", "load_sae", "open", "run"]

_MODULES = {
    "FeatureStore": "pipeline.store",
    "Lake": "jobs.notebook.lake",
    "__version__": "schemas",
    "load_run_file": "schemas.run.file",
    "load_sae": "pipeline.saes",
    "run": "jobs.lake.run",
}
_PACKAGES = ("schemas", "pipeline", "jobs")


def open(root: str) -> Lake:  # noqa: A001 - read as latentlake.open
    """The store in a folder, or at a URL of object storage (s3://, gs://, az://).

    A `Lake` is a `FeatureStore` with the questions of the commands: `feature`, `find`, `elicit`, `window`,
    `acts`, `matrix`, `compare`, `steer`, `plot`.

    Raises InputError if there is none, or if its records are damaged or of a newer format.
    """
    _check_packages()
    from jobs.notebook.lake import Lake

    return Lake.open(root)


def main() -> None:
    """The command line; exit code 2 where the packages are not ours."""
    try:
        _check_packages()
    except ImportError as error:
        sys.stderr.write(f"latentlake: {error}\n")
        sys.exit(2)
    import_module("jobs.__main__").main()


def __getattr__(name: str) -> Any:
    """One of the names above, imported when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _check_packages()
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def _check_packages() -> None:
    """ImportError where another package of the same name as one of ours comes first on the path."""
    for name in _PACKAGES:
        spec = find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        path = next((Path(place) for place in places if place is not None), None)
        if path is None or not path.is_relative_to(Path(__file__).parent / name):
            raise ImportError(
                f"latentlake needs its own package {name!r}, and Python finds {path or 'none'}: start it in "
                "another folder, take that one off PYTHONPATH, or rename it"
            )


if __name__ == "__main__":
    main()
