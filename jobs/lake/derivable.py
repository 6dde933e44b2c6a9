"""Which jobs of `derive.jobs` need which others, and what corpus, model and SAEs must be for them.

Checked before the first shard is extracted, so that no run fails on it after hours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from jobs.tables.importance import nonlinear, one_label
from jobs.tables.ranking import column_of
from jobs.tables.selection import ALL, parse_numbers, parse_ranks
from jobs.terminal.console import say
from pipeline.saes import SaeMetadata, read_metadata
from pipeline.statistics import feature_schema
from pipeline.store.records.registry import NEEDS, job_of
from pipeline.store.records.tokens import read_lake, read_links
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.names import DERIVED_JOBS
from schemas.records import Lake
from schemas.run.file import RunFile, Site
from schemas.tables.tables import PROFILE

LANGUAGE_MODELS = ("transformer_lens", "hooked_transformer", "torch_module")


def with_needed(run: RunFile) -> RunFile:
    """The run file with the jobs that its jobs need, in their order; reports which were added."""
    jobs = closed(run.derive.jobs, needs_of(run))
    if not (added := [job for job in jobs if job not in run.derive.jobs]):
        return run
    say(f"[bold]derive[/] {', '.join(added)} too, because other jobs of derive.jobs need it")
    return run.model_copy(update={"derive": run.derive.model_copy(update={"jobs": tuple(jobs)})})


def closed(jobs: Iterable[str], needs: Mapping[str, Iterable[str]]) -> list[str]:
    """The jobs and all that they need, each once, in the order of `DERIVED_JOBS`."""
    # jobs are followed to what they need until nothing new comes; then put into the order of a run
    needed, waiting = set[str](), list(jobs)
    while waiting:
        job = waiting.pop()
        if job not in needed:
            needed.add(job)
            waiting += needs.get(job, ())
    return [job for job in DERIVED_JOBS if job in needed]


def needs_of(run: RunFile) -> dict[str, set[str]]:
    """Job -> the jobs whose tables it cannot be without.

    `profile` is among them where a ranking or the choice of the report's features is by a column of it.
    """
    needs = {job: set(map(job_of, tables)) for job, tables in NEEDS.items()}
    ranks = parse_ranks(run.derive.report, "derive.report")
    by = {"rank": run.rank.by, "report": () if ranks is None else (ranks.column,)}
    for job, columns in by.items():
        if set(columns) & (PROFILE.keys() - feature_schema().keys()):
            needs[job].add("profile")
    return needs


@dataclass(frozen=True)
class Case:
    """What the jobs will meet at one site."""

    run: RunFile
    lake: Lake
    answers: bool
    """Whether the corpus names two columns of answers."""
    site: Site
    about: SaeMetadata


def check_derivable(run: RunFile, layout: Layout) -> None:
    """InputError where a job could not be done after the extraction; the tokens must be there."""
    lake = read_lake(layout)
    assert lake is not None
    # Links that name no answers do not contradict the others, links with other ones do.
    answers = {tuple(link.source.get("answers", ())) for link in read_links(layout)} - {()}
    for site in run.sites:
        if site.sae is None:
            continue
        case = Case(run, lake, len(answers) == 1, site, read_metadata(site.sae))
        for job in run.derive.jobs:
            if job in REFUSED and (why := REFUSED[job](case)) is not None:
                raise InputError(
                    f"derive.jobs: {job} is impossible for site {site.name!r}: {why}; remove {job} from "
                    "derive.jobs"
                )


def _report(case: Case) -> str | None:
    text, what = case.run.derive.report.strip(), "derive.report"
    if (ranks := parse_ranks(text, what)) is not None:
        return _sentence(lambda: column_of(feature_schema(), ranks.column))
    return None if text == ALL else _sentence(lambda: parse_numbers(text, what, case.about.d_sae))


def _logits(case: Case) -> str | None:
    from pipeline.models.hooks.unembedding import in_residual_stream

    if case.run.model.loader not in ("transformer_lens", "hooked_transformer"):
        return f"model.loader: {case.run.model.loader} has no unembedding"
    target = case.about.hook_name_out if case.about.transcoder else case.site.hook_name
    if target is None or not in_residual_stream(target):
        return f"its decoder writes at {target}, which is not the residual stream"
    return None


def _fidelity(case: Case) -> str | None:
    if case.site.pooling != "none":
        return f"it reads one vector of each context (pooling: {case.site.pooling})"
    return _language_model(case)


def _attribute(case: Case) -> str | None:
    if not case.answers:
        return "the corpus names no two columns of answers, as corpus.kind: prompts does"
    if case.lake.contexts != "document":
        return "documents share contexts (tokens.contexts), so the end of a prompt is not that of a context"
    if case.lake.separator_id is not None and case.lake.special_tokens != "exclude":
        return "each prompt ends with a counted EOS (tokens.separator), after which there is no answer"
    if len(case.lake.label_columns) <= 2:
        return "the prompts have no label besides their answers (corpus.label_columns)"
    return _language_model(case)


def _language_model(case: Case) -> str | None:
    if case.run.model.loader not in LANGUAGE_MODELS:
        return f"model.loader: {case.run.model.loader} is not a language model"
    return None if case.lake.inputs is None else "the corpus holds vectors, not tokens"


def _importance(case: Case) -> str | None:
    if case.run.model.loader == "synthetic":
        return "its features are generated, and have no decoder"
    if (other := nonlinear(asdict(case.about))) is not None:
        return f"its SAE has {other}, and importance is defined only for activations @ W_dec + b_dec"
    return _sentence(lambda: one_label(list(case.lake.label_columns), None))


def _images(case: Case) -> str | None:
    if case.run.model.loader != "image_classifier":
        return f"model.loader: {case.run.model.loader} has no image decoder, as image_classifier has"
    return _importance(case)


def _sentence(check: Callable[[], object]) -> str | None:
    """The message of a check that raises InputError, else None."""
    try:
        check()
    except InputError as error:
        return str(error)
    return None


REFUSED: dict[str, Callable[[Case], str | None]] = {
    "rank": lambda case: _sentence(lambda: [column_of(feature_schema(), by) for by in case.run.rank.by]),
    "report": _report,
    "logits": _logits,
    "fidelity": _fidelity,
    "attribute": _attribute,
    "importance": _importance,
    "images": _images,
}
"""Job -> why it cannot be done, in words; None where it can."""
