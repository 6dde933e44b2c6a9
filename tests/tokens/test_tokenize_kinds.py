"""Tokenize of images, dictionaries and prompts: what a second corpus may be, and how it is spoken of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.records.tokens import read_links, read_stored_tokens
from pipeline.tokens.number_tokenizer import NumberTokenizer
from pipeline.tokens.sharding import _batches
from pipeline.tokens.tokenize import shard_target, tokenize
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Inputs
from schemas.run.file import Tokens, parse_run_file
from schemas.values import Document


class Lake:
    """A store, and tokenize of a corpus into it; a token is a number."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layout = folder, Layout(folder / "store")

    def tokenize(self, append: bool = False, **corpus: Any) -> None:
        content = {
            "corpus": corpus,
            "tokens": {"shard_tokens": 8, "context_size": 8, "prepend_bos": False},
            "model": {"path": "unused"},
            "sites": [{"sae": "unused"}],
            "store": {"root": str(self.layout.root)},
        }
        run_file, numbers = parse_run_file(content, "run.yaml"), NumberTokenizer("numbers:9")
        tokens = run_file.tokens.model_copy(update={"separator": "none"})
        run_file = run_file.model_copy(update={"tokens": tokens})
        tokenize(self.layout, read_stored_tokens(self.layout), run_file, numbers, append=append)

    def images(self, name: str, labels: list[Any], **requested: Any) -> dict[str, Any]:
        path = self.folder / name
        pixels = np.random.default_rng(len(name)).integers(0, 256, (len(labels), 4, 4), np.uint8)
        np.savez(path, image=pixels, label=np.array(labels))
        return {"kind": "images", "path": str(path), "images": requested}

    def prompts(self, name: str, rows: int, **requested: Any) -> dict[str, Any]:
        path = self.folder / name
        path.write_text('{"text": "1 2", "answer": "x", "other": "y"}\n' * rows)
        return {"kind": "prompts", "path": str(path), "prompts": requested}


def dictionary(**recipe: Any) -> dict[str, Any]:
    requested = {"features": 4, "width": 4, "documents": 3, "rows": 2, **recipe}
    return {"kind": "dictionary", "dictionary": requested}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_another_corpus_of_any_kind_needs_append(lake: Lake) -> None:
    for number, (first, second, message) in enumerate(
        (
            (
                lake.images("a.npz", [4, 5]),
                lake.images("bb.npz", [4, 5, 4]),
                r"a\.npz, 2 documents, limit None\) .*bb\.npz, 3 documents, limit None\)",
            ),
            (
                dictionary(),
                dictionary(seed=7),
                r"\(dictionary, 3 documents, seed 0, limit None\) .*\(dictionary, 3 documents, seed 7, ",
            ),
            (
                lake.prompts("a.jsonl", 1),
                lake.prompts("b.jsonl", 2),
                r"a\.jsonl, 45 bytes, text column 'text', answers answer, other, limit None\) .*b\.jsonl, 90",
            ),
            (
                lake.prompts("c.jsonl", 3, limit=1),
                lake.prompts("d.jsonl", 4, limit=2, answers=["other", "answer"]),
                r"prompts\.limit 1, answers answer, other, .*prompts\.limit 2, answers other, answer, ",
            ),
        )
    ):
        lake.layout = Layout(lake.folder / str(number))
        lake.tokenize(**first)
        with pytest.raises(InputError, match=f"holds another corpus .*{message}.*: add it with --append"):
            lake.tokenize(**second)
        lake.tokenize(append=True, **second)
        assert len(read_links(lake.layout)) == 2


def test_a_number_stands_for_one_class_in_all_links(lake: Lake) -> None:
    lake.tokenize(**lake.images("a.npz", ["cat", "dog"]))
    message = (
        r"token 0 would be class 'bee' of .*bee\.npz, and is 'cat' in the store \(link 0, from .*a\.npz\)"
    )
    with pytest.raises(InputError, match=message):
        lake.tokenize(append=True, **lake.images("bee.npz", ["bee", "cat", "dog"]))
    lake.tokenize(append=True, **lake.images("with.npz", ["dog", "cat"] * 2, scrambled=True))
    with pytest.raises(
        InputError, match=r"token 2 would be class 'eel' of .* 'scrambled' .*\(link 1, from .*with"
    ):
        lake.tokenize(append=True, **lake.images("eel12.npz", ["cat", "dog", "eel"]))
    lake.tokenize(append=True, **lake.images("again.npz", ["dog", "cat"]))
    assert len(read_links(lake.layout)) == 3


@pytest.mark.parametrize(
    ("width", "dtype", "limit", "expected"),
    [
        (28 * 28, "uint8", None, (1 << 27) // 784),
        (224 * 224 * 3, "uint8", None, 891),
        (4096, "float32", None, 1 << 13),
        (4096, "float32", 1 << 15, 1 << 13),  # an eighth of it, were it text: 1 << 14, the smallest
        (1 << 24, "float32", None, 2),
        (16, "uint8", None, 1 << 19),
    ],
)
def test_auto_bounds_the_bytes_of_a_shard_of_vectors(
    width: int, dtype: Any, limit: int | None, expected: int
) -> None:
    class Wide:
        def estimated_bytes(self) -> None:
            pass

        def inputs(self) -> Inputs:
            return Inputs(width=width, dtype=dtype, shape=(width,))

    assert shard_target(Wide(), Tokens(limit=limit)) == expected  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("answers", [["counted", "x"], ["x", "feature"]])
def test_answers_that_are_called_as_columns_of_the_store_are_refused(lake: Lake, answers: list[str]) -> None:
    path = lake.folder / "p.jsonl"
    path.write_text('{"text": "1 2", "counted": "x", "feature": "y", "x": "z"}\n')
    with pytest.raises(InputError, match=r"the corpus has the label '(counted|feature)', a column of the s"):
        lake.tokenize(kind="prompts", path=str(path), prompts={"answers": answers})
    assert not lake.layout.root.exists()


def test_slots_of_templates_that_are_called_as_columns_of_the_store_are_refused(lake: Lake) -> None:
    path = lake.folder / "p.yaml"
    templates = "templates: [{text: '{start} 3', answers: [' 4', ' 5']}]"
    path.write_text("slots: {start: {a: '1', b: '2'}}\n" + templates)
    with pytest.raises(InputError, match="the corpus has the label 'start', a column of the store's own"):
        lake.tokenize(kind="prompts", path=str(path))


def test_documents_of_large_vectors_are_encoded_few_at_a_time() -> None:
    values = np.zeros((1, 1 << 17), np.float32)
    documents = (Document(n, "1", (), values=values) for n in range(40))
    assert [len(batch) for batch in _batches(documents)] == [4] * 10
    assert [len(batch) for batch in _batches(Document(n, "1", ()) for n in range(40))] == [40]
