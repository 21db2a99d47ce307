"""What the dispatcher makes of everything that can happen to a job and to its cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa
from fake_cluster import FakeCluster
from making import CLUSTER, let_leases_run_out, queue_job

from raygen.capacity import Capacity, OnDemand
from raygen.errors import Cause
from raygen.queue import dispatcher as dispatcher_module
from raygen.queue import job as job_module
from raygen.queue.client import JobsClient, Submitted
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import Job, Placement, State
from raygen.queue.store import Store
from raygen.runs import Run

NEVER_S = 1e9


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was lost is tried again at the next look; who is asked to stop has for ever."""
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 0.0)
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", NEVER_S)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    """A cluster of four CPU cores, where submissions start and end when told."""
    cluster = FakeCluster(tmp_path / "cluster")
    yield cluster
    cluster.check()


@pytest.fixture
def queue(storage: Path) -> Store:
    return Store.open(storage)


@pytest.fixture
def dispatcher(queue: Store, cluster: FakeCluster) -> Dispatcher:
    return Dispatcher(queue, cluster, CLUSTER)


def now(queue: Store, job: Job) -> Job:
    return queue.get(job.id)


def run_of(job: Job) -> Run:
    return Run(Path(job.folder))


def history(queue: Store, job: Job) -> list[State]:
    return [event.to_state for event in queue.events(job)]


def outcomes(queue: Store, job: Job) -> list[str]:
    return [attempt.outcome for attempt in queue.attempts(job)]


def start(queue: Store, cluster: FakeCluster, dispatcher: Dispatcher, job: Job) -> Job:
    """Have the job run on the cluster, and the dispatcher know."""
    dispatcher.tick()
    cluster.start(job.name)
    dispatcher.tick()
    started = now(queue, job)
    assert started.state is State.RUNNING
    return started


# From the queue to the end


def test_a_job_is_submitted_once_and_followed_to_its_end(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    for _ in range(3):
        dispatcher.tick()
        assert now(queue, job).state is State.STARTING
    cluster.start("job")
    for _ in range(3):
        dispatcher.tick()
        assert now(queue, job).state is State.RUNNING
    cluster.end("job")
    for _ in range(3):
        dispatcher.tick()
    assert history(queue, job) == [State.QUEUED, State.STARTING, State.RUNNING, State.SUCCEEDED]
    assert outcomes(queue, job) == ["succeeded"]
    assert cluster.accepted() == [now(queue, job).submission_id]


def test_a_job_that_ends_before_anybody_looks_has_ended(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    dispatcher.tick()
    cluster.end("job")
    dispatcher.tick()
    assert history(queue, job) == [State.QUEUED, State.STARTING, State.SUCCEEDED]


def test_jobs_start_as_devices_become_free(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    jobs = [queue_job(queue, storage, f"job-{number}", cpus_each=2) for number in range(3)]
    dispatcher.tick()
    assert [now(queue, job).state for job in jobs] == [State.STARTING, State.STARTING, State.QUEUED]
    cluster.end("job-1")
    dispatcher.tick()
    assert [now(queue, job).state for job in jobs] == [State.STARTING, State.SUCCEEDED, State.STARTING]


def test_jobs_for_another_cluster_are_left_alone(
    queue: Store, storage: Path, tmp_path: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)
    Dispatcher(queue, FakeCluster(tmp_path / "other"), "another").tick()
    assert now(queue, job).state is State.QUEUED


@pytest.mark.parametrize("cause", ["out of memory", "bad input", "non-finite loss", "error"])
def test_what_would_fail_again_is_not_tried_again(
    cause: Cause, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end("job", "failed", "as it had to", cause=cause)
    for _ in range(3):
        dispatcher.tick()
    ended = now(queue, job)
    assert (ended.state, ended.reason, ended.attempt, ended.losses) == (State.FAILED, "as it had to", 1, 0)
    assert len(cluster.accepted()) == 1


# Attempts that are lost


def lost(cluster: FakeCluster) -> None:
    cluster.end("job", "failed", "a node was lost", cause="lost")


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
        assert now(queue, job).state is State.STARTING
        lose(cluster)
        dispatcher.tick()
    ended = now(queue, job)
    times = f"{retries + 1} time{'s' if retries else ''}"
    assert (ended.state, ended.attempt) == (State.FAILED, retries + 1)
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
        assert waiting.state is State.RECOVERING
        assert "is tried again at" in queue.reasons([waiting])[job.id]
        waits.append(-queue.seconds_since(waiting.not_before))
        let_backoffs_pass(queue)
    assert waits == [pytest.approx(expected, abs=5) for expected in (100, 200, 300)]


def let_backoffs_pass(queue: Store) -> None:
    with queue.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET not_before = 0")


def test_a_job_that_recovers_may_succeed(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    gone_then = run_of(job)
    gone_then.ask_to_stop()  # asked of the first attempt, not of the second
    cluster.end_without_a_word("job")
    dispatcher.tick()
    assert not gone_then.should_stop()
    start(queue, cluster, dispatcher, job)
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
    assert (now(queue, job).state, len(cluster.accepted())) == (State.STARTING, 1)
    start(queue, cluster, dispatcher, job)
    cluster.end("job")
    dispatcher.tick()
    assert outcomes(queue, job) == ["succeeded"]
    assert len(cluster.accepted()) == 1


def test_a_restarted_cluster_is_no_loss_of_the_jobs(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage, retries=0)
    for attempt in (1, 2, 3):
        assert start(queue, cluster, dispatcher, job).attempt == attempt
        cluster.restart()
        dispatcher.tick()
    start(queue, cluster, dispatcher, job)
    cluster.end("job")
    dispatcher.tick()
    assert now(queue, job).losses == 0
    forgotten = "recovering: the cluster was restarted and does not know it"
    assert outcomes(queue, job) == [forgotten, forgotten, forgotten, "succeeded"]


@pytest.mark.parametrize(
    ("cause", "state"), [(None, State.SUCCEEDED), ("out of memory", State.FAILED), ("lost", State.STARTING)]
)
def test_what_ended_before_the_cluster_was_restarted_has_ended(
    cause: Cause | None, state: State, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
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


# Run folders


def test_an_attempt_is_over_when_its_process_has_let_go_of_the_run(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    with run_of(job).lock():
        cluster.end("job")
        dispatcher.tick()
        assert now(queue, job).state is State.RUNNING
    dispatcher.tick()
    assert now(queue, job).state is State.SUCCEEDED


def test_a_process_that_a_restarted_cluster_left_behind_ends_before_the_next_attempt(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    with run_of(job).lock():
        cluster.restart()
        for _ in range(3):
            dispatcher.tick()
        assert now(queue, job).attempt == 1
        assert run_of(job).is_attempt(1)
    dispatcher.tick()
    assert now(queue, job).attempt == 2


def test_a_process_that_still_holds_the_run_keeps_an_attempt_from_beginning(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    run = run_of(job)
    with run.lock():
        run.set_status("running")
        dispatcher.tick()
        dispatcher.tick()
        assert run.status().state == "running"
        assert cluster.accepted() == []
    dispatcher.tick()
    assert len(cluster.accepted()) == 1


@pytest.mark.parametrize("at", ["queued", "running", "ended"])
def test_a_run_folder_that_was_deleted_fails_its_job_and_no_other(
    at: str, queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    if at != "queued":
        start(queue, cluster, dispatcher, job)
    if at == "ended":
        cluster.end("job")
    shutil.rmtree(job.folder)
    other = queue_job(queue, storage, "other")
    dispatcher.tick()
    dispatcher.tick()
    ended = now(queue, job)
    assert ended.state is State.FAILED
    assert "is missing: this is not a whole run folder" in ended.reason
    assert now(queue, other).state is State.STARTING


def test_a_run_folder_that_cannot_be_written_fails_its_job_and_no_other(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job, other = queue_job(queue, storage), queue_job(queue, storage, "other")
    # In the way of a file, where taking away permissions would not stop root.
    (Path(job.folder) / ".attempt.json.partial").mkdir()
    dispatcher.tick()
    assert now(queue, job).state is State.FAILED
    assert now(queue, job).reason.startswith("its run folder cannot be used: cannot write ")
    assert cluster.accepted() == [now(queue, other).submission_id]


def test_a_run_folder_that_cannot_be_read_for_a_while_holds_up_no_other_job(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end("job")
    state = Path(job.folder) / "state.json"
    readable = state.rename(state.with_name("elsewhere"))
    state.mkdir()  # reading it is an error of the file system, also for root
    other = queue_job(queue, storage, "other")
    dispatcher.tick()
    assert (now(queue, job).state, now(queue, other).state) == (State.RUNNING, State.STARTING)
    state.rmdir()
    readable.rename(state)
    dispatcher.tick()
    assert now(queue, job).state is State.SUCCEEDED


def test_a_cancelled_job_whose_folder_cannot_be_read_is_ended_all_the_same(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end_without_a_word("job")
    lock = Path(job.folder) / "driver.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    queue.cancel(job)
    dispatcher.tick()
    assert now(queue, job).state is State.CANCELLED


# Cancelling


def test_a_waiting_job_is_cancelled_at_once(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    assert queue.cancel(job).state is State.CANCELLED
    dispatcher.tick()
    assert cluster.accepted() == []


def test_a_recovering_job_is_cancelled_at_once(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 100.0)
    lost(cluster)
    dispatcher.tick()
    assert queue.cancel(now(queue, job)).state is State.CANCELLED
    let_backoffs_pass(queue)
    dispatcher.tick()
    assert len(cluster.accepted()) == 1


def test_a_job_that_is_cancelled_before_its_submission_is_never_submitted(
    queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)

    def cancel() -> None:
        queue.cancel(now(queue, job))

    napping = Dispatcher(queue, Napping(cluster, cancel), CLUSTER)
    napping.tick()
    napping.tick()
    assert now(queue, job).state is State.CANCELLED
    assert outcomes(queue, job) == ["cancelled: on request"]
    assert cluster.accepted() == []


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_a_cancelled_job_may_write_its_checkpoints_before_it_is_ended(
    state: State,
    queue: Store,
    storage: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = queue_job(queue, storage)
    dispatcher.tick()
    if state is State.RUNNING:
        start(queue, cluster, dispatcher, job)
    queue.cancel(job)
    for _ in range(3):
        dispatcher.tick()
    assert run_of(job).should_stop()
    assert (now(queue, job).state, cluster.stops()) == (state, [])
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    dispatcher.tick()
    assert set(cluster.stops()) == {now(queue, job).submission_id}
    assert now(queue, job).state is state  # it still holds its devices
    dispatcher.tick()
    assert now(queue, job).state is State.CANCELLED
    assert len(cluster.accepted()) == 1


def test_a_cancelled_job_that_stops_by_itself_is_not_ended_by_force(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    dispatcher.tick()
    cluster.end("job", "interrupted", "stopped on request")
    dispatcher.tick()
    assert (now(queue, job).state, cluster.stops()) == (State.CANCELLED, [])


def test_a_job_that_had_finished_when_it_was_cancelled_has_succeeded(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.end("job")
    queue.cancel(job)
    dispatcher.tick()
    assert now(queue, job).state is State.SUCCEEDED


def test_a_submission_that_arrives_after_its_job_was_cancelled_may_not_run(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    cluster.restart()
    dispatcher.tick()
    assert now(queue, job).state is State.CANCELLED
    assert not run_of(job).is_attempt(job.attempt)


def test_a_cancelled_job_has_ended_when_its_process_has_let_go_of_the_run(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    with run_of(job).lock():
        cluster.end_without_a_word("job")
        dispatcher.tick()
        assert now(queue, job).state is State.RUNNING
    dispatcher.tick()
    assert now(queue, job).state is State.CANCELLED


def test_a_job_is_cancelled_once_the_cluster_answers_again(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cluster.become_unreachable()
    queue.cancel(job)
    for _ in range(5):
        dispatcher.tick()
    assert now(queue, job).state is State.RUNNING
    cluster.become_reachable()
    dispatcher.tick()
    assert run_of(job).should_stop()
    cluster.end_without_a_word("job")
    dispatcher.tick()
    assert now(queue, job).state is State.CANCELLED


def test_a_cancelled_job_that_a_restarted_cluster_forgot_is_not_tried_again(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    queue.cancel(job)
    cluster.restart()
    dispatcher.tick()
    dispatcher.tick()
    assert now(queue, job).state is State.CANCELLED
    assert len(cluster.accepted()) == 1


def test_a_cancelled_job_whose_folder_was_deleted_is_ended_all_the_same(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    job = queue_job(queue, storage)
    dispatcher.tick()
    queue.cancel(job)
    shutil.rmtree(job.folder)
    dispatcher.tick()
    dispatcher.tick()
    assert now(queue, job).state is State.CANCELLED


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
    assert not run_of(job).should_stop()
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
    assert placed.state is State.RUNNING


def test_a_job_that_no_node_has_room_for_gives_its_place_back_and_that_is_no_loss(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.be_full(True)
    job = start(queue, cluster, dispatcher, queue_job(queue, storage, cpus_each=4, node_timeout_s=0, retries=0))
    dispatcher.tick()
    other = queue_job(queue, storage, "other", cpus_each=4)
    dispatcher.tick()
    assert run_of(job).should_stop(), "it may write its checkpoints first"
    assert cluster.stops() == []
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", 0.0)
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 100.0)
    dispatcher.tick()
    assert cluster.stops() == [now(queue, job).submission_id]
    dispatcher.tick()
    waiting = now(queue, job)
    assert (waiting.state, waiting.losses) == (State.RECOVERING, 0)
    assert outcomes(queue, job) == ["recovering: no node had room for it for 0 s"]
    assert now(queue, other).state is State.STARTING
    cluster.be_full(False)
    cluster.start("other")
    cluster.end("other")
    let_backoffs_pass(queue)
    dispatcher.tick()
    start(queue, cluster, dispatcher, job)
    assert not run_of(job).should_stop()
    cluster.end("job")
    dispatcher.tick()
    assert now(queue, job).state is State.SUCCEEDED


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
    assert not run_of(job).should_stop()
    queue.set_on_demand(CLUSTER, None)
    dispatcher.tick()
    assert run_of(job).should_stop()


# Several dispatchers


class Napping:
    """The cluster for a dispatcher that falls asleep once, as it hears of a submission, while `meanwhile` happens."""

    def __init__(self, cluster: FakeCluster, meanwhile: Callable[[], None] | None = None) -> None:
        self.meanwhile = meanwhile
        self._cluster = cluster
        self.capacity: Callable[[], Capacity] = cluster.capacity
        self.placements: Callable[[], Mapping[str, Placement]] = cluster.placements
        self.submit = cluster.submit
        self.stop = cluster.stop

    def find(self, submission_id: str) -> Submitted | None:
        """What the cluster said before the nap."""
        found = self._cluster.find(submission_id)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return found


def test_the_jobs_of_a_dispatcher_that_leaves_are_adopted_at_once(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    dispatcher.leave()
    cluster.end("job")
    other = Dispatcher(queue, cluster, CLUSTER)
    other.tick()
    assert now(queue, job).state is State.SUCCEEDED
    assert len(queue.dispatchers()) == 1


def test_a_dispatcher_that_leaves_lets_its_jobs_run(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = queue_job(queue, storage)
    dispatcher.tick()
    dispatcher.leave()
    assert now(queue, job).state is State.STARTING
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
    monkeypatch.setattr(dispatcher_module, "LEASE_S", 0.0)  # so that it knows that time has passed
    cluster.end("job")
    dispatcher.tick()
    assert now(queue, first).state is State.RUNNING  # that is for the other to say
    assert len(queue.dispatchers()) == 2
    let_leases_run_out(queue)
    dispatcher.tick()
    assert now(queue, first).state is State.SUCCEEDED


def test_a_dispatcher_that_slept_while_its_job_was_submitted_and_ended_leaves_it_alone(
    queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)

    def go_on() -> None:
        let_leases_run_out(queue)
        other = Dispatcher(queue, cluster, CLUSTER)
        other.tick()
        cluster.end("job")

    Dispatcher(queue, Napping(cluster, go_on), CLUSTER).tick()
    assert run_of(job).status().state == "finished"
    let_leases_run_out(queue)
    Dispatcher(queue, cluster, CLUSTER).tick()
    assert outcomes(queue, job) == ["succeeded"]
    assert len(cluster.accepted()) == 1


def test_a_dispatcher_that_slept_through_a_whole_attempt_does_not_bring_it_back(
    queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)

    def go_on() -> None:
        let_leases_run_out(queue)
        other = Dispatcher(queue, cluster, CLUSTER)
        start(queue, cluster, other, job)
        lost(cluster)
        other.tick()
        start(queue, cluster, other, job)

    Dispatcher(queue, Napping(cluster, go_on), CLUSTER).tick()
    run = run_of(job)
    assert run.is_attempt(2)
    cluster.end("job")
    assert run.status().state == "finished"
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

    client = Napping(cluster)
    sleepy = Dispatcher(queue, client, CLUSTER)
    start(queue, cluster, sleepy, job)
    cluster.end_without_a_word("job")
    client.meanwhile = go_on
    before_nap = len(queue.events(job))
    sleepy.tick()
    assert history(queue, job)[before_nap:] == [State.RECOVERING, State.STARTING, State.RUNNING]
    assert now(queue, job).attempt == 2


def test_a_dispatcher_that_slept_until_its_job_was_removed_goes_on(
    queue: Store, storage: Path, cluster: FakeCluster
) -> None:
    job = queue_job(queue, storage)

    def go_on() -> None:
        let_leases_run_out(queue)
        other = Dispatcher(queue, cluster, CLUSTER)
        other.tick()
        cluster.end("job")
        other.tick()
        queue.remove(now(queue, job))

    sleepy = Dispatcher(queue, Napping(cluster, go_on), CLUSTER)
    sleepy.tick()
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
    assert {(job.state, job.attempt, job.losses) for job in ended} == {(State.SUCCEEDED, 1, 0)}
    assert sorted(cluster.accepted()) == sorted(job.submission_id for job in ended)
    assert len(cluster.submitters()) == TWO
    queue.engine.dispose()


def test_the_fake_cluster_is_what_the_dispatcher_takes(cluster: FakeCluster) -> None:
    client: JobsClient = cluster
    assert client.capacity().cpus == 4
