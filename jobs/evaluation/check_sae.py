"""`latentlake check-sae SAE --model M`: does this SAE explain this model's activations, and if not, why not.

About 20,000 tokens are run. Special tokens are left out of all figures but where it is said, as extraction
does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape

from jobs.evaluation.check_report import as_json, show
from jobs.studies.demo.model import FOLDER_NAME, cache_root
from jobs.terminal.console import say, warn
from jobs.terminal.outputs import require_file, write_file
from jobs.terminal.progress import Meter
from pipeline.evaluation import sae_check as check
from pipeline.models import load_model
from pipeline.models.device import device_here
from pipeline.plans.plan import resolve
from pipeline.plans.reopen import Place
from pipeline.saes import SaeMetadata, load_sae, read_metadata
from pipeline.saes.quality.alternatives import measured
from pipeline.saes.quality.diagnosis import ROWS, Diagnosis, Elsewhere, diagnose
from pipeline.saes.quality.reconstruction import Reconstruction, worse_than_mean
from pipeline.sources import open_source
from pipeline.tokens.lake_rule import asked_lake, notes
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from schemas.errors import InputError
from schemas.records import Lake
from schemas.run.file import RunFile, parse_run_file
from schemas.values import Reads, TokenShard

DEMO = resources.files("jobs") / "demo_data"
DEMO_SAE = "smollm2-135m-l9"

PUBLISHED = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
"""A model's name as SAEs' files may choose it."""


class Asked(NamedTuple):
    """The command's options, see `jobs.cli.check_sae`."""

    sae: str
    model: str | None = None
    corpus: str | None = None
    text_column: str = "text"
    tokens: int = 20_000
    hook_name: str | None = None
    loader: str = "transformer_lens"
    tokenizer: str | None = None
    device: str = "auto"
    json_file: Path | None = None


class Report(NamedTuple):
    """The result of a check."""

    asked: Asked
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
        worse = self.diagnosis.can_tell and worse_than_mean(self.figures) is not None
        return self.diagnosis.is_fine and not worse


def check_sae(asked: Asked) -> bool:
    """Check, print, and write the JSON file; whether all is well."""
    require_file(asked.json_file, "--json")
    about = read_metadata(asked.sae)
    run, messages = resolve(_run_file(asked, about))
    warn(messages)
    assert run.tokens.tokenizer is not None
    tokenizer = load_tokenizer(run.tokens.tokenizer)
    with Meter("check-sae") as steps:
        report = _report(asked, run, about, tokenizer, steps)
    show(report)
    if asked.json_file is not None:
        write_file(asked.json_file, json.dumps(as_json(report), indent=1).encode() + b"\n", "--json")
        say(f"All numbers: [bold]{escape(str(asked.json_file))}[/]")
    return report.is_fine


def _report(asked: Asked, run: RunFile, about: SaeMetadata, tokenizer: Tokenizer, steps: Meter) -> Report:
    """Everything that takes time."""
    steps.begin("reading the corpus")
    lake = _lake(run, tokenizer)
    shard = _shard(asked, run, lake, tokenizer)
    steps.begin("loading the SAE and the model")
    subject = _subject(asked, run, about)
    pieces = check.pieces(shard, lake.context_size)
    figures = check.measure(subject, pieces, steps.begin("reconstructing", shard.n_rows, "tokens"))
    if not figures.n:
        positions = run.sites[0].positions
        raise InputError(f"no token is at the positions {positions} that the SAE reads: give more --tokens")
    sampled = check.sample(pieces, ROWS, counted=True)
    losses = _losses(subject, check.sample(pieces, check.LOSS_TOKENS), steps)
    rows = check.loaded_rows(subject, sampled)
    steps.begin("running other hooks and tokens")
    other = check.flipped_bos(lake, tokenizer)
    flipped = _shard(asked, run, other, tokenizer) if other is not None else None
    elsewhere = list(_elsewhere(subject, about, sampled, flipped, lake, figures))
    done = steps.begin("trying alternatives", None, "alternatives")
    diagnosis = diagnose(subject.encoder, rows, elsewhere, lambda _: done(1))
    special = measured(subject.encoder, check.loaded_rows(subject, check.with_special(sampled)))
    place = subject.place
    return Report(asked, run, lake, place, about, figures, special.explained_variance, losses, diagnosis)


