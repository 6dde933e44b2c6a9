"""A job is followed to its end, also when its server is away for a while."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aiohttp import ClientError
from ray.job_submission import JobStatus

from pipeline.executors.on_ray import submission as ray_jobs
from schemas.errors import InputError


class Client:
    """A server whose log breaks off once, and which is away for the first `away` questions."""

    def __init__(self, away, broken=None):
        self.away, self.tails = away, 0
        self.broken = broken or ConnectionResetError("gone")

    async def tail_job_logs(self, job):
        self.tails += 1
        yield "one\n"
        if self.tails == 1:
            raise self.broken
        yield "two\n"

    def get_job_info(self, job):
        self.away -= 1
        if self.away >= 0:
            raise ConnectionError("refused")
        status = JobStatus.SUCCEEDED if self.tails > 1 else JobStatus.RUNNING
        return SimpleNamespace(status=status, driver_exit_code=0)


@pytest.fixture
def server(monkeypatch):
    """A server of which a second passes whenever somebody sleeps."""
    now = [0.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    monkeypatch.setattr(ray_jobs, "time", clock)
    made = object.__new__(ray_jobs.JobServer)
    made._address = "http://head:8265"
    return made


def test_a_server_that_is_away_for_less_than_a_minute_is_requested_again(server):
    server._client, written = Client(away=50), []
    assert server.follow("job-1", written.append) == 0
    assert "".join(written) == "one\ntwo\n"


def test_one_that_stays_away_is_reported(server):
    server._client = Client(away=10**6)
    with pytest.raises(InputError, match="no Ray dashboard answers at http://head:8265"):
        server.follow("job-1", lambda text: None)


def test_a_proxy_that_refuses_the_log_does_not_end_the_following(server):
    server._client, written = Client(away=0, broken=ClientError("502")), []
    assert server.follow("job-1", written.append) == 0
    assert "".join(written) == "one\ntwo\n"


@pytest.mark.parametrize("address", ["", "nonsense", "127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_that_is_no_dashboards_is_refused(address):
    with pytest.raises(
        InputError, match=r"is not a dashboard's address: give one such as http://127.0.0.1:8265"
    ):
        ray_jobs.JobServer(address)
