"""Who runs next, and why the others wait. Pure: a snapshot of the queue goes in, a decision or words come out.

Jobs are ordered by priority, then age. A job starts when all its processes find room, on whichever nodes Ray places
them. One that must wait keeps its claim: another behind it may start only if that cannot delay it, however long each
job takes. So it must leave room for those before it beside all that run now and can run beside them, wherever its
own processes end up; or use nothing that they lack. Nor may a job start that could take the room of one that was
started and whose processes have no nodes yet. A job that waits to be tried again keeps no claim meanwhile, nor
does one that asks for more than the cluster has.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from raygen.capacity import ROUNDING, Capacity, Devices, Node, OnDemand, count
from raygen.queue.placement import Board, Group

DEPTH = 500
"""Waiting jobs that one decision looks at, from the first on; those behind wait for their turn."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job's claim on devices, as far as decisions need it; those with `active` hold them now.

    It is for so many `processes` with these devices each, or as many as the cluster has room for, but `fewest` at
    least. Of an active one, `places` says how many have which node by now, `pending` how many wait for one.
    """

    id: int
    name: str
    priority: int
    processes: int
    fewest: int
    each: Devices
    active: bool
    places: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
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
    on_demand: OnDemand | None = None


def choose(
    claims: Sequence[Claim], capacity: Capacity, *, now: float, excluded: Collection[int] = frozenset()
) -> Claim | None:
    """The waiting claim to start now, if there is one; `excluded` ids cannot be started, but keep their place."""
    for claim, obstacle in _scan(claims, capacity, now=now):
        if obstacle is None and claim.id not in excluded:
            return claim
    return None


def reasons(claims: Sequence[Claim], cluster: Cluster, *, now: float) -> dict[int, str]:
    """Why each waiting claim waits, in words, by its id; also what an active one lacks: nodes, or a dispatcher."""
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
    return {claim.id: words.get(claim.id, far_behind) for claim in waiting} | {
        claim.id: _lacking(claim, cluster.capacity) for claim in claims if claim.active and claim.pending
    }


def clock_time(at: float) -> str:
    """A time of day in words, for reasons."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def _scan(claims: Sequence[Claim], capacity: Capacity, *, now: float) -> Iterator[tuple[Claim, str | None]]:
    """The first waiting claims in order, each with what keeps it from starting now (None: nothing does)."""
    queue = _Queue(capacity.possible, [claim for claim in claims if claim.active])
    waiting = sorted((claim for claim in claims if not claim.active), key=lambda claim: claim.order)[:DEPTH]
    for ahead, claim in enumerate(waiting):
        number = queue.number(claim)
        if number < claim.fewest:
            yield claim, _never(claim, capacity)
        elif claim.not_before > now:
            yield claim, f"is tried again at {clock_time(claim.not_before)}"
        elif queue.board.certain_slots(claim.each) < number or queue.strands(claim):
            yield claim, _obstacle(claim, number, queue.board, ahead)
            queue.wait(claim)
        elif (first := queue.delayed_by(claim)) is not None:
            yield claim, f"behind {first.name}, which comes first and needs {_amount(first, queue.number(first))}"
            queue.wait(claim)
        else:
            yield claim, None
            # What comes behind is judged as if this one ran, which it is about to.
            queue.start(claim)


