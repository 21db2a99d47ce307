"""What a cluster has, node by node: a process works on one node, so sums over nodes say little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 1e-6
"""Shares of a GPU are fractions: three thirds must fit into one."""

LOST_FOR_S = 3600.0
"""Seconds for which a lost node is remembered: it may come back, and people want to know of it."""


@dataclass(frozen=True, order=True)
class Devices:
    """An amount of devices on one node; `gpus` below 1 is a share of one GPU."""

    gpus: float
    cpus: float

    def __str__(self) -> str:
        cores = count(self.cpus, "CPU core")
        return f"{count(self.gpus, 'GPU')} and {cores}" if self.gpus else cores

    def minus(self, each: Devices, times: float = 1) -> Devices:
        """What is left; less than nothing if a node has shrunk under what runs there."""
        return Devices(self.gpus - times * each.gpus, self.cpus - times * each.cpus)

    def holds(self, each: Devices) -> int:
        """How many processes of this size find room; trials that share a GPU never reach over to the next."""
        room = min(self.holds_by_kind(each))
        assert room != float("inf"), "a process takes something"
        return int(room)

    def holds_by_kind(self, each: Devices) -> tuple[float, float]:
        """How many processes there are GPUs and CPU cores for; infinitely many if they take none of a kind."""
        gpus = _quotient(self.gpus, _whole_share(each.gpus))
        return gpus, _quotient(self.cpus, each.cpus)


def _whole_share(gpus: float) -> float:
    """A share of a GPU with what nobody else can use of that GPU: 0.4 leaves room for one more only."""
    return 1 / int(1 / gpus + ROUNDING) if 0 < gpus < 1 else gpus


def _quotient(amount: float, each: float) -> float:
    return max(int(amount / each + ROUNDING), 0) if each else float("inf")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of a cluster; `name` is what people call it, `id` what Ray does."""

    id: str
    name: str
    gpus: int
    cpus: int

    @property
    def devices(self) -> Devices:
        """All that it has."""
        return Devices(self.gpus, self.cpus)

    def __str__(self) -> str:
        return f"{self.name} ({self.id[:6]})"


@dataclass(frozen=True, kw_only=True)
class LostNode(Node):
    """A node that went without being told to; `lost_at` in seconds since 1970."""

    lost_at: float
    problem: str


@dataclass(frozen=True, kw_only=True)
class OnDemand:
    """Nodes that an autoscaler adds when somebody waits for them: `most` at a time, with these devices each."""

    most: int
    gpus: int
    cpus: int

    def __str__(self) -> str:
        return f"up to {count(self.most, 'node')} with {Devices(self.gpus, self.cpus)} each"


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """A cluster's nodes that are alive, those it lost lately, and those that may still come."""

    nodes: tuple[Node, ...]
    where: str
    lost: tuple[LostNode, ...] = ()
    on_demand: OnDemand | None = None

    @classmethod
    def of_machine(cls, *, gpus: int, cpus: int, where: str) -> Capacity:
        """What a single machine has."""
        return cls(nodes=(Node(id="0", name=where, gpus=gpus, cpus=cpus),), where=where)

    @property
    def to_come(self) -> tuple[Node, ...]:
        """The nodes that an autoscaler may still add; those with the declared devices have come already."""
        if self.on_demand is None:
            return ()
        wanted = self.on_demand
        come = sum((node.gpus, node.cpus) == (wanted.gpus, wanted.cpus) for node in self.nodes)
        return tuple(
            Node(id=f"+{number}", name="a node to come", gpus=wanted.gpus, cpus=wanted.cpus)
            for number in range(1, wanted.most - come + 1)
        )

    @property
    def possible(self) -> tuple[Node, ...]:
        """The nodes that a job may be planned for."""
        return self.nodes + self.to_come

    @property
    def gpus(self) -> int:
        """GPUs of all possible nodes."""
        return sum(node.gpus for node in self.possible)

    @property
    def cpus(self) -> int:
        """CPU cores of all possible nodes."""
        return sum(node.cpus for node in self.possible)

    @property
    def largest(self) -> Node | None:
        """The node with the most CPU cores, of those with the most GPUs."""
        return max(self.possible, key=lambda node: (node.gpus, node.cpus), default=None)

    def holds(self, each: Devices) -> int:
        """How many processes of this size the empty cluster holds: a sum over nodes, not of nodes."""
        return sum(node.devices.holds(each) for node in self.possible)

    def before_losses(self) -> Capacity:
        """The same cluster as if the nodes that it lost lately were back."""
        return Capacity(nodes=self.nodes + self.lost, where=self.where, on_demand=self.on_demand)

    def __str__(self) -> str:
        total = f"{self.where} {'may have' if self.to_come else 'has'} {_in_words(self.possible)}"
        if len(self.possible) < 2 or self.largest is None:
            return total
        return f"{total} on {len(self.possible)} nodes, the largest with {_in_words([self.largest])}"


def _in_words(nodes: Sequence[Node]) -> str:
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    return f"{count(gpus, 'GPU')} and {count(cpus, 'CPU core')}"


def count(number: float, noun: str) -> str:
    """A number of things in words: 1 GPU, 2 GPUs, 0.5 GPU."""
    return f"{number:g} {noun}{'' if 0 < number <= 1 else 's'}"
