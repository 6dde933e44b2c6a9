"""Code that is not ours: what it raises becomes a sentence, and what it may not do is kept from it.

A model is run by TransformerLens, by transformers, or by a module of the user. Each may raise anything, end
the process, or, by the name of an architecture in a config.json, run a folder's own code or install packages.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from pipeline.models.device import is_broken, is_out_of_memory
from schemas.errors import EndedBySignal, InputError

BUILD = "use another model, or build this one in a function and set model.loader: torch_module"
"""The remedy where a loader cannot run a model."""

FORBIDDEN = (
    ("transformers.dynamic_module_utils", "get_class_from_dynamic_module"),
    ("subprocess", "check_call"),
)
"""What TransformerLens may not call: its adapters import a model folder's own code by the name of an
architecture, whether or not remote code is trusted, and it runs pip where an image processor lacks
torchvision."""


@contextmanager
def refusing(sentence: str, remedy: str = "") -> Iterator[None]:
    """What is raised in the block, or would end the process there, is an InputError.

    It says `<sentence> (<error>): <remedy>`, without a remedy `<sentence>: <error>`. Signals and our own
    errors pass.
    """
    with _interrupts() as interrupted:
        try:
            yield
        except (InputError, EndedBySignal):
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and interrupted:
                raise
            refuse(sentence, remedy, error)


def refuse(sentence: str, remedy: str, error: BaseException) -> NoReturn:
    """InputError with the error's first sentence, as lists may follow."""
    reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:300]
    why = f"{type(error).__name__}: {reason}".removesuffix(": ")
    raise InputError(f"{sentence} ({why}): {remedy}" if remedy else f"{sentence}: {why}") from error


def refuse_run(path: str, loader: str, error: BaseException) -> None:
    """InputError for what a model raises while it runs; what a GPU raises that is full or broken passes."""
    if isinstance(error, InputError | EndedBySignal) or is_out_of_memory(error) or is_broken(error):
        return
    remedy = "" if loader == "torch_module" else BUILD
    refuse(f"model {path} cannot be run by model.loader: {loader}", remedy, error)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C as it comes, for code may raise KeyboardInterrupt itself; other threads get no signals."""
    seen: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield seen
        return

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def without_foreign_code() -> Iterator[None]:
    """What is FORBIDDEN raises PermissionError in the block; TransformerLens then goes on without it."""

    def forbidden(*_: object, **__: object) -> NoReturn:
        raise PermissionError("loading a model must not run code of its own or install anything")

    places = [(importlib.import_module(module), name) for module, name in FORBIDDEN]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, forbidden)
        yield
    finally:
        for (module, name), own in zip(places, before, strict=True):
            setattr(module, name, own)
