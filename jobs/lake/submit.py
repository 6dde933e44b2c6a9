"""`latentlake submit RUN.yaml --address …`: run on a Ray cluster.

It streams the log and exits with the driver's exit code.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from jobs.command.options import RunPath
from jobs.terminal.console import say
from jobs.terminal.progress import size
from schemas import __version__
from schemas.errors import InputError
from schemas.run.file import load_run_file
from schemas.sentences import redacted, several, visible

INTERRUPTED = 130


def command(
    path: RunPath,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTIONS]", help="Options of `latentlake run` on the cluster."),
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS",
            help="URL of the cluster's dashboard, http://host:8265 (not the Ray address).",
        ),
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option(help="Folder that is copied to the cluster; it must contain the run file.")
    ] = Path(),
) -> None:
    """Submit, and end with the driver's exit code."""
    raise typer.Exit(submit(path, address, working_dir, options or ()))


def submit(path: Path, address: str, working_dir: Path = Path(), options: Sequence[str] = ()) -> int:
    """Submit `latentlake run RUN.yaml OPTIONS…` with `working_dir` as its folder; the driver's exit code.

    A folder that holds latentlake's packages, as a checkout does, runs those: `python -m jobs run …`.
    An interrupt leaves the job running. Raises InputError for a run file that the cluster could not use, and
    for a cluster that does not answer.
    """
    run, inside = load_run_file(path), _inside(path, working_dir)
    # What is written into the job's copy of the working directory is lost with it.
    root = run.store.root
    if root.startswith("memory://"):
        raise InputError(
            f"store.root {root!r} lies in the memory of one process and ends with it: give an absolute path "
            "that all nodes share, or an object store (s3://…)"
        )
    if "://" not in root and not Path(root).is_absolute():
        raise InputError(
            f"store.root {root!r} is relative, which on a cluster is inside the job's temporary copy of the "
            "working directory: give an absolute path that all nodes share, or an object store (s3://…)"
        )
    from pipeline.executors.on_ray.package import check_package, has_own_jobs, hiding_packages
    from pipeline.executors.on_ray.submission import JobServer

    folder = working_dir.resolve()
    left_out = hiding_packages(folder)
    for package in left_out:
        say(
            f"[yellow]note[/]: {package}/ is not uploaded, because it would hide latentlake's own package "
            "there"
        )
    files, n_bytes = check_package(folder, left_out)
    server = JobServer(address)
    program = ["python", "-m", "jobs"] if has_own_jobs(folder) else ["latentlake"]
    entrypoint = shlex.join([*program, "run", inside, *options])
    metadata = {"latentlake": __version__, "run_file": inside, "store": root}
    say(f"uploading {several(files, 'file')} of {escape(str(folder))}, {size(n_bytes)} before compression")
    job = server.submit(entrypoint, folder, left_out, run.store.pass_name or path.stem, metadata)
    say(f"[bold]submitted[/] {escape(job)}: {escape(entrypoint)}")
    try:
        code = server.follow(job, _write)
    except KeyboardInterrupt:
        where = escape(f"{job} --address {address}")
        say(f"\n{escape(job)} continues: `ray job logs --follow {where}` follows it,")
        say(f"`ray job stop {where}` stops it")
        return INTERRUPTED
    say(f"[bold]{escape(job)}[/] ended with exit code {code}")
    return code


def _inside(path: Path, working_dir: Path) -> str:
    """The run file as the driver will find it, which sees a copy of the working directory alone."""
    if not working_dir.is_dir():
        raise InputError(f"--working-dir {working_dir} is not a folder")
    folder = working_dir.resolve()
    if not path.resolve().is_relative_to(folder):
        raise InputError(
            f"{path} is not in {folder}, which is copied to the cluster: move it there, or give its folder "
            "as --working-dir"
        )
    return path.resolve().relative_to(folder).as_posix()


def _write(text: str) -> None:
    sys.stdout.write(redacted(visible(text)))
    sys.stdout.flush()
