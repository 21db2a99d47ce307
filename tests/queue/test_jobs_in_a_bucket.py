"""The dispatcher and runs in a bucket, where nothing tells at once that a process has ended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fake_cluster import FakeCluster
from making import CLUSTER, queue_job

from raygen.queue import dispatcher as dispatcher_module
from raygen.queue import job as job_module
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import Job, JobState
from raygen.queue.store import Store
from raygen.record import attempt as attempt_module
from raygen.record import liveness
from raygen.record.attempt import Attempt
from raygen.record.layout import RunKeys
from raygen.record.reading import Reader
from raygen.record.run import Run
from raygen.storage import Storage
from raygen.storage import bucket as storage_bucket
from tests.searches import best_facts
from tests.storage import servers

LIVENESS_S = 1.5
RETRIES_S = 3
"""Seconds in which a server that does not answer is asked again."""
NEVER_S = 1e9


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of an S3 server."""
    with servers.moto() as address:
        yield address


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own in a bucket, and signs of life that are soon missed."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in servers.S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage_bucket, "RETRIES_TIMEOUT_S", RETRIES_S)
    monkeypatch.setattr(liveness, "TIMEOUT_S", LIVENESS_S)
    monkeypatch.setattr(attempt_module, "BEAT_EVERY_S", LIVENESS_S / 3)
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", NEVER_S)
    return f"s3://{servers.BUCKET}/{secrets.token_hex(4)}?endpoint={address}"


def running(queue: Store, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher, name: str = "job") -> Job:
    job = queue_job(queue, bucket, name)
    dispatcher.tick()
    cluster.start(name)
    dispatcher.tick()
    assert queue.get(job.id).state is JobState.RUNNING
    return queue.get(job.id)


def living(job: Job) -> Attempt:
    """The process of the job's attempt, which gives signs of life until it is closed."""
    return Attempt(Reader(Storage(job.storage), job.name), job.attempt)


def seconds_until_concluded(queue: Store, dispatcher: Dispatcher, job: Job) -> float:
    began_s = time.monotonic()
    while queue.get(job.id).state is JobState.RUNNING:
        assert time.monotonic() - began_s < 20 * LIVENESS_S, "it is never concluded"
        dispatcher.tick()
        time.sleep(0.05)
    return time.monotonic() - began_s


def test_a_job_is_concluded_only_after_its_sign_of_life_has_stood_still(
    queue: Store, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = running(queue, bucket, cluster, dispatcher)
    with closing(living(job)):
        cluster.end_without_a_word("job")
        until_s = time.monotonic() + 2 * LIVENESS_S
        while time.monotonic() < until_s:
            dispatcher.tick()
            assert queue.get(job.id).state is JobState.RUNNING
            time.sleep(0.05)
        told = queue.get(job.id).reason
        assert told.startswith("over for the cluster, but process ")
        assert told.endswith("counts as alive until it has given no sign of life for 1.5 s")
    waited_s = seconds_until_concluded(queue, dispatcher, job)
    assert waited_s > LIVENESS_S - LIVENESS_S / 3 - 0.2  # it may have given its last sign just before its end
    assert [each.outcome for each in queue.attempts(job)] == ["recovering: its processes were ended"]


def test_a_dispatcher_that_takes_over_watches_for_itself(
    queue: Store, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    """How long ago another machine wrote a sign of life is told by that machine's clock, which may be wrong."""
    job = running(queue, bucket, cluster, dispatcher)
    living(job).close()
    cluster.end_without_a_word("job")
    dispatcher.tick()
    time.sleep(1.2 * LIVENESS_S)
    dispatcher.leave()
    other = Dispatcher(queue, cluster, CLUSTER)
    other.tick()
    assert queue.get(job.id).state is JobState.RUNNING
    assert seconds_until_concluded(queue, other, queue.get(job.id)) > LIVENESS_S - 0.5


def test_a_job_that_said_how_it_ended_is_concluded_at_once(
    queue: Store, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = running(queue, bucket, cluster, dispatcher)
    cluster.end("job")
    dispatcher.tick()
    assert queue.get(job.id).state is JobState.SUCCEEDED


def test_a_job_that_could_not_be_started_is_concluded_at_once(
    queue: Store, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, bucket)
    dispatcher.tick()
    cluster.end_without_a_word("job")
    dispatcher.tick()
    assert [each.outcome for each in queue.attempts(job)] == ["recovering: it could not be started"]
    assert Attempt.begin(Storage(bucket), "job", 1) is None


def test_a_cancelled_job_has_ended_when_its_process_gives_no_sign_of_life_any_more(
    queue: Store, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = running(queue, bucket, cluster, dispatcher)
    with closing(living(job)):
        queue.cancel(job)
        cluster.end_without_a_word("job")
        for _ in range(3):
            dispatcher.tick()
        assert queue.get(job.id).state is JobState.RUNNING
    seconds_until_concluded(queue, dispatcher, job)
    assert queue.get(job.id).state is JobState.CANCELLED


def test_a_job_in_a_bucket_has_longer_to_write_its_checkpoints_before_it_is_ended(
    queue: Store, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    job = running(queue, bucket, cluster, dispatcher)
    queue.cancel(job)
    dispatcher.tick()
    assert Storage(bucket).entry(RunKeys("job").attempt(1).stop) is not None
    assert cluster.stops() == []
    monkeypatch.setattr(dispatcher_module, "BUCKET_STOP_GRACE_S", 0.0)
    dispatcher.tick()
    assert cluster.stops() == [job.submission_id]


def test_what_an_attempt_writes_after_the_next_has_begun_is_not_read(
    queue: Store, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 0.0)
    job = running(queue, bucket, cluster, dispatcher)
    cluster.end_without_a_word("job")
    seconds_until_concluded(queue, dispatcher, job)
    dispatcher.tick()
    cluster.start("job")
    dispatcher.tick()
    run = Run(Storage(bucket), "job")
    before = run.look()
    assert before.attempt == 2
    with closing(living(job)) as late:
        late.new_trial(1, {}, before.spec())
        late.set_trial_state(1, "finished")
        late.put_best([(best_facts(), {"model.safetensors": b"late"})])
        late.set_status("finished")
    assert run.look() == before
    cluster.end("job", "failed", "as it had to")
    dispatcher.tick()
    assert (queue.get(job.id).state, queue.get(job.id).reason) == (JobState.FAILED, "as it had to")


def test_while_a_bucket_is_away_nothing_is_concluded_of_its_jobs_and_others_go_on(
    queue: Store, storage: Path, bucket: str, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    here = running(queue, bucket, cluster, dispatcher, "here")
    with servers.moto() as address:
        another = f"s3://{servers.BUCKET}/runs?endpoint={address}"
        jobs = [running(queue, another, cluster, dispatcher, f"away-{number}") for number in range(3)]
        for job in (here, *jobs):
            cluster.end_without_a_word(job.name)
    began_s = time.monotonic()
    dispatcher.tick()
    assert time.monotonic() - began_s < 2 * RETRIES_S + 2, "it is asked once, not for each of its jobs"
    for job in jobs:
        now = queue.get(job.id)
        assert (now.state, now.attempt) == (JobState.RUNNING, 1)
        assert now.reason, "ls says what it waits for"
    assert "no sign of life" in queue.get(here.id).reason
