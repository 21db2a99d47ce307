"""`raygen show` and `get`: what a run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console, follow, options, render, thumbnails
from raygen import files, search_insight, search_plot
from raygen import film as films
from raygen.api.loading import copy_best
from raygen.errors import JobError
from raygen.queue.job import Job
from raygen.runs import Run
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
    queued = _in_queue(site, job)
    run = Run(Path(queued.folder)) if queued else Run.open(job, site.storage)
    if queued is None:
        status = run.status()
        title, events, attempts = render.state(status.state, status.reason), [], []
    else:
        reason = site.store.reasons([queued]).get(queued.id, queued.reason)
        title = render.state(queued.state, reason)
        events, attempts = list(site.store.events(queued)), list(site.store.attempts(queued))
    insight = search_insight.of_run(run) if why else None
    if plot is not None:
        search_plot.save(run, plot)
    filmed = films.save(run, film) if film is not None else None
    if output == "json":
        history = {**render.job_json(queued, reason), **render.history_json(events, attempts)} if queued else None
        learned = {"why": insight.as_json()} if insight else {}
        console.show_json({**run.summary(), "job": history, **learned})
        return
    console.talk().print(f"{run.folder}: ", title, sep="", soft_wrap=True)
    follow.show_run(run, output=output)
    if insight:
        console.show("")
        console.show(render.insight_table(insight))
        console.say(render.insight_basis(insight, run.objective))
    if plot is not None:
        console.say(f"a picture of all trials in {plot}")
    if filmed:
        trial, count = filmed
        console.say(f"a film of trial {trial.number} in {film}: {count} picture{'' if count == 1 else 's'}")
    if images:
        thumbnails.show(run)
    if events:
        console.show("")
        console.show(render.history_table(events))


def get(
    run: options.RunName, output: BestFolder = Path("best"), replace: Replace = False, storage: options.Storage = None
) -> None:
    """Copy a run's best models out of its storage: weights, spec, metrics, cards and pictures, each in a folder."""
    copied = copy_best(run, output, replace=replace, storage=storage)
    count = len(copied.best_places())
    console.say(
        f"{count} best model{'' if count == 1 else 's'} of {copied.name} in {output}, the very best in {output / '1'}"
    )


def _in_queue(site: Site, name: str) -> Job | None:
    """The job of that name or run folder, unless the queue does not know it."""
    folder = Path(name)
    if (folder / "run.json").is_file():
        name = folder.resolve().name
    try:
        return site.store.find(name)
    except JobError:
        return None
