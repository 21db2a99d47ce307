"""What both kinds of chaos share: a queue in PostgreSQL, a small disk, dispatchers, who lists the jobs, and faults."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol
from unittest import mock

import psutil
import sqlalchemy as sa

from raygen.errors import JobError, QueueError
from raygen.queue.job import ACTIVE, ENDED, JobState
from raygen.queue.store import Store
from raygen.storage import Storage
from tests.chaos import background
from tests.chaos.damage import KINDS, RECOVERABLE, damage
from tests.chaos.disk import Disk
from tests.chaos.invariants import Fate, check_ended_once, check_history, check_queue
from tests.chaos.postgres import Postgres

RETRIES = 20
LOOK_EVERY_S = 0.5
SUBMITTING = 0.7
"""The part of the time in which jobs are queued; the rest is for the last ones."""

END_S = 30.0
"""Seconds that a process has to end when it is asked to."""

HELPERS = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
"""Processes of Python's own, which end with the one that makes the chaos."""


class Process(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int | None:
        """Its number."""

    @property
    def exitcode(self) -> int | None:
        """What it ended with; None if it has not."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""


@dataclass
class Dispatching:
    """A dispatcher that is started again whenever it ends, as a service is."""

    start: Callable[[], Process]
    process: Process | None = None
    start_at: float = 0.0
    wakes_at: float | None = None
    crashes: list[int] = field(default_factory=list)

    def tend(self) -> None:
        """Wake it up, or start it, if it is time."""
        now = time.monotonic()
        if self.process is not None and (code := self.process.exitcode) is not None:
            if code != -signal.SIGKILL:
                self.crashes.append(code)
            self.process, self.wakes_at = None, None
            self.start_at = max(self.start_at, now + 0.2)
        if self.process is None and now >= self.start_at:
            self.process = self.start()
        if self.wakes_at is not None and now >= self.wakes_at:
            self.signal(signal.SIGCONT)
            self.wakes_at = None

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def end(self) -> None:
        """Have it end as people ask it to, and fail if it does not."""
        self.signal(signal.SIGCONT)
        if self.process is not None:
            self.signal(signal.SIGTERM)
            self.process.join(END_S)
            assert self.process.exitcode == 0, f"a dispatcher ended with {self.process.exitcode}"


class Chaos(ABC):
    """A queue, what it needs, and what befalls it."""

    cpus: int
    fault_every_s: float
    patience_s: float
    """Seconds after the last fault within which every job must end."""
    stopped_s: float
    """Seconds that a dispatcher is stopped for at most."""

    def __init__(self, folder: Path, seed: int, jobs: int, exits: contextlib.ExitStack) -> None:
        """Have all that a queue needs; what it is on is for others to say."""
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.fates: dict[str, Fate] = {}
        self.unsure: set[str] = set()
        """Jobs of which nobody knows whether they were queued: something was away meanwhile."""
        self.jobs = jobs
        self.folder = folder
        self.exits = exits
        self.without: Sequence[str] = ()
        self.postgres = Postgres()
        exits.callback(self.postgres.close)
        self.disk = Disk(folder / "disk")
        exits.callback(self.disk.close)
        self.storage = Storage(self.disk.runs)
        self.environment = {
            "RAYGEN_DB": self.postgres.url,
            "RAYGEN_STORAGE": str(self.disk.runs),
            "RAYGEN_STATE": str(folder / "state"),
        }
        exits.enter_context(mock.patch.dict(os.environ, self.environment))
        self.queue = Store(sa.make_url(self.postgres.url))
        exits.callback(self.queue.engine.dispose)
        self.away: list[tuple[float, float]] = []
        """When the database was away."""
        self.due: list[tuple[float, Callable[[], None]]] = []
        # Forked from a process that has imported everything and has no threads: they start within milliseconds.
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["tests.chaos.background", "tests.chaos.cluster_server", "psycopg"])
        self.listed = folder / "listed.jsonl"
        self.lister = self.start(background.list_jobs, self.listed)
        self.dispatchers = [Dispatching(partial(self.start_dispatcher, number)) for number in range(2)]
        exits.callback(self._kill_dispatchers)

    # What is for others to say

    @abstractmethod
    def start_dispatcher(self, number: int) -> Process:
        """Start one of the two dispatchers."""

    @abstractmethod
    def submit_one(self) -> None:
        """Queue another job as a person does, if that works now, and write down its fate."""

    @abstractmethod
    def drivers(self) -> Mapping[str, list[int]]:
        """The attempts of each job whose drivers run now."""

    @abstractmethod
    def check_drivers(self) -> None:
        """Check that no job is run by two attempts at a time."""

    @abstractmethod
    def mend(self) -> None:
        """Have no fault any more in what jobs run on."""

    def faults(self) -> dict[str, Callable[[], bool | None]]:
        """What can happen, by its name; False from what cannot happen now."""
        return {
            "dispatcher killed": self._kill_a_dispatcher,
            "dispatcher stopped": self._stop_a_dispatcher,
            "database restarted": self._restart_the_database,
            "database locked": self._lock_the_database,
            "document damaged": self._damage_a_document,
            "job cancelled": self._cancel_a_job,
            **{name: partial(self._break_the_disk, fault) for name, fault in self.disk.faults.items()},
        }

    # From beginning to end

    def run(self, seconds: float) -> None:
        """Have a fault now and then, and see to it that what must hold does."""
        began_at = time.monotonic()
        fault_at = began_at + self.fault_every_s
        while (passed := time.monotonic() - began_at) < seconds:
            wanted = min(int(self.jobs * passed / (seconds * SUBMITTING)) + 1, self.jobs)
            if len(self.fates) < wanted:
                self.submit_one()
            if time.monotonic() >= fault_at:
                fault_at += self.fault_every_s
                self._make_a_fault()
            self.tend()
            self.check()
            time.sleep(LOOK_EVERY_S)

    def end(self) -> None:
        """Mend everything, and see to it that all end as they should."""
        for _, event in self.due:
            event()
        self.due.clear()
        self.mend()
        for dispatcher in self.dispatchers:
            dispatcher.start_at = 0.0
            dispatcher.wakes_at = 0.0 if dispatcher.wakes_at is not None else None
        while len(self.fates) < self.jobs:
            self.tend()
            self.submit_one()
            time.sleep(0.1)
        deadline = time.monotonic() + self.patience_s
        while self.is_busy() and time.monotonic() < deadline:
            self.tend()
            self.check()
            time.sleep(LOOK_EVERY_S)
        self._check_jobs()
        self.end_processes()
        self._check_listings()
        crashes = [code for dispatcher in self.dispatchers for code in dispatcher.crashes]
        assert not crashes, f"dispatchers crashed: {crashes}; see dispatcher-*.log"

    def tend(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        due = [event for at, event in self.due if at <= now]
        self.due = [(at, event) for at, event in self.due if at > now]
        for event in due:
            event()
        for dispatcher in self.dispatchers:
            dispatcher.tend()

    def check(self) -> None:
        """Check what holds always."""
        self.check_drivers()
        try:
            jobs = check_queue(self.queue, cpus=self.cpus)
            check_history(self.queue)
        except (QueueError, sa.exc.DBAPIError):
            return  # the database is away
        for job in jobs:
            if job.state is JobState.FAILED and job.name in self.fates:
                assert self.fates[job.name].may_fail, f"{job.name} failed: {job.reason}"

    def later(self, least_s: float, most_s: float, event: Callable[[], None]) -> None:
        """Have something happen in a while."""
        self.due.append((time.monotonic() + self.random.uniform(least_s, most_s), event))

    def start(self, main: Callable[..., None], *arguments: object) -> BaseProcess:
        """Start a process that is ended with the chaos, at the latest."""
        process = self.processes.Process(
            target=background.run_with, args=(dict(os.environ), main, *arguments), daemon=True
        )
        process.start()
        self.exits.callback(process.kill)
        return process

    def end_processes(self) -> None:
        """Have all end as people ask them to."""
        for dispatcher in self.dispatchers:
            dispatcher.end()
        self.lister.terminate()
        self.lister.join(END_S)
        assert self.lister.exitcode == 0, f"who lists the jobs ended with {self.lister.exitcode}"

    # Faults

    def _make_a_fault(self) -> None:
        faults = {
            name: fault for name, fault in self.faults().items() if not any(word in name for word in self.without)
        }
        name = self.random.choice(list(faults))
        if faults[name]() is not False:
            self.counts[name] += 1

    def _kill_a_dispatcher(self) -> None:
        dispatcher = self.random.choice(self.dispatchers)
        dispatcher.signal(signal.SIGKILL)
        dispatcher.start_at = time.monotonic() + self.random.uniform(0.0, 4.0)

    def _stop_a_dispatcher(self) -> bool:
        dispatcher = self.random.choice(self.dispatchers)
        if dispatcher.wakes_at is not None or dispatcher.process is None:
            return False
        dispatcher.signal(signal.SIGSTOP)
        dispatcher.wakes_at = time.monotonic() + self.random.uniform(1.0, self.stopped_s)
        return True

    def _restart_the_database(self) -> None:
        began_at = time.time()
        self.postgres.stop()
        time.sleep(self.random.uniform(0.0, 2.0))
        self.postgres.start()
        self.away.append((began_at, time.time()))

    def _lock_the_database(self) -> None:
        """Be a client that vanishes in the middle of a decision about the cluster."""
        engine = sa.create_engine(self.postgres.url, poolclass=sa.NullPool)
        connection = engine.connect()
        connection.exec_driver_sql("SELECT * FROM clusters FOR UPDATE")

        def free() -> None:
            with contextlib.suppress(sa.exc.DBAPIError):
                connection.close()

        # By a thread of its own: whoever makes the chaos uses the queue too, and waits for it as all do.
        timer = threading.Timer(self.random.uniform(3.0, 6.0), free)
        timer.daemon = True
        timer.start()

    def _break_the_disk(self, fault: Callable[[], bool | None]) -> bool:
        if any(event == self.disk.mend for _, event in self.due) or fault() is False:
            return False
        self.later(1.0, 6.0, self.disk.mend)
        return True

    def _damage_a_document(self) -> bool:
        drivers = sorted(set(self.drivers()) & set(self.fates))
        if not drivers:
            return False
        name, what, kind = (self.random.choice(of) for of in (drivers, ["run", "attempt", "status"], list(KINDS)))
        try:
            if not damage(self.disk.runs, name, self.queue.find(name).attempt, what, kind):
                return False
        except (OSError, QueueError):
            return False
        if (what, kind) not in RECOVERABLE:
            self.fates[name].is_broken = self.fates[name].may_fail = True
        return True

    def _cancel_a_job(self) -> bool:
        try:
            active = [job for job in self.queue.list(states=ACTIVE) if job.name in self.fates]
            if not active:
                return False
            job = self.random.choice(active)
            self.fates[job.name].is_unwanted = True
            self.queue.cancel(job)
        except (QueueError, JobError):
            return False
        return True

    # What came of it

    def next_name(self) -> str:
        """What no job was called yet."""
        return f"job-{len(self.fates) + len(self.unsure) + self.counts['not queued'] + 1}"

    def is_busy(self) -> bool:
        """Whether a job has not ended."""
        try:
            return self.queue.count().keys() - set(ENDED) != set()
        except QueueError:
            return True

    def _check_jobs(self) -> None:
        self.counts |= {f"jobs {state}": number for state, number in self.queue.count().items()}
        jobs = {job.name: job for job in self.queue.list()}
        assert set(self.fates) <= set(jobs) <= set(self.fates) | self.unsure, "jobs were lost"
        # What runs first: the others may wait for its devices.
        for job in sorted(jobs.values(), key=lambda job: job.state not in ACTIVE):
            check_ended_once(self.queue, job, requeued=0)
            ends = self.fates[job.name].ends if job.name in self.fates else ENDED
            assert job.state in ends, f"{job.name} {job.state}: {job.reason}"

    def _check_listings(self) -> None:
        """Check that `raygen ls` has failed only if the database was away, and then with one line that says so."""
        lines = [json.loads(line) for line in self.listed.read_text().splitlines()]
        self.counts["listings"] = lines[-1]["times"]
        for failure in lines[:-1]:
            while_away = any(
                began_at - 1 <= failure["ended_at"] and failure["began_at"] <= ended_at + 1
                for began_at, ended_at in self.away
            )
            is_plain = failure["outcome"] == "1" and "cannot be used" in failure["output"]
            assert while_away, f"raygen ls failed: {failure}"
            assert is_plain, f"raygen ls failed in other words: {failure}"

    def _kill_dispatchers(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.signal(signal.SIGKILL)


def make_chaos(
    kind: type[Chaos], folder: Path, *, seed: int, minutes: float, jobs: int, without: str = ""
) -> Counter[str]:
    """Make chaos; returns how often what has happened. Raises AssertionError if what must hold has not.

    Faults whose names have one of the words `without`, which commas separate, are left out.
    """
    print(f"seed {seed}", flush=True)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with contextlib.ExitStack() as exits:
        chaos = kind(folder, seed, jobs, exits)
        chaos.without = [word for word in without.split(",") if word]
        try:
            chaos.run(minutes * 60)
            chaos.end()
        finally:
            print(", ".join(f"{what} {number}" for what, number in sorted(chaos.counts.items())), flush=True)
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    _, left = psutil.wait_procs(left, timeout=END_S if any(not _helps(child) for child in left) else 0)
    assert not [child for child in left if not _helps(child)], f"processes are left: {left}"
    return chaos.counts


def _helps(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(name in " ".join(process.cmdline()) for name in HELPERS)
    return True


def main(kind: type[Chaos], about: str | None, *, minutes: float, jobs: int) -> None:
    """Make chaos as typed, and say what came of it; ends with exit code 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--jobs", type=int, default=jobs)
    parser.add_argument("--without", default="", metavar="WORD,…", help="leave faults out whose names have one")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raygen-chaos-"))
    try:
        make_chaos(kind, folder, **vars(asked))
    except AssertionError as error:
        print(f"seed {asked.seed}: {error}; logs are in {folder}", flush=True)
        sys.exit(1)
    shutil.rmtree(folder)
    print(f"seed {asked.seed}: all held")


def wait_for(condition: Callable[[], bool], what: str, *, patience_s: float = 60.0) -> None:
    """Wait for something; fails if it takes too long."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.05)
