"""`latentlake logits STORE`: which tokens a feature promotes (direct logit attribution). Needs the model.

Of each feature f the distribution softmax(unembed(ln_final(avg_norm * W_dec[f] + b_dec))), where avg_norm is
the mean over counted rows (those without any activation included) of the Euclidean norm of the row's feature
vector, from the store: its entropy in bits, its largest probability, its highest and lowest tokens. Where
b_dec is large (streams with a few huge dimensions) these are much the same for all features. For comparison
random directions u of the same norm, softmax(unembed(ln_final(|avg_norm * W_dec[f]| * u + b_dec))); the
notebook that this comes from added b_dec to those twice, which is not repeated. Named apart: the plain effect
W_dec[f] @ W_U, about its mean over the vocabulary and without any norm, as dashboards show it.

W_dec is the site's in the store, decoder norms folded in, so that it belongs to the stored activations. Of an
SAE whose input is normalised it stays in normalised units, which the final norm, being of scale 1, hardly
sees. An SAE at hook_mlp_out or hook_attn_out adds to the residual stream, so its directions are read as
directions of the stream; b_dec is then the mean of what is added, not of the stream.

Cost: two products [features, d_model] x [d_model, vocabulary], in blocks of 32 M logits, never all of them;
the model and W_dec are in memory. 4,608 features of SmolLM2-135M and as many random directions take half a
minute of one core. Blocks are tasks, so that several processes, or a Ray cluster's GPUs, may share them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
import polars as pl
import typer
from rich.markup import escape

from jobs.command.options import DeviceName, ModelPath
from jobs.terminal.console import say
from jobs.terminal.progress import counting
from pipeline.plans.reopen import PlannedUse, model_of, use_of
from pipeline.plans.sae_defaults import has_norms_after
from pipeline.store import FeatureStore
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.records.tables import require_writable
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.tables.tables import Schema
from schemas.values import F32, F64

if TYPE_CHECKING:
    from pipeline.evaluation.direct_logits import Extremes, Histograms, Unembedded

LISTED, SEED = 10, 0
MOST_RANDOM = 10_000
"""Random directions at most, where there are more features."""
BINS = 40

LOGITS: Schema = {
    "feature": pl.UInt32(),
    "entropy_bits": pl.Float64(),
    "max_probability": pl.Float64(),
    "top_tokens": pl.List(pl.Int32()),
    "top_logits": pl.List(pl.Float32()),
    "bottom_tokens": pl.List(pl.Int32()),
    "bottom_logits": pl.List(pl.Float32()),
    "promoted_tokens": pl.List(pl.Int32()),
    "promoted_effects": pl.List(pl.Float32()),
    "suppressed_tokens": pl.List(pl.Int32()),
    "suppressed_effects": pl.List(pl.Float32()),
    "effect_low": pl.Float32(),
    "effect_high": pl.Float32(),
    "effect_counts": pl.List(pl.Int32()),
}
"""A row per feature. `top_*` and `bottom_*`: tokens of the highest and lowest logit after the final norm,
`promoted_*` and `suppressed_*`: of the plain effect, null where the model has no one unembedding matrix;
`effect_counts`: how many tokens have it in each of even bins from `effect_low` to `effect_high` (tables of
earlier versions lack these three).
Entropy and probability are over the model's whole vocabulary, lists of tokens that the tokenizer knows."""

LOGITS_RANDOM: Schema = {
    "direction": pl.UInt32(),
    "entropy_bits": pl.Float64(),
    "max_probability": pl.Float64(),
}

