"""Follows a running job on the screen, and shows its result."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cli import console, render
from cli.options import Output
from raygen.cluster.launch import Driver
from raygen.runs import ENDED, Run, TrialRecord

POLL_EVERY_S = 0.25
LIVE_ROWS = 12
"""Trials in the live table; the summary shows all."""


def follow(driver: Driver, *, output: Output, quiet: bool, verbose: bool) -> None:
    """Watch until the job ends, show its result, and raise what it ended with, unless it finished."""
    talk = console.talk()
    if quiet or verbose:
        _wait(driver, talk)
    elif talk.is_terminal:
        _watch(driver, talk)
    else:
        _report_ends(driver, talk)
    show_run(driver.run, output=output, quiet=quiet)
    driver.check()


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


def _wait(driver: Driver, talk: Console) -> None:
    while driver.is_alive():
        _sleep(driver, talk)


def _watch(driver: Driver, talk: Console) -> None:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=talk,
    )
    whole = progress.add_task("starting Ray", total=1.0, rate="")
    with Live(console=talk, refresh_per_second=4, transient=True) as live:
        while driver.is_alive():
            records = driver.run.records()
            _update(progress, whole, driver.run, records)
            live.update(Group(progress, render.trial_table(driver.run, records[:LIVE_ROWS]) if records else ""))
            _sleep(driver, talk)


def _update(progress: Progress, whole: object, run: Run, records: list[TrialRecord]) -> None:
    total = run.spec_json["search"]["trials"] if run.kind == "tune" else 1
    done = sum(1.0 if record.state in ENDED else record.fraction for record in records)
    ended = sum(record.state in ENDED for record in records)
    rate = sum(record.images_per_s or 0.0 for record in records if record.state == "running")
    progress.update(
        whole,  # type: ignore[arg-type]
        completed=done / total,
        description=f"{ended} of {total} trials" if records else "starting Ray",
        rate=f"{rate:,.0f} images/s" if rate else "",
    )


def _report_ends(driver: Driver, talk: Console) -> None:
    reported: set[int] = set()
    while True:
        alive = driver.is_alive()
        for record in sorted(driver.run.records(), key=lambda record: record.number):
            if record.state in ENDED and record.number not in reported:
                reported.add(record.number)
                value = "" if record.objective is None else f", {driver.run.objective} {record.objective:.5g}"
                reason = f" ({record.reason})" if record.state == "failed" else ""
                took = render.duration(record.train_s)
                talk.print(f"trial {record.number} {record.state}{reason} after {took}{value}", soft_wrap=True)
        if not alive:
            return
        _sleep(driver, talk)


def _sleep(driver: Driver, talk: Console) -> None:
    """Wait for the next look; the first Ctrl-C asks the job to stop, the second ends it."""
    try:
        time.sleep(POLL_EVERY_S)
    except KeyboardInterrupt:
        if driver.run.should_stop():
            driver.kill()
        else:
            driver.ask_to_stop()
            talk.print("stopping: trials write their checkpoints; Ctrl-C again ends them at once")
