"""What a job in the queue is: its states, and which may follow which. Nothing here knows a database or Ray.

    queued ──► starting ──► running ──► succeeded | failed | cancelled
                   ▲            │
                   └─ recovering ◄  (its attempt was lost; the next one goes on from the last checkpoint)

A job is tried in attempts, numbered from 1. An attempt is fenced: the next one begins only when this one is known to
be over, and the number in the record keeps a late process of an earlier attempt from running.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from raygen.errors import SpecError


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING = (JobState.QUEUED, JobState.RECOVERING)
"""States in which a job holds no devices and waits for them."""

ACTIVE = (JobState.STARTING, JobState.RUNNING)
"""States in which a job holds its devices."""

UNFINISHED = (*WAITING, *ACTIVE)

ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.CANCELLED}),
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.RECOVERING, *ENDED}),
    JobState.RUNNING: frozenset({JobState.RECOVERING, *ENDED}),
    JobState.RECOVERING: frozenset({JobState.STARTING, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset({JobState.QUEUED}),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
"""The states that may follow each state; `raygen retry` leads back from failed and cancelled, `raygen tune
--extend` from succeeded."""

RETRIED = (JobState.FAILED, JobState.CANCELLED)
"""States in which a job may be tried again."""

EVERYBODY = ""
"""The user of a dispatcher that starts everybody's jobs."""

FIRST_BACKOFF_S = 5.0
LONGEST_BACKOFF_S = 300.0

NODE_TIMEOUT_S = 300.0
ON_DEMAND_NODE_TIMEOUT_S = 1800.0
"""Seconds that a job keeps its place while no node has room for it; a node on demand takes minutes to come."""


def backoff_s(losses: int) -> float:
    """Seconds to wait before the attempt that follows the `losses`-th loss in a row, doubling up to five minutes."""
    return float(min(FIRST_BACKOFF_S * 2 ** min(losses - 1, 10), LONGEST_BACKOFF_S))


def check_time_limit(limit_s: float | None) -> None:
    """Raise SpecError unless a job has some time to run, or no limit."""
    if limit_s is not None and not 0 < limit_s < math.inf:
        raise SpecError(f"a time limit of {limit_s:g} s leaves no time to run; write such as --time-limit 2h")


def limit_in_words(limit_s: float) -> str:
    """A time limit as people say it: 2 h, 1 h 30 min, 45 s."""
    minutes, rest_s = divmod(round(limit_s), 60)
    parts = ((minutes // 60, "h"), (minutes % 60, "min"), (rest_s, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asks of the queue: to run the job whose run is in `storage` under its name, on `cluster`.

    Each of its `processes` takes `gpus_each` and `cpus_each` of one node; with `fewest_processes` it can go on while
    the cluster has no room for all. The higher `priority` goes first; `retries` is how many lost attempts may be
    followed by another; `node_timeout_s` is how long it keeps its place while no node has room for any of its
    processes; an attempt that runs for `time_limit_s` beyond what earlier ones ran ends with its checkpoints.
    """

    name: str
    storage: str
    kind: str
    model: str
    data: str
    objective: str
    user: str
    cluster: str
    processes: int
    fewest_processes: int
    gpus_each: float
    cpus_each: int
    priority: int = 0
    retries: int = 2
    node_timeout_s: float | None = None
    time_limit_s: float | None = None

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
    processes wait for a node and none has one. `ran_s` is how long earlier attempts ran since it was last queued;
    `started_at` since when its current one holds its devices or, once it runs, has run without a break.
    """

    id: int
    token: str
    state: JobState
    reason: str
    attempt: int
    losses: int
    restarts: int
    owner: int | None
    submitted_at: float
    ended_at: float | None
    best_value: float | None
    not_before: float
    cancelled_at: float | None
    held_at: float | None
    started_at: float | None
    ran_s: float
    places: Mapping[str, int]
    pending: int
    unplaced_since: float | None

    @property
    def submission_id(self) -> str:
        """What its current attempt is called on the cluster, which other queues may use and which forgets nothing."""
        return f"{self.name}-{self.token}-{self.attempt}"

    @property
    def is_over(self) -> bool:
        """Whether its current attempt is over for the cluster, holds no devices, and is still to be judged."""
        return self.state in ACTIVE and self.started_at is None

    def runs_s(self, now: float) -> float:
        """Seconds that its current attempt has run at `now`, the database's time, without those without a node."""
        if self.state is not JobState.RUNNING or self.started_at is None:
            return 0.0
        until = now if self.unplaced_since is None else self.unplaced_since
        return max(until - self.started_at, 0.0)

    def time_left_s(self, now: float) -> float | None:
        """Seconds that it may still run at `now`, the database's time; None if it has no time limit."""
        if self.time_limit_s is None:
            return None
        return max(self.time_limit_s - self.ran_s - self.runs_s(now), 0.0)


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
    from_state: JobState | None
    to_state: JobState
    reason: str


def has_been(state: JobState, events: Sequence[Event]) -> bool:
    """Whether a job, of which these are the events, is in a state or was since it was last queued."""
    changes = [event for event in events if event.from_state != event.to_state]
    queued = max((place for place, event in enumerate(changes) if event.to_state is JobState.QUEUED), default=0)
    return any(event.to_state is state for event in changes[queued:])


@dataclass(frozen=True, kw_only=True)
class RegisteredDispatcher:
    """A dispatcher that has registered and not left; `away` tells what is wrong with storages, by their addresses."""

    id: int
    cluster: str
    host: str
    pid: int
    registered_at: float
    user: str
    process: str
    away: Mapping[str, str]
    is_alive: bool

    def serves(self, user: str) -> bool:
        """Whether it starts a user's jobs."""
        return self.user in (EVERYBODY, user)
