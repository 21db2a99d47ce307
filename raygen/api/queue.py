"""Jobs in the queue from Python: listed, cancelled, held, tried again and removed as the commands do it.

Jobs are meant by their whole names, or by what they have in common. All are checked before the first is touched; what
is another user's needs `force`. Each function that changes jobs returns their names, and raises JobError or SpecError
if something else was meant, StorageError or QueueError if it cannot be done. What fails for one of several is done to
the others all the same, and PartlyDoneError is raised then, which tells both.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from raygen import holds, machine, selection
from raygen.queue.job import UNFINISHED, Job, JobState
from raygen.site import Site


def jobs(
    *, states: Collection[JobState | str] = (), mine: bool = False, storage: str | Path | None = None
) -> list[Job]:
    """The jobs in the queue, the newest first; raises ValueError if a state is none."""
    return list(Site(storage).jobs(states=_states(states), user=machine.user() if mine else None))


def cancel(
    *names: str,
    states: Collection[JobState | str] = (),
    mine: bool = False,
    force: bool = False,
    storage: str | Path | None = None,
) -> list[str]:
    """End jobs; what they trained is kept."""
    selection.check_one_way(names, {"mine": mine, "states": states or None})
    site, among = Site(storage), _states(states)
    found = (
        selection.named(site, names, "cancel", force=force)
        if names
        else selection.alike(site, "cancel", states=among, mine=mine, force=force)
    )
    return selection.each(found, lambda job: site.cancel(job, among=among or UNFINISHED))


def retry(*names: str, force: bool = False, storage: str | Path | None = None) -> list[str]:
    """Queue failed or cancelled jobs again; they go on from their checkpoints."""
    selection.check_one_way(names, {})
    site = Site(storage)
    return selection.each(selection.named(site, names, "retry", force=force), site.retry)


def hold(
    *names: str,
    whole: bool = False,
    force: bool = False,
    storage: str | Path | None = None,
    address: str | None = None,
) -> list[str]:
    """Keep waiting jobs from being started, or with `whole` all that go to a cluster; what runs goes on."""
    selection.check_one_way(names, {"whole": whole})
    site = Site(storage, address)
    if whole:
        holds.hold_queue(site, force=force)
    return selection.each(selection.named(site, names, "hold", force=force), site.hold)


def release(
    *names: str,
    whole: bool = False,
    force: bool = False,
    storage: str | Path | None = None,
    address: str | None = None,
) -> list[str]:
    """Let jobs that were held start again, or with `whole` all that go to a cluster and are not held by name."""
    selection.check_one_way(names, {"whole": whole})
    site = Site(storage, address)
    if whole:
        holds.release_queue(site, force=force)
    return selection.each(selection.named(site, names, "release", force=force), site.release)


def remove(
    *names: str,
    states: Collection[JobState | str] = (),
    mine: bool = False,
    older_than_s: float | None = None,
    keep_best: bool = False,
    force: bool = False,
    storage: str | Path | None = None,
) -> list[str]:
    """Forget jobs that have ended and remove their runs, or runs without a job.

    With `keep_best` but for the best of each model, data and objective of each user.
    """
    ways = {"mine": mine, "states": states or None, "older_than_s": older_than_s}
    selection.check_one_way(names, ways, {"keep_best": keep_best})
    site = Site(storage)
    found = (
        selection.removable(site, names, force=force)
        if names
        else selection.removable_alike(
            site, states=_states(states), mine=mine, older_than_s=older_than_s, keep_best=keep_best, force=force
        )
    )
    return selection.each(found, lambda each: selection.remove(site, each))


def _states(states: Collection[JobState | str]) -> list[JobState]:
    return [JobState(state) for state in states]
