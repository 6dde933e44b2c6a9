"""`latentlake init`: a commented run file, from what the files of an SAE and of a corpus say."""

from __future__ import annotations

import math
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import polars as pl
import typer
from rich.markup import escape

from jobs.terminal.console import say, warn
from jobs.terminal.outputs import require_file, write_file
from pipeline.plans.plan import resolve
from pipeline.plans.sae_defaults import default_hook
from pipeline.saes import SaeMetadata, read_metadata
from pipeline.sources.text.source import open_text
from schemas.errors import InputError
from schemas.run.file import Corpus, Model, RunFile, parse_run_file
from schemas.run.strict_yaml import dump_yaml
from schemas.sentences import several, visible

FIRST_ROWS = 1_000
"""Documents of the first file that are read to tell texts from labels."""

LONG = 8
"""Words that a column of texts has on average, where no column is called `text`; labels have fewer."""


class Key(NamedTuple):
    """One key of the run file, its value, and what the file says about it."""

    section: str
    name: str
    value: Any
    comment: str


def init(
    sae: Annotated[
        str | None,
        typer.Option("--sae", help="SAE: a folder, a file, hf:OWNER/REPOSITORY/PATH or saelens:RELEASE/ID."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model folder or Hugging Face name. Default: from the SAE's metadata."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus", help="File, folder or glob of documents, or the name of a Hugging Face dataset."
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option("--text-column", help="Column that holds the text. Default: from the corpus."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Label columns, as year,party, or none. Default: from the corpus."),
    ] = None,
    hook_name: Annotated[
        str | None,
        typer.Option("--hook-name", help="Where the SAE reads x. Default: from the SAE's metadata."),
    ] = None,
    store: Annotated[str, typer.Option("--store", help="Folder or URL of the store.")] = "out/lake",
    out: Annotated[Path, typer.Option("--out", help="The run file to write.")] = Path("run.yaml"),
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --out.")] = False,
) -> None:
    """Write a run file for an SAE, a model and a corpus, and print where each of its values comes from."""
    require_file(out, "--out")
    if out.exists() and not force:
        raise InputError(f"--out {out} exists: give it another name, or replace it with --force")
    sae = sae or _ask("--sae", "the SAE")
    about = read_metadata(sae)
    of_model, where = _model(model, about), corpus or _ask("--corpus", "the corpus", _dataset(about))
    settings = [*SETTINGS, Key("store", "root", store, "a folder, or a URL: s3://bucket/prefix")]
    # what was given is checked as a run file would be, before anything is read
    given = _run_file(
        [of_model, Key("corpus", "path", where, ""), Key("sites", "sae", sae, ""), *settings], out
    )
    hook, origin = _hook(hook_name, about, given.model)
    keys = [*_corpus(given.corpus, text_column, labels), of_model, *_site(sae, about, hook, origin)]
    run, warnings = resolve(_run_file([*keys, *settings], out))
    keys += _tokens(run, about)
    warn(warnings)
    write_file(out, _text([*keys, *settings], out).encode(), "--out")
    for key in keys:
        say(f"{key.section}.{key.name}: [bold]{escape(str(key.value))}[/] ({escape(key.comment)})")
    say(f"\n[bold]init[/] wrote {escape(str(out))}. Next:\n  latentlake run {escape(shlex.quote(str(out)))}")


SETTINGS = (
    Key("tokens", "special_tokens", "exclude", "BOS and the like are not counted"),
    Key(
        "tokens",
        "limit",
        None,
        "stop after so many tokens, such as 100000; with document_limit, of many documents",
    ),
    Key("model", "dtype", "float32", "bfloat16 or float16 halve the memory, and change the last bits"),
    Key("model", "device", "auto", "a GPU if there is one; or cpu, or cuda"),
    Key("store", "activation_dtype", "float16", "float32 keeps every bit, at twice the size of the values"),
    Key("extract", "workers", 1, "as many as the machine, or the cluster, has GPUs"),
    Key("extract", "batch_contexts", 8, "contexts of each forward pass; more on a GPU with free memory"),
)
"""Keys that nothing is inferred for, at their defaults: those that people change first."""


def _ask(option: str, question: str, default: str | None = None, problem: str | None = None) -> str:
    """What a person types; InputError where nobody can, which says what is unknown and names the option."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"{question} ({problem})" if problem else question, default=default))
    trained = f" (the SAE was trained on {default})" if default else ""
    raise InputError(f"{problem or f'{question} is not known{trained}'}: give {option}")


def _dataset(about: SaeMetadata) -> str | None:
    """The dataset that the SAE was trained on, where its files name it, as those of SAELens do."""
    names = (about.extra.get(key) for key in ("dataset_path", "dataset", "data"))
    return next((name for name in names if isinstance(name, str) and name), None)


def _corpus(corpus: Corpus, text_column: str | None, labels: str | None) -> list[Key]:
    """The corpus section: which column is the text, and which columns are labels."""
    rows = open_text(corpus).first_rows(FIRST_ROWS)
    keys = [
        Key("corpus", "path", corpus.path, "a file, folder or glob; or the name of a Hugging Face dataset")
    ]
    if not rows.width:
        return keys
    text, origin = (text_column, "--text-column") if text_column else _text_column(corpus.path, rows)
    names = _labels(rows, text) if labels is None else [] if labels == "none" else labels.split(",")
    # opened again by its own columns, so that all files are checked and their types are those of the store
    opened = open_text(corpus.model_copy(update={"text_column": text, "label_columns": tuple(names)}))
    types = ", ".join(f"{name} {dtype}" for name, dtype in opened.label_dtypes().items())
    rest = ", ".join(name for name in rows.columns if name not in (*names, text))
    return [
        *keys,
        Key("corpus", "text_column", text, origin),
        Key("corpus", "label_columns", names, (types or "none") + (f"; left out: {rest}" if rest else "")),
    ]


def _text_column(path: str, rows: pl.DataFrame) -> tuple[str, str]:
    """The column of the documents, and how it was recognised."""
    long, short = _texts(rows)
    if "text" in (*long, *short):
        return "text", "the column called text"
    candidates = long or short
    if len(candidates) == 1:
        return candidates[0], f"the only column of {'long texts' if long else 'text'}"
    if not candidates:
        types = ", ".join(f"{name} ({dtype})" for name, dtype in rows.schema.items())
        raise InputError(f"--corpus {path} has no column of text, only {types}: give another corpus")
    question = f"the text may be in {' or '.join(candidates)}"
    return _ask("--text-column", "the column of the text", problem=question), "typed"


def _texts(rows: pl.DataFrame) -> tuple[list[str], list[str]]:
    """The columns of text: long ones, which may be documents, and short ones, which may be labels."""
    words = rows.select(pl.col(pl.String).str.count_matches(r"\S+").mean().fill_null(0))
    means = words.to_dicts()[0] if words.width else {}
    return [n for n, mean in means.items() if mean >= LONG], [n for n, mean in means.items() if mean < LONG]


def _labels(rows: pl.DataFrame, text: str) -> list[str]:
    """The columns whose values may stand for groups of documents: numbers, and short texts that repeat."""
    _, short = _texts(rows)
    repeated = [name for name in short if rows[name].n_unique() < max(rows.height, 2)]
    kinds = rows.schema.items()
    numbers = [n for n, kind in kinds if kind.is_integer() or kind.is_float() or kind == pl.Boolean]
    return [name for name in rows.columns if name in (*repeated, *numbers) and name != text]


def _model(path: str | None, about: SaeMetadata) -> Key:
    """The path of the model."""
    origin = "--model" if path else "from the SAE's metadata" if about.model_name else "typed"
    return Key("model", "path", path or about.model_name or _ask("--model", "the model"), origin)


def _hook(hook_name: str | None, about: SaeMetadata, model: Model) -> tuple[str, str]:
    """Where the SAE reads, and how it is known."""
    if hook_name is not None:
        return hook_name, "--hook-name"
    if hook := default_hook(about, model):
        return hook, "from the SAE's metadata"
    return _ask("--hook-name", "the hook that the SAE reads, such as blocks.9.hook_resid_post,"), "typed"


def _site(sae: str, about: SaeMetadata, hook: str, origin: str) -> list[Key]:
    """The one site; a layer's number makes its name, which commands and folders have."""
    layer = re.search(r"\b(?:blocks|layers|h)\.(\d+)\b", hook)
    shape = f"{about.architecture}, {several(about.d_sae, 'feature')} of vectors of width {about.d_model}"
    trained = f"; trained on {dataset}" if (dataset := _dataset(about)) else ""
    return [
        Key(
            "sites", "name", f"l{layer[1]}" if layer else hook, "a folder's name in the store; free to choose"
        ),
        Key("sites", "hook_name", hook, origin),
        Key("sites", "sae", sae, f"{shape}; format {about.format}{trained}"),
    ]


def _tokens(run: RunFile, about: SaeMetadata) -> list[Key]:
    """The tokens section as the run would resolve it."""

    def origin(known: object) -> str:
        return (
            "from the SAE's metadata" if known is not None else "the default; the SAE's files do not say it"
        )

    return [
        Key("tokens", "context_size", run.tokens.context_size, origin(about.context_size)),
        Key("tokens", "prepend_bos", run.tokens.prepend_bos, origin(about.prepend_bos)),
    ]


SECTIONS = {
    "corpus": "the documents",
    "tokens": "how documents become contexts of tokens",
    "model": "what computes x; a Hugging Face model, run by TransformerLens",
    "sites": "where x is read, and the SAE that reads it; several share one forward pass",
    "store": "where the result goes",
    "extract": "how the work is distributed; executor: in_process does without Ray",
}
"""Section of the run file, in their order, and what it is about."""


def _run_file(keys: list[Key], out: Path) -> RunFile:
    """The run file of the keys, checked."""
    sections: dict[str, Any] = {}
    for key in keys:
        sections.setdefault(key.section, {})[key.name] = key.value
    return parse_run_file(sections | {"sites": [sections["sites"]]}, str(out))


def _text(keys: list[Key], out: Path) -> str:
    """The run file as text: a key a line, each with its comment."""
    lines = [
        "# Written by `latentlake init`. An unknown key is refused; docs/run-file.md lists all of them.",
        f"# Next: latentlake plan {shlex.quote(str(out))} (a minute; predicts time and size), then run.",
    ]
    for section, about in SECTIONS.items():
        lines += ["", f"{section}:  # {about}"]
        marks = iter(["  - "] if section == "sites" else [])
        for key in (key for key in keys if key.section == section):
            value = dump_yaml({key.name: key.value}, flow=True, width=math.inf).strip()[1:-1]
            comment = visible(" ".join(key.comment.split()))
            lines.append(f"{next(marks, '    ' if section == 'sites' else '  ')}{value}  # {comment}")
    return "\n".join(lines) + "\n"
