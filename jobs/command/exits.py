"""How a command ends: its exit code, and what stands on stderr."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING

from jobs.command.endings import ENDINGS
from schemas.errors import InputError
from schemas.sentences import redacted, shorten, visible

if TYPE_CHECKING:
    import typer

CLOSED_PIPE = 141
"""Where nobody reads on, as a shell tells SIGPIPE."""
EXTRAS = {
    **dict.fromkeys(
        (
            "torch",
            "transformers",
            "transformer_lens",
            "datasets",
            "tokenizers",
            "safetensors",
            "huggingface_hub",
        ),
        "run",
    ),
    "ray": "ray",
    "sae_lens": "saelens",
}
"""Package that `pip install latentlake` leaves out -> the extra that brings it."""
LONG_NUMBER = "Exceeds the limit"
"""What Python says of a number of more than 4,300 digits."""


def run_app(app: typer.Typer, arguments: list[str] | None) -> None:
    """Run the command line; what the user can fix is one sentence on stderr and exit code 2.

    A fault of ours ends with its traceback and exit code 3; SIGINT and SIGTERM with 130 and 143, whatever
    libraries make of them; a pipe that is closed, as by `head`, with 141 and without a word.
    """
    warnings.showwarning = _warn
    os.environ["MPLBACKEND"] = "agg"  # no screen is drawn on; a notebook names one that may be missing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal's encoding lacks becomes a question mark
            stream.reconfigure(errors="replace")
    ENDINGS.begin()
    code: int | None = 3
    try:
        code = _command(app, arguments)
        try:  # here, for what the interpreter's own flush finds would end with a traceback
            sys.stdout.flush()
        except OSError as error:
            code = _storage(error)
            _write_nowhere()
    except SystemExit as stop:  # of typer, and of signals
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        code = 130
    finally:
        ENDINGS.end()
        sys.exit(ENDINGS.code or code)


def _command(app: typer.Typer, arguments: list[str] | None) -> int:
    """The exit code."""
    try:
        result = app(args=arguments, prog_name="latentlake", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:
        return _storage(error, arguments)
    except OverflowError as error:
        return _refuse(f"a number is too large ({error}): give a smaller one")
    except Exception as error:  # noqa: BLE001 - a fault of ours; 1 would be check-sae's verdict
        if type(error).__name__ == "NoArgsIsHelpError":  # click has printed the help of the group
            return 2
        if hasattr(error, "format_message"):  # of click, whichever typer brings along
            context, message = getattr(error, "ctx", None), " ".join(error.format_message().split())
            where = f" (see `{context.command_path} --help`)" if context is not None else ""
            return _refuse(f"{message.rstrip('.')}{where}")
        if (refused := _message(error, arguments)) is not None:
            return _refuse(refused)
        if ENDINGS.code is None:  # else a library made it of the signal
            traceback.print_exc()
        return 3


def _message(error: Exception, arguments: list[str] | None) -> str | None:
    """What else the user can fix; None of a fault of ours."""
    package = str(getattr(error, "name", None)).partition(".")[0].replace("-", "_")
    if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
        remedy = f'pip install "latentlake[{EXTRAS[package]}]"'
        return f"this needs the package {package}, which is not installed: {remedy}"
    if isinstance(error, ValueError) and str(error).startswith(LONG_NUMBER):
        return "a number has thousands of digits: give one of at most 64 bits"
    if type(error).__name__ == "Abort":
        return "stopped: no answer was given"
    return _system_message(error, arguments)


def _refuse(message: str) -> int:
    """Say what the user can fix."""
    sys.stderr.write(f"latentlake: {visible(shorten(redacted(message)))}\n")
    return 2


def _storage(error: OSError, arguments: list[str] | None = None) -> int:
    """What the operating system refuses."""
    if error.errno == errno.EPIPE and _is_closed():
        _write_nowhere()
        return CLOSED_PIPE
    return _refuse(_system_message(error, arguments) or str(error))


def _is_closed() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    import select

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def _write_nowhere() -> None:
    """The interpreter flushes at its end, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _system_message(error: Exception, arguments: list[str] | None) -> str | None:
    """What the system refused, with the path, or else the command; None where it refused nothing."""
    from schemas.storage_failures import file_of, storage_failure, system_error

    if not isinstance(error, OSError) and system_error(error) is None:
        return None
    command = " ".join(["latentlake", *(sys.argv[1:] if arguments is None else arguments)[:1]])
    path = file_of(error, f"the output of `{command}`")
    # A sentence of our own stands as it is; what the system says is put in words that name a remedy.
    own = isinstance(error, OSError) and error.strerror not in (None, os.strerror(error.errno or 0))
    failure = None if own else storage_failure(error, path, "read")
    if failure is not None:
        return str(failure)
    said = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return f"{path}: {said}; free or fix it and run again"


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a line, without the place in the code."""
    sys.stderr.write(f"warning: {visible(shorten(redacted(str(message))))}\n")
