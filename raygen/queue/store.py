"""The queue's database: SQLite beside the run folders, or PostgreSQL. Each change of a job's state is one transaction.

Such a transaction checks the state it leaves, and raises JobChangedError where somebody was faster. Dispatchers hold
a lease that they renew; the jobs of one whose lease has run out are adopted by another.
"""

from __future__ import annotations

import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DatabaseError, DBAPIError

from raygen.capacity import ROUNDING, Capacity, Devices, LostNode, Node, OnDemand
from raygen.errors import JobChangedError, JobError, QueueError
from raygen.queue import policy, schema
from raygen.queue.job import (
    ACTIVE,
    ENDED,
    RETRIED,
    TRANSITIONS,
    WAITING,
    Attempt,
    Event,
    Job,
    Placement,
    Request,
    State,
)
from raygen.queue.policy import Claim, Cluster
from raygen.queue.schema import attempts, clusters, dispatchers, events, jobs

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

LEASE_S = 30.0
"""Seconds after its last sign of life when a dispatcher counts as gone."""

BUSY_TIMEOUT_S = 30.0
"""Seconds to wait for another process that writes to the same SQLite file."""

CLAIMED = (
    *(jobs.c.id, jobs.c.name, jobs.c.priority, jobs.c.processes, jobs.c.fewest_processes.label("fewest")),
    *(jobs.c.gpus_each, jobs.c.cpus_each, jobs.c.not_before),
)
"""What of a job its claim is made of."""


@dataclass(frozen=True, kw_only=True)
class Dispatcher:
    """A dispatcher that has registered and not left."""

    id: int
    cluster: str
    host: str
    pid: int
    started_at: float
    is_alive: bool


