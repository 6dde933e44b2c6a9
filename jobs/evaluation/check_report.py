"""What `latentlake check-sae` prints and writes: progress, the table, the verdict, the JSON file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from jobs.terminal.console import console, say
from pipeline.evaluation.sae_check import Losses
from pipeline.saes.quality.reconstruction import MASSIVE, Reconstruction

if TYPE_CHECKING:
    from jobs.evaluation.check_sae import Report

L0_FACTOR = 2.0
"""An L0 further than this factor from the card's is worth a sentence."""

DECIDE = 0.05
"""Massive rows that change the explained variance by more than this are worth one."""


def show(report: Report) -> None:
    """The table, and one or two sentences."""
    console.print(_table(report))
    if isinstance(report.losses, str):
        say(f"No losses: {escape(report.losses)}")
    for line in sentences(report):
        say(escape(line))
    colour = "green" if report.is_fine else "red"
    say(f"[{colour}]{escape(report.diagnosis.verdict)}[/]")


def sentences(report: Report) -> list[str]:
    """Notes printed with the verdict: a card that differs, special tokens that dominate."""
    lines = [note for note in report.about.notes if note]
    card, l0 = report.about.card.get("l0"), report.figures.l0_mean
    if card and not 1 / L0_FACTOR <= l0 / card <= L0_FACTOR:
        lines.append(f"L0 is {l0:.1f}, but its card says {card:g}.")
    if sentence := massive_rows(report.figures):
        lines.append(sentence)
    lost = report.diagnosis.as_loaded.explained_variance - report.with_special
    if report.is_fine and lost > 0.1:
        lines.append(f"Leave special tokens out: with them, explained variance is {report.with_special:.3f}.")
    return lines


def massive_rows(figures: Reconstruction) -> str | None:
    """A sentence where massive rows decide what the explained variance of all rows is."""
    without = figures.rest.explained_variance
    # Not `<=`: where either is NaN nothing is said.
    if not abs(figures.explained_variance - without) > DECIDE:
        return None
    are_few = figures.explained.of_rest is not None
    verdict = "the verdict leaves them out" if are_few else "there are too many of them to leave out"
    return (
        f"{figures.massive:,} of {figures.n:,} rows ({figures.massive / figures.n:.2%}) decide the explained "
        f"variance: their norm is above {MASSIVE:g} times the median (attention sinks?). With them it is "
        f"{figures.explained_variance:.3f}, without them {without:.3f}; {verdict}."
    )


def _table(report: Report) -> Table:
    """Figures, next to the card's where there is one."""
    card = report.about.card
    where = " -> ".join(dict.fromkeys(report.place))
    table = Table(title=f"{escape(str(report.run.sites[0].sae))} at {escape(where)}", title_justify="left")
    for column in ("figure", "measured", *(("its card",) if card else ())):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, value, in_card in _figures(report):
        published = [f"{card[in_card]:g}" if in_card in card else ""] if card else []
        table.add_row(name, value, *published)
    return table


def _figures(report: Report) -> list[tuple[str, str, str]]:
    """Name, value, and the name that a card gives it."""
    figures = report.figures
    share = figures.dead / len(figures.active)
    without = f"explained variance without {figures.massive:,} rows above {MASSIVE:g} times the median norm"
    rows = [
        ("tokens counted", f"{figures.n:,}", ""),
        ("L0, mean", f"{figures.l0_mean:.1f}", "l0"),
        ("L0, median", f"{figures.l0_median:g}", ""),
        (
            f"features that never fired on {figures.n:,} tokens",
            f"{share:.2%} ({figures.dead:,} of {len(figures.active):,})",
            "dead",
        ),
        ("explained variance", f"{figures.explained_variance:.4f}", "explained_variance"),
        *([(without, f"{figures.rest.explained_variance:.4f}", "")] if figures.massive else []),
        ("squared error per element", f"{figures.mse:.4g}", "mse"),
        ("cosine, mean", f"{figures.cosine:.4f}", "cosine"),
        ("explained variance, including special tokens", f"{report.with_special:.4f}", ""),
    ]
    if isinstance(report.losses, Losses):
        rows += [
            (f"loss of {report.losses.n:,} predictions", f"{report.losses.clean:.4f}", ""),
            ("loss, x replaced by its reconstruction", f"{report.losses.patched:.4f}", ""),
            ("loss, x replaced by zeros", f"{report.losses.zero:.4f}", ""),
            ("loss recovered", f"{report.losses.recovered:.4f}", "loss_recovered"),
        ]
    return rows


def as_json(report: Report) -> dict[str, Any]:
    """All numbers; what is not a number is null."""
    reconstruction, losses = report.figures, report.losses
    figures = {
        "tokens": reconstruction.n,
        "l0_mean": reconstruction.l0_mean,
        "l0_median": reconstruction.l0_median,
        "dead": reconstruction.dead,
        "dead_share": reconstruction.dead / len(reconstruction.active),
        "explained_variance": reconstruction.explained_variance,
        "massive_rows": reconstruction.massive,
        "explained_variance_without_massive_rows": reconstruction.rest.explained_variance,
        "mse": reconstruction.mse,
        "cosine": reconstruction.cosine,
        "explained_variance_with_special_tokens": report.with_special,
    }
    content = {
        "sae": report.run.sites[0].sae,
        "model": report.run.model.path,
        "hook_name": report.place.read,
        "hook_name_out": report.place.target,
        "corpus": report.run.corpus.path,
        "context_size": report.lake.context_size,
        "prepend_bos": report.lake.bos_id is not None,
        "figures": figures,
        "losses": losses._asdict() | {"recovered": losses.recovered} if isinstance(losses, Losses) else None,
        "no_losses": None if isinstance(losses, Losses) else losses,
        "card": dict(report.about.card),
        "as_loaded": report.diagnosis.as_loaded._asdict(),
        "alternatives": [finding._asdict() for finding in report.diagnosis.tried],
        "likely": report.diagnosis.likely._asdict() if report.diagnosis.likely else None,
        "verdict": report.diagnosis.verdict,
        "is_fine": report.is_fine,
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
