"""The queue's database, SQLite and PostgreSQL alike: every change of a job's state, and who may make it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_databases import DATABASES, fresh_database, on_postgres

from raygen import files, machine, mounts
from raygen.capacity import Capacity, LostNode, Node, OnDemand
from raygen.errors import JobChangedError, JobError, QueueError
from raygen.queue import database as database_module
from raygen.queue import store as store_module
from raygen.queue.claims import place
from raygen.queue.job import ACTIVE, ENDED, TRANSITIONS, WAITING, Job, JobState, Placement, Request
from raygen.queue.policy import DEPTH
from raygen.queue.store import Store
from raygen.storage import Storage

CLUSTER = "http://head:8265"
BOX = Capacity.of_machine(gpus=4, cpus=16, where="the cluster at http://head:8265")
MANY = Capacity.of_machine(gpus=1000, cpus=1000, where="the cluster at http://head:8265")

every_database = pytest.mark.parametrize("database", DATABASES)


def request(name: str = "job", **fields: Any) -> Request:
    values = {
        "kind": "train",
        "model": "vae",
        "data": "digits",
        "objective": "val_elbo",
        "user": "ada",
        "cluster": CLUSTER,
        "processes": 1,
        "fewest_processes": 1,
        "gpus_each": 1,
        "cpus_each": 1,
    }
    return Request(name=name, storage="/runs", **(values | fields))


def dispatcher_of(store: Store, capacity: Capacity = BOX, cluster: str = CLUSTER) -> int:
    """A dispatcher that has seen its cluster."""
    dispatcher = store.register(cluster, host="laptop", pid=7)
    store.saw(cluster, capacity)
    return dispatcher


def begun(store: Store, dispatcher: int) -> Job:
    job = store.claim(dispatcher)
    assert job is not None
    return job


def brought_to(store: Store, dispatcher: int, state: JobState, name: str = "job") -> Job:
    """A job in that state, alone in the queue until then."""
    job = store.submit(request(name))
    if state in (*ACTIVE, JobState.RECOVERING, JobState.SUCCEEDED, JobState.FAILED):
        job = begun(store, dispatcher)
    if state is JobState.CANCELLED:
        job = store.cancel(job)
    elif state not in (JobState.QUEUED, JobState.STARTING):
        job = store.move(job, state, reason="as it happens")
    assert (job.name, job.state) == (name, state)
    return job


def history(store: Store, job: Job) -> list[tuple[JobState | None, JobState, str]]:
    return [(event.from_state, event.to_state, event.reason) for event in store.events(job)]


def check_invariants(store: Store) -> None:
    """What holds for every job at every moment."""
    for job in store.list():
        events, attempts = store.events(job), store.attempts(job)
        assert (job.owner is not None) == (job.state in ACTIVE)
        assert (job.ended_at is not None) == (job.state in ENDED)
        assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
        assert len({attempt.submission_id for attempt in attempts}) == job.attempt
        open_ones = [attempt.number for attempt in attempts if attempt.ended_at is None]
        assert open_ones == ([job.attempt] if job.state in ACTIVE else [])
        assert all(bool(attempt.outcome) == (attempt.ended_at is not None) for attempt in attempts)
        assert events[0].from_state is None
        assert events[-1].to_state is job.state
        for before, after in itertools.pairwise(events):
            assert after.from_state is before.to_state
            assert after.at >= before.at
            same = after.from_state is after.to_state
            assert same or after.to_state in TRANSITIONS[before.to_state]
        assert sum(event.to_state is JobState.STARTING is not event.from_state for event in events) == job.attempt


# Submission


def test_a_submitted_job_is_queued_with_all_that_was_asked(store: Store) -> None:
    asked = request(priority=3, retries=5, gpus_each=0.5)
    job = store.submit(asked)
    assert {name: getattr(job, name) for name in vars(asked)} == vars(asked)
    assert (job.state, job.attempt, job.owner, job.ended_at) == (JobState.QUEUED, 0, None, None)
    assert abs(job.submitted_at - time.time()) < 60
    assert store.get(job.id) == store.find("job") == job
    assert history(store, job) == [(None, JobState.QUEUED, "submitted")]
    check_invariants(store)


def test_a_taken_name_is_refused_and_leaves_nothing(store: Store) -> None:
    job = store.submit(request())
    with pytest.raises(JobError, match="there is a job 'job' already; choose another --name"):
        store.submit(request(cluster="http://elsewhere"))
    assert store.list() == [job]


def test_of_many_who_take_the_same_name_at_once_one_gets_it(store: Store) -> None:
    barrier = threading.Barrier(6)

    def submit(number: int) -> bool:
        barrier.wait()
        try:
            store.submit(request("same"))
        except JobError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(submit, range(6))) == 1


def test_a_name_that_was_removed_can_be_used_again_by_a_job_of_its_own(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    first = begun(store, dispatcher) if store.submit(request()) else None
    assert first is not None
    store.remove(store.move(first, JobState.SUCCEEDED))
    store.submit(request())
    second = begun(store, dispatcher)
    assert second.id != first.id
    assert second.submission_id != first.submission_id
    assert len(store.events(second)) == 2


# Looking


def test_a_job_is_found_by_the_beginning_of_its_name(store: Store) -> None:
    job = store.submit(request("beta-sweep"))
    store.submit(request("alpha"))
    assert store.find("be") == job


def test_a_whole_name_is_found_though_it_begins_others(store: Store) -> None:
    job = store.submit(request("run"))
    store.submit(request("run-2"))
    assert store.find("run") == job


def test_a_beginning_of_several_names_names_them(store: Store) -> None:
    for number in range(4):
        store.submit(request(f"run-{number}"))
    with pytest.raises(JobError, match=r"'run' begins the names of several jobs: run-0, run-1, run-2, …$"):
        store.find("run")


@pytest.mark.parametrize("name", ["nothing", "", "%", "_", "a%", "A_B", "\\", "/"])
def test_a_name_that_is_not_there_is_refused_and_no_sign_in_it_stands_for_others(store: Store, name: str) -> None:
    store.submit(request("a_b"))
    with pytest.raises(JobError, match=r"there is no job .*; `raygen ls` lists those there are"):
        store.find(name)


def test_names_with_signs_that_databases_know_are_found(store: Store) -> None:
    for name in ("50%_x", "50% off", "50_", "O'Neill", "größe"):
        store.submit(request(name))
    for beginning, name in (
        ("50%_", "50%_x"),
        ("50% ", "50% off"),
        ("50_", "50_"),
        ("O'", "O'Neill"),
        ("grö", "größe"),
    ):
        assert store.find(beginning).name == name


def test_the_newest_jobs_are_listed_first_by_state_user_and_number(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    for number, user in enumerate(["ada", "ada", "bob", "ada"]):
        store.submit(request(f"job-{number}", user=user))
    begun(store, dispatcher)

    def names(**wanted: Any) -> list[str]:
        return [job.name for job in store.list(**wanted)]

    assert names() == ["job-3", "job-2", "job-1", "job-0"]
    assert names(limit=2) == ["job-3", "job-2"]
    assert names(user="ada", states=[JobState.QUEUED]) == ["job-3", "job-1"]
    assert names(states=[JobState.QUEUED, JobState.STARTING], limit=9) == names()
    assert names(states=[JobState.FAILED]) == []
    assert store.count() == {JobState.QUEUED: 3, JobState.STARTING: 1}


def test_reasons_are_given_for_jobs_that_wait_and_for_no_others(store: Store) -> None:
    job = store.submit(request(gpus_each=3))
    assert store.reasons([job]) == {job.id: "no dispatcher runs for its cluster"}
    dispatcher = store.register(CLUSTER, host="laptop", pid=7)
    assert store.reasons([job]) == {job.id: "the cluster is starting"}
    store.saw(CLUSTER, BOX)
    assert store.reasons([job]) == {job.id: "next to start"}
    active = begun(store, dispatcher)
    second = store.submit(request("second", gpus_each=3))
    elsewhere = store.submit(request("third", cluster="http://other"))
    assert store.reasons([active, second, elsewhere]) == {
        second.id: "waiting for 2 of 3 GPUs",
        elsewhere.id: "no dispatcher runs for its cluster",
    }


def test_a_job_deep_in_the_queue_is_told_how_deep(store: Store) -> None:
    dispatcher_of(store)
    for number in range(DEPTH + 1):
        last = store.submit(request(f"job-{number}", gpus_each=4))
    assert store.reasons([last]) == {last.id: f"behind more than {DEPTH} jobs"}


# Every transition


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RECOVERING])
def test_a_waiting_job_is_claimed(store: Store, state: JobState) -> None:
    dispatcher = dispatcher_of(store)
    waiting = brought_to(store, dispatcher, state)
    job = begun(store, dispatcher)
    assert (job.id, job.state, job.owner, job.attempt) == (
        waiting.id,
        JobState.STARTING,
        dispatcher,
        waiting.attempt + 1,
    )
    assert store.owned(dispatcher) == [job]
    assert store.attempts(job)[-1].submission_id == job.submission_id
    check_invariants(store)


@pytest.mark.parametrize("odd", ["a\0b", "a\udcffb", "a\x1b[2Jb"])
def test_whatever_clusters_and_storages_say_is_written_down_once(store: Store, odd: str) -> None:
    dispatcher = dispatcher_of(store)
    job = brought_to(store, dispatcher, JobState.STARTING)
    store.note(job, odd)
    store.note(store.get(job.id), odd)
    failed = store.move(store.get(job.id), JobState.FAILED, reason=odd)
    store.lost_sight(CLUSTER, odd)
    told = files.storable(odd)
    assert [reason for _, _, reason in history(store, job)] == ["submitted", "attempt 1", told, told]
    assert (failed.reason, store.cluster(CLUSTER).problem) == (told, told)
    assert store.attempts(job)[-1].outcome == f"failed: {told}"


STEPS = [(state, to) for state in ACTIVE for to in TRANSITIONS[state]]


@pytest.mark.parametrize(("state", "to"), STEPS)
def test_a_dispatcher_moves_an_active_job(store: Store, state: JobState, to: JobState) -> None:
    dispatcher = dispatcher_of(store)
    job = brought_to(store, dispatcher, state)
    moved = store.move(job, to, reason="so it is")
    assert (moved.state, moved.reason, moved.attempt) == (to, "so it is", 1)
    assert history(store, job)[-1] == (state, to, "so it is")
    if to not in ACTIVE:
        assert store.attempts(job)[-1].outcome == f"{to}: so it is"
        assert store.owned(dispatcher) == []
    check_invariants(store)


def test_a_lost_attempt_is_followed_by_another_only_after_its_back_off(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    job = brought_to(store, dispatcher, JobState.RUNNING)
    lost = store.move(job, JobState.RECOVERING, reason="the node died", losses=1, backoff_s=0.3)
    assert lost.losses == 1
    assert store.claim(dispatcher) is None
    assert store.reasons([lost])[lost.id].startswith("is tried again at ")
    time.sleep(0.4)
    assert begun(store, dispatcher).attempt == 2
    check_invariants(store)


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.QUEUED])
def test_a_writer_who_saw_an_earlier_state_is_refused_and_changes_nothing(store: Store, state: JobState) -> None:
    dispatcher = dispatcher_of(store)
    store.submit(request())
    seen = begun(store, dispatcher)
    if state is JobState.STARTING:  # in another attempt
        store.move(seen, JobState.RECOVERING)
        current = begun(store, dispatcher)
    else:
        current = store.move(seen, state)
    with pytest.raises(JobChangedError, match="job is no longer starting in attempt 1"):
        store.move(seen, JobState.FAILED, reason="too late")
    assert store.get(seen.id) == current
    check_invariants(store)


def test_a_dispatcher_whose_job_was_adopted_cannot_move_it(store: Store) -> None:
    first, second = dispatcher_of(store), dispatcher_of(store)
    seen = brought_to(store, first, JobState.RUNNING)
    store.leave(first)
    with pytest.raises(JobChangedError):
        store.move(seen, JobState.FAILED)
    assert store.adopt(second) == 1
    with pytest.raises(JobChangedError):
        store.move(seen, JobState.FAILED)
    assert store.get(seen.id).state is JobState.RUNNING


def test_a_removed_job_cannot_be_moved(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    seen = brought_to(store, dispatcher, JobState.RUNNING)
    store.remove(store.move(seen, JobState.FAILED))
    with pytest.raises(JobChangedError):
        store.move(seen, JobState.SUCCEEDED)


# What people do


@pytest.mark.parametrize("state", WAITING)
def test_cancelling_ends_a_waiting_job_at_once(store: Store, state: JobState) -> None:
    dispatcher = dispatcher_of(store)
    job = store.cancel(brought_to(store, dispatcher, state))
    assert (job.state, job.reason) == (JobState.CANCELLED, "on request")
    assert store.claim(dispatcher) is None
    check_invariants(store)


@pytest.mark.parametrize("state", ACTIVE)
def test_cancelling_an_active_job_asks_its_dispatcher_once(store: Store, state: JobState) -> None:
    job = brought_to(store, dispatcher_of(store), state)
    asked = store.cancel(job)
    assert asked.state is state
    assert asked.cancelled_at is not None
    assert store.seconds_since(asked.cancelled_at) >= 0
    assert store.cancel(job).cancelled_at == asked.cancelled_at
    assert history(store, job).count((state, state, "asked to be cancelled")) == 1
    store.move(job, JobState.CANCELLED)
    check_invariants(store)


def test_a_job_that_was_asked_to_end_is_not_tried_again(store: Store) -> None:
    # The dispatcher looked at it before it was asked.
    job = brought_to(store, dispatcher_of(store), JobState.RUNNING)
    store.cancel(job)
    with pytest.raises(JobChangedError):
        store.move(job, JobState.RECOVERING, reason="lost", losses=1)
    assert store.move(job, JobState.SUCCEEDED).state is JobState.SUCCEEDED


@pytest.mark.parametrize("state", ENDED)
def test_a_job_that_has_ended_cannot_be_cancelled_or_moved_up(store: Store, state: JobState) -> None:
    job = brought_to(store, dispatcher_of(store), state)
    for change in (store.cancel, lambda job: store.set_priority(job, 1)):
        with pytest.raises(JobError, match=f"job has ended already: {state}"):
            change(job)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_retrying_queues_an_ended_job_afresh_and_keeps_its_attempts(store: Store, state: JobState) -> None:
    dispatcher = dispatcher_of(store)
    brought_to(store, dispatcher, JobState.RUNNING)
    job = store.cancel(store.find("job"))
    job = store.retry(store.move(job, state, losses=3, backoff_s=99))
    assert (job.state, job.losses, job.cancelled_at, job.ended_at) == (JobState.QUEUED, 0, None, None)
    assert begun(store, dispatcher).attempt == 2
    check_invariants(store)


@pytest.mark.parametrize("state", [*WAITING, *ACTIVE, JobState.SUCCEEDED])
def test_only_what_failed_or_was_cancelled_can_be_retried(store: Store, state: JobState) -> None:
    job = brought_to(store, dispatcher_of(store), state)
    with pytest.raises(JobError, match=f"job is {state}; only a failed or cancelled job can be tried again"):
        store.retry(job)


def test_extending_queues_a_succeeded_job_again_and_keeps_its_attempts(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    job = store.extend(brought_to(store, dispatcher, JobState.SUCCEEDED))
    assert (job.state, job.ended_at) == (JobState.QUEUED, None)
    assert begun(store, dispatcher).attempt == 2
    check_invariants(store)


@pytest.mark.parametrize("state", [*WAITING, *ACTIVE, JobState.FAILED, JobState.CANCELLED])
def test_only_what_has_succeeded_can_be_extended(store: Store, state: JobState) -> None:
    job = brought_to(store, dispatcher_of(store), state)
    with pytest.raises(JobError, match=f"job is {state}; only a job that has succeeded can be extended"):
        store.extend(job)


@pytest.mark.parametrize("state", [*WAITING, *ACTIVE])
def test_only_what_has_ended_can_be_removed(store: Store, state: JobState) -> None:
    job = brought_to(store, dispatcher_of(store), state)
    with pytest.raises(JobError, match=f"job is {state}; `raygen cancel job` ends it first"):
        store.remove(job)


@pytest.mark.parametrize("state", ENDED)
def test_a_removed_job_leaves_nothing(store: Store, state: JobState) -> None:
    job = brought_to(store, dispatcher_of(store), state)
    store.remove(job)
    assert (store.list(), store.events(job), store.attempts(job)) == ([], [], [])
    for change in (store.cancel, store.retry, store.remove, lambda job: store.get(job.id)):
        with pytest.raises(JobError, match="was removed"):
            change(job)


def test_priority_changes_a_jobs_place_and_is_written_down(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    store.submit(request("first"))
    second = store.submit(request("second"))
    assert store.set_priority(second, 20).priority == 20
    assert history(store, second)[-1] == (JobState.QUEUED, JobState.QUEUED, "priority 0 → 20")
    assert begun(store, dispatcher).name == "second"
    check_invariants(store)


# Claims


def test_jobs_are_claimed_by_priority_then_age_as_long_as_they_fit(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    for name, priority in (("a", 0), ("b", 5), ("c", 5)):
        store.submit(request(name, gpus_each=2, priority=priority))
    assert [begun(store, dispatcher).name for _ in range(2)] == ["b", "c"]
    assert store.claim(dispatcher) is None


def test_a_job_for_another_cluster_is_not_claimed(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    store.submit(request(cluster="http://other"))
    assert store.claim(dispatcher) is None


def test_nothing_is_claimed_on_a_cluster_not_seen_or_out_of_sight(store: Store) -> None:
    store.submit(request())
    dispatcher = store.register(CLUSTER, host="laptop", pid=7)
    assert store.claim(dispatcher) is None
    store.saw(CLUSTER, BOX)
    store.lost_sight(CLUSTER, "no route to host")
    assert store.claim(dispatcher) is None
    store.saw(CLUSTER, BOX)
    assert store.claim(dispatcher) is not None


def test_many_jobs_that_can_never_run_do_not_hide_one_that_can(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    for number in range(DEPTH + 5):
        store.submit(request(f"job-{number}", gpus_each=9))
    store.submit(request("possible"))
    assert begun(store, dispatcher).name == "possible"


def test_three_thirds_of_a_gpu_are_claimed_and_no_fourth(store: Store) -> None:
    dispatcher = dispatcher_of(store, Capacity.of_machine(gpus=1, cpus=16, where="it"))
    for number in range(4):
        store.submit(request(f"job-{number}", gpus_each=1 / 3))
    assert [store.claim(dispatcher) is not None for _ in range(4)] == [True, True, True, False]


def claim_all(store: Store, dispatcher: int) -> list[str]:
    names = []
    while (job := store.claim(dispatcher)) is not None:
        names.append(job.name)
    return names


def claim_in_process(url: str, dispatcher: int, start: Any, results: Any) -> None:
    store = Store(sa.make_url(url))
    start.wait()
    results.put(claim_all(store, dispatcher))


def test_threads_never_claim_the_same_job(store: Store) -> None:
    dispatchers = [dispatcher_of(store, MANY) for _ in range(4)]
    for number in range(40):
        store.submit(request(f"job-{number}"))
    with ThreadPoolExecutor(4) as pool:
        taken = [name for names in pool.map(claim_all, [store] * 4, dispatchers) for name in names]
    assert sorted(taken) == sorted(job.name for job in store.list())
    check_invariants(store)


def test_processes_never_claim_the_same_job_nor_more_than_there_is(store: Store) -> None:
    dispatchers = [dispatcher_of(store, Capacity.of_machine(gpus=10, cpus=1000, where="it")) for _ in range(3)]
    for number in range(20):
        store.submit(request(f"job-{number}"))
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Event(), spawn.Queue()
    url = store.engine.url.render_as_string(hide_password=False)
    processes = [spawn.Process(target=claim_in_process, args=(url, number, start, results)) for number in dispatchers]
    for process in processes:
        process.start()
    start.set()
    taken = [name for _ in processes for name in results.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(taken) == sorted(f"job-{number}" for number in range(10))
    assert store.count() == {JobState.QUEUED: 10, JobState.STARTING: 10}
    check_invariants(store)


@pytest.mark.parametrize("database", [on_postgres], indirect=True)
def test_a_job_that_a_person_is_changing_is_passed_over(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    first = store.submit(request("first"))
    store.submit(request("second"))
    with store.engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT id FROM jobs WHERE id = {first.id} FOR UPDATE")
        assert begun(store, dispatcher).name == "second"
    assert begun(store, dispatcher).name == "first"


# Leases


def test_a_dispatcher_lives_as_long_as_it_renews_its_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 0.5)
    dispatcher = dispatcher_of(store)
    for _ in range(4):
        time.sleep(0.2)
        assert store.renew(dispatcher)
    assert [one.is_alive for one in store.dispatchers()] == [True]
    time.sleep(0.6)
    assert [one.is_alive for one in store.dispatchers()] == [False]
    assert not store.cluster(CLUSTER).has_dispatcher


def adopted(store: Store, dispatcher: int, *, within_s: float = 5.0, meanwhile: Callable[[], object] = int) -> int:
    """How many jobs a dispatcher adopts if it looks again and again for so long, or until it adopts some."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        meanwhile()
        number = store.adopt(dispatcher)
        if number:
            return number
        time.sleep(0.01)
    return 0


