"""Object storage for tests: memory, and S3 behind a proxy that can fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.store.objects.paths import forget_clients
from tests.fixtures.s3 import FaultyS3, running_moto, running_proxy, use


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[str, int]]:
    """Host and port of an S3 with the bucket `lake`."""
    with running_moto() as address:
        yield address


@pytest.fixture
def s3(moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """S3 behind a proxy; the environment leads there."""
    with running_proxy(moto) as faulty:
        use(monkeypatch, faulty.port)
        forget_clients()
        yield faulty
        forget_clients()
