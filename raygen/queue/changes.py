"""Which states of a job allow what people ask for.

They are looked at before the first of several jobs is touched, and again in the transaction that changes each.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from raygen.errors import JobError
from raygen.queue.job import ENDED, RETRIED, UNFINISHED, WAITING, Job, JobState

Change = Literal["cancel", "rank", "hold", "release", "retry", "extend", "remove"]

HAS_ENDED = "{name} has ended already: {state}"

RULES: dict[Change, tuple[tuple[JobState, ...], str]] = {
    "cancel": (UNFINISHED, HAS_ENDED),
    "rank": (UNFINISHED, HAS_ENDED),
    "hold": (WAITING, "{name} is {state}; only a waiting job can be held"),
    "release": (UNFINISHED, HAS_ENDED),
    "retry": (RETRIED, "{name} is {state}; only a failed or cancelled job can be tried again"),
    "extend": ((JobState.SUCCEEDED,), "{name} is {state}; only a job that has succeeded can be extended"),
    "remove": (ENDED, "{name} is {state}; `raygen cancel {name}` ends it first"),
}
"""For each change the states that allow it, and what is said of a job in another one."""


def check(job: Job, change: Change, among: Collection[JobState] = tuple(JobState)) -> None:
    """Raise JobError unless the job's state allows the change, and is among those that were meant."""
    states, refusal = RULES[change]
    if job.state not in states:
        raise JobError(refusal.format(name=job.name, state=job.state))
    if job.state not in among:
        raise JobError(f"{job.name} is {job.state} by now and was left alone")


def check_unchanged(seen: Job, now: Job) -> None:
    """Raise JobError if a job has gone on since it was seen: what was meant by its state then is not what it is."""
    if (seen.state, seen.attempt, seen.ended_at) != (now.state, now.attempt, now.ended_at):
        raise JobError(f"{now.name} was {seen.state} and is {now.state} by now; it was left alone")
