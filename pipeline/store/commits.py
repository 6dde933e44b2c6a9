"""Receipts: the commit of a shard is one marker, put last and only if absent; the manifest is a view."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from pipeline.store.objects import put_if_absent
from pipeline.store.parquet import write_frame
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Receipt, digest_of
from schemas.tables import MANIFEST


class NondeterminismError(InputError):
    """Two attempts at one shard, under one plan, wrote different bytes: loud, it stops the run."""


def commit(layout: Layout, pass_name: str, receipt: Receipt) -> Receipt:
    """Commit a shard whose data are on the disk; returns the receipt in force, ours or a quicker twin's.

    The loser of a race removes its own attempt. When the winner's bytes differ, the attempt stays to be
    looked at, and NondeterminismError names both.
    """
    path = layout.commit(pass_name, receipt.shard)
    if put_if_absent(path, receipt.to_json()):
        return receipt
    winner = _read(path)
    if winner.attempt == receipt.attempt:  # our own put, whose answer was lost
        return winner
    _compare(winner, receipt, path)
    shutil.rmtree(layout.attempt(pass_name, receipt.shard, receipt.attempt), ignore_errors=True)
    return winner


def read_commit(layout: Layout, pass_name: str, shard: str) -> Receipt | None:
    """The receipt of one shard, None while it is not committed."""
    path = layout.commit(pass_name, shard)
    return _read(path) if path.exists() else None


def read_commits(layout: Layout, pass_name: str) -> dict[str, Receipt]:
    """Every committed shard of a pass by name, in shard order; a damaged marker is an InputError."""
    folder = layout.commits(pass_name)
    if not folder.is_dir():
        return {}
    names = sorted(path.name for path in folder.iterdir() if _is_marker(path))
    return {Path(name).stem: _of(Path(name).stem, folder / name) for name in names}


def _of(shard: str, path: Path) -> Receipt:
    """The receipt at `path`, which must be this shard's."""
    receipt = _read(path)
    if receipt.shard != shard:
        raise InputError(f"{path} is the receipt of shard {receipt.shard}: remove it, and run again")
    return receipt


def receipts_digest(receipts: Iterable[Receipt]) -> str:
    """What the data of these receipts are, in hex; their order, attempts and times do not matter."""
    return digest_of(sorted(_content(receipt) for receipt in receipts))


def write_manifest(
    layout: Layout, pass_name: str, receipts: Mapping[str, Receipt], failed: Mapping[str, str]
) -> None:
    """Replace manifest.parquet: one row per shard in order, `committed`, or `quarantined` with its error."""
    rows = [_committed(receipts[shard]) for shard in receipts]
    rows += [
        {"shard": shard, "state": "quarantined", "error": error}
        for shard, error in failed.items()
        if shard not in receipts
    ]
    write_frame(layout.manifest(pass_name), pl.from_dicts(rows, schema=MANIFEST).sort("shard"))


def _is_marker(path: Path) -> bool:
    """Whether a name in commits/ is a marker, not some writer's temporary file."""
    return path.suffix == ".json" and not path.name.startswith(".")


def _read(path: Path) -> Receipt:
    receipt: Receipt = Receipt.from_json(path.read_bytes(), str(path))
    return receipt


def _compare(winner: Receipt, ours: Receipt, path: Path) -> None:
    if winner.plan_hash == ours.plan_hash and winner.same_bytes(ours):
        return
    if winner.batch_contexts != ours.batch_contexts:  # the GPU's memory did not do for one of them
        return
    theirs = {o.path: o.sha256 for o in winner.objects}
    differ = sorted(o.path for o in ours.objects if theirs.get(o.path) != o.sha256)
    raise NondeterminismError(
        f"shard {ours.shard}: attempt {ours.attempt} wrote other bytes than the committed attempt "
        f"{winner.attempt} ({path}) in {', '.join(differ) or 'its set of objects or its plan'}; the "
        "committed one counts, compare what wrote them"
    )


def _content(receipt: Receipt) -> list[object]:
    objects = sorted([o.path, o.sha256] for o in receipt.objects)
    return [receipt.shard, receipt.plan_hash, receipt.tokens_sha256, objects]


def _committed(receipt: Receipt) -> dict[str, object]:
    return {
        "shard": receipt.shard,
        "state": "committed",
        "attempt": receipt.attempt,
        "rows": receipt.rows,
        "nnz": sum(site.nnz for site in receipt.sites.values()),
        "bytes": sum(o.bytes for o in receipt.objects),
        "seconds": sum(receipt.seconds.values()),
        "error": None,
    }
