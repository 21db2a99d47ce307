"""What is left on nodes if somebody else places processes: compared with trying all ways to place them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from adversary import Free, outcomes, placed, room, spot_of, spots
from hypothesis import event, given, settings
from hypothesis import strategies as st

from raygen.capacity import Devices, Node
from raygen.queue.placement import Board, Group

SIZES = st.builds(
    Devices, gpus=st.sampled_from([0, 0, 1 / 3, 0.4, 0.5, 1, 1, 2]), cpus=st.sampled_from([1, 1, 2, 3, 4])
)


def node(number: int, gpus: int = 0, cpus: int = 4) -> Node:
    return Node(id=f"id-{number}", name=f"node-{number}", gpus=gpus, cpus=cpus)


@st.composite
def node_lists(draw: st.DrawFn, fewest: int = 2) -> list[Node]:
    amounts = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=fewest, max_size=4))
    return [node(number, *amount) for number, amount in enumerate(amounts, 1)]


@st.composite
def groups_on(draw: st.DrawFn, nodes: Sequence[Node], most: int = 3) -> list[Group]:
    """Groups of which all, some or no processes have a node as far as there is room, or one that is gone."""
    free: Free = tuple(each.devices for each in nodes)
    groups = []
    for _ in range(draw(st.integers(0, most))):
        each, number = draw(SIZES), draw(st.integers(1, 3))
        spot = draw(st.sampled_from([*spots(free, each, draw(st.integers(0, number)))] or [(0,) * len(nodes)]))
        places = {where.id: times for where, times in zip(nodes, spot, strict=True) if times}
        if number > sum(spot) and draw(st.booleans()):
            places["gone"] = 1
        free = placed(free, each, spot)
        groups.append(Group(each, number, places))
    return groups


def loose(group: Group, nodes: Sequence[Node]) -> int:
    """How many processes have no node that there is."""
    return group.number - sum(spot_of(group, nodes))


def everything(nodes: Sequence[Node], groups: Sequence[Group]) -> set[Free]:
    """All that nodes may have left with these groups; loose processes have come, or have not come yet."""
    free: Free = tuple(each.devices for each in nodes)
    for group in groups:
        free = placed(free, group.each, spot_of(group, nodes))
    states = {free}
    for group in groups:
        states = {end for start in states for end in outcomes(start, group.each, loose(group, nodes))}
    return states


@settings(max_examples=500)
@given(st.data())
def test_certain_slots_are_there_wherever_loose_processes_end_up(data: st.DataObject) -> None:
    nodes = data.draw(node_lists())
    groups, each = data.draw(groups_on(nodes)), data.draw(SIZES)
    least = min(room(free, each) for free in everything(nodes, groups))
    certain = Board(nodes, groups).certain_slots(each)
    assert certain <= least
    event("exact" if max(certain, 0) == least else "pessimistic")


@settings(max_examples=100)
@given(st.data())
def test_what_processes_with_nodes_leave_is_exact(data: st.DataObject) -> None:
    nodes = data.draw(node_lists(fewest=1))
    drawn, each = data.draw(groups_on(nodes)), data.draw(SIZES)
    groups = [Group(group.each, sum(spot_of(group, nodes)), group.places) for group in drawn]
    [free] = everything(nodes, groups)
    board = Board(nodes, groups)
    assert board.certain_slots(each) == board.slots(each) == room(free, each)


@settings(max_examples=100)
@given(st.data())
def test_on_one_node_what_is_left_is_exact(data: st.DataObject) -> None:
    nodes = [node(1, data.draw(st.integers(0, 4)), data.draw(st.integers(0, 6)))]
    each, groups = data.draw(SIZES), []
    for group in data.draw(groups_on(nodes)):
        # Those that have come one after another are all that the node holds at once.
        if Board(nodes, groups).slots(group.each) >= group.number:
            groups.append(Group(group.each, group.number, {}))
    board = Board(nodes, groups)
    assert board.certain_slots(each) == board.slots(each)
    assert board.certain_slots(each) == min(room(free, each) for free in everything(nodes, groups))


@settings(max_examples=500)
@given(st.data())
def test_what_takes_nothing_never_takes_a_slot(data: st.DataObject) -> None:
    """Beside any of the others, wherever all of them and the taker's own processes are."""
    nodes = data.draw(node_lists(fewest=1))
    others, taker, each = data.draw(groups_on(nodes, most=2)), data.draw(SIZES), data.draw(SIZES)
    number = data.draw(st.integers(1, 3))
    harmless = Board(nodes, [*others, Group(taker, number)]).takes_nothing_from(taker, each)
    event(f"harmless: {harmless}")
    if not harmless:
        return
    for some in range(len(others) + 1):
        for subset in combinations(others, some):
            for free in everything(nodes, subset):
                assert {room(left, each) for left in outcomes(free, taker, number)} == {room(free, each)}


def test_a_process_without_gpus_takes_nothing_from_those_whose_nodes_have_cores_to_spare() -> None:
    nodes = [node(1, gpus=2, cpus=16), node(2, gpus=2, cpus=16)]
    trial, aside = Devices(1, 4), Devices(0, 4)
    assert Board(nodes, [Group(aside, 2)]).takes_nothing_from(aside, trial)
    assert not Board(nodes, [Group(aside, 3)]).takes_nothing_from(aside, trial)


def test_certain_slots_by_example() -> None:
    nodes = [node(1), node(2)]
    # Two processes of 2 cores may share a node, or have one each.
    board = Board(nodes, [Group(Devices(0, 2), 2)])
    assert board.slots(Devices(0, 4)) == 2
    assert board.certain_slots(Devices(0, 4)) == 0
    assert board.certain_slots(Devices(0, 2)) == 2
    known = Board(nodes, [Group(Devices(0, 2), 2, {"id-1": 2})])
    assert known.certain_slots(Devices(0, 4)) == 1


def test_a_board_joined_by_others_is_one_with_all_of_them() -> None:
    nodes = [node(1), node(2)]
    first, second = Group(Devices(0, 2), 1, {"id-1": 1}), Group(Devices(0, 3), 1)
    together = Board(nodes, [first, second])
    joined = Board(nodes, [first]).joined_by(second)
    for cpus in range(1, 5):
        assert joined.certain_slots(Devices(0, cpus)) == together.certain_slots(Devices(0, cpus))
    assert joined.free() == together.free() == Devices(0, 3)
