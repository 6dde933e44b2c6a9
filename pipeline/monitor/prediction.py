"""What an extraction will take: predicted from a few shards, kept in the store, compared with the fact.

A prediction is not data: it may be wrong, may be made anew, and nothing is computed from it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as record

from pipeline.monitor import logs
from pipeline.monitor.tally import Tally
from pipeline.store.objects.verbs import write_atomic
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import FORMAT_VERSION, Receipt, Record

AFTER_S = 60.0
"""A run without a prediction makes one from what it committed in its first minute,"""
AFTER_SHARE = 8
"""or in its first eighth, what comes first; the eighth must hold"""
WARM_SHARDS = 3
"""besides each worker's first: a mean of fewer says little."""


@record(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Span:
    """A figure, and the lowest and highest of it among the sampled shards."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Span:
        """The figure in another unit."""
        return Span(self.value * factor, self.low * factor, self.high * factor)

    def format(self, digits: str = ",.3g") -> str:
        """In words."""
        value = f"{self.value:{digits}}"
        return value if self.low == self.high else f"{value} ({self.low:{digits}} to {self.high:{digits}})"


@dataclass(frozen=True)
class Sample:
    """One shard that was extracted; `bytes` by kind of object."""

    rows: int
    seconds: float
    nnz: int
    bytes: dict[str, float]
    objects: int


class Prediction(Record):
    """passes/<pass>/prediction.json."""

    format_version: int = FORMAT_VERSION
    plan_hash: str
    source: str
    """What it was made from, in words."""
    made: float
    """Unix seconds."""
    rows: int
    """Token rows of the corpus, about."""
    shard_rows: int
    """Token rows of a shard, about."""
    workers: int
    """The number of workers for which it was made."""
    load_seconds: float
    """Until a worker is ready."""
    tokens_per_second: Span
    """Of one worker."""
    nonzeros_per_token: Span
    bytes_per_token: Span
    bytes_by_kind: dict[str, float]
    """Bytes a token, by kind of object."""
    objects_per_shard: float
    assumed: tuple[str, ...] = ()

    def seconds(self, rows: int, workers: int) -> Span:
        """Wall time of so many rows, all workers at once; the last round of shards may not keep all busy."""
        # The worker with most shards ends last: it has one of each round, ceil(shards / workers) of them.
        shards = max(1, math.ceil(rows / self.shard_rows))
        longest = min(rows, math.ceil(shards / workers) * self.shard_rows)
        rate = self.tokens_per_second
        # The highest rate gives the lowest time, so the ends change places.
        of = [self.load_seconds + longest / each for each in (rate.value, rate.high, rate.low)]
        return Span(*of)


def sample(receipt: Receipt) -> Sample:
    """The sample that a committed shard gives."""
    tally = Tally()
    tally.add(receipt)
    return Sample(tally.rows, tally.seconds, tally.nonzeros, dict(tally.bytes), tally.objects)


def predict(
    samples: Sequence[Sample],
    *,
    plan_hash: str,
    source: str,
    rows: int,
    shard_rows: int,
    workers: int,
    load_seconds: float,
    assumed: Sequence[str] = (),
) -> Prediction:
    """The prediction that these shards make (at least one, each with rows)."""
    total = sum(s.rows for s in samples)
    kinds = sorted({kind for s in samples for kind in s.bytes})
    return Prediction(
        plan_hash=plan_hash,
        source=source,
        made=round(time.time(), 3),
        rows=rows,
        shard_rows=shard_rows,
        workers=workers,
        load_seconds=round(load_seconds, 3),
        tokens_per_second=_span(samples, lambda s: s.rows, lambda s: max(s.seconds, 1e-9)),
        nonzeros_per_token=_span(samples, lambda s: s.nnz, lambda s: s.rows),
        bytes_per_token=_span(samples, lambda s: sum(s.bytes.values()), lambda s: s.rows),
        bytes_by_kind={kind: sum(s.bytes.get(kind, 0) for s in samples) / total for kind in kinds},
        objects_per_shard=sum(s.objects for s in samples) / len(samples),
        assumed=tuple(assumed),
    )


def _span(samples: Sequence[Sample], of: Callable[[Sample], float], per: Callable[[Sample], float]) -> Span:
    """Ratio of the sums, with the lowest and the highest of a shard."""
    each = [of(s) / per(s) for s in samples]
    return Span(sum(map(of, samples)) / sum(map(per, samples)), min(each), max(each))


def read_prediction(layout: Layout, pass_name: str) -> Prediction | None:
    """The prediction in force for a pass; None where there is none, or a damaged one, which is logged."""
    path = layout.prediction(pass_name)
    if not path.exists():
        return None
    try:
        prediction = Prediction.from_json(path.read_bytes(), str(path))
    except (InputError, OSError) as error:
        logs.log_event("no_prediction", logging.WARNING, why=str(error))
        return None
    return prediction


def write_prediction(layout: Layout, pass_name: str, prediction: Prediction) -> None:
    """Replace it."""
    write_atomic(layout.prediction(pass_name), prediction.to_json())


def compared(
    prediction: Prediction, fresh: Tally, wall_s: float, workers: int
) -> list[tuple[str, Span, float]]:
    """Figure, predicted, fact, of what one run committed."""
    rows = max(fresh.rows, 1)
    return [
        ("tokens/s per worker", prediction.tokens_per_second, fresh.rate),
        ("nonzeros per token", prediction.nonzeros_per_token, fresh.nonzeros / rows),
        ("bytes per token", prediction.bytes_per_token, fresh.size / rows),
        ("seconds", prediction.seconds(rows, workers), wall_s),
    ]


class Forecast:
    """Sees to it that a run has a prediction: the store's, else one from its own first shards."""

    def __init__(self, layout: Layout, clock: Callable[[], float] = time.monotonic) -> None:
        self._layout, self._clock, self._began = layout, clock, clock()
        self._samples: list[Sample] = []
        self._load_seconds = 0.0
        self.prediction: Prediction | None = None

    def begin(self, plan_hash: str, pass_name: str, rows: int, shards: int, workers: int) -> None:
        """What is to do: rows and shards that are not committed yet."""
        self._plan_hash, self._pass, self._workers = plan_hash, pass_name, workers
        self._rows, self._shards = rows, shards
        stored = read_prediction(self._layout, pass_name)
        if stored is not None and stored.plan_hash == plan_hash:
            self.prediction = stored

    def ready(self) -> None:
        """A worker has loaded everything."""
        self._load_seconds = self._load_seconds or self._clock() - self._began

    def observe(self, receipt: Receipt) -> None:
        """Learn from a shard, while nothing is predicted."""
        if self.prediction is not None or not receipt.rows:
            return
        self._samples.append(sample(receipt))
        # All but each worker's first shard, in which it warms up, where others are left.
        warm = self._samples[min(self._workers, len(self._samples) // 2) :]
        enough = len(self._samples) * AFTER_SHARE >= self._shards and len(warm) >= WARM_SHARDS
        if not enough and (len(self._samples) < 2 or self._clock() - self._began < AFTER_S):
            return
        self.prediction = predict(
            warm,
            plan_hash=self._plan_hash,
            source=f"the run's own first {len(self._samples)} shards",
            rows=self._rows,
            shard_rows=max(1, round(self._rows / max(self._shards, 1))),
            workers=self._workers,
            load_seconds=self._load_seconds,
        )
        self._samples.clear()
        try:
            write_prediction(self._layout, self._pass, self.prediction)
        except (InputError, OSError) as error:  # a full disk ends a run by its shards, not by its prediction
            logs.log_event("no_prediction", logging.WARNING, why=str(error))
