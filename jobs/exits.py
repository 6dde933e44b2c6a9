"""How a command ends: its exit code, and what stands on stderr."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from functools import partial

import typer

from schemas.errors import EndedBySignal


def run_app(app: typer.Typer, arguments: list[str] | None) -> None:
    """Run the command line; what the user can mend is one sentence on stderr and exit code 2.

    A fault of ours ends with its traceback and exit code 3.
    """
    warnings.showwarning = _warn
    asked_to_end: list[int] = []
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, partial(_end, asked_to_end))
    try:
        _command(app, arguments)
    finally:
        if asked_to_end:  # whatever Ray and click made of it
            sys.exit(128 + asked_to_end[0])


def _end(asked: list[int], number: int, frame: object) -> None:  # noqa: ARG001 - what a handler is given
    """End at once, on the way out ending the workers: what is committed stays, so nothing else needs care."""
    asked.append(number)
    raise EndedBySignal(128 + number)


def _command(app: typer.Typer, arguments: list[str] | None) -> None:
    from schemas.errors import InputError

    try:
        app(args=arguments, prog_name="latentlake")
    except InputError as error:
        message = str(error)
    except Exception as error:  # noqa: BLE001 - a fault of ours; 1 would be check-sae's verdict
        system = _system_message(error, arguments)
        if system is None:
            traceback.print_exc()
            sys.exit(3)
        message = system
    sys.stderr.write(f"latentlake: {message}\n")
    sys.exit(2)


def _system_message(error: Exception, arguments: list[str] | None) -> str | None:
    """What the system refused, with the path, or else the command; None where it refused nothing."""
    from schemas.storage_failures import storage_failure, system_error

    if not isinstance(error, OSError) and system_error(error) is None:
        return None
    command = " ".join(["latentlake", *(sys.argv[1:] if arguments is None else arguments)[:1]])
    path = getattr(error, "filename", None) or f"a file of `{command}`"
    own = isinstance(error, OSError) and error.strerror not in (None, os.strerror(error.errno or 0))
    failure = None if own else storage_failure(error, path, "read")
    if failure is not None:
        return str(failure)
    said = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return f"{path}: {said}; free or fix it and run again"


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a line, without the place in the code."""
    sys.stderr.write(f"warning: {message}\n")
