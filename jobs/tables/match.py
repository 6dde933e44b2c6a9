"""`latentlake match STORE A B`: which features of one site are which of another, by direction and by firing.

The sites lie in one store, or in two that have the same token shards. A pair is compared by the cosine of its
decoder rows, where both write into the same space, and by the rows in which its features are active. After
the best candidates of every feature comes the one-to-one assignment of highest total score.

Cost: cosines 2 F G D operations (`jobs.tables.pairs.directions`), pairs rows x L0 x L0
(`jobs.tables.pairs.pair_counts`), F and G the features of the sites; then the assignment, seconds for 5,000
features each way as for candidates of 65,536. The table is whole in memory, some 60 bytes for each of up to 2
k + 1 pairs a feature; an assignment over all pairs takes 12 more bytes a pair, 0.8 GB for 8,192 features
each way, the most (`jobs.tables.pairs.assignment`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jobs.command.options import open_store
from jobs.tables.diff import Side
from jobs.tables.pairs.assignment import assign_all, assign_candidates, assign_costs, fits
from jobs.tables.pairs.association import PairCounts, highest, jaccard
from jobs.tables.pairs.directions import Directions, cosines, directions_of, nearest, pair_cosines
from jobs.tables.pairs.pair_counts import INT32_ROWS, cut, mean_company, tallies
from jobs.terminal.console import console, say
from jobs.terminal.names import any_named, name_cell
from jobs.terminal.progress import track
from pipeline.store import FeatureStore
from pipeline.store.reading.shard_files import ShardFiles, read_n_active
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.records import canonical_json
from schemas.sentences import several
from schemas.tables.tables import MATCHES
from schemas.values import F32, I32, I64

MATCH_KEY = "latentlake.match"
"""Of the table's metadata: what was matched with what, and how, as JSON."""

SAME = 0.7
"""Cosine above which two directions are said to be one feature's."""

INNER_HOOK = re.compile(r"hook_(z|q|k|v|rot_q|rot_k|pre|post|pattern|attn_scores)$")
"""Hooks whose x is not a vector of the residual stream."""

Pairs = tuple[I64, I64]


def command(
    store: FeatureStore,
    site_a: Annotated[str, typer.Argument(metavar="SITE_A", help="Site whose features are matched.")],
    site_b: Annotated[str, typer.Argument(metavar="SITE_B", help="Site in which their matches are sought.")],
    store_b: Annotated[
        str | None,
        typer.Option(
            "--store-b",
            metavar="STORE",
            help="Store of SITE_B, if it is a different one; it must have the same tokens.",
        ),
    ] = None,
    k: Annotated[
        int, typer.Option("-k", help="Number of candidates by cosine, and by Jaccard index.", min=1)
    ] = 10,
    support: Annotated[
        int, typer.Option(help="Number of rows that a candidate by Jaccard index must share.", min=1)
    ] = 10,
    top: Annotated[int, typer.Option("--top", help="Number of the clearest pairs to print.", min=0)] = 10,
    tasks: Tasks | None = None,
) -> None:
    """Match two sites by their names."""
    second = open_store(store_b)[0] if store_b else store
    sides = Side(store, store.site(site_a).name), Side(second, second.site(site_b).name)
    match(*sides, tasks, k=k, support=support, top=top)


def match(
    a: Side, b: Side, tasks: Tasks | None = None, *, k: int = 10, support: int = 10, top: int = 10
) -> StorePath:
    """Write the table of matches of site `a` in `b` (schema `MATCHES`, see `table_name`) and print a summary.

    Of each feature of `a` it holds the `k` features of `b` of largest decoder cosine, the `k` of highest
    Jaccard index among those active in at least `support` rows in which it is active too, and the one that is
    assigned to it. Jaccard's index is over the rows of the shards that both have extracted. The assignment
    goes by cosine, or by Jaccard's index where cosines cannot be compared, which is reported; a pair whose
    score is not positive is not assigned. InputError where the two have no row in common.
    """
    began, tasks = time.monotonic(), tasks or OneProcess()
    shards = _shards(a, b)
    why = incomparable(a, b)
    if why:
        say(f"[yellow]note[/]: cosines are left out, {escape(why)}; features are assigned by Jaccard index")
    table, how = (_by_jaccard if why else _by_cosine)(a, b, shards, tasks, k, support)
    about = {"a": a.identity, "b": b.identity, "k": k, "support": support, "assignment": how}
    metadata = {MATCH_KEY: canonical_json(about).decode()}
    path = a.store.write_table_parts(a.site, table_name(a, b), MATCHES, [table], metadata)
    _report_summary(a, b, table, how, top)
    say(f"{table.height:,} pairs: [bold]{escape(str(path))}[/] ({time.monotonic() - began:.1f} s)")
    return path


