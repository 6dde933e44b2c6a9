"""Receipts: the commit of a shard is one marker, put last and only if absent; the manifest is a view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import polars as pl

from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects.verbs import (
    listed,
    put_if_absent,
    read_bytes,
    read_many,
    read_record,
    remove_tree,
)
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.names import NAME
from schemas.records import Receipt, digest_of
from schemas.tables.tables import MANIFEST

ManifestRow = tuple[
    str, str, str | None, int | None, int | None, int | None, float | None, str | None
]  # as schemas.tables.tables.MANIFEST


class NondeterminismError(InputError):
    """Two attempts at one shard, under one plan, wrote different bytes: loud, it stops the run."""


def commit(layout: Layout, pass_name: str, receipt: Receipt) -> Receipt:
    """Commit a shard whose data are on the disk; returns the receipt in force, ours or that of a faster copy.

    The loser of a race removes its own attempt. When the winner's bytes differ, the attempt stays to be
    looked at, and NondeterminismError names both.
    """
    path = layout.commit(pass_name, receipt.shard)
    if put_if_absent(path, receipt.to_json()):
        return receipt
    winner = Receipt.from_json(read_bytes(path), str(path))
    if winner.attempt == receipt.attempt:  # our own put, whose answer was lost
        return winner
    _compare(winner, receipt, path)
    remove_tree(layout.attempt(pass_name, receipt.shard, receipt.attempt))
    return winner


def read_commit(layout: Layout, pass_name: str, shard: str) -> Receipt | None:
    """The receipt of one shard, None while it is not committed."""
    return read_record(Receipt, layout.commit(pass_name, shard))


def has_commits(layout: Layout, pass_name: str) -> bool:
    """Whether any shard of a pass is committed."""
    return any(_is_marker(path) for path in listed(layout.commits(pass_name)))


def read_commits(
    layout: Layout, pass_name: str, seen: Mapping[str, Receipt] = MappingProxyType({})
) -> dict[str, Receipt]:
    """Every committed shard of a pass by name, in shard order; a damaged marker is an InputError."""
    return {receipt.shard: receipt for receipt in scan_commits(layout, pass_name, seen)}


def scan_commits(
    layout: Layout, pass_name: str, seen: Mapping[str, Receipt] = MappingProxyType({})
) -> Iterator[Receipt]:
    """The receipts of a pass in shard order; object storage gets several requests at once.

    Those that were `seen`, by shard, are not read again: a receipt never changes.
    """
    paths = sorted((path for path in listed(layout.commits(pass_name)) if _is_marker(path)), key=str)
    unread = iter(read_many([path for path in paths if path.stem not in seen]))
    environments: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for path in paths:
        if path.stem in seen:
            yield seen[path.stem]
            continue
        receipt = Receipt.from_json(next(unread), str(path))
        if receipt.shard != path.stem:
            raise InputError(f"{path} is the receipt of shard {receipt.shard}: remove it, and run again")
        # receipts of one environment share its dict, which is a quarter of them
        key = tuple(receipt.environment.items())
        yield receipt.model_copy(update={"environment": environments.setdefault(key, receipt.environment)})


def receipts_digest(receipts: Iterable[Receipt]) -> str:
    """What the data of these receipts are, in hex; their order, attempts and times do not matter."""
    return digest_of(sorted(_content(receipt) for receipt in receipts))


def manifest_row(receipt: Receipt) -> ManifestRow:
    """The manifest's row of a committed shard."""
    measured = (receipt.rows, receipt.nnz, receipt.size, receipt.work_seconds)
    return (receipt.shard, "committed", receipt.attempt, *measured, None)


def write_manifest(
    layout: Layout, pass_name: str, committed: Sequence[ManifestRow], failed: Mapping[str, str]
) -> None:
    """Replace manifest.parquet: one row per shard in order, `committed`, or `quarantined` with its error."""
    done = {row[0] for row in committed}
    given_up: list[ManifestRow] = [
        (shard, "quarantined", None, None, None, None, None, error)
        for shard, error in failed.items()
        if shard not in done
    ]
    frame = pl.DataFrame([*committed, *given_up], schema=MANIFEST, orient="row")
    write_frame(layout.manifest(pass_name), frame.sort("shard"))


def _is_marker(path: StorePath) -> bool:
    """Whether a name in commits/ is a marker: no writer's temporary file, and nothing of a file manager's."""
    return path.suffix == ".json" and NAME.fullmatch(path.stem) is not None


def _compare(winner: Receipt, ours: Receipt, path: StorePath) -> None:
    may_differ = winner.batch_contexts != ours.batch_contexts or _software(winner) != _software(ours)
    stored, made = ({o.path: o.sha256 for o in receipt.objects} for receipt in (winner, ours))
    if winner.plan_hash == ours.plan_hash and (may_differ or stored == made):
        return
    differ = sorted(path for path, sha256 in made.items() if stored.get(path) != sha256)
    raise NondeterminismError(
        f"shard {ours.shard}: attempt {ours.attempt} wrote different bytes than the committed attempt "
        f"{winner.attempt} ({path}) in {', '.join(differ) or 'its set of objects or its plan'}; the "
        "committed attempt counts; compare the machines that wrote them"
    )


def _software(receipt: Receipt) -> dict[str, str]:
    """What low bits may depend on: device and versions, which a run joins knowingly when they differ."""
    return {key: value for key, value in receipt.environment.items() if key != "host"}


def _content(receipt: Receipt) -> list[object]:
    objects = sorted([o.path, o.sha256] for o in receipt.objects)
    return [receipt.shard, receipt.plan_hash, receipt.tokens_sha256, objects]
