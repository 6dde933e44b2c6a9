"""Annotations: stars, names and notes that people give to features, one object for each edit.

Nothing is ever replaced, so that people who edit at the same time lose nothing: of a feature and field the
edit whose file comes last by name counts, and names begin with the time. An edit holds the digest of the
site's SAE; those that were made for another SAE are listed, and not applied.
"""

from __future__ import annotations

import re
import uuid
import warnings
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import polars as pl
from pydantic import ValidationError

from pipeline.store.objects.verbs import listed, put_if_absent, read_bytes, read_many
from pipeline.store.records.catalog import Catalog, SiteInfo
from schemas.annotations import EDITED, Annotation
from schemas.errors import InputError
from schemas.layout import Layout, StorePath, is_stray
from schemas.record import digest_of, refuse_newer
from schemas.sentences import joined, several
from schemas.tables.tables import Schema

ANNOTATIONS: Schema = {
    "feature": pl.UInt32(),
    "star": pl.Boolean(),
    "name": pl.String(),
    "note": pl.String(),
    "author": pl.String(),
    "time": pl.String(),
}
"""A row per feature that has a star, a name or a note. `author` and `time` are those of the latest edit."""

OTHERS: Schema = {"sae_digest": pl.String(), **ANNOTATIONS}
"""The same of features of other SAEs."""

_FILE = re.compile(r"(?P<time>[0-9]{8}T[0-9]{6}\.[0-9]{6}Z)-[0-9a-f]{16}")
_ID = re.compile("[0-9a-f]{16}")
_TIME = "%Y%m%dT%H%M%S.%fZ"
_TICK = timedelta(microseconds=1)

Edits = dict[str, Annotation]
"""Edits by the stem of their file's name, in the order of these."""


class Annotations(NamedTuple):
    """What people say of a site's features: `table` (schema ANNOTATIONS), and `others` (schema OTHERS)."""

    table: pl.DataFrame
    others: pl.DataFrame
    problems: tuple[str, ...] = ()
    """What lies among the edits and is none, in sentences."""


class Imported(NamedTuple):
    """How many edits were new, were there already, and how many of the new ones are of other SAEs."""

    new: int
    known: int
    of_others: int

    def __str__(self) -> str:
        others = f", {self.of_others:,} of them of another SAE" if self.of_others else ""
        return f"{several(self.new, 'new edit')}{others}; {self.known:,} were there already"


def annotate(
    store: Catalog, site: str, feature: int, *, author: str | None = None, **fields: str | bool | None
) -> StorePath:
    """Put an edit of some of `star`, `name` and `note`; its path.

    None, false and an empty text clear a field. A name is one line of at most 200 characters, a note has at
    most 10,000. InputError for other fields, for texts that cannot be kept, and for a feature that the site
    does not have. The edit counts from here on, whatever the clocks of other machines said.
    """
    store.require_feature(site, feature)
    where = f"the annotation of feature {feature}"
    if unknown := fields.keys() - set(EDITED):
        raise InputError(f"{where} has no field {min(unknown)!r}: give {', '.join(EDITED)}")
    (edit,) = _dated(store, site, [(where, {"feature": feature, "author": author, **fields})])
    while not put_if_absent(path := _path(store, edit, uuid.uuid4().hex[:16]), edit.to_json()):
        pass  # somebody has the same time and the same id
    return path


def amend(
    store: Catalog, site: str, feature: int, *, author: str | None = None, **fields: str | bool | None
) -> dict[str, Any]:
    """`annotate` those fields that are not so already, if any; what the feature has then, a value by field.

    InputError as `annotate`.
    """
    store.require_feature(site, feature)
    seen: dict[str, Annotation] = {}
    state = _state(store, site, feature, seen)
    changed = {field: value for field, value in fields.items() if _kept(value) != (state.get(field) or None)}
    if changed:
        annotate(store, site, feature, author=author, **changed)
    return _state(store, site, feature, seen)