LOGITS_HISTOGRAM: Schema = {
    "measure": pl.String(),
    "of": pl.String(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "n": pl.Int64(),
    "median": pl.Float64(),
}
"""`measure`: entropy_bits (even parts of what there is) or max_probability (even parts on a log scale); `of`:
feature or random. A value on an edge is in the part above it, the last part holds both its edges."""


def use_for_logits(store: FeatureStore, site: str, device: str, model: str | None = None) -> PlannedUse:
    """The model to run; InputError where the site's features have no logits."""
    from pipeline.models.hooks.unembedding import STREAM, WRITERS, in_residual_stream

    info = store.site(site)
    plan = store.plans[info.pass_name]
    if plan.model_loader == "synthetic":
        raise InputError(f"site {site!r} is synthetic, its features were generated: there is no unembedding")
    _, about = store.site_weights(site, ())
    use = use_of(plan, site, about, device=device, model=model, needs_sae=False)
    # What a sublayer gives is added to the stream as it is, unless a norm follows.
    sublayer = use.place.target.endswith((".mlp.hook_out", ".attn.hook_out"))
    is_added = in_residual_stream(use.place.target) or (sublayer and not has_norms_after(model_of(use.plan)))
    if not is_added:
        raise InputError(
            f"the decoder of site {site!r} writes at {use.place.target}, which is not the residual stream: "
            f"its features have no logits; features have logits at {', '.join((*STREAM, *WRITERS))} and at "
            "whole blocks"
        )
    return use


def logits(
    store: FeatureStore,
    site: str,
    tasks: Tasks | None = None,
    *,
    k: Annotated[int, typer.Option("-k", help="Number of tokens listed at each end.", min=1)] = LISTED,
    random: Annotated[
        int | None,
        typer.Option(help="Number of random directions. Default: one per feature, at most 10,000.", min=1),
    ] = None,
    model: ModelPath = None,
    device: DeviceName = "auto",
) -> pl.DataFrame:
    """Write the tables `logits`, `logits_random` and `logits_histogram` of a site; return the first.

    Raises InputError where there is no unembedding, or the model's files are gone or changed.
    """
    from pipeline.evaluation.direct_logits import Reading, read, rows_of_a_block, vocabulary_of

    began, tasks = time.monotonic(), tasks or OneProcess()
    require_writable(store.layout, site)
    use = use_for_logits(store, site, device, model)
    weights, _ = store.site_weights(site, ("W_dec", "b_dec"))
    w_dec, b_dec = weights["W_dec"], weights["b_dec"]
    vocabulary = vocabulary_of(use, w_dec.shape[1])
    rows = store.totals(site).counted_rows
    if not rows:
        raise InputError(f"site {site!r} has no counted row yet: run `latentlake extract` first")
    # The mean over counted rows: those without any activation have the norm 0, and count too.
    norm = sum(tasks.map(sum_of_norms, store.shard_files(site)), 0.0) / rows
    reading = Reading(use, k, min(vocabulary, store.vocabulary_size))
    block = rows_of_a_block(vocabulary)
    # Random directions are compared with features of the same norms, a sample of them where there are many.
    norms = np.float32(norm) * np.linalg.norm(w_dec, axis=1)
    norms = norms[evenly(len(norms), min(len(norms), MOST_RANDOM) if random is None else random)]
    n = len(w_dec) + len(norms)
    with counting(f"logits {site}", n, "directions") as advance:

        def results(directions: Iterator[object]) -> Iterator[Unembedded]:
            for result in tasks.map(partial(read, reading), directions):
                yield result
                advance(len(result.softmax.entropy_bits))

        table = _table(list(results(of_features(w_dec, b_dec, norm, block))))
        columns = _statistics(list(results(of_random(norms, b_dec, block))))
    drawn = pl.DataFrame({"direction": np.arange(len(norms)), **columns}, schema=LOGITS_RANDOM)
    store.write_table(site, "logits_random", drawn)
    store.write_table(site, "logits_histogram", histograms(table, drawn))
    store.write_table(site, "logits", table)
    _report(store, site, table, drawn, norm, time.monotonic() - began)
    return table


def sum_of_norms(shard: ShardFiles) -> float:
    """The sum over a shard's rows of the norm of their feature vectors; rows not counted hold nothing."""
    matrix = shard.read_csr()
    squares = matrix.data.astype(np.float64) ** 2
    # reduceat gives an empty row the next one's first square, so empty rows are left out: they add 0.
    starts = matrix.indptr[:-1][np.diff(matrix.indptr) > 0]
    return float(np.sqrt(np.add.reduceat(squares, starts)).sum()) if len(starts) else 0.0


def of_features(w_dec: F32, b_dec: F32, norm: float, block: int) -> Iterator[object]:
    """The features' directions, `block` at a time."""
    from pipeline.evaluation.direct_logits import Directions

    for first in range(0, len(w_dec), block):
        rows = w_dec[first : first + block]
        yield Directions(np.float32(norm) * rows + b_dec, rows)


def of_random(norms: F32, b_dec: F32, block: int) -> Iterator[object]:
    """As many random directions as there are `norms`, each of its norm, b_dec added once."""
    from pipeline.evaluation.direct_logits import Directions

    random = np.random.default_rng(SEED)
    for first in range(0, len(norms), block):
        wanted = norms[first : first + block, None]
        # Directions of normal draws are uniform on the sphere; the stream of draws is the same for any block.
        drawn = random.standard_normal((len(wanted), len(b_dec)), dtype=np.float32)
        yield Directions(wanted * drawn / np.linalg.norm(drawn, axis=1, keepdims=True) + b_dec)


def evenly(n: int, count: int) -> list[int]:
    """`count` of n places, evenly spaced (each of them several times where there are fewer)."""
    return [i * n // count if count <= n else i % n for i in range(count)]


def _table(results: Sequence[Unembedded]) -> pl.DataFrame:
    """The table LOGITS."""
    columns = _statistics(results)
    logits = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits")
    effects = ("promoted_tokens", "promoted_effects", "suppressed_tokens", "suppressed_effects")
    frame = pl.DataFrame({"feature": np.arange(len(columns["entropy_bits"])), **columns}).with_columns(
        *_lists(logits, [part.logits for part in results]),
        *_lists(effects, [part.effects for part in results]),
        *_counts([part.histograms for part in results]),
    )
    return frame.select(pl.col(name).cast(dtype) for name, dtype in LOGITS.items())


def _lists(names: Sequence[str], parts: Sequence[Extremes | None]) -> list[pl.Series]:
    """The four columns of lists of `Extremes`; nulls where there are none."""
    present = [part for part in parts if part is not None]
    if not present:
        return [pl.Series(name, [None], dtype=LOGITS[name]) for name in names]
    columns = (np.concatenate(column) for column in zip(*present, strict=True))
    return [pl.Series(name, column).arr.to_list() for name, column in zip(names, columns, strict=True)]


def _counts(parts: Sequence[Histograms | None]) -> list[pl.Series]:
    """The three columns of `Histograms`; nulls where there are none."""
    names = ("effect_low", "effect_high", "effect_counts")
    present = [part for part in parts if part is not None]
    if not present:
        return [pl.Series(name, [None], dtype=LOGITS[name]) for name in names]
    low, high, counts = (np.concatenate(column) for column in zip(*present, strict=True))
    columns = (pl.Series(low), pl.Series(high), pl.Series(counts).arr.to_list())
    return [column.alias(name) for name, column in zip(names, columns, strict=True)]


def _statistics(results: Sequence[Unembedded]) -> dict[str, F64]:
    names = ("entropy_bits", "max_probability")
    return {
        name: np.concatenate([np.empty(0), *(getattr(part.softmax, name) for part in results)])
        for name in names
    }


def histograms(table: pl.DataFrame, drawn: pl.DataFrame) -> pl.DataFrame:
    """The table LOGITS_HISTOGRAM of features and random directions, both cut alike."""
    parts = [pl.DataFrame(schema=LOGITS_HISTOGRAM)]
    for measure in ("entropy_bits", "max_probability"):
        values = {of: frame[measure].to_numpy() for of, frame in (("feature", table), ("random", drawn))}
        # One set of edges for both, so that their histograms compare.
        edges = _edges(np.concatenate(list(values.values())), is_log=measure == "max_probability")
        parts += [_histogram(measure, of, sample, edges) for of, sample in values.items() if len(sample)]
    return pl.concat(parts)


def _edges(values: F64, *, is_log: bool) -> F64:
    """Edges of BINS even parts from the least value to the largest, or of their logarithms with `is_log`."""
    low, high = (np.log10(values) if is_log else values)[[values.argmin(), values.argmax()]]
    # Where all values are equal the parts still need some width.
    edges: F64 = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    if is_log:
        edges = 10**edges
    # 10 ** log10(x) may miss x by a bit, and the outer values would fall out.
    edges[0], edges[-1] = min(edges[0], values.min()), max(edges[-1], values.max())
    return edges


def _histogram(measure: str, of: str, values: F64, edges: F64) -> pl.DataFrame:
    columns = {"low": edges[:-1], "high": edges[1:], "n": np.histogram(values, bins=edges)[0]}
    constants = {"measure": measure, "of": of, "median": float(np.median(values))}
    frame = pl.DataFrame(columns).with_columns(pl.lit(value).alias(name) for name, value in constants.items())
    return frame.select(pl.col(name).cast(dtype) for name, dtype in LOGITS_HISTOGRAM.items())


def _report(
    store: FeatureStore, site: str, table: pl.DataFrame, drawn: pl.DataFrame, norm: float, seconds: float
) -> None:
    medians = [frame["entropy_bits"].median() for frame in (table, drawn)]
    entropies = " and ".join(f"{value:.2f}" for value in medians if isinstance(value, float))
    say(
        f"[bold]logits[/] {site}: {table.height:,} features, {drawn.height:,} random directions; median "
        f"entropy {entropies} bits; mean norm of a row {norm:.2f} ({seconds:.1f} s)"
    )
    strongest = table.sort(pl.col("promoted_effects").list.first(), descending=True, nulls_last=True)
    for row in strongest.head(5).iter_rows(named=True):
        promoted = row["promoted_tokens"] or row["top_tokens"]
        tokens = " ".join(repr(text) for text in store.token_texts(promoted[:5]))
        say(escape(f"  {row['feature']}: {row['entropy_bits']:.2f} bits, promotes {tokens}"))
