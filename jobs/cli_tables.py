"""Commands that make tables, figures and a report of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.command.options import (
    Address,
    DeviceName,
    FigureLanguage,
    ModelPath,
    ModelWorkers,
    SiteName,
    StoreText,
    Workers,
    input_error,
    open_store,
    sites_of,
)

tables = typer.Typer()
PANEL = "Tables, figures, report"


@tables.command(rich_help_panel=PANEL)
def stats(store: StoreText, site: SiteName = None, workers: Workers = None, address: Address = None) -> None:
    """Fold the shards' partials into the feature table, L0 counts and examples."""
    from jobs.command.tasks import choose_tasks
    from jobs.tables.stats import stats as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, tasks)


@tables.command(rich_help_panel=PANEL)
def profile(
    store: StoreText,
    site: SiteName = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(help="Count features with |activation| above this in each row; may be repeated."),
    ] = None,
    values: Annotated[
        int | None,
        typer.Option(help="Values of a label to compare, of most rows. Default: 256.", min=2),
    ] = None,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Intervals of frequencies, what features fire on, differences between label values, L0 thresholds."""
    from jobs.command.tasks import choose_tasks
    from jobs.tables.profile import THRESHOLDS
    from jobs.tables.profile import profile as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, tasks, thresholds=threshold or THRESHOLDS, values=values)


@tables.command(rich_help_panel=PANEL)
def rank(
    store: StoreText,
    site: SiteName = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Column of the tables features, profile; may be repeated.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            help="Print these ranks by each --by: START:STOP, or COLUMN:START:STOP; may be repeated. As in "
            "the tables they count from 0, without STOP: 0:20 are #1 to #20, 2000:2050 #2,001 to #2,050."
        ),
    ] = None,
    support: Annotated[
        int | None,
        typer.Option(
            help="Features with fewer active rows come last; 0: one order for all. Default: rank.support of "
            "the run file, or 10.",
            min=0,
        ),
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first, in the window.")] = False,
    draws: Annotated[
        int, typer.Option(help="Draws of shards that say how stable ranks are; 0: none.", min=0)
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the draws.", min=0)] = 0,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Write the rankings of features by columns of their tables, or print a window of one."""
    from jobs.command.tasks import choose_tasks
    from jobs.tables.rank import rank as job
    from jobs.tables.rank import show_windows
    from schemas.run.file import Rank

    opened, config = open_store(store)
    usual = config.rank if config else Rank.model_validate({})
    columns = tuple(dict.fromkeys([*(by or ()), *usual.by]))
    floor = usual.support if support is None else support
    if window:
        for name in sites_of(opened, site):
            show_windows(opened, name, by or columns[:1], window, descending=not ascending, support=floor)
        return
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, columns, tasks, draws=draws, seed=seed, support=floor)


@tables.command(rich_help_panel=PANEL)
def cluster(
    store: StoreText, site: SiteName = None, workers: Workers = None, address: Address = None
) -> None:
    """Cluster features by direction, co-activation and density; contexts and documents by their features."""
    from jobs.command.tasks import choose_tasks
    from jobs.tables.cluster import cluster as job
    from schemas.run.file import Cluster

    opened, config = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, config.cluster if config else Cluster.model_validate({}), tasks)


