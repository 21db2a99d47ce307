"""Follows a job on the screen, and shows its result."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cli import console, render
from cli.logtail import LogTail
from cli.options import Output
from raygen.errors import RunInterruptedError
from raygen.queue.job import ENDED, WAITING, Job
from raygen.runs import ENDED as ENDED_TRIALS
from raygen.runs import Run, TrialRecord
from raygen.site import Site, check

POLL_EVERY_S = 0.25
TEND_EVERY_S = 2.0
"""Seconds between looks whether the job's dispatcher still works."""

LIVE_ROWS = 12
"""Trials in the live table; the summary shows all."""


def follow(site: Site, job: Job, *, output: Output, quiet: bool, verbose: bool) -> None:
    """Watch until the job ends, show its result, and raise what it ended with, unless it succeeded.

    Ctrl-C leaves the job running, and raises RunInterruptedError that says how to come back.
    """
    watched = _Watched(site, job)
    talk = console.talk()
    try:
        if verbose:
            _print_log(watched)
        elif quiet:
            while watched.next():
                pass
        elif talk.is_terminal:
            _watch(watched, talk)
        else:
            _report_changes(watched, talk)
    except KeyboardInterrupt:
        raise RunInterruptedError(
            f"{job.name} goes on; `raygen watch {job.name}` comes back to it, `raygen cancel {job.name}` ends it"
        ) from None
    try:
        show_run(watched.run, output=output, quiet=quiet)
        check(watched.job)
    finally:
        site.service.wait_until_ended(site.store)


def show_run(run: Run, *, output: Output, quiet: bool = False) -> None:
    """Print a run's result: the table of its trials, then the best one and what to do with it."""
    if output == "json":
        console.show_json(run.summary())
        return
    records = run.records()
    if records:
        console.show(render.trial_table(run, records))
        if not quiet:
            console.talk().print(render.outcome(run, records, run.status()), soft_wrap=True)


class _Watched:
    """A job and its run folder, looked at again and again."""

    def __init__(self, site: Site, job: Job) -> None:
        self.job = job
        self.run = Run(Path(job.folder))
        self._site = site
        self._tended_at = time.monotonic()

    def next(self) -> bool:
        """Wait for the next look and take it; False where the job had ended before."""
        if self.job.state in ENDED:
            return False
        time.sleep(POLL_EVERY_S)
        if time.monotonic() - self._tended_at > TEND_EVERY_S:
            self._site.tend(self.job)
            self._tended_at = time.monotonic()
        self.job = self._site.store.get(self.job.id)
        return True

    def line(self) -> str:
        """The job's state in words."""
        reason = self._site.store.reasons([self.job]).get(self.job.id)
        return f"{self.job.state}: {reason}" if reason else str(self.job.state)


def _print_log(watched: _Watched) -> None:
    tail = LogTail(watched.run.log, skip=True)
    while True:
        goes_on = watched.next()
        for line in tail.lines(ended=not goes_on):
            console.talk().print(line, soft_wrap=True, markup=False, highlight=False)
        if not goes_on:
            return


def _watch(watched: _Watched, talk: Console) -> None:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=talk,
    )
    whole = progress.add_task(watched.line(), total=1.0, rate="")
    with Live(console=talk, refresh_per_second=4, transient=True) as live:
        while watched.next():
            records = watched.run.records()
            _update(progress, whole, watched, records)
            live.update(Group(progress, render.trial_table(watched.run, records[:LIVE_ROWS]) if records else ""))


def _update(progress: Progress, whole: TaskID, watched: _Watched, records: list[TrialRecord]) -> None:
    total = watched.run.number_of_trials
    done = sum(1.0 if record.state in ENDED_TRIALS else record.fraction for record in records)
    ended = sum(record.state in ENDED_TRIALS for record in records)
    rate = sum(record.images_per_s or 0.0 for record in records if record.state == "running")
    at_work = bool(records) and watched.job.state not in WAITING
    progress.update(
        whole,
        completed=done / total,
        description=f"{ended} of {total} trials" if at_work else watched.line(),
        rate=f"{rate:,.0f} images/s" if rate and at_work else "",
    )


def _report_changes(watched: _Watched, talk: Console) -> None:
    """A line for each change of the job and each trial's end, for logs and pipes."""
    reported: set[int] = {record.number for record in watched.run.records() if record.state in ENDED_TRIALS}
    said = ""
    while True:
        if (line := watched.line()) != said:
            talk.print(f"{watched.job.name} {line}", soft_wrap=True)
            said = line
        goes_on = watched.next()
        for record in sorted(watched.run.records(), key=lambda record: record.number):
            if record.state not in ENDED_TRIALS:
                reported.discard(record.number)  # one that was stopped may go on
            elif record.number not in reported:
                reported.add(record.number)
                talk.print(render.trial_end(watched.run, record), soft_wrap=True)
        if not goes_on:
            return
