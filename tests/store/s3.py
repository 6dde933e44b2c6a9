"""An S3 in this process (moto), and a proxy before it that answers what a test wants to chosen requests."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "lake"
Fault = Callable[["Handler"], bool]
"""Answers a request in place of S3, or after it; True when the request was answered."""


@dataclass
class FaultyS3:
    """`faults`: one for each coming request that `chosen` picks; then requests pass."""

    upstream: tuple[str, int]
    port: int = 0
    chosen: Callable[[str, str], bool] = lambda method, path: False
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    one_put: threading.Lock = field(default_factory=threading.Lock)
    """Held by a conditional put: S3 looks and writes in one step, moto in two."""

    def fail(self, method: str, ending: str, *faults: Fault) -> None:
        """Let the next requests of this method on a path with this ending meet these faults."""
        self.chosen = lambda requested, path: requested == method and path.partition("?")[0].endswith(ending)
        self.faults = list(faults)

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            return self.faults.pop(0) if self.faults and self.chosen(method, path) else None

    def count(self, method: str, ending: str = "") -> int:
        return sum(m == method and p.partition("?")[0].endswith(ending) for m, p in self.requests)


class Handler(http.server.BaseHTTPRequestHandler):
    """Passes requests on."""

    protocol_version = "HTTP/1.1"
    faulty: FaultyS3

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fault = self.faulty.next_fault(self.command, self.path)
        if fault is None or not fault(self):
            self.answer(*self.ask())

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815

    def ask(self) -> tuple[int, list[tuple[str, str]], bytes]:
        is_conditional = self.command == "PUT" and "If-None-Match" in self.headers
        with self.faulty.one_put if is_conditional else contextlib.nullcontext():
            upstream = http.client.HTTPConnection(*self.faulty.upstream)
            upstream.request(self.command, self.path, self.body, dict(self.headers))
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        length = {n.lower(): v for n, v in headers}.get("content-length", "0")
        self.send_header("content-length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        pass


def status(code: int, reason: str = "Fault") -> Fault:
    """S3 never sees the request."""

    def fault(request: Handler) -> bool:
        request.answer(code, [], f"<Error><Code>{reason}</Code></Error>".encode())
        return True

    return fault


def dropped(request: Handler) -> bool:
    """The connection ends before S3 sees the request."""
    request.drop()
    return True


def dropped_after(request: Handler) -> bool:
    """S3 did what was asked, and the connection ends before it can say so."""
    request.ask()
    request.drop()
    return True


def failed_after(request: Handler) -> bool:
    """S3 did what was asked, and a gateway says 500."""
    request.ask()
    return status(500)(request)


def cut_short(request: Handler) -> bool:
    """The answer ends in its middle."""
    code, headers, data = request.ask()
    request.send_response(code)
    for name, value in headers:
        if name.lower() not in ("connection", "server", "date"):
            request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data[: len(data) // 2])
    request.drop()
    return True


def slow(seconds: float, *, done: bool = True) -> Fault:
    """The answer takes so long; S3 does what was asked at once, or (`done` False) never."""

    def fault(request: Handler) -> bool:
        answer = request.ask() if done else (500, [], b"")
        time.sleep(seconds)
        with contextlib.suppress(OSError):  # the client may be gone
            request.answer(*answer)
        return True

    return fault


@contextmanager
def running_moto() -> Iterator[tuple[str, int]]:
    """moto's S3 with an empty bucket `BUCKET`: host and port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    _client(host, port).create_bucket(Bucket=BUCKET)
    yield host, port
    server.stop()


@contextmanager
def running_proxy(upstream: tuple[str, int], kind: type[Handler] = Handler) -> Iterator[FaultyS3]:
    """A proxy before `upstream`."""
    faulty = FaultyS3(upstream)
    handler = type("BoundHandler", (kind,), {"faulty": faulty})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    faulty.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield faulty
    server.shutdown()
    server.server_close()
    thread.join()


def use(monkeypatch: pytest.MonkeyPatch, port: int, timeout: str = "20s") -> None:
    """Let obstore and Polars go to the S3 at this port."""
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_TIMEOUT": timeout,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def _client(host: str, port: int) -> object:
    return boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
