"""`latentlake check-sae SAE --model M`: does this SAE explain this model's activations, and if not, why not.

About 20,000 tokens are run. Special tokens are left out of all figures unless stated otherwise, as extraction
does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.markup import escape

from jobs.command.options import LocalDevice
from jobs.command.tasks import local_device
from jobs.evaluation.check_report import as_json, show
from jobs.studies.demo.model import FOLDER_NAME, cache_root
from jobs.terminal.console import say, warn
from jobs.terminal.outputs import require_file, write_file
from jobs.terminal.progress import Meter
from pipeline.evaluation import sae_check as check
from pipeline.models import load_model
from pipeline.plans.plan import resolve
from pipeline.plans.reopen import Place
from pipeline.saes import SaeMetadata, load_sae, read_metadata
from pipeline.saes.quality.alternatives import measured
from pipeline.saes.quality.diagnosis import ROWS, Diagnosis, OtherRows, diagnose
from pipeline.saes.quality.reconstruction import Reconstruction, worse_than_mean
from pipeline.sources import open_source
from pipeline.tokens.lake_rule import default_bos, notes, requested_lake
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from schemas.errors import InputError
from schemas.records import Lake
from schemas.run.file import RunFile, parse_run_file
from schemas.values import RowSelection, TokenShard

DEMO = resources.files("jobs") / "demo_data"
DEMO_SAE = "smollm2-135m-l9"

PUBLISHED = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
"""A model's name as SAEs' files may choose it."""


class Report(NamedTuple):
    """The result of a check."""

    run: RunFile
    lake: Lake
    place: Place
    about: SaeMetadata
    figures: Reconstruction
    with_special: float
    """Explained variance on the diagnosis' rows and the special tokens between them."""
    losses: check.Losses | str
    """Or why there are none."""
    diagnosis: Diagnosis

    @property
    def is_fine(self) -> bool:
        """Whether no mistake was found."""
        worse = self.diagnosis.is_measurable and worse_than_mean(self.figures) is not None
        return self.diagnosis.is_fine and not worse


def check_sae(
    sae: Annotated[
        str, typer.Argument(metavar="SAE", help="SAE: a folder, the file with its weights, or hf:...")
    ],
    model: Annotated[
        str | None, typer.Option(help="Model folder or name. Default: from the SAE's files.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="File, folder, glob or dataset. Default: the demo's speeches.")
    ] = None,
    text_column: Annotated[
        str, typer.Option(help="Column or key that holds the text of the corpus.")
    ] = "text",
    tokens: Annotated[int, typer.Option(help="Tokens to run.", min=1)] = 20_000,
    hook_name: Annotated[
        str | None, typer.Option(help="Where x is read. Default: from the SAE's files.")
    ] = None,
    loader: Annotated[str, typer.Option(help="As model.loader in a run file.")] = "transformer_lens",
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer folder or name. Default: the model's.")
    ] = None,
    device: LocalDevice = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")] = None,
) -> bool:
    """Check, print, and write the JSON file; whether all is well."""
    require_file(json_file, "--json")
    about = read_metadata(sae)
    content = {
        "corpus": {
            "path": corpus or str(DEMO / "sotu.parquet"),
            "text_column": text_column if corpus else "text",
        },
        "tokens": {"tokenizer": tokenizer},
        "model": {"loader": loader, "path": model or _model(sae, about), "device": local_device(device)},
        "sites": [{"name": "sae", "sae": sae, "hook_name": hook_name}],
        "store": {"root": "nowhere"},
    }
    run, messages = resolve(parse_run_file(content, "check-sae"))  # as an extraction would have it
    warn(messages)
    with Meter("check-sae") as steps:
        report = _report(run, about, tokens, steps)
    show(report)
    if json_file is not None:
        write_file(json_file, json.dumps(as_json(report), indent=1).encode() + b"\n", "--json")
        say(f"All numbers: [bold]{escape(str(json_file))}[/]")
    return report.is_fine


