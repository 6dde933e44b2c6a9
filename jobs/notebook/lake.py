"""A store as `latentlake.open` gives it: a `FeatureStore`, and the questions of the commands in a line each.

A site may be left out where there is one with features. Nothing is printed, and modules are imported when
they are first needed: opening loads neither a model nor matplotlib.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeAlias

import polars as pl

from jobs.terminal.names import one_line
from jobs.terminal.units import unit_of_lake
from pipeline.store import FeatureStore
from pipeline.store.reading.contexts import label_column
from pipeline.store.reading.label_filters import label_filter
from schemas.errors import InputError
from schemas.sentences import several

if TYPE_CHECKING:
    from scipy import sparse

    from jobs.notebook.comparison import Comparison
    from jobs.notebook.elicited import Elicited
    from jobs.notebook.feature import Feature
    from jobs.notebook.picture import Picture
    from pipeline.evaluation.steering import Changes, Steered
    from pipeline.evaluation.typed_text import Places, TextSession
    from pipeline.statistics.pooling import Pooling
    from pipeline.store.reading.example_texts import ExampleTexts
    from pipeline.store.reading.matrix import Group, Matrix

Where: TypeAlias = str | pl.Expr | None
"""A condition on labels: text ("year > 1900 and party = 'Whig'"), or an expression over the label columns."""


@contextmanager
def _no_advice_on_widgets() -> Iterator[None]:
    """Libraries that load models do not warn that a notebook lacks widgets for their progress bars."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        yield