def test_jobs_of_a_dead_dispatcher_are_adopted_by_the_living(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = dispatcher_of(store)
    jobs = [brought_to(store, dead, JobState.RUNNING, name) for name in ("a", "b")]
    monkeypatch.setattr(store_module, "LEASE_S", 0.3)
    living, elsewhere = dispatcher_of(store), dispatcher_of(store, cluster="http://other")
    began_at = time.monotonic()
    assert adopted(store, living, meanwhile=lambda: store.adopt(elsewhere)) == 2
    assert time.monotonic() - began_at >= 0.3
    assert store.owned(elsewhere) == []
    assert [(job.name, job.state, job.owner) for job in store.owned(living)] == [
        (job.name, JobState.RUNNING, living) for job in jobs
    ]
    assert not store.renew(dead)
    store.submit(request("c"))
    assert store.claim(dead) is None
    check_invariants(store)


@pytest.mark.parametrize("step_s", [-3600, -10, 4, 60, 3600])
def test_no_step_of_the_databases_clock_takes_a_living_dispatchers_jobs(
    store: Store, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    living, other = dispatcher_of(store), dispatcher_of(store)
    job = brought_to(store, living, JobState.RUNNING)
    monkeypatch.setattr(store_module, "LEASE_S", 0.6)
    right = database_module.now
    store.adopt(other)
    monkeypatch.setattr(database_module, "now", lambda connection: right(connection) + step_s)
    renewals = itertools.count()

    def renew() -> None:
        if next(renewals) % 4 == 3:  # however slow this machine is: a look counts for a sixth of the lease at most
            assert store.renew(living)

    assert adopted(store, other, within_s=1.5, meanwhile=renew) == 0
    assert store.get(job.id).owner == living
    monkeypatch.setattr(store_module, "LEASE_S", 30.0)
    assert store.renew(living)
    assert {each.id: each.is_alive for each in store.dispatchers()}[living]


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_dead_dispatcher_is_found_out_however_the_databases_clock_steps(
    store: Store, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    dispatcher = dispatcher_of(store)
    brought_to(store, dispatcher, JobState.RUNNING)
    monkeypatch.setattr(store_module, "LEASE_S", 0.3)
    right = database_module.now
    monkeypatch.setattr(database_module, "now", lambda connection: right(connection) + step_s)
    assert [each.is_alive for each in store.dispatchers()] == [False]
    assert not store.cluster(CLUSTER).has_dispatcher
    assert adopted(store, dispatcher_of(store)) == 1


def test_who_could_not_look_for_long_does_not_take_others_for_dead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The database was away: nobody could renew.
    other, living = dispatcher_of(store), dispatcher_of(store)
    job = brought_to(store, other, JobState.RUNNING)
    monkeypatch.setattr(store_module, "LEASE_S", 0.6)
    for _ in range(3):
        assert store.adopt(living) == 0
        time.sleep(1.0)
    assert store.adopt(living) == 0
    assert store.renew(other)
    assert store.get(job.id).owner == other


def test_a_dispatcher_whose_lease_ran_out_claims_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LEASE_S", 0.1)
    dispatcher = dispatcher_of(store)
    store.submit(request())
    time.sleep(0.2)
    assert store.claim(dispatcher) is None
    assert store.renew(dispatcher)
    assert store.claim(dispatcher) is not None


def test_jobs_of_a_dispatcher_that_left_are_adopted_at_once(store: Store) -> None:
    first, second = dispatcher_of(store), dispatcher_of(store)
    brought_to(store, first, JobState.STARTING)
    store.leave(first)
    assert [one.id for one in store.dispatchers()] == [second]
    assert store.adopt(second) == 1


def test_the_id_of_a_dispatcher_is_never_used_again(store: Store) -> None:
    first = dispatcher_of(store)
    store.leave(first)
    assert dispatcher_of(store) != first


def test_two_who_adopt_at_once_share_nothing(store: Store) -> None:
    first = dispatcher_of(store)
    jobs = [brought_to(store, first, JobState.RUNNING, name) for name in ("a", "b", "c")]
    store.leave(first)
    heirs = [dispatcher_of(store) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(store.adopt, heirs)) == len(jobs)
    assert sum(len(store.owned(heir)) for heir in heirs) == len(jobs)


# Clusters


def test_a_cluster_is_as_it_was_last_seen(store: Store) -> None:
    assert store.cluster("never").capacity is None
    dispatcher_of(store)
    assert store.cluster(CLUSTER).capacity == BOX
    store.lost_sight(CLUSTER, "no route to host")
    lost = store.cluster(CLUSTER)
    assert lost.unreachable_since is not None
    assert (lost.problem, lost.has_dispatcher) == ("no route to host", True)
    store.lost_sight(CLUSTER, "still none")
    assert store.cluster(CLUSTER).unreachable_since == lost.unreachable_since
    store.saw(CLUSTER, MANY)
    seen = store.cluster(CLUSTER)
    assert (seen.unreachable_since, seen.problem, seen.capacity) == (None, "", MANY)


def test_what_can_come_to_a_cluster_is_kept_whatever_is_seen_of_it(store: Store) -> None:
    on_demand = OnDemand(most=2, gpus=8, cpus=64)
    store.set_on_demand(CLUSTER, on_demand)
    declared = store.cluster(CLUSTER)
    assert (declared.on_demand, declared.capacity) == (on_demand, None)
    dispatcher_of(store)
    assert store.cluster(CLUSTER).capacity == replace(BOX, on_demand=on_demand)
    store.set_on_demand(CLUSTER, None)
    assert store.cluster(CLUSTER).capacity == BOX


def test_nodes_are_known_one_by_one_and_the_lost_ones_too(store: Store) -> None:
    nodes = tuple(Node(id=f"n{number}", name="10.0.0.7", gpus=number, cpus=4) for number in range(3))
    lost = LostNode(id="n9", name="10.0.0.9", gpus=8, cpus=64, lost_at=1.5, problem="missing heartbeats")
    seen = Capacity(nodes=nodes, lost=(lost,), where=BOX.where)
    dispatcher_of(store, seen)
    assert store.cluster(CLUSTER).capacity == seen


def test_a_job_that_fits_no_node_hides_no_other_however_many_they_are(store: Store) -> None:
    nodes = tuple(Node(id=f"n{number}", name="it", gpus=0, cpus=4) for number in range(4))
    for number in range(DEPTH + 1):
        store.submit(request(f"wide-{number}", gpus_each=0, cpus_each=16))
    store.submit(request("narrow", processes=4, gpus_each=0, cpus_each=4))
    assert begun(store, dispatcher_of(store, Capacity(nodes=nodes, where="it"))).name == "narrow"


def test_since_when_no_process_has_a_node_is_told_until_one_has(store: Store) -> None:
    running = brought_to(store, dispatcher_of(store), JobState.RUNNING)
    store.saw_placed(running, Placement(places={}, pending=1))
    waiting = store.get(running.id)
    assert (waiting.pending, waiting.places) == (1, {})
    assert waiting.unplaced_since is not None
    # Its processes are given up and asked for again: that is no node yet.
    store.saw_placed(waiting, Placement(places={}, pending=0))
    assert store.get(running.id).unplaced_since == waiting.unplaced_since
    store.saw_placed(store.get(running.id), Placement(places={"n1": 1}, pending=0))
    assert (store.get(running.id).unplaced_since, store.get(running.id).places) == (None, {"n1": 1})


def test_what_was_seen_of_an_earlier_attempt_is_not_written(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    running = brought_to(store, dispatcher, JobState.RUNNING)
    store.move(running, JobState.RECOVERING)
    begun(store, dispatcher)
    store.saw_placed(running, Placement(places={"n1": 1}, pending=0))
    assert store.get(running.id).places == {}


@pytest.mark.parametrize(("state", "idle"), [(state, state in ENDED) for state in JobState])
def test_a_cluster_is_idle_when_all_its_jobs_have_ended(store: Store, state: JobState, idle: bool) -> None:
    brought_to(store, dispatcher_of(store), state)
    assert store.is_idle(CLUSTER) is idle
    assert store.is_idle("http://other")


def test_clusters_have_names_for_people() -> None:
    assert place(CLUSTER) == "the cluster at http://head:8265"
    assert place(f"local:{os.uname().nodename}") == "this machine"
    assert place("local:elsewhere") == "elsewhere"


# Random walks

OPERATIONS = [
    "submit",
    "claim",
    "move",
    "cancel",
    "retry",
    "priority",
    "remove",
    "leave",
    "adopt",
    "stale",
    "hold",
    "release",
]


@every_database
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_is_done_the_queue_stays_in_order(
    database: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with fresh_database(database, tmp_path_factory.mktemp("walk")) as url:
        store = Store(url)
        try:
            walk(store, data)
        finally:  # Hypothesis gives up some walks half way
            store.engine.dispose()


def walk(store: Store, data: st.DataObject) -> None:
    dispatchers = [dispatcher_of(store, Capacity.of_machine(gpus=2, cpus=3, where="it"))]
    seen: list[Job] = []
    for step, operation in enumerate(data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=4, max_size=25))):
        dispatcher = data.draw(st.sampled_from(dispatchers))
        job = data.draw(st.sampled_from(store.list())) if store.list() else None
        if job is None or operation == "submit":
            store.submit(request(f"job-{step}", gpus_each=data.draw(st.integers(0, 3))))
        elif operation == "claim":
            store.claim(dispatcher)
        elif operation == "move" and job.state in ACTIVE:
            seen.append(job)
            move(store, job, data.draw(st.sampled_from(sorted(TRANSITIONS[job.state]))))
        elif operation == "stale" and seen:
            old = data.draw(st.sampled_from(seen))
            move(store, old, data.draw(st.sampled_from(sorted(TRANSITIONS[old.state]))))
        elif operation == "leave":
            store.leave(dispatcher)
            dispatchers.append(dispatcher_of(store, Capacity.of_machine(gpus=2, cpus=3, where="it")))
            store.adopt(dispatchers[-1])
        elif operation == "adopt":
            store.adopt(dispatcher)
        elif operation in CHANGES:
            attempt(CHANGES[operation](store), job)
        check_invariants(store)
        active = store.list(states=ACTIVE)
        assert sum(job.gpus for job in active) <= 2
        assert sum(job.cpus for job in active) <= 3


CHANGES: dict[str, Callable[[Store], Callable[[Job], object]]] = {
    "cancel": lambda store: store.cancel,
    "retry": lambda store: store.retry,
    "priority": lambda store: lambda job: store.set_priority(job, job.priority + 1),
    "remove": lambda store: store.remove,
    "hold": lambda store: store.hold,
    "release": lambda store: store.release,
}


def attempt(change: Callable[[Job], object], job: Job) -> None:
    try:
        change(job)
    except JobError:
        return


def move(store: Store, job: Job, to: JobState) -> None:
    """Only who saw the job as it is may move it."""
    current = [one for one in store.list() if one.id == job.id]
    same = [one for one in current if (one.state, one.attempt, one.owner) == (job.state, job.attempt, job.owner)]
    try:
        store.move(job, to)
    except JobChangedError:
        assert not same or (to is JobState.RECOVERING and same[0].cancelled_at is not None)
    else:
        assert same


# Databases that cannot be used


def test_the_queue_lies_beside_the_run_folders(tmp_path: Path) -> None:
    store = Store.open(Storage(tmp_path / "new" / "runs"))
    store.submit(request())
    assert [job.name for job in Store.open(Storage(tmp_path / "new" / "runs"), create=False).list()] == ["job"]
    assert str(tmp_path / "new" / "runs" / "queue.sqlite") in store.address


def test_the_queue_of_a_bucket_lies_in_this_machines_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYGEN_STATE", str(tmp_path / "state"))
    bucket, other = Storage("s3://bucket/runs"), Storage("s3://bucket/others")
    assert Store.open(bucket, create=False).list() == []
    assert list(tmp_path.iterdir()) == []
    store = Store.open(bucket)
    store.submit(request())
    assert str(machine.state_folder(bucket) / "queue.sqlite") in store.address
    assert [job.name for job in Store.open(bucket, create=False).list()] == ["job"]
    assert Store.open(other).list() == []


def test_a_queue_on_a_network_file_system_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text("1 0 0:1 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setenv("RAYGEN_STATE", str(tmp_path / "state"))
    refusal = (
        r"on a network file system \(nfs4\); set RAYGEN_DB=postgresql\+psycopg://USER@HOST/NAME, or, .*sqlite:////"
    )
    for storage in (Storage(tmp_path / "runs"), Storage("s3://bucket/runs")):
        assert Store.open(storage, create=False).list() == []
        with pytest.raises(QueueError, match=refusal):
            Store.open(storage)
    monkeypatch.setenv("RAYGEN_DB", f"sqlite:///{tmp_path}/queue.sqlite")
    with pytest.raises(QueueError, match=refusal):
        Store.open(Storage(tmp_path / "runs"))
    assert [each.name for each in tmp_path.iterdir()] == ["mountinfo"]
    (tmp_path / "mountinfo").write_text(f"1 0 0:1 / / rw - nfs4 server:/ rw\n2 1 0:2 / {tmp_path} rw - xfs disk rw\n")
    assert Store.open(Storage(tmp_path / "runs")).list() == []


def test_a_queue_that_was_never_made_is_empty_and_looking_does_not_make_it(tmp_path: Path) -> None:
    store = Store.open(Storage(tmp_path / "runs"), create=False)
    assert (store.list(), store.count()) == ([], {})
    assert list(tmp_path.iterdir()) == []


def test_raygen_db_names_another_database(database: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_DB", database.render_as_string(hide_password=False))
    store, again = Store.open(Storage(tmp_path / "runs"), create=False), Store(database)
    store.submit(request())
    assert [job.name for job in again.list()] == ["job"]
    for one in (store, again):
        one.engine.dispose()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("url", ["nonsense", "", "postgresql+nodriver://host/name", "postgresql://h:port/x"])
def test_a_raygen_db_that_is_no_url_says_how_one_looks(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYGEN_DB", url or " ")
    with pytest.raises(QueueError, match=r"write postgresql\+psycopg://USER@HOST/NAME"):
        Store.open(Storage(tmp_path))


def test_other_databases_are_refused() -> None:
    with pytest.raises(QueueError, match="the queue works on SQLite and PostgreSQL, not on mysql"):
        Store(sa.make_url("mysql://host/name"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/db?connect_timeout=2",
        "postgresql+psycopg://127.0.0.1:1/db?user=me&password=hunter2&connect_timeout=2",
    ],
)
def test_a_server_that_is_not_there_is_named_without_its_password(url: str) -> None:
    with pytest.raises(QueueError, match=r"the queue postgresql\+psycopg://.* cannot be used: ") as caught:
        Store(sa.make_url(url))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("database", [on_postgres], indirect=True)
def test_an_address_does_not_show_a_password(database: sa.URL) -> None:
    for url in (database.set(password="hunter2"), database.update_query_dict({"password": "hunter2"})):
        store = Store(url)
        assert "hunter2" not in store.address
        store.engine.dispose()


@pytest.mark.parametrize(
    "content", [b"this is no database, and longer than a header" * 50, b"SQLite format 3\0" + b"x" * 4000]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "queue.sqlite").write_bytes(content)
    with pytest.raises(QueueError, match=r"the queue sqlite:///.*queue\.sqlite cannot be used: "):
        Store.open(Storage(tmp_path))


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "queue.sqlite").mkdir()
    with pytest.raises(QueueError, match=r"queue\.sqlite cannot be used: unable to open database file"):
        Store.open(Storage(tmp_path))


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(QueueError, match=r"cannot make .*runs: .*; --storage names another"):
        Store.open(Storage(tmp_path / "runs"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(QueueError, match=r"queue\.sqlite cannot be used: "):
        Store.open(Storage(tmp_path))


def test_a_database_damaged_while_it_is_used_is_named(tmp_path: Path) -> None:
    store = Store.open(Storage(tmp_path))
    with sqlite3.connect(tmp_path / "queue.sqlite") as connection:
        connection.execute("DROP TABLE jobs")
    connection.close()
    with pytest.raises(QueueError, match="cannot be used: no such table: jobs"):
        store.list()


def test_a_queue_made_by_a_newer_raygen_is_left_alone(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(QueueError, match="the queue was made by a newer Raygen"):
        Store(store.engine.url)


def make_queue(url: str, name: str, start: Any) -> None:
    start.wait()
    Store(sa.make_url(url)).submit(request(name))


def test_processes_that_make_the_same_queue_at_once_share_it(database: sa.URL) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(4)
    url = database.render_as_string(hide_password=False)
    makers = [spawn.Process(target=make_queue, args=(url, f"job-{number}", barrier)) for number in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
    assert [maker.exitcode for maker in makers] == [0] * 4
    store = Store(database)
    assert len(store.list()) == 4
    store.engine.dispose()
