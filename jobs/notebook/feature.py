"""One feature in Python: what the store holds about it, read when it is asked for."""

from __future__ import annotations

import base64
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from jobs.notebook.picture import Picture
from jobs.notebook.strips import Strips
from jobs.report.facts import FIRST, facts
from jobs.report.strips import standalone
from jobs.terminal.names import WIDE, labelled, one_line
from jobs.terminal.strips import AFTER, BEFORE, strips_of, strongest_in
from jobs.views.top import heading, with_token_texts
from pipeline.statistics.features.histogram import bin_edges
from pipeline.store.reading import finding
from schemas.sentences import visible
from schemas.values import F32, U64

if TYPE_CHECKING:
    from jobs.notebook.lake import Lake, Where

SHOWN_STRIPS, SHOWN_TOKENS = 5, 8


class Feature:
    """A feature of a site (`Lake.feature`); a cell shows its statistics, strongest contexts and effects."""

    def __init__(self, lake: Lake, site: str, number: int) -> None:
        """InputError where the site has no feature of this number."""
        lake.require_feature(site, number)
        self.lake, self.site, self.number = lake, site, number

    @property
    def name(self) -> str:
        """What it is called: as annotated or explained, else the tokens it fires on; empty if unknown."""
        return self.lake.names(self.site, [self.number]).name(self.number)

    @cached_property
    def activations(self) -> tuple[U64, F32]:
        """Its rows of the lake, uint64 ascending, and its activation in each, float32."""
        return self.lake.rows_of(self.site, self.number)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Its row of the table `features`; InputError before `latentlake stats`."""
        return self.table("features").row(0, named=True)

    def rows(self, where: Where = None) -> pl.DataFrame:
        """Where it fires: row and document u64, activation f32; only rows that fit a condition on labels."""
        rows, values = self.lake.rows_where(*self.activations, self.lake.condition(where))
        columns = {"row": rows, "document": self.lake.documents_of(rows), "activation": values}
        return pl.DataFrame(columns)

    def table(self, name: str) -> pl.DataFrame:
        """Its rows of a table, such as `labels` or `rankings`; InputError where the table is not there."""
        return self.lake.scan_table(self.site, name).filter(pl.col("feature") == self.number).collect()

    def similar(self, by: str = "cosine", n: int = 10) -> pl.DataFrame:
        """Its nearest neighbours with their names: by `cosine` of decoder rows, or by co-activation.

        Co-activation is measured by `jaccard`, `npmi`, `phi` and `conditional`.
        """
        return self.lake.with_names(finding.similar(self.lake, self.site, self.number, by).head(n), self.site)

    def contexts(
        self,
        k: int = 10,
        where: Where = None,
        before: int | None = BEFORE,
        after: int | None = AFTER,
        *,
        one_per_document: bool = False,
    ) -> pl.DataFrame:
        """Its `k` strongest rows with their labels and the tokens around them, as `FeatureStore.contexts`.

        Another column: `tokens`, the text of each token. `where` is a condition on labels, as text
        ("year > 1900 and party = 'Whig'") or a Polars expression.
        """
        condition = self.lake.condition(where)
        found = self.lake.contexts(
            self.site, self.number, k, condition, before, after, one_per_document=one_per_document
        )
        return with_token_texts(self.lake, found)

    def strips(
        self,
        k: int = 10,
        where: Where = None,
        before: int | None = BEFORE,
        after: int | None = AFTER,
        *,
        maximum: float | None = None,
        one_per_document: bool = False,
    ) -> Strips:
        """The same as texts that are shaded by its activations; full shade is `maximum`, or the strongest."""
        contexts = self.contexts(k, where, before, after, one_per_document=one_per_document)
        averaged = self.lake.site(self.site).selection.is_averaged
        strips = strips_of(self.lake, contexts, *self.activations, averaged=averaged)
        rows = zip(contexts["activation"], contexts.iter_rows(named=True), strict=True)
        heads = [f"{value:.4g} · {heading(self.lake, row, self.site)}" for value, row in rows]
        most = strongest_in([self.activations[1]]) if maximum is None else maximum
        title = f"feature {self._label()}; full shade: {most:.4g}"
        return Strips(title, heads, strips, [most] * len(strips))

    def tokens(self) -> pl.DataFrame:
        """Tokens whose logits it raises and lowers most (W_dec @ W_U, about its mean over the vocabulary).

        Columns: promoted, effect_promoted, suppressed, effect_suppressed; no rows where the model has no one
        unembedding matrix, or the table is of an earlier version. InputError before `latentlake logits`.
        """
        row = self.table("logits").row(0, named=True)
        columns: dict[str, Any] = {}
        for side in ("promoted", "suppressed"):
            columns[side] = self.lake.token_texts(row.get(f"{side}_tokens") or [])
            columns[f"effect_{side}"] = row.get(f"{side}_effects") or []
        types = {name: pl.Float32 if name.startswith("effect") else pl.String for name in columns}
        return pl.DataFrame(columns, schema=types)

    def plot(self, language: str = "en") -> Picture:
        """The histogram of its activations, and of its effect on all tokens where `latentlake logits` ran."""
        from jobs.figures.one_feature import draw_one_feature

        row, has_logits = self.statistics, self.lake.has_table(self.site, "logits")
        edges = bin_edges(np.array(row["histogram_bins"], np.int16))
        logits = self.table("logits").row(0, named=True) if has_logits else None
        name = one_line(self.name)
        return Picture(
            self.lake, self.site, lambda: draw_one_feature(row, edges, logits, self.site, name), language
        )

    def _label(self) -> str:
        return f"{labelled(self.lake.names(self.site, [self.number]), self.number, WIDE)} of {self.site}"

    def __repr__(self) -> str:
        if not self.lake.has_table(self.site, "features"):
            return f"feature {self._label()}, active in {len(self.activations[0]):,} rows"
        row = self.statistics
        often = f"active in {row['n_active']:,} of {row['counted_rows']:,} counted rows"
        if not row["n_active"]:
            return f"feature {self._label()}, {often}"
        strongest = max((row["min_activation"], row["max_activation"]), key=abs)
        return f"feature {self._label()}, {often}, mean {row['mean_active']:.4g}, strongest {strongest:.4g}"

    def _repr_html_(self) -> str:
        parts = [f"<h4>feature {escape(visible(self._label()))}</h4>"]
        if self.lake.has_table(self.site, "features"):
            parts.append(self._facts_html())
        if len(self.activations[0]):
            parts.append(self.strips(SHOWN_STRIPS)._repr_html_())
        if self.lake.has_table(self.site, "logits"):
            parts.append(self._tokens_html())
        if self.lake.has_table(self.site, "features"):
            data = base64.b64encode(self.plot().png).decode()
            parts.append(
                f'<img alt="histograms of the feature" width="640" src="data:image/png;base64,{data}">'
            )
        return "".join(parts)

    def _facts_html(self) -> str:
        profile = None
        if self.lake.has_table(self.site, "profile"):
            profile = self.table("profile").row(0, named=True)
        token = None if profile is None else profile["top_token"]
        name = None if token is None else standalone(self.lake.vocabulary.texts[token])
        first = facts(self.statistics, profile, name, [])[:FIRST]
        return f"<p>{' · '.join(f'{escape(fact)} <b>{escape(value)}</b>' for fact, value, _, _ in first)}</p>"

    def _tokens_html(self) -> str:
        tokens, parts = self.tokens().head(SHOWN_TOKENS), []
        for side, what in (("promoted", "Promotes"), ("suppressed", "Suppresses")):
            texts = " ".join(f"<code>{escape(standalone(text))}</code>" for text in tokens[side])
            parts.append(f"<p>{what} {texts}</p>" if texts else "")
        return "".join(parts)
