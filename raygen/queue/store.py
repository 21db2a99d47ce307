"""The queue: what people and dispatchers do with its jobs. Each change of a job's state is one transaction.

Such a transaction checks the state it leaves, and raises JobChangedError if somebody was faster. Dispatchers hold
a lease that they renew; the jobs of one whose lease has run out are adopted by another.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from raygen import files
from raygen.capacity import Capacity, OnDemand
from raygen.errors import JobChangedError, JobError
from raygen.queue import away, changes, claims, database, decisions, holds, leases, lookup, sightings, transitions
from raygen.queue.database import reading, writing
from raygen.queue.job import (
    ACTIVE,
    EVERYBODY,
    UNFINISHED,
    WAITING,
    Attempt,
    Event,
    Job,
    JobState,
    Placement,
    RegisteredDispatcher,
    Request,
)
from raygen.queue.policy import Cluster
from raygen.queue.rows import to_attempt, to_event, to_job
from raygen.queue.schema import attempts, clusters, dispatchers, events, jobs
from raygen.storage import Storage

LEASE_S = 30.0
"""Seconds without a sign of life after which a dispatcher counts as gone."""


class Store:
    """The queue of a storage, or of the database that RAYGEN_DB names."""

    def __init__(self, url: sa.URL) -> None:
        """Connect to the database and bring its tables up to date; raises QueueError if that cannot be done."""
        self.engine = database.connect(url)
        self._watches: dict[int, leases.Watch] = defaultdict(leases.Watch)  # of its dispatchers

    @classmethod
    def open(cls, storage: Storage, *, create: bool = True) -> Store:
        """The queue for runs in `storage`; one that was never made is empty, and is made only with `create`.

        Raises QueueError and ServiceError if there can be none.
        """
        return cls(database.url_of(storage, create=create))

    @property
    def is_made(self) -> bool:
        """Whether there is such a queue: one that was never made is an empty one in memory."""
        return self.engine.dialect.name != "sqlite" or bool(self.engine.url.database)

    @property
    def address(self) -> str:
        """Where the queue is, without its password."""
        return database.shown(self.engine.url)

    # What people do

    def submit(self, request: Request) -> Job:
        """Put a job at the end of its priority; raises JobError if its name is taken."""
        with writing(self.engine) as connection:
            _ensure_cluster(connection, request.cluster)
            values = {
                **vars(request),
                "token": secrets.token_hex(3),
                "state": JobState.QUEUED,
                "reason": "",
                "attempt": 0,
                "losses": 0,
                "submitted_at": database.now(connection),
                "not_before": 0.0,
            }
            # Looked up first, a name could be taken by somebody else before it is written.
            inserted = database.insert(connection, jobs).values(values).on_conflict_do_nothing().returning(jobs)
            row = connection.execute(inserted).one_or_none()
            if row is None:
                raise JobError(f"there is a job {request.name!r} already; choose another --name")
            transitions.record(connection, row.id, None, JobState.QUEUED, "submitted")
            return to_job(row)

    def find(self, name: str) -> Job:
        """The job of that name, or whose name alone begins so; raises JobError if there is none or several."""
        with reading(self.engine) as connection:
            return lookup.found(connection, name)

    def named(self, name: str) -> Job:
        """The job of exactly that name; raises JobError if there is none."""
        with reading(self.engine) as connection:
            job = lookup.named(connection, name)
            if job is None:
                raise lookup.unnamed(connection, name)
            return job

    def has(self, name: str) -> bool:
        """Whether a job has exactly that name."""
        with reading(self.engine) as connection:
            return connection.scalar(sa.select(jobs.c.id).where(jobs.c.name == name)) is not None

    def get(self, job_id: int) -> Job:
        """The job with that id, as it is now; raises JobError if it was removed."""
        with reading(self.engine) as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise JobError("the job was removed")
        return to_job(row)

    def list(
        self,
        *,
        states: Collection[JobState] = (),
        user: str | None = None,
        ended_s_ago: float | None = None,
        limit: int | None = None,
    ) -> Sequence[Job]:
        """Jobs, the newest first; if asked, only those that ended so many seconds ago or earlier."""
        with reading(self.engine) as connection:
            return lookup.alike(connection, states=states, user=user, ended_s_ago=ended_s_ago, limit=limit)

    def count(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with reading(self.engine) as connection:
            return {JobState(state): number for state, number in connection.execute(query).all()}

    def attempts(self, job: Job) -> Sequence[Attempt]:
        """The job's attempts, the first first."""
        query = sa.select(attempts).where(attempts.c.job == job.id).order_by(attempts.c.number)
        with reading(self.engine) as connection:
            return [to_attempt(row) for row in connection.execute(query)]

    def events(self, job: Job) -> Sequence[Event]:
        """What happened to the job, the oldest first."""
        query = sa.select(events).where(events.c.job == job.id).order_by(events.c.id)
        with reading(self.engine) as connection:
            return [to_event(row) for row in connection.execute(query)]

    def reasons(self, asked: Sequence[Job]) -> dict[int, str]:
        """Why each of these jobs waits, by id; active ones have a reason if nobody looks after them."""
        with reading(self.engine) as connection:
            return decisions.reasons(connection, asked)

    def cancel(self, job: Job, *, among: Collection[JobState] = UNFINISHED) -> Job:
        """End a waiting job, or have the dispatcher end an active one; raises JobError if it is in no such state."""
        with writing(self.engine) as connection:
            current = transitions.locked(connection, job.id)
            changes.check(current, "cancel", among)
            if current.state in WAITING:
                return transitions.move(connection, current, JobState.CANCELLED, reason="on request")
            if current.cancelled_at is None:
                connection.execute(transitions.as_seen(current).values(cancelled_at=database.now(connection)))
                transitions.record(connection, job.id, current.state, current.state, "asked to be cancelled")
            return transitions.locked(connection, job.id)

    def retry(self, job: Job) -> Job:
        """Queue a failed or cancelled job again; raises JobError if it is neither."""
        with writing(self.engine) as connection:
            current = transitions.locked(connection, job.id)
            changes.check(current, "retry")
            return transitions.requeue(connection, current, "tried again on request")

    def extend(self, job: Job) -> Job:
        """Queue a succeeded job again, of which more was asked since; raises JobError if it has not succeeded."""
        with writing(self.engine) as connection:
            current = transitions.locked(connection, job.id)
            changes.check(current, "extend")
            return transitions.requeue(connection, current, "extended on request")

    def set_priority(self, job: Job, priority: int) -> Job:
        """Change a job's place in the queue; raises JobError if it has ended."""
        with writing(self.engine) as connection:
            current = transitions.locked(connection, job.id)
            changes.check(current, "rank")
            connection.execute(transitions.as_seen(current).values(priority=priority))
            change = f"priority {current.priority} → {priority}"
            transitions.record(connection, job.id, current.state, current.state, change)
            return transitions.locked(connection, job.id)

    def remove(self, job: Job) -> None:
        """Forget a job that has ended; raises JobError if it has not, or has gone on since it was seen."""
        with writing(self.engine) as connection:
            changes.check_unchanged(job, transitions.locked(connection, job.id))
            changes.check(job, "remove")
            connection.execute(jobs.delete().where(jobs.c.id == job.id))

    def hold(self, job: Job) -> Job:
        """Keep a waiting job from being started; raises JobError if it does not wait."""
        with writing(self.engine) as connection:
            return holds.hold(connection, job)

    def release(self, job: Job) -> Job:
        """Let a held job start again; raises JobError if it has ended."""
        with writing(self.engine) as connection:
            return holds.release(connection, job)

    def hold_cluster(self, name: str, user: str, *, force: bool = False) -> None:
        """Have no job of a cluster started, those among them that are still to come; what runs goes on.

        Raises JobError if somebody else than `user` holds it, unless forced.
        """
        with writing(self.engine) as connection:
            _ensure_cluster(connection, name)
            holds.hold_cluster(connection, name, user, force=force)

    def release_cluster(self, name: str, user: str, *, force: bool = False) -> None:
        """Let the jobs of a cluster start again, but for those that are held themselves; raises as `hold_cluster`."""
        with writing(self.engine) as connection:
            holds.release_cluster(connection, name, user, force=force)

    def cluster(self, name: str) -> Cluster:
        """What is known of a cluster."""
        with reading(self.engine) as connection:
            return claims.cluster(connection, name, database.now(connection))

    def set_on_demand(self, name: str, on_demand: OnDemand | None) -> None:
        """Write down which nodes can come to a cluster; None: those that are there are all."""
        with writing(self.engine) as connection:
            _ensure_cluster(connection, name)
            declared = None if on_demand is None else vars(on_demand)
            connection.execute(clusters.update().where(clusters.c.name == name).values(on_demand=declared))

    def dispatchers(self) -> Sequence[RegisteredDispatcher]:
        """Every dispatcher that has registered and neither left nor been taken for dead."""
        with reading(self.engine) as connection:
            return leases.registered(connection, database.now(connection))

    # What dispatchers do

    def register(self, cluster: str, *, host: str, pid: int, user: str = EVERYBODY, process: str = "") -> int:
        """A new dispatcher for a cluster and the jobs of `user`; returns its id, which is never used again.

        `process` is its identity, which tells it from later ones of its `pid`.
        """
        with writing(self.engine) as connection:
            _ensure_cluster(connection, cluster)
            about = {"host": host, "pid": pid, "user": user, "process": process}
            return leases.register(connection, cluster, lease_s=LEASE_S, **about)

    def renew(self, dispatcher: int) -> bool:
        """Renew a dispatcher's lease; False if it was taken for dead and its jobs were adopted."""
        with writing(self.engine) as connection:
            return leases.renew(connection, dispatcher, lease_s=LEASE_S)

    def adopt(self, dispatcher: int) -> int:
        """Take over the active jobs of dead dispatchers of the same cluster, as far as it may; returns how many.

        A dispatcher is dead if this one has watched it for LEASE_S seconds without a renewal.
        """
        with reading(self.engine) as connection:
            own = connection.execute(sa.select(dispatchers).where(dispatchers.c.id == dispatcher)).one_or_none()
            if own is None:
                return 0
            dead = self._watches[dispatcher].silent(leases.others(connection, own), for_s=LEASE_S)
            orphans = connection.scalar(sa.select(jobs.c.id).where(leases.orphans(own, list(dead))).limit(1))
        if not dead and orphans is None:
            return 0
        with writing(self.engine) as connection:
            return leases.adopt(connection, own, dead)

    def leave(self, dispatcher: int) -> None:
        """Forget a dispatcher; its active jobs are for the next one to adopt."""
        with writing(self.engine) as connection:
            connection.execute(dispatchers.delete().where(dispatchers.c.id == dispatcher))

    def saw(self, cluster: str, capacity: Capacity) -> None:
        """Write down that the cluster answers, and which nodes it has and has lost."""
        known = self.cluster(cluster)
        unchanged = known.capacity and (known.capacity.nodes, known.capacity.lost) == (capacity.nodes, capacity.lost)
        if known.unreachable_since is None and unchanged:
            return
        with writing(self.engine) as connection:
            sightings.saw(connection, cluster, capacity)

    def runs_in(self, storage: str) -> Sequence[str]:
        """The names of the oldest and the newest of the jobs in a storage, which have their runs there."""
        with reading(self.engine) as connection:
            return away.runs_in(connection, storage)

    def saw_away(self, dispatcher: int, problems: Mapping[str, str]) -> None:
        """Write down what is wrong with storages of a dispatcher's jobs, by their addresses."""
        with writing(self.engine) as connection:
            away.write(connection, dispatcher, problems)

    def runs_by_storage(self, dispatcher: int) -> Mapping[str, Sequence[str]]:
        """The storages of the jobs that a dispatcher looks after or starts, each with some of their names."""
        with reading(self.engine) as connection:
            return away.runs(connection, dispatcher)

    def saw_placed(self, job: Job, placement: Placement) -> None:
        """Write down where the processes of a job's current attempt are, and since when all that there are wait."""
        if (job.places, job.pending) == (placement.places, placement.pending):
            return
        with writing(self.engine) as connection:
            sightings.saw_placed(connection, job, placement)

    def saw_over(self, job: Job) -> None:
        """Write down that a job's current attempt is over for the cluster; raises JobChangedError if that has changed.

        It holds no devices any more, whenever it can be judged.
        """
        if not job.is_over:
            with writing(self.engine) as connection:
                sightings.saw_over(connection, job)

    def saw_step(self, dispatcher: int, by_s: float) -> None:
        """Write down that the database's clock was set by so many seconds while a dispatcher watched."""
        with writing(self.engine) as connection:
            sightings.saw_step(connection, dispatcher, by_s)

    def note(self, job: Job, reason: str) -> None:
        """Write down what a dispatcher waits for before a job goes on; raises JobChangedError if that has changed."""
        if job.reason == files.storable(reason):  # as it is kept
            return
        with writing(self.engine) as connection:
            transitions.note(connection, job, reason)

    def lost_sight(self, cluster: str, problem: str) -> None:
        """Write down that the cluster does not answer, why, and since when."""
        known = self.cluster(cluster)
        if known.unreachable_since is not None and known.problem == files.storable(problem):
            return
        with writing(self.engine) as connection:
            sightings.lost_sight(connection, cluster, problem, known.unreachable_since)

    def owned(self, dispatcher: int) -> Sequence[Job]:
        """The active jobs that a dispatcher looks after, the oldest first."""
        query = sa.select(jobs).where(jobs.c.owner == dispatcher, jobs.c.state.in_(ACTIVE)).order_by(jobs.c.id)
        with reading(self.engine) as connection:
            return [to_job(row) for row in connection.execute(query)]

    def judged(self, submissions: Collection[str]) -> Sequence[str]:
        """Those among some submissions that were attempts of this queue's jobs, and have been judged."""
        over = sa.and_(attempts.c.submission_id.in_(submissions), attempts.c.ended_at.is_not(None))
        with reading(self.engine) as connection:
            return connection.scalars(sa.select(attempts.c.submission_id).where(over)).all()

    def seconds_since(self, at: float) -> float:
        """Seconds that have passed since a time that the database gave."""
        with reading(self.engine) as connection:
            return database.now(connection) - at

    def is_idle(self, cluster: str, *, user: str = EVERYBODY) -> bool:
        """Whether no job of a user, or anybody's, waits or runs on the cluster."""
        unfinished = sa.select(jobs.c.id).where(jobs.c.cluster == cluster, jobs.c.state.in_((*WAITING, *ACTIVE)))
        if user != EVERYBODY:
            unfinished = unfinished.where(jobs.c.user == user)
        with reading(self.engine) as connection:
            return connection.scalar(unfinished.limit(1)) is None

    def claim(self, dispatcher: int) -> Job | None:
        """Take the job that comes next and fits, beginning its next attempt; None if there is no such job.

        Jobs in storages that are away stay where they are, and hold back no others. Dispatchers of one cluster decide
        one after another, as each must see what the other has taken.
        """
        with writing(self.engine) as connection:
            return decisions.claim(connection, dispatcher)

    def move(
        self,
        job: Job,
        to: JobState,
        *,
        reason: str = "",
        losses: int | None = None,
        restarts: int | None = None,
        backoff_s: float = 0.0,
        best_value: float | None = None,
    ) -> Job:
        """Change the state of a job that a dispatcher looks after; raises JobChangedError if it was changed."""
        with writing(self.engine) as connection:
            # Asked to end since the dispatcher looked at it, it must not wait for another attempt.
            asked = sa.select(jobs.c.cancelled_at).where(jobs.c.id == job.id).with_for_update()
            if to is JobState.RECOVERING and job.cancelled_at is None and connection.scalar(asked) is not None:
                raise JobChangedError(f"{job.name} was asked to be cancelled meanwhile")
            also: dict[str, Any] = {"best_value": best_value}
            if losses is not None:
                also |= {"losses": losses, "not_before": database.now(connection) + backoff_s}
            if restarts is not None:
                also["restarts"] = restarts
            return transitions.move(connection, job, to, reason=reason, also=also)


def _ensure_cluster(connection: Connection, name: str) -> None:
    connection.execute(database.insert(connection, clusters).values(name=name, problem="").on_conflict_do_nothing())
