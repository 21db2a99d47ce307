"""Commands that follow a job: `watch`, `logs`, `wait`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import typer

from cli import console, follow, options
from raygen.errors import WaitError
from raygen.patience import Patience
from raygen.queue.job import ENDED, JobState, has_been
from raygen.site import Site

POLL_EVERY_S = 0.25

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")]
Since = Annotated[str | None, typer.Option(metavar="AGE", help="Only lines younger than 30s, 10m, 2h, 1d.")]
Lines = Annotated[int | None, typer.Option("-n", min=1, help="Only so many last lines.")]
For = Annotated[JobState | None, typer.Option("--for", help="The state to wait for.", show_default="any end")]


def watch(
    job: options.JobName,
    storage: options.Storage = None,
    output: options.OutputOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Follow a job to its end; Ctrl-C leaves it running."""
    site = Site(storage)
    follow.follow(site, site.find(job), output=output, quiet=quiet, verbose=verbose)


def logs(
    job: options.JobName,
    follow_: Follow = False,
    since: Since = None,
    lines: Lines = None,
    storage: options.Storage = None,
) -> None:
    """Print what a job's processes printed."""
    site = Site(storage)
    found = site.find(job)
    tail = site.log(found)
    oldest = _oldest(since)
    earlier = _young(tail.lines(ended=found.state in ENDED), oldest)
    for line in deque(earlier, maxlen=lines) if lines else earlier:
        console.show_plain(line)
    patience = Patience(site.storage, console.warn)
    try:
        while follow_ and found.state not in ENDED:
            time.sleep(POLL_EVERY_S)
            # The state first: what a job printed before it ended is in the log by then.
            found = patience.ask(partial(site.now, found))
            for line in _young(patience.lines(tail, ended=found.state in ENDED), oldest):
                console.show_plain(line)
    except KeyboardInterrupt:
        raise typer.Abort from None


def wait(
    job: options.JobName, state: For = None, timeout: options.Timeout = None, storage: options.Storage = None
) -> None:
    """Wait until a job ends, or reaches a state after it was last queued; fails if it ends otherwise, or too late."""
    site = Site(storage)
    found = site.find(job)
    deadline = None if timeout is None else time.monotonic() + timeout
    patience = Patience(site.storage, console.warn, until=deadline)
    try:
        while True:
            found = patience.ask(partial(site.now, found))
            if state is not None and has_been(state, patience.ask(partial(site.events, found))):
                return
            if found.state in ENDED:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise WaitError(f"{found.name} is {found.state} after {timeout:g} s")
            time.sleep(POLL_EVERY_S)
    except KeyboardInterrupt:
        raise typer.Abort from None
    site.check(found)
    if state is not None:
        raise WaitError(f"{found.name} ended as {found.state} and was not {state} since it was queued")


def _oldest(since: str | None) -> datetime:
    age_s = options.seconds("--since", since)
    return datetime.min.replace(tzinfo=UTC) if age_s is None else datetime.now(UTC) - timedelta(seconds=age_s)


def _young(lines: Iterable[str], oldest: datetime) -> Iterator[str]:
    """Lines that came at `oldest` or later; each begins with its time."""
    for line in lines:
        try:
            at = datetime.fromisoformat(line.partition(" ")[0])
        except ValueError:
            at = oldest
        if at.tzinfo is None or at >= oldest:  # a line of Raygen's own has a zone
            yield line
