"""What dispatchers start and people are told, on both databases: limits, turns, holds, whose jobs, storages."""

from __future__ import annotations

import time
from typing import Any

import pytest
import sqlalchemy as sa

from raygen.capacity import Capacity, count
from raygen.errors import QueueError
from raygen.queue import claims, database, schema, usage
from raygen.queue.job import Job, JobState, Request
from raygen.queue.policy import DEPTH, LEAST_OF_EACH, depth_of_each
from raygen.queue.store import Store

CLUSTER = "http://head:8265"
BOX = Capacity.of_machine(gpus=4, cpus=16, where="the cluster at http://head:8265")
HOUR_S = 3600.0


def submit(store: Store, name: str, user: str = "ann", gpus: float = 1, **fields: Any) -> Job:
    about = {"kind": "train", "model": "vae", "data": "digits", "objective": "val_elbo", "cluster": CLUSTER}
    devices = {"processes": 1, "fewest_processes": 1, "gpus_each": gpus, "cpus_each": 1}
    return store.submit(Request(**{**about, **devices, "storage": "/runs", "name": name, "user": user, **fields}))


def dispatcher_of(store: Store, user: str = "", *, capacity: Capacity = BOX) -> int:
    """A dispatcher that has seen its cluster and starts the jobs of a user, or everybody's."""
    dispatcher = store.register(CLUSTER, host="laptop", pid=7)
    change(store, schema.dispatchers, schema.dispatchers.c.id == dispatcher, user=user)
    store.saw(CLUSTER, capacity)
    return dispatcher


def change(store: Store, table: sa.Table, where: sa.ColumnElement[bool], **values: Any) -> None:
    with store.engine.begin() as connection:
        connection.execute(sa.update(table).where(where).values(values))


def hold(store: Store, job: Job) -> None:
    change(store, schema.jobs, schema.jobs.c.id == job.id, held_at=time.time())


def age(store: Store, job: Job, hours: float) -> Job:
    """The job as if its attempt had run for so long."""
    running = {"state": JobState.RUNNING, "started_at": time.time() - hours * HOUR_S}
    change(store, schema.jobs, schema.jobs.c.id == job.id, **running)
    return store.get(job.id)


def begun(store: Store, dispatcher: int) -> list[str]:
    names = []
    while (job := store.claim(dispatcher)) is not None:
        names.append(job.name)
    return names


def reason(store: Store, job: Job) -> str | None:
    return store.reasons([store.get(job.id)]).get(job.id)


def used(store: Store, *, later_s: float = 0.0) -> dict[str, float]:
    """What users have used, in GPUs with their cores for an hour."""
    with store.engine.begin() as connection:
        now = database.now(connection) + later_s
        found = usage.lately(connection, CLUSTER, claims.active(connection, CLUSTER, now), now)
    return {user: device_s / HOUR_S / (1 + 1 / 8) for user, device_s in found.items()}


# Time limits