class Lake(FeatureStore):
    """A store for questions; what it loads for one (a model, texts of examples) is kept for the next."""

    @cached_property
    def places(self) -> Places:
        """Where model, SAE and tokenizer lie now, and the device: by default where they lay; may be set."""
        from pipeline.evaluation.typed_text import Places

        return Places()

    def again(self) -> Self:
        """The store in its current state; a model that was loaded stays loaded."""
        lake = super().again()
        lake.places, lake.sessions = self.places, self.sessions
        return lake

    @cached_property
    def sessions(self) -> dict[tuple[str, Places], TextSession]:
        """The models and SAEs that are loaded."""
        return {}

    def feature(self, feature: int, *, site: str | None = None) -> Feature:
        """One feature; InputError where the site does not have it."""
        from jobs.notebook.feature import Feature

        return Feature(self, self.require_features(site).name, feature)

    def find(
        self,
        token: str | None = None,
        *,
        text: str | None = None,
        name: str | None = None,
        similar_to: int | None = None,
        where: str | Sequence[str] = (),
        by: str | None = None,
        n: int = 20,
        site: str | None = None,
    ) -> pl.DataFrame:
        """The first `n` features, with their names, that `latentlake find` finds.

        One of: those that fire on a token (" war"); in whose examples a `text` stands; whose `name`, note or
        explanation holds a text; the nearest ones to a feature. `where`: conditions on columns of the
        features ("n_active > 50"), with any of these or alone. `by`: the order. InputError as `latentlake
        find`.
        """
        from pipeline.store.reading import finding
        from pipeline.store.reading.example_texts import text_pattern

        site = self.require_features(site).name
        conditions = [where] if isinstance(where, str) else list(where)
        given = {"token": token, "text": text, "name": name, "similar_to": similar_to}
        if len(kinds := [kind for kind, value in given.items() if value is not None]) > 1:
            raise InputError(f"{' and '.join(kinds)} are given: find by one of them")
        if token is not None:
            tokens = finding.tokens_of(self, site, token)
            rows = finding.on_token(self, site, tokens, conditions, by or finding.BY_TOKEN[0])
            named = pl.Series("token", self.token_texts(rows["token_id"].to_list()), pl.String)
            rows = rows.select("feature", named, pl.exclude("feature", "token_id"))
        elif text is not None:
            pattern, texts = text_pattern(text), self._texts_of(site)
            rows = finding.near_text(self, site, pattern, conditions, by or finding.BY_TEXT[0], texts)
        elif name is not None:
            rows = finding.by_name(self, site, name, conditions)
        elif similar_to is not None:
            rows = finding.similar(self, site, similar_to, by or finding.BY_SIMILARITY[0])
        elif conditions:
            rows = finding.by_columns(self, site, conditions, by or finding.BY_FEATURE)
        else:
            raise InputError("give a token such as ' war', text=, name=, similar_to= or where=")
        return self.with_names(rows.head(n), site)

    def window(
        self,
        by: str,
        start: int,
        stop: int,
        *,
        ascending: bool = False,
        support: int | None = None,
        site: str | None = None,
    ) -> pl.DataFrame:
        """Features of ranks `start` to `stop` - 1 by a column of numbers, rank 0 first, with their names.

        Those with fewer active rows than `support` (default: 10) come last, as in `latentlake rank`; with 0
        all are ranked alike. Columns and errors: `jobs.tables.rank.window`.
        """
        from jobs.tables.rank import window
        from jobs.tables.ranking import SUPPORT

        site = self.require_features(site).name
        floor = SUPPORT if support is None else support
        return self.with_names(window(self, site, by, start, stop, not ascending, floor), site)

    def acts(
        self, features: Sequence[int] | None = None, rows: range | None = None, *, site: str | None = None
    ) -> sparse.csr_matrix | sparse.csc_matrix:
        """Stored activations over all shards, float32 [rows, features], sparse.

        Of some features (by column, CSC), of some rows of the lake (CSR), or of both; see
        `pipeline.store.reading.matrix.activation_matrix`.
        """
        from pipeline.store.reading.matrix import activation_matrix

        return activation_matrix(self, self.require_features(site).name, features, rows)

    def matrix(
        self,
        rows: Group = "document",
        pool: Pooling = "max",
        *,
        features: Sequence[int] | None = None,
        where: Where = None,
        site: str | None = None,
    ) -> Matrix:
        """Activations pooled over each document, context or token (max, mean, sum or last).

        Its `values` are float32 [R, F], sparse, its `rows` a frame with the labels; see
        `pipeline.store.reading.matrix.pooled_matrix`.
        """
        from pipeline.store.reading.matrix import pooled_matrix

        return pooled_matrix(self, self.require_features(site).name, rows, pool, features, where)

    def compare(
        self, where_a: str | pl.Expr, where_b: str | pl.Expr, *, site: str | None = None
    ) -> Comparison:
        """In which features two groups of documents differ: frequency in b minus that in a, tested.

        Errors and statistics: `pipeline.store.reading.comparison.compare_groups`.
        """
        from jobs.notebook.comparison import Comparison

        return Comparison(self, self.require_features(site).name, where_a, where_b)

    def elicit(self, text: str, *, position: int | None = None, site: str | None = None) -> Elicited:
        """The features of a text that the site's model reads: at one position, or the mean over all.

        The first text loads model and SAE, which takes seconds; they stay loaded. InputError where they are
        not those of the store (`places`), and for a position that is not in the text.
        """
        from jobs.notebook.elicited import Elicited

        site = self.require_features(site).name
        self.scan_features(site)  # raises where there is no feature table, before the model is loaded
        with _no_advice_on_widgets():
            typed = self.session(site).run(text)
        return Elicited(self, site, text, typed, position)

    def steer(
        self,
        prompt: str,
        changes: Changes,
        *,
        n_tokens: int = 40,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        site: str | None = None,
    ) -> Steered:
        """A prompt continued by the site's model, as it is and with features changed.

        `changes` as {184: 20.0}; see `pipeline.evaluation.generation.steer_text`.
        """
        from pipeline.evaluation.generation import steer
        from pipeline.evaluation.steering import Sampling, require_text

        site = self.require_features(site).name
        sampling = Sampling(n_tokens, temperature, top_k, seed)
        sampling.check()
        require_text(self, site)
        with _no_advice_on_widgets():
            return steer(self.session(site), prompt, changes, sampling)

    def plot(self, figure: str, *, site: str | None = None, language: str = "en") -> Picture:
        """One of the figures of `latentlake plots`, such as `frequency` or `l0`, from its table.

        InputError for a figure that there is none of, and where its table is not there.
        """
        from jobs.figures import FIGURES
        from jobs.notebook.picture import Picture

        site = self.require_features(site).name
        if figure not in FIGURES:
            raise InputError(f"there is no figure {figure!r}: choose one of {', '.join(FIGURES)}")
        table = self.scan_table(site, FIGURES[figure].table).collect()
        return Picture(self, site, lambda: FIGURES[figure].draw(table, site), language)

    def with_names(self, frame: pl.DataFrame, site: str | None = None) -> pl.DataFrame:
        """A frame with a column `feature`, and after that `name`: what it is called, null if unknown.

        Names are as tables show them: characters that are not seen have marks, and what is long is cut.
        """
        names = self.names(self.require_features(site).name, frame["feature"])
        texts = [one_line(names.name(feature)) or None for feature in frame["feature"]]
        place = frame.columns.index("feature") + 1
        return frame.clone().insert_column(place, pl.Series("name", texts, pl.String))

    def condition(self, where: Where) -> pl.Expr | None:
        """A condition on labels as `contexts` takes it; InputError where it is none."""
        return label_filter(self, where, label_column) if isinstance(where, str) else where

    def session(self, site: str | None = None) -> TextSession:
        """The model and the SAE of a site, loaded when they are first needed, or when `places` changed."""
        from pipeline.evaluation.typed_text import TextSession

        key = self.require_features(site).name, self.places
        if key not in self.sessions:
            self.sessions[key] = TextSession(self, key[0], self.places)
        return self.sessions[key]

    def _texts_of(self, site: str) -> ExampleTexts:
        if site not in self._texts:
            from pipeline.store.reading.example_texts import ExampleTexts

            self._texts[site] = ExampleTexts(self, site)
        return self._texts[site]

    @cached_property
    def _texts(self) -> dict[str, ExampleTexts]:
        return {}

    def __repr__(self) -> str:
        documents, rows = (sum(getattr(each, n) for each in self.shards) for n in ("documents", "rows"))
        size = f"{several(documents, 'document')}, {several(rows, unit_of_lake(self))}"
        labels = ", ".join(self.lake.label_columns) or "none"
        lines = [f"{self.layout.root}: {size} in {several(len(self.shards), 'shard')}; labels: {labels}"]
        return "\n".join([*lines, *(f"  {name}: {self._about(name)}" for name in self.sites)])

    def _about(self, site: str) -> str:
        """What a site has, in a line."""
        info, committed = self.site(site), len(self.committed(site))
        left = f"; {committed} of {len(self.shards)} shards are committed"
        rest = left if committed < len(self.shards) else ""
        if not info.has_sae:
            return f"x at {info.hook_name}{rest}"
        fired = sum(receipt.nnz for receipt in self.site_receipts(site).values())
        return (
            f"{several(info.d_sae, 'feature')} ({info.architecture}) at {info.hook_name}, "
            f"{several(fired, 'activation')}{rest}; {several(len(self.tables(site)), 'table')}"
        )
