"""How much room processes leave when somebody else chooses their nodes.

Ray places a process on any node that has room for it. Of processes whose nodes are known, what they leave free is
known too. Of the others (loose ones) only this is known: how much room they can take from processes of another size at
most, wherever they end up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from math import ceil, inf

from raygen.capacity import ROUNDING, Devices, Node


@dataclass(frozen=True)
class Group:
    """Processes of one size, and the nodes of those that have one, by the node's id."""

    each: Devices
    number: int
    places: Mapping[str, int] = field(default_factory=dict)


class Board:
    """Nodes with processes on them, and loose ones that will end up somewhere."""

    def __init__(self, nodes: Sequence[Node], groups: Sequence[Group] = ()) -> None:
        self._total = {node.id: node.devices for node in nodes}
        self._free = dict(self._total)
        self._loose: dict[Devices, int] = {}
        self._left: Devices | None = None
        self._forget()
        for group in groups:
            self._place(group)

    def joined_by(self, *groups: Group) -> Board:
        """The board with further processes."""
        joined = self._copy()
        for group in groups:
            joined._place(group)
        return joined

    def slots(self, each: Devices) -> int:
        """Processes of this size that would find room if nothing loose came."""
        if each not in self._slots:
            self._slots[each] = sum(free.holds(each) for free in self._free.values())
        return self._slots[each]

    def certain_slots(self, each: Devices) -> int:
        """Processes of this size that find room wherever the loose ones end up."""
        if each not in self._certain_slots:
            self._certain_slots[each] = self.slots(each) - self._harm(each)
        return self._certain_slots[each]

    def free(self) -> Devices:
        """What is free on all nodes together."""
        if self._left is None:
            gpus, cpus = sum(free.gpus for free in self._free.values()), sum(free.cpus for free in self._free.values())
            left = Devices(gpus, cpus)
            for each, number in self._loose.items():
                left = left.minus(each, number)
            self._left = left
        return self._left

    def may_hold(self, each: Devices, number: int) -> bool:
        """Whether so many processes of this size find room if the loose ones end up where they harm least."""
        return self.holds_beside(Group(each, 0), each, number)

    def holds_beside(self, group: Group, each: Devices, number: int) -> bool:
        """Whether so many processes of size `each` find room beside a group, its loose ones where they harm least."""
        free = self.free().minus(group.each, group.number)
        enough_gpus = number * each.gpus <= free.gpus + ROUNDING
        if not enough_gpus or number * each.cpus > free.cpus + ROUNDING:
            return False
        taken = sum(
            self._free[node].holds(each) - self._free[node].minus(group.each, times).holds(each)
            for node, times in self._places(group).items()
        )
        return self.slots(each) - taken >= number

    def takes_nothing_from(self, taker: Devices, each: Devices) -> bool:
        """Whether processes of the size `taker` on this board never take room from those of size `each`.

        That is so if what all others leave of the kinds that it uses still holds as many as an empty node would.
        """
        used = self._used_at_worst()
        return all(
            total.holds(each) <= _slots_by_kinds_of(taker, self._free[node].minus(used[total]), each)
            for node, total in self._total.items()
            if total.holds(taker)
        )

    def strands(self, taker: Group) -> bool:
        """Whether further processes could take room that loose ones of another size have been promised."""
        for each, number in self._loose.items():
            if each != taker.each:
                beside = self._copy()
                del beside._loose[each]
                beside._place(taker)
                if beside.certain_slots(each) < number and not beside.takes_nothing_from(taker.each, each):
                    return True
        return False

    def _copy(self) -> Board:
        copied = copy(self)
        copied._free, copied._loose = dict(self._free), dict(self._loose)
        copied._forget()
        return copied

    def _forget(self) -> None:
        """Have everything that follows from free devices and loose processes found out anew."""
        self._slots: dict[Devices, int] = {}
        self._certain_slots: dict[Devices, int] = {}
        self._used: dict[Devices, Devices] = {}
        self._left = None

    def _places(self, group: Group) -> dict[str, int]:
        """The nodes of a group's processes, as far as they are known; a single node is that of all."""
        places = {node: times for node, times in group.places.items() if node in self._free and times}
        if len(self._free) == 1 and sum(places.values()) < group.number:
            return dict.fromkeys(self._free, group.number)
        return places

    def _place(self, group: Group) -> None:
        places = self._places(group)
        for node, times in places.items():
            self._free[node] = self._free[node].minus(group.each, times)
        loose = group.number - sum(places.values())
        if loose > 0:
            self._loose[group.each] = self._loose.get(group.each, 0) + loose

    def _harm(self, each: Devices) -> int:
        """The most slots of size `each` that all loose processes together can take."""
        if not self._loose:
            return 0
        used = self._used_at_worst()
        # What a loose size can take of a node depends on the kinds of devices that it uses alone.
        takes: dict[tuple[bool, bool], dict[Devices, int]] = {}
        for taker in self._loose:
            takes.setdefault(_kinds_of(taker), dict.fromkeys(used, 0))
        for node, total in self._total.items():
            free = self._free[node]
            holds, left = free.holds(each), free.minus(used[total]).holds_by_kind(each)
            for kinds, by_total in takes.items():
                by_total[total] += int(max(holds - _least(kinds, left), 0))
        harm = 0
        for taker, number in self._loose.items():
            on_nodes = sum(slots for total, slots in takes[_kinds_of(taker)].items() if total.holds(taker))
            harm += min(number * _slots_of_one(taker, each), on_nodes)
        return harm

    def _used_at_worst(self) -> dict[Devices, Devices]:
        """What loose processes use of a node if as many of each size end up there as it could ever hold.

        By what the node has in all.
        """
        if self._used:
            return self._used
        for total in set(self._total.values()):
            times = {each: min(number, total.holds(each)) for each, number in self._loose.items()}
            gpus, cpus = (sum(getattr(each, kind) * n for each, n in times.items()) for kind in ("gpus", "cpus"))
            self._used[total] = Devices(gpus, cpus)
        return self._used


def _slots_of_one(taker: Devices, each: Devices) -> int:
    """The most slots of size `each` that one process can take: its parts of them, each kind rounded up."""
    parts = ((taker.gpus, each.gpus), (taker.cpus, each.cpus))
    return max((ceil(takes / of - ROUNDING) for takes, of in parts if takes and of), default=0)


def _slots_by_kinds_of(taker: Devices, left: Devices, each: Devices) -> float:
    """How many of size `each` the rest of a node holds, looking only at the kinds of devices that `taker` uses."""
    return _least(_kinds_of(taker), left.holds_by_kind(each))


def _kinds_of(taker: Devices) -> tuple[bool, bool]:
    return taker.gpus > 0, taker.cpus > 0


def _least(kinds: tuple[bool, bool], slots: tuple[float, float]) -> float:
    return min((number for used, number in zip(kinds, slots, strict=True) if used), default=inf)
