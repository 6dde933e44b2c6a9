"""Very many tiny shards: what the driver spends on each, whether its memory grows, how quickly it resumes.

Real Ray actors, dispatch, commits, events and manifest; only the work is left out: an actor commits a receipt
of invented objects at once. Its commit waits for the disk twice; so a second, shorter run with actors that
answer without a commit shows what dispatch alone takes.
"""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import yaml

from jobs.bench.inputs import write_sae, write_tokenizer
from jobs.bench.memory import kilobytes
from jobs.bench.report import Section
from jobs.lake.tokenize import tokenize_resolved
from pipeline.models.device import describe_device
from pipeline.plans.plan import environment, resolve
from pipeline.run import extract
from pipeline.store import FeatureStore
from pipeline.store.objects.verbs import put_if_absent
from pipeline.store.records.commits import commit
from pipeline.store.records.tokens import read_links
from schemas.layout import CSR, PARTIALS, POSTINGS, ROW_COUNTS, Layout
from schemas.records import CorpusLink, DataObject, Receipt, SiteReceipt
from schemas.run.file import RunFile, parse_run_file
from schemas.values import Hello

SHARDS, WORKERS = 20_000, 2
TARGET_MS, TARGET_MB, TARGET_RESUME_S = 5.0, 100.0, 10.0
ANSWERED = 5_000
"""Shards, at most, of the run without commits."""
WARM = 0.1
"""Share of the shards after which the driver's memory should grow no more."""


@dataclass(frozen=True)
class Result:
    """What many shards cost the driver."""

    shards: int
    wall_ms: float
    """Of a shard, with two actors that do nothing but commit."""
    dispatch_ms: float
    """The same with actors that answer at once, and commit nothing."""
    driver_ms: float
    """CPU time of the driver for a shard, when workers are there."""
    growth_mb: float
    """Resident memory of the driver at the end, above that after a tenth of the shards."""
    peak_mb: float
    resume_s: float
    """`latentlake extract` once more, the whole process."""
    open_s: float
    """Opening the store and reading all receipts."""
    open_mb: float
    """Resident memory that takes."""


class IdleActor:
    """Stands in for `ray_backend.ExtractionActor`: commits at once, of data that are not there."""

    def __init__(self, job: Any) -> None:
        self._layout, self._plan = Layout(Path(job.root)), job.plan
        links = read_links(self._layout)
        self._tokens = {record.name: record for link in links for record in link.shards}
        self._environment, self._device = environment(), describe_device(self._plan.device)

    def hello(self) -> Hello:
        """Ready at once, on the device of the run."""
        return Hello("bench", os.getpid(), (), self._plan.device, self._device, self._environment)

    def rows_done(self, shard: str) -> int:  # noqa: ARG002
        """No shard lasts."""
        return 0

    def process(self, shard: str) -> Receipt:
        """Commit a receipt as large as real ones are."""
        return commit(self._layout, self._plan.pass_name, self._receipt(shard))

    def _receipt(self, shard: str) -> Receipt:
        names = [f"{s.name}/{n}" for s in self._plan.sites for n in (CSR, POSTINGS, PARTIALS, ROW_COUNTS)]
        digest = hashlib.sha256(shard.encode()).hexdigest()
        return Receipt(
            shard=shard,
            attempt=uuid.uuid4().hex,
            plan_hash=self._plan.hash,
            tokens_sha256=self._tokens[shard].sha256,
            rows=self._tokens[shard].rows,
            sites={s.name: SiteReceipt(1000, 0, 0.001) for s in self._plan.sites},
            objects=tuple(DataObject(name, 4_000, digest) for name in names),
            seconds={"read": 0.01, "forward": 0.2, "encode": 0.1, "write": 0.05},
            peak_rss_bytes=1 << 30,
            environment={"device_model": self._device, "host": "bench", **self._environment},
        )


class SilentActor(IdleActor):
    """Answers at once, with a receipt that it does not commit."""

    def process(self, shard: str) -> Receipt:
        """Make the receipt."""
        return self._receipt(shard)


def run(folder: Path, threads: int, shards: int = SHARDS) -> Section:
    """Measure."""
    assert threads > 0
    return section_of(measure(folder, shards))


