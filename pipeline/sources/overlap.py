"""Whether a corpus repeats documents of a source that a store holds, by what its links describe."""

from __future__ import annotations

from typing import Any

from pipeline.sources.text.source import contents_at


def overlap(new: dict[str, Any], held: dict[str, Any]) -> tuple[str, str] | None:
    """What of `new` is in `held` too ("… are"), and the remedy; both as `Source.describe` gives them."""
    kinds = _kind(new), _kind(held)
    if kinds == ("files", "files"):
        return _files(new, held)
    if kinds == ("dataset", "dataset") and _same(new, held, "path", "config", "split", "text_column"):
        config = f", config {new['config']}" if new["config"] else ""
        return (
            f"documents of the dataset {new['path']!r} (split {new['split']}{config}) are",
            "name another config or split, or tokenize all of it into another store.root",
        )
    # all that a synthetic document depends on, besides its number
    drawn = ("seed", "vocabulary", "tokens_per_document")
    if kinds == ("synthetic", "synthetic") and _same(new, held, *drawn):
        return (
            f"the first documents of the synthetic corpus of seed {new['seed']} are",
            "set another corpus.seed",
        )
    # of the same place and the same array or column there, or of the same content wherever it lies
    if kinds == ("images", "images") and (
        (_same(new, held, "path", "config", "split") and new["images"]["image"] == held["images"]["image"])
        or {*new.get("contents", ())} & {*held.get("contents", ())}
    ):
        return (
            f"images of corpus.path {new['path']!r} are",
            "let corpus.path name only new images, under a different path, or tokenize everything into "
            "another store.root",
        )
    if kinds == ("dictionary", "dictionary") and _drawing(new) == _drawing(held):
        return (
            f"the first documents of the dictionary of seed {new['dictionary']['seed']} are",
            "set another corpus.dictionary.seed",
        )
    if kinds == ("set", "set") and new["path"] == held["path"]:
        return (
            f"prompts of corpus.path {new['path']!r} are",
            "let corpus.path name another set, or tokenize all of it into another store.root",
        )
    return None


def _kind(source: dict[str, Any]) -> str:
    """Prompts that are rows of files or of a dataset are described as texts are; others are a `set`."""
    kind = str(source["kind"])
    if kind not in ("text", "prompts"):
        return kind
    if "revision" in source:
        return "dataset"
    return "files" if kind == "text" or "bytes" in source else "set"


def _same(new: dict[str, Any], held: dict[str, Any], *names: str) -> bool:
    return all(new[name] == held.get(name) for name in names)


def _drawing(source: dict[str, Any]) -> dict[str, Any]:
    """A dictionary's recipe, but for how many documents are drawn of it."""
    return {name: value for name, value in source["dictionary"].items() if name != "documents"}


def _files(new: dict[str, Any], held: dict[str, Any]) -> tuple[str, str] | None:
    """Files of the same content; of a link from before version 3, which names none, those at its path now."""
    contents, path = set(new["contents"]), new["path"]
    if new["text_column"] != held["text_column"]:
        return None
    if known := contents & set(held.get("contents") or contents_at(held["path"], held["bytes"])):
        return (
            f"{len(known)} of the {len(contents)} files of corpus.path {path!r} are",
            "let corpus.path name only the new files",
        )
    if "contents" not in held and (path == held["path"] or new["bytes"] == held["bytes"]):
        return (
            f"files of the same path or size as corpus.path {path!r} are",
            "let corpus.path name only new files, under a different path, or tokenize everything into "
            "another store.root",
        )
    return None
