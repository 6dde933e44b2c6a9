"""Whether a corpus repeats documents of a source that a store holds, told from what links say of theirs."""

from __future__ import annotations

from typing import Any

from pipeline.sources.text.source import contents_at

_DATASET = ("path", "config", "split", "text_column")
_DRAWN = ("seed", "vocabulary", "tokens_per_document")
"""What a synthetic document depends on, besides its number."""

_IMAGES = ("path", "config", "split")


def overlap(asked: dict[str, Any], held: dict[str, Any]) -> tuple[str, str] | None:
    """What of `asked` is in `held` too ("… are"), and the remedy; both as `Source.describe` gives them."""
    kinds = _kind(asked), _kind(held)
    if kinds == ("files", "files"):
        return _files(asked, held)
    if kinds == ("dataset", "dataset") and _same(asked, held, _DATASET):
        config = f", config {asked['config']}" if asked["config"] else ""
        return (
            f"documents of the dataset {asked['path']!r} (split {asked['split']}{config}) are",
            "name another config or split, or tokenize all of it into another store.root",
        )
    if kinds == ("synthetic", "synthetic") and _same(asked, held, _DRAWN):
        return (
            f"the first documents of the synthetic corpus of seed {asked['seed']} are",
            "set another corpus.seed",
        )
    if kinds == ("images", "images") and _same_images(asked, held):
        return (
            f"images of corpus.path {asked['path']!r} are",
            "let corpus.path name new images alone, by another path, or tokenize all into another store.root",
        )
    if kinds == ("dictionary", "dictionary") and _drawing(asked) == _drawing(held):
        seed = asked["dictionary"]["seed"]
        return (
            f"the first documents of the dictionary of seed {seed} are",
            "set another corpus.dictionary.seed",
        )
    if kinds == ("set", "set") and asked["path"] == held["path"]:
        return (
            f"prompts of corpus.path {asked['path']!r} are",
            "let corpus.path name another set, or tokenize all of it into another store.root",
        )
    return None


def _kind(source: dict[str, Any]) -> str:
    """Prompts are told as texts are where they are rows of files or of a dataset; else they are a `set`."""
    kind = str(source["kind"])
    if kind not in ("text", "prompts"):
        return kind
    if "revision" in source:
        return "dataset"
    return "files" if kind == "text" or "bytes" in source else "set"


def _same(asked: dict[str, Any], held: dict[str, Any], names: tuple[str, ...]) -> bool:
    return all(asked[name] == held.get(name) for name in names)


def _same_images(asked: dict[str, Any], held: dict[str, Any]) -> bool:
    """Of the same place and the same array or column there, or of the same content wherever it lies."""
    is_one_place = _same(asked, held, _IMAGES) and asked["images"]["image"] == held["images"]["image"]
    return is_one_place or bool({*asked.get("contents", ())} & {*held.get("contents", ())})


def _drawing(source: dict[str, Any]) -> dict[str, Any]:
    """A dictionary's recipe, but for how many documents are drawn of it."""
    return {name: value for name, value in source["dictionary"].items() if name != "documents"}


def _files(asked: dict[str, Any], held: dict[str, Any]) -> tuple[str, str] | None:
    """Files of the same content; of a link from before version 3, which names none, those at its path now."""
    contents, path = set(asked["contents"]), asked["path"]
    if asked["text_column"] != held["text_column"]:
        return None
    if known := contents & set(held.get("contents") or contents_at(held["path"], held["bytes"])):
        return (
            f"{len(known)} of the {len(contents)} files of corpus.path {path!r} are",
            "let corpus.path name the new files alone",
        )
    if "contents" not in held and (path == held["path"] or asked["bytes"] == held["bytes"]):
        return (
            f"files of the same path or size as corpus.path {path!r} are",
            "let corpus.path name new files alone, by another path, or tokenize all into another store.root",
        )
    return None
