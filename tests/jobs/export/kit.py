"""A small store to export, and the code of those who read the exports, which `make test` installs aside."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from tests.store.build import Built, build

ASIDE = Path(sys.prefix) / "bench"
TOKENS = 50


def built_store(root: Path, **options: Any) -> tuple[Built, FeatureStore]:
    """Random activations with their tables and a vocabulary, in which token 3 has a text that needs care."""
    built = build(root, **options)
    texts = [f" t{token}" for token in range(TOKENS)]
    texts[3] = 'ü"\n\x00<b>'
    schema = {"token_id": pl.Int32(), "text": pl.String()}
    pl.DataFrame({"token_id": range(TOKENS), "text": texts}, schema=schema).write_parquet(
        built.layout.vocabulary
    )
    store = FeatureStore.open(root)
    for site in store.sites:
        stats(store, site)
    return built, FeatureStore.open(root)


def put_logits(store: FeatureStore) -> None:
    """A table `logits` that knows of feature 2 alone."""
    top = {"top_tokens": [[3, 4]], "top_logits": [[2.5, 1.5]]}
    bottom = {"bottom_tokens": [[5]], "bottom_logits": [[-1.0]]}
    frame = pl.DataFrame(top | bottom).with_columns(feature=pl.lit(2, pl.UInt32))
    store.write_table("site", "logits", frame)


def context_of(built: Built, context: int) -> pl.DataFrame:
    """The rows of one context."""
    return built.tokens.filter(pl.col("context") == context).sort("position")


def consumer(name: str) -> Any:
    """A module of eai-delphi or circuit-tracer; the test is skipped where they are not installed aside."""
    if str(ASIDE) not in sys.path:
        sys.path.append(str(ASIDE))
    try:
        package = importlib.import_module(name.partition(".")[0])
    except ImportError:
        pytest.skip(f"{name} is not installed aside (the Makefile's `test` does so)")
    if not name.startswith("delphi.latents"):
        return importlib.import_module(name)
    with _beside_init(package):
        return importlib.import_module(name)


@contextmanager
def _beside_init(package: Any) -> Iterator[None]:
    """`delphi.latents` wants serving libraries, its loader others that reading a cache does not call.

    They are there while it is imported alone: other packages ask which libraries there are.
    """
    latents = types.ModuleType("delphi.latents")
    latents.__path__ = [str(Path(package.__path__[0]) / "latents")]
    sys.modules.setdefault("delphi.latents", latents)
    unused = {
        "asyncer": {"asyncify": lambda function: function},
        "faiss": {},
        "sentence_transformers": {"SentenceTransformer": object},
        "blobfile": {},
        "orjson": {},
    }
    missing = [name for name in unused if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in missing:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(unused[name])
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
