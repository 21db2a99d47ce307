"""Jobs and whole queues that are held, what is left of time limits, and what a job has been since it was queued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import queue_job

from raygen.capacity import Capacity
from raygen.errors import JobError, SpecError
from raygen.queue import policy
from raygen.queue.changes import RULES, check
from raygen.queue.job import ENDED, TRANSITIONS, WAITING, Event, Job, JobState, check_time_limit, has_been
from raygen.queue.store import Store


def claim(store: Store, job: Job) -> Job:
    dispatcher = store.register(job.cluster, host="here", pid=1)
    store.saw(job.cluster, Capacity.of_machine(gpus=0, cpus=4, where="here"))
    claimed = store.claim(dispatcher)
    assert claimed is not None
    return claimed


def test_a_job_is_held_once_and_released_with_an_event_of_each(store: Store, tmp_path: Path) -> None:
    job = queue_job(store, tmp_path)
    held = store.hold(job)
    assert held.held_at is not None
    assert store.hold(job) == held, "since when it is held does not change"
    assert store.release(job).held_at is None
    assert store.release(job).held_at is None
    assert [event.reason for event in store.events(job)] == ["submitted", "held on request", "released on request"]


def test_what_is_held_is_not_started_and_what_is_released_is(store: Store, tmp_path: Path) -> None:
    first, second = queue_job(store, tmp_path, "first"), queue_job(store, tmp_path, "second")
    store.hold(first)
    assert store.reasons([store.get(first.id)])[first.id] == "held; `raygen release first` lets it start"
    store.hold_cluster(first.cluster, "ann")
    dispatcher = store.register(first.cluster, host="here", pid=1)
    store.saw(first.cluster, Capacity.of_machine(gpus=0, cpus=4, where="here"))
    assert store.claim(dispatcher) is None
    store.release_cluster(first.cluster, "ann")
    claimed = store.claim(dispatcher)
    assert claimed is not None
    assert claimed.id == second.id
    assert store.claim(dispatcher) is None
    store.release(first)
    claimed = store.claim(dispatcher)
    assert claimed is not None
    assert claimed.id == first.id


def test_a_job_that_is_held_while_a_dispatcher_decides_is_not_started(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue_job(store, tmp_path)
    dispatcher = store.register(job.cluster, host="here", pid=1)
    store.saw(job.cluster, Capacity.of_machine(gpus=0, cpus=4, where="here"))
    if store.engine.dialect.name == "sqlite":
        pytest.skip("nobody writes to SQLite while somebody decides")
    choose = policy.choose

    def hold_first(*claims: object, **others: object) -> object:
        store.hold(job)
        return choose(*claims, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(policy, "choose", hold_first)
    assert store.claim(dispatcher) is None
    assert store.get(job.id).state is JobState.QUEUED


def test_what_runs_or_has_ended_is_not_held(store: Store, tmp_path: Path) -> None:
    running = claim(store, queue_job(store, tmp_path))
    with pytest.raises(JobError, match="job is starting; only a waiting job can be held"):
        store.hold(running)
    ended = store.move(running, JobState.FAILED)
    with pytest.raises(JobError, match="job is failed; only a waiting job can be held"):
        store.hold(ended)
    with pytest.raises(JobError, match="job has ended already: failed"):
        store.release(ended)


def test_a_job_that_waits_for_another_attempt_is_held(store: Store, tmp_path: Path) -> None:
    lost = store.move(claim(store, queue_job(store, tmp_path)), JobState.RECOVERING)
    assert store.hold(lost).held_at is not None


def test_a_job_that_is_tried_again_is_held_no_more(store: Store, tmp_path: Path) -> None:
    job = queue_job(store, tmp_path)
    store.hold(job)
    retried = store.retry(store.cancel(job))
    assert (retried.held_at, retried.ran_s) == (None, 0.0)


def test_a_cluster_is_held_though_no_job_was_ever_there(store: Store) -> None:
    assert store.cluster("http://head:8265").held_at is None
    store.hold_cluster("http://head:8265", "ann")
    since = store.cluster("http://head:8265").held_at
    assert since is not None
    store.hold_cluster("http://head:8265", "ann")
    assert store.cluster("http://head:8265").held_at == since
    assert store.cluster("http://other:8265").held_at is None
    store.release_cluster("http://head:8265", "ann")
    assert store.cluster("http://head:8265").held_at is None


def test_a_cluster_that_another_holds_is_theirs_to_release_unless_forced(store: Store) -> None:
    store.hold_cluster("cluster", "bob", force=True)
    for ask in (store.hold_cluster, store.release_cluster):
        with pytest.raises(JobError, match="bob holds the queue; --force reaches others' holds, too"):
            ask("cluster", "carl")
    assert store.cluster("cluster").held_by == "bob"
    store.hold_cluster("cluster", "carl", force=True)
    with pytest.raises(JobError, match="carl holds the queue"):
        store.release_cluster("cluster", "bob")
    store.release_cluster("cluster", "bob", force=True)
    assert (store.cluster("cluster").held_at, store.cluster("cluster").held_by) == (None, None)


def test_a_job_is_found_by_a_beginning_but_named_by_its_whole_name(store: Store, tmp_path: Path) -> None:
    short, long = queue_job(store, tmp_path, "c"), queue_job(store, tmp_path, "c-other")
    assert (store.named("c"), store.find("c"), store.find("c-")) == (short, short, long)
    for wrong in ("C", "c-", "c-other ", ""):
        with pytest.raises(JobError, match="there is no job"):
            store.named(wrong)


def test_a_cancel_of_queued_jobs_leaves_one_alone_that_has_started_meanwhile(store: Store, tmp_path: Path) -> None:
    seen = queue_job(store, tmp_path)
    claim(store, seen)
    with pytest.raises(JobError, match="job is starting by now and was left alone"):
        store.cancel(seen, among=[JobState.QUEUED])
    assert store.get(seen.id).cancelled_at is None


def test_every_state_allows_what_may_follow_it() -> None:
    """The rules of what people ask for never ask the table for a change of state that it forbids."""
    for state, following in TRANSITIONS.items():
        assert (state in RULES["retry"][0] or state in RULES["extend"][0]) == (JobState.QUEUED in following)
        if state in WAITING:
            assert JobState.CANCELLED in following
        assert (state in RULES["remove"][0]) == (state in ENDED)
        assert (state in RULES["cancel"][0]) != (state in ENDED)


def test_a_refusal_names_job_and_state(store: Store, tmp_path: Path) -> None:
    job = queue_job(store, tmp_path)
    for change, (states, _) in RULES.items():
        if job.state not in states:
            with pytest.raises(JobError, match="job is queued; "):
                check(job, change)


def test_what_is_left_of_a_time_limit_counts_all_attempts(store: Store, tmp_path: Path) -> None:
    job = queue_job(store, tmp_path, time_limit_s=100.0)
    assert job.time_left_s(1000.0) == 100
    assert replace(job, ran_s=30.0).time_left_s(1000.0) == 70
    running = replace(job, state=JobState.RUNNING, started_at=980.0, ran_s=30.0)
    assert running.time_left_s(1000.0) == 50
    assert running.time_left_s(2000.0) == 0
    assert replace(running, state=JobState.RECOVERING).time_left_s(2000.0) == 70
    assert replace(running, time_limit_s=None).time_left_s(2000.0) is None


@pytest.mark.parametrize("limit_s", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_is_some_time(limit_s: float) -> None:
    with pytest.raises(SpecError, match="leaves no time to run"):
        check_time_limit(limit_s)


@st.composite
def lives(draw: st.DrawFn) -> Sequence[Event]:
    """The events of a job from its submission on, with notes between its changes."""
    state = JobState.QUEUED
    events = [Event(at=0, from_state=None, to_state=state, reason="submitted")]
    for is_note in draw(st.lists(st.booleans(), max_size=20)):
        to = state if is_note else draw(st.sampled_from(sorted(TRANSITIONS[state])))
        events.append(Event(at=0, from_state=state, to_state=to, reason=""))
        state = to
    return events


@given(events=lives())
def test_a_job_has_been_what_it_is_and_what_it_was_since_it_was_last_queued(events: Sequence[Event]) -> None:
    since = [JobState.QUEUED]
    for event in events[1:]:
        if event.from_state != event.to_state:
            since = [event.to_state] if event.to_state is JobState.QUEUED else [*since, event.to_state]
    assert {state for state in JobState if has_been(state, events)} == set(since)
