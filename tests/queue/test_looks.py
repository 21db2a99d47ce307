"""One look at the cluster: how long it may take, and that nothing which concerns one job ends it for the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa
from fake_cluster import FakeCluster
from looking import held, is_asked_to_stop, lost, now, outcomes, run_of, start, wait_until, why_it_is_to_stop
from making import CLUSTER, let_leases_run_out, queue_job

from raygen.errors import ClusterUnreachableError, QueueError
from raygen.queue import claims, database, schema, usage
from raygen.queue import dispatcher as dispatcher_module
from raygen.queue import job as job_module
from raygen.queue import registration as registration_module
from raygen.queue import store as store_module
from raygen.queue.client import Submitted
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import ENDED, Job, JobState
from raygen.queue.registration import Registration
from raygen.queue.store import Store
from raygen.queue.turns import CORES_OF_A_GPU
from raygen.record.attempt import Attempt
from raygen.record.layout import RunKeys
from raygen.storage import Storage

pytestmark = pytest.mark.usefixtures("no_waiting")

HOUR_S = 3600.0


# A slow dashboard


def test_forty_jobs_start_and_end_on_a_dashboard_that_takes_a_tenth_of_a_second(
    queue: Store, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 3.0)
    cluster = FakeCluster(tmp_path / "slow", cpus=40, start_s=0.0, run_s=0.0)
    cluster.answer_after(0.1)
    jobs = [queue_job(queue, storage, f"job-{number}") for number in range(40)]
    counted = Counted(cluster)
    dispatcher = Dispatcher(queue, counted, CLUSTER)  # type: ignore[arg-type]
    began_s = time.monotonic()
    dispatcher.tick()
    assert time.monotonic() - began_s > store_module.LEASE_S, "the lease is renewed beside the look"
    assert len(cluster.accepted()) == 40
    counted.asked.clear()
    dispatcher.tick()
    assert len(counted.asked) == 3, "all jobs are asked for at once"
    wait_until(lambda: dispatcher.tick() or {now(queue, job).state for job in jobs} == {JobState.SUCCEEDED})
    assert {now(queue, job).attempt for job in jobs} == {1}
    assert len(queue.dispatchers()) == 1
    cluster.check()


class Counted:
    """A cluster that counts what it is asked."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.asked: list[str] = []
        self._cluster = cluster

    def __getattr__(self, name: str) -> Callable[..., object]:
        self.asked.append(name)
        answer: Callable[..., object] = getattr(self._cluster, name)
        return answer


def test_a_look_asks_as_much_for_many_jobs_as_for_one(queue: Store, storage: Path, tmp_path: Path) -> None:
    counted = Counted(FakeCluster(tmp_path / "counted", cpus=30, start_s=0.0))
    dispatcher = Dispatcher(queue, counted, CLUSTER)  # type: ignore[arg-type]
    for number in range(30):
        queue_job(queue, storage, f"job-{number}")
    dispatcher.tick()
    counted.asked.clear()
    dispatcher.tick()
    assert counted.asked == ["capacity", "submissions", "placements"]


def test_a_lease_is_renewed_while_a_look_lasts_and_not_after(queue: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 0.3)
    registration = Registration(queue, CLUSTER)
    renewals, renew = [], queue.renew

    def count(dispatcher: int) -> bool:
        renewals.append(dispatcher)
        if len(renewals) == 3:
            monkeypatch.setattr(store_module, "LEASE_S", 30.0)
        return renew(dispatcher)

    monkeypatch.setattr(queue, "renew", count)
    with registration.kept():
        wait_until(lambda: len(renewals) == 3)
    assert not any(thread.name == "lease" for thread in threading.enumerate())
    assert registration.holds
    assert [each.is_alive for each in queue.dispatchers()] == [True]
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + store_module.LEASE_S)
    assert not registration.holds
    with registration.kept():
        assert registration.holds, "nobody had taken it for dead"
    assert len(queue.dispatchers()) == 1


def test_a_database_that_is_away_for_a_moment_ends_no_renewal(
    queue: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 0.3)
    registration = Registration(queue, CLUSTER)
    renew, failures, renewals = queue.renew, iter([QueueError("it is away")]), []

    def faulty(dispatcher: int) -> bool:
        for failure in failures:
            raise failure
        renewals.append(dispatcher)
        return renew(dispatcher)

    monkeypatch.setattr(queue, "renew", faulty)
    with registration.kept():
        wait_until(lambda: renewals)
    assert "the lease cannot be renewed: it is away" in caplog.text