class _Queue:
    """What runs and what waits, as one scan has seen it so far."""

    def __init__(self, nodes: Sequence[Node], active: Sequence[Claim]) -> None:
        self._nodes = nodes
        self._empty = Board(nodes)
        self._active = list(active)
        self._waiting: dict[tuple[Devices, int], list[Claim]] = {}  # alike ones together: they need the same
        self._delaying: dict[tuple[Devices, int], Claim] = {}
        self._beside: dict[tuple[Devices, int], Board] = {}
        self._stranding: dict[tuple[Devices, int], bool] = {}
        self.board = Board(nodes, [self._group(claim) for claim in active])

    def number(self, claim: Claim) -> int:
        """The processes that a claim is for: as many as it asks for, or as the empty cluster holds."""
        return min(claim.processes, self._empty.certain_slots(claim.each))

    def wait(self, claim: Claim) -> None:
        """Have a claim wait, before all that come behind it."""
        self._waiting.setdefault((claim.each, self.number(claim)), []).append(claim)

    def start(self, claim: Claim) -> None:
        """Have a claim's processes start, on nodes that nobody knows yet."""
        self._active.append(claim)
        self.board = self.board.joined_by(self._group(claim))
        self._beside.clear()
        self._stranding.clear()

    def strands(self, claim: Claim) -> bool:
        """Whether a claim could take the room of what was started before it and has no nodes yet."""
        alike = (claim.each, self.number(claim))
        if alike not in self._stranding:
            self._stranding[alike] = self.board.strands(Group(*alike))
        return self._stranding[alike]

    def delayed_by(self, claim: Claim) -> Claim | None:
        """One that waits before this claim and that it could delay, if there is one."""
        alike = (claim.each, self.number(claim))
        if alike not in self._delaying:
            taker = Group(*alike)
            # The last of those that are alike has the most before it: what does not delay that one delays none.
            delayed = (same[-1] for (each, number), same in self._waiting.items() if self._delays(taker, each, number))
            first = next(delayed, None)
            if first is None:
                return None
            # More will wait and run, so this stays so.
            self._delaying[alike] = first
        return self._delaying[alike]

    def _delays(self, taker: Group, each: Devices, number: int) -> bool:
        """Whether processes could take room from a waiting claim when that could start without them."""
        board = self._board_beside(each, number).joined_by(taker)
        return board.certain_slots(each) < number and not board.takes_nothing_from(taker.each, each)

    def _board_beside(self, each: Devices, number: int) -> Board:
        """All that may run beside a waiting claim: of what runs and what else waits, that which leaves room for it."""
        if (each, number) not in self._beside:
            running = [self._group(claim) for claim in self._active]
            self._beside[each, number] = Board(
                self._nodes, [group for group in running if self._fit_together(group, each, number)]
            )
        others = []
        for alike, same in self._waiting.items():
            before = len(same) - (alike == (each, number))  # without the claim itself
            if before and self._fit_together(Group(*alike), each, number):
                others.append(Group(alike[0], before * alike[1]))
        return self._beside[each, number].joined_by(*others)

    def _fit_together(self, group: Group, each: Devices, number: int) -> bool:
        """Whether a group and a claim may ever run at the same time, with the loose ones where they harm least."""
        return self._empty.holds_beside(group, each, number)

    def _group(self, claim: Claim) -> Group:
        """What an active claim takes: an elastic one's processes that no node is there for take nothing."""
        return Group(claim.each, max(self.number(claim), claim.fewest), claim.places)


def _never(claim: Claim, capacity: Capacity) -> str:
    """Why a claim cannot run even on the empty cluster, in words."""
    asked = f"asks for {_amount(claim, claim.processes)}, more than there is: {capacity}"
    back = capacity.before_losses()
    if capacity.lost and back.holds(claim.each) >= claim.fewest:
        gone = max(capacity.lost, key=lambda node: node.lost_at)
        return f"{asked}, since {gone} was lost at {clock_time(gone.lost_at)}"
    return asked


def _obstacle(claim: Claim, number: int, board: Board, ahead: int) -> str:
    free, each = board.free(), claim.each
    behind = f", behind {count(ahead, 'job')}" if ahead else ""
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
    """What a claim needs, in words."""
    total = Devices(round(number * claim.each.gpus, 6), round(number * claim.each.cpus, 6))
    return f"{total} in {number} processes" if number > 1 else str(total)


def _lacking(claim: Claim, capacity: Capacity) -> str:
    """What an active claim's processes that have no node wait for, in words."""
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
