"""`raygen ls`: the jobs, and why those that wait do so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from cli import console, job_tables, options
from cli.words import duration
from raygen import machine
from raygen.errors import RunError, StorageError
from raygen.queue.job import ACTIVE, Job
from raygen.site import Site

Number = Annotated[int, typer.Option("-n", min=1, help="Jobs to list, the newest.")]


def list_jobs(
    state: options.States = None,
    mine: options.Mine = False,
    number: Number = 50,
    storage: options.Storage = None,
    output: options.OutputOption = "table",
) -> None:
    """List the jobs, the newest first, and why those that wait do so."""
    site = Site(storage)
    jobs = site.jobs(states=options.states(state), user=machine.user() if mine else None, limit=number)
    reasons = site.reasons(jobs)
    if output == "json":
        console.show_json([job_tables.job_json(job, reasons.get(job.id, job.reason)) for job in jobs])
    elif jobs:
        limits = {id_: f"{duration(left_s)} left" for id_, left_s in site.time_left_s(_active(jobs)).items()}
        console.show(job_tables.job_table(jobs, limits | reasons, _best(site, jobs)))
    elif state or mine:
        console.say(f"no such jobs in {site.storage.name}; `raygen ls` lists all")
    else:
        console.say(f"no jobs in {site.storage.name}; `raygen tune vae` makes one")


def _active(jobs: Iterable[Job]) -> list[Job]:
    return [job for job in jobs if job.state in ACTIVE]


def _best(site: Site, jobs: Sequence[Job]) -> dict[int, str]:
    """The best value of each job's objective so far, in words; one line says what could not be read."""
    found, problems = dict.fromkeys((job.id for job in jobs), ""), list[Exception]()
    for job in jobs:
        try:
            value = site.best_value(job)
        except (RunError, StorageError) as error:
            found[job.id] = "–"
            problems.append(error)
        else:
            if value is not None:
                found[job.id] = f"{job.objective} {value:.5g}"
    if problems:
        others = f"; {len(problems) - 1} more of these runs cannot be read" if problems[1:] else ""
        console.warn(f"{problems[0]}{others}")
    return found
