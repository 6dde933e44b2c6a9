"""Commands that show features: `top`, `feature`, `neighbours`, `elicit`; `examples` finds what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.command.options import (
    Address,
    FigureLanguage,
    SiteName,
    StoreText,
    Workers,
    one_site,
    open_store,
    sites_of,
)

views = typer.Typer()
PANEL = "A look at the store"

Feature = Annotated[int, typer.Argument(help="Number of the feature.")]
Before = Annotated[int, typer.Option(help="Tokens shown before the firing one.", min=0)]
After = Annotated[int, typer.Option(help="Tokens shown after the firing one.", min=0)]
Maximum = Annotated[
    float | None,
    typer.Option(help="Activation of full shade. Default: the feature's strongest.", min=0),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the strips to a page, shaded.")
]


@views.command(rich_help_panel=PANEL)
def top(
    store: StoreText,
    feature: Feature,
    site: SiteName = None,
    k: Annotated[int, typer.Option("-k", help="How many rows.", min=1)] = 20,
    where: Annotated[
        list[str] | None, typer.Option(help="Keep rows with this label, as COLUMN=VALUE; may be repeated.")
    ] = None,
    before: Before = 30,
    after: After = 2,
    one_per_document: Annotated[
        bool, typer.Option("--one-per-document", help="Only the strongest row of each document.")
    ] = False,
    strip: Annotated[bool, typer.Option("--strip", help="Shade every token by its activation.")] = False,
    maximum: Maximum = None,
    html: Html = None,
) -> None:
    """The strongest contexts of a feature, the firing token marked."""
    from jobs.views.top import top as job

    opened, _ = open_store(store)
    job(
        opened,
        one_site(opened, site),
        feature,
        k=k,
        where=where or [],
        before=before,
        after=after,
        one_per_document=one_per_document,
        shaded=strip,
        maximum=maximum,
        html=html,
    )


@views.command(rich_help_panel=PANEL)
def feature(
    store: StoreText,
    feature: Feature,
    site: SiteName = None,
    k: Annotated[int, typer.Option("-k", help="Examples of each kind.", min=1)] = 5,
    before: Before = 30,
    after: After = 2,
) -> None:
    """Everything about one feature that the store's tables tell, on a page."""
    from jobs.views.feature import show_feature

    opened, _ = open_store(store)
    show_feature(opened, one_site(opened, site), feature, k=k, before=before, after=after)


@views.command(rich_help_panel=PANEL)
def examples(
    store: StoreText,
    site: SiteName = None,
    k: Annotated[int, typer.Option("-k", help="Documents of each feature.", min=1, max=65535)] = 20,
    random: Annotated[
        int, typer.Option(help="Contexts of each feature in which it does not fire.", min=0, max=65535)
    ] = 10,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """More examples: the strongest row of each document, and contexts in which a feature does not fire."""
    from jobs.command.tasks import choose_tasks
    from jobs.tables.examples import examples as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, tasks, k=k, random=random)


@views.command(rich_help_panel=PANEL)
def elicit(
    store: StoreText,
    text: Annotated[str, typer.Argument(help="The text that the model reads.")],
    site: SiteName = None,
    position: Annotated[
        int | None,
        typer.Option(
            help="One position: 0 is the first token after BOS, -1 the last. Default: the mean over all."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Features shown of each ranking.", min=1)] = 10,
    feature: Annotated[
        list[int] | None,
        typer.Option(help="Show the text shaded by this feature instead; may be repeated."),
    ] = None,
    maximum: Maximum = None,
    html: Html = None,
    model: Annotated[
        str | None, typer.Option(help="Where the pass's model lies now. Default: where it lay.")
    ] = None,
    sae: Annotated[str | None, typer.Option(help="Where the site's SAE lies now.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Where the lake's tokenizer lies now.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """The features of a typed text, by activation and by surprise; runs the store's model and SAE."""
    from jobs.evaluation.elicit import Asked
    from jobs.evaluation.elicit import elicit as job
    from pipeline.evaluation.typed_text import Places

    opened, _ = open_store(store)
    asked = Asked(text, position, n, tuple(feature or ()), maximum, html)
    job(opened, one_site(opened, site), asked, Places(model, sae, tokenizer, device))


@views.command(rich_help_panel=PANEL)
def neighbours(
    store: StoreText,
    feature: Annotated[int, typer.Argument(help="Number of the feature.")],
    site: SiteName = None,
    by: Annotated[str, typer.Option(help="jaccard, npmi, phi, conditional or cosine.")] = "jaccard",
    k: Annotated[int, typer.Option("-k", help="How many, as far as the table goes.", min=1)] = 20,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw them as a graph: .png or .svg.")
    ] = None,
) -> None:
    """The neighbours of one feature, from the stored table, and their graph."""
    from jobs.views.neighbours import neighbours as job

    opened, _ = open_store(store)
    job(opened, one_site(opened, site), feature, by=by, k=k, figure=figure)


@views.command(rich_help_panel=PANEL)
def heatmap(
    store: StoreText,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE.png", help="Picture, .png or .svg; others lie beside it."),
    ],
    site: SiteName = None,
    features: Annotated[
        str | None,
        typer.Option(help="Features, as 1,2,3 or 10:20, top:N:COLUMN, or as --ranking.", metavar="FEATURES"),
    ] = None,
    ranking: Annotated[
        str | None,
        typer.Option(
            help="Instead: ranks by a column, as sigma_over_mu:0:50, or top:N:COLUMN.",
            metavar="COLUMN:START:STOP",
        ),
    ] = None,
    selection: Annotated[
        bool, typer.Option("--selection", help="Instead: the features that `attribute` selected.")
    ] = False,
    contexts: Annotated[
        str | None, typer.Option(help="Contexts, as 1,2,3 or 10:20. Default: all.", metavar="NUMBERS")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Keep contexts with this label, as COLUMN=VALUE; may be repeated."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Of those, the N with the most activation of the features.", min=1)
    ] = None,
    pool: Annotated[
        str, typer.Option(help="Over a context's counted rows: max, mean or sum; last: the last of them.")
    ] = "max",
    language: FigureLanguage = "en",
) -> None:
    """Contexts × features as a picture, plain and clustered; how sparse they are, how often active."""
    from jobs.views.heatmap import Asked
    from jobs.views.heatmap import heatmap as job

    opened, _ = open_store(store)
    asked = Asked(features, ranking, contexts, where or (), top, pool, selection, language)
    job(opened, one_site(opened, site), asked, out)
