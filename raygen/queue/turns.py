"""In which order those who wait have their turn: by priority; within one, by who used less lately; then by age.

Pure: what each user used lately is told, and what their jobs would add is assumed, as nobody knows how long they run.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from raygen.capacity import Devices
from raygen.queue.job import LONGEST_BACKOFF_S

CORES_OF_A_GPU = 8
"""CPU cores that weigh as much as one GPU, which is about what nodes with GPUs have beside each."""

TURN_S = 3600.0
"""Seconds for which a job that runs, or comes before another, counts as going on, unless its time limit is shorter."""

GRAIN_S = 60.0
"""Device-seconds below which nobody has used less than others: of jobs that started together none is to go first."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job's claim to devices, as far as decisions need it.

    It is for `processes` processes that take `each`; if the cluster is too small for so many, for as many as it has
    room for, but at least `fewest`. An `active` claim holds its devices: `places` says how many of its processes are
    on which node, by the node's id, and `pending` how many have no node yet. A waiting claim does not start before
    `not_before`, and an active one has run since `started_at`, both in seconds since 1970. From its start on it runs
    for `limit_s` at most; None: nobody knows how long.
    """

    id: int
    name: str
    user: str = ""
    storage: str = ""
    priority: int
    processes: int
    fewest: int
    each: Devices
    active: bool
    places: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    not_before: float = 0.0
    started_at: float | None = None
    limit_s: float | None = None

    def waits_at(self, now: float) -> bool:
        """Whether it is to be tried again later.

        A clock that was set back makes a back-off seem longer than any is: that one is over.
        """
        return now < self.not_before <= now + LONGEST_BACKOFF_S

    @property
    def order(self) -> tuple[int, int]:
        """Its place among all claims of its user: the higher priority first, then the older."""
        return -self.priority, self.id

    @property
    def ends_by(self) -> float | None:
        """When an active claim has used up its limit; None if nobody knows."""
        return None if self.started_at is None or self.limit_s is None else self.started_at + self.limit_s


def weight(each: Devices, processes: int) -> float:
    """What so many processes count for while they hold their devices: GPUs, and CPU cores as parts of them."""
    return processes * (each.gpus + each.cpus / CORES_OF_A_GPU)


class Turn(NamedTuple):
    """A waiting claim whose turn it is: how many are ahead of it, and who is although they asked later, if anybody."""

    claim: Claim
    ahead: int
    passed_by: str | None


class Turns:
    """The waiting claims in their order, which depends on what those before turn out to take: `count` tells that.

    With one user it is that of `Claim.order`.
    """

    def __init__(self, waiting: Iterable[Claim], used: Mapping[str, float]) -> None:
        self._used = defaultdict(float, used)
        self._lines: dict[int, dict[str, deque[Claim]]] = {}
        for claim in sorted(waiting, key=lambda claim: claim.order):
            self._lines.setdefault(claim.priority, {}).setdefault(claim.user, deque()).append(claim)

    def count(self, claim: Claim, processes: int) -> None:
        """Have a claim that runs, or comes before the others, count as something that its user uses."""
        seconds = TURN_S if claim.limit_s is None else min(TURN_S, max(claim.limit_s, 0.0))
        self._used[claim.user] += weight(claim.each, processes) * seconds

    def __iter__(self) -> Iterator[Turn]:
        ahead = 0
        for lines in self._lines.values():
            last: dict[str, int] = {}  # of each user: the youngest that had its turn
            next_up = [(self._grains(user), line[0].id, user) for user, line in lines.items()]
            heapify(next_up)
            while next_up:
                _, number, user = heappop(next_up)
                passed_by = next((other for other, id_ in last.items() if id_ > number and other != user), None)
                yield Turn(lines[user].popleft(), ahead, passed_by)
                ahead, last[user] = ahead + 1, number
                if lines[user]:
                    heappush(next_up, (self._grains(user), lines[user][0].id, user))

    def _grains(self, user: str) -> int:
        return round(self._used[user] / GRAIN_S)
