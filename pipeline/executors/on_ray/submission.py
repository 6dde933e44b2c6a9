"""Ray's job server, spoken to over HTTP: submit a driver, follow its log, learn how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.executors.on_ray.session import one_line, token_remedy, use_token
from schemas.errors import InputError

STOPPED_CODE = 130
"""Exit code that stands for a job that somebody stopped."""

TRIES = 5

PATIENCE_S = 60.0
"""A dashboard, or the port-forward to it, may be away for so long while its job goes on."""


class JobServer:
    """The dashboard of a cluster, such as http://127.0.0.1:8265."""

    def __init__(self, address: str) -> None:
        """InputError when that is no such address, and when nobody answers there, or not to us."""
        if not re.fullmatch(r"https?://[^/\s]+/?", address):
            raise InputError(
                f"--address {address!r} is not a dashboard's address: give one such as http://127.0.0.1:8265"
            )
        self._address = address
        logging.getLogger("ray").setLevel(logging.ERROR)  # what it uploads and leaves out, file by file
        use_token()
        # A proxy of the environment is for the outside: the dashboard is spoken to directly, as its log is.
        host = urlsplit(address).hostname or ""
        for name in ("NO_PROXY", "no_proxy"):
            known = [part for part in os.environ.get(name, "").split(",") if part]
            os.environ[name] = ",".join([*known, host])
        with self._answers():
            self._client = JobSubmissionClient(address)

    def submit(
        self, entrypoint: str, working_dir: Path, left_out: Sequence[str], name: str, metadata: dict[str, str]
    ) -> str:
        """Upload `working_dir`, start `entrypoint` in it, as job `<name>-<n>`, n one more than the last.

        `left_out`: folders of `working_dir` that are not uploaded.
        """
        excludes = [f"/{folder}" for folder in left_out]
        for attempt in range(TRIES):
            with self._answers():
                job = f"{name}-{self._last_number(name) + 1 + attempt}"
                try:
                    return self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=job,
                        runtime_env={"working_dir": str(working_dir), "excludes": excludes},
                        metadata=metadata,
                    )
                except RuntimeError as error:  # somebody was quicker
                    if "already exists" not in str(error):
                        raise
        raise InputError(f"{TRIES} names from {name} on were taken while submitting: submit again")

    def follow(self, job: str, write: Callable[[str], None]) -> int:
        """Pass the driver's output on until it ends; return its exit code.

        A connection that breaks is made anew, and what was written is not written again.
        """
        written = 0
        while True:
            with self._answers():
                written = asyncio.run(self._tail(job, write, written))
                details = self._details(job)
            if not details.status.is_terminal():
                time.sleep(1)
                continue
            if details.status in (JobStatus.STOPPED, JobStatus.SUCCEEDED):
                return STOPPED_CODE if details.status == JobStatus.STOPPED else 0
            # The driver's, as a shell would give it: of one that a signal ended 128 and its number.
            code: int = details.driver_exit_code or 1
            return code if code > 0 else 128 - code

    async def _tail(self, job: str, write: Callable[[str], None], written: int) -> int:
        """Write the log from character `written` on; where it got to."""
        # The server sends the log from its beginning each time: of the piece in which the place is reached
        # that was written up to, only the rest is new.
        place = 0
        try:
            async for text in self._client.tail_job_logs(job):
                place += len(text)
                if place > written:
                    write(text[len(text) - (place - written) :])
                    written = place
        except (ClientError, RuntimeError, OSError):
            pass  # the connection; whether the job goes on is queried next
        return written

    def _details(self, job: str) -> Any:
        """What the server knows of the job; a connection that breaks is tried again for a minute."""
        began = time.monotonic()
        while True:
            try:
                return self._client.get_job_info(job)
            except (OSError, RuntimeError) as error:
                away = isinstance(error, OSError) or re.search(r"status code 5\d\d", str(error))
                if not away or time.monotonic() - began >= PATIENCE_S:
                    raise
                time.sleep(1)

    def _last_number(self, name: str) -> int:
        """The largest n of the jobs `<name>-<n>` that the cluster remembers; 0 without any."""
        matches = (
            re.fullmatch(rf"{re.escape(name)}-(\d+)", job.submission_id or "")
            for job in self._client.list_jobs()
        )
        return max((int(match[1]) for match in matches if match), default=0)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Report a server that is not there, or refuses us, in one sentence."""
        try:
            yield
        except AuthenticationError as error:
            raise InputError(
                f"the Ray cluster at {self._address} requires a token ({one_line(error)}): {token_remedy()}"
            ) from None
        except (ConnectionError, OSError) as error:
            raise InputError(
                f"no Ray dashboard answers at {self._address} ({one_line(error)}): check the address, and "
                "that `ray dashboard cluster.yaml`, or a port-forward, runs"
            ) from None
        except (RuntimeError, ValueError) as error:  # the latter of a package that is too large
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the Ray cluster at {self._address} refused the request: {one_line(error)}"
            ) from None
