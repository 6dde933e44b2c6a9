"""A short trial of a run: the beginning of the corpus through one worker, in a scratch store, to learn rates.

Two small shards warm the worker up and only show how large the next ones may be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import statistics
from pipeline.monitor.prediction import Prediction, Sample, predict, sample
from pipeline.plans.plan import make_plan
from pipeline.sources import Source, open_source
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import put_if_absent
from pipeline.store.records.tokens import read_lake, read_links, read_stored_tokens
from pipeline.tokens.lake_rule import check_rule
from pipeline.tokens.packing import ContextRule
from pipeline.tokens.tokenize import shard_target, tokenize
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.worker import Worker
from schemas.errors import InputError
from schemas.layout import CONTROL, CONTROL_L0, PARTIALS, ROW_COUNTS, Layout
from schemas.records import CorpusLink, Lake, Plan, Receipt
from schemas.run.file import RunFile
from schemas.sentences import several

TEXT_BYTES = 1 << 21
"""Text from which the tokens of a byte are estimated."""
SHARDS = 4
"""Shards that the time is planned for; they are made no larger than the run's own."""

Begin = Callable[[str], object]


@dataclass(frozen=True)
class Corpus:
    """How much there is to run: token rows, those of a shard, and what of that is a guess."""

    rows: int
    shard_rows: int
    assumed: tuple[str, ...]


