"""How a job becomes a command: its parameters are the options, and some of them are filled here.

A job is a function that `jobs.command.registry` names. A parameter that is annotated with a `typer.Option` or
`typer.Argument` is an option or argument of the command, declared nowhere else. These are filled:

    store: FeatureStore       opened; the command takes STORE
    root: str                 the store's folder or URL, not opened; the command takes STORE
    run_file: RunFile         of a job without a store: read; the command takes RUN.yaml. With a store: the
                              run file that was given as STORE, or None
    site: str                 each site in turn; the command takes --site
    site: OneSite             the one site that --site names, or that there is
    sites: list[str]          all of them at once
    tasks: Tasks | None       the command takes --workers and --address. Of a job with an option `device`
                              they run the model of the site's pass, and `device` is resolved for them

A job whose result is annotated with AS_JSON takes --json, which prints the result (frames as lists of rows)
as one JSON value on standard output, and what the job prints for people on standard error; of a job that is
called for each site the value is an object, site -> result.

A job without a store that returns False ends the command with exit code 1. So a job reads the same to a
command, to `run` (`jobs.lake.derive`) and to a program that imports it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from jobs.command.options import (
    AS_JSON,
    Address,
    Json,
    ModelWorkers,
    OneSite,
    RunPath,
    SiteName,
    StoreText,
    Workers,
    one_site,
    open_store,
    read_run_file,
    root_of,
    sites_of,
)
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.store import FeatureStore

Given = dict[str, Any]


def command_of(job: Callable[..., object]) -> Callable[..., None]:
    """The function that typer calls, with the job's options and what stands for its filled parameters."""
    hints = get_type_hints(job, include_extras=True)
    parameters = inspect.signature(job).parameters
    kinds: dict[str, type | None] = {}  # None: no option or argument, so it is filled here
    for name in parameters:
        marks = getattr(hints[name], "__metadata__", ())
        kinds[name] = next((type(m) for m in marks if isinstance(m, ArgumentInfo | OptionInfo)), None)
    own = [
        inspect.Parameter(p.name, p.KEYWORD_ONLY, default=p.default, annotation=hints[p.name])
        for p in parameters.values()
        if kinds[p.name]
    ]
    filled = {name: hints[name] for name, kind in kinds.items() if kind is None}
    runs_model = "device" in parameters and "tasks" in filled
    reads_run_file = "run_file" in filled and "store" not in filled
    has_json = AS_JSON in getattr(hints.get("return"), "__metadata__", ())
    # In the order of a usage line: the store or run file, arguments, --site, options, how it runs.
    typed = [
        *([_option("store", StoreText, required=True)] if filled.keys() & {"store", "root"} else []),
        *([_option("path", RunPath, required=True)] if reads_run_file else []),
        *(p for p in own if kinds[p.name] is ArgumentInfo),
        *([_option("site", SiteName)] if filled.keys() & {"site", "sites"} else []),
        *(p for p in own if kinds[p.name] is OptionInfo),
        *([_option("workers", ModelWorkers if runs_model else Workers)] if "tasks" in filled else []),
        *([_option("address", Address)] if "tasks" in filled else []),
        *([_option("as_json", Json).replace(default=False)] if has_json else []),
    ]

    shown = {p.name: _shown_name(p) for p in typed}

    def command(**given: Any) -> None:
        _check_numbers({shown[name]: value for name, value in given.items()})
        if given.pop("as_json", False):
            from jobs.terminal.json_output import lines_on_stderr, print_json

            with lines_on_stderr():
                result = _call(job, filled, given, runs_model=runs_model)
            print_json(result)
        elif _call(job, filled, given, runs_model=runs_model) is False:
            raise typer.Exit(1)

    command.__signature__ = inspect.Signature(typed)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in typed}
    return command


def _option(name: str, annotation: Any, *, required: bool = False) -> inspect.Parameter:
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _shown_name(parameter: inspect.Parameter) -> str:
    """What an option or argument is called on the command line, without dashes before it."""
    marks = parameter.annotation.__metadata__
    declared = [name for mark in marks for name in (mark.default, *(mark.param_decls or ()))]
    long = (name for name in declared if isinstance(name, str) and name.startswith("--"))
    return next(long, parameter.name).partition("/")[0].lstrip("-").replace("_", "-")


def _call(job: Callable[..., object], filled: Given, given: Given, *, runs_model: bool) -> object:
    """Open what the job takes and call it; its result, or that of each site where it is called for each."""
    if "store" not in filled:
        if "root" in filled:
            given["root"] = root_of(given.pop("store"))
        if "run_file" in filled:
            given["run_file"] = read_run_file(given.pop("path"))
        return job(**given)
    store, run_file = open_store(given.pop("store"))
    given["store"] = store
    if "run_file" in filled:
        given["run_file"] = run_file
    if runs_model:
        from jobs.command.tasks import model_tasks

        workers, address, device = given.pop("workers"), given.pop("address"), given.pop("device")
        results = {}
        for name in sites_of(store, given.pop("site")):
            # Sites may be of passes with other models, so each has tasks of its own.
            with model_tasks(store, name, device, workers, address) as (tasks_of_model, on):
                results[name] = job(**given, site=name, tasks=tasks_of_model, device=on)
        return results
    chosen = _sites(store, filled, given)
    with ExitStack() as stack:
        if "tasks" in filled:
            from jobs.command.tasks import choose_tasks

            tasks = choose_tasks(store, given.pop("workers"), given.pop("address"))
            given["tasks"] = stack.enter_context(tasks)
        if filled.get("site") is str:
            return {site["site"]: job(**given, **site) for site in chosen}
        return job(**given, **chosen[0])


def _sites(store: FeatureStore, filled: Given, given: Given) -> list[Given]:
    """What each call is given for the option --site."""
    if filled.get("site") == OneSite:
        return [{"site": one_site(store, given.pop("site"))}]
    if "site" in filled:
        return [{"site": name} for name in sites_of(store, given.pop("site"))]
    if "sites" in filled:
        return [{"sites": sites_of(store, given.pop("site"))}]
    return [{}]


def _check_numbers(given: Given) -> None:
    """Whole numbers have 64 bits, others are finite, whatever a job makes of them."""
    for option, value in given.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise InputError(
                    f"{option} is a number of {number.bit_length():,} bits: give one of at most 64"
                )
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{option} is {number}: give a finite number")
