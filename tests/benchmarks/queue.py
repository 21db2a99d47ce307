"""Seconds that the queue takes when it has many jobs: to list them, to decide which is next, to submit another.

    python -m tests.benchmarks.queue --jobs 100000 --waiting 5000 --users 50

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from raygen.capacity import Capacity
from raygen.queue import claims, schema, usage
from raygen.queue.job import Request
from raygen.queue.policy import DEPTH
from raygen.queue.store import Store
from raygen.queue.turns import Claim, Turns

LS_BAR_MS, CLAIM_BAR_MS, SUBMIT_BAR_MS = 600, 50, 50
BOX = Capacity.of_machine(gpus=8, cpus=64, where="the cluster at http://head:8265")
CLUSTER = "http://head:8265"


def main() -> None:
    """Measure and print the table."""
    options = _options()
    table = Table(
        title=f"The queue with {options.jobs:,} jobs of {options.users} users, of which {options.waiting:,} wait",
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
    _fill(store, options)
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
        # Jobs ask for GPUs alone, so that they leave the last that is looked at its core.
        connection.execute(sa.update(jobs).where(jobs.c.state == "queued").values(cpus_each=0))
        line = claims.waiting(connection, CLUSTER, claims.not_held)
        number = _order(line.claims, usage.lately(connection, CLUSTER, [], time.time()))[:DEPTH][-1]
        one_core = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
        connection.execute(sa.update(jobs).where(jobs.c.id == number).values(**one_core))

    def wait_again() -> None:
        with store.engine.begin() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == number).values(state="queued", owner=None))

    yield "decision, backfill at its depth", decisions(True, wait_again), CLAIM_BAR_MS
    store.engine.dispose()


def _fill(store: Store, options: argparse.Namespace) -> None:
    """Queue jobs, the newest of which wait, by one transaction: to submit each would take minutes on a slow disk."""
    first = store.submit(_job("job-0"))
    values = {**vars(first), "state": "queued"}
    del values["id"]
    rows = [
        {**values, "name": f"job-{n}", "priority": n % 5, "user": f"user-{n // 5 % options.users}"}
        for n in range(1, options.jobs)
    ]
    for row in rows[: options.jobs - options.waiting]:
        row |= {"state": "succeeded", "ended_at": first.submitted_at, "attempt": 1}
    users = {row["user"] for row in rows}
    used = [{"cluster": CLUSTER, "user": user, "device_s": 1e5, "as_of": first.submitted_at} for user in users]
    with store.engine.begin() as connection:
        connection.execute(sa.insert(schema.jobs), rows)
        connection.execute(sa.insert(schema.usage), used)


def _order(waiting: Sequence[Claim], used: Mapping[str, float]) -> list[int]:
    """The ids of claims in the order of their turns."""
    turns, order = Turns(waiting, used), []
    for turn in turns:
        turns.count(turn.claim, turn.claim.processes)
        order.append(turn.claim.id)
    return order


def _job(name: str) -> Request:
    return Request(
        name=name,
        storage="/runs",
        kind="train",
        model="vae",
        data="digits",
        objective="val_elbo",
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
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--waiting", type=int, default=5_000, help="how many of the jobs wait; the others have ended")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--times", type=int, default=30, help="decisions and submissions to measure")
    parser.add_argument("--processes", type=int, default=7, help="runs of raygen ls to measure")
    options = parser.parse_args()
    options.waiting = min(options.waiting, options.jobs)
    return options


if __name__ == "__main__":
    main()
