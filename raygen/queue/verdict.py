"""What becomes of a job whose attempt is over. Pure: what is known of it goes in, a verdict comes out."""

from __future__ import annotations

from dataclasses import dataclass

from raygen.queue.client import Submitted
from raygen.queue.job import Job, JobState, backoff_s, limit_in_words
from raygen.record.documents import Status
from raygen.record.reading import WITHOUT_A_WORD
from raygen.storage.reason import tells_full


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an attempt that is over.

    `status` is its own, "waiting" if it never began; `submitted` is None if the cluster does not know it; `ran_s` is
    how long it and those before it ran; `unplaced_s`, if it was ended for that, how long no node had room for it;
    `storage_was_away` tells that its storage was not there at all times.
    """

    status: Status
    submitted: Submitted | None
    ran_s: float = 0.0
    unplaced_s: float | None = None
    storage_was_away: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The job's next state, and what it counts from now on; a job that recovers waits for so many seconds."""

    to: JobState
    reason: str = ""
    losses: int
    restarts: int
    wait_s: float = 0.0


def judge(job: Job, facts: Facts) -> Verdict:
    """What becomes of a job."""
    status, cancelled = facts.status, job.cancelled_at is not None
    if status.state == "finished":
        return _ended(job, JobState.SUCCEEDED, "had finished when it was to be cancelled" if cancelled else "")
    if cancelled:
        return _ended(job, JobState.CANCELLED, "on request")
    if status.state == "failed" and status.cause != "lost":
        return _ended(job, JobState.FAILED, status.reason)
    if job.time_limit_s is not None and facts.ran_s >= job.time_limit_s:
        return _ended(job, JobState.CANCELLED, f"reached {time_limit(job)}")
    if facts.submitted is None:
        return _restarted(job, status)
    if facts.unplaced_s is not None:
        return _lost(job, f"no node had room for it for {facts.unplaced_s:.0f} s", counted=False)
    reason = _reason(status, facts.submitted.message)
    if is_for_want_of_room(status):
        return _lost(job, reason, counted=False)
    if facts.storage_was_away:
        return _lost(job, f"{reason}, and its storage was away", counted=False)
    return _lost(job, reason)


def is_for_want_of_room(status: Status) -> bool:
    """Whether an attempt was lost as its storage had no room left."""
    return status.state == "failed" and status.cause == "lost" and tells_full(status.reason)


def unreadable(job: Job, problem: str) -> Verdict:
    """What becomes of a job whose record nobody can read."""
    if job.cancelled_at is None:
        return _ended(job, JobState.FAILED, problem)
    return _ended(job, JobState.CANCELLED, f"on request; its run cannot be read: {problem}")


def _ended(job: Job, to: JobState, reason: str) -> Verdict:
    return Verdict(to=to, reason=reason, losses=job.losses, restarts=job.restarts)


def _restarted(job: Job, status: Status) -> Verdict:
    """Only a cluster that was restarted forgets what it was given; one that every attempt ends is ended by the job."""
    stopped_itself = status.state == "interrupted" and status.reason != WITHOUT_A_WORD
    if job.state is JobState.STARTING and status.state == "waiting":
        return _lost(job, "its storage went away before it could start", counted=False)
    restarts = job.restarts + (status.state != "waiting" and not stopped_itself)
    if restarts == job.restarts or restarts == 1:
        reason = "the cluster was restarted and does not know it"
        return _lost(job, reason, counted=False, restarts=restarts)
    return _lost(job, f"the cluster was restarted {restarts} times while it ran", restarts=restarts)


def _lost(job: Job, reason: str, *, counted: bool = True, restarts: int | None = None) -> Verdict:
    """Have a lost attempt followed by another, unless too many were lost."""
    losses = job.losses + counted
    restarts = job.restarts if restarts is None else restarts
    if losses > job.retries:
        times = f"{losses} time{'s' if losses > 1 else ''}"
        told = f"lost {times}, the last time because {reason}"
        return Verdict(to=JobState.FAILED, reason=told, losses=losses, restarts=restarts)
    wait_s = backoff_s(losses if counted else job.attempt)
    return Verdict(to=JobState.RECOVERING, reason=reason, losses=losses, restarts=restarts, wait_s=wait_s)


def _reason(status: Status, message: str) -> str:
    if status.state == "failed":
        return status.reason
    what = "it could not be started" if status.state == "waiting" else "its processes were ended"
    return f"{what} ({message})" if message else what


def time_limit(job: Job) -> str:
    """The job's time limit in words."""
    return f"its time limit of {limit_in_words(job.time_limit_s or 0.0)}"
