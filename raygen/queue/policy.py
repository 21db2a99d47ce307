"""Who runs next, and why the others wait. Pure: a snapshot of the queue goes in, a decision or words come out.

Each job has a claim: to devices for a number of processes. Claims have turns (`raygen/queue/turns.py`). A claim starts
when there is room for all of its processes, on whichever nodes Ray puts them. While one waits, a later one may start
only if that cannot delay it. So one of three things must hold, wherever the later one's processes end up: the waiting
claim would still find room beside all that runs now and all that may run beside it; or the later one uses no kind of
device that the waiting claim could be short of; or the later one has a time limit, and will have ended by it before
the waiting claim could start, since others whose limits are longer have its room. What has no limit may end at any
moment, or never.

Processes that were started may have no nodes yet. No claim starts that could take their room.

Two kinds of waiting claims hold back no others: one that is to be tried again later, and one that asks for more than
the cluster has.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from types import MappingProxyType

from raygen.capacity import ROUNDING, Capacity, Devices, Node, OnDemand, count
from raygen.queue.placement import Board, Group
from raygen.queue.places import typed
from raygen.queue.turns import Claim, Turn, Turns

DEPTH = 500
"""Waiting claims that one decision looks at, from the first on; those behind wait for their turn."""

LEAST_OF_EACH = 10
"""Waiting claims of each user that are looked at however many users there are."""

GRACE_S = 60.0
"""Seconds that a job may take to end with its checkpoints once its time is up."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster as the queue last saw it; its capacity is None until a dispatcher has seen its nodes."""

    name: str
    capacity: Capacity | None
    unreachable_since: float | None
    problem: str
    users: Collection[str]  # whose jobs its living dispatchers start; "" if one of them starts everybody's
    on_demand: OnDemand | None = None
    held_at: float | None = None
    held_by: str | None = None

    @property
    def has_dispatcher(self) -> bool:
        """Whether anybody's jobs are started."""
        return bool(self.users)

    def starts_jobs_of(self, user: str) -> bool:
        """Whether one of its dispatchers starts that user's jobs."""
        return "" in self.users or user in self.users


