"""What tests of the dispatcher do to jobs, and see of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fake_cluster import FakeCluster
from filelock import FileLock

from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import Job, JobState
from raygen.queue.store import Store
from raygen.record import reading
from raygen.record.documents import Status
from raygen.record.layout import RunKeys
from raygen.record.run import Run
from raygen.storage import Storage


def now(queue: Store, job: Job) -> Job:
    return queue.get(job.id)


def run_of(job: Job) -> Run:
    return Run(Storage(job.storage), job.name)


def status_of(job: Job) -> Status:
    return run_of(job).look().status


def is_asked_to_stop(job: Job) -> bool:
    """Whether the job's current attempt is."""
    return Storage(job.storage).entry(RunKeys(job.name).attempt(job.attempt).stop) is not None


def why_it_is_to_stop(job: Job) -> str:
    """Why the job's current attempt is to end."""
    return (Storage(job.storage).get(RunKeys(job.name).attempt(job.attempt).stop) or b"").decode()


def held(job: Job) -> FileLock:
    """What the process of the job's driver would hold."""
    return reading.lock(Storage(job.storage), RunKeys(job.name))


def history(queue: Store, job: Job) -> list[JobState]:
    return [event.to_state for event in queue.events(job)]


def outcomes(queue: Store, job: Job) -> list[str]:
    return [attempt.outcome for attempt in queue.attempts(job)]


def start(queue: Store, cluster: FakeCluster, dispatcher: Dispatcher, job: Job) -> Job:
    """Have the job run on the cluster, and the dispatcher know."""
    dispatcher.tick()
    cluster.start(job.name)
    dispatcher.tick()
    started = now(queue, job)
    assert started.state is JobState.RUNNING
    return started


def let_backoffs_pass(queue: Store) -> None:
    with queue.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET not_before = 0")


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def away(storage: Path) -> Iterator[None]:
    """The folder is an error of the file system to everybody, root too; then it is there again."""
    elsewhere = storage.rename(storage.with_name("elsewhere"))
    storage.symlink_to(storage)
    yield
    storage.unlink()
    elsewhere.rename(storage)


def lost(cluster: FakeCluster) -> None:
    cluster.end("job", "failed", "a node was lost", cause="lost")
