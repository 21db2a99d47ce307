"""Which jobs and runs a command means that changes them: all of them are checked before the first is touched.

They are named by their whole names, or by what they have in common. Another user's are left alone unless forced.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from raygen import machine
from raygen.errors import JobError, KeptRunWarning, PartlyDoneError, RaygenError, RunError, SpecError, StorageError
from raygen.queue import changes
from raygen.queue.changes import Change
from raygen.queue.job import ENDED, Job, JobState
from raygen.record.run import Run
from raygen.site import Site


@dataclass(frozen=True)
class Removable:
    """A run to be removed, with its job unless the queue knows of none."""

    run: Run
    job: Job | None = None

    @property
    def name(self) -> str:
        """What both are called."""
        return self.run.name

    @cached_property
    def size_bytes(self) -> int | None:
        """What it takes; None if that cannot be read."""
        try:
            return self.run.size_bytes()
        except StorageError:
            return None


Named = TypeVar("Named", Job, Removable)


def check_one_way(
    names: Collection[str] | None, ways: Mapping[str, object], beside: Mapping[str, object] | None = None
) -> None:
    """Raise SpecError unless jobs are either named, or chosen by some of `ways`, beside which more may be typed.

    Neither None nor False is given.
    """
    given = [
        option for option, value in {**ways, **(beside or {})}.items() if value is not None and value is not False
    ]
    if wrong := [name for name in names or () if not isinstance(name, str)]:
        raise SpecError(f"{wrong[0]!r} is no job's name; write each name as a text of its own")
    if names and given:
        raise SpecError(f"{', '.join(given)} chooses jobs by itself; leave out {', '.join(names)}")
    if not names and not set(ways) & set(given):
        *first, last = ways or [""]
        others = f", or type {', '.join(first)}{' or ' if first else ''}{last}" if last else ""
        raise SpecError(f"name jobs{others}")


def each(found: Sequence[Named], change: Callable[[Named], object]) -> list[str]:
    """Do it to each job or run, whether or not it fails for another one; returns their names.

    Raises what it failed with if only one was meant, and else PartlyDoneError.
    """
    done: list[str] = []
    failures: list[RaygenError] = []
    for one in found:
        try:
            change(one)
        except RaygenError as error:
            failures.append(error)
        else:
            done.append(one.name)
    if failures and len(found) == 1:
        raise failures[0]
    if failures:
        raise PartlyDoneError(done, failures)
    return done


def named(site: Site, names: Iterable[str], change: Change, *, force: bool = False) -> list[Job]:
    """The jobs of exactly these names, each once.

    Raises JobError if there is none of a name, if one cannot be changed so, or is another user's without `force`.
    """
    found = [site.store.named(name) for name in dict.fromkeys(names)]
    for job in found:
        changes.check(job, change)
    check_own(found, force=force)
    return found


def alike(
    site: Site,
    change: Change,
    *,
    states: Collection[JobState] = (),
    mine: bool = False,
    older_than_s: float | None = None,
    force: bool = False,
) -> list[Job]:
    """The jobs that can be changed so and are in one of `states`, mine, or ended so long ago, the newest first.

    Raises JobError if a state allows no such change, or if some are another user's without `force`, and SpecError if
    the age is none.
    """
    if older_than_s is not None and not 0 <= older_than_s < math.inf:
        raise SpecError(f"{older_than_s:g} s is no age; give 0 s or more")
    allowed, _ = changes.RULES[change]
    if wrong := [state for state in states if state not in allowed]:
        raise JobError(f"--state {wrong[0]}: only jobs that are {' or '.join(allowed)} are meant here")
    user = machine.user() if mine else None
    found = site.store.list(states=states or allowed, user=user, ended_s_ago=older_than_s)
    check_own(found, force=force, hint="--mine leaves them out, ")
    return list(found)


def removable(site: Site, names: Iterable[str], *, force: bool = False) -> list[Removable]:
    """The runs of exactly these names, each once, with their jobs if the queue has them.

    Raises JobError as `named` does, and RunError if the process of a run without a job is at work, or another user
    has made it, without `force`.
    """
    found = [_job_or_run(site, name, force=force) for name in dict.fromkeys(names)]
    jobs = [each for each in found if isinstance(each, Job)]
    for job in jobs:
        changes.check(job, "remove")
    check_own(jobs, force=force)
    return [_removable(site, each) for each in found]


def removable_alike(
    site: Site,
    *,
    states: Collection[JobState] = (),
    mine: bool = False,
    older_than_s: float | None = None,
    keep_best: bool = False,
    force: bool = False,
) -> list[Removable]:
    """The runs of all jobs that have ended and are `alike`; with `keep_best` without the best of each kind.

    Of each kind are one user's jobs of one model, on one data set with the same options, for one objective. The best
    is that of all that have ended, so an older one is not kept if a younger one is better. One that cannot be
    compared, as its run cannot be read, is kept with a KeptRunWarning.
    """
    found = alike(site, "remove", states=states, mine=mine, older_than_s=older_than_s, force=force)
    kept = _best(site, found) if keep_best else set()
    return [_removable(site, job) for job in found if job.id not in kept]


def remove(site: Site, found: Removable) -> None:
    """Forget the job, if there is one, and remove the run; raises JobError if the job has not ended."""
    if found.job is None:
        found.run.remove()
    else:
        site.remove(found.job)


def _job_or_run(site: Site, name: str, *, force: bool) -> Job | Run:
    try:
        return site.store.named(name)
    except JobError:
        run = Run.named(name, site.storage)
        if run is None:
            raise
    if not force:
        _check_idle_and_own(run)
    return run


def _check_idle_and_own(run: Run) -> None:
    """Raise RunError if a run that no job of the queue is for may be in use."""
    uid = run.owner_uid()
    if uid is not None and uid != os.getuid():
        raise RunError(f"{run.name} is {machine.user_of(uid)}'s run; --force reaches others' runs, too")
    try:
        is_at_work = run.look().status.state == "running"
    except RunError:  # a damaged one is removed, too
        return
    if is_at_work:
        raise RunError(f"{run.name} seems to be at work for another queue; --force reaches it all the same")


def check_own(found: Sequence[Job], *, force: bool, hint: str = "") -> None:
    """Raise JobError if some jobs are another user's, unless that is meant; `hint` says how else to go on."""
    me = machine.user()
    others = [job for job in found if job.user != me]
    if others and not force:
        more = f", and {len(others) - 1} more of these are others'" if len(others) > 1 else ""
        raise JobError(f"{others[0].name} is {others[0].user}'s job{more}; {hint}--force reaches others' jobs, too")


def _removable(site: Site, found: Job | Run) -> Removable:
    return Removable(found) if isinstance(found, Run) else Removable(site.run_of(found), found)


def _best(site: Site, found: Sequence[Job]) -> set[int]:
    """The ids of the best jobs of all kinds that some of these are of."""
    concerned = {_kind(job) for job in found}
    kinds: dict[tuple[str, ...], list[tuple[float, int]]] = {}
    kept = set()
    for job in site.jobs(states=ENDED):
        if job.best_value is None or _kind(job) not in concerned:
            continue
        try:
            view = site.run_of(job).look()
        except RunError as error:
            kept.add(job.id)
            told = f"{job.name} is kept, as it may be the best of its kind: {error}"
            warnings.warn(told, KeptRunWarning, stacklevel=2)
            continue
        data = json.dumps(view.spec_json["data"], sort_keys=True)
        sign = -1 if view.direction == "max" else 1
        kinds.setdefault((*_kind(job), data), []).append((sign * job.best_value, job.id))
    return kept | {min(values)[1] for values in kinds.values()}


def _kind(job: Job) -> tuple[str, ...]:
    """What of its kind the queue knows."""
    return job.user, job.model, job.data, job.objective
