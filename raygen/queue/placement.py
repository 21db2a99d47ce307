"""How much room processes leave when somebody else chooses their nodes.

Ray places a process on any node that has room for it. Of processes whose nodes are known, what they leave free is
known too. Of the others (loose ones) only this is known: how much room they can take from processes of another size at
most, wherever they end up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        self._nodes = nodes
        self._groups = groups
        self._total = {node.id: node.devices for node in nodes}
        self._free = dict(self._total)
        self._loose: dict[Devices, int] = {}
        for group in groups:
            self._place(group)
        self._fullest = {node: self._left_at_worst(node) for node in self._free}
        self._certain_slots: dict[Devices, int] = {}
        self._without_loose: dict[Devices, Board] = {}

    def joined_by(self, *groups: Group) -> Board:
        """The board with further processes."""
        return Board(self._nodes, (*self._groups, *groups))

    def slots(self, each: Devices) -> int:
        """Processes of this size that would find room if nothing loose came."""
        return sum(free.holds(each) for free in self._free.values())

    def certain_slots(self, each: Devices) -> int:
        """Processes of this size that find room wherever the loose ones end up."""
        if each not in self._certain_slots:
            harm = sum(self._harm(taker, number, each) for taker, number in self._loose.items())
            self._certain_slots[each] = self.slots(each) - harm
        return self._certain_slots[each]

    def free(self) -> Devices:
        """What is free on all nodes together."""
        gpus, cpus = sum(free.gpus for free in self._free.values()), sum(free.cpus for free in self._free.values())
        left = Devices(gpus, cpus)
        for each, number in self._loose.items():
            left = left.minus(each, number)
        return left

    def takes_nothing_from(self, taker: Devices, each: Devices) -> bool:
        """Whether processes of the size `taker` on this board never take room from those of size `each`.

        That is so if what all others leave of the kinds that it uses still holds as many as an empty node would.
        """
        return all(
            total.holds(each) <= _slots_by_kinds_of(taker, self._fullest[node], each)
            for node, total in self._total.items()
            if total.holds(taker)
        )

    def strands(self, taker: Group) -> bool:
        """Whether further processes could take room that loose ones of another size have been promised."""
        for each, number in self._loose.items():
            if each != taker.each:
                beside = self._with_places_only(each).joined_by(taker)
                if beside.certain_slots(each) < number and not beside.takes_nothing_from(taker.each, each):
                    return True
        return False

    def _with_places_only(self, each: Devices) -> Board:
        """The board without loose processes of one size."""
        if each not in self._without_loose:
            known = [
                replace(group, number=sum(group.places.get(node, 0) for node in self._free))
                if group.each == each
                else group
                for group in self._groups
            ]
            self._without_loose[each] = Board(self._nodes, known)
        return self._without_loose[each]

    def _place(self, group: Group) -> None:
        places = {node: times for node, times in group.places.items() if node in self._free and times}
        loose = group.number - sum(places.values())
        if loose > 0 and len(self._free) == 1:
            [only] = self._free
            places, loose = {only: group.number}, 0
        for node, times in places.items():
            self._free[node] = self._free[node].minus(group.each, times)
        if loose > 0:
            self._loose[group.each] = self._loose.get(group.each, 0) + loose

    def _harm(self, taker: Devices, number: int, each: Devices) -> int:
        """The most slots of size `each` that so many loose processes can take, whatever else is loose."""
        one_by_one = number * _slots_of_one(taker, each)
        on_nodes = sum(
            int(max(free.holds(each) - _slots_by_kinds_of(taker, self._fullest[node], each), 0))
            for node, free in self._free.items()
            if self._total[node].holds(taker)
        )
        return min(one_by_one, on_nodes)

    def _left_at_worst(self, node: str) -> Devices:
        """What is left of a node if of each size as many loose processes end up there as it could ever hold."""
        left, total = self._free[node], self._total[node]
        for each, number in self._loose.items():
            left = left.minus(each, min(number, total.holds(each)))
        return left


def _slots_of_one(taker: Devices, each: Devices) -> int:
    """The most slots of size `each` that one process can take: its parts of them, each kind rounded up."""
    parts = ((taker.gpus, each.gpus), (taker.cpus, each.cpus))
    return max((ceil(takes / of - ROUNDING) for takes, of in parts if takes and of), default=0)


def _slots_by_kinds_of(taker: Devices, left: Devices, each: Devices) -> float:
    """How many of size `each` the rest of a node holds, looking only at the kinds of devices that `taker` uses."""
    by_gpus, by_cpus = left.holds_by_kind(each)
    return min(by_gpus if taker.gpus else inf, by_cpus if taker.cpus else inf)
