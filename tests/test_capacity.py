"""What nodes hold, what a cluster may still get, and how both are told."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygen.capacity import Capacity, Devices, LostNode, Node, OnDemand, count


def cluster(*nodes: tuple[int, int], on_demand: OnDemand | None = None, lost: tuple[LostNode, ...] = ()) -> Capacity:
    alive = [Node(id=f"id-{number}", name=f"n{number}", gpus=g, cpus=c) for number, (g, c) in enumerate(nodes, 1)]
    return Capacity(nodes=tuple(alive), where="the cluster", on_demand=on_demand, lost=lost)


@pytest.mark.parametrize(
    ("node", "each", "number"),
    [
        (Devices(8, 64), Devices(1, 8), 8),
        (Devices(8, 64), Devices(1, 9), 7),
        (Devices(8, 64), Devices(0, 8), 8),
        (Devices(8, 64), Devices(2, 1), 4),
        (Devices(0, 64), Devices(1, 1), 0),
        (Devices(1, 8), Devices(1 / 3, 1), 3),
        (Devices(1, 2), Devices(1 / 3, 1), 2),
        (Devices(1, 100), Devices(0.1, 1), 10),
        (Devices(1, 100), Devices(1 / 49, 1), 49),
        # Trials that share a GPU never reach over to the next.
        (Devices(2, 8), Devices(0.4, 1), 4),
        (Devices(2, 8), Devices(0.75, 1), 2),
        (Devices(3, 8), Devices(0.5, 1), 6),
        # What is left beside shares.
        (Devices(1, 8).minus(Devices(1 / 3, 1), 2), Devices(1 / 3, 1), 1),
        (Devices(1, 8).minus(Devices(1 / 3, 1), 3), Devices(1 / 3, 1), 0),
        (Devices(1, 8).minus(Devices(0.5, 1)), Devices(1, 1), 0),
        (Devices(1, 8).minus(Devices(0.5, 1)), Devices(0.4, 1), 1),
        # Less than nothing of one kind.
        (Devices(-2, 8), Devices(1, 1), 0),
        (Devices(-2, 8), Devices(0, 1), 8),
    ],
)
def test_how_many_processes_a_node_holds(node: Devices, each: Devices, number: int) -> None:
    assert node.holds(each) == number


@given(st.integers(0, 16), st.integers(1, 40), st.integers(0, 200), st.integers(1, 9))
def test_so_many_shares_of_gpus_as_trials_that_each_stay_on_one(gpus: int, part: int, cpus: int, each: int) -> None:
    by_gpus = gpus * floor(1 / Fraction(1, part))
    assert Devices(gpus, cpus).holds(Devices(1 / part, each)) == min(by_gpus, cpus // each)


def test_a_cluster_holds_the_sum_over_nodes_not_of_nodes() -> None:
    assert cluster(*[(0, 4)] * 4).holds(Devices(0, 4)) == 4
    assert cluster(*[(0, 4)] * 4).holds(Devices(0, 3)) == 4
    assert cluster(*[(0, 4)] * 4).holds(Devices(0, 16)) == 0
    assert cluster((0, 32), (8, 64), (8, 64)).holds(Devices(1, 8)) == 16
    assert cluster((8, 0), (0, 64)).holds(Devices(1, 1)) == 0
    assert cluster().holds(Devices(0, 1)) == 0


def test_nodes_to_come_are_those_that_have_not_come() -> None:
    declared = OnDemand(most=3, gpus=8, cpus=64)
    assert cluster((0, 2)).to_come == ()
    for come in range(5):
        growing = cluster((0, 2), *[(8, 64)] * come, on_demand=declared)
        assert len(growing.to_come) == max(3 - come, 0)
        assert growing.possible == growing.nodes + growing.to_come
        assert growing.holds(Devices(1, 8)) == 8 * max(3, come)
        assert (growing.gpus, growing.cpus) == (8 * max(3, come), 64 * max(3, come) + 2)
        assert len({node.id for node in growing.possible}) == len(growing.possible)


def test_the_largest_node_is_one_with_the_most_gpus() -> None:
    largest = cluster((0, 128), (4, 16), (4, 32), (1, 64)).largest
    assert largest is not None
    assert (largest.gpus, largest.cpus) == (4, 32)
    to_come = cluster((0, 128), on_demand=OnDemand(most=1, gpus=1, cpus=8)).largest
    assert to_come is not None
    assert to_come.name == "a node to come"
    assert cluster().largest is None


def test_before_losses_the_lost_nodes_are_there() -> None:
    gone = LostNode(id="id-9", name="n9", gpus=8, cpus=64, lost_at=1.0, problem="")
    declared = OnDemand(most=2, gpus=1, cpus=8)
    shrunk = cluster((0, 4), lost=(gone,), on_demand=declared)
    assert (shrunk.gpus, shrunk.cpus) == (2, 20)
    before = shrunk.before_losses()
    assert (before.gpus, before.cpus) == (10, 84)
    assert before.holds(Devices(4, 1)) == 2
    assert before.lost == ()


@pytest.mark.parametrize(
    ("capacity", "words"),
    [
        (cluster(), "the cluster has 0 GPUs and 0 CPU cores"),
        (cluster((1, 1)), "the cluster has 1 GPU and 1 CPU core"),
        (
            cluster((0, 32), (8, 64), (8, 64)),
            "the cluster has 16 GPUs and 160 CPU cores on 3 nodes, the largest with 8 GPUs and 64 CPU cores",
        ),
        (Capacity.of_machine(gpus=2, cpus=8, where="this machine"), "this machine has 2 GPUs and 8 CPU cores"),
        (OnDemand(most=2, gpus=8, cpus=64), "up to 2 nodes with 8 GPUs and 64 CPU cores each"),
        (OnDemand(most=1, gpus=0, cpus=4), "up to 1 node with 4 CPU cores each"),
        (Node(id="0123456789", name="10.0.0.1", gpus=0, cpus=1), "10.0.0.1 (012345)"),
        (Devices(0.5, 2), "0.5 GPU and 2 CPU cores"),
        (Devices(0, 1), "1 CPU core"),
    ],
)
def test_in_words(capacity: object, words: str) -> None:
    assert str(capacity) == words


def test_counts_in_words() -> None:
    assert [count(number, "GPU") for number in (0, 0.25, 1, 2)] == ["0 GPUs", "0.25 GPU", "1 GPU", "2 GPUs"]
