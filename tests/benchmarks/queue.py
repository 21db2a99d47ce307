"""Seconds that the queue takes when ten thousand jobs wait: to list them, to decide which is next, to submit another.

    python -m tests.benchmarks.queue --jobs 10000

On SQLite, and on the PostgreSQL that RAYGEN_TEST_POSTGRES names, in a schema of the benchmark's own. `raygen ls` is
the whole process beyond `python -c pass`. A decision is `store.claim`, with its transaction: on an empty cluster,
which starts a job; on a full one, where nothing fits; and where it must look far, since only the last job that a
decision looks at can start. A submission is `store.submit`. Every figure is a median, with the least and the most.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from raygen.capacity import Capacity
from raygen.queue import schema
from raygen.queue.job import Request
from raygen.queue.policy import DEPTH
from raygen.queue.store import Store

LS_BAR_MS, CLAIM_BAR_MS, SUBMIT_BAR_MS = 500, 20, 50
BOX = Capacity.of_machine(gpus=8, cpus=64, where="the cluster at http://head:8265")
CLUSTER = "http://head:8265"


def main() -> None:
    """Measure and print the table."""
    options = _options()
    table = Table(
        title=f"The queue with {options.jobs:,} jobs that wait",
        caption=f"medians of {options.times}, of {options.processes} processes for raygen ls; ms",
    )
    table.add_column("database")
    table.add_column("what")
    for column in ("median ms", "min–max ms", "bar"):
        table.add_column(column, justify="right")
    for name, database in (("SQLite", _sqlite), ("PostgreSQL", _postgres)):
        if name == "PostgreSQL" and not os.environ.get("RAYGEN_TEST_POSTGRES"):
            continue
        with tempfile.TemporaryDirectory() as folder, database(Path(folder)) as url:
            for what, seconds, bar_ms in _measurements(url, Path(folder), options):
                table.add_row(name, what, *_figures(seconds, bar_ms))
    Console(width=110).print(table)


def _measurements(url: sa.URL, folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, list[float], float]]:
    store = Store(url)
    dispatcher = store.register(CLUSTER, host="here", pid=1)
    store.saw(CLUSTER, BOX)
    _fill(store, options.jobs)
    yield "raygen ls, whole process", _ls_seconds(url, folder, options.processes), LS_BAR_MS
    further = [_job(f"more-{number}") for number in range(options.times)]
    yield "submit", [_seconds(partial(store.submit, job)) for job in further], SUBMIT_BAR_MS

    def decisions(expected: bool, after: Callable[[], None] = lambda: None) -> list[float]:
        measured = []
        for _ in range(options.times):
            # The decision is what is measured, not a lease that ran out meanwhile.
            assert store.renew(dispatcher)
            start_s = time.perf_counter()
            claimed = store.claim(dispatcher)
            measured.append(time.perf_counter() - start_s)
            assert (claimed is not None) == expected
            after()
        return measured

    jobs = schema.jobs

    def idle() -> None:
        with store.engine.begin() as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.state == "starting"))

    yield "decision, empty cluster", decisions(True, idle), CLAIM_BAR_MS
    with store.engine.begin() as connection:
        connection.execute(sa.update(jobs).values(processes=8, fewest_processes=8))
    assert store.claim(dispatcher)
    yield "decision, full cluster", decisions(False), CLAIM_BAR_MS
    with store.engine.begin() as connection:
        last = sa.select(jobs.c.id).where(jobs.c.state == "queued").order_by(jobs.c.priority.desc(), jobs.c.id)
        one_core = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
        number = connection.scalar(last.offset(DEPTH - 1).limit(1))
        # The jobs before it ask for GPUs alone, so that they leave it its core.
        connection.execute(sa.update(jobs).where(jobs.c.state == "queued").values(cpus_each=0))
        connection.execute(sa.update(jobs).where(jobs.c.id == number).values(**one_core))

    def wait_again() -> None:
        with store.engine.begin() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == number).values(state="queued", owner=None))

    yield "decision, backfill at its depth", decisions(True, wait_again), CLAIM_BAR_MS
    store.engine.dispose()


def _fill(store: Store, number: int) -> None:
    """Queue jobs, by one transaction: to submit each would take minutes on a slow disk."""
    first = store.submit(_job("job-0"))
    values = {**vars(first), "state": "queued"}
    del values["id"]
    rows = [{**values, "name": f"job-{n}", "folder": f"/runs/job-{n}", "priority": n % 5} for n in range(1, number)]
    with store.engine.begin() as connection:
        connection.execute(sa.insert(schema.jobs), rows)


def _job(name: str) -> Request:
    return Request(
        name=name,
        folder=f"/runs/{name}",
        kind="train",
        model="vae",
        data="digits",
        user="me",
        cluster=CLUSTER,
        processes=1,
        fewest_processes=1,
        gpus_each=1,
        cpus_each=1,
    )


def _ls_seconds(url: sa.URL, folder: Path, times: int) -> list[float]:
    environment = {**os.environ, "RAYGEN_DB": url.render_as_string(hide_password=False)}

    def run(*command: str) -> None:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)

    ls = [str(Path(sys.executable).with_name("raygen")), "ls", "--storage", str(folder)]
    run(*ls)  # reads all files into the machine's memory
    python_s = statistics.median(_seconds(lambda: run(sys.executable, "-c", "pass")) for _ in range(times))
    return [_seconds(lambda: run(*ls)) - python_s for _ in range(times)]


@contextmanager
def _sqlite(folder: Path) -> Iterator[sa.URL]:
    yield sa.URL.create("sqlite", database=str(folder / "queue.sqlite"))


@contextmanager
def _postgres(folder: Path) -> Iterator[sa.URL]:
    url, name = sa.make_url(os.environ["RAYGEN_TEST_POSTGRES"]), f"benchmark_{secrets.token_hex(6)}"
    server = sa.create_engine(url, poolclass=sa.NullPool)
    with server.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    try:
        yield url.update_query_dict({"options": f"-csearch_path={name}"})
    finally:
        with server.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")


def _seconds(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def _figures(seconds: list[float], bar_ms: float) -> tuple[str, str, str]:
    median_ms = 1000 * statistics.median(seconds)
    met = "[green]met[/]" if median_ms <= bar_ms else "[red]missed[/]"
    return f"{median_ms:.1f}", f"{1000 * min(seconds):.1f}–{1000 * max(seconds):.1f}", f"≤ {bar_ms:g} {met}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Milliseconds of raygen ls, a decision and a submission.")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=30, help="decisions and submissions to measure")
    parser.add_argument("--processes", type=int, default=7, help="runs of raygen ls to measure")
    return parser.parse_args()


if __name__ == "__main__":
    main()
