"""Holding the whole queue, before maintenance, say: no job starts until it is released, and what runs goes on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raygen import machine, selection
from raygen.errors import JobError
from raygen.queue.job import UNFINISHED, WAITING, Job, JobState
from raygen.site import Site


def hold_queue(site: Site, *, force: bool = False) -> None:
    """Start no job any more where the site's jobs go, nor those that are still to come.

    Raises JobError if there is no queue, and unless forced if other users' jobs wait or run there, or one holds it.
    """
    _check_made(site, "hold")
    selection.check_own(_jobs(site, UNFINISHED), force=force)
    site.store.hold_cluster(site.service.cluster, machine.user(), force=force)


def release_queue(site: Site, *, force: bool = False) -> Sequence[Job]:
    """Let jobs start again; returns those that are still held themselves.

    Raises JobError if there is no queue, or if another user holds it, unless forced.
    """
    _check_made(site, "release")
    site.store.release_cluster(site.service.cluster, machine.user(), force=force)
    return [job for job in _jobs(site, WAITING) if job.held_at is not None]


def _check_made(site: Site, change: str) -> None:
    """Raise JobError if there is no queue: what lies on a disk that is not mounted would be made a second time."""
    if not site.store.is_made:
        raise JobError(f"there is no queue to {change} in {site.address}; is its disk mounted?")


def _jobs(site: Site, states: Collection[JobState]) -> Sequence[Job]:
    return [job for job in site.jobs(states=states) if job.cluster == site.service.cluster]
