"""The features of a text that a model has just read, as a notebook shows them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from jobs.evaluation.elicit import elicited, ranked, selected_rows, shaded
from jobs.notebook.strips import Strips
from jobs.terminal.names import labelled
from schemas.sentences import several, visible

if TYPE_CHECKING:
    from jobs.notebook.lake import Lake
    from pipeline.evaluation.typed_text import TypedText

SHOWN = 10


class Elicited:
    """What fires in a text (`Lake.elicit`); a cell shows the strongest features.

    `typed`: its token ids int32 [T], BOS not among them, and activations float32 [T, d_sae], sparse.
    `table`: a row per feature that fires (`jobs.evaluation.elicit.ELICITED`).
    """

    def __init__(self, lake: Lake, site: str, text: str, typed: TypedText, position: int | None) -> None:
        """InputError for a position that is not in the text, or that the site does not count."""
        self.lake, self.site, self.text, self.typed = lake, site, text, typed
        rows = selected_rows(lake, typed, position)
        self.position = None if position is None else int(rows[0])
        self.table = elicited(lake, site, typed, rows)

    @property
    def tokens(self) -> list[str]:
        """The text of each token."""
        return self.lake.pieces(self.typed.token_ids.tolist())

    def top(self, n: int = SHOWN, by: str = "activation") -> pl.DataFrame:
        """The first `n` features with their names, by `activation` or `surprise_bits`."""
        return self.lake.with_names(ranked(self.table, by).head(n), self.site)

    def values(self, feature: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The activation of a feature at each token, float32 [T]."""
        self.lake.require_feature(self.site, feature)
        values: np.ndarray[tuple[int], np.dtype[np.float32]]
        values = self.typed.activations[:, [feature]].toarray()[:, 0]
        return values

    def strips(self, *features: int, maximum: float | None = None) -> Strips:
        """The text shaded by each of some features, or by the three most surprising ones.

        Full shade is `maximum`, or else the feature's largest |activation| in the text and the store.
        """
        chosen = features or tuple(ranked(self.table, "surprise_bits").head(3)["feature"])
        names = self.lake.names(self.site, chosen)
        each = [shaded(self.lake, self.site, self.typed, f, maximum, self.position) for f in chosen]
        strips, maxima = zip(*each, strict=True) if each else ((), ())
        heads = [
            f"feature {labelled(names, feature)}; full shade: {most:.4g}"
            for feature, most in zip(chosen, maxima, strict=True)
        ]
        return Strips(f"{several(len(self.typed.token_ids), 'token')} in {self.site}", heads, strips, maxima)

    def __repr__(self) -> str:
        return f"{self._summary()}\n{self.top()}"

    def _repr_html_(self) -> str:
        html = self.strips()._repr_html_()
        return f"<p>{escape(visible(self._summary()))}</p>{html}{self.top()._repr_html_()}"

    def _summary(self) -> str:
        fire = several(self.table.height, "feature")
        place = f"position {self.position}" if self.position is not None else "the mean over its tokens"
        return f"{several(len(self.typed.token_ids), 'token')}, {fire} of {self.site} at {place}: {self.text}"
