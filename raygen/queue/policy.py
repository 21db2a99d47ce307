"""Who runs next, and why the others wait. Pure: a snapshot of the queue goes in, a decision or words come out.

Jobs are ordered by priority, then age. A job that must wait keeps its claim: one behind it may start on free devices
only where that cannot delay it, which is where both would fit if all that comes before it had ended (conservative
backfill, without guesses about how long a job takes). So a large job is never starved by small ones behind it. A job
that waits to be tried again keeps no claim meanwhile, nor does one that asks for more than the cluster has.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raygen.plan import Capacity

DEPTH = 500
"""Waiting jobs that one decision looks at, from the first on; those behind wait for their turn."""

ROUNDING = 1e-6
"""Shares of a GPU are fractions: three thirds must fit into one."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job's claim on devices, as far as decisions need it; those with `active` hold them now."""

    id: int
    name: str
    priority: int
    gpus: float
    cpus: int
    active: bool
    not_before: float = 0.0

    @property
    def order(self) -> tuple[int, int]:
        """Its place among all claims: the higher priority first, then the older."""
        return -self.priority, self.id


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster as the queue last saw it."""

    name: str
    capacity: Capacity | None
    unreachable_since: float | None
    problem: str
    has_dispatcher: bool


@dataclass(frozen=True)
class _Devices:
    """An amount of devices of both kinds; less than nothing where a cluster has shrunk under its jobs."""

    gpus: float
    cpus: float

    def hold(self, claim: Claim) -> bool:
        return claim.gpus <= self.gpus + ROUNDING and claim.cpus <= self.cpus

    def cover(self, other: _Devices) -> bool:
        return other.gpus <= self.gpus + ROUNDING and other.cpus <= self.cpus

    def minus(self, *claims: Claim) -> _Devices:
        return _Devices(
            self.gpus - sum(claim.gpus for claim in claims), self.cpus - sum(claim.cpus for claim in claims)
        )

    def at_most(self, other: _Devices) -> _Devices:
        return _Devices(min(self.gpus, other.gpus), min(self.cpus, other.cpus))


def choose(
    claims: Sequence[Claim], capacity: Capacity, *, now: float, excluded: Collection[int] = frozenset()
) -> Claim | None:
    """The waiting claim to start now, if there is one; `excluded` ids cannot be started, but keep their place."""
    for claim, obstacle in _scan(claims, capacity, now=now):
        if obstacle is None and claim.id not in excluded:
            return claim
    return None


def reasons(claims: Sequence[Claim], cluster: Cluster, *, now: float) -> dict[int, str]:
    """Why each waiting claim waits, in words, by its id."""
    waiting = [claim for claim in claims if not claim.active]
    if not cluster.has_dispatcher:
        return {claim.id: "no dispatcher runs for its cluster" for claim in waiting}
    if cluster.unreachable_since is not None:
        since = clock_time(cluster.unreachable_since)
        return {claim.id: f"the cluster is unreachable since {since}: {cluster.problem}" for claim in waiting}
    if cluster.capacity is None:
        return {claim.id: "the cluster is starting" for claim in waiting}
    words = {claim.id: obstacle or "next to start" for claim, obstacle in _scan(claims, cluster.capacity, now=now)}
    far_behind = f"behind more than {DEPTH} jobs"
    return {claim.id: words.get(claim.id, far_behind) for claim in waiting}


def clock_time(at: float) -> str:
    """A time of day in words, for reasons."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def _scan(claims: Sequence[Claim], capacity: Capacity, *, now: float) -> list[tuple[Claim, str | None]]:
    """The first waiting claims in order, each with what keeps it from starting now (None: nothing does)."""
    total = _Devices(capacity.gpus, capacity.cpus)
    active = [claim for claim in claims if claim.active]
    waiting = sorted((claim for claim in claims if not claim.active), key=lambda claim: claim.order)[:DEPTH]
    free = total.minus(*active)
    spare, blocking = free, None  # what may be taken without delaying `blocking` or another that waits
    scanned: list[tuple[Claim, str | None]] = []
    for ahead, claim in enumerate(waiting):
        if not total.hold(claim):
            scanned.append((claim, f"asks for {_amount(claim)}, more than there is: {capacity}"))
        elif claim.not_before > now:
            scanned.append((claim, f"is tried again at {clock_time(claim.not_before)}"))
        elif spare.hold(claim):
            scanned.append((claim, None))
            # What comes behind is judged as if this one ran, which it is about to.
            active, free, spare = [*active, claim], free.minus(claim), spare.minus(claim)
        else:
            scanned.append((claim, _obstacle(claim, free, blocking, ahead)))
            reserved = total.minus(claim, *(other for other in active if other.order > claim.order))
            if not reserved.cover(spare):
                spare, blocking = spare.at_most(reserved), claim
    return scanned


def _obstacle(claim: Claim, free: _Devices, blocking: Claim | None, ahead: int) -> str:
    if free.hold(claim) and blocking is not None:
        return f"behind {blocking.name}, which comes first and needs {_amount(blocking)}"
    behind = f", behind {_count(ahead, 'job')}" if ahead else ""
    return f"waiting for {_missing(claim, free)}{behind}"


def _amount(claim: Claim) -> str:
    cores = _count(claim.cpus, "CPU core")
    return f"{_count(claim.gpus, 'GPU')} and {cores}" if claim.gpus else cores


def _missing(claim: Claim, free: _Devices) -> str:
    if claim.gpus > free.gpus:
        return f"{claim.gpus - max(free.gpus, 0):g} of {_count(claim.gpus, 'GPU')}"
    return f"{claim.cpus - max(free.cpus, 0):g} of {_count(claim.cpus, 'CPU core')}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'s' if number != 1 else ''}"