def _state(store: Catalog, site: str, feature: int, seen: MutableMapping[str, Annotation]) -> dict[str, Any]:
    rows = read_annotations(store, site, seen).table.filter(pl.col("feature") == feature)
    return rows.row(0, named=True) if rows.height else {"star": False, "name": None, "note": None}


def _kept(value: str | bool | None) -> str | bool | None:
    """What an edit with this value leaves; None: nothing."""
    return (value.strip() if isinstance(value, str) else value) or None


def read_annotations(
    store: Catalog, site: str, seen: MutableMapping[str, Annotation] | None = None
) -> Annotations:
    """What the edits of a site amount to; files that are not edits are named in a warning, and left out.

    `seen`: edits by name, which are not read again, for an edit never changes; what is read is added to it.
    """
    info = store.require_features(site)
    edits, wrong = read_edits(store.layout, info, seen)
    if wrong:
        warnings.warn(joined(wrong), stacklevel=2)
    own, by_digest = list[Annotation](), dict[str, list[Annotation]]()
    for edit in edits.values():
        (own if edit.sae_digest == info.sae_digest else by_digest.setdefault(edit.sae_digest, [])).append(
            edit
        )
    others = [
        {"sae_digest": digest, **row} for digest, some in sorted(by_digest.items()) for row in _rows(some)
    ]
    table = pl.DataFrame(list(_rows(own)), ANNOTATIONS)
    return Annotations(table, pl.DataFrame(others, OTHERS), tuple(wrong))


def read_edits(
    layout: Layout, info: SiteInfo, seen: MutableMapping[str, Annotation] | None = None
) -> tuple[Edits, list[str]]:
    """All edits of a site by name, also those of other SAEs; then what else lies there, in sentences."""
    seen = {} if seen is None else seen
    paths = sorted(
        (path for path in listed(layout.annotations(info.name)) if not is_stray(path.name)),
        key=lambda path: path.name,
    )
    ours = [path for path in paths if path.suffix == ".json" and _FILE.fullmatch(path.stem)]
    wrong = [f"{path} is not an annotation: move it away" for path in paths if path not in set(ours)]
    edits = Edits()
    for path, data in _contents([path for path in ours if path.stem not in seen]):
        if isinstance(data, InputError):
            wrong.append(str(data))
            continue
        try:
            edit = Annotation.from_json(data, str(path))
        except InputError as error:
            wrong.append(str(error))
            continue
        if (problem := _misplaced(edit, path.stem.partition("-")[0], info)) is not None:
            wrong.append(f"{path} {problem}")
        else:
            seen[path.stem] = edit
    edits |= {path.stem: seen[path.stem] for path in ours if path.stem in seen}
    return edits, wrong


def export_edits(store: Catalog, site: str) -> Iterator[dict[str, Any]]:
    """Every edit of a site, also of other SAEs, as JSON objects: its record, and the `id` of its file."""
    edits, wrong = read_edits(store.layout, store.require_features(site))
    if wrong:
        warnings.warn(joined(wrong), stacklevel=2)
    for name, edit in edits.items():
        yield {"id": name.rpartition("-")[2], **edit.content()}


def import_edits(store: Catalog, site: str, lines: Iterable[tuple[str, Any]]) -> Imported:
    """Put edits as `export_edits` gives them, each with the place where it stands (for messages).

    An edit that is there already stays as it is, so edits of copies of a store can be brought together in
    any order. Only `feature` and an edited field are needed: without `time` an edit is made now, after those
    above it, and without `sae_digest` it is of the site's SAE. It becomes one of this site, whatever `site`
    says. InputError for the first line that is not an edit; then none is put.
    """
    info, ids, contents = store.require_features(site), list[str | None](), list[tuple[str, dict[str, Any]]]()
    for where, line in lines:
        if not isinstance(line, dict):
            raise InputError(f"{where} is not a JSON object: give one with feature, and star, name or note")
        number = line.get("id")
        if number is not None and not (isinstance(number, str) and _ID.fullmatch(number)):
            raise InputError(f"{where} has the id {str(number)[:40]!r}: give 16 hexadecimal digits, or none")
        ids.append(number)
        contents.append((where, {key: line[key] for key in line if key != "id"}))
    edits, new, of_others = _dated(store, site, contents), 0, 0
    for edit, number in zip(edits, ids, strict=True):
        # an edit without an id gets one that it will have again
        if put_if_absent(_path(store, edit, number or digest_of(edit.content())[:16]), edit.to_json()):
            new += 1
            of_others += edit.sae_digest != info.sae_digest
    return Imported(new, len(edits) - new, of_others)


