"""Sources of documents. A new kind costs one file, one line in SOURCES and one conformance test class."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol

from schemas.errors import InputError
from schemas.records import Inputs
from schemas.run.file import Corpus
from schemas.values import Document

SOURCES = {
    "text": "pipeline.sources.text.source:open_text",
    "synthetic": "pipeline.sources.generated.numbers:SyntheticSource",
    "dictionary": "pipeline.sources.generated.dictionary:DictionarySource",
    "images": "pipeline.sources.images.open:open_images",
    "prompts": "pipeline.sources.prompts.source:open_prompts",
}
"""Kind of corpus -> "module:function"; the function takes the Corpus section and gives a Source."""


class Source(Protocol):
    """Documents in a fixed order, read as a stream and as often as one likes."""

    def describe(self) -> dict[str, Any]:
        """The corpus section, and its size, for people and as JSON; paths may differ between machines."""
        ...

    def digest(self) -> str:
        """Fingerprint of the content, independent of where it lies."""
        ...

    def label_dtypes(self) -> dict[str, str]:
        """Label column -> String, Int64, Float64 or Boolean; InputError when a column is not there."""
        ...

    def inputs(self) -> Inputs | None:
        """What each token's vector is, where documents have vectors (`Document.values`)."""
        ...

    def estimated_bytes(self) -> int | None:
        """About how many bytes of text there are; None when nobody knows."""
        ...

    def documents(self) -> Iterator[Document]:
        """The documents, numbered from 0; InputError naming file, line and column of what can't be read."""
        ...


def open_source(corpus: Corpus) -> Source:
    """The source that the run file's corpus section names; InputError when nothing lies there."""
    if corpus.kind not in SOURCES:
        raise InputError(f"corpus.kind is {corpus.kind!r}; known kinds: {', '.join(SOURCES)}")
    module, function = SOURCES[corpus.kind].split(":")
    source: Source = getattr(import_module(module), function)(corpus)
    return source