@dataclass
class Probe:
    """A scratch store, and one worker in this process that writes into it."""

    run: RunFile
    folder: Path
    seconds: float
    clock: Callable[[], float] = time.monotonic
    samples: list[Sample] = field(default_factory=list)
    load_seconds: float = 0.0

    def __post_init__(self) -> None:
        assert self.run.tokens.tokenizer is not None
        self.layout = Layout(self.folder)
        stored = Layout(store_path(self.run.store.root))
        lake = read_lake(stored)
        self._tokenizer = load_tokenizer(
            self.run.tokens.tokenizer, None if lake is None else lake.tokenizer_digest
        )
        if lake is not None:  # what the run file does not say is as it is there
            check_rule(stored.root, lake, self.run, self._tokenizer)
            put_if_absent(self.layout.lake, lake.to_json())
        self._source = open_source(self.run.corpus)

    def predict(self, begin: Begin = lambda what: None) -> Prediction:
        """Run the probe; InputError as tokenizing and extracting raise."""
        begin("tokenizing the beginning")
        rows = self._warm_up_rows()
        warm_up = self._tokenize(rows, -(-rows // 2))
        lake = read_lake(self.layout)
        assert lake is not None
        plan = make_plan(self.run, lake)
        put_if_absent(self.layout.plan(plan.pass_name), plan.to_json())
        corpus = self._corpus(lake)
        begin("loading the model")
        worker, loading = Worker(self.layout.root, plan), self.clock()
        worker.setup()
        self.load_seconds = self.clock() - loading
        begin("probing")
        receipts = [worker.process(record.name) for record in warm_up.shards]
        # The warm-up counts only where there is nothing else, in a corpus no larger than that.
        receipts = self._measure(worker.process, receipts[-1], corpus) or receipts
        self.samples = [sample(receipt) for receipt in receipts if receipt.rows]
        probed, n = sum(s.rows for s in self.samples), len(self.samples)
        scaled, assumptions = self._as_large(plan, receipts, corpus.shard_rows)
        return predict(
            scaled,
            plan_hash=plan.hash,
            source=f"a probe of {probed:,} tokens in {several(n, 'shard')}",
            rows=corpus.rows,
            shard_rows=corpus.shard_rows,
            workers=self.run.extract.workers,
            load_seconds=self.load_seconds,
            assumed=(*corpus.assumed, *assumptions),
        )

    def _warm_up_rows(self) -> int:
        """Some batches, at most a tenth of those requested."""
        size = self.run.tokens.context_size
        assert size is not None
        rows = 8 * self.run.extract.batch_contexts * size
        return min(rows, max(size, (self.run.tokens.limit or 10 * rows) // 10))

    def _tokenize(self, limit: int, shard_rows: int) -> CorpusLink:
        """The beginning of the corpus as a new link of the scratch store."""
        beginning = self.run.tokens.model_copy(update={"limit": limit, "shard_tokens": shard_rows})
        run, stored = self.run.model_copy(update={"tokens": beginning}), read_stored_tokens(self.layout)
        return tokenize(self.layout, stored, run, self._tokenizer, append=True, may_repeat=True)

    def _measure(self, process: Callable[[str], Receipt], warm: Receipt, corpus: Corpus) -> list[Receipt]:
        """Shards as large as the run's, or as the time allows, until it is over; at least one."""
        rate = warm.rows / max(warm.work_seconds, 1e-9)
        rows = max(min(corpus.shard_rows, int(rate * self.seconds / SHARDS)), warm.rows)
        # Half as many again, for the worker gets faster once it is warm; the clock ends it anyway.
        limit = min(max(int(1.5 * rate * self.seconds), rows), corpus.rows)
        if limit <= self._warm_up_rows():
            return []
        shards, receipts = self._tokenize(limit, rows).shards, []
        end = self.clock() + self.seconds
        for record in shards:
            receipts.append(process(record.name))
            if self.clock() >= end:
                break
        return receipts

    def _corpus(self, lake: Lake) -> Corpus:
        """How much the run has to do, from its store where the tokens are there."""
        stored = Layout(store_path(self.run.store.root))
        if records := [record for link in read_links(stored) for record in link.shards]:
            rows = sum(record.rows for record in records)
            return Corpus(rows, math.ceil(rows / len(records)), ())
        limit, size = self.run.tokens.limit, self._source.estimated_bytes()
        if size is None and limit is None:
            raise InputError(
                f"the size of {self.run.corpus.path} is unknown: set tokens.limit, or tokenize it first"
            )
        most = self.run.tokens.document_limit
        rows, read, is_all = rows_of_text(self._source, self._tokenizer, lake, most)
        assumed: tuple[str, ...] = ()
        if is_all:
            total = min(rows, limit or rows)
        elif size is None or (limit is not None and limit <= int(size * rows / read)):
            assert limit is not None
            total = limit
        else:
            total = int(size * rows / read)
            text = f"{size:,} bytes at {read / rows:.2f} bytes per token, as in its first {read:,} bytes"
            assumed = (f"the corpus is {total:,} tokens: {text}",)
        return Corpus(total, min(shard_target(self._source, self.run.tokens), total), assumed)

    def _as_large(
        self, plan: Plan, receipts: list[Receipt], shard_rows: int
    ) -> tuple[list[Sample], tuple[str, ...]]:
        """The samples with partials as large as they are, for each token, in the run's own larger shards."""
        mean = sum(s.rows for s in self.samples) / len(self.samples)
        if shard_rows < 1.5 * mean or not any(site.has_sae for site in plan.sites):
            return self.samples, ()
        if len(receipts) < 2:
            return self.samples, ("partials take as many bytes per token as in the one shard of the probe",)
        # What the partials would weigh of a shard that holds all shards of the probe tells how they grow.
        store, path, combined = FeatureStore.open(self.folder), self.folder / "combined.parquet", 0
        for site in (site for site in plan.sites if site.has_sae):
            frames = (store.partials(site.name, receipt.shard) for receipt in receipts)
            write_frame(path, statistics.combine(list(frames)))
            combined += path.stat().st_size
        one = sum(s.bytes[PARTIALS] for s in self.samples) / len(self.samples)
        exponent = math.log(combined / one) / math.log(len(receipts))
        factor = (shard_rows / mean) ** (min(max(exponent, 0.0), 1.0) - 1)
        # These have one size whatever the shard's: by token they shrink as it grows.
        factors = {PARTIALS: factor, **dict.fromkeys((ROW_COUNTS, CONTROL, CONTROL_L0), mean / shard_rows)}
        scaled = [
            replace(s, bytes={kind: n * factors.get(kind, 1.0) for kind, n in s.bytes.items()})
            for s in self.samples
        ]
        return scaled, (
            f"the partials of a shard grow as its tokens to the power {exponent:.2f}, as from {mean:,.0f} "
            f"to {mean * len(receipts):,.0f} tokens",
        )


def rows_of_text(
    source: Source, tokenizer: Tokenizer, lake: Lake, document_limit: int | None = None
) -> tuple[int, int, bool]:
    """Token rows and bytes of the first documents, and whether that was all."""
    texts, read, is_all = [], 0, True
    for document in source.documents():
        texts.append(document.text[:TEXT_BYTES])
        read += len(texts[-1].encode())
        if read >= TEXT_BYTES:
            is_all = False
            break
    rule, place = ContextRule.of(lake), 0
    for ids in tokenizer.encode_batch(texts, lake.special_text):
        place = rule.after(place, len(ids[:document_limit]))
    return rule.rows(place), read, is_all
