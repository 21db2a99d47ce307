"""One Ray head for all tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raygen.queue.job import JobState
from tests.typed_commands import CPUS, Queue


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    """A queue with a head of two CPU cores and a dispatcher, up for the whole session."""
    queue = Queue(tmp_path_factory.mktemp("shared"))
    up = queue.raygen("up", "--cpus", str(CPUS))
    assert up.returncode == 0, up.stderr
    yield queue
    queue.raygen("down")


@pytest.fixture
def queue(shared: Queue, request: pytest.FixtureRequest) -> Iterator[Queue]:
    """The shared queue; jobs that a failed test left are cancelled, so that they do not hold up the next."""
    yield shared
    shared.kill_started()
    for job in shared.store.list(states=[JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.RECOVERING]):
        shared.raygen("cancel", job.name)
        shared.wait_for(job.name, JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED)


@pytest.fixture
def own_queue(tmp_path: Path) -> Iterator[Queue]:
    """An empty queue of the test's own, with nothing running for it."""
    queue = Queue(tmp_path / "storage")
    yield queue
    queue.kill_started()
    queue.raygen("down")
