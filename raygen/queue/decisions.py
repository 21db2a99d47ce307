"""The policy over the tables: which job a dispatcher starts next, and why the others wait."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from raygen.queue import claims, database, leases, policy, transitions, usage
from raygen.queue.away import Away
from raygen.queue.job import ENDED, EVERYBODY, WAITING, Job
from raygen.queue.rows import to_job
from raygen.queue.schema import clusters, dispatchers, jobs


def claim(connection: Connection, dispatcher: int) -> Job | None:
    """Take the job that comes next and fits for a dispatcher, beginning its next attempt; None if there is none.

    A dispatcher starts its user's jobs, as far as it can use their storages. What another one starts keeps its turn.
    """
    now = database.now(connection)
    # Locked, so that nobody takes this dispatcher for dead while it takes a job.
    alive = sa.select(dispatchers).where(dispatchers.c.id == dispatcher)
    lease = connection.execute(alive.with_for_update(read=True, key_share=True)).one_or_none()
    if lease is None or lease.lease_until < now:
        return None
    decided_on = sa.select(clusters).where(clusters.c.name == lease.cluster)
    cluster = connection.execute(decided_on.with_for_update()).one()
    if cluster.nodes is None or cluster.unreachable_since is not None or cluster.held_at is not None:
        return None
    capacity = claims.capacity_of(cluster)
    users = leases.users(connection, lease.cluster, now)
    usable = Away(connection, lease.cluster, now).excluded_from(claims.not_held)
    startable = claims.startable(capacity, now, users=users, among=usable)
    waiting = claims.waiting(connection, lease.cluster, startable).claims
    active = claims.active(connection, lease.cluster, now)
    used = usage.lately(connection, lease.cluster, active, now)
    away_for_it = lease.away or {}
    passed_over = {
        claim.id for claim in waiting if lease.user not in (EVERYBODY, claim.user) or claim.storage in away_for_it
    }
    while (
        chosen := policy.choose([*active, *waiting], capacity, now=now, used=used, excluded=passed_over)
    ) is not None:
        # Held since they were read, it is held: whoever asked for that was told so.
        startable_still = (jobs.c.state.in_(WAITING), jobs.c.held_at.is_(None))
        unlocked = sa.select(jobs).where(jobs.c.id == chosen.id, *startable_still)
        row = connection.execute(unlocked.with_for_update(skip_locked=True)).one_or_none()
        if row is not None:
            return transitions.begin_attempt(connection, to_job(row), dispatcher)
        passed_over.add(chosen.id)
    return None


def reasons(connection: Connection, asked: Sequence[Job]) -> dict[int, str]:
    """Why each of these jobs waits, by id; active ones have a reason if nobody looks after them."""
    now = database.now(connection)
    found: dict[int, str] = {}
    for name in {job.cluster for job in asked if job.state not in ENDED}:
        cluster = claims.cluster(connection, name, now)
        away = Away(connection, name, now)
        line = claims.waiting(connection, name, away.excluded_from(claims.not_held))
        active = claims.active(connection, name, now)
        used = usage.lately(connection, name, active, now)
        far_behind = policy.far_behind(line.of_each)
        found |= {
            job.id: far_behind for job in asked if job.cluster == name and job.state in WAITING and line.hides(job)
        }
        found |= policy.reasons([*active, *line.claims], cluster, now=now, used=used)
        found |= {
            job.id: f"its storage is away: {problem}"
            for job in asked
            if job.cluster == name and job.state in WAITING and (problem := away.problem(job)) is not None
        }
    found |= {
        job.id: f"held; `raygen release {job.name}` lets it start"
        for job in asked
        if job.state in WAITING and job.held_at is not None
    }
    return {job.id: reason for job in asked if (reason := found.get(job.id)) is not None}