def table_name(a: Side, b: Side) -> str:
    """`matches_<site of b>`; where `b` lies in another store, its folder and plan follow."""
    name = f"matches_{b.site}"
    if a.store.layout.root != b.store.layout.root:
        name += f"_{re.sub(r'[^A-Za-z0-9.+-]', '-', b.store.layout.root.name)}-{b.plan.hash[:8]}"
    return name if len(name) <= 128 else f"{name[:119]}-{b.plan.hash[:8]}"


def incomparable(a: Side, b: Side) -> str | None:
    """Why the decoder rows of the two do not lie in one space; None where they do."""
    widths = [directions_of(side.store, side.site).width for side in (a, b)]
    if None in widths:
        return "because a synthetic site has no decoder"
    if widths[0] != widths[1]:
        return f"because decoder rows have {widths[0]:,} entries in A, {widths[1]:,} in B"
    if a.plan.model_digest != b.plan.model_digest:
        return "because the models differ, and with them the meaning of directions"
    hooks = a.planned.hook_name, b.planned.hook_name
    if hooks[0] != hooks[1] and any(map(INNER_HOOK.search, hooks)):
        return f"for {hooks[0]} and {hooks[1]} are not both in the residual stream"
    return None


def _shards(a: Side, b: Side) -> list[tuple[ShardFiles, ShardFiles]]:
    """Shards of the same tokens that both have extracted; what is not matched is reported."""
    if a.planned.selection != b.planned.selection:
        raise InputError(
            f"{a} reads {a.planned.selection}, {b} {b.planned.selection}: extract both with the same "
            "positions and pooling"
        )
    common = [name for name, sha256 in a.shards.items() if b.shards.get(name) == sha256]
    if not common:
        raise InputError(
            f"{a} and {b} have no extracted token shard in common: extract both from the same tokens"
        )
    if len(common) < max(len(a.shards), len(b.shards)):
        say(f"[yellow]note[/]: only the {len(common)} shards that both have extracted are compared")
    return [(a.store.files(a.site, name), b.store.files(b.site, name)) for name in common]


def _by_cosine(
    a: Side, b: Side, shards: list[tuple[ShardFiles, ShardFiles]], tasks: Tasks, k: int, support: int
) -> tuple[pl.DataFrame, str]:
    """The table, and how features were assigned."""
    own, other = (directions_of(side.store, side.site) for side in (a, b))
    blocks = own.blocks()
    parts = list(
        track(tasks.map(partial(nearest, own, other, k), blocks), "decoder cosines", len(blocks), "blocks")
    )
    feature, other_feature, score = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("feature", "other", "cosine")
    )
    candidates = feature, other_feature
    shape = own.d_sae, other.d_sae
    if fits(*shape):
        matrix = np.concatenate(list(tasks.map(partial(_cosine_rows, own, other), blocks)))
        assigned, how = assign_all(matrix), "by cosine, over all pairs"
        del matrix  # as large as all that is counted below
    else:
        assigned = assign_candidates(*candidates, score.astype(np.float64), shape)
        how = f"by cosine, over the {k} largest of each feature of A"
    given = tuple(np.concatenate(both) for both in zip(candidates, assigned, strict=True))
    count = Counting(shards, *_n_active(shards), k, support, (own, other), (given[0], given[1]))
    table = pl.concat([frame for frame, _ in count.map(tasks)])
    return _finished(table, assigned, "cosine"), how


def _cosine_rows(a: Directions, b: Directions, features: range) -> F32:
    return np.concatenate([cosine for _, cosine in cosines(a, b, features)], axis=1)


