"""What a job in the queue is: its states, and which may follow which. Nothing here knows a database or Ray.

    queued ──► starting ──► running ──► succeeded | failed | cancelled
                   ▲            │
                   └─ recovering ◄  (its attempt was lost; the next one goes on from the last checkpoint)

A job is tried in attempts, numbered from 1. An attempt is fenced: the next one begins only when this one is known to
be over, and the number in the run folder keeps a late process of an earlier attempt from running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING = (State.QUEUED, State.RECOVERING)
"""States in which a job holds no devices and waits for them."""

ACTIVE = (State.STARTING, State.RUNNING)
"""States in which a job holds its devices."""

ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.CANCELLED}),
    State.STARTING: frozenset({State.RUNNING, State.RECOVERING, *ENDED}),
    State.RUNNING: frozenset({State.RECOVERING, *ENDED}),
    State.RECOVERING: frozenset({State.STARTING, State.CANCELLED}),
    State.SUCCEEDED: frozenset({State.QUEUED}),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}
"""The states that may follow each state; `raygen retry` leads back from failed and cancelled, `raygen tune
--extend` from succeeded."""

RETRIED = (State.FAILED, State.CANCELLED)
"""States in which a job may be tried again."""

FIRST_BACKOFF_S = 5.0
LONGEST_BACKOFF_S = 300.0

NODE_TIMEOUT_S = 300.0
ON_DEMAND_NODE_TIMEOUT_S = 1800.0
"""Seconds that a job keeps its place while no node has room for it; a node on demand takes minutes to come."""


def backoff_s(losses: int) -> float:
    """Seconds to wait before the attempt that follows the `losses`-th loss in a row, doubling up to five minutes."""
    return float(min(FIRST_BACKOFF_S * 2 ** (losses - 1), LONGEST_BACKOFF_S))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asks of the queue: to run the job in `folder` on `cluster` in so many processes.

    Each process takes `gpus_each` and `cpus_each` of one node; with `fewest_processes` the job can go on while the
    cluster has no room for all. The higher `priority` goes first; `retries` is how many lost attempts may be followed
    by another; `node_timeout_s` is how long it keeps its place while no node has room for any of its processes.
    """

    name: str
    folder: str
    kind: str
    model: str
    data: str
    user: str
    cluster: str
    processes: int
    fewest_processes: int
    gpus_each: float
    cpus_each: int
    priority: int = 0
    retries: int = 2
    node_timeout_s: float | None = None

    @property
    def gpus(self) -> float:
        """GPUs of all its processes."""
        return self.processes * self.gpus_each

    @property
    def cpus(self) -> int:
        """CPU cores of all its processes."""
        return self.processes * self.cpus_each


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a job's processes are: how many have which node (by its id), and how many wait for one."""

    places: Mapping[str, int]
    pending: int


@dataclass(frozen=True, kw_only=True)
class Job(Request):
    """A job as the queue has it; times are seconds since 1970.

    `places` and `pending` are those of its Placement, as last seen; `unplaced_since` says since when some of its
    processes wait for a node and none has one.
    """

    id: int
    token: str
    state: State
    reason: str
    attempt: int
    losses: int
    owner: int | None
    submitted_at: float
    ended_at: float | None
    not_before: float
    cancelled_at: float | None
    places: Mapping[str, int]
    pending: int
    unplaced_since: float | None

    @property
    def submission_id(self) -> str:
        """What its current attempt is called on the cluster, which other queues may use and which forgets nothing."""
        return f"{self.name}-{self.token}-{self.attempt}"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a job."""

    number: int
    submission_id: str
    started_at: float
    ended_at: float | None
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """One change of a job's state, or something else worth knowing (then both states are the same)."""

    at: float
    from_state: State | None
    to_state: State
    reason: str
