"""What the dispatcher makes of everything that can happen to a job and to its cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from fake_cluster import FakeCluster
from looking import (
    away,
    held,
    history,
    is_asked_to_stop,
    let_backoffs_pass,
    lost,
    now,
    outcomes,
    run_of,
    start,
    status_of,
)
from making import CLUSTER, let_leases_run_out, queue_job
from typer.testing import CliRunner

from cli.main import app
from raygen.capacity import Capacity, OnDemand
from raygen.errors import Cause
from raygen.queue import dispatcher as dispatcher_module
from raygen.queue import job as job_module
from raygen.queue import store as store_module
from raygen.queue.client import JobsClient, Submitted
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import WAITING, Job, JobState, Placement
from raygen.queue.store import Store
from raygen.record.attempt import Attempt
from raygen.record.layout import RunKeys
from raygen.record.reading import Reader
from raygen.record.trial import TrialWriter
from raygen.storage import Storage
from raygen.training.loop import Epoch

pytestmark = pytest.mark.usefixtures("no_waiting")

# From the queue to the end


def test_a_job_is_submitted_once_and_followed_to_its_end(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    for _ in range(3):
        dispatcher.tick()
        assert now(queue, job).state is JobState.STARTING
    cluster.start("job")
    for _ in range(3):
        dispatcher.tick()
        assert now(queue, job).state is JobState.RUNNING
    cluster.end("job")
    for _ in range(3):
        dispatcher.tick()
    assert history(queue, job) == [JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.SUCCEEDED]
    assert outcomes(queue, job) == ["succeeded"]
    assert cluster.accepted() == [now(queue, job).submission_id]


def test_a_job_that_ends_before_anybody_looks_has_ended(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    dispatcher.tick()
    cluster.end("job")
    dispatcher.tick()
    assert history(queue, job) == [JobState.QUEUED, JobState.STARTING, JobState.SUCCEEDED]


def test_jobs_start_as_devices_become_free(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    jobs = [queue_job(queue, storage, f"job-{number}", cpus_each=2) for number in range(3)]
    dispatcher.tick()
    assert [now(queue, job).state for job in jobs] == [JobState.STARTING, JobState.STARTING, JobState.QUEUED]
    cluster.end("job-1")
    dispatcher.tick()
    assert [now(queue, job).state for job in jobs] == [JobState.STARTING, JobState.SUCCEEDED, JobState.STARTING]


def test_jobs_for_another_cluster_are_left_alone(
    queue: Store, storage: Path, tmp_path: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)
    Dispatcher(queue, FakeCluster(tmp_path / "other"), "another").tick()
    assert now(queue, job).state is JobState.QUEUED


@pytest.mark.parametrize("cause", ["out of memory", "bad input", "non-finite loss", "error"])
def test_what_would_fail_again_is_not_tried_again(
    cause: Cause, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end("job", "failed", "as it had to", cause=cause)
    for _ in range(3):
        dispatcher.tick()
    ended = now(queue, job)
    assert (ended.state, ended.reason, ended.attempt, ended.losses) == (JobState.FAILED, "as it had to", 1, 0)
    assert len(cluster.accepted()) == 1


# Attempts that are lost


def gone(cluster: FakeCluster) -> None:
    cluster.start("job")
    cluster.end_without_a_word("job", "the node died")


def never_started(cluster: FakeCluster) -> None:
    cluster.end_without_a_word("job", "no such Python")


LOSSES: dict[Callable[[FakeCluster], None], str] = {
    lost: "a node was lost",
    gone: "its processes were ended (the node died)",
    never_started: "it could not be started (no such Python)",
}


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("retries", [0, 1, 2])
def test_lost_attempts_are_followed_by_as_many_as_may_be(
    lose: Callable[[FakeCluster], None],
    retries: int,
    queue: Store,
    storage: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
) -> None:
    job = queue_job(queue, storage, retries=retries)
    for _ in range(retries + 1):
        dispatcher.tick()
        assert now(queue, job).state is JobState.STARTING
        lose(cluster)
        dispatcher.tick()
    ended = now(queue, job)
    times = f"{retries + 1} time{'s' if retries else ''}"
    assert (ended.state, ended.attempt) == (JobState.FAILED, retries + 1)
    assert ended.reason == f"lost {times}, the last time because {LOSSES[lose]}"
    assert outcomes(queue, job)[:-1] == [f"recovering: {LOSSES[lose]}"] * retries
    assert len(cluster.accepted()) == retries + 1


def test_the_next_attempt_waits_longer_after_each_loss(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue_job(queue, storage, retries=5)
    waits = []
    for _ in range(3):
        monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 100.0)
        dispatcher.tick()
        lost(cluster)
        dispatcher.tick()
        dispatcher.tick()
        waiting = now(queue, job)
        assert waiting.state is JobState.RECOVERING
        assert "is tried again at" in queue.reasons([waiting])[job.id]
        waits.append(-queue.seconds_since(waiting.not_before))
        let_backoffs_pass(queue)
    assert waits == [pytest.approx(expected, abs=5) for expected in (100, 200, 300)]


def test_a_job_that_recovers_may_succeed(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    run_of(job).ask_to_stop(job.attempt)  # asked of the first attempt, not of the second
    cluster.end_without_a_word("job")
    dispatcher.tick()
    second = start(queue, cluster, dispatcher, job)
    assert (second.attempt, is_asked_to_stop(second)) == (2, False)
    cluster.end("job")
    dispatcher.tick()
    assert outcomes(queue, job) == ["recovering: its processes were ended", "succeeded"]
    assert now(queue, job).losses == 1


# The cluster


def steps(cluster: FakeCluster, dispatcher: Dispatcher) -> list[Callable[[], None]]:
    """A job's way: started, lost, started again, ended; between any two of these steps nothing is left to do."""

    def start() -> None:
        cluster.start("job")

    return [
        dispatcher.tick,
        start,
        dispatcher.tick,
        lambda: lost(cluster),
        dispatcher.tick,
        start,
        dispatcher.tick,
        lambda: cluster.end("job"),
        dispatcher.tick,
    ]


