"""Which likely mistake explains the data better than the SAE as it was loaded.

Every alternative is tried on the same rows; the verdict names one only where its unexplained variance is less
than CLEARLY times that of the SAE as loaded (and GAIN less), and gives both numbers. Fewer than FEW rows
tell nothing. A few massive rows are left out (`Rows.ordinary`), for they would decide alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

from pipeline.saes.encoding.encoder import Encoder
from pipeline.saes.quality.alternatives import SAMPLE, Alternative, Rows, alternatives, measured, published_k
from pipeline.saes.quality.reconstruction import FEW

ROWS = 4096
"""Rows on which a mistake is searched for."""

CLEARLY = 0.5
GAIN = 0.05
"""An alternative is clearly better when it leaves less than the share CLEARLY of the unexplained variance,
and explains at least GAIN more."""

ALIKE = (1.25, 0.01)
"""Of alternatives that leave equally much unexplained, within this factor and share, the first is named."""

EXPLAINS = 0.2
"""Explained variance below which an SAE is said to explain nothing."""

TOO_MANY = 2
"""Times the L0 that an SAE's files name, above which it was not loaded as it was trained."""

TOO_LONG = 1e4
"""Explained variances from here on are written with an exponent."""


class OtherRows(NamedTuple):
    """Rows from another hook, or of another choice of tokens, and what to change to get them."""

    name: str
    change: str
    rows: Rows


class Finding(NamedTuple):
    """One way to read the SAE, and its figures on n rows."""

    name: str
    change: str
    n: int
    l0: float
    explained_variance: float

    @property
    def unexplained(self) -> float:
        """Share of the variance that is left; infinite where the target does not vary."""
        left = 1 - self.explained_variance
        return math.inf if math.isnan(left) else left

    @property
    def is_measurable(self) -> bool:
        """Whether there are rows enough, and they vary."""
        return self.n >= FEW and not math.isnan(self.explained_variance)


class Diagnosis(NamedTuple):
    """What was tried and what it says."""

    as_loaded: Finding
    tried: tuple[Finding, ...]
    likely: Finding | None
    """The likely mistake."""
    verdict: str
    is_fine: bool
    """Whether no mistake was found; true of too few rows, too."""

    @property
    def is_measurable(self) -> bool:
        """Whether the rows are enough for a verdict."""
        return self.as_loaded.is_measurable


def diagnose(
    encoder: Encoder,
    rows: Rows,
    others: Iterable[OtherRows] = (),
    observe: Callable[[Finding], None] | None = None,
) -> Diagnosis:
    """Try every alternative on the rows (thinned to ROWS); `observe` is called with each as it is done.

    Alternatives that are no better, or no sparse code, on SAMPLE rows are left at that: a finding's n says on
    how many rows it was measured.
    """
    rows = rows.thinned(ROWS).ordinary()
    loaded = _finding(Alternative("as loaded", "", encoder, rows))
    on_sample = _finding(Alternative("as loaded", "", encoder, rows.thinned(SAMPLE)))
    tried = []
    elsewhere = (
        Alternative(name, change, encoder, there.thinned(ROWS).ordinary()) for name, change, there in others
    )
    for alternative in chain(elsewhere, alternatives(encoder, rows)):
        # a sample first: most alternatives are far worse, and need not be measured on all rows
        finding = _finding(alternative._replace(rows=alternative.rows.thinned(SAMPLE)))
        if finding.unexplained < on_sample.unexplained and _is_sparse(finding, on_sample, encoder):
            finding = _finding(alternative)
        tried.append(finding)
        if observe is not None:
            observe(finding)
    likely = _likely(loaded, tried, encoder) if loaded.is_measurable else None
    return Diagnosis(loaded, tuple(tried), likely, *_verdict(loaded, tried, likely, published_k(encoder)))


def _finding(alternative: Alternative) -> Finding:
    reconstruction = measured(alternative.encoder, alternative.rows)
    name, change = alternative.name, alternative.change
    return Finding(name, change, reconstruction.n, reconstruction.l0_mean, reconstruction.explained_variance)


def _is_sparse(finding: Finding, loaded: Finding, encoder: Encoder) -> bool:
    """Half as many active features as dimensions explain anything, and are no sparse code."""
    return finding.l0 <= max(encoder.d_model / 2, loaded.l0)


def _likely(loaded: Finding, tried: list[Finding], encoder: Encoder) -> Finding | None:
    """The first of the best alternatives, if they are clearly better than the SAE as loaded."""
    good = [
        finding
        for finding in tried
        if finding.is_measurable
        and finding.unexplained < min(CLEARLY * loaded.unexplained, loaded.unexplained - GAIN)
        and finding.explained_variance >= EXPLAINS
        and _is_sparse(finding, loaded, encoder)
    ]
    # alternatives come the special before the general, and a general one always explains a little more
    least = min((finding.unexplained for finding in good), default=0.0)
    factor, share = ALIKE
    return next((finding for finding in good if finding.unexplained <= factor * least + share), None)


def _verdict(
    loaded: Finding, tried: list[Finding], likely: Finding | None, published: set[int]
) -> tuple[str, bool]:
    """One or two sentences, and whether all is well; `published` are L0s that the SAE's files name."""
    if not loaded.is_measurable:
        return f"There are too few tokens to tell ({_figures(loaded)}): give more --tokens.", True
    if likely is not None:
        return (
            f"Likely mistake, {likely.name}: {likely.change}. As loaded: {_figures(loaded)}; with this "
            f"change: {_figures(likely)}.",
            False,
        )
    if loaded.explained_variance >= EXPLAINS and published and loaded.l0 > TOO_MANY * max(published):
        return (
            f"Too many features fire: {_figures(loaded)}, where the SAE's files name {max(published)}. Its "
            "TopK or its threshold is missing, or belongs to another SAE: check architecture, k and "
            "threshold.",
            False,
        )
    if loaded.explained_variance >= EXPLAINS:
        return (
            f"As loaded the SAE explains the data: {_figures(loaded)}; no alternative explains clearly more.",
            True,
        )
    best = min(tried, key=lambda finding: finding.unexplained, default=loaded)
    return (
        f"The SAE explains next to nothing here ({_figures(loaded)}), and no alternative explains the data "
        f"(best: {best.name}, {_figures(best)}): the model, the hook or the weights differ from those it was "
        "trained with.",
        False,
    )


def _figures(finding: Finding) -> str:
    """Explained variance, L0 and rows, for a sentence."""
    value = finding.explained_variance
    shown = f"{value:.2e}" if abs(value) >= TOO_LONG else f"{value:.3f}"
    return f"explained variance {shown}, L0 {finding.l0:.1f} on {finding.n:,} rows"
