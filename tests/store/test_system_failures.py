"""No permission, a failing disk, a stale handle, too many files: each has its sentence, none is damage."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from jobs.cli import app
from jobs.command.exits import run_app
from jobs.evaluation.external_scores import read_scores
from jobs.tables.stats import stats
from pipeline.executors.in_process import run_in_process
from pipeline.models.loaders.image_networks import load_classifier
from pipeline.saes.files.tensors import open_npz, open_safetensors, read_json
from pipeline.sources import open_source
from pipeline.sources.images.files import read_images
from pipeline.sources.prompts.sets import from_templates
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects import local
from pipeline.store.objects.locks import flock
from pipeline.store.objects.verbs import is_locked, locked, measure, readable, write_atomic
from pipeline.store.records.site import write_site_weights
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.errors import InputError, PassingError
from schemas.run.file import Corpus
from schemas.run.images_corpus import Images
from schemas.storage_failures import storage_failure, system_error
from schemas.values import Hello
from tests.fixtures.store import D_SAE, build, planned_site
from tests.kit import write_tiny_tokenizer

NOBODY = 65534
KINDS = {
    errno.EACCES: "allow this user to read there",
    errno.EPERM: "allow this user to read there",
    errno.EIO: "the file itself may be intact",
    errno.ESTALE: "remount it",
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "ulimit -n",
    errno.ETIMEDOUT: "did not answer",
    errno.ENOMEM: "no memory left",
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A store where everybody may read: pytest's own folders are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="latentlake-test-"))
    folder.chmod(0o755)
    built = build(folder / "store", shards=2)
    stats(FeatureStore.open(folder / "store"), "site")
    weights = {"W_dec": np.ones((D_SAE, 4), np.float32)}
    write_site_weights(built.layout, "p", planned_site(), weights, {})
    yield folder / "store"
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """As a user who may read only what everybody may."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def closed(path: Path) -> Iterator[None]:
    """Nobody but root may read it."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run_app(app, list(arguments))
    return int(ended.value.code or 0)


SHARD = "passes/p/data/000000/a/site"
CLOSED = {
    "lake.json": "status",
    "corpus": "status",
    "corpus/0.json": "status",
    "passes": "status",
    "passes/p/plan.json": "status",
    "passes/p/commits": "status",
    "passes/p/commits/000000.json": "status",
    "tables/site": "status",
    "tables/site/features.parquet": "rank",
    "tokens/000000.parquet": "verify",
    f"{SHARD}/postings.parquet": "top",
    f"{SHARD}/partials.parquet": "stats",
    f"{SHARD}/csr.zarr": "verify",
    f"{SHARD}/csr.zarr/data/c/0": "verify",
    "passes/p/sites/site.zarr/W_dec": "cluster",
    "vocabulary.parquet": "top",
}
"""What a user may not read, and the command that reads it."""


@pytest.mark.parametrize("name", CLOSED)
def test_what_may_not_be_read_is_called_so_and_neither_damaged_nor_empty(
    shared: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [CLOSED[name], str(shared), *(["3"] if CLOSED[name] == "top" else [])]
    run(*arguments)  # whatever a command imports is imported
    capsys.readouterr()
    with closed(shared / name), as_nobody():
        code = run(*arguments)
    said = capsys.readouterr()
    text = " ".join((said.out + said.err).split())
    assert code == 2, text
    assert "Permission denied" in text
    assert "allow this user to" in text
    for wrong in ("damaged", "0 bytes", "Traceback", "is missing", "is not a store"):
        assert wrong not in text


READS: dict[str, Callable[[FeatureStore], Any]] = {
    "records": lambda store: FeatureStore.open(store.layout.root),
    "postings": lambda store: store.rows_of("site", 3),
    "csr": lambda store: store.csr("site", "000000"),
    "weights": lambda store: store.site_weights("site"),
    "tokens": lambda store: store.token_shard("site", "000000"),
    "table": lambda store: store.scan_features("site"),
    "vocabulary": lambda store: store.pieces([1]),
}


@pytest.mark.parametrize("number", KINDS, ids=errno.errorcode.get)
@pytest.mark.parametrize("what", READS)
def test_every_kind_of_failure_has_its_remedy(
    shared: Path, what: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.open(shared)

    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))  # as `read`, which names no file

    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(InputError) as result:
        READS[what](store)
    sentence = str(result.value)
    assert sentence.startswith(str(shared))
    assert f"cannot be read ({os.strerror(number)})" in sentence
    assert KINDS[number] in sentence
    assert "damaged" not in sentence
    assert isinstance(result.value, PassingError) is (number not in (errno.EACCES, errno.EPERM))


def corpus(path: Path) -> Any:
    return [*open_source(Corpus(path=str(path))).documents()]


INPUTS: dict[str, Callable[[Path], Any]] = {
    "a.parquet": corpus,
    "a.jsonl": corpus,
    "a.jsonl.gz": corpus,
    "a.txt": corpus,
    "tokenizer/tokenizer.json": lambda path: load_tokenizer(str(path.parent)),
    "model/config.json": lambda path: load_classifier(path.parent),
    "sae/cfg.json": read_json,
    "sae/weights.safetensors": open_safetensors,
    "sae/weights.npz": open_npz,
    "images.npz": lambda path: read_images(str(path), Images()),
    "templates.yaml": from_templates,
    "scores.csv": lambda path: read_scores(path, 9),
}


@pytest.mark.parametrize("name", INPUTS)
def test_what_a_run_reads_and_may_not_is_called_so(name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="latentlake-test-") as folder:
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        for each in (path.parent, Path(folder)):
            each.chmod(0o755)
        path.write_bytes(b"{}")
        if name.startswith("tokenizer"):
            write_tiny_tokenizer(path.parent)
        with contextlib.suppress(InputError):
            INPUTS[name](path)  # whatever it imports is imported
        with closed(path), as_nobody(), pytest.raises(InputError) as refused:
            INPUTS[name](path)
    assert str(refused.value) == f"{path} cannot be read (Permission denied): allow this user to read there"


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """A limit of open files that is reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:  # numbers below it that were free
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("what", READS)
def test_a_reached_limit_of_open_files_is_no_damage(shared: Path, what: str) -> None:
    READS[what](FeatureStore.open(shared))
    store = FeatureStore.open(shared)
    with no_more_files(), pytest.raises(InputError, match=r"Too many open files\): the limit of open files"):
        READS[what](store)


