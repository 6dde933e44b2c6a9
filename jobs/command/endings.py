"""Ctrl-C and SIGTERM end the program, whoever catches what the first one raises.

A signal's handler raises in the midst of whatever runs. That is how commands clean up after themselves; but
some code loses every exception: the callbacks of weak references and of the garbage collector, `__del__`, a
bare `except` of a library that tries an import. So a thread looks, some times a second, and the handler
raises anew where the program neither ends nor cleans up for it.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
import weakref
from types import FrameType
from typing import Any

from schemas.errors import EndedBySignal

AGAIN_S = 0.2
HELD_S = 30.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, as Python has it; of our own making, so that it is known again."""


class Terminated(EndedBySignal):
    """SIGTERM."""


OURS = (Interrupted, Terminated)


class Endings:
    """The two signals of this process: which came, and whether the program ends for it."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came first."""
        self._is_again = self._runs = self._is_over = False
        self._before: dict[int, Any] = {}
        self._raised: weakref.ref[BaseException] | None = None
        self._since = 0.0

    @property
    def code(self) -> int | None:
        """The exit code that the signal gives, as a shell reports it; None: none came."""
        return None if self.number is None else 128 + self.number

    def catch(self) -> None:
        """Take both signals, in the main thread, which alone may; before a run they end at once."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # a shell's job in the background ignores Ctrl-C
                self._before[number] = before
                signal.signal(number, self._come)

    def begin(self) -> None:
        """From here on a signal is raised, for there may be something to clean up."""
        self.number, self._runs, self._is_over = None, True, False
        self.catch()

    def end(self) -> None:
        """Nothing is left to be ended: the handlers are as they were before `begin`."""
        self._runs, self._is_over = False, True
        for number, before in self._before.items():
            signal.signal(number, before)

    def _come(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what a handler is given
        is_again, self._is_again = self._is_again, False
        # Before a run nothing waits to be cleaned up; a second look may come when all is over.
        if not self._runs:
            os._exit(128 + number)
        if is_again and self._is_over:
            return
        if self.number is None:
            self.number = number
            # Nothing is printed of our own exceptions where they are lost, for they come again.
            hook = sys.unraisablehook
            sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, OURS) else hook(lost)
            _thread.start_new_thread(self._look_again, (os.getpid(), threading.get_ident()))
        # Held weakly: the exception lives only while someone handles it or unwinds for it.
        error = Interrupted() if self.number == signal.SIGINT else Terminated(self.code)
        self._raised, self._since = weakref.ref(error), time.monotonic()
        try:
            raise error
        finally:
            del error  # or this frame would keep it

    def _look_again(self, process: int, main: int) -> None:
        """In a thread, for handlers run in the main one alone; not in a process that was forked from here."""
        while not self._is_over and os.getpid() == process and self.number is not None:
            time.sleep(AGAIN_S)
            is_ours = signal.getsignal(self.number) == self._come  # else a library has put its own, or none
            if is_ours and not self._is_over and not self._is_on_its_way(main):
                self._is_again = True
                signal.pthread_kill(main, self.number)

    def _is_on_its_way(self, main: int) -> bool:
        """Whether the main thread ends: a `finally` or an `except` for the signal runs there.

        Ray raises an exception of its own for the handler's, so any of either kind counts; extensions hide
        what is handled, but ours is held by who unwinds for it (one that is merely kept counts for a while).
        """
        active: Any = sys._current_exceptions().get(main)  # noqa: SLF001 - documented
        error = active[1] if isinstance(active, tuple) else active  # until Python 3.11 as `sys.exc_info`
        while error is not None:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                return True
            error = error.__context__
        is_held = self._raised is not None and self._raised() is not None
        return is_held and time.monotonic() - self._since < HELD_S


ENDINGS = Endings()
