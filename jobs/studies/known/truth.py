"""`latentlake truth STORE --truth FILE`: what a store measures of a known dictionary against its truth.

What is measured is read from the store as any other job reads it: feature table, neighbours, rows. It is
compared with the closed form of the recipe, and with the rows that were drawn, which are drawn again. Cost:
cosines S F D, the optimal assignment of S x F (seconds at 5,000 x 5,000), rows drawn once more, x decoded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Annotated, Any

import typer
from rich.markup import escape

from jobs.figures import FIGURES
from jobs.figures.plots import draw, drawing
from jobs.studies.known.compare import (
    Side,
    cosines_table,
    detected_hierarchy,
    features_table,
    known_pairs,
    pairs_table,
)
from jobs.studies.known.counts import Counting
from jobs.studies.known.drawn import draws_again, require_same_vectors
from jobs.studies.known.matching import Cosines, assigned, best_order, cosines_with, literal_order
from jobs.studies.known.reconstruction import Decoder
from jobs.studies.known.report import print_report, summaries
from jobs.studies.known.summary import summary_table
from jobs.tables.importance import nonlinear
from jobs.terminal.console import console, say
from jobs.terminal.progress import track
from pipeline.store import FeatureStore
from pipeline.store.derived.profile import Tokens
from pipeline.store.objects.paths import store_path
from pipeline.synthetic.dictionary.truth import KnownTruth, read_truth
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.tables.tables import TRUTH, TRUTH_COSINES, TRUTH_PAIRS, TRUTH_SUMMARY

WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")

SCHEMAS = {
    "truth": TRUTH,
    "truth_summary": TRUTH_SUMMARY,
    "truth_pairs": TRUTH_PAIRS,
    "truth_cosines": TRUTH_COSINES,
}
"""The tables that are written."""


def command(
    store: FeatureStore,
    sites: list[str],
    path: Annotated[
        str,
        typer.Option(
            "--truth", metavar="FILE.npz", help="The ground truth, as written by `make-dictionary`."
        ),
    ],
    least: Annotated[
        float,
        typer.Option(
            help="Share of a feature's rows in which another must be active to count as its parent."
        ),
    ] = 1.0,
    tasks: Tasks | None = None,
) -> None:
    """Compare the sites with the truth in a file."""
    truth(store, sites, read_truth(store_path(path)), tasks, least=least)


def truth(
    store: FeatureStore,
    sites: Sequence[str],
    known: KnownTruth,
    tasks: Tasks | None = None,
    *,
    least: float = 1.0,
    figures: bool = True,
) -> list[StorePath]:
    """Write the tables SCHEMAS of each site, print a summary, and draw their figures.

    The literal order is that of the best of the sites, where they have as many features. `least` is the
    conditional frequency from which a feature is found to be the child of another. InputError where the store
    was not drawn from the truth's recipe, or its tables are missing.
    """
    began = time.monotonic()
    root, expected = store.layout.root, known.recipe.model_dump(mode="json")
    if len(store.links) != 1 or store.links[0].source.get("kind") != "dictionary":
        raise InputError(f"{root} does not hold a single corpus of kind dictionary, which has a ground truth")
    stored: dict[str, Any] = store.links[0].source["dictionary"]
    if name := next((name for name in expected if expected[name] != stored.get(name)), None):
        raise InputError(
            f"{root} was drawn with {name} {_short(stored.get(name))}, the truth is of {name} "
            f"{_short(expected[name])}: give the truth that `latentlake make-dictionary` wrote for its run "
            "file"
        )
    require_same_vectors(store, known)
    sites = _of_rows(store, sites)
    sides = _sides(store, sites, known)
    written: list[StorePath] = []
    for site, side in sides.items():
        written += _compare(store, site, side, known, tasks or OneProcess(), least)
        if figures:
            written += _draw(store, site)
    for shown in summaries({site: store.scan_table(site, "truth_summary").collect() for site in sites}):
        console.print(shown)
    say(f"[bold]truth[/] done ({time.monotonic() - began:.1f} s)")
    return written


def _of_rows(store: FeatureStore, sites: Sequence[str]) -> list[str]:
    """Those without pooling, and a note of the others; InputError if none is left. The truth is of rows."""
    unpooled = [site for site in sites if store.site(site).selection.pooling == "none"]
    for site in sites:
        problem = f"site {site!r} pools the rows of a context, but the truth is about single rows"
        if not unpooled:
            raise InputError(f"{problem}: give a site without pooling")
        if site not in unpooled:
            say(f"[yellow]note[/] {escape(problem)}: skipped")
    return unpooled


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _sides(store: FeatureStore, sites: Sequence[str], known: KnownTruth) -> dict[str, Side]:
    """Each site with its cosines; the order of the best one goes for all that have as many features."""
    weights = {site: store.site_weights(site, WEIGHTS) for site in sites}
    for site, (arrays, _) in weights.items():
        if missing := {"W_enc", "W_dec"} - set(arrays):
            raise InputError(f"site {site!r} has no {min(missing)}: it has no directions to compare")
    cosines = {
        site: Cosines(
            cosines_with(arrays["W_enc"].T, known.vectors), cosines_with(arrays["W_dec"], known.vectors)
        )
        for site, (arrays, _) in weights.items()
    }
    decoders = [of.decoder for of in cosines.values()]
    same = len({decoder.shape for decoder in decoders}) == 1
    best, order = best_order(decoders)
    if len(sites) > 1:
        choice = f"that of {sites[best]}, which has the highest mean cosine" if same else "each site's own"
        say(f"[bold]truth[/] literal order of features: {choice}")
    return {
        site: Side(
            *weights[site],
            cosines=cosines[site],
            order=order if same else literal_order(cosines[site].decoder),
            match=assigned(cosines[site].decoder),
            activation_dtype=store.site(site).activation_dtype,
        )
        for site in sites
    }


def _compare(
    store: FeatureStore, site: str, side: Side, known: KnownTruth, tasks: Tasks, least: float
) -> list[StorePath]:
    features = store.scan_features(site).collect().sort("feature")
    neighbours = (
        store.scan_table(site, "neighbours").collect() if store.has_table(site, "neighbours") else None
    )
    pairs = known_pairs(known, side)
    # without a recipe nothing is drawn again, and what needs the draws is null
    recipe = known.recipe if _can_draw_again(store, site, known) else None
    # what reconstructs x; None where that takes more than a decoder, or x is not what the lake holds
    loader, decoder = store.plans[store.site(site).pass_name].model_loader, None
    other = nonlinear(side.metadata) or (None if loader == "inputs" else f"model.loader {loader}")
    if other is not None or "b_dec" not in side.weights:
        why = f"it has {other}" if other else "the SAE has no b_dec"
        say(f"[yellow]note[/] {site}: explained variance and shrinkage are not known, {why}")
    else:
        weights = side.weights["W_dec"], side.weights["b_dec"]
        decoder = Decoder(Tokens.of(store, site), *weights, known.bias)
    counting = Counting(
        recipe, len(known.vectors), *side.match, nearest=side.nearest, pairs=pairs.own, decoder=decoder
    )
    shards = store.shard_files(site)
    parts = track(
        tasks.map(counting.count_shard, shards), "rows against what was drawn", len(shards), "shards"
    )
    counts = reduce(add, parts, counting.none())
    tables = {
        "truth": features_table(known, side, features, counts, redrawn=recipe is not None),
        "truth_summary": summary_table(known, side, features, counts, redrawn=recipe is not None),
        "truth_pairs": pairs_table(known, pairs, counts.both, features, neighbours),
        "truth_cosines": cosines_table(side),
    }
    written = [store.write_table_parts(site, name, SCHEMAS[name], [tables[name]]) for name in tables]
    edges = None if neighbours is None else detected_hierarchy(neighbours, features, least)
    of_documents = None
    if store.has_table(site, "profile"):
        profile = store.scan_table(site, "profile")
        of_documents = profile.select("feature", "frequency_low", "frequency_high").collect()
    print_report(site, known, side, tables["truth"], tables["truth_pairs"], edges, of_documents)
    say(f"[bold]truth[/] {site}: tables in {escape(str(written[0].parent))}")
    return written


def _draw(store: FeatureStore, site: str) -> list[StorePath]:
    names = [name for name, figure in FIGURES.items() if figure.table in SCHEMAS]
    with drawing(store, site):
        drawn = [
            draw(store, site, name, store.scan_table(site, FIGURES[name].table).collect()) for name in names
        ]
    say(f"[bold]truth[/] {site}: figures in {escape(str(store.layout.figures(site)))}")
    return [path for paths in drawn for path in paths]


def _can_draw_again(store: FeatureStore, site: str, known: KnownTruth) -> bool:
    """Whether the rows of the store are those of the corpus, one by one, and our generator draws them."""
    lake, selection = store.lake, store.site(site).selection
    if known.recipe.generator == "saelens":
        why = "sae-lens drew them"
    elif lake.bos_id is not None or lake.separator_id is not None or not selection.all_rows:
        why = "its rows are not those of the corpus"
    elif not draws_again(known):
        why = "this version of NumPy or latentlake draws different ones"
    else:
        return True
    say(f"[yellow]note[/] {site}: rows are not compared one by one, {why}")
    return False
