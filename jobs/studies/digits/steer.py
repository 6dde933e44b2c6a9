"""`latentlake steer STORE --set 12=3`: features set manually, and the image and classes that come of it.

One starts from nothing, or from the features of a row of the store; sets some; and sees x decoded, as an
image, and the classifier's probabilities for it. Needs no model but its last layer, which NumPy reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from rich.markup import escape

from jobs.command.options import ClassifierFolder, OneSite
from jobs.figures.images import draw_steered
from jobs.figures.plots import METADATA, drawing, render
from jobs.tables.feature_images import ReconstructionDecoders, decoders_of
from jobs.terminal.console import say
from jobs.terminal.outputs import require_file, write_file
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.values import F64

SHOWN = 3
_SETTING = re.compile(r"([0-9]{1,9})=([+*]?)(-?[0-9.]+(?:[eE][+-]?[0-9]+)?)")


@dataclass(frozen=True)
class Steered:
    """Before and after: activations [F], values of x [D], pixels [P] and probabilities of classes [C]."""

    activations: tuple[F64, F64]
    values: tuple[F64, F64]
    pixels: tuple[F64, F64]
    probabilities: tuple[F64, F64]


def steer(
    store: FeatureStore,
    site: OneSite,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="FEATURE=VALUE",
            help="Set (=3), add (=+3) or multiply (=*3) a feature; may be repeated.",
        ),
    ],
    row: Annotated[
        int | None, typer.Option(help="Row of the lake to start from. Default: all features at 0.", min=0)
    ] = None,
    *,
    only: Annotated[bool, typer.Option("--only", help="Set all other features to 0.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Draw the images before and after to this file: .png or .svg."
        ),
    ] = None,
    model: ClassifierFolder = None,
) -> Steered:
    """Print and draw what comes of the settings; InputError for features and rows that are not there, for
    numbers that are too large, and for an `out` that cannot be written.
    """
    kind = "png" if out is None else out.suffix[1:]
    if kind not in METADATA:
        raise InputError(f"--out {str(out)!r} must end with {' or '.join(f'.{known}' for known in METADATA)}")
    require_file(out, "--out")
    decoders = decoders_of(store, site, model)
    before = activations_at(store, site, row)
    after = changed(before, settings, site)
    if only:
        set_features = [int(setting.partition("=")[0]) for setting in settings]
        after = np.where(np.isin(np.arange(len(after)), set_features), after, 0.0)
    result = steered(decoders, before, after)
    start = f"{'all features at 0' if row is None else f'row {row}'}; {' '.join(settings)}"
    say(f"[bold]steer[/] {site}: {escape(start)}")
    for when, shares in zip(("before", "after"), result.probabilities, strict=True):
        say(f"  {when}: {escape(likeliest_classes(shares, decoders.image_decoder.classes))}")
    if out is not None:
        write_file(out, _drawn(store, kind, site, start, result, decoders), "--out")
        say(f"  {escape(str(out))}")
    return result


def activations_at(store: FeatureStore, site: str, row: int | None) -> F64:
    """The features [F] of a row of the lake; all 0 where none is named."""
    d_sae = store.site(site).d_sae
    if row is None:
        return np.zeros(d_sae)
    for record in store.committed(site):
        if record.row_start <= row < record.row_start + record.rows:
            own = store.csr(site, record.name)[row - record.row_start].toarray()[0]
            return np.asarray(own, np.float64)
    last = max((record.row_start + record.rows for record in store.committed(site)), default=0)
    raise InputError(f"--row {row} is in no committed shard of site {site!r}: rows go from 0 to {last - 1}")


def changed(activations: F64, settings: Sequence[str], site: str) -> F64:
    """The activations with `F=V` set, `F=+V` added, `F=*V` multiplied, one after another."""
    if not settings:
        raise InputError("nothing is set: give --set FEATURE=VALUE, such as --set 12=3")
    new = activations.copy()
    for setting in settings:
        match = _SETTING.fullmatch(setting)
        if not match:
            raise InputError(f"--set {setting!r} is not FEATURE=VALUE, FEATURE=+VALUE or FEATURE=*VALUE")
        feature, how = int(match[1]), match[2]
        if feature >= len(new):
            raise InputError(
                f"feature {feature} is not in site {site!r}: its features are 0 to {len(new) - 1}"
            )
        try:
            value = float(match[3])
        except ValueError:  # such as 1.2.3
            raise InputError(f"--set {setting!r}: {match[3]!r} is not a number") from None
        if not np.isfinite(value):
            raise InputError(f"--set {setting!r}: {match[3]!r} is not a finite number")
        with np.errstate(over="ignore"):  # `steered` reports it
            new[feature] = {"": value, "+": new[feature] + value, "*": new[feature] * value}[how]
    return new


def steered(decoders: ReconstructionDecoders, before: F64, after: F64) -> Steered:
    """x, pixels and probabilities of both: x' = activations @ W_dec + b_dec."""
    both = np.stack([before, after])
    with np.errstate(over="ignore", invalid="ignore"):
        values = both @ decoders.w_dec.astype(np.float64) + decoders.b_dec
        pixels, shares = decoders.image_decoder.images(values), decoders.image_decoder.probabilities(values)
    if not (np.isfinite(values).all() and np.isfinite(pixels).all() and np.isfinite(shares).all()):
        raise InputError("--set: the result of these numbers is too large to compute: give smaller ones")
    return Steered(*((part[0], part[1]) for part in (both, values, pixels, shares)))


def likeliest_classes(shares: F64, classes: Sequence[str]) -> str:
    """The likeliest classes, in words."""
    best = np.argsort(-shares, kind="stable")[:SHOWN].tolist()
    return ", ".join(f"{classes[place]} {shares[place]:.0%}" for place in best)


def _drawn(
    store: FeatureStore, kind: str, site: str, start: str, result: Steered, decoders: ReconstructionDecoders
) -> bytes:
    height, width = decoders.sides
    table = pl.DataFrame(
        {
            "when": ["before", "after", "after - before"],
            "image": [
                pixels.reshape(height * width, -1).mean(axis=1).tolist()
                for pixels in (*result.pixels, result.pixels[1] - result.pixels[0])
            ],
            "classes": [
                *(likeliest_classes(some, decoders.image_decoder.classes) for some in result.probabilities),
                "",
            ],
            "height": [height] * 3,
            "width": [width] * 3,
        }
    )
    with drawing(store, site):
        return render(draw_steered(table, site, start), kind)