class Asleep:
    """A cluster whose list comes so late that the lease of whoever asked has run out, as if that process slept."""

    def __init__(self, cluster: FakeCluster, queue: Store) -> None:
        self._cluster, self._queue = cluster, queue
        self.sleeps = True
        self.capacity, self.placements = cluster.capacity, cluster.placements
        self.submit, self.stop, self.forget = cluster.submit, cluster.stop, cluster.forget

    def submissions(self) -> Mapping[str, Submitted]:
        """What the cluster knows, after the lease has run out."""
        if self.sleeps:
            let_leases_run_out(self._queue)
        return self._cluster.submissions()


def test_who_has_lost_the_lease_submits_nothing(
    queue: Store, storage: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 0.6)
    waiting = queue_job(queue, storage)
    asleep = Asleep(cluster, queue)
    dispatcher = Dispatcher(queue, asleep, CLUSTER)
    dispatcher.tick()
    assert (now(queue, waiting).state, cluster.accepted()) == (JobState.QUEUED, [])
    asleep.sleeps = False
    time.sleep(0.2)
    dispatcher.tick()
    assert len(cluster.accepted()) == 1


def test_what_was_claimed_is_not_submitted_after_the_lease_has_run_out(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue_job(queue, storage)
    with monkeypatch.context() as late:
        late.setattr(registration_module.Registration, "holds", False)
        dispatcher.tick()
    assert (now(queue, job).state, cluster.accepted()) == (JobState.STARTING, [])
    dispatcher.tick()
    assert len(cluster.accepted()) == 1


def test_the_cluster_is_not_left_with_all_that_ever_ran(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end("job")
    dispatcher.tick()
    assert cluster.known() == {job.submission_id}, "people may look at it there for a while"
    monkeypatch.setattr(dispatcher_module, "FORGET_AFTER_S", 0.0)
    dispatcher.tick()
    dispatcher.tick()
    assert cluster.known() == set()
    assert outcomes(queue, job) == ["succeeded"]


def test_what_an_earlier_dispatcher_judged_is_forgotten_by_the_next(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    lost(cluster)
    dispatcher.tick()
    dispatcher.tick()
    dispatcher.leave()
    assert cluster.known() == {job.submission_id, now(queue, job).submission_id}
    monkeypatch.setattr(dispatcher_module, "FORGET_AFTER_S", 0.0)
    later = Dispatcher(queue, cluster, CLUSTER)
    for _ in range(3):
        later.tick()
    assert cluster.known() == {now(queue, job).submission_id}


def test_what_nobody_can_read_is_forgotten_too(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    run_of(job).remove()
    dispatcher.tick()
    assert now(queue, job).state is JobState.FAILED
    monkeypatch.setattr(dispatcher_module, "FORGET_AFTER_S", 0.0)
    dispatcher.tick()
    dispatcher.tick()
    assert cluster.known() == set()


# What concerns one job alone


def test_what_the_cluster_says_of_one_job_and_nobody_understands_concerns_that_job_alone(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.say_of("job", "unknown", "the cluster says of it what cannot be read: status 'FROZEN'")
    other = queue_job(queue, storage, "other")
    dispatcher.tick()
    assert (now(queue, job).state, now(queue, other).state) == (JobState.RUNNING, JobState.STARTING)
    assert "FROZEN" in now(queue, job).reason
    cluster.say_of("job", "running", "")
    dispatcher.tick()
    assert now(queue, job).reason == ""


def test_a_submission_that_is_refused_for_good_counts_as_lost_and_others_start(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    cluster.refuse("job", for_good=True)
    job = queue_job(queue, storage, retries=1)
    other = queue_job(queue, storage, "other")
    for _ in range(3):
        dispatcher.tick()
    ended = now(queue, job)
    assert (ended.state, ended.attempt) == (JobState.FAILED, 2)
    assert ended.reason.endswith("it could not be started (the fake cluster refuses it)")
    assert now(queue, other).state is JobState.STARTING
    assert Attempt.begin(Storage(storage), "job", 2) is None


def test_a_submission_that_is_refused_for_now_waits_and_others_start(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    cluster.refuse("job", for_good=False)
    job = queue_job(queue, storage, retries=0)
    other = queue_job(queue, storage, "other")
    for _ in range(3):
        dispatcher.tick()
    assert (now(queue, job).state, now(queue, job).reason) == (JobState.STARTING, "the fake cluster refuses it")
    assert now(queue, other).state is JobState.STARTING
    assert queue.cluster(CLUSTER).unreachable_since is None
    cluster.take("job")
    dispatcher.tick()
    assert len(cluster.accepted("job")) == 1


def test_an_error_that_nobody_expected_is_told_once_and_concerns_one_job(
    queue: Store,
    storage: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    submit = cluster.submit

    def odd(job: Job) -> None:
        if job.name == "job":
            raise KeyError("CPU")
        submit(job)

    monkeypatch.setattr(cluster, "submit", odd)
    job = queue_job(queue, storage)
    other = queue_job(queue, storage, "other")
    for _ in range(3):
        dispatcher.tick()
    assert now(queue, job).reason == "an error in Raygen itself (KeyError: 'CPU')"
    assert now(queue, other).state is JobState.STARTING
    assert caplog.text.count("Traceback") == 1
    queue.cancel(now(queue, job))
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED


def test_a_silent_cluster_ends_the_look_although_one_job_was_asked_about(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(job: Job) -> None:
        raise ClusterUnreachableError("no answer")

    monkeypatch.setattr(cluster, "submit", silent)
    jobs = [queue_job(queue, storage, f"job-{number}") for number in range(3)]
    dispatcher.tick()
    assert [now(queue, job).state for job in jobs].count(JobState.STARTING) == 1
    assert queue.cluster(CLUSTER).problem == "no answer"


# A stop that is heard


@pytest.mark.parametrize("gone", ["forgotten", "ended"])
def test_a_cancelled_job_that_is_gone_for_the_cluster_and_lives_is_asked_to_stop(
    gone: str, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    """Ray took the node of its driver for dead, or was restarted without it."""
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    with held(job):
        if gone == "forgotten":
            cluster.restart()
        else:
            cluster.end_without_a_word("job")
        queue.cancel(job)
        dispatcher.tick()
        assert is_asked_to_stop(job)
        assert now(queue, job).state is JobState.RUNNING
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED


def test_whoever_is_asked_to_stop_has_time_for_checkpoints_from_then_on(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long ago it was cancelled: no dispatcher may have run, or the cluster was silent."""
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.3)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    time.sleep(0.4)
    dispatcher.tick()
    assert is_asked_to_stop(job)
    assert cluster.stops() == []
    time.sleep(0.4)
    dispatcher.tick()
    assert cluster.stops() == [job.submission_id]


def test_whoever_has_heard_has_longer_to_write_its_checkpoints(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    Storage(job.storage).create(RunKeys(job.name).attempt(job.attempt).stopping, b"")
    queue.cancel(job)
    for _ in range(3):
        dispatcher.tick()
    assert is_asked_to_stop(job)
    assert cluster.stops() == []
    monkeypatch.setattr(dispatcher_module, "LONGEST_STOP_S", 0.0)
    dispatcher.tick()
    assert cluster.stops() == [job.submission_id]


# Time limits


def test_a_job_ends_with_its_checkpoints_when_it_has_run_for_as_long_as_it_may(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage, time_limit_s=2 * HOUR_S))
    dispatcher.tick()
    assert not is_asked_to_stop(job)
    grow_older(queue, 2 * HOUR_S)
    dispatcher.tick()
    assert why_it_is_to_stop(job) == "by its time limit of 2 h"
    assert (now(queue, job).state, cluster.stops()) == (JobState.RUNNING, [])
    cluster.end("job", "interrupted", "stopped on request")
    dispatcher.tick()
    ended = now(queue, job)
    assert ended.state is JobState.CANCELLED
    assert ended.reason == "reached its time limit of 2 h"
    again = queue.retry(ended)
    assert (again.ran_s, again.time_limit_s) == (0.0, 2 * HOUR_S)
    start(queue, cluster, dispatcher, again)
    dispatcher.tick()
    assert not is_asked_to_stop(now(queue, job)), "it may run for as long again"


def test_a_job_that_had_finished_at_its_time_limit_has_succeeded(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage, time_limit_s=0.1))
    time.sleep(0.1)
    cluster.end("job")
    dispatcher.tick()
    assert now(queue, job).state is JobState.SUCCEEDED


def test_a_job_that_does_not_heed_its_time_limit_is_ended(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage, time_limit_s=0.01))
    time.sleep(0.02)
    dispatcher.tick()
    dispatcher.tick()
    dispatcher.tick()
    assert cluster.stops()[0] == job.submission_id
    assert now(queue, job).state is JobState.CANCELLED


def test_what_lost_attempts_ran_counts_towards_the_limit(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage, time_limit_s=1e6, retries=5)
    start(queue, cluster, dispatcher, job)
    time.sleep(0.2)
    lost(cluster)
    dispatcher.tick()
    first = now(queue, job).ran_s
    assert 0.2 <= first < 20
    start(queue, cluster, dispatcher, job)
    with queue.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET time_limit_s = {first + 0.2}")
    time.sleep(0.3)
    dispatcher.tick()
    assert is_asked_to_stop(now(queue, job))
    lost(cluster)
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED, "there is no time left for another attempt"
    assert now(queue, job).ran_s > first + 0.2


def test_what_a_job_waits_for_a_node_does_not_count_and_is_not_charged(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage, time_limit_s=HOUR_S, node_timeout_s=3 * HOUR_S))
    cluster.be_full(True)
    dispatcher.tick()
    grow_older(queue, 2 * HOUR_S)
    dispatcher.tick()
    assert not is_asked_to_stop(job)
    assert used(queue) < 0.1 * HOUR_S
    cluster.be_full(False)
    dispatcher.tick()
    grow_older(queue, 0.5 * HOUR_S)
    dispatcher.tick()
    assert not is_asked_to_stop(job), "it has run for half an hour"
    lost(cluster)
    dispatcher.tick()
    assert now(queue, job).ran_s == pytest.approx(0.5 * HOUR_S, abs=0.1 * HOUR_S)
    assert used(queue) == pytest.approx(0.5 * HOUR_S / CORES_OF_A_GPU, rel=0.2)


@pytest.mark.parametrize("hours", [-24, 3])
@pytest.mark.parametrize("has_node", [True, False])
def test_no_step_of_the_clock_makes_a_job_run_or_wait_for_longer_or_less(
    has_node: bool,
    hours: float,
    queue: Store,
    storage: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = {"time_limit_s": 2 * HOUR_S} if has_node else {"node_timeout_s": 2 * HOUR_S}
    cluster.be_full(not has_node)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage, **wanted))
    dispatcher.tick()
    tell_time = database.now
    monkeypatch.setattr(database, "now", lambda connection: tell_time(connection) + hours * HOUR_S)
    renewed_as_usual(queue)
    for _ in range(2):
        dispatcher.tick()
    grow_older(queue, 1.9 * HOUR_S)
    dispatcher.tick()
    assert not is_asked_to_stop(job)
    grow_older(queue, 0.2 * HOUR_S)
    dispatcher.tick()
    told = "by its time limit of 2 h" if has_node else "as no node had room for it"
    assert why_it_is_to_stop(job) == told


def test_a_job_that_is_to_be_tried_again_waits_no_longer_if_the_clock_is_set_back(
    queue: Store,
    storage: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 200.0)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    lost(cluster)
    dispatcher.tick()
    dispatcher.tick()
    assert now(queue, job).state is JobState.RECOVERING
    assert "is tried again at" in queue.reasons([now(queue, job)])[job.id]
    tell_time = database.now
    monkeypatch.setattr(database, "now", lambda connection: tell_time(connection) - 24 * HOUR_S)
    renewed_as_usual(queue)
    assert queue.reasons([now(queue, job)])[job.id] == "next to start"
    dispatcher.tick()
    assert now(queue, job).state is JobState.STARTING


def grow_older(queue: Store, seconds: float) -> None:
    """Have so much time pass for all that runs or waits for a node."""
    times = {name: schema.jobs.c[name] - seconds for name in ("started_at", "unplaced_since")}
    with queue.engine.begin() as connection:
        connection.execute(sa.update(schema.jobs).values(times))


def renewed_as_usual(queue: Store) -> None:
    for each in queue.dispatchers():
        queue.renew(each.id)


def used(queue: Store) -> float:
    """Device-seconds that everybody used."""
    with queue.engine.begin() as connection:
        now = database.now(connection)
        return sum(usage.lately(connection, CLUSTER, claims.active(connection, CLUSTER, now), now).values())


def test_a_job_that_only_waits_is_not_limited(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage, time_limit_s=0.1, cpus_each=4)
    behind = queue_job(queue, storage, "behind", time_limit_s=0.1, cpus_each=4)
    dispatcher.tick()
    time.sleep(0.15)
    dispatcher.tick()
    assert now(queue, job).state is JobState.STARTING
    assert now(queue, behind).state is JobState.QUEUED
    assert now(queue, job).state not in ENDED
