"""Hugging Face datasets: a loader that stands in for the hub, and the real one on a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.sources import Source, open_source
from pipeline.sources.text.hub import HubSource
from schemas.errors import InputError
from schemas.run.file import Corpus
from tests.sources.conformance import UntypedConformance


def corpus(**requested: Any) -> Corpus:
    return Corpus.model_validate({"path": "org/name", **requested})


class TestHub(UntypedConformance):
    def make(self, folder, texts, labels, text_column="text", label_columns=None) -> Source:  # type: ignore[no-untyped-def]
        rows = [{"text": text, **{k: v[i] for k, v in labels.items()}} for i, text in enumerate(texts)]
        columns = tuple(labels) if label_columns is None else label_columns
        return HubSource(
            corpus(text_column=text_column, label_columns=columns),
            load=lambda *args, **kwargs: list(rows),
            revision=lambda name: str(hash(tuple(texts))),
        )


def test_name_config_split_and_revision_are_requested() -> None:
    requested: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> list[dict[str, str]]:
        requested.append((args, kwargs))
        return [{"text": "a"}]

    source = HubSource(corpus(config="en", split="test"), load, lambda name: f"sha of {name}")
    assert [document.text for document in source.documents()] == ["a"]
    expected = {"name": "en", "split": "test", "revision": "sha of org/name", "streaming": True}
    assert requested[-1] == (("org/name",), expected)
    assert source.describe()["revision"] == "sha of org/name"
    assert source.estimated_bytes() is None


@pytest.mark.parametrize("change", [{"config": "en"}, {"split": "test"}, {"path": "org/other"}])
def test_another_name_config_or_split_has_another_digest(change: dict[str, str]) -> None:
    first, other = (
        HubSource(corpus(**requested), list, lambda name: "sha").digest() for requested in ({}, change)
    )
    assert first != other


def test_a_name_that_is_no_path_and_cannot_be_reached_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> str:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("pipeline.sources.text.hub.revision_of", offline)
    with pytest.raises(
        InputError, match=r"'org/name' is not a local path, and no Hugging Face .*: no network"
    ):
        open_source(corpus())


@pytest.mark.slow
def test_the_real_loader_streams(tmp_path: Path) -> None:
    from datasets import load_dataset

    (tmp_path / "a.jsonl").write_text('{"text": "a", "year": 1}\n{"text": "b", "year": 2}\n')

    def load(path: str, revision: str, **requested: Any) -> Any:
        return load_dataset(str(tmp_path), **requested)

    source = HubSource(corpus(label_columns=["year"]), load, lambda name: "sha")
    assert [(d.text, d.labels) for d in source.documents()] == [("a", (1,)), ("b", (2,))]
