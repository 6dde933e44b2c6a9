"""Prompts that are continued by a model, as it is and with features changed: each in a thread of its own.

One of them, or of the typed texts, runs at a time; the others wait. What was written is kept as two texts of
`Texts`, prompt and continuation, so that features can be looked up in them. The model reads a text up to the
hook as it would without the changes there: what fires at it is what was there before they were made.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.explore.typed import Texts
from jobs.report.strips import visible
from pipeline.evaluation.steering import Change, Sampling, require_text
from pipeline.store import FeatureStore
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.evaluation.generation import Writing
    from pipeline.evaluation.typed_text import TextSession

MOST_WAITING, MOST_KEPT = 8, 32
"""Prompts that wait for the model at the same time; and prompts that are kept."""


@dataclass
class Steering:
    """A prompt and what becomes of it; `texts` are the numbers of the plain and of the steered text."""

    site: str
    prompt: str
    changes: list[Change]
    sampling: Sampling
    writing: Writing | None = None
    texts: tuple[int, int] | None = None
    error: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


class Steerings:
    """The prompts continued so far, by number."""

    def __init__(self, store: FeatureStore, texts: Texts) -> None:
        self._store, self._texts = store, texts
        self._kept: OrderedDict[int, Steering] = OrderedDict()
        self._number = 0
        self._lock = threading.Lock()

    def start(self, site: str, prompt: str, changes: list[Change], sampling: Sampling) -> int:
        """The number of a prompt that is continued from now on, or when those before it are done.

        InputError for what the store alone shows to be impossible; what the model shows is its `error`.
        """
        require_text(self._store, site)
        sampling.check()
        for change in changes:
            self._store.require_feature(site, change.feature)
        steering = Steering(site, prompt, changes, sampling)
        with self._lock:
            waiting = sum(not other.done.is_set() for other in self._kept.values())
            if waiting >= MOST_WAITING:
                raise InputError(f"{waiting} prompts wait for the model: cancel one, or try again later")
            self._number += 1
            number = self._number
            self._kept[number] = steering
            done = [other for other, kept in self._kept.items() if kept.done.is_set()]
            for other in done[: max(0, len(self._kept) - MOST_KEPT)]:
                del self._kept[other]
        threading.Thread(target=self._run, args=(steering,), daemon=True).start()
        return number

    def state(self, number: int) -> dict[str, Any]:
        """What was written so far; once it is done, the texts too, or why there are none."""
        steering = self._steering(number)
        done = steering.done.is_set()
        state: dict[str, Any] = {
            "steering": number,
            "site": steering.site,
            "done": done,
            "cancelled": steering.cancelled.is_set(),
            "error": steering.error,
            "tokens": 0,
            "n_tokens": steering.sampling.n_tokens,
            "plain": "",
            "steered": "",
        }
        if steering.writing is not None:
            result = steering.writing.result()
            state["tokens"] = max(len(result.plain_ids), len(result.steered_ids))
            state |= {"plain": visible(result.plain), "steered": visible(result.steered)}
        if done and steering.texts is not None:
            state["texts"] = [self._text(steering, text) for text in steering.texts]
        return state

    def cancel(self, number: int) -> None:
        """Write no further token; what was written stays."""
        self._steering(number).cancelled.set()

    def _run(self, steering: Steering) -> None:
        """Write, and keep what was written; in a thread of its own."""
        try:
            with self._texts.session(steering.site) as session:
                if not steering.cancelled.is_set():
                    self._write(steering, session)
        except InputError as error:
            steering.error = str(error)
        except BaseException:
            steering.error = "the model failed: the terminal of `latentlake explore` shows how"
            raise
        finally:
            steering.done.set()

    def _write(self, steering: Steering, session: TextSession) -> None:
        from pipeline.evaluation.generation import Writing

        known = self._plain_text(steering)
        writing = Writing(session, steering.prompt, steering.changes, steering.sampling, known)
        steering.writing = writing
        for _ in writing.steps():
            if steering.cancelled.is_set():
                break
        plain, steered = (
            self._texts.keep(steering.site, session.read(np.array([*writing.prompt_ids, *ids], np.int32)))
            for ids in (writing.plain, writing.steered)
        )
        steering.texts = (plain, steered)

    def _plain_text(self, steering: Steering) -> list[int]:
        """The plain text as far as the same prompt had it before: it does not depend on the changes."""
        with self._lock:
            others = list(self._kept.values())
        same = (steering.site, steering.prompt, steering.sampling)
        written = [
            other.writing.plain
            for other in others
            if other.writing is not None and (other.site, other.prompt, other.sampling) == same
        ]
        return max(written, key=len, default=[])

    def _text(self, steering: Steering, number: int) -> dict[str, Any]:
        """A text of `Texts`, and how many of its pieces are the prompt's."""
        assert steering.writing is not None
        length = len(steering.writing.prompt_ids)
        pieces = self._texts.kept(number).pieces
        return self._texts.text(number) | {"prompt": sum(start < length for start, _, _ in pieces)}

    def _steering(self, number: int) -> Steering:
        if number not in self._kept:
            raise InputError(f"steering {number} is not kept any more: run it again")
        return self._kept[number]
