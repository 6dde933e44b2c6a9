"""Google's and Azure's object storage for tests, as far as they can be had on one machine.

Google's XML API is S3's but for the names of some headers (cloud.google.com/storage/docs/interoperability).
Of that API fake-gcs-server knows no put, gcp-storage-emulator no condition, listing or removal. So a proxy
turns the headers for moto. Tested are obstore's client for Google, its condition and what it makes of
answers, not Google. Azure is Azurite, Microsoft's own emulator.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.store.s3 import BUCKET, FaultyS3, Handler, running_proxy

AZURITE = shutil.which("azurite-blob")
"""Of the npm package `azurite`."""
_SIGNED = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
"""Of which moto reads who it is."""
_ACCOUNT, _VERSION = "devstoreaccount1", "2021-12-02"
_KEY = base64.b64encode(b"latentlake tests, no secret").decode()


class GoogleHandler(Handler):
    """Turns Google's names into S3's, and back."""

    def ask(self) -> tuple[int, list[tuple[str, str]], bytes]:
        if (generation := self.headers.get("x-goog-if-generation-match")) is not None:
            assert generation == "0", "put if absent is the only condition that is used"
            self.headers["If-None-Match"] = "*"
        del self.headers["authorization"]  # a bearer without a token
        self.headers["authorization"] = _SIGNED
        code, headers, data = super().ask()
        return code, [*headers, ("x-goog-generation", "1")], data


@contextlib.contextmanager
def running_google(moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The environment leads `gs://lake` to moto."""
    with running_proxy(moto, GoogleHandler) as proxy:
        account = {
            "gcs_base_url": f"http://127.0.0.1:{proxy.port}",
            "disable_oauth": True,
            **dict.fromkeys(("client_email", "private_key", "private_key_id"), ""),
        }
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        yield proxy


@contextlib.contextmanager
def running_azurite(folder: Path) -> Iterator[int]:
    """Azurite with an empty container `lake`: its port."""
    assert AZURITE is not None
    port = _free_port()
    options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
    environment = {
        "AZURITE_ACCOUNTS": f"{_ACCOUNT}:{_KEY}",
        "PATH": str(Path(AZURITE).parent) + ":/usr/bin:/bin",
    }
    server = subprocess.Popen(
        [AZURITE, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        _create_container(port, time.monotonic() + 30)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def use_azurite(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Let obstore and Polars go to the Azurite at this port."""
    values = {
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}",
        "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": _KEY,
        "AZURE_ALLOW_HTTP": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _create_container(port: int, deadline: float) -> None:
    """As soon as Azurite answers; obstore creates none. Signed as Azure documents it (Shared Key)."""
    path, date = f"/{_ACCOUNT}/{BUCKET}", formatdate(usegmt=True)
    lines = ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{_VERSION}"]
    text = "\n".join([*lines, f"/{_ACCOUNT}{path}", "restype:container"])
    signed = hmac.new(base64.b64decode(_KEY), text.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": _VERSION,
        "authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(signed).decode()}",
        "content-length": "0",
    }
    while True:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            try:
                connection.request("PUT", f"{path}?restype=container", headers=headers)
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "Azurite does not answer"
                time.sleep(0.1)
                continue
            assert (status := connection.getresponse().status) == 201, f"Azurite says {status}"
            return
