"""Whether a node sees the store: the driver writes a file below the root, and workers read it first."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.objects.local import storage_errors
from schemas.errors import NodeError
from schemas.layout import StorePath


@dataclass(frozen=True)
class ProbeFile:
    """A file with content that nobody can guess."""

    path: str
    content: str


@contextmanager
def storage_probe(root: StorePath) -> Iterator[ProbeFile | None]:
    """A probe below a root in a file system, gone when the block ends.

    None for a root in an object store, which every node reaches by its address, or not at all.
    """
    if not isinstance(root, Path):
        yield None
        return
    probe = ProbeFile(str(root.absolute() / f".probe.{uuid.uuid4().hex}.tmp"), uuid.uuid4().hex)
    with storage_errors(root):
        Path(probe.path).write_text(probe.content, encoding="ascii")
    try:
        yield probe
    finally:
        Path(probe.path).unlink(missing_ok=True)


def require_shared_storage(probe: ProbeFile | None) -> None:
    """NodeError where this node does not see the file that the driver wrote."""
    if probe is None:
        return
    path = Path(probe.path)
    try:
        seen = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        seen = ""
    if seen != probe.content:
        raise NodeError(
            f"node {socket.gethostname()} does not see the driver's files in {path.parent}: put store.root "
            "on a file system that all nodes share, or in an object store (s3://…)"
        )