@pytest.mark.parametrize("outage", range(9))
def test_an_outage_in_any_state_makes_no_attempt_more(
    outage: int, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage, cpus_each=4)
    other = queue_job(queue, storage, "other", cpus_each=4)
    for number, step in enumerate(steps(cluster, dispatcher)):
        if number == outage:
            before = queue.list()
            cluster.become_unreachable()
            if step != dispatcher.tick:
                step()  # it goes on while nobody sees it
            for _ in range(20):
                dispatcher.tick()
            assert queue.list() == before
            told = queue.reasons(before)[other.id]
            assert told.startswith("the cluster is unreachable since ")
            assert told.endswith(": the fake cluster does not answer")
            cluster.become_reachable()
            if step != dispatcher.tick:
                continue
        step()
    assert outcomes(queue, job) == ["recovering: a node was lost", "succeeded"]
    assert "unreachable" not in queue.reasons([other]).get(other.id, "")
    assert len(cluster.accepted("job")) == 2


def test_an_outage_is_told_from_its_beginning(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    dispatcher.tick()
    cluster.become_unreachable()
    dispatcher.tick()
    since = queue.cluster(CLUSTER).unreachable_since
    dispatcher.tick()
    assert queue.cluster(CLUSTER).unreachable_since == since is not None
    cluster.become_reachable()
    dispatcher.tick()
    assert queue.cluster(CLUSTER).unreachable_since is None


def test_a_lost_answer_to_a_submission_submits_once(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    cluster.lose_the_next_response()
    dispatcher.tick()
    assert (now(queue, job).state, len(cluster.accepted())) == (JobState.STARTING, 1)
    start(queue, cluster, dispatcher, job)
    cluster.end("job")
    dispatcher.tick()
    assert outcomes(queue, job) == ["succeeded"]
    assert len(cluster.accepted()) == 1


def test_a_restarted_cluster_is_no_loss_of_the_jobs(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage, retries=0)
    start(queue, cluster, dispatcher, job)
    cluster.restart()
    dispatcher.tick()
    for _ in range(5):  # a job that was only starting has nothing to do with that
        dispatcher.tick()
        cluster.restart()
    start(queue, cluster, dispatcher, job)
    cluster.end("job")
    dispatcher.tick()
    ended = now(queue, job)
    assert (ended.attempt, ended.losses, ended.restarts) == (2, 0, 1)
    assert outcomes(queue, job) == ["recovering: the cluster was restarted and does not know it", "succeeded"]


def test_a_job_that_every_cluster_dies_of_is_not_tried_for_ever(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage, retries=2)
    for _ in range(50):
        dispatcher.tick()
        if now(queue, job).state is JobState.FAILED:
            break
        start(queue, cluster, dispatcher, job)
        cluster.restart()
    ended = now(queue, job)
    assert (ended.state, ended.attempt, ended.restarts) == (JobState.FAILED, 4, 4)
    assert ended.reason == "lost 3 times, the last time because the cluster was restarted 4 times while it ran"
    again = queue.retry(ended)
    assert (again.losses, again.restarts) == (0, 0)


def test_a_job_that_stopped_on_request_before_the_cluster_was_restarted_was_not_ended_by_that(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage, retries=0)
    for attempt in (1, 2, 3):  # as `raygen down` and `raygen up` do
        assert start(queue, cluster, dispatcher, job).attempt == attempt
        cluster.end("job", "interrupted", "stopped on request; what was trained is kept")
        cluster.restart()
        dispatcher.tick()
    assert (now(queue, job).restarts, now(queue, job).losses) == (0, 0)


@pytest.mark.parametrize(
    ("cause", "state"), [(None, JobState.SUCCEEDED), ("out of memory", JobState.FAILED), ("lost", JobState.STARTING)]
)
def test_what_ended_before_the_cluster_was_restarted_has_ended(
    cause: Cause | None, state: JobState, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    if cause is None:
        cluster.end("job")
    else:
        cluster.end("job", "failed", "because", cause=cause)
    cluster.restart()
    dispatcher.tick()
    assert now(queue, job).state is state
    assert now(queue, job).losses == 0


# Records


def test_an_attempt_is_over_when_its_process_has_let_go_of_the_run(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    with held(job):
        cluster.end("job")
        for _ in range(3):
            dispatcher.tick()
        waiting = now(queue, job)
        assert waiting.state is JobState.RUNNING
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        assert waiting.reason == f"over for the cluster, but {holder} still holds the run"
        assert [event.reason for event in queue.events(job)].count(waiting.reason) == 1
    dispatcher.tick()
    assert (now(queue, job).state, now(queue, job).reason) == (JobState.SUCCEEDED, "")


SLEEP = """
import sys, time
from raygen.record import reading
from raygen.record.attempt import Attempt
from raygen.record.layout import RunKeys
from raygen.storage import Storage
storage, name = Storage(sys.argv[1]), sys.argv[2]
with reading.lock(storage, RunKeys(name)):
    Attempt.begin(storage, name, 1).set_status("running")
    print("runs", flush=True)
    time.sleep(600)
"""


def test_ls_and_show_say_which_process_sleeps_and_its_end_lets_the_next_attempt_begin(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    dispatcher.tick()
    command = [sys.executable, "-c", SLEEP, str(storage), "job"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "runs\n"
            process.send_signal(signal.SIGSTOP)
            cluster.start("job")
            dispatcher.tick()
            cluster.restart()  # which leaves it behind
            for _ in range(3):
                dispatcher.tick()
            assert now(queue, job).attempt == 1
            told = f"over for the cluster, but process {process.pid} on {socket.gethostname()} still holds the run"
            [listed] = json.loads(CliRunner().invoke(app, ["ls", "-o", "json"]).stdout)
            assert (listed["state"], listed["reason"]) == ("running", told)
            shown = CliRunner().invoke(app, ["show", "job"])
            assert told in " ".join(shown.stdout.split())
        finally:
            process.kill()
    dispatcher.tick()
    second = start(queue, cluster, dispatcher, job)
    assert (second.attempt, second.reason) == (2, "")


def test_a_process_that_a_restarted_cluster_left_behind_ends_before_the_next_attempt(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    with held(job):
        cluster.restart()
        for _ in range(3):
            dispatcher.tick()
        assert now(queue, job).attempt == 1
        assert run_of(job).look().attempt == 1
    dispatcher.tick()
    assert now(queue, job).attempt == 2


@pytest.mark.parametrize("at", ["submitted", "running", "ended"])
def test_a_run_that_was_deleted_fails_its_job_and_no_other(
    at: str, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    dispatcher.tick()
    if at != "submitted":
        start(queue, cluster, dispatcher, job)
    if at == "ended":
        cluster.end("job")
    run_of(job).remove()
    other = queue_job(queue, storage, "other")
    dispatcher.tick()
    dispatcher.tick()
    ended = now(queue, job)
    assert ended.state is JobState.FAILED
    assert ended.reason.startswith("there is no run 'job' in ")
    assert now(queue, other).state is JobState.STARTING


DAMAGES: dict[str, Callable[[RunKeys], str]] = {
    "run": lambda keys: keys.document,
    "attempt": lambda keys: keys.attempt(1).document,
    "status": lambda keys: keys.attempt(1).status,
    "result": lambda keys: keys.attempt(1).result,
    "trial": lambda keys: keys.attempt(1).trial(1).document,
    "progress": lambda keys: keys.attempt(1).trial(1).start(1).progress,
}
BROKEN = {
    "no JSON": b"\x00\xff",
    "of another version": b'{"format": 2}',
    "no document": b"[1]",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_fails_its_job_and_no_other(
    damage: str, broken: str, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, with_trial(queue_job(queue, storage), cluster, dispatcher))
    cluster.end("job")
    key = DAMAGES[damage](RunKeys("job"))
    Storage(storage).put(key, BROKEN[broken])
    other = queue_job(queue, storage, "other")
    dispatcher.tick()
    ended = now(queue, job)
    assert (ended.state, ended.best_value) == (JobState.FAILED, None)
    assert ended.reason.startswith(f"{key} ")
    assert now(queue, other).state is JobState.STARTING


@pytest.mark.parametrize("torn", [b"", b'{"format": 1, "ki'])
@pytest.mark.parametrize("damage", ["attempt", "status", "result"])
def test_a_document_that_a_loss_of_power_tore_costs_an_attempt(
    damage: str, torn: bytes, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, with_trial(queue_job(queue, storage), cluster, dispatcher))
    cluster.end("job")
    Storage(storage).put(DAMAGES[damage](RunKeys("job")), torn)
    dispatcher.tick()
    lost = now(queue, job)
    assert (lost.state in (*WAITING, JobState.STARTING), lost.losses) == (True, 1)
    start(queue, cluster, dispatcher, lost)
    cluster.end("job")
    dispatcher.tick()
    ended = now(queue, job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)


def with_trial(job: Job, cluster: FakeCluster, dispatcher: Dispatcher) -> Job:
    """The job, with a trial that was trained for one epoch."""
    dispatcher.tick()
    cluster.start(job.name)
    dispatcher.tick()
    run = run_of(job)
    with closing(Attempt(Reader(run.storage, run.name), 1)) as attempt:
        attempt.new_trial(1, {}, run.look().spec())
        with closing(TrialWriter.begin(attempt.place(1))) as writer:
            writer.record_epoch(Epoch(epoch=1, step=1, metrics={"val_mse": 0.5}, train_s=1.0, is_best=True))
            writer.set_state("finished")
    return job


def test_an_ended_job_tells_its_best_value_without_its_record(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = with_trial(queue_job(queue, storage), cluster, dispatcher)
    assert now(queue, job).best_value is None
    cluster.end("job")
    dispatcher.tick()
    run_of(job).remove()
    assert now(queue, job).best_value == 0.5


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_lock_that_is_no_file_is_a_damaged_record(
    is_cancelled: bool, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end_without_a_word("job")
    lock = storage / RunKeys("job").lock
    lock.unlink(missing_ok=True)
    lock.mkdir()
    if is_cancelled:
        queue.cancel(job)
    dispatcher.tick()
    assert now(queue, job).state is (JobState.CANCELLED if is_cancelled else JobState.FAILED)


def before_it_begins(queue: Store, cluster: FakeCluster, dispatcher: Dispatcher, job: Job) -> None:
    dispatcher.tick()
    cluster.end_without_a_word("job")


def while_it_runs(queue: Store, cluster: FakeCluster, dispatcher: Dispatcher, job: Job) -> None:
    start(queue, cluster, dispatcher, job)
    cluster.end_without_a_word("job")


def after_its_end(queue: Store, cluster: FakeCluster, dispatcher: Dispatcher, job: Job) -> None:
    start(queue, cluster, dispatcher, job)
    cluster.end("job")


def forgotten(queue: Store, cluster: FakeCluster, dispatcher: Dispatcher, job: Job) -> None:
    start(queue, cluster, dispatcher, job)
    cluster.restart()


def cancelled(queue: Store, cluster: FakeCluster, dispatcher: Dispatcher, job: Job) -> None:
    queue.cancel(start(queue, cluster, dispatcher, job))
    cluster.end_without_a_word("job")


def cancelled_and_forgotten(queue: Store, cluster: FakeCluster, dispatcher: Dispatcher, job: Job) -> None:
    queue.cancel(start(queue, cluster, dispatcher, job))
    cluster.restart()


@pytest.mark.parametrize(
    ("happens", "outcome"),
    [
        (before_it_begins, "recovering: it could not be started, and its storage was away"),
        (while_it_runs, "recovering: its processes were ended, and its storage was away"),
        (after_its_end, "succeeded"),
        (forgotten, "recovering: the cluster was restarted and does not know it"),
        (cancelled, "cancelled: on request"),
        (cancelled_and_forgotten, "cancelled: on request"),
    ],
)
def test_while_a_storage_is_away_nothing_is_concluded_of_its_jobs_and_others_go_on(
    happens: Callable[[Store, FakeCluster, Dispatcher, Job], None],
    outcome: str,
    queue: Store,
    storage: Path,
    tmp_path: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
) -> None:
    job = queue_job(queue, tmp_path / "another")
    happens(queue, cluster, dispatcher, job)
    with away(tmp_path / "another"):
        before = now(queue, job)
        other = queue_job(queue, storage, "other")
        for _ in range(3):
            dispatcher.tick()
        waiting = now(queue, job)
        assert (waiting.state, waiting.attempt) == (before.state, before.attempt)
        assert "Too many levels of symbolic links" in waiting.reason
        assert now(queue, other).state is JobState.STARTING
    dispatcher.tick()
    assert outcomes(queue, job)[0] == outcome
    assert now(queue, job).losses == 0


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_job_that_is_to_end_is_ended_although_its_storage_is_away(
    is_cancelled: bool,
    queue: Store,
    storage: Path,
    tmp_path: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It cannot be asked to stop, and its processes hold devices that others wait for."""
    cluster.be_full(not is_cancelled)
    job = start(queue, cluster, dispatcher, queue_job(queue, tmp_path / "another", node_timeout_s=0))
    dispatcher.tick()
    if is_cancelled:
        queue.cancel(job)
    with away(tmp_path / "another"):
        dispatcher.tick()
        assert cluster.stops() == []
        monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
        dispatcher.tick()
        assert cluster.stops() == [job.submission_id]
        dispatcher.tick()
        assert now(queue, job).state is JobState.RUNNING
    dispatcher.tick()
    assert now(queue, job).state is (JobState.CANCELLED if is_cancelled else JobState.STARTING)


def test_an_attempt_that_was_given_up_before_it_began_never_begins(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    before_it_begins(queue, cluster, dispatcher, job)
    dispatcher.tick()
    place = Storage(storage)
    assert Attempt.begin(place, "job", 1) is None
    assert (now(queue, job).attempt, run_of(job).look().attempt) == (2, 0)
    second = start(queue, cluster, dispatcher, job)
    assert run_of(job).look().attempt == second.attempt == 2
    assert Attempt.begin(place, "job", 1) is None


def test_what_an_attempt_writes_after_the_next_has_begun_is_not_what_its_job_is_judged_by(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    run = run_of(job)
    late = Attempt(Reader(run.storage, run.name), 1)
    cluster.end_without_a_word("job")
    dispatcher.tick()
    dispatcher.tick()
    start(queue, cluster, dispatcher, job)
    with closing(late):
        late.new_trial(1, {}, run.look().spec())
        late.set_trial_state(1, "finished")
        late.set_status("failed", "as it had to")
    cluster.end_without_a_word("job")
    dispatcher.tick()
    assert outcomes(queue, job)[1] == "recovering: its processes were ended"
    assert run.look().trials == ()


# Cancelling


def test_a_waiting_job_is_cancelled_at_once(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    assert queue.cancel(job).state is JobState.CANCELLED
    dispatcher.tick()
    assert cluster.accepted() == []


def test_a_recovering_job_is_cancelled_at_once(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 100.0)
    lost(cluster)
    dispatcher.tick()
    assert queue.cancel(now(queue, job)).state is JobState.CANCELLED
    let_backoffs_pass(queue)
    dispatcher.tick()
    assert len(cluster.accepted()) == 1


def test_a_job_that_is_cancelled_before_its_submission_is_never_submitted(
    queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)
    store = NappingStore(queue, lambda: queue.cancel(now(queue, job)))
    napping = Dispatcher(store, cluster, CLUSTER)
    napping.tick()
    napping.tick()
    assert now(queue, job).state is JobState.CANCELLED
    assert outcomes(queue, job) == ["cancelled: on request"]
    assert cluster.accepted() == []


@pytest.mark.parametrize("state", [JobState.STARTING, JobState.RUNNING])
def test_a_cancelled_job_may_write_its_checkpoints_before_it_is_ended(
    state: JobState,
    queue: Store,
    storage: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = queue_job(queue, storage)
    dispatcher.tick()
    if state is JobState.RUNNING:
        start(queue, cluster, dispatcher, job)
    queue.cancel(job)
    for _ in range(3):
        dispatcher.tick()
    assert is_asked_to_stop(now(queue, job))
    assert (now(queue, job).state, cluster.stops()) == (state, [])
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    dispatcher.tick()
    assert set(cluster.stops()) == {now(queue, job).submission_id}
    assert now(queue, job).state is state  # it still holds its devices
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED
    assert len(cluster.accepted()) == 1


def test_a_cancelled_job_that_stops_by_itself_is_not_ended_by_force(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    dispatcher.tick()
    cluster.end("job", "interrupted", "stopped on request")
    dispatcher.tick()
    assert (now(queue, job).state, cluster.stops()) == (JobState.CANCELLED, [])


def test_a_job_that_had_finished_when_it_was_cancelled_has_succeeded(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end("job")
    queue.cancel(job)
    dispatcher.tick()
    assert now(queue, job).state is JobState.SUCCEEDED


def test_a_submission_that_arrives_after_its_job_was_cancelled_may_not_run(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    cluster.restart()
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED
    assert Attempt.begin(Storage(job.storage), job.name, job.attempt) is None


def test_a_cancelled_job_has_ended_when_its_process_has_let_go_of_the_run(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    with held(job):
        cluster.end_without_a_word("job")
        dispatcher.tick()
        assert now(queue, job).state is JobState.RUNNING
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED


def test_a_job_is_cancelled_once_the_cluster_answers_again(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.become_unreachable()
    queue.cancel(job)
    for _ in range(5):
        dispatcher.tick()
    assert now(queue, job).state is JobState.RUNNING
    cluster.become_reachable()
    dispatcher.tick()
    assert is_asked_to_stop(now(queue, job))
    cluster.end_without_a_word("job")
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED


def test_a_cancelled_job_that_a_restarted_cluster_forgot_is_not_tried_again(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    cluster.restart()
    dispatcher.tick()
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED
    assert len(cluster.accepted()) == 1


def test_a_cancelled_job_whose_run_was_deleted_is_ended_all_the_same(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    job = queue_job(queue, storage)
    dispatcher.tick()
    queue.cancel(job)
    run_of(job).remove()
    dispatcher.tick()
    dispatcher.tick()
    assert now(queue, job).state is JobState.CANCELLED


def test_a_cancelled_job_can_be_tried_again(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    dispatcher.tick()
    cluster.end("job", "interrupted")
    dispatcher.tick()
    queue.retry(now(queue, job))
    start(queue, cluster, dispatcher, job)
    assert not is_asked_to_stop(now(queue, job))
    cluster.end("job")
    dispatcher.tick()
    assert outcomes(queue, job) == ["cancelled: on request", "succeeded"]


# Nodes


def test_where_processes_are_is_written_down_and_forgotten_with_the_attempt(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    dispatcher.tick()
    assert (now(queue, job).places, now(queue, job).pending) == ({"0": 1}, 0)
    cluster.end("job")
    dispatcher.tick()
    assert (now(queue, job).places, now(queue, job).pending) == ({}, 0)


def test_a_job_without_a_node_says_what_it_waits_for_and_goes_on_once_it_has_one(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    cluster.be_full(True)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    dispatcher.tick()
    waiting = now(queue, job)
    assert queue.reasons([waiting]) == {job.id: "waiting for a node with room for 1 CPU core"}
    assert waiting.unplaced_since is not None
    cluster.be_full(False)
    dispatcher.tick()
    placed = now(queue, job)
    assert (queue.reasons([placed]), placed.unplaced_since) == ({}, None)
    assert placed.state is JobState.RUNNING


def test_a_job_that_no_node_has_room_for_gives_its_place_back_and_that_is_no_loss(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.be_full(True)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage, cpus_each=4, node_timeout_s=0, retries=0))
    dispatcher.tick()
    other = queue_job(queue, storage, "other", cpus_each=4)
    dispatcher.tick()
    assert is_asked_to_stop(now(queue, job)), "it may write its checkpoints first"
    assert cluster.stops() == []
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 100.0)
    dispatcher.tick()
    assert cluster.stops() == [now(queue, job).submission_id]
    dispatcher.tick()
    waiting = now(queue, job)
    assert (waiting.state, waiting.losses) == (JobState.RECOVERING, 0)
    assert outcomes(queue, job) == ["recovering: no node had room for it for 0 s"]
    assert now(queue, other).state is JobState.STARTING
    cluster.be_full(False)
    cluster.start("other")
    cluster.end("other")
    let_backoffs_pass(queue)
    dispatcher.tick()
    start(queue, cluster, dispatcher, job)
    assert not is_asked_to_stop(now(queue, job))
    cluster.end("job")
    dispatcher.tick()
    assert now(queue, job).state is JobState.SUCCEEDED


def test_a_job_waits_longer_for_nodes_that_come_on_demand(
    queue: Store,
    storage: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher_module, "NODE_TIMEOUT_S", 0.0)
    queue.set_on_demand(CLUSTER, OnDemand(most=2, gpus=0, cpus=8))
    cluster.be_full(True)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage, cpus_each=8))
    for _ in range(3):
        dispatcher.tick()
    assert queue.reasons([now(queue, job)]) == {job.id: "waiting for 1 more node with 8 CPU cores"}
    assert not is_asked_to_stop(now(queue, job))
    queue.set_on_demand(CLUSTER, None)
    dispatcher.tick()
    assert is_asked_to_stop(now(queue, job))


# Several dispatchers


class Nap:
    """What happens while a dispatcher sleeps, once."""

    def __init__(self, meanwhile: Callable[[], object] | None = None) -> None:
        self.meanwhile = meanwhile

    def sleep(self) -> None:
        """Have it happen."""
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()


class NappingStore(Store):
    """The queue for a dispatcher that falls asleep as it has claimed a job."""

    def __init__(self, queue: Store, meanwhile: Callable[[], object]) -> None:
        super().__init__(queue.engine.url)
        self._nap = Nap(meanwhile)

    def claim(self, dispatcher: int) -> Job | None:
        """Claim, and fall asleep."""
        claimed = super().claim(dispatcher)
        self._nap.sleep()
        return claimed


class Napping:
    """The cluster for a dispatcher that falls asleep as it hears of submissions, or as it is about to submit."""

    def __init__(self, cluster: FakeCluster, *, heard: Nap | None = None, submits: Nap | None = None) -> None:
        self._cluster = cluster
        self._heard, self._submits = heard or Nap(), submits or Nap()
        self.capacity: Callable[[], Capacity] = cluster.capacity
        self.placements: Callable[[], Mapping[str, Placement]] = cluster.placements
        self.stop = cluster.stop
        self.forget = cluster.forget

    def submissions(self) -> Mapping[str, Submitted]:
        """What the cluster said before the nap."""
        submissions = self._cluster.submissions()
        self._heard.sleep()
        return submissions

    def submit(self, job: Job) -> None:
        """Submit after the nap what was right before it."""
        self._submits.sleep()
        self._cluster.submit(job)


def sleepy(queue: Store, cluster: FakeCluster, asleep: str, meanwhile: Callable[[], object]) -> Dispatcher:
    """A dispatcher that falls asleep between its claim of a job and its submission, before or after it looks again."""
    if asleep == "as it has claimed":
        return Dispatcher(NappingStore(queue, meanwhile), cluster, CLUSTER)
    return Dispatcher(queue, Napping(cluster, submits=Nap(meanwhile)), CLUSTER)


both_naps = pytest.mark.parametrize("asleep", ["as it has claimed", "as it submits"])


def test_the_jobs_of_a_dispatcher_that_leaves_are_adopted_at_once(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    dispatcher.leave()
    cluster.end("job")
    other = Dispatcher(queue, cluster, CLUSTER)
    other.tick()
    assert now(queue, job).state is JobState.SUCCEEDED
    assert len(queue.dispatchers()) == 1


def test_a_dispatcher_that_leaves_lets_its_jobs_run(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    dispatcher.tick()
    dispatcher.leave()
    assert now(queue, job).state is JobState.STARTING
    assert queue.dispatchers() == []
    assert cluster.stops() == []


def test_the_jobs_of_a_dispatcher_that_is_alive_are_its_own(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end("job")
    Dispatcher(queue, cluster, CLUSTER).tick()
    assert now(queue, job) == job


def test_the_jobs_of_a_dispatcher_that_died_are_adopted(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    let_leases_run_out(queue)
    other = Dispatcher(queue, cluster, CLUSTER)
    other.tick()
    assert now(queue, job).owner not in (None, job.owner)
    cluster.end("job")
    other.tick()
    assert outcomes(queue, job) == ["succeeded"]


def test_a_dispatcher_that_wakes_up_works_on_as_another(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(queue, cluster, dispatcher, queue_job(queue, storage, cpus_each=4))
    let_leases_run_out(queue)
    Dispatcher(queue, cluster, CLUSTER).tick()
    cluster.end("job")
    monkeypatch.setattr(store_module, "LEASE_S", 1.0)
    time.sleep(0.4)  # so that its own is to be renewed
    dispatcher.tick()
    assert now(queue, first).state is JobState.RUNNING  # that is for the other to say
    assert len(queue.dispatchers()) == 2
    let_leases_run_out(queue)
    time.sleep(0.4)
    dispatcher.tick()
    assert now(queue, first).state is JobState.SUCCEEDED


@both_naps
def test_a_dispatcher_that_slept_while_its_job_was_submitted_and_ended_leaves_it_alone(
    asleep: str, queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)

    def go_on() -> None:
        let_leases_run_out(queue)
        other = Dispatcher(queue, cluster, CLUSTER)
        other.tick()
        cluster.end("job")

    sleepy(queue, cluster, asleep, go_on).tick()
    assert status_of(job).state == "finished"
    let_leases_run_out(queue)
    Dispatcher(queue, cluster, CLUSTER).tick()
    assert outcomes(queue, job) == ["succeeded"]
    assert len(cluster.accepted()) == 1


@both_naps
def test_a_dispatcher_that_slept_through_a_whole_attempt_does_not_bring_it_back(
    asleep: str, queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)

    def go_on() -> None:
        let_leases_run_out(queue)
        other = Dispatcher(queue, cluster, CLUSTER)
        start(queue, cluster, other, job)
        lost(cluster)
        other.tick()
        start(queue, cluster, other, job)

    sleepy(queue, cluster, asleep, go_on).tick()
    assert run_of(job).look().attempt == 2
    cluster.end("job")
    assert status_of(job).state == "finished"
    assert len(cluster.accepted()) == 2


def test_what_a_dispatcher_concluded_before_it_slept_is_not_written(
    queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    """It saw the first attempt end; the second runs when it wakes up and is about to have it followed by another."""
    job = queue_job(queue, storage)

    def go_on() -> None:
        let_leases_run_out(queue)
        other = Dispatcher(queue, cluster, CLUSTER)
        other.tick()
        start(queue, cluster, other, job)

    nap = Nap()
    napping = Dispatcher(queue, Napping(cluster, heard=nap), CLUSTER)
    start(queue, cluster, napping, job)
    cluster.end_without_a_word("job")
    nap.meanwhile = go_on
    before_nap = len(queue.events(job))
    napping.tick()
    assert history(queue, job)[before_nap:] == [JobState.RECOVERING, JobState.STARTING, JobState.RUNNING]
    assert now(queue, job).attempt == 2


@both_naps
def test_a_dispatcher_that_slept_until_its_job_was_removed_goes_on(
    asleep: str, queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)

    def go_on() -> None:
        let_leases_run_out(queue)
        other = Dispatcher(queue, cluster, CLUSTER)
        other.tick()
        cluster.end("job")
        other.tick()
        queue.remove(now(queue, job))

    sleepy(queue, cluster, asleep, go_on).tick()
    assert len(cluster.accepted()) == 1


TWO = 2
MANY = 200
DISPATCH = """
import sys, time
from pathlib import Path
import sqlalchemy as sa
from fake_cluster import FakeCluster
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.store import Store
url, folder, cluster, together = sys.argv[1:]
queue = Store(sa.make_url(url))
dispatcher = Dispatcher(queue, FakeCluster(Path(folder), start_s=0.0, run_s=0.0), cluster)
while len(queue.dispatchers()) < int(together):
    time.sleep(0.01)
while not queue.is_idle(cluster):
    dispatcher.tick()
    time.sleep(0.005)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, storage: Path) -> Iterator[sa.URL]:
    """An empty database; that of a server where RAYGEN_TEST_POSTGRES names one."""
    if request.param == "sqlite":
        storage.mkdir()
        yield sa.URL.create("sqlite", database=str(storage / "queue.sqlite"))
        return
    server = os.environ.get("RAYGEN_TEST_POSTGRES")
    if not server:
        pytest.skip("RAYGEN_TEST_POSTGRES names no server")
    name = f"raygen_{uuid.uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield engine.url.set(database=name)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


@pytest.mark.slow
def test_dispatchers_that_share_a_queue_submit_every_job_once(url: sa.URL, storage: Path, tmp_path: Path) -> None:
    queue = Store(url)
    jobs = [queue_job(queue, storage, f"job-{number}") for number in range(MANY)]
    cluster = FakeCluster(tmp_path / "cluster", cpus=8)
    address = url.render_as_string(hide_password=False)
    arguments = ["-c", DISPATCH, address, str(tmp_path / "cluster"), CLUSTER, str(TWO)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    processes = [subprocess.Popen([sys.executable, *arguments], env=environment) for _ in range(TWO)]
    assert [process.wait(timeout=120) for process in processes] == [0] * TWO
    queue.engine.dispose()
    cluster.check()
    ended = [now(queue, job) for job in jobs]
    assert {(job.state, job.attempt, job.losses) for job in ended} == {(JobState.SUCCEEDED, 1, 0)}
    assert sorted(cluster.accepted()) == sorted(job.submission_id for job in ended)
    assert len(cluster.submitters()) == TWO
    queue.engine.dispose()


def test_the_fake_cluster_is_what_the_dispatcher_takes(cluster: FakeCluster) -> None:
    client: JobsClient = cluster
    assert client.capacity().cpus == 4
