"""The dispatcher is killed at every write of a job's state, and no job is the worse for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import ENDLESS, UNLUCKY, FakeCluster
from making import CLUSTER, let_leases_run_out, queue_job
from typer.testing import CliRunner

from cli import job_tables
from cli.main import app
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import ENDED, JobState
from raygen.queue.store import Store
from raygen.storage import Storage

JOBS = 50
KILLS = 200
MOST_KILLS = 1000
GENERAL_POINTS = {
    *(
        f"{side} writing {what}"
        for side in ("before", "after")
        for what in ("INSERT clusters, INSERT dispatchers", "UPDATE clusters", "UPDATE dispatchers", "nothing")
    ),
    "before writing DELETE dispatchers, UPDATE jobs",
    "after writing DELETE dispatchers, UPDATE jobs",
    "before writing DELETE dispatchers",
    "after writing DELETE dispatchers",
    "before capacity",
    "after capacity",
    "before submissions",
    "after submissions",
}


class Lives:
    """Dispatchers of a queue, one after another; see lives.py."""

    def __init__(self, storage: Path, cluster: Path, journal: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("lives.py")), str(storage), str(cluster), str(journal)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def ask(self, letter: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(letter)
        return self._process.stdout.read(1)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate(timeout=30)


@pytest.fixture
def lives(storage: Path, tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(storage, tmp_path / "cluster", tmp_path / "journal")
    yield lives
    lives.close()


@pytest.fixture
def queue(storage: Path) -> Store:
    """A queue of short jobs, each with its run."""
    queue = Store.open(Storage(storage))
    for number in range(JOBS):
        queue_job(queue, storage, f"job-{number}", priority=number % 3)
    return queue


@pytest.mark.slow
def test_no_kill_of_the_dispatcher_loses_or_doubles_a_job(
    queue: Store, lives: Lives, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    kills = kill_until_idle(queue, lives, tmp_path / "journal")
    with capsys.disabled():
        print(f"\n{kills} kills in {time.monotonic() - began:.1f} s")
    assert kills >= KILLS

    points = (tmp_path / "journal").read_text().splitlines()
    assert len(points) == kills
    assert set(points) >= GENERAL_POINTS
    cluster = FakeCluster(tmp_path / "cluster")
    cluster.check()
    jobs = queue.list()
    assert len(jobs) == JOBS
    for job in jobs:
        assert (job.state, job.attempt, job.losses, job.owner) == (JobState.SUCCEEDED, 1, 0, None)
        [attempt] = queue.attempts(job)
        assert (attempt.submission_id, attempt.outcome) == (job.submission_id, "succeeded")
        assert cluster.accepted(job.name) == [job.submission_id]
        changes = [(event.from_state, event.to_state) for event in queue.events(job)]
        assert Counter(to for _, to in changes if to in ENDED) == {JobState.SUCCEEDED: 1}
        # Each event goes on from the one before: none was lost, none was written twice.
        assert [source for source, _ in changes] == [None, *(to for _, to in changes[:-1])]
        doings = [f"writing {what(job.id, *change)}" for change in changes[1:]] + [f"submit {job.submission_id}"]
        assert {f"{side} {doing}" for side in ("before", "after") for doing in doings} <= set(points)

    # Nor is anything of the dead dispatchers left for ever.
    let_leases_run_out(queue)
    Dispatcher(queue, cluster, CLUSTER).tick()
    assert len(queue.dispatchers()) == 1


@pytest.mark.slow
def test_no_kill_of_the_dispatcher_makes_an_attempt_more_or_forgets_a_wish(
    storage: Path, lives: Lives, tmp_path: Path
) -> None:
    queue = Store.open(Storage(storage))
    unlucky = [queue_job(queue, storage, f"{UNLUCKY}-{number}") for number in range(6)]
    endless = [queue_job(queue, storage, f"{ENDLESS}-{number}") for number in range(6)]
    kill_until_idle(queue, lives, tmp_path / "journal")

    cluster = FakeCluster(tmp_path / "cluster")
    cluster.check()
    points = (tmp_path / "journal").read_text().splitlines()
    assert {"before placements", "after placements", "before stop", "after stop"} <= set(points)
    for job in unlucky:
        assert (queue.get(job.id).state, queue.get(job.id).losses) == (JobState.SUCCEEDED, 1)
        assert [attempt.outcome for attempt in queue.attempts(job)] == ["recovering: a node was lost", "succeeded"]
        assert cluster.accepted(job.name) == [attempt.submission_id for attempt in queue.attempts(job)]
    for job in endless:
        assert [attempt.outcome for attempt in queue.attempts(job)] == ["cancelled: on request"]
        assert [event.to_state for event in queue.events(job) if event.to_state in ENDED] == [JobState.CANCELLED]
        assert cluster.accepted(job.name) == [queue.get(job.id).submission_id]
        assert queue.get(job.id).submission_id in cluster.stops()


def kill_until_idle(queue: Store, lives: Lives, journal: Path) -> int:
    """Have one dispatcher follow another until no job is left; returns how many were killed."""
    for kills in range(MOST_KILLS):
        # Only jobs that go on are sure to be asked about: on a slow machine others end in every look.
        if journal.exists() and "after placements" in journal.read_text():
            cancel_endless(queue)
        # The real command now and then; what it is made of, which takes a tenth of its time, otherwise.
        list_jobs = jobs_by_command if kills % 20 == 0 else jobs_by_store
        without_dispatcher = list_jobs(queue)
        outcome = lives.ask(b"g")
        # It waits before its first tick, unless it was killed while it registered: that is a restart too.
        assert list_jobs(queue) == without_dispatcher
        if outcome == b"m":
            outcome = lives.ask(b"t")
        if outcome == b"e":
            return kills
        assert outcome == b"k", "a dispatcher crashed, or was stuck"
    pytest.fail("it never ends")


def cancel_endless(queue: Store) -> None:
    for job in queue.list(states=[JobState.RUNNING]):
        if job.name.startswith(ENDLESS) and job.cancelled_at is None:
            queue.cancel(job)


def what(job: int, before: JobState | None, after: JobState) -> str:
    return f"job {job}: {before} → {after}" + (", INSERT attempts" if after is JobState.STARTING else "")


def jobs_by_command(queue: Store) -> list[dict[str, Any]]:
    listed = CliRunner().invoke(app, ["ls", "-o", "json", "-n", str(2 * JOBS)])
    assert listed.exit_code == 0, listed.output
    return without_reasons_of_the_moment(json.loads(listed.stdout))


def jobs_by_store(queue: Store) -> list[dict[str, Any]]:
    jobs = queue.list(limit=2 * JOBS)
    reasons = queue.reasons(jobs)
    return without_reasons_of_the_moment([job_tables.job_json(job, reasons.get(job.id, job.reason)) for job in jobs])


def without_reasons_of_the_moment(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Why a job waits is found out when somebody asks, and is another thing where no dispatcher is alive."""
    assert jobs
    return [{**job, "reason": None} if job["state"] not in ENDED else job for job in jobs]
