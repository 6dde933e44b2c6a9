"""One page: how numbers are written, the jinja2 environment, and how a file of the site is written."""

from __future__ import annotations

import base64
import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.report.strips import visible
from pipeline.store.objects.local import storage_errors, temporary_path
from pipeline.store.objects.verbs import write_atomic
from schemas.layout import StorePath

NOTHING = "–"

COMPRESSION = 6
"""Level of zlib: 9 takes twice the time for one percent."""

COLOURED = ("density", "map", "graph", "cluster")
"""Names of figures whose colours are a scale, which a dark page must not turn round."""


def number(value: float | None) -> str:
    """Three digits or more: 0.00412, 3.40, 1,204, 2.1e-06."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    size = abs(value)
    # From here on three digits would be 1.00e+03.
    if size >= 999.5:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.3g}"
    return f"{value:#.3g}".rstrip(".") if size >= 1e-4 else f"{value:.1e}"


def whole(value: int | None) -> str:
    """A count with its thousands set apart."""
    return NOTHING if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """A share in percent, kept on one line: 12.3 %, 0.00410 %."""
    return NOTHING if value is None else f"{number(100 * value)}\u00a0%"


@cache
def environment() -> Environment:
    """Templates, compiled once in a process; values are escaped, their hidden characters made visible."""
    made = Environment(
        loader=PackageLoader("jobs.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # no Markup, which is done
        undefined=StrictUndefined,
        auto_reload=False,
    )
    made.tests["coloured"] = lambda name: any(part in name for part in COLOURED)
    made.filters.update(number=number, whole=whole, percent=percent)
    return made


def render(template: str, depth: int, **values: Any) -> bytes:
    """The bytes of a page that lies `depth` folders below the report's."""
    text = environment().get_template(template).render(base="../" * depth, **values)
    return text.encode("utf-8", "replace")


def script(variable: str, content: Any) -> bytes:
    """A file of JavaScript that sets a variable, in ASCII; nothing in it can end a script or a comment."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f"var {variable}={text};\n".encode("ascii")


def packed_json(content: Any) -> str:
    """JSON as zlib's bytes in base64, as `static/files.js` unpacks it."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("ascii"), COMPRESSION)).decode("ascii")


def call(function: str, *arguments: str | int) -> bytes:
    """A file of JavaScript that calls a function; `arguments` hold letters, digits and base64 alone."""
    return f"{function}({','.join(map(json.dumps, arguments))});\n".encode("ascii")


def inside(folder: StorePath, path: str) -> StorePath:
    """A file by its path in a folder."""
    place = folder
    for part in path.split("/"):  # step by step, for a URL's path joins one name at a time
        place = place / part
    return place


def write(path: StorePath, data: bytes) -> int:
    """Write or replace a file of the site, return its size; a crash leaves the old one or the new, whole.

    On a folder it is renamed into place but not synchronised: half a million pages can be made again.
    """
    if not isinstance(path, Path):
        write_atomic(path, data)
        return len(data)
    # Next to its target: only within one file system does a rename happen whole or not at all.
    temporary = temporary_path(path)
    with storage_errors(path, "give --out another place"):
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return len(data)
