"""`latentlake explanations STORE FILE`: what other tools say a feature means, as a table of the store.

Neuronpedia's explanations are JSON lines (.jsonl, .jsonl.gz, or a folder of these, as its exports have
`explanations/batch-0.jsonl.gz`): `modelId`, `layer` (its source, such as 9-res-jb), `index`, `description`,
`typeName`, `explanationModelName`. delphi's are a folder of files `<hookpoint>_latent<N>.txt`, each a JSON
string. Followed: hijohnnylin/neuronpedia, apps/webapp/prisma/schema.prisma (008d504), and eai-delphi 0.1.3,
delphi/__main__.py. Their explanations are kept as they are, up to 10,000 characters of each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import polars as pl
import typer
from rich.markup import escape

from jobs.command.options import OneSite
from jobs.terminal.console import say
from jobs.terminal.json_lines import read_json_lines
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.record import parse_json
from schemas.sentences import joined, several, shown
from schemas.tables.tables import EXPLANATIONS

LONGEST = 10_000
"""Characters of an explanation."""
_LINES = (".jsonl", ".jsonl.gz")
_LATENT = re.compile(r"(.+)_latent([0-9]{1,9})\.txt")
_FAILED = "Explanation could not be parsed."
"""What delphi writes where its model's answer has no explanation."""
_FORMS = "give Neuronpedia's explanations (.jsonl or .jsonl.gz) or the folder of delphi's (…_latent0.txt …)"


class Explained(NamedTuple):
    """One explanation: the place where it stands (for messages), and the columns of EXPLANATIONS."""

    where: str
    feature: int
    text: str
    source: str
    origin: str
    method: str | None = None
    model: str | None = None


def explanations(
    store: FeatureStore,
    site: OneSite,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Neuronpedia's .jsonl or .jsonl.gz, a folder of these, or delphi's folder."
        ),
    ],
    *,
    origin: Annotated[
        str | None,
        typer.Option(
            help="Neuronpedia's source (9-res-jb) or delphi's hookpoint (layers.9), where FILE holds several."
        ),
    ] = None,
) -> StorePath:
    """Write the table `explanations` (schema EXPLANATIONS) in place of the one there is; its path.

    InputError where the file holds no explanation, those of several sources, or one of a feature that the
    site does not have: it is of another SAE then.
    """
    d_sae = store.require_features(site).d_sae
    found = list(_of_one_origin(file, _read(file), origin))
    kept = [each for each in found if each.text.strip() not in ("", _FAILED)]
    for each in kept:
        if not 0 <= each.feature < d_sae:
            raise InputError(
                f"{each.where} explains feature {each.feature}, but the features of site {site!r} are 0 to "
                f"{d_sae - 1}: give the explanations of its SAE"
            )
    if not kept:
        raise InputError(f"{file} holds no explanation: {_FORMS}")
    rows = [(each.feature, each.text.strip()[:LONGEST], *each[3:]) for each in kept]
    table = pl.DataFrame(rows, EXPLANATIONS, orient="row").unique(maintain_order=True)
    path = store.write_table(site, "explanations", table.sort("feature", maintain_order=True))
    empty = (
        f"; {several(len(found) - len(kept), 'line')} without a text left out"
        if len(found) > len(kept)
        else ""
    )
    say(
        f"[bold]explanations[/] {escape(site)}: {several(table.height, 'explanation')} of "
        f"{table['feature'].n_unique():,} of {d_sae:,} features, from {escape(shown(kept[0].origin))}"
        f"{empty}: [bold]{escape(str(path))}[/]"
    )
    return path


def _of_one_origin(file: Path, found: Iterator[Explained], wanted: str | None) -> Iterator[Explained]:
    """Those of the origin that is wanted, by its name or by the end of it, or of the only one there is."""
    counts = Counter[str]()
    for each in found:
        if wanted is None or wanted in (each.origin, each.origin.rpartition("/")[2]):
            counts[each.origin] += 1
            yield each
    if len(counts) > 1:
        names = joined([f"{shown(name)} ({n:,})" for name, n in sorted(counts.items())])
        raise InputError(f"{file} holds explanations of {names}: choose one with --origin")
    if wanted is not None and not counts:
        raise InputError(
            f"{file} holds no explanation of --origin {wanted!r}: leave it out to see what there is"
        )


def _read(file: Path) -> Iterator[Explained]:
    """All explanations of a file or folder, in the order of names and lines."""
    try:
        paths = sorted(file.iterdir(), key=_natural) if file.is_dir() else [file]
    except OSError as error:
        raise InputError(f"{file} cannot be listed ({error.strerror}): {_FORMS}") from None
    for path in paths:
        if path.name.endswith(_LINES):
            for where, line in read_json_lines(path):
                yield _of_neuronpedia(where, line)
        elif file.is_dir() and (match := _LATENT.fullmatch(path.name)):
            yield _of_delphi(path, match[1], int(match[2]))
        elif not file.is_dir():
            raise InputError(f"{file} is not a file of explanations: {_FORMS}")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Numbers in names go by their size: batch-2 before batch-10."""
    return [
        (int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]{1,18})", path.name)
    ]


def _of_neuronpedia(where: str, line: Any) -> Explained:
    """A row of Neuronpedia's table Explanation."""
    content = line if isinstance(line, dict) else {}
    index, text = content.get("index"), content.get("description")
    is_number = isinstance(index, int) or (isinstance(index, str) and re.fullmatch("[0-9]{1,9}", index))
    if not is_number or isinstance(index, bool) or not isinstance(text, str | None):
        raise InputError(f"{where} is not an explanation: Neuronpedia's have an index and a description")
    names = (content.get(name) for name in ("modelId", "layer"))
    origin = "/".join(name for name in names if isinstance(name, str) and name)
    about = (content.get(name) for name in ("typeName", "explanationModelName"))
    method, model = (name if isinstance(name, str) and name else None for name in about)
    return Explained(where, int(str(index)), _legible(text or ""), "neuronpedia", origin, method, model)


def _of_delphi(path: Path, hookpoint: str, feature: int) -> Explained:
    """A file of delphi's."""
    try:
        text = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {_FORMS}") from None
    except ValueError:
        text = None
    if not isinstance(text, str):
        raise InputError(f"{path} is not an explanation: delphi's files hold a JSON string")
    return Explained(str(path), feature, _legible(text), "delphi", hookpoint)


def _legible(text: str) -> str:
    """Without what is no text (surrogates), which Parquet cannot hold."""
    return text.encode("utf-8", "replace").decode()