def _by_jaccard(
    a: Side, b: Side, shards: list[tuple[ShardFiles, ShardFiles]], tasks: Tasks, k: int, support: int
) -> tuple[pl.DataFrame, str]:
    shape, n_active = (a.planned.d_sae, b.planned.d_sae), _n_active(shards)
    none = np.empty(0, np.int64)
    count = Counting(shards, *n_active, k, support, None, (none, none))
    if fits(*shape):
        tables, both = zip(*count.map(tasks, with_all=True), strict=True)
        assigned, n_both = _assigned_of_all(both, *n_active)
        table = pl.concat([*tables, count.frame(*assigned, n_both)])
        table = table.unique(["feature", "match"], keep="first", maintain_order=True)
        return _finished(table, assigned, "jaccard"), "by Jaccard index, over all pairs"
    table = pl.concat([frame for frame, _ in count.map(tasks)])
    pairs = table["feature"].to_numpy().astype(np.int64), table["match"].to_numpy().astype(np.int64)
    assigned = assign_candidates(*pairs, table["jaccard"].to_numpy(), shape)
    table = _finished(table, assigned, "jaccard")
    return table, f"by Jaccard index, over the {k} highest of each feature of A"


def _assigned_of_all(both: Sequence[I32], n_a: I64, n_b: I64) -> tuple[Pairs, I64]:
    """The best assignment by Jaccard index, and the rows shared; of counts by blocks [features of A, G]."""
    costs, first = np.zeros((len(n_a), len(n_b))), 0
    for shared in both:
        own = slice(first, first + len(shared))
        row, column = np.nonzero(shared)
        counts = PairCounts(shared[row, column].astype(np.int64), n_a[own][row], n_b[column], 0)
        costs[first + row, column] = -jaccard(counts)
        first += len(shared)
    row, column = assign_costs(costs)
    # counts lie in blocks of rows: the assigned pair's block, and its row in there
    starts = np.cumsum([0, *map(len, both)])
    block = np.searchsorted(starts, row, side="right") - 1
    n_both = [both[i][r - starts[i], c] for i, r, c in zip(block, row, column, strict=True)]
    return (row, column), np.array(n_both, np.int64)


def _n_active(shards: Sequence[tuple[ShardFiles, ShardFiles]]) -> tuple[I64, I64]:
    a, b = zip(*shards, strict=True)
    return read_n_active(a, range(a[0].d_sae)), read_n_active(b, range(b[0].d_sae))


@dataclass(frozen=True)
class Counting:
    """Counts pairs of features in the rows of both sites, by blocks of features of A."""

    shards: list[tuple[ShardFiles, ShardFiles]]
    n_a: I64
    n_b: I64
    k: int
    support: int
    directions: tuple[Directions, Directions] | None
    given: Pairs
    """Pairs that are counted in any case, each perhaps more than once."""

    def map(self, tasks: Tasks, *, with_all: bool = False) -> list[tuple[pl.DataFrame, I32]]:
        """The table's rows, a frame for each block.

        `with_all`, each with the rows shared by all pairs [features, G], 0 below the support; else empty.
        """
        blocks = cut(self.n_a, mean_company([b for _, b in self.shards]), len(self.n_b))
        counted = tasks.map(partial(self.count_block, with_all=with_all), blocks)
        return list(track(counted, "co-activation", len(blocks), "blocks of features"))

    def count_block(self, features: range, *, with_all: bool) -> tuple[pl.DataFrame, I32]:
        """See `map`: schema MATCHES without `assigned`; by feature, by match."""
        # a feature that is active in more rows than int32 counts needs int64
        dtype = np.int32 if self.n_a.max(initial=0) <= INT32_ROWS else np.int64
        every = np.zeros((len(features) if with_all else 0, len(self.n_b)), dtype)
        # the given pairs by their first feature: sorted, those of one lie between two cuts
        order = np.argsort(self.given[0], kind="stable")
        cuts = np.searchsorted(self.given[0][order], np.arange(features.start, features.stop + 1))
        given = [self.given[1][order[low:high]] for low, high in pairwise(cuts)]
        by_feature = []
        for number, tally in tallies(self.shards, self.n_a, len(self.n_b), features):
            others, n_both = tally.at_least(1)
            place = number - features.start
            by_feature.append(self._chosen(number, others, n_both, given[place]))
            if with_all:
                enough = n_both >= self.support
                every[place, others[enough]] = n_both[enough]
        matches, both = (np.concatenate(columns) for columns in zip(*by_feature, strict=True))
        feature = np.repeat(
            np.arange(features.start, features.stop), [len(chosen) for chosen, _ in by_feature]
        )
        return self.frame(feature, matches, both), every

    def frame(self, feature: I64, matches: I64, both: I64) -> pl.DataFrame:
        """Rows of the table for some pairs; `feature` ascends."""
        counts = self._counts(feature, matches, both)
        with np.errstate(invalid="ignore"):  # neither fires
            index = jaccard(counts)
        cosine = np.full(len(feature), np.nan)
        if self.directions is not None:
            cosine = pair_cosines(*self.directions, feature, matches)
        values: list[Any] = [feature, matches, cosine, *counts[:3], index]
        names = [name for name in MATCHES if name != "assigned"]
        frame = pl.DataFrame(dict(zip(names, values, strict=True)))
        return frame.cast({name: MATCHES[name] for name in names}).with_columns(
            pl.col("cosine", "jaccard").fill_nan(None)
        )

    def _chosen(self, feature: int, others: I64, n_both: I64, given: I64) -> tuple[I64, I64]:
        """Matches of a feature, ascending, and in how many rows it shares with each."""
        index = jaccard(self._counts(feature, others, n_both))
        index[n_both < self.support] = np.nan
        chosen = np.union1d(others[highest(index, self.k)], given)
        both = np.zeros(len(chosen), np.int64)
        _, place, counted = np.intersect1d(chosen, others, assume_unique=True, return_indices=True)
        both[place] = n_both[counted]
        return chosen, both

    def _counts(self, feature: int | I64, others: I64, n_both: I64) -> PairCounts:
        return PairCounts(n_both, self.n_a[feature], self.n_b[others], 0)