def test_a_job_with_a_limit_runs_while_a_large_one_waits_for_a_longer_one(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    submit(store, "first", time_limit_s=2 * HOUR_S)
    submit(store, "large", gpus=4)
    late = submit(store, "three-hours", time_limit_s=3 * HOUR_S)
    submit(store, "one-hour", time_limit_s=HOUR_S)
    assert begun(store, dispatcher) == ["first", "one-hour"]
    assert reason(store, late) == "behind large, which comes first and needs 4 GPUs and 1 CPU core"


def test_what_a_job_ran_before_counts_against_its_limit(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    submit(store, "first", time_limit_s=3 * HOUR_S)
    first = store.claim(dispatcher)
    assert first is not None
    age(store, first, hours=2)  # an hour is left
    submit(store, "large", gpus=4)
    tried = submit(store, "tried-before", time_limit_s=3 * HOUR_S)
    assert begun(store, dispatcher) == []
    change(store, schema.jobs, schema.jobs.c.id == tried.id, ran_s=2.5 * HOUR_S)
    assert begun(store, dispatcher) == ["tried-before"]


# Turns


def test_users_take_turns_by_what_runs(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    for user in ("ann", "bob"):
        for number in range(4):
            submit(store, f"{user}-{number}", user)
    assert begun(store, dispatcher) == ["ann-0", "bob-0", "ann-1", "bob-1"]


@pytest.mark.parametrize("to", [JobState.RECOVERING, JobState.SUCCEEDED, JobState.FAILED])
def test_who_used_less_lately_goes_first_and_ls_says_so(store: Store, to: JobState) -> None:
    dispatcher = dispatcher_of(store)
    submit(store, "ann-0", gpus=4)
    [_] = begun(store, dispatcher)
    store.move(age(store, store.find("ann-0"), hours=3), to, backoff_s=60, losses=0)
    second = submit(store, "ann-1", gpus=4)
    submit(store, "bob-0", "bob", gpus=4)
    behind = 2 if to is JobState.RECOVERING else 1
    told = f"waiting for 4 of 4 GPUs, behind {count(behind, 'job')}; bob used less lately and goes first"
    assert reason(store, second) == told
    assert begun(store, dispatcher) == ["bob-0"]


def test_what_was_used_counts_half_after_a_day_and_does_not_jump_as_an_attempt_ends(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    for name in ("ann-0", "ann-1"):
        submit(store, name)
    for job in (store.claim(dispatcher), store.claim(dispatcher)):
        assert job is not None
        age(store, job, hours=2)
    running = used(store)["ann"]
    assert running == pytest.approx(4, rel=0.05)
    for name in ("ann-0", "ann-1"):
        store.move(store.find(name), JobState.SUCCEEDED)
    assert used(store)["ann"] == pytest.approx(running, rel=0.001)
    assert used(store, later_s=24 * HOUR_S)["ann"] == pytest.approx(running / 2, rel=0.001)


def test_the_half_life_is_a_setting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = dispatcher_of(store)
    submit(store, "ann-0")
    [_] = begun(store, dispatcher)
    monkeypatch.setenv("RAYGEN_FAIR_HALF_LIFE_H", "1")
    store.move(age(store, store.find("ann-0"), hours=1000), JobState.SUCCEEDED)
    now = used(store)["ann"]
    assert used(store, later_s=HOUR_S)["ann"] == pytest.approx(now / 2, rel=0.001)
    for text in ("soon", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("RAYGEN_FAIR_HALF_LIFE_H", text)
        with pytest.raises(QueueError, match=rf"RAYGEN_FAIR_HALF_LIFE_H={text} is no half-life; write a number"):
            store.claim(dispatcher)


def test_one_persons_jobs_hide_nobody_elses_however_many_they_are(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    first = submit(store, "ann-0", gpus=4)
    fill(store, first, [f"ann-{number}" for number in range(1, DEPTH + 100)])
    last = submit(store, "bob-0", "bob", gpus=4)
    assert begun(store, dispatcher) == ["ann-0"]
    assert reason(store, last) == "waiting for 4 of 4 GPUs"
    store.move(age(store, store.find("ann-0"), hours=1), JobState.SUCCEEDED)
    assert begun(store, dispatcher) == ["bob-0"]
    deep = store.find(f"ann-{DEPTH + 50}")
    assert reason(store, deep) == f"behind more than {DEPTH} jobs"


def test_of_many_users_each_ones_first_are_looked_at(store: Store) -> None:
    users = [f"user-{number:02}" for number in range(DEPTH // LEAST_OF_EACH + 10)]
    first = submit(store, "first", users[0], gpus=9)
    for user in users:
        fill(store, first, [f"{user}-{number}" for number in range(LEAST_OF_EACH + 2)], user=user)
    with store.engine.connect() as connection:
        line = claims.waiting(connection, CLUSTER, claims.not_held)
    assert line.of_each == depth_of_each(len(users)) == LEAST_OF_EACH
    assert {user: sum(claim.user == user for claim in line.claims) for user in users} == dict.fromkeys(
        users, LEAST_OF_EACH
    )
    dispatcher_of(store)
    last = store.find(f"{users[3]}-{LEAST_OF_EACH + 1}")
    assert reason(store, last) == f"behind more than {LEAST_OF_EACH} jobs"


def fill(store: Store, like: Job, names: list[str], **values: Any) -> None:
    """Queue jobs like another, by one transaction."""
    values = {**vars(like), **values}
    del values["id"]
    with store.engine.begin() as connection:
        connection.execute(sa.insert(schema.jobs), [{**values, "name": name} for name in names])


# Holds


def test_a_held_job_is_not_started_says_so_and_holds_back_nobody(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    held = submit(store, "held", gpus=4)
    hold(store, held)
    submit(store, "other")
    assert begun(store, dispatcher) == ["other"]
    assert reason(store, held) == "held; `raygen release held` lets it start"
    change(store, schema.jobs, schema.jobs.c.id == held.id, held_at=None)
    assert reason(store, held) == "waiting for 1 of 4 GPUs"


def test_many_held_jobs_hide_no_other(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    first = submit(store, "held")
    hold(store, first)
    fill(store, store.get(first.id), [f"held-{number}" for number in range(DEPTH + 5)])
    other = submit(store, "other")
    assert reason(store, other) == "next to start"
    assert begun(store, dispatcher) == ["other"]


def test_while_the_queue_is_held_nothing_is_started_and_what_runs_goes_on(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    submit(store, "running")
    assert begun(store, dispatcher) == ["running"]
    waiting = submit(store, "waiting")
    held_at = 1_000_000.0
    change(store, schema.clusters, schema.clusters.c.name == CLUSTER, held_at=held_at, held_by="ann")
    since = time.strftime("%H:%M:%S", time.localtime(held_at))
    assert begun(store, dispatcher) == []
    assert reason(store, waiting) == (
        f"ann holds the queue since {since}; `raygen release --all --address {CLUSTER}` lets it go on"
    )
    assert reason(store, store.find("running")) is None
    change(store, schema.clusters, schema.clusters.c.name == CLUSTER, held_at=None, held_by=None)
    assert begun(store, dispatcher) == ["waiting"]


# Whose jobs a dispatcher starts


def test_a_dispatcher_of_one_user_starts_their_jobs_alone(store: Store) -> None:
    dispatcher = dispatcher_of(store, "bob")
    anns = submit(store, "ann-0", gpus=4)
    bobs = submit(store, "bob-0", "bob")
    assert reason(store, anns) == "no dispatcher of ann runs for its cluster"
    assert reason(store, bobs) == "next to start", "what nobody starts holds back nobody"
    assert begun(store, dispatcher) == ["bob-0"]
    change(store, schema.dispatchers, schema.dispatchers.c.id == dispatcher, lease_until=0.0)
    assert reason(store, anns) == "no dispatcher runs for its cluster"
    assert reason(store, bobs) == "when last seen; no dispatcher runs for its cluster"


def test_what_another_dispatcher_starts_keeps_its_turn_and_its_devices(store: Store) -> None:
    of_ann, of_bob = dispatcher_of(store, "ann"), dispatcher_of(store, "bob")
    submit(store, "ann-0", gpus=3)
    submit(store, "bob-0", "bob", gpus=4)
    small = submit(store, "bob-1", "bob", gpus=1)
    # One GPU is left beside Ann's, which nobody has started yet, but Bob's first needs all.
    assert begun(store, of_bob) == []
    assert begun(store, of_ann) == ["ann-0"]
    assert reason(store, small) == "behind bob-0, which comes first and needs 4 GPUs and 1 CPU core"
    store.move(store.find("ann-0"), JobState.SUCCEEDED)
    assert begun(store, of_bob) == ["bob-0"]


def test_a_dispatcher_of_everybody_starts_everybodys(store: Store) -> None:
    dispatcher_of(store, "bob")
    for user in ("ann", "bob"):
        submit(store, f"{user}-0", user)
    assert begun(store, dispatcher_of(store)) == ["ann-0", "bob-0"]


# Storages


def test_jobs_in_a_storage_that_is_away_stay_and_hold_back_nobody(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    submit(store, "away", gpus=4, storage="/mnt/away")
    submit(store, "there")
    store.saw_away(dispatcher, {"/mnt/away": "no such folder"})
    assert begun(store, dispatcher) == ["there"]
    store.move(store.find("there"), JobState.SUCCEEDED)
    store.saw_away(dispatcher, {})
    assert begun(store, dispatcher) == ["away"]


def test_a_users_storage_that_is_away_holds_back_no_other_users_jobs(store: Store) -> None:
    of_ann, of_bob = dispatcher_of(store, "ann"), dispatcher_of(store, "bob")
    bobs = submit(store, "bob-0", "bob", gpus=4, storage="/mnt/bob")
    anns = [submit(store, f"ann-{number}", storage="/mnt/ann") for number in range(2)]
    store.saw_away(of_bob, {"/mnt/bob": "no such folder"})
    assert reason(store, bobs) == "its storage is away: no such folder"
    assert [reason(store, job) for job in anns] == ["next to start"] * 2
    assert begun(store, of_ann) == ["ann-0", "ann-1"]
    assert begun(store, of_bob) == []


def test_what_one_of_two_dispatchers_can_start_keeps_its_turn_with_the_other(store: Store) -> None:
    """A disk may be missing on one machine alone."""
    without, other = dispatcher_of(store), dispatcher_of(store)
    submit(store, "large", gpus=4, storage="/mnt/data")
    small = submit(store, "small", storage="/runs")
    store.saw_away(without, {"/mnt/data": "no such folder"})
    assert begun(store, without) == []
    assert reason(store, small) == "waiting for 1 of 1 GPU, behind 1 job"
    assert begun(store, other) == ["large"]


# What is asked of the database


def test_a_decision_takes_little_time_however_many_wait(store: Store) -> None:
    dispatcher = dispatcher_of(store)
    first = submit(store, "first", gpus=4)
    for user in ("ann", "bob"):
        fill(store, first, [f"{user}-{number}" for number in range(5000)], user=user)
    [_] = begun(store, dispatcher)
    start_s = time.process_time()
    for _ in range(5):
        assert store.claim(dispatcher) is None
    # A bound against growth with the queue, far above what it takes, since machines differ.
    assert time.process_time() - start_s < 1
