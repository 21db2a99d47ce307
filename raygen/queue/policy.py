"""Who runs next, and why the others wait. Pure: a snapshot of the queue goes in, a decision or words come out.

Jobs are ordered by priority, then age. A job that must wait keeps its claim: one behind it may start on free devices
only where that cannot delay it, however long each job takes. Beside the first that waits that is what nobody needs
when it starts, even if all that run now and can run beside it still do; of this, every other that waits keeps what it
asks for. So no job is delayed by one behind it that was queued later. A job that waits to be tried again keeps no
claim meanwhile, nor does one that asks for more than the cluster has.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
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
        # What is short of one kind can still hold a claim that needs none of it.
        enough_gpus = not claim.gpus or claim.gpus <= self.gpus + ROUNDING
        return enough_gpus and (not claim.cpus or claim.cpus <= self.cpus)

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
    """Why each waiting claim waits, in words, by its id; active ones have a reason where nobody looks after them."""
    if not cluster.has_dispatcher:
        none = "no dispatcher runs for its cluster"
        return {claim.id: f"when last seen; {none}" if claim.active else none for claim in claims}
    if cluster.unreachable_since is not None:
        silence = f"the cluster is unreachable since {clock_time(cluster.unreachable_since)}: {cluster.problem}"
        return {claim.id: f"when last seen; {silence}" if claim.active else silence for claim in claims}
    waiting = [claim for claim in claims if not claim.active]
    if cluster.capacity is None:
        return {claim.id: "the cluster is starting" for claim in waiting}
    words = {claim.id: obstacle or "next to start" for claim, obstacle in _scan(claims, cluster.capacity, now=now)}
    far_behind = f"behind more than {DEPTH} jobs"
    return {claim.id: words.get(claim.id, far_behind) for claim in waiting}


def clock_time(at: float) -> str:
    """A time of day in words, for reasons."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def _scan(claims: Sequence[Claim], capacity: Capacity, *, now: float) -> Iterator[tuple[Claim, str | None]]:
    """The first waiting claims in order, each with what keeps it from starting now (None: nothing does)."""
    total = _Devices(capacity.gpus, capacity.cpus)
    active = [claim for claim in claims if claim.active]
    waiting = sorted((claim for claim in claims if not claim.active), key=lambda claim: claim.order)[:DEPTH]
    free = total.minus(*active)
    spare = free  # what may be taken without delaying one that waits
    left: list[tuple[Claim, _Devices]] = []  # each that waits, with what it left of this
    for ahead, claim in enumerate(waiting):
        if not total.hold(claim):
            yield claim, f"asks for {_amount(claim)}, more than there is: {capacity}"
        elif claim.not_before > now:
            yield claim, f"is tried again at {clock_time(claim.not_before)}"
        elif spare.hold(claim):
            yield claim, None
            # What comes behind is judged as if this one ran, which it is about to.
            active, free, spare = [*active, claim], free.minus(claim), spare.minus(claim)
        else:
            yield claim, _obstacle(claim, free, left, ahead)
            spare = spare.minus(claim) if left else spare.at_most(_beside(claim, total, active))
            left.append((claim, spare))


def _beside(claim: Claim, total: _Devices, active: Sequence[Claim]) -> _Devices:
    """What stays free when the first claim that waits starts, whichever of the active ones have ended by then."""
    behind = [other for other in active if other.order > claim.order]
    before = [other for other in active if other.order < claim.order]
    room = total.minus(claim)
    # One that cannot run beside it will have ended; of one kind of device, nothing more than this is known.
    gpus = sum(other.gpus for other in before if other.gpus <= room.gpus + ROUNDING)
    cpus = sum(other.cpus for other in before if other.cpus <= room.cpus)
    return _Devices(max(room.gpus - gpus, 0), max(room.cpus - cpus, 0)).minus(*behind)


def _obstacle(claim: Claim, free: _Devices, left: Sequence[tuple[Claim, _Devices]], ahead: int) -> str:
    if free.hold(claim):
        keepers = (keeper for keeper, spare in left if not spare.hold(claim))
        first = next(keepers, left[-1][0])
        return f"behind {first.name}, which comes first and needs {_amount(first)}"
    behind = f", behind {_count(ahead, 'job')}" if ahead else ""
    return f"waiting for {_missing(claim, free)}{behind}"


def _amount(claim: Claim) -> str:
    cores = _count(claim.cpus, "CPU core")
    return f"{_count(claim.gpus, 'GPU')} and {cores}" if claim.gpus else cores


def _missing(claim: Claim, free: _Devices) -> str:
    if claim.gpus > free.gpus + ROUNDING:
        return f"{claim.gpus - max(free.gpus, 0):g} of {_count(claim.gpus, 'GPU')}"
    return f"{claim.cpus - max(free.cpus, 0):g} of {_count(claim.cpus, 'CPU core')}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'s' if number != 1 else ''}"