@tables.command(rich_help_panel=PANEL)
def coactivation(
    store: StoreText,
    site: SiteName = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours of each feature.", min=1)] = 20,
    support: Annotated[int, typer.Option(help="Rows that a pair must share.", min=1)] = 10,
    no_decoder: Annotated[
        bool, typer.Option("--no-decoder", help="Leave out neighbours by decoder cosine (hours at 10^6).")
    ] = False,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Features active on the same tokens, and features with similar decoder directions."""
    from jobs.command.tasks import choose_tasks
    from jobs.tables.coactivation import coactivation as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, tasks, k=k, support=support, decoder=not no_decoder)


@tables.command(rich_help_panel=PANEL)
def match(
    store: StoreText,
    site_a: Annotated[str, typer.Argument(metavar="SITE_A", help="Site whose features are matched.")],
    site_b: Annotated[str, typer.Argument(metavar="SITE_B", help="Site whose features they may be.")],
    store_b: Annotated[
        str | None,
        typer.Option("--store-b", metavar="STORE", help="Store of SITE_B, if another, over the same tokens."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Candidates by cosine, and by Jaccard index.", min=1)] = 10,
    support: Annotated[int, typer.Option(help="Rows that a candidate by Jaccard shares.", min=1)] = 10,
    top: Annotated[int, typer.Option("--top", help="How many of the clearest pairs to print.", min=0)] = 10,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Match the features of two sites: by decoder cosine, by co-activation, and one to one."""
    from jobs.command.tasks import choose_tasks
    from jobs.tables.diff import Side
    from jobs.tables.match import match as job

    first = open_store(store)[0]
    second = open_store(store_b)[0] if store_b else first
    sides = Side(first, first.site(site_a).name), Side(second, second.site(site_b).name)
    with choose_tasks(first, workers, address) as tasks:
        job(*sides, tasks, k=k, support=support, top=top)


@tables.command(rich_help_panel=PANEL)
def truth(
    store: StoreText,
    truth: Annotated[
        str, typer.Option(metavar="FILE.npz", help="The truth, which `make-dictionary` writes.")
    ],
    site: SiteName = None,
    least: Annotated[
        float,
        typer.Option(help="Share of its rows in which a feature's parent must be active to be found."),
    ] = 1.0,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Compare the store of a known dictionary with its truth: matches, frequencies, means, pairs, trees."""
    from jobs.command.tasks import choose_tasks
    from jobs.studies.known.truth import truth as job
    from pipeline.store.objects.paths import store_path
    from pipeline.synthetic.dictionary.truth import read_truth

    opened, _ = open_store(store)
    known = read_truth(store_path(truth))
    with choose_tasks(opened, workers, address) as tasks:
        job(opened, sites_of(opened, site), known, tasks, least=least)


@tables.command(rich_help_panel=PANEL)
def logits(
    store: StoreText,
    site: SiteName = None,
    k: Annotated[int, typer.Option("-k", help="Tokens listed at each end.", min=1)] = 10,
    random: Annotated[
        int | None, typer.Option(help="Random directions. Default: one per feature, at most 10,000.", min=1)
    ] = None,
    model: ModelPath = None,
    device: DeviceName = "auto",
    workers: ModelWorkers = None,
    address: Address = None,
) -> None:
    """The tokens that each feature promotes (direct logit attribution); runs the model's last part."""
    from jobs.command.tasks import choose_model_tasks, device_for
    from jobs.evaluation.logits import Asked
    from jobs.evaluation.logits import logits as job

    opened, _ = open_store(store)
    for name in sites_of(opened, site):
        plan = opened.plans[opened.site(name).pass_name]
        on = device_for(plan, device, address)
        with choose_model_tasks(opened, plan, on, workers, address) as tasks:
            job(opened, name, Asked(on, model, k, random), tasks)


@tables.command(rich_help_panel=PANEL)
def fidelity(
    store: StoreText,
    site: SiteName = None,
    tokens: Annotated[str, typer.Option(help="Tokens to run, or 'all'.")] = "20000",
    shards: Annotated[
        list[str] | None, typer.Option("--shard", help="Only this shard; may be repeated.")
    ] = None,
    model: ModelPath = None,
    sae: Annotated[
        str | None, typer.Option(help="Where the SAE's files lie now. Default: where they lay.")
    ] = None,
    device: DeviceName = "auto",
    workers: ModelWorkers = None,
    address: Address = None,
) -> None:
    """How the loss changes when x is replaced by the SAE's reconstruction; runs the model."""
    from jobs.command.tasks import choose_model_tasks, device_for
    from jobs.evaluation.fidelity import Asked
    from jobs.evaluation.fidelity import fidelity as job

    if tokens != "all" and not (tokens.isdecimal() and int(tokens)):
        raise input_error(f"--tokens {tokens}: give a whole number from 1, or all")
    opened, _ = open_store(store)
    for name in sites_of(opened, site):
        plan = opened.plans[opened.site(name).pass_name]
        on = device_for(plan, device, address)
        asked = Asked(on, model, sae, None if tokens == "all" else int(tokens), tuple(shards or ()))
        with choose_model_tasks(opened, plan, on, workers, address) as tasks:
            job(opened, name, asked, tasks)


@tables.command(rich_help_panel=PANEL)
def attribute(
    store: StoreText,
    site: SiteName = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Label column; may be repeated. Default: all but the answers."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Select by ig2, of the squared gap between answers, or ig, of the gap.")
    ] = "ig2",
    k: Annotated[int, typer.Option("-k", help="Features selected of each value.", min=1)] = 10,
    tolerance: Annotated[
        float, typer.Option(help="Share of the gap that attributions may lack.", min=0)
    ] = 0.01,
    scores: Annotated[
        Path | None,
        typer.Option(help="Select from this table (.parquet, .csv) of feature, score, label, value instead."),
    ] = None,
    ablate: Annotated[
        bool | None,
        typer.Option("--ablate/--no-ablate", help="Ablate what is selected. Default: not with --scores."),
    ] = None,
    answers: Annotated[
        str | None, typer.Option(help="Label columns of the two answers. Default: what the corpus says.")
    ] = None,
    model: ModelPath = None,
    sae: Annotated[
        str | None, typer.Option(help="Where the SAE's files lie now. Default: where they lay.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Where the lake's tokenizer lies now.")] = None,
    device: DeviceName = "auto",
    workers: ModelWorkers = None,
    address: Address = None,
) -> None:
    """Features that make the model prefer one answer to another, by label of the prompts; runs the model."""
    from jobs.command.tasks import choose_model_tasks, device_for
    from jobs.evaluation.attribute import Asked
    from jobs.evaluation.attribute import attribute as job

    opened, _ = open_store(store)
    columns = tuple(answers.split(",")) if answers else ()
    for name in sites_of(opened, site):
        plan = opened.plans[opened.site(name).pass_name]
        on = device_for(plan, device, address)
        asked = Asked(
            on, tuple(label or ()), by, k, tolerance, scores, ablate, columns, model, sae, tokenizer
        )
        with choose_model_tasks(opened, plan, on, workers, address) as tasks:
            job(opened, name, asked, tasks)


@tables.command(rich_help_panel=PANEL)
def plots(store: StoreText, site: SiteName = None, language: FigureLanguage = "en") -> None:
    """Draw the figures from the stored tables."""
    from jobs.figures.plots import plots as job

    opened, _ = open_store(store)
    for name in sites_of(opened, site):
        for path in job(opened, name, language):
            typer.echo(path)


@tables.command(rich_help_panel=PANEL)
def report(
    store: StoreText,
    site: SiteName = None,
    features: Annotated[
        str,
        typer.Option(
            help="Features that get a page: all, top:N[:COLUMN], COLUMN:START:STOP (ranks), or 5,100:200."
        ),
    ] = "all",
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the report. Default: STORE/report.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Write a static site of the features, which opens from disk without a server."""
    from jobs.report.build import report as job
    from jobs.report.build import tasks_for
    from pipeline.store.objects.paths import store_path

    opened, _ = open_store(store)
    with tasks_for(opened, workers) as tasks:
        names = sites_of(opened, site)
        typer.echo(job(opened, names, tasks, out=store_path(out) if out else None, features=features))