def _dated(store: Catalog, site: str, contents: Iterable[tuple[str, dict[str, Any]]]) -> list[Annotation]:
    """Edits of a site's SAE, made now unless they say otherwise, each after the one before."""
    info, time = store.require_features(site), _next_time(store.layout, site)
    edits = []
    for where, content in contents:
        defaults = {"sae_digest": info.sae_digest, "time": time.strftime(_TIME)}
        edits.append(_edit(where, defaults | content | {"site": site}, info))
        time += _TICK
    return edits


def _edit(where: str, content: dict[str, Any], info: SiteInfo) -> Annotation:
    """The record, a text without white space around it, an empty one null; InputError says what is wrong."""
    for name in ("name", "note"):
        if isinstance(text := content.get(name), str):
            content[name] = text.strip() or None
    try:
        edit = Annotation.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where} cannot be kept: {f'{place}: ' if place else ''}{problem}") from None
    refuse_newer(edit.format_version, where)
    if (wrong := _misplaced(edit, edit.time, info)) is not None:
        raise InputError(f"{where} {wrong}")
    return edit


def _misplaced(edit: Annotation, time: str, info: SiteInfo) -> str | None:
    """Why an edit is not one of this site and time; None where it is."""
    if (edit.site, edit.time) != (info.name, time):
        return f"is of site {edit.site!r} at {edit.time}: move it away"
    try:
        datetime.strptime(time, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return f"has the time {time!r}, which does not exist: give one such as 20260131T120000.000000Z"
    if edit.sae_digest == info.sae_digest and edit.feature >= info.d_sae:
        return f"is of feature {edit.feature}: the features of site {info.name!r} are 0 to {info.d_sae - 1}"
    return None


def _next_time(layout: Layout, site: str) -> datetime:
    """Now, or just after the latest edit there is: clocks differ between machines."""
    times = [
        match["time"] for path in listed(layout.annotations(site)) if (match := _FILE.fullmatch(path.stem))
    ]
    now = datetime.now(UTC)
    with suppress(ValueError, OverflowError):  # a file of another hand may have any time
        return max(now, datetime.strptime(max(times), _TIME).replace(tzinfo=UTC) + _TICK)
    return now


def _path(store: Catalog, edit: Annotation, number: str) -> StorePath:
    return store.layout.annotation(edit.site, f"{edit.time}-{number}")


def _contents(paths: list[StorePath]) -> Iterator[tuple[StorePath, bytes | InputError]]:
    """The bytes of each; what cannot be read is an error in their place, what is gone is left out."""
    try:
        yield from zip(paths, list(read_many(paths)), strict=True)
    except (FileNotFoundError, NotADirectoryError, InputError):  # one of them; which one takes a second look
        for path in paths:
            with suppress(FileNotFoundError, NotADirectoryError):
                try:
                    data: bytes | InputError = read_bytes(path)
                except InputError as error:
                    data = error
                yield path, data


def _rows(edits: Iterable[Annotation]) -> Iterator[dict[str, Any]]:
    """What edits in their order amount to, by feature: rows of ANNOTATIONS."""
    rows: dict[int, dict[str, Any]] = {}
    for edit in edits:
        row = rows.setdefault(
            edit.feature, {"feature": edit.feature, "star": False, "name": None, "note": None}
        )
        row |= edit.edits | {"author": edit.author, "time": edit.time}
        row["star"] = bool(row["star"])
    return (row for _, row in sorted(rows.items()) if any(row[field] for field in EDITED))
