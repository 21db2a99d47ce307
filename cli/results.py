"""`raygen show` and `get`: what a run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console, follow, job_tables, options, render, thumbnails, words
from raygen import files, search_insight, search_plot
from raygen import film as films
from raygen.api.loading import copy_best
from raygen.errors import RaygenError, RunError, StorageError
from raygen.history import History
from raygen.queue.job import Job
from raygen.site import Site

Thumbnails = Annotated[
    bool, typer.Option("--images", help="Draw images of the best model and of how it learned, in a terminal.")
]
Film = Annotated[Path | None, typer.Option(metavar="GIF", help="Write how the best trial learned, as an animation.")]

Why = Annotated[bool, typer.Option("--why", help="Each parameter's importance, and its range in the best trials.")]
Plot = Annotated[
    Path | None, typer.Option(metavar="PNG", help="Draw all trials: by epoch, by parameter and by what they cost.")
]
BestFolder = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to make or fill.")]
Replace = Annotated[bool, typer.Option("--replace", help="Put them in the place of models copied there before.")]


def show(
    job: options.RunName,
    images: Thumbnails = False,
    why: Why = False,
    plot: Plot = None,
    film: Film = None,
    storage: options.Storage = None,
    output: options.OutputOption = "table",
) -> None:
    """Show a job: its trials with the best first, where the best checkpoints are, and what happened to it."""
    if plot is not None:
        files.check_writable(plot)
    if film is not None:
        films.check(film)
    site = Site(storage)
    found = site.history(job)
    try:
        report = site.report(found.run)
    except (RunError, StorageError) as problem:
        if found.job is None or plot or film or why or images:
            raise
        _show_without_run(found, found.job, problem, output)
        return
    insight = search_insight.of_run(report.view) if why else None
    if plot is not None:
        search_plot.save(report.view, plot)
    filmed = films.save(found.run, film) if film is not None else None
    if output == "json":
        learned = {"why": insight.as_json()} if insight else {}
        console.show_json({**report.as_json(), "job": _job_json(found), **learned})
        return
    title = (
        words.state(found.job.state, found.reason)
        if found.job
        else words.state(report.status.state, report.status.reason)
    )
    console.say(console.text(f"{report.address}: ", title))
    if found.job is not None and found.job.time_limit_s is not None:
        console.say(job_tables.time_limit(found.job, site.time_left_s([found.job])[found.job.id]))
    if report.packing:
        console.say(report.packing)
    follow.show_report(report, output=output)
    if insight:
        console.show("")
        console.show(render.insight_table(insight))
        console.say(render.insight_basis(insight, report.objective))
    if plot is not None:
        console.say(f"a picture of all trials in {plot}")
    if filmed:
        trial, count = filmed
        console.say(f"a film of trial {trial.number} in {film}: {count} picture{'' if count == 1 else 's'}")
    if images:
        thumbnails.show(found)
    if found.events:
        console.show("")
        console.show(job_tables.history_table(found.events))


def _show_without_run(found: History, job: Job, problem: RaygenError, output: options.Output) -> None:
    """Show what the queue knows of a run that cannot be read, and in one line why that is all."""
    console.warn(problem)
    if output == "json":
        console.show_json({"name": job.name, "address": found.run.address, "job": _job_json(found)})
        return
    console.say(console.text(f"{found.run.address}: ", words.state(job.state, found.reason)))
    console.show(job_tables.history_table(found.events))


def _job_json(found: History) -> dict[str, Any] | None:
    if found.job is None:
        return None
    return {**job_tables.job_json(found.job, found.reason), **job_tables.history_json(found.events, found.attempts)}


def get(
    run: options.RunName, output: BestFolder = Path("best"), replace: Replace = False, storage: options.Storage = None
) -> None:
    """Copy a run's best models out of its storage: weights, spec, metrics, cards and pictures, each in a folder."""
    copied, count = copy_best(run, output, replace=replace, storage=storage)
    console.say(
        f"{count} best model{'' if count == 1 else 's'} of {copied.name} in {output}, the very best in {output / '1'}"
    )
