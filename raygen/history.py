"""What happened to a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raygen.queue.job import Attempt, Event, Job

if TYPE_CHECKING:
    from raygen.record.run import Run


@dataclass(frozen=True, kw_only=True)
class History:
    """A run, and what happened to its job if the queue knows it."""

    run: Run
    job: Job | None = None
    reason: str = ""
    events: Sequence[Event] = ()
    attempts: Sequence[Attempt] = ()
