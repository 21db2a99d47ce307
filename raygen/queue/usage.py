"""What users used lately of a cluster: device-seconds (`turns.weight`), which count half after each half-life.

What ended attempts took is in the table `usage`, as of the last one; what runs is added when somebody asks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy import Connection

from raygen.capacity import Devices
from raygen.errors import QueueError
from raygen.queue import database
from raygen.queue.job import Job
from raygen.queue.schema import usage
from raygen.queue.turns import Claim, weight

VARIABLE = "RAYGEN_FAIR_HALF_LIFE_H"
DEFAULT_HALF_LIFE_H = 24.0


def lately(connection: Connection, cluster: str, active: Iterable[Claim], now: float) -> dict[str, float]:
    """What each user used lately; raises QueueError if the environment names no half-life."""
    half_life_s = _half_life_s()
    rows = connection.execute(sa.select(usage).where(usage.c.cluster == cluster))
    used = {row.user: _left(row.device_s, now - row.as_of, half_life_s) for row in rows}
    for claim in active:
        if claim.started_at is not None:
            rate = weight(claim.each, sum(claim.places.values()) or claim.processes)
            used[claim.user] = used.get(claim.user, 0.0) + _taken(rate, now - claim.started_at, half_life_s)
    return used


def charge(connection: Connection, job: Job) -> None:
    """Add what a job's attempt took, which ends now; raises QueueError if the environment names no half-life."""
    half_life_s, now = _half_life_s(), database.now(connection)
    runs_s = job.runs_s(now)
    if not runs_s:
        return
    rate = weight(Devices(job.gpus_each, job.cpus_each), sum(job.places.values()) or job.processes)
    new = {"cluster": job.cluster, "user": job.user, "device_s": 0.0, "as_of": now}
    connection.execute(database.insert(connection, usage).values(new).on_conflict_do_nothing())
    own = sa.and_(usage.c.cluster == job.cluster, usage.c.user == job.user)
    row = connection.execute(sa.select(usage).where(own).with_for_update()).one()
    left = _left(row.device_s, now - row.as_of, half_life_s)
    taken = _taken(rate, runs_s, half_life_s)
    connection.execute(usage.update().where(own).values(device_s=left + taken, as_of=now))


def _left(device_s: float, age_s: float, half_life_s: float) -> float:
    return device_s * _halved(age_s, half_life_s)


def _taken(rate: float, seconds: float, half_life_s: float) -> float:
    """What is left of what was taken at this rate for so long, until now."""
    return rate * half_life_s / math.log(2) * (1 - _halved(seconds, half_life_s))


def _halved(seconds: float, half_life_s: float) -> float:
    """What part of something is left after so long."""
    return math.exp2(-max(seconds, 0.0) / half_life_s)


def _half_life_s() -> float:
    text = os.environ.get(VARIABLE) or str(DEFAULT_HALF_LIFE_H)
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < float("inf"):
        raise QueueError(f"{VARIABLE}={text} is no half-life; write a number of hours above 0, such as 24")
    return hours * 3600
