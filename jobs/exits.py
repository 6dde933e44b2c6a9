"""How a command ends: its exit code, and what stands on stderr."""

from __future__ import annotations

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
    except OSError as error:
        message = (
            f"{error.filename or 'input or output'}: {error.strerror or error}; free or fix it and run again"
        )
    except Exception:  # noqa: BLE001 - a fault of ours; 1 would be check-sae's verdict
        traceback.print_exc()
        sys.exit(3)
    sys.stderr.write(f"latentlake: {message}\n")
    sys.exit(2)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a line, without the place in the code."""
    sys.stderr.write(f"warning: {message}\n")
