"""Follows a job on the screen, and shows its result."""

from __future__ import annotations

import time
from functools import partial

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn

from cli import console, render
from cli.options import Output
from raygen.errors import RunInterruptedError
from raygen.patience import Patience
from raygen.queue.job import ENDED, WAITING, Job
from raygen.report import ENDED_TRIALS, Report
from raygen.site import LogTail, Site

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
            _report_changes(watched)
    except KeyboardInterrupt:
        raise RunInterruptedError(
            f"{job.name} goes on; `raygen watch {job.name}` comes back to it, `raygen cancel {job.name}` ends it"
        ) from None
    try:
        show_report(watched.report(), output=output, quiet=quiet)
        site.check(watched.job)
    finally:
        site.wait_until_ended()


def show_report(report: Report, *, output: Output, quiet: bool = False) -> None:
    """Print a run's result: the table of its trials, then the best one and what to do with it."""
    if output == "json":
        console.show_json(report.as_json())
        return
    if report.records:
        console.show(render.trial_table(report, report.records))
        if not quiet:
            console.say(render.outcome(report))


class _Watched:
    """A job and its run, looked at again and again."""

    def __init__(self, site: Site, job: Job) -> None:
        self.job = job
        self._run = site.run_of(job)
        self._report = site.report(self._run)
        self._looked_at = time.monotonic()
        self._site = site
        self._tended_at = time.monotonic()
        self._patience = Patience(site.storage, console.warn)

    def next(self) -> bool:
        """Wait for the next look and take it; False where the job had ended before."""
        if self.job.state in ENDED:
            return False
        time.sleep(POLL_EVERY_S)
        if time.monotonic() - self._tended_at > TEND_EVERY_S:
            self._patience.ask(partial(self._site.tend, self.job))
            self._tended_at = time.monotonic()
        self.job = self._patience.ask(partial(self._site.now, self.job))
        return True

    def report(self) -> Report:
        """The run as it is now; while its job goes on, as it was a moment ago."""
        if self.job.state in ENDED or time.monotonic() - self._looked_at >= self._site.look_every_s:
            self._report = self._patience.ask(partial(self._site.report, self._run))
            self._looked_at = time.monotonic()
        return self._report

    def log(self) -> LogTail:
        """What its processes print from now on."""
        return self._site.log(self.job, skip=True)

    def lines(self, tail: LogTail, *, ended: bool) -> list[str]:
        """What its processes have printed since the last call."""
        return self._patience.lines(tail, ended=ended)

    def line(self) -> str:
        """The job's state in words."""
        reason = self._patience.ask(partial(self._site.reasons, [self.job])).get(self.job.id)
        return f"{self.job.state}: {reason}" if reason else str(self.job.state)


def _print_log(watched: _Watched) -> None:
    tail = watched.log()
    while True:
        goes_on = watched.next()
        for line in watched.lines(tail, ended=not goes_on):
            console.say_plain(line)
        if not goes_on:
            return


def _watch(watched: _Watched, talk: console.Screen) -> None:
    progress = Progress(
        console.Words("{task.description}"),
        BarColumn(bar_width=30),
        console.Words("{task.percentage:>3.0f} %"),
        console.Words("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=talk,
    )
    whole = progress.add_task(watched.line(), total=1.0, rate="")
    with Live(console=talk, refresh_per_second=4, transient=True) as live:
        while watched.next():
            report = watched.report()
            _update(progress, whole, watched, report)
            table = render.trial_table(report, report.records[:LIVE_ROWS]) if report.records else ""
            live.update(Group(progress, table))


def _update(progress: Progress, whole: TaskID, watched: _Watched, report: Report) -> None:
    records, total = report.records, report.number_of_trials
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


def _report_changes(watched: _Watched) -> None:
    """A line for each change of the job and each trial's end, for logs and pipes."""
    reported: set[int] = {record.number for record in watched.report().records if record.state in ENDED_TRIALS}
    said = ""
    while True:
        if (line := watched.line()) != said:
            console.say(f"{watched.job.name} {line}")
            said = line
        goes_on = watched.next()
        report = watched.report()
        for record in sorted(report.records, key=lambda record: record.number):
            if record.state not in ENDED_TRIALS:
                reported.discard(record.number)  # one that was stopped may go on
            elif record.number not in reported:
                reported.add(record.number)
                console.say(render.trial_end(report, record))
        if not goes_on:
            return