def _run_file(asked: Asked, about: SaeMetadata) -> RunFile:
    """The run file that an extraction with these options would have."""
    corpus = asked.corpus or str(DEMO / "sotu.parquet")
    model = {"loader": asked.loader, "path": _model(asked, about), "device": device_here(asked.device)}
    content: dict[str, Any] = {
        "corpus": {"path": corpus, "text_column": asked.text_column if asked.corpus else "text"},
        "tokens": {"tokenizer": asked.tokenizer},
        "model": model,
        "sites": [{"name": "sae", "sae": asked.sae, "hook_name": asked.hook_name}],
        "store": {"root": "nowhere"},
    }
    return parse_run_file(content, "check-sae")


def _model(asked: Asked, about: SaeMetadata) -> str:
    """The model asked for, that of the demo's SAE, or the one that the SAE's files name, which is reported.

    Files of unknown origin may name a published model, but no local file.
    """
    if asked.model:
        return asked.model
    demo = cache_root() / FOLDER_NAME
    if Path(asked.sae).resolve() == Path(str(DEMO / DEMO_SAE)).resolve() and demo.is_dir():
        say(f"The model is the demo's, {escape(str(demo))}")
        return str(demo)
    if not about.model_name:
        raise InputError(f"the files of SAE {asked.sae} name no model: give --model")
    name = about.model_name
    if not PUBLISHED.fullmatch(name) or os.path.exists(name):  # noqa: PTH110 - false for what is not a path
        raise InputError(
            f"the files of SAE {asked.sae} name the model {name!r}, which is neither a published model's "
            "name nor a path here: give --model"
        )
    say(f"The model is {escape(name)}, as the SAE's files say")
    return name


def _lake(run: RunFile, tokenizer: Tokenizer) -> Lake:
    """The rule that tokens are laid out by; no separator where the tokenizer has none."""
    size, prepend_bos = run.tokens.context_size, run.tokens.prepend_bos
    assert size is not None
    assert prepend_bos is not None
    if tokenizer.eos_id is None and tokenizer.sep_id is None:
        run = run.model_copy(update={"tokens": run.tokens.model_copy(update={"separator": "none"})})
    lake = asked_lake(run, size, prepend_bos, tokenizer, {})
    warn(notes(run, lake, tokenizer))
    return lake


def _shard(asked: Asked, run: RunFile, lake: Lake, tokenizer: Tokenizer) -> TokenShard:
    """The tokens, those outside the SAE's positions not counted."""
    shard = check.token_shard(open_source(run.corpus), lake, tokenizer, asked.tokens)
    return shard.at(Reads(run.sites[0].positions), lake.context_size)


def _subject(asked: Asked, run: RunFile, about: SaeMetadata) -> check.Subject:
    """SAE and model, which must fit."""
    read = run.sites[0].hook_name
    assert read is not None
    target = about.target_at(read) if about.transcoder else read
    if target is None:
        raise InputError(f"the files of transcoder {asked.sae} do not name the hook that it reconstructs")
    place = Place(read, target)
    encoder = load_sae(asked.sae, run.model.device)
    model = load_model(run.model, list(place), run.model.device, len(os.sched_getaffinity(0)))
    if not encoder.accepts(model.widths[read]):
        raise InputError(
            f"{read} gives vectors of {model.widths[read]}, the SAE {asked.sae} reads {encoder.d_model}: "
            "give the --hook-name and the --model that it was trained on"
        )
    return check.Subject(model, encoder, place)


def _losses(subject: check.Subject, pieces: list[check.Piece], steps: Meter) -> check.Losses | str:
    """Losses, or why there are none."""
    tokens = sum(int(piece.batch.lengths.sum()) for piece in pieces)
    try:
        return check.losses(subject, pieces, steps.begin("losses", tokens, "tokens"))
    except InputError as error:
        return str(error)


def _elsewhere(
    subject: check.Subject,
    about: SaeMetadata,
    pieces: list[check.Piece],
    flipped: TokenShard | None,
    lake: Lake,
    figures: Reconstruction,
) -> Iterator[Elsewhere]:
    """Rows from other hooks, and from other choices of tokens."""
    named = _trained_at(about)
    poor = not figures.judged >= check.POOR
    yield from check.other_hooks(subject, pieces, named, poor=poor)
    other: Sequence[check.Piece] = ()
    if flipped is not None:
        other = check.sample(check.pieces(flipped, lake.context_size), ROWS, counted=True)
    yield from check.other_tokens(subject, pieces, list(other), has_bos=lake.bos_id is not None)


def _trained_at(about: SaeMetadata) -> Place | None:
    """The place that the SAE's files name."""
    if about.hook_name is None:
        return None
    return Place(about.hook_name, about.hook_name_out or about.hook_name)
