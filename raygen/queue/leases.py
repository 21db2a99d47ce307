"""Which dispatchers are alive: each renews a lease, and those that share its cluster watch that it does.

A lease's end is a time of the database's clock, by which people are told whether a dispatcher works. That clock may
step, so it takes nobody's jobs: a dispatcher is dead to another that has watched its lease for 30 s, on its own
monotonic clock, without a renewal.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from raygen.queue import database
from raygen.queue.job import ACTIVE, EVERYBODY, RegisteredDispatcher
from raygen.queue.rows import to_dispatcher
from raygen.queue.schema import dispatchers, jobs

LONGEST_LEASE_S = 60.0
"""Seconds beyond which no lease ends: one that seems to was written before the database's clock was set back."""


def register(connection: Connection, cluster: str, *, lease_s: float, **about: Any) -> int:
    """A new dispatcher for a cluster; returns its id, which is never used again."""
    now = database.now(connection)
    values = {**about, "cluster": cluster, "registered_at": now, "lease_until": now + lease_s}
    inserted = connection.execute(dispatchers.insert().values(values).returning(dispatchers.c.id))
    return int(inserted.scalar_one())


def renew(connection: Connection, dispatcher: int, *, lease_s: float) -> bool:
    """Renew a dispatcher's lease; False if it was taken for dead."""
    until = database.now(connection) + lease_s
    renewed = dispatchers.update().where(dispatchers.c.id == dispatcher).values(lease_until=until)
    return connection.execute(renewed).rowcount == 1


def others(connection: Connection, dispatcher: Row[Any]) -> dict[int, float]:
    """The leases of the other dispatchers of the same cluster, by their ids."""
    same = sa.and_(dispatchers.c.cluster == dispatcher.cluster, dispatchers.c.id != dispatcher.id)
    return {row.id: row.lease_until for row in connection.execute(sa.select(dispatchers).where(same))}


def orphans(dispatcher: Row[Any], dead: Collection[int] = ()) -> sa.ColumnElement[bool]:
    """Whether a job is one that a dispatcher may adopt, as it has no owner, or one of the `dead`."""
    without_owner = sa.or_(jobs.c.owner.is_(None), jobs.c.owner.in_(dead))
    its_own = sa.true() if dispatcher.user == EVERYBODY else jobs.c.user == dispatcher.user
    return sa.and_(jobs.c.cluster == dispatcher.cluster, jobs.c.state.in_(ACTIVE), without_owner, its_own)


def adopt(connection: Connection, dispatcher: Row[Any], dead: Mapping[int, float]) -> int:
    """Forget dispatchers that are dead, unless they have renewed these leases, and take over what has no owner."""
    unrenewed = sa.tuple_(dispatchers.c.id, dispatchers.c.lease_until).in_(list(dead.items()))
    connection.execute(dispatchers.delete().where(unrenewed))
    return connection.execute(jobs.update().where(orphans(dispatcher)).values(owner=dispatcher.id)).rowcount


def registered(connection: Connection, now: float) -> list[RegisteredDispatcher]:
    """All that have registered and neither left nor been taken for dead, at `now`, the database's time."""
    return [
        to_dispatcher(row, is_alive=_holds(row.lease_until, now))
        for row in connection.execute(sa.select(dispatchers).order_by(dispatchers.c.id))
    ]


def users(connection: Connection, cluster: str, now: float) -> frozenset[str]:
    """Whose jobs the living dispatchers of a cluster start; with EVERYBODY among them, everybody's."""
    found = connection.execute(sa.select(dispatchers).where(dispatchers.c.cluster == cluster))
    return frozenset(row.user for row in found if _holds(row.lease_until, now))


def _holds(lease_until: float, now: float) -> bool:
    return now < lease_until < now + LONGEST_LEASE_S


@dataclass(frozen=True)
class _Seen:
    lease_until: float
    silent_s: float


class Watch:
    """Remembers how long leases have not been renewed while this process watched."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._looked_at = time.monotonic()

    def silent(self, leases: Mapping[int, float], *, for_s: float) -> dict[int, float]:
        """Those of these leases, by dispatcher, that were not renewed for so long."""
        now = time.monotonic()
        # A long time between two looks is one in which this process slept, or the database was away: then nobody else
        # may have been able to renew either.
        passed_s = min(now - self._looked_at, for_s / 6)
        self._looked_at = now
        self._seen = {
            dispatcher: _Seen(lease_until, self._silent_s(dispatcher, lease_until, passed_s))
            for dispatcher, lease_until in leases.items()
        }
        return {dispatcher: seen.lease_until for dispatcher, seen in self._seen.items() if seen.silent_s >= for_s}

    def _silent_s(self, dispatcher: int, lease_until: float, passed_s: float) -> float:
        known = self._seen.get(dispatcher)
        return known.silent_s + passed_s if known is not None and known.lease_until == lease_until else 0.0
