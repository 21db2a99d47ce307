"""Seconds, requests and bytes for a folder of PNG files to go to nodes through an S3 storage.

    python -m tests.benchmarks.travel --images 10000 --processes 4

The folder holds Fashion-MNIST's images, in a sub-folder for each class. Decoding is what the submitting machine does
at the first job; then it uploads, and once more for a second job. On the node, whose cache is empty, several processes
ask for the images at once, and one more after them. The S3 server is moto's, on this machine, behind a count of its
requests and of the bytes that they carry; what it costs in processor time is in the seconds of both sides.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from raygen import data
from raygen.data import DataOptions, InStorage, StoredData
from raygen.storage import Storage

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1"}
START_TIMEOUT_S = 60.0


class Counts:
    """What a server has been asked for so far, shared with its process."""

    def __init__(self) -> None:
        self.requests, self.received_bytes, self.sent_bytes = (multiprocessing.Value("q", 0) for _ in range(3))

    def read(self) -> tuple[int, int, int]:
        """Requests, bytes received and bytes sent."""
        return self.requests.value, self.received_bytes.value, self.sent_bytes.value


def main() -> None:
    """Measure and print the table."""
    options = _options()
    os.environ.update(CREDENTIALS)
    table = Table(
        title=f"{options.images:,} PNG files of 28×28 through S3", caption="bytes are those of requests and answers"
    )
    table.add_column("what")
    for column in ("seconds", "requests", "bytes up", "bytes down"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder, _server() as (url, counts):

        def measure(what: str, do: Callable[[], Any]) -> Any:
            before, began_at = counts.read(), time.perf_counter()
            result = do()
            seconds = time.perf_counter() - began_at
            differences = [after - earlier for after, earlier in zip(counts.read(), before, strict=True)]
            table.add_row(what, f"{seconds:.2f}", *(f"{difference:,}" for difference in differences))
            return result

        source = _pictures(Path(folder, "pictures"), options.images)
        os.environ["RAYGEN_CACHE"] = str(Path(folder, "here"))
        here = measure("decode", partial(data.load, source))
        record = measure("upload, first job", lambda: data.upload(Storage(url), source))
        measure("upload, second job", lambda: data.upload(Storage(url), source))
        os.environ["RAYGEN_CACHE"] = str(Path(folder, "node"))
        with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(os.path.exists, ["/"] * options.processes))
            fetch = partial(_digest_of_fetched, url, source, record)
            digests = measure(
                f"fetch, {options.processes} processes at once",
                lambda: list(pool.map(fetch, range(options.processes))),
            )
            digests += measure("fetch, once more", lambda: list(pool.map(fetch, range(1))))
        assert set(digests) == {here.digest}
    Console(width=110).print(table)


def _digest_of_fetched(url: str, source: DataOptions, record: StoredData, _: int) -> str:
    torch.set_num_threads(1)
    return data.load(source, InStorage(Storage(url), record)).digest


def _pictures(folder: Path, count: int) -> DataOptions:
    part = data.load(DataOptions(source="fashion-mnist")).train
    assert part.labels is not None
    for number, (image, label) in enumerate(zip(part.images[:count], part.labels[:count].tolist(), strict=True)):
        place = folder / str(label) / f"{number:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place)
    return DataOptions(source=str(folder))


@contextmanager
def _server() -> Iterator[tuple[str, Counts]]:
    """The address of a bucket at a server of our own, and the counts of what it is asked for."""
    import requests

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    counts, address = Counts(), f"http://127.0.0.1:{port}"
    process = multiprocessing.Process(target=_serve, args=(port, counts), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                requests.put(f"{address}/benchmark", timeout=10).raise_for_status()
                break
            except requests.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield f"s3://benchmark/runs?endpoint={address}", counts
    finally:
        process.terminate()
        process.join()


def _serve(port: int, counts: Counts) -> None:
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = DomainDispatcherApplication(create_backend_app)

    def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            sent_bytes = int(dict(headers).get("Content-Length", 0))
            with counts.sent_bytes.get_lock():
                counts.sent_bytes.value += sent_bytes if environ["REQUEST_METHOD"] != "HEAD" else 0
            return start_response(status, headers, *more)

        with counts.requests.get_lock():
            counts.requests.value += 1
            counts.received_bytes.value += int(environ.get("CONTENT_LENGTH") or 0)
        return server(environ, start)

    run_simple("127.0.0.1", port, counted, threaded=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4, help="of the node, that ask at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
