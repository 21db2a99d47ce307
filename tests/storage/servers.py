"""Servers of buckets on this machine: moto for S3, Azurite for Azure, and one that answers as it is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import requests

BUCKET = "raygen"

S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-hidden-word", "AWS_REGION": "us-east-1"}

AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's only account and its key, which its manual names."""

AZURE_ENVIRONMENT = {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def moto() -> Iterator[str]:
    """The address of an S3 server with a bucket."""
    port = free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        requests.put(f"http://127.0.0.1:{port}/{BUCKET}", timeout=30).raise_for_status()
        yield f"http://127.0.0.1:{port}"


@contextmanager
def azurite(program: Path) -> Iterator[str]:
    """The address of an Azure server with a container."""
    port = free_port()
    options = ["--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence", "--silent"]
    with (
        tempfile.TemporaryDirectory() as folder,
        _running([str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), *options], port, folder),
    ):
        address = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
        _make_container(address)
        yield address


def install_azurite() -> Path | None:
    """Azurite's program, installed for this user's tests at the first need; None if that cannot be done."""
    if found := shutil.which("azurite-blob"):
        return Path(found)
    npm = shutil.which("npm")
    folder = Path(tempfile.gettempdir()) / f"raygen-azurite-{os.getuid()}"
    program = folder / "node_modules/.bin/azurite-blob"
    if npm is None:
        return None
    folder.mkdir(mode=0o700, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        if not program.exists():
            command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "azurite@3"]
            subprocess.run(command, capture_output=True, timeout=240, check=False)
    return program if program.exists() else None


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], tuple[int, bytes]]) -> Iterator[str]:
    """The address of a server that answers each request with a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            status, body = answer(self)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", formatdate(usegmt=True))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def __getattr__(self, name: str) -> object:
            if not name.startswith("do_"):
                raise AttributeError(name)
            return self._answer

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _running(command: list[str], port: int, folder: str | None = None) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command} does not listen"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _make_container(address: str) -> None:
    """One request, signed as Microsoft's "Authorize with Shared Key" says."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    text = "PUT" + "\n" * 12 + lines + f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    requests.put(f"{address}/{BUCKET}?restype=container", headers=headers, timeout=30).raise_for_status()
