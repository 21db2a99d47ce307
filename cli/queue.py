"""The queue's commands: `ls`, `watch`, `logs`, `wait`, `cancel`, `retry`, `priority`, `rm`."""

from __future__ import annotations

import getpass
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import console, follow, options, render
from cli.logtail import LogTail
from raygen.errors import JobError, RunError, SpecError
from raygen.queue.job import ENDED, Job, State
from raygen.runs import Run
from raygen.site import Site, check

POLL_EVERY_S = 0.25
AGES = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

States = Annotated[str | None, typer.Option("--state", metavar="STATE,…", help="Only jobs in these states.")]
Mine = Annotated[bool, typer.Option("--mine", help="Only jobs that I queued.")]
Number = Annotated[int, typer.Option("-n", min=1, help="Jobs to list, the newest.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")]
Since = Annotated[str | None, typer.Option(metavar="AGE", help="Only lines younger than 30s, 10m, 2h, 1d.")]
Lines = Annotated[int | None, typer.Option("-n", min=1, help="Only so many last lines.")]
For = Annotated[State | None, typer.Option("--for", help="The state to wait for.", show_default="any end")]
WaitTimeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Wait no longer.")]
NewPriority = Annotated[
    int, typer.Argument(metavar="PRIORITY", min=-1_000_000, max=1_000_000, help="The higher goes first.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def list_jobs(
    state: States = None,
    mine: Mine = False,
    number: Number = 50,
    storage: options.Storage = None,
    output: options.OutputOption = "table",
) -> None:
    """List the jobs, the newest first, and why those that wait do so."""
    site = Site(storage)
    jobs = site.store.list(states=_states(state), user=getpass.getuser() if mine else None, limit=number)
    reasons = site.store.reasons(jobs)
    if output == "json":
        console.show_json([render.job_json(job, reasons.get(job.id, job.reason)) for job in jobs])
    elif jobs:
        console.show(render.job_table(jobs, reasons, {job.id: _best(job) for job in jobs}))
    else:
        console.talk().print(f"no jobs in {site.storage}; `raygen tune vae` makes one", soft_wrap=True)


def watch(
    job: options.JobName,
    storage: options.Storage = None,
    output: options.OutputOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Follow a job to its end; Ctrl-C leaves it running."""
    site = Site(storage)
    follow.follow(site, site.store.find(job), output=output, quiet=quiet, verbose=verbose)


def logs(
    job: options.JobName,
    follow_: Follow = False,
    since: Since = None,
    lines: Lines = None,
    storage: options.Storage = None,
) -> None:
    """Print what a job's processes printed."""
    site = Site(storage)
    found = site.store.find(job)
    tail = LogTail(Run(Path(found.folder)).log)
    oldest = _oldest(since)
    earlier = _young(tail.lines(ended=found.state in ENDED), oldest)
    for line in deque(earlier, maxlen=lines) if lines else earlier:
        print(line)
    try:
        while follow_ and found.state not in ENDED:
            time.sleep(POLL_EVERY_S)
            # The state first: what a job printed before it ended is in the log by then.
            found = site.store.get(found.id)
            for line in _young(tail.lines(ended=found.state in ENDED), oldest):
                print(line, flush=True)
    except KeyboardInterrupt:
        raise typer.Abort from None


def wait(
    job: options.JobName, state: For = None, timeout: WaitTimeout = None, storage: options.Storage = None
) -> None:
    """Wait until a job ends or has reached a state; fails where it ends otherwise, or time runs out."""
    site = Site(storage)
    found = site.store.find(job)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            found = site.store.get(found.id)
            if state is not None and any(event.to_state is state for event in site.store.events(found)):
                return
            if found.state in ENDED:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise JobError(f"{found.name} is {found.state} after {timeout:g} s")
            time.sleep(POLL_EVERY_S)
    except KeyboardInterrupt:
        raise typer.Abort from None
    check(found)
    if state is not None:
        raise JobError(f"{found.name} ended as {found.state} and was never {state}")


def cancel(jobs: options.JobNames, storage: options.Storage = None) -> None:
    """End jobs; what they trained is kept."""
    site = Site(storage)
    for found in [site.store.find(name) for name in jobs]:
        cancelled = site.cancel(found)
        ended = cancelled.state is State.CANCELLED
        _say(f"{found.name} {'cancelled' if ended else 'is being cancelled: it writes its checkpoints first'}")


def retry(job: options.JobName, storage: options.Storage = None) -> None:
    """Queue a failed or cancelled job again; it goes on from its checkpoints."""
    site = Site(storage)
    queued = site.retry(site.store.find(job))
    _say(f"{queued.name} queued; `raygen watch {queued.name}` follows it")


def priority(job: options.JobName, value: NewPriority, storage: options.Storage = None) -> None:
    """Change a job's place in the queue."""
    site = Site(storage)
    changed = site.store.set_priority(site.store.find(job), value)
    _say(f"{changed.name} has priority {changed.priority}")


def remove(jobs: options.JobNames, yes: Yes = False, storage: options.Storage = None) -> None:
    """Forget jobs that have ended and delete their run folders."""
    site = Site(storage)
    found = [site.store.find(name) for name in jobs]
    names = ", ".join(each.name for each in found)
    if not yes:
        if not console.talk().is_terminal:
            raise SpecError(f"this deletes the results of {names}; type --yes as well")
        typer.confirm(f"Delete the results of {names}?", abort=True, err=True)
    for each in found:
        site.remove(each)
        _say(f"{each.name} removed")


def _say(message: str) -> None:
    console.talk().print(message, soft_wrap=True)


def _states(names: str | None) -> Sequence[State]:
    try:
        return [State(name.strip()) for name in names.split(",")] if names else []
    except ValueError as error:
        raise SpecError(f"--state {names}: {error}; states are {', '.join(State)}") from error


def _best(job: Job) -> str:
    """The best value of its objective so far, in words."""
    if job.attempt == 0:
        return ""
    try:
        run = Run(Path(job.folder))
        value = run.best_value(ended=job.state in ENDED)
    except RunError as error:
        console.warn(error)
        return ""
    return "" if value is None else f"{run.objective} {value:.5g}"


def _oldest(since: str | None) -> datetime:
    if since is None:
        return datetime.min.replace(tzinfo=UTC)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", since)
    if match is None:
        raise SpecError(f"--since {since}: write a number and s, m, h or d, such as 10m")
    return datetime.now(UTC) - timedelta(seconds=float(match[1]) * AGES[match[2]])


def _young(lines: Iterator[str], oldest: datetime) -> Iterator[str]:
    """Lines that came at `oldest` or later; each begins with its time."""
    for line in lines:
        try:
            at = datetime.fromisoformat(line.partition(" ")[0])
        except ValueError:
            at = oldest
        if at >= oldest:
            yield line