def test_an_error_of_polars_or_arrow_is_known_by_the_number_in_its_text() -> None:
    assert system_error(pl.exceptions.ComputeError("cannot read (os error 5)")) == errno.EIO
    assert system_error(OSError("Failed to open. Detail: [errno 24] Too many open files")) == errno.EMFILE
    assert system_error(OSError("Couldn't deserialize thrift")) is None
    assert system_error(ValueError("5")) is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_what_cannot_be_written_has_the_remedy_of_its_kind(tmp_path: Path, number: int) -> None:
    with pytest.raises(InputError) as result, local.storage_errors(tmp_path / "a", "go elsewhere"):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "a") in str(result.value)
    assert ("go elsewhere" in str(result.value)) is (number != errno.EIO)


def test_a_folder_that_may_not_be_listed_is_not_empty(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(path: object, *_: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "csr.zarr").mkdir()
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(InputError, match="Permission denied"):
        measure(tmp_path / "csr.zarr")


@contextlib.contextmanager
def small_disk(limit: int = 1 << 10) -> Iterator[None]:
    """No file may become larger, as on a full disk: the system itself refuses, whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITING = (
    ("heatmap", "{root}", "--features", "1,2,3", "--out", "{out}/heat.png"),
    ("plots", "{root}"),
    ("report", "{root}", "--out", "{out}/site"),
    ("report", "{root}"),
    ("rank", "{root}"),
    ("stats", "{root}"),
    ("profile", "{root}"),
    ("coactivation", "{root}"),
    ("compact", "{root}"),
    ("cluster", "{root}"),
    ("top", "{root}", "3", "--html", "{out}/top.html"),
    ("export", "anndata", "{root}", "--out", "{out}/export"),
    ("diff", "{root}", "{root}", "--out", "{out}/diff.parquet"),
)


@pytest.mark.parametrize("job", WRITING, ids=" ".join)
def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(
    shared: Path, tmp_path: Path, job: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    root, out, scratch = tmp_path / "store", tmp_path / "out", tmp_path / "tmp"
    shutil.copytree(shared, root)
    for folder in (out, scratch):
        folder.mkdir()
    arguments = [part.format(root=root, out=out) for part in job]
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        with small_disk():
            code = run(*arguments)
    error = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "no space left to write" in error[-1]
    if any("{out}" in part for part in job):
        assert "store.root" not in error[-1]  # the store is not what was written
    assert not any("Traceback" in line for line in error)
    assert list(scratch.iterdir()) == []
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert not [path for path in (*root.rglob("*"), *out.rglob("*")) if path.name.endswith(".tmp")]


def test_a_write_within_a_block_has_the_remedy_of_the_block(tmp_path: Path) -> None:
    for around, remedy in {
        local.storage_errors(tmp_path, "give --out another place"): "give --out another place",
        local.remedy_for_writes("set TMPDIR"): "set TMPDIR",
        contextlib.nullcontext(): local.STORE_REMEDY,
    }.items():
        with around, small_disk(0), local.writing_threads(1) as thread:
            for write in (write_atomic, lambda *given: thread.submit(write_atomic, *given).result()):
                with pytest.raises(InputError, match=remedy):
                    write(tmp_path / "a", b"a")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_where_a_file_system_has_no_locks_a_file_stands_for_one(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    path = tmp_path / "tokens" / ".lock"
    assert not is_locked(path)
    with locked(path, "tokenize writes there"):
        assert is_locked(path)
        with (
            pytest.raises(InputError, match=r"another tokenize writes there \(.*, process \d+, since .*held"),
            locked(path, "tokenize writes there"),
        ):
            pass
        assert is_locked(path)
    assert not is_locked(path)
    with locked(path, "tokenize writes there"):
        pass


def test_a_lock_that_fails_otherwise_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(InputError, match=r"\.lock cannot be written \(Input/output error\)"),
        locked(tmp_path / ".lock", "x"),
    ):
        pass
    with pytest.raises(OSError, match="Input/output error"), (tmp_path / ".lock").open("rb") as file:
        flock(file, fcntl.LOCK_SH)


def test_an_error_without_a_file_name_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    broken = typer.Typer()

    @broken.command()
    def read() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(SystemExit) as ended:
        run_app(broken, [])
    assert ended.value.code == 2
    assert "the output of `latentlake` cannot be read (Input/output error)" in capsys.readouterr().err


def test_a_shard_is_tried_again_where_the_disk_failed_for_a_moment() -> None:
    failures = [PassingError("the disk failed"), PassingError("the disk failed")]

    class Worker:
        def setup(self) -> Hello:
            return Hello("node", 1, (), "cpu", "cpu")

        def process(self, shard: str) -> str:
            if failures:
                raise failures.pop()
            return f"receipt of {shard}"

    events: list[Any] = []
    worker: Any = Worker()
    result = run_in_process(
        ["0"],
        worker,
        max_attempts=3,
        check=lambda _: None,
        on_event=lambda **event: events.append(event["event"]),
    )
    assert list(result) == ["receipt of 0"]
    assert events == ["ready", "retry", "retry"]


def test_damage_is_still_called_damage(tmp_path: Path) -> None:
    write_frame(tmp_path / "a.parquet", pl.DataFrame({"a": [1]}))
    write_atomic(tmp_path / "a.parquet", b"PAR1 but no more")
    with pytest.raises(InputError, match="is damaged"), readable(tmp_path / "a.parquet"):
        pl.read_parquet(tmp_path / "a.parquet")
    assert storage_failure(ValueError("broken"), "a", "read") is None