def depth_of_each(users: int) -> int:
    """How many waiting claims of each user decisions look at if so many users have some."""
    return max(DEPTH // max(users, 1), LEAST_OF_EACH)


def choose(
    claims: Sequence[Claim],
    capacity: Capacity,
    *,
    now: float,
    used: Mapping[str, float] = MappingProxyType({}),
    excluded: Collection[int] = frozenset(),
) -> Claim | None:
    """The waiting claim to start now, or None; those with `excluded` ids are not chosen, but keep their room.

    `used` is what each user used lately.
    """
    for claim, obstacle in _scan(claims, capacity, now=now, used=used):
        if obstacle is None and claim.id not in excluded:
            return claim
    return None


def reasons(
    claims: Sequence[Claim], cluster: Cluster, *, now: float, used: Mapping[str, float] = MappingProxyType({})
) -> dict[int, str]:
    """Why each waiting claim waits, in words, by its id; and what active ones lack, be it nodes or a dispatcher."""
    told: dict[int, str] = {}
    served = [claim for claim in claims if cluster.starts_jobs_of(claim.user)]
    if cluster.unreachable_since is not None:
        silence = f"the cluster is unreachable since {clock_time(cluster.unreachable_since)}: {cluster.problem}"
        told = {claim.id: f"when last seen; {silence}" if claim.active else silence for claim in served}
    elif cluster.capacity is None:
        told = {claim.id: "the cluster is starting" for claim in served if not claim.active}
    else:
        counted = [claim for claim in claims if claim.active or cluster.starts_jobs_of(claim.user)]
        told = dict.fromkeys((claim.id for claim in counted if not claim.active), far_behind(DEPTH))
        for claim, obstacle in _scan(counted, cluster.capacity, now=now, used=used):
            told[claim.id] = obstacle or "next to start"
        told |= {claim.id: _lacking(claim, cluster.capacity) for claim in served if claim.active and claim.pending}
    for claim in claims:
        if cluster.held_at is not None and not claim.active:
            held = f"{cluster.held_by} holds the queue since {clock_time(cluster.held_at)}"
            told[claim.id] = f"{held}; {typed('raygen release --all', cluster.name)} lets it go on"
        elif not cluster.starts_jobs_of(claim.user):
            told[claim.id] = _unserved(claim, cluster)
    return told


def far_behind(number: int) -> str:
    """Why a claim waits that no decision looks at yet, as so many are before it."""
    return f"behind more than {number} jobs"


def clock_time(at: float) -> str:
    """A time of day in words, for reasons."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def _unserved(claim: Claim, cluster: Cluster) -> str:
    """Why nobody starts a claim, or looks after it, in words."""
    none = f"no dispatcher {f'of {claim.user} ' if cluster.has_dispatcher else ''}runs for its cluster"
    return f"when last seen; {none}" if claim.active else none


def _scan(
    claims: Sequence[Claim], capacity: Capacity, *, now: float, used: Mapping[str, float]
) -> Iterator[tuple[Claim, str | None]]:
    """The first waiting claims in order, each with the reason why it cannot start now, or None if it can."""
    queue = _Queue(capacity.possible, [claim for claim in claims if claim.active], now)
    turns = Turns((claim for claim in claims if not claim.active), used)
    for claim in claims:
        if claim.active:
            turns.count(claim, sum(claim.places.values()) or queue.number(claim))
    for turn in islice(turns, DEPTH):
        claim, number = turn.claim, queue.number(turn.claim)
        if number < claim.fewest:
            yield claim, _never(claim, capacity)
        elif claim.waits_at(now):
            yield claim, f"is tried again at {clock_time(claim.not_before)}"
        else:
            turns.count(claim, number)
            if queue.board.certain_slots(claim.each) < number or queue.strands(claim):
                yield claim, _obstacle(turn, number, queue.board)
                queue.wait(claim)
            elif (first := queue.delayed_by(claim)) is not None:
                yield claim, _behind(turn, first, queue.number(first))
                queue.wait(claim)
            else:
                yield claim, None
                # Later claims are judged as if this one ran already.
                queue.start(claim)


class _Queue:
    """What runs and what waits, as far as one scan has come."""

    def __init__(self, nodes: Sequence[Node], active: Sequence[Claim], now: float) -> None:
        self._nodes = nodes
        self._now = now
        self._empty = Board(nodes)
        self._active = list(active)
        self._waiting: dict[tuple[Devices, int], list[Claim]] = {}  # those that need the same, together
        self._delaying: dict[tuple[Devices, int], Claim] = {}
        self._beside: dict[tuple[Devices, int], Board] = {}
        self._stranding: dict[tuple[Devices, int], bool] = {}
        self._lasting: dict[int, Board] = {}
        self.board = Board(nodes, [self._group(claim) for claim in active])

    def number(self, claim: Claim) -> int:
        """How many processes a claim starts with: as many as it asks for, or as the empty cluster has room for."""
        return min(claim.processes, self._empty.certain_slots(claim.each))

    def wait(self, claim: Claim) -> None:
        """Add a claim that waits: later ones must not delay it."""
        self._waiting.setdefault((claim.each, self.number(claim)), []).append(claim)

    def start(self, claim: Claim) -> None:
        """Add a claim that starts: its processes have room, on nodes that are not known yet."""
        self._active.append(replace(claim, active=True, started_at=self._now))
        self.board = self.board.joined_by(self._group(claim))
        self._beside.clear()
        self._stranding.clear()
        if claim.limit_s is not None:
            self._lasting.clear()
            self._delaying.clear()

    def strands(self, claim: Claim) -> bool:
        """Whether a claim could take the room of processes that were started before it and have no node yet."""
        alike = (claim.each, self.number(claim))
        if alike not in self._stranding:
            self._stranding[alike] = self.board.strands(Group(*alike))
        return self._stranding[alike]

    def delayed_by(self, claim: Claim) -> Claim | None:
        """A waiting claim before this one that it could delay, or None."""
        alike = (claim.each, self.number(claim))
        gone_by = _gone_by(replace(claim, started_at=self._now))
        known = self._delaying.get(alike)
        if known is not None and self._may_start_before(gone_by, known.each, self.number(known)):
            return known
        taker = Group(*alike)
        for (each, number), same in self._waiting.items():
            if self._may_start_before(gone_by, each, number) and self._delays(taker, each, number):
                # Of claims that need the same, the last has the most before it: if it is not delayed, none is.
                # As the scan goes on, only more runs and waits: what could be delayed stays so.
                self._delaying[alike] = same[-1]
                return same[-1]
        return None

    def _delays(self, taker: Group, each: Devices, number: int) -> bool:
        """Whether a group of processes could keep a waiting claim from starting when it could start without them."""
        board = self._board_beside(each, number).joined_by(taker)
        return board.certain_slots(each) < number and not board.takes_nothing_from(taker.each, each)

    def _may_start_before(self, at: float | None, each: Devices, number: int) -> bool:
        """Whether a waiting claim may find room before then; not if what lasts until then by its limit has its room.

        None: for all time.
        """
        if at is None:
            return True
        lasting = [claim for claim in self._active if claim.ends_by is not None and claim.ends_by >= at]
        if len(lasting) not in self._lasting:
            self._lasting[len(lasting)] = Board(self._nodes, [self._group(claim) for claim in lasting])
        return self._lasting[len(lasting)].may_hold(each, number)

    def _board_beside(self, each: Devices, number: int) -> Board:
        """All that may run beside a waiting claim: what runs and what else waits, as far as there is room for both.

        What will have ended before the claim could start is not beside it.
        """
        if (each, number) not in self._beside:
            beside = [
                self._group(claim) for claim in self._active if self._may_start_before(_gone_by(claim), each, number)
            ]
            self._beside[each, number] = Board(
                self._nodes, [group for group in beside if self._fit_together(group, each, number)]
            )
        others = []
        for alike, same in self._waiting.items():
            before = len(same) - (alike == (each, number))  # without the claim itself
            if before and self._fit_together(Group(*alike), each, number):
                others.append(Group(alike[0], before * alike[1]))
        return self._beside[each, number].joined_by(*others)

    def _fit_together(self, group: Group, each: Devices, number: int) -> bool:
        """Whether a group and a claim could run at the same time, if nodes that are not known yet turn out well."""
        return self._empty.holds_beside(group, each, number)

    def _group(self, claim: Claim) -> Group:
        """What an active claim takes: of an elastic one, only as many processes as the cluster has room for."""
        return Group(claim.each, max(self.number(claim), claim.fewest), claim.places)


def _gone_by(claim: Claim) -> float | None:
    """When a claim has surely given its devices back; None if nobody knows."""
    return None if claim.ends_by is None else claim.ends_by + GRACE_S


def _never(claim: Claim, capacity: Capacity) -> str:
    """Why a claim could not run even if nothing else did, in words."""
    asked = f"asks for {_amount(claim, claim.processes)}, more than there is: {capacity}"
    back = capacity.before_losses()
    if capacity.lost and back.holds(claim.each) >= claim.fewest:
        gone = max(capacity.lost, key=lambda node: node.lost_at)
        return f"{asked}, since {gone} was lost at {clock_time(gone.lost_at)}"
    return asked


def _behind(turn: Turn, first: Claim, number: int) -> str:
    """Which claim for so many processes one must not delay that would find room, in words."""
    needs = f"needs {_amount(first, number)}"
    if turn.passed_by is None or first.user != turn.passed_by:
        return f"behind {first.name}, which comes first and {needs}"
    return f"behind {first.user}'s {first.name}, which comes first, as {first.user} used less lately, and {needs}"


def _obstacle(turn: Turn, number: int, board: Board) -> str:
    """What a claim for so many processes waits for, in words, and how many are ahead of it."""
    free, each = board.free(), turn.claim.each
    behind = f", behind {count(turn.ahead, 'job')}" if turn.ahead else ""
    if turn.passed_by is not None:
        behind += f"; {turn.passed_by} used less lately and goes first"
    if number * each.gpus > free.gpus + ROUNDING:
        return f"waiting for {_missing(number * each.gpus, free.gpus, 'GPU')}{behind}"
    if number * each.cpus > free.cpus + ROUNDING:
        return f"waiting for {_missing(number * each.cpus, free.cpus, 'CPU core')}{behind}"
    slots = board.slots(each)
    if slots >= number:
        return f"waits until all that was started has its nodes{behind}"
    if number > 1:
        kind, amount = ("GPU", free.gpus) if each.gpus else ("CPU core", free.cpus)
        room = f"room for {slots} of {number} processes with {each} each"
        return f"{_free(amount, kind)}, but on nodes with {room}{behind}"
    if each.gpus:
        return f"{_free(free.gpus, 'GPU')}, but not on a node with {count(each.cpus, 'free CPU core')}{behind}"
    return f"{_free(free.cpus, 'CPU core')}, but no node has {each.cpus:g} of them{behind}"


def _free(amount: float, kind: str) -> str:
    return f"{count(amount, kind)} {'is' if amount <= 1 else 'are'} free"


def _missing(wanted: float, free: float, kind: str) -> str:
    return f"{wanted - max(free, 0):g} of {count(wanted, kind)}"


def _amount(claim: Claim, number: int) -> str:
    """The devices that so many of a claim's processes take, in words."""
    total = Devices(round(number * claim.each.gpus, 6), round(number * claim.each.cpus, 6))
    return f"{total} in {number} processes" if number > 1 else str(total)


def _lacking(claim: Claim, capacity: Capacity) -> str:
    """What those processes of an active claim wait for that have no node, in words."""
    coming = capacity.on_demand
    on_one = Devices(coming.gpus, coming.cpus).holds(claim.each) if coming else 0
    if coming is not None and on_one and capacity.to_come:
        nodes = min(ceil(claim.pending / on_one), len(capacity.to_come))
        what = count(coming.gpus, "GPU") if claim.each.gpus else count(coming.cpus, "CPU core")
        return f"waiting for {nodes} more node{'s' if nodes > 1 else ''} with {what}"
    if claim.processes == 1:
        return f"waiting for a node with room for {claim.each}"
    some = f"{claim.pending} of" if claim.pending < claim.processes else "all of"
    return f"waiting for nodes with room for {some} its {claim.processes} processes, {claim.each} each"
