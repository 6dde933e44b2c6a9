"""Typed texts and stored contexts: kept, and looked up by token and by feature.

The model of a site is loaded when its first text comes, while other requests are answered; one text runs at
a time.
Shapes: T tokens of a text, F = d_sae.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.evaluation.elicit import elicited, ranked, selected_rows
from jobs.report.source import shortened
from jobs.report.strips import visible
from pipeline.evaluation.typed_text import Places, TextSession, TypedText, stored_text
from pipeline.store import FeatureStore
from schemas.errors import InputError

MOST_CHARACTERS, MOST_TEXTS = 20_000, 64
"""Of a text; and texts that are kept."""


@dataclass(frozen=True)
class Kept:
    """A text that ran, and its pieces: tokens `start` .. `stop` - 1 of each, whose characters they share."""

    site: str
    typed: TypedText
    pieces: list[tuple[int, int, str]]


class Texts:
    """The texts typed so far, by number."""

    def __init__(self, store: FeatureStore, places: Places) -> None:
        self._store, self._places = store, places
        self._sessions: dict[str, TextSession] = {}
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._began: float | None = None
        self._number = 0
        self._lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """Whether something runs now, and for how many seconds."""
        began = self._began
        return {"running": began is not None, "seconds": 0.0 if began is None else time.monotonic() - began}

    def run(self, site: str, text: str) -> int:
        """The number of a text, which has run; loads the model of the site where it is not loaded yet."""
        if len(text) > MOST_CHARACTERS:
            raise InputError(f"the text has {len(text):,} characters: type at most {MOST_CHARACTERS:,}")
        self._store.scan_features(site)  # raises if there is no feature table, before the model is loaded
        with self.session(site) as session:
            return self.keep(site, session.run(text))

    @contextmanager
    def session(self, site: str) -> Iterator[TextSession]:
        """The model and the SAE of a site, which are loaded when they are first used; one user at a time."""
        with self._lock:
            self._began = time.monotonic()
            try:
                if site not in self._sessions:
                    self._sessions[site] = TextSession(self._store, site, self._places)
                yield self._sessions[site]
            finally:
                self._began = None

    def open(self, site: str, context: int) -> int:
        """The number of a stored context, as if it had been typed; no model runs."""
        typed = stored_text(self._store, site, context)
        with self._lock:
            return self.keep(site, typed)

    def text(self, number: int) -> dict[str, Any]:
        """The pieces of a text, and which of them the site counts."""
        kept = self.kept(number)
        pieces = [
            {"text": text, "counted": bool(kept.typed.counted[start:stop].any())}
            for start, stop, text in kept.pieces
        ]
        return {"text": number, "site": kept.site, "tokens": len(kept.typed.token_ids), "pieces": pieces}

    def active(self, number: int, piece: int | None, by: str, n: int) -> dict[str, Any]:
        """The first `n` features that fire in a text, or in one of its pieces, by activation or surprise."""
        kept = self.kept(number)
        rows = selected_rows(self._store, kept.typed, None)
        if piece is not None:
            if not 0 <= piece < len(kept.pieces):
                raise InputError(f"piece {piece} is not in the text: it has {len(kept.pieces)}")
            start, stop, _ = kept.pieces[piece]
            rows = rows[(rows >= start) & (rows < stop)]
        if not len(rows):
            return {"features": [], "n": 0}
        table = elicited(self._store, kept.site, kept.typed, rows)
        chosen = ranked(table, {"surprise": "surprise_bits"}.get(by, by)).head(n)
        names = self._store.names(kept.site, chosen["feature"])
        rows_ = [
            row | {"name": shortened(names.name(row["feature"]))}
            for row in chosen.fill_nan(None).iter_rows(named=True)
        ]
        return {"features": rows_, "n": table.height}

    def values(self, number: int, feature: int) -> dict[str, Any]:
        """The activation of a feature at each piece of a text, and its largest |activation| in the store.

        Of a piece of several tokens it is the one of largest magnitude. `maximum` is 0 where the feature
        never fires in the store.
        """
        kept = self.kept(number)
        self._store.require_feature(kept.site, feature)
        values = kept.typed.activations[:, [feature]].toarray()[:, 0]
        parts = [values[start:stop] for start, stop, _ in kept.pieces]
        return {
            "values": [float(part[np.abs(part).argmax()]) for part in parts],
            "maximum": self._store.largest_activation(kept.site, feature),
        }

    def keep(self, site: str, typed: TypedText) -> int:
        """The number of a text that ran; for who has the `session`."""
        spans = self._store.vocabulary.spans(typed.token_ids.tolist())
        pieces = [(span.start, span.stop, visible(span.text)) for span in spans]
        self._number += 1
        self._kept[self._number] = Kept(site, typed, pieces)
        while len(self._kept) > MOST_TEXTS:
            self._kept.popitem(last=False)
        return self._number

    def kept(self, number: int) -> Kept:
        """A text by its number; InputError where it is kept no more."""
        if number not in self._kept:
            raise InputError(f"text {number} is not kept any more: type it again")
        return self._kept[number]