class Store:
    """The queue of a storage folder, or of the database that RAYGEN_DB names."""

    def __init__(self, url: sa.URL) -> None:
        """Connect to the database and bring its tables up to date; raises QueueError where that cannot be done."""
        self.url = url
        self.engine = _engine(url)
        try:
            with _explained(url):
                _migrate(self.engine)
        except QueueError:
            self.engine.dispose()
            raise

    @classmethod
    def open(cls, storage: Path, *, create: bool = True) -> Store:
        """The queue for runs in `storage`; one that was never made is empty, and is made only with `create`."""
        configured = os.environ.get("RAYGEN_DB")
        if configured:
            try:
                return cls(sa.make_url(configured))
            except (sa.exc.ArgumentError, ValueError) as error:  # the latter for a port that is no number
                raise QueueError("RAYGEN_DB is no database URL; write postgresql+psycopg://USER@HOST/NAME") from error
        path = storage.expanduser().absolute() / "queue.sqlite"
        if not create and not path.exists():
            return cls(sa.URL.create("sqlite"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QueueError(f"cannot make {path.parent}: {error.strerror}; --storage names another") from error
        return cls(sa.URL.create("sqlite", database=str(path)))

    @property
    def address(self) -> str:
        """Where the queue is, without its password."""
        return _shown(self.url)

    # What people do

    def submit(self, request: Request) -> Job:
        """Put a job at the end of its priority; raises JobError where its name is taken."""
        with self._write() as connection:
            _ensure_cluster(connection, request.cluster)
            values = {
                **vars(request),
                "token": secrets.token_hex(3),
                "state": State.QUEUED,
                "reason": "",
                "attempt": 0,
                "losses": 0,
                "submitted_at": _now(connection),
                "not_before": 0.0,
            }
            # Looked up first, a name could be taken by somebody else before it is written.
            inserted = _insert(connection, jobs).values(values).on_conflict_do_nothing().returning(jobs)
            row = connection.execute(inserted).one_or_none()
            if row is None:
                raise JobError(f"there is a job {request.name!r} already; choose another --name")
            _record(connection, row.id, None, State.QUEUED, "submitted")
            return _job(row)

    def find(self, name: str) -> Job:
        """The job of that name, or whose name alone begins so; raises JobError where there is none or several."""
        with self._read() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.name == name)).one_or_none()
            if row is not None:
                return _job(row)
            # LIKE would take upper and lower case for the same on SQLite alone.
            beginning = sa.func.substr(jobs.c.name, 1, len(name)) == name
            rows = connection.execute(sa.select(jobs).where(beginning).order_by(jobs.c.id).limit(4)).all()
        if len(rows) == 1 and name:
            return _job(rows[0])
        if rows and name:
            names = ", ".join(row.name for row in rows[:3]) + (", …" if len(rows) > 3 else "")
            raise JobError(f"{name!r} begins the names of several jobs: {names}")
        raise JobError(f"there is no job {name!r}; `raygen ls` lists those there are")

    def get(self, job_id: int) -> Job:
        """The job with that id, as it is now; raises JobError where it was removed."""
        with self._read() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise JobError("the job was removed")
        return _job(row)

    def list(
        self, *, states: Collection[State] = (), user: str | None = None, limit: int | None = None
    ) -> Sequence[Job]:
        """Jobs, the newest first."""
        query = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if user is not None:
            query = query.where(jobs.c.user == user)
        with self._read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def count(self) -> dict[State, int]:
        """How many jobs are in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._read() as connection:
            return {State(state): number for state, number in connection.execute(query).all()}

    def attempts(self, job: Job) -> Sequence[Attempt]:
        """The job's attempts, the first first."""
        query = sa.select(attempts).where(attempts.c.job == job.id).order_by(attempts.c.number)
        with self._read() as connection:
            return [Attempt(**_without(row, "job")) for row in connection.execute(query)]

    def events(self, job: Job) -> Sequence[Event]:
        """What happened to the job, the oldest first."""
        query = sa.select(events).where(events.c.job == job.id).order_by(events.c.id)
        with self._read() as connection:
            return [
                Event(
                    at=row.at,
                    from_state=State(row.from_state) if row.from_state else None,
                    to_state=State(row.to_state),
                    reason=row.reason,
                )
                for row in connection.execute(query)
            ]

    def reasons(self, asked: Sequence[Job]) -> dict[int, str]:
        """Why each of these jobs waits, by id; active ones have a reason where nobody looks after them."""
        names = {job.cluster for job in asked if job.state not in ENDED}
        found: dict[int, str] = {}
        deep = False
        with self._read() as connection:
            now = _now(connection)
            for name in names:
                waiting = _waiting_claims(connection, name)
                deep = deep or len(waiting) == policy.DEPTH
                claims = _active_claims(connection, name) + waiting
                found |= policy.reasons(claims, _cluster(connection, name, now), now=now)
        # One that is not found although few wait was started meanwhile.
        waiting_deep = [job.id for job in asked if job.state in WAITING and deep]
        reasons = dict.fromkeys(waiting_deep, f"behind more than {policy.DEPTH} jobs") | found
        return {job.id: reasons[job.id] for job in asked if job.id in reasons}

    def cancel(self, job: Job) -> Job:
        """End a waiting job, or have the dispatcher end an active one; raises JobError where it has ended."""
        with self._write() as connection:
            current = _locked(connection, job.id)
            if current.state in ENDED:
                raise JobError(f"{job.name} has ended already: {current.state}")
            if current.state in WAITING:
                return _move(connection, current, State.CANCELLED, reason="on request")
            if current.cancelled_at is None:
                connection.execute(_where(current).values(cancelled_at=_now(connection)))
                _record(connection, job.id, current.state, current.state, "asked to be cancelled")
            return _locked(connection, job.id)

    def retry(self, job: Job) -> Job:
        """Queue a failed or cancelled job again; raises JobError where it is neither."""
        with self._write() as connection:
            current = _locked(connection, job.id)
            if current.state not in RETRIED:
                raise JobError(f"{job.name} is {current.state}; only a failed or cancelled job can be tried again")
            return _requeue(connection, current, "tried again on request")

    def extend(self, job: Job) -> Job:
        """Queue a succeeded job again, of which more was asked since; raises JobError where it has not succeeded."""
        with self._write() as connection:
            current = _locked(connection, job.id)
            if current.state is not State.SUCCEEDED:
                raise JobError(f"{job.name} is {current.state}; only a job that has succeeded can be extended")
            return _requeue(connection, current, "extended on request")

    def set_priority(self, job: Job, priority: int) -> Job:
        """Change a job's place in the queue; raises JobError where it has ended."""
        with self._write() as connection:
            current = _locked(connection, job.id)
            if current.state in ENDED:
                raise JobError(f"{job.name} has ended already: {current.state}")
            connection.execute(_where(current).values(priority=priority))
            change = f"priority {current.priority} → {priority}"
            _record(connection, job.id, current.state, current.state, change)
            return _locked(connection, job.id)

    def remove(self, job: Job) -> None:
        """Forget a job that has ended; raises JobError where it has not."""
        with self._write() as connection:
            current = _locked(connection, job.id)
            if current.state not in ENDED:
                raise JobError(f"{job.name} is {current.state}; `raygen cancel {job.name}` ends it first")
            connection.execute(jobs.delete().where(jobs.c.id == job.id))

    def cluster(self, name: str) -> Cluster:
        """What is known of a cluster."""
        with self._read() as connection:
            return _cluster(connection, name, _now(connection))

    def set_on_demand(self, name: str, on_demand: OnDemand | None) -> None:
        """Write down which nodes can come to a cluster; None: those that are there are all."""
        with self._write() as connection:
            _ensure_cluster(connection, name)
            declared = None if on_demand is None else vars(on_demand)
            connection.execute(clusters.update().where(clusters.c.name == name).values(on_demand=declared))

    def dispatchers(self) -> Sequence[Dispatcher]:
        """Every dispatcher that has registered and neither left nor been taken for dead."""
        with self._read() as connection:
            now = _now(connection)
            rows = connection.execute(sa.select(dispatchers).order_by(dispatchers.c.id)).all()
        return [Dispatcher(**_without(row, "lease_until"), is_alive=row.lease_until > now) for row in rows]

    # What dispatchers do

    def register(self, cluster: str, *, host: str, pid: int) -> int:
        """A new dispatcher for a cluster; returns its id, which is never used again."""
        with self._write() as connection:
            _ensure_cluster(connection, cluster)
            now = _now(connection)
            values = {"cluster": cluster, "host": host, "pid": pid, "started_at": now, "lease_until": now + LEASE_S}
            inserted = connection.execute(dispatchers.insert().values(values).returning(dispatchers.c.id))
            return int(inserted.scalar_one())

    def renew(self, dispatcher: int) -> bool:
        """Renew a dispatcher's lease; False where it was taken for dead and its jobs were adopted."""
        with self._write() as connection:
            renewed = dispatchers.update().where(dispatchers.c.id == dispatcher)
            return connection.execute(renewed.values(lease_until=_now(connection) + LEASE_S)).rowcount == 1

    def adopt(self, dispatcher: int) -> int:
        """Take over the active jobs of dead dispatchers of the same cluster; returns how many."""
        cluster = sa.select(dispatchers.c.cluster).where(dispatchers.c.id == dispatcher).scalar_subquery()
        same = dispatchers.c.cluster == cluster
        with self._read() as connection:
            dead = connection.scalars(
                sa.select(dispatchers.c.id).where(same, dispatchers.c.lease_until < _now(connection))
            ).all()
            orphans = connection.scalar(_orphans(cluster, dead))
        if not dead and not orphans:
            return 0
        with self._write() as connection:
            gone = dispatchers.c.lease_until < _now(connection)
            connection.execute(dispatchers.delete().where(same, gone, dispatchers.c.id != dispatcher))
            ownerless = jobs.update().where(
                jobs.c.cluster == cluster, jobs.c.state.in_(ACTIVE), jobs.c.owner.is_(None)
            )
            return connection.execute(ownerless.values(owner=dispatcher)).rowcount

    def leave(self, dispatcher: int) -> None:
        """Forget a dispatcher; its active jobs are for the next one to adopt."""
        with self._write() as connection:
            connection.execute(dispatchers.delete().where(dispatchers.c.id == dispatcher))

    def saw(self, cluster: str, capacity: Capacity) -> None:
        """Write down that the cluster answers, and which nodes it has and has lost."""
        known = self.cluster(cluster)
        unchanged = known.capacity and (known.capacity.nodes, known.capacity.lost) == (capacity.nodes, capacity.lost)
        if known.unreachable_since is None and unchanged:
            return
        values = {
            "nodes": [vars(node) for node in capacity.nodes],
            "lost_nodes": [vars(node) for node in capacity.lost],
            "unreachable_since": None,
            "problem": "",
        }
        with self._write() as connection:
            connection.execute(clusters.update().where(clusters.c.name == cluster).values(values))

    def saw_placed(self, job: Job, placement: Placement) -> None:
        """Write down where the processes of a job's current attempt are, and since when all that there are wait."""
        if (job.places, job.pending) == (placement.places, placement.pending):
            return
        values: dict[str, Any] = {"places": dict(placement.places), "pending": placement.pending}
        with self._write() as connection:
            if placement.places:
                values["unplaced_since"] = None
            elif placement.pending and job.unplaced_since is None:
                values["unplaced_since"] = _now(connection)
            connection.execute(_where(job).values(values))

    def lost_sight(self, cluster: str, problem: str) -> None:
        """Write down that the cluster does not answer, and since when."""
        if self.cluster(cluster).unreachable_since is not None:
            return
        with self._write() as connection:
            values = {"unreachable_since": _now(connection), "problem": problem}
            connection.execute(clusters.update().where(clusters.c.name == cluster).values(values))

    def owned(self, dispatcher: int) -> Sequence[Job]:
        """The active jobs that a dispatcher looks after, the oldest first."""
        query = sa.select(jobs).where(jobs.c.owner == dispatcher, jobs.c.state.in_(ACTIVE)).order_by(jobs.c.id)
        with self._read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def seconds_since(self, at: float) -> float:
        """Seconds that have passed since a time that the database gave."""
        with self._read() as connection:
            return _now(connection) - at

    def is_idle(self, cluster: str) -> bool:
        """Whether no job of the cluster waits or runs."""
        unfinished = sa.select(jobs.c.id).where(jobs.c.cluster == cluster, jobs.c.state.in_((*WAITING, *ACTIVE)))
        with self._read() as connection:
            return connection.scalar(unfinished.limit(1)) is None

    def claim(self, dispatcher: int) -> Job | None:
        """Take the job that comes next and fits, beginning its next attempt; None where none does.

        Dispatchers of one cluster decide one after another, as each must see what the other has taken.
        """
        with self._write() as connection:
            now = _now(connection)
            # Locked, so that nobody takes this dispatcher for dead while it takes a job.
            alive = sa.select(dispatchers).where(dispatchers.c.id == dispatcher)
            lease = connection.execute(alive.with_for_update(read=True, key_share=True)).one_or_none()
            if lease is None or lease.lease_until < now:
                return None
            cluster = connection.execute(
                sa.select(clusters).where(clusters.c.name == lease.cluster).with_for_update()
            ).one()
            if cluster.nodes is None or cluster.unreachable_since is not None:
                return None
            capacity = _capacity(cluster)
            claims = _active_claims(connection, lease.cluster) + _waiting_claims(
                connection, lease.cluster, fitting=capacity, due_at=now
            )
            busy: set[int] = set()
            while (chosen := policy.choose(claims, capacity, now=now, excluded=busy)) is not None:
                unlocked = sa.select(jobs).where(jobs.c.id == chosen.id, jobs.c.state.in_(WAITING))
                row = connection.execute(unlocked.with_for_update(skip_locked=True)).one_or_none()
                if row is not None:
                    return _begin_attempt(connection, _job(row), dispatcher)
                busy.add(chosen.id)
            return None

    def move(
        self,
        job: Job,
        to: State,
        *,
        reason: str = "",
        losses: int | None = None,
        backoff_s: float = 0.0,
    ) -> Job:
        """Change the state of a job that a dispatcher looks after; raises JobChangedError where it was changed."""
        with self._write() as connection:
            # Asked to end since the dispatcher looked at it, it must not wait for another attempt.
            asked = sa.select(jobs.c.cancelled_at).where(jobs.c.id == job.id).with_for_update()
            if to is State.RECOVERING and job.cancelled_at is None and connection.scalar(asked) is not None:
                raise JobChangedError(f"{job.name} was asked to be cancelled meanwhile")
            also = {} if losses is None else {"losses": losses, "not_before": _now(connection) + backoff_s}
            return _move(connection, job, to, reason=reason, also=also)

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _explained(self.url), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with (
            _explained(self.url),
            self.engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection


def _requeue(connection: Connection, job: Job, reason: str) -> Job:
    fresh = {"losses": 0, "cancelled_at": None, "ended_at": None, "not_before": 0.0}
    return _move(connection, job, State.QUEUED, reason=reason, also=fresh)


def _begin_attempt(connection: Connection, job: Job, dispatcher: int) -> Job:
    number = job.attempt + 1
    begun = _move(
        connection,
        job,
        State.STARTING,
        reason=f"attempt {number}",
        also={
            "attempt": number,
            "owner": dispatcher,
            "not_before": 0.0,
            "places": None,
            "pending": 0,
            "unplaced_since": None,
        },
    )
    values = {
        "job": job.id,
        "number": number,
        "submission_id": begun.submission_id,
        "started_at": _now(connection),
        "outcome": "",
    }
    connection.execute(attempts.insert().values(values))
    return begun


def _move(connection: Connection, job: Job, to: State, *, reason: str, also: dict[str, Any] | None = None) -> Job:
    """Change a job from exactly what the caller saw; the attempt that this ends is closed."""
    assert to in TRANSITIONS[job.state], f"{job.state} → {to}"
    values: dict[str, Any] = {"state": to, "reason": reason, **(also or {})}
    if to not in ACTIVE:
        values |= {"owner": None, "places": None, "pending": 0}
    if to in ENDED:
        values["ended_at"] = _now(connection)
    row = connection.execute(_where(job).values(values).returning(jobs)).one_or_none()
    if row is None:
        raise JobChangedError(f"{job.name} is no longer {job.state} in attempt {job.attempt}")
    if job.state in ACTIVE and to not in ACTIVE:
        current = (attempts.c.job == job.id) & (attempts.c.number == job.attempt)
        outcome = f"{to}: {reason}" if reason else str(to)
        connection.execute(attempts.update().where(current).values(ended_at=_now(connection), outcome=outcome))
    _record(connection, job.id, job.state, to, reason)
    return _job(row)


def _where(job: Job) -> sa.Update:
    """An update of the job, as long as it is what the caller saw."""
    same_owner = jobs.c.owner.is_(None) if job.owner is None else jobs.c.owner == job.owner
    return jobs.update().where(
        jobs.c.id == job.id, jobs.c.state == job.state, jobs.c.attempt == job.attempt, same_owner
    )


def _locked(connection: Connection, job_id: int) -> Job:
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
    if row is None:
        raise JobError("the job was removed meanwhile")
    return _job(row)


def _record(connection: Connection, job_id: int, before: State | None, after: State, reason: str) -> None:
    values = {
        "job": job_id,
        "at": _now(connection),
        "from_state": before,
        "to_state": after,
        "reason": reason,
    }
    connection.execute(events.insert().values(values))


def _active_claims(connection: Connection, cluster: str) -> list[Claim]:
    return _claims(connection, sa.and_(jobs.c.cluster == cluster, jobs.c.state.in_(ACTIVE)), active=True)


def _waiting_claims(
    connection: Connection, cluster: str, *, fitting: Capacity | None = None, due_at: float | None = None
) -> list[Claim]:
    """The first waiting jobs; where asked, only those that could ever fit and may be tried by now."""
    condition = sa.and_(jobs.c.cluster == cluster, jobs.c.state.in_(WAITING))
    if fitting is not None:
        condition = sa.and_(condition, _fits_some_node(fitting))
    if due_at is not None:
        condition = sa.and_(condition, jobs.c.not_before <= due_at)
    return _claims(connection, condition, active=False)


def _claims(connection: Connection, condition: sa.ColumnElement[bool], *, active: bool) -> list[Claim]:
    # Only what runs has places, and JSON is slow to read.
    columns = (*CLAIMED, jobs.c.places, jobs.c.pending) if active else CLAIMED
    query = sa.select(*columns).where(condition).order_by(jobs.c.priority.desc(), jobs.c.id)
    if not active:
        query = query.limit(policy.DEPTH)
    return [_claim(dict(row._mapping), active=active) for row in connection.execute(query)]


def _claim(row: dict[str, Any], *, active: bool) -> Claim:
    each = Devices(row.pop("gpus_each"), row.pop("cpus_each"))
    if active:
        row["places"] = row["places"] or {}
    return Claim(**row, each=each, active=active)


def _fits_some_node(capacity: Capacity) -> sa.ColumnElement[bool]:
    """Whether a job could have the fewest processes that it can go on with, as far as a database can tell."""
    nodes = [
        sa.and_(jobs.c.gpus_each <= gpus + ROUNDING, jobs.c.cpus_each <= cpus)
        for gpus, cpus in {(node.gpus, node.cpus) for node in capacity.possible}
    ]
    return sa.and_(
        sa.or_(sa.false(), *nodes),
        jobs.c.fewest_processes * jobs.c.gpus_each <= capacity.gpus + ROUNDING,
        jobs.c.fewest_processes * jobs.c.cpus_each <= capacity.cpus,
    )


def _cluster(connection: Connection, name: str, now: float) -> Cluster:
    row = connection.execute(sa.select(clusters).where(clusters.c.name == name)).one_or_none()
    alive = sa.select(dispatchers.c.id).where(dispatchers.c.cluster == name, dispatchers.c.lease_until > now)
    return Cluster(
        name=name,
        capacity=None if row is None or row.nodes is None else _capacity(row),
        on_demand=None if row is None else _on_demand(row),
        unreachable_since=None if row is None else row.unreachable_since,
        problem="" if row is None else row.problem,
        has_dispatcher=connection.scalar(alive.limit(1)) is not None,
    )


def _capacity(cluster: Row[Any]) -> Capacity:
    return Capacity(
        nodes=tuple(Node(**node) for node in cluster.nodes),
        lost=tuple(LostNode(**node) for node in cluster.lost_nodes),
        on_demand=_on_demand(cluster),
        where=place(cluster.name),
    )


def _on_demand(cluster: Row[Any]) -> OnDemand | None:
    return None if cluster.on_demand is None else OnDemand(**cluster.on_demand)


def place(cluster: str) -> str:
    """A cluster's name as people say it."""
    if "://" in cluster:
        return f"the cluster at {cluster}"
    host = cluster.removeprefix("local:")
    return "this machine" if host == socket.gethostname() else host


def _ensure_cluster(connection: Connection, name: str) -> None:
    connection.execute(_insert(connection, clusters).values(name=name, problem="").on_conflict_do_nothing())


def _insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def _orphans(cluster: sa.ScalarSelect[Any], dead: Sequence[int]) -> sa.Select[Any]:
    without_owner = sa.or_(jobs.c.owner.is_(None), jobs.c.owner.in_(dead))
    return sa.select(jobs.c.id).where(jobs.c.cluster == cluster, jobs.c.state.in_(ACTIVE), without_owner).limit(1)


def _job(row: Row[Any]) -> Job:
    return Job(**{**row._mapping, "state": State(row.state), "places": row.places or {}})


def _without(row: Row[Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name not in names}


def _now(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock, which dispatchers on several machines share."""
    if connection.dialect.name == "sqlite":
        # SQLite runs in this process, on this machine's clock.
        return float(connection.exec_driver_sql("SELECT (julianday('now') - 2440587.5) * 86400.0").scalar_one())
    return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())


def _engine(url: sa.URL) -> Engine:
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise QueueError(f"the queue works on SQLite and PostgreSQL, not on {url.get_backend_name()}")
    try:
        engine = sa.create_engine(url, pool_pre_ping=url.get_backend_name() == "postgresql")
    except ModuleNotFoundError as error:
        raise QueueError(f"PostgreSQL needs a driver ({error}): pip install 'raygen[postgres]'") from error
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, record: Any) -> None:
    # Python's module would begin transactions on its own, too late to see what they are built on.
    connection.isolation_level = None
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000:.0f}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could fail half way: writers queue up before they read.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine) -> None:
    if _schema_version(engine) == schema.VERSION:
        return
    from raygen.queue.migrations import upgrade

    if engine.dialect.name == "sqlite":
        _write_ahead(engine)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        upgrade(connection)


def _write_ahead(engine: Engine) -> None:
    """Have the file's changes written ahead, so that readers never wait; it stays so.

    SQLite does this only while nobody else looks at the file, and does not wait for that itself.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    connection = engine.raw_connection()
    try:
        while True:
            try:
                connection.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    finally:
        connection.close()


def _schema_version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()


@contextmanager
def _explained(url: sa.URL) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, DatabaseError, sqlite3.Error) as error:
        cause = error if isinstance(error, sqlite3.Error) else error.orig
        reason = str(cause).strip().partition("\n")[0]
        raise QueueError(f"the queue {_shown(url)} cannot be used: {reason}") from error


def _shown(url: sa.URL) -> str:
    """The URL without its password, which PostgreSQL takes as an option too."""
    hidden = [name for name in url.query if "password" in name]
    return url.difference_update_query(hidden).render_as_string(hide_password=True)