def _finished(table: pl.DataFrame, assigned: Pairs, by: str) -> pl.DataFrame:
    """The assigned pairs marked, the best match of each feature first."""
    chosen = pl.DataFrame({"feature": assigned[0], "match": assigned[1], "assigned": True})
    chosen = chosen.cast({name: MATCHES[name] for name in chosen.columns})
    marked = table.join(chosen, on=["feature", "match"], how="left").with_columns(
        pl.col("assigned").fill_null(value=False)
    )
    order = ["feature", by, "match"]
    return marked.sort(order, descending=[False, True, False], nulls_last=True).select(list(MATCHES))


def _report_summary(a: Side, b: Side, table: pl.DataFrame, how: str, top: int) -> None:
    say(f"[bold]match[/] A {escape(str(a))}: {a.planned.d_sae:,} features ({escape(a.planned.hook_name)})")
    say(f"[bold]match[/] B {escape(str(b))}: {b.planned.d_sae:,} features ({escape(b.planned.hook_name)})")
    best = table.group_by("feature").agg(pl.col("cosine", "jaccard").max())
    cosine, index = best["cosine"].drop_nulls(), best["jaccard"].drop_nulls()
    if cosine.len():
        say(
            f"Largest cosine of a feature of A: {_middle(cosine)}; "
            f"{(cosine > SAME).sum():,} of {cosine.len():,} features have a match above {SAME}"
        )
    if index.len():
        say(
            f"Highest Jaccard index of one: {_middle(index)}; "
            f"{(index > 0.5).sum():,} of {index.len():,} features share more than half of their rows with one"
        )
    pairs = table.filter("assigned")
    means = {"cosine": pairs["cosine"].mean(), "Jaccard index": pairs["jaccard"].mean()}
    mean_scores = "".join(
        f", mean {name} {_number(mean)}" for name, mean in means.items() if mean is not None
    )
    say(f"Assigned one to one {how}: {several(pairs.height, 'pair')}{mean_scores}")
    if top and pairs.height:
        by = "jaccard" if pairs["cosine"].is_null().all() else "cosine"
        shown = Table(title="The clearest pairs", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("feature", "match", "cosine", "jaccard", "n_both", "n_a", "n_b"):
            shown.add_column(name, justify="right")
        clearest = pairs.sort(by, "feature", descending=[True, False], nulls_last=True).head(top)
        named = [(a.store.names(a.site, clearest["feature"]), "feature")]
        named.append((b.store.names(b.site, clearest["match"]), "match"))
        named = [(names, column) for names, column in named if any_named(names, clearest[column])]
        for _, column in named:
            shown.add_column(f"name of {column}")
        for row in clearest.iter_rows(named=True):
            numbers = [str(row[name]) for name in ("feature", "match")]
            values = [_number(row[name]) for name in ("cosine", "jaccard")]
            values += [f"{row[name]:,}" for name in ("n_both", "n_a", "n_b")]
            shown.add_row(*numbers, *values, *(name_cell(names, row[column]) for names, column in named))
        console.print(shown)


def _middle(values: pl.Series) -> str:
    return f"mean {_number(values.mean())}, median {_number(values.median())}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"
