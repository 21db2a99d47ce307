"""Commands that change jobs: `cancel`, `retry`, `priority`, `hold`, `release`, `rm`. They take whole names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich import filesize

from cli import console, options, render
from raygen import holds, machine, selection
from raygen.errors import PartlyDoneError, SpecError
from raygen.queue.job import UNFINISHED, Job, JobState
from raygen.queue.places import typed
from raygen.selection import Removable
from raygen.site import Site

NewPriority = Annotated[
    int, typer.Argument(metavar="PRIORITY", min=-1_000_000, max=1_000_000, help="The higher goes first.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
All = Annotated[bool, typer.Option("--all", help="The whole queue, and what is still to come.")]
OlderThan = Annotated[str | None, typer.Option(metavar="AGE", help="Only jobs that ended so long ago, such as 30d.")]
KeepBest = Annotated[
    bool, typer.Option("--keep-best", help="But not the best of each model, data and objective of each user.")
]


def cancel(
    jobs: options.WholeNames = None,
    state: options.States = None,
    mine: options.Mine = False,
    yes: Yes = False,
    force: options.Force = False,
    storage: options.Storage = None,
) -> None:
    """End jobs; what they trained is kept."""
    selection.check_one_way(jobs, {"--mine": mine, "--state": state})
    site, states = Site(storage), options.states(state) or UNFINISHED
    if jobs:
        found = selection.named(site, jobs, "cancel", force=force)
    else:
        found = selection.alike(site, "cancel", states=states, mine=mine, force=force)
        if not yes:
            _agree("cancel", _jobs(len(found)), {job.name: _state(job) for job in found})

    def change(job: Job) -> str:
        ended = site.cancel(job, among=states).state is JobState.CANCELLED
        return f"{job.name} {'cancelled' if ended else 'is being cancelled: it writes its checkpoints first'}"

    _each(found, change)


def retry(job: options.WholeName, force: options.Force = False, storage: options.Storage = None) -> None:
    """Queue a failed or cancelled job again; it goes on from its checkpoints."""
    site = Site(storage)
    [found] = selection.named(site, [job], "retry", force=force)
    queued = site.retry(found)
    console.say(f"{queued.name} queued; `raygen watch {queued.name}` follows it")


def priority(
    job: options.WholeName, value: NewPriority, force: options.Force = False, storage: options.Storage = None
) -> None:
    """Change a job's place in the queue."""
    site = Site(storage)
    [found] = selection.named(site, [job], "rank", force=force)
    changed = site.set_priority(found, value)
    console.say(f"{changed.name} has priority {changed.priority}")


def hold(
    jobs: options.WholeNames = None,
    whole: All = False,
    force: options.Force = False,
    storage: options.Storage = None,
    address: options.Address = None,
) -> None:
    """Keep waiting jobs, or the whole queue, from being started; what runs goes on."""
    selection.check_one_way(jobs, {"--all": whole})
    site = Site(storage, address)
    if whole:
        holds.hold_queue(site, force=force)
        again = typed("raygen release --all", site.service.cluster)
        console.say(f"nothing starts on {site.place} any more until {again}; what runs goes on")
        return

    def change(job: Job) -> str:
        site.hold(job)
        return f"{job.name} is held; `raygen release {job.name}` lets it start"

    _each(selection.named(site, jobs or (), "hold", force=force), change)


def release(
    jobs: options.WholeNames = None,
    whole: All = False,
    force: options.Force = False,
    storage: options.Storage = None,
    address: options.Address = None,
) -> None:
    """Let jobs that were held, or the whole queue, start again."""
    selection.check_one_way(jobs, {"--all": whole})
    site = Site(storage, address)
    if whole:
        still = holds.release_queue(site, force=force)
        console.say(f"jobs start on {site.place} again")
        if still:
            are = "is" if len(still) == 1 else "are"
            console.say(f"{_jobs(len(still))} {are} still held by name: {', '.join(job.name for job in still)}")
        return

    def change(job: Job) -> str:
        site.release(job)
        return f"{job.name} was not held" if job.held_at is None else f"{job.name} may start"

    _each(selection.named(site, jobs or (), "release", force=force), change)


def remove(
    jobs: options.WholeNames = None,
    state: options.States = None,
    mine: options.Mine = False,
    older_than: OlderThan = None,
    keep_best: KeepBest = False,
    yes: Yes = False,
    force: options.RemoveForce = False,
    storage: options.Storage = None,
) -> None:
    """Forget jobs that have ended and remove their runs, or runs without a job."""
    ways = {"--mine": mine, "--state": state, "--older-than": older_than}
    selection.check_one_way(jobs, ways, {"--keep-best": keep_best})
    site = Site(storage)
    if jobs:
        found = selection.removable(site, jobs, force=force)
    else:
        found = selection.removable_alike(
            site,
            states=options.states(state),
            mine=mine,
            older_than_s=options.seconds("--older-than", older_than),
            keep_best=keep_best,
            force=force,
        )
    if not yes:
        what = "1 run with all its results" if len(found) == 1 else f"{len(found)} runs with all their results"
        size = filesize.decimal(sum(each.size_bytes or 0 for each in found))
        _agree("remove", f"{what}, {size}", {each.name: _remains(each) for each in found})

    def change(each: Removable) -> str:
        selection.remove(site, each)
        return f"{each.name} removed"

    _each(found, change)


def _agree(change: str, what: str, lines: dict[str, str]) -> None:
    """Show what would be done and ask, if there is anything; raises SpecError if nobody can be asked."""
    if not lines:
        return
    console.talk().print(render.name_table(lines))
    if not console.talk().is_terminal:
        raise SpecError(f"this would {change} {what}; type --yes as well")
    console.confirm(f"{change.capitalize()} {what}?")


def _each(found: Sequence[selection.Named], change: Callable[[selection.Named], str]) -> None:
    """Do it to each, and say so; what fails for one does not keep the others, and is raised at the end."""
    try:
        selection.each(found, lambda each: console.say(change(each)))
    except PartlyDoneError as error:
        for failure in error.failures[:-1]:
            console.error(str(failure))
        raise error.failures[-1] from None
    if not found:
        console.say("no job is meant by that")


def _jobs(number: int) -> str:
    return f"{number} job{'' if number == 1 else 's'}"


def _state(job: Job) -> str:
    whose = "" if job.user == machine.user() else f", {job.user}'s"
    return f"{job.state}{whose}"


def _remains(each: Removable) -> str:
    size = "of unknown size" if each.size_bytes is None else filesize.decimal(each.size_bytes)
    return f"{_state(each.job) if each.job else 'no job of the queue'}, {size}"