def _report(run: RunFile, about: SaeMetadata, tokens: int, steps: Meter) -> Report:
    """Everything that takes time."""
    assert run.tokens.tokenizer is not None
    tokenizer = load_tokenizer(run.tokens.tokenizer)
    steps.begin("reading the corpus")
    lake = _lake(run, tokenizer)
    shard = _shard(run, lake, tokenizer, tokens)
    steps.begin("loading the SAE and the model")
    subject = _subject(run, about)
    pieces = check.pieces(shard, lake.context_size)
    figures = check.measure(subject, pieces, steps.begin("reconstructing", shard.n_rows, "tokens"))
    if not figures.n:
        positions = run.sites[0].positions
        raise InputError(f"no token is at the positions {positions}, which the SAE reads: give more --tokens")
    # The figures are of all rows, but alternatives are many and are tried on a sample.
    sampled = check.sample(pieces, ROWS, counted=True)
    some = check.sample(pieces, check.LOSS_TOKENS)
    observe = steps.begin("losses", sum(int(piece.batch.lengths.sum()) for piece in some), "tokens")
    losses: check.Losses | str
    try:
        losses = check.losses(subject, some, observe)
    except InputError as error:  # of a model that predicts no tokens: the rest is checked all the same
        losses = str(error)
    rows = check.loaded_rows(subject, sampled)
    steps.begin("trying other hooks and tokens")
    # With BOS where the rule had none, and without where it had one; without a BOS token neither can be.
    flipped, bos = None, default_bos(tokenizer)
    if bos is not None:
        other = lake.model_copy(update={"bos_id": bos if lake.bos_id is None else None})
        flipped = _shard(run, other, tokenizer, tokens)
    elsewhere = list(_elsewhere(subject, about, sampled, flipped, lake, figures))
    done = steps.begin("trying alternatives", None, "alternatives")
    diagnosis = diagnose(subject.encoder, rows, elsewhere, lambda _: done(1))
    special = measured(subject.encoder, check.loaded_rows(subject, check.with_special(sampled)))
    place = subject.place
    return Report(run, lake, place, about, figures, special.explained_variance, losses, diagnosis)


def _model(sae: str, about: SaeMetadata) -> str:
    """The model of the demo's SAE, or the one that the SAE's files name, which is reported.

    Files of unknown origin may name a published model, but no local file.
    """
    demo = cache_root() / FOLDER_NAME
    if Path(sae).resolve() == Path(str(DEMO / DEMO_SAE)).resolve() and demo.is_dir():
        say(f"The model is the demo's, {escape(str(demo))}")
        return str(demo)
    if not about.model_name:
        raise InputError(f"the files of SAE {sae} name no model: give --model")
    name = about.model_name
    if not PUBLISHED.fullmatch(name) or os.path.exists(name):  # noqa: PTH110 - false for what is not a path
        raise InputError(
            f"the files of SAE {sae} name the model {name!r}, which is neither the name of a published "
            "model nor a local path: give --model"
        )
    say(f"The model is {escape(name)}, according to the SAE's files")
    return name


def _lake(run: RunFile, tokenizer: Tokenizer) -> Lake:
    """The rule that tokens are laid out by; no separator where the tokenizer has none."""
    if tokenizer.eos_id is None and tokenizer.sep_id is None:
        run = run.model_copy(update={"tokens": run.tokens.model_copy(update={"separator": "none"})})
    lake = requested_lake(run, tokenizer, {})
    warn(notes(run, lake, tokenizer))
    return lake


def _shard(run: RunFile, lake: Lake, tokenizer: Tokenizer, tokens: int) -> TokenShard:
    """The tokens, those outside the SAE's positions not counted."""
    shard = check.token_shard(open_source(run.corpus), lake, tokenizer, tokens)
    return shard.restrict(RowSelection(run.sites[0].positions), lake.context_size)


def _subject(run: RunFile, about: SaeMetadata) -> check.Subject:
    """SAE and model, which must fit."""
    read, sae = run.sites[0].hook_name, str(run.sites[0].sae)
    assert read is not None
    target = about.target_at(read) if about.transcoder else read
    if target is None:
        raise InputError(f"the files of transcoder {sae} do not name the hook that it reconstructs")
    place = Place(read, target)
    encoder = load_sae(sae, run.model.device)
    model = load_model(run.model, list(place), run.model.device, len(os.sched_getaffinity(0)))
    if not encoder.accepts(model.widths[read]):
        raise InputError(
            f"{read} gives vectors of {model.widths[read]}, but the SAE {sae} reads {encoder.d_model}: "
            "give the --hook-name and the --model that it was trained on"
        )
    return check.Subject(model, encoder, place)


def _elsewhere(
    subject: check.Subject,
    about: SaeMetadata,
    pieces: list[check.Piece],
    flipped: TokenShard | None,
    lake: Lake,
    figures: Reconstruction,
) -> Iterator[OtherRows]:
    """Rows from other hooks, and from other choices of tokens."""
    read, wrote = about.hook_name, about.hook_name_out or about.hook_name
    named = Place(read, wrote) if read is not None and wrote is not None else None
    # Not `<`: a figure that is NaN is poor too.
    poor = not figures.judged >= check.POOR
    yield from check.other_hooks(subject, pieces, named, poor=poor)
    other: Sequence[check.Piece] = ()
    if flipped is not None:
        other = check.sample(check.pieces(flipped, lake.context_size), ROWS, counted=True)
    yield from check.other_tokens(subject, pieces, list(other), has_bos=lake.bos_id is not None)