@dataclass
class Watch:
    """What the driver has taken when each shard ended."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)

    def __call__(self, **event: Any) -> None:
        """One shard more, where the event says so."""
        if event["event"] not in ("committed", "quarantined"):
            return
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.resident_mb.append(kilobytes("VmRSS") / 1e3)


def dispatched(run_file: RunFile, actor: type[IdleActor]) -> Watch:
    """A run with such workers."""
    watch = Watch()
    with patch("pipeline.executors.on_ray.actors.ExtractionActor", actor):
        extract(Layout(Path(run_file.store.root)), run_file, on_event=watch)
    return watch


def growth(values: list[float]) -> float:
    """From a tenth of the shards to the last."""
    return values[-1] - values[int(len(values) * WARM)]


def each_ms(seconds: list[float]) -> float:
    """Milliseconds of a shard, after a tenth of them."""
    return 1e3 * growth(seconds) / (len(seconds) - 1 - int(len(seconds) * WARM))


def measure(folder: Path, shards: int) -> Result:
    """One run over so many shards, and what comes after."""
    run_file, path = prepare(folder / "committed", shards)
    layout = Layout(Path(run_file.store.root))
    watch = dispatched(run_file, IdleActor)
    before = kilobytes("VmRSS") / 1e3
    began = time.perf_counter()
    opened = FeatureStore.open(layout.root)
    assert len(opened.pass_receipts("bench")) == shards
    open_s = time.perf_counter() - began
    open_mb = kilobytes("VmRSS") / 1e3 - before
    silent, _ = prepare(folder / "silent", min(shards, ANSWERED))
    return Result(
        shards=shards,
        wall_ms=each_ms(watch.wall),
        dispatch_ms=each_ms(dispatched(silent, SilentActor).wall),
        driver_ms=each_ms(watch.cpu),
        growth_mb=growth(watch.resident_mb),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3,
        resume_s=resumed(path),
        open_s=open_s,
        open_mb=open_mb,
    )


def prepare(folder: Path, shards: int) -> tuple[RunFile, Path]:
    """A store of one real shard, extracted, and a chain that names many more; the run file over it."""
    folder.mkdir()
    write_tokenizer(folder / "tokenizer")
    write_sae(folder / "sae", "topk", 8, 64, k=4, hook="0")
    pl.DataFrame({"text": ["w1 w2 w3 " * 20]}).write_parquet(folder / "corpus.parquet")
    content: dict[str, Any] = {
        "corpus": {"path": str(folder / "corpus.parquet")},
        "tokens": {"context_size": 16, "tokenizer": str(folder / "tokenizer")},
        "model": {"loader": "torch_module", "path": "jobs.bench.shards:tiny_model"},
        "sites": [{"name": "bench", "sae": str(folder / "sae")}],
        "store": {"root": str(folder / "store")},
        "extract": {"executor": "in_process", "cpus_per_worker": 1, "check_sae": "off"},
    }
    one = resolve(parse_run_file(content, "bench"))[0]
    tokenize_resolved(one)
    extract(Layout(Path(one.store.root)), one)
    # a second link of the chain: shards like the first, whose token files are never read; rows, contexts
    # and documents are numbered on, as in a real chain
    layout, more = Layout(Path(one.store.root)), []
    (first,) = read_links(layout)
    record = first.shards[0]
    for number in range(1, shards):
        starts = {
            "row_start": number * record.rows,
            "context_start": number * record.contexts,
            "document_start": number * record.documents,
        }
        more.append(record.model_copy(update={"name": layout.shard_name(number), **starts}))
    link = CorpusLink(source={**first.source, "path": "more"}, source_digest="more", shards=tuple(more))
    put_if_absent(layout.corpus_link(1), link.to_json())
    content["extract"] |= {"executor": "ray", "workers": WORKERS}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return resolve(parse_run_file(content, "bench"))[0], path


def tiny_model() -> Any:
    """A model of an embedding alone."""
    import torch

    return torch.nn.Sequential(torch.nn.Embedding(5_000, 8))


def resumed(path: Path) -> float:
    """Seconds of a process that finds nothing to do."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "jobs", "extract", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "nothing to do" in done.stdout, done.stdout
    return time.perf_counter() - began


def section_of(r: Result) -> Section:
    """The result as a table."""
    title = f"{r.shards:,} shards by {WORKERS} actors that do nothing"
    rows = [
        ["dispatch of a shard, answered at once, wall ms", f"{r.dispatch_ms:.2f}", f"{TARGET_MS:g}"],
        ["dispatch and commit of a shard, wall ms", f"{r.wall_ms:.2f}", f"{TARGET_MS:g}"],
        ["driver's CPU time of a shard, ms", f"{r.driver_ms:.2f}", ""],
        ["driver's memory, growth after a tenth, MB", f"{r.growth_mb:.0f}", f"{TARGET_MB:g}"],
        ["driver's peak memory, MB", f"{r.peak_mb:.0f}", ""],
        ["`latentlake extract` with nothing to do, s", f"{r.resume_s:.1f}", f"{TARGET_RESUME_S:g}"],
        ["open the store, read all receipts, s", f"{r.open_s:.1f}", ""],
        ["memory of an open store's receipts, MB", f"{r.open_mb:.0f}", ""],
    ]
    return Section("shards", title, ("figure", "measured", "target"), rows, [asdict(r)])
