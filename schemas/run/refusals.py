"""What pydantic finds wrong with a run file, as sentences: the place, the value, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from schemas.sentences import MOST_ERRORS, joined, shorten, shown

Place = tuple[str | int, ...]


def refusal(root: type[BaseModel], error: ValidationError) -> str:
    """The first few problems of a file that should be a `root`; unknown keys alone, where there are any."""
    errors: Sequence[Any] = error.errors(include_url=False)
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    if unknown:
        sentences = [_unknown_key(root, e["loc"]) for e in unknown[:MOST_ERRORS]]
        return joined(sentences + [""] * (len(unknown) - len(sentences)))
    # without those that only follow from another one further in, as that a list has too few valid items
    above = {e["loc"][:n] for e in errors for n in range(len(e["loc"]))}
    places: dict[Place, list[Any]] = {}
    for error_at in errors:
        if error_at["loc"] not in above:
            places.setdefault(_place(root, error_at["loc"])[0], []).append(error_at)
    # a sentence for each place; of a value of several types all that it may be
    return joined([_sentence(".".join(map(str, place)) or "run file", at) for place, at in places.items()])


def _sentence(place: str, errors: Sequence[Any]) -> str:
    first = errors[0]
    if first["type"] == "missing":
        return f"{place} is missing"
    message: str = (
        first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a, b]")
    )
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        return message  # of a whole section, which names its places itself
    wanted = " or ".join([message, *(e["msg"].removeprefix("Input should be ") for e in errors[1:])])
    return f"{place} is {shown(first['input'])}: {wanted[:1].lower()}{wanted[1:]}{_remedy(first)}"


def _remedy(error: Any) -> str:
    """How to write what was probably meant, where that is plain."""
    kind, value = error["type"], error["input"]
    if kind == "string_type" and isinstance(value, bool | int | float):
        return ": put it in quotes"
    if kind == "bool_type" and str(value).lower() in ("yes", "no", "on", "off", "y", "n"):
        return ": write true or false, as YAML 1.2 does"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return f": write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and value.strip("+-").isdecimal():
        return ": leave the quotes out"
    return ""


def _place(root: type[BaseModel], loc: Place) -> tuple[Place, type[BaseModel]]:
    """A place in the file, without pydantic's names of types, and the section that it lies in."""
    section, has_names, place = root, False, []
    # keys of ours and of dictionaries, and numbers in lists, stand in the file; all else pydantic adds
    for part in loc:
        field = next((f for n, f in section.model_fields.items() if part in (n, f.alias)), None)
        if field is not None or has_names or isinstance(part, int):
            place.append(part)
        if field is not None:
            section = _section_in(field.annotation) or section
            has_names = "dict" in str(field.annotation)
    return tuple(place), section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or a list of which it holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section_in(part))), None)


def _unknown_key(root: type[BaseModel], loc: Place) -> str:
    """Name the key that is not known, and the nearest one that is."""
    above, section = _place(root, loc[:-1])
    key = shorten(str(loc[-1]), 100)
    known = [field.alias or name for name, field in section.model_fields.items()]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    place = ".".join(str(part) for part in above) or "the run file"
    return f"unknown key {key!r} in {place}; " + (
        f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    )
