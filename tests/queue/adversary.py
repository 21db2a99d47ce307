"""Somebody else who chooses the nodes of processes, as Ray does; tries all ways to do so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from raygen.capacity import Devices, Node
from raygen.queue.placement import Group

Free = tuple[Devices, ...]
"""What each node has left."""


def room(free: Iterable[Devices], each: Devices) -> int:
    """Processes of this size that find room."""
    return sum(node.holds(each) for node in free)


def placed(free: Free, each: Devices, spot: Sequence[int]) -> Free:
    """What is left if so many processes have each node."""
    return tuple(node.minus(each, times) if times else node for node, times in zip(free, spot, strict=True))


def spots(free: Free, each: Devices, number: int) -> Iterator[tuple[int, ...]]:
    """All ways in which so many processes of one size find room: how many have each node."""
    if not free:
        if number == 0:
            yield ()
        return
    first, rest = free[0], free[1:]
    for here in range(min(first.holds(each), number) + 1):
        for others in spots(rest, each, number - here):
            yield here, *others


def spot_of(group: Group, nodes: Sequence[Node]) -> tuple[int, ...]:
    """How many of a group's processes are known to have each node."""
    return tuple(group.places.get(node.id, 0) for node in nodes)


def outcomes(free: Free, each: Devices, most: int) -> set[Free]:
    """All that the nodes may have left if up to so many processes of one size come."""
    return {placed(free, each, spot) for number in range(most + 1) for spot in spots(free, each, number)}
