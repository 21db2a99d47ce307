"""`raygen show` and `raygen sample`: what runs left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console, follow, options, render
from raygen import api
from raygen.errors import JobError
from raygen.queue.job import Job
from raygen.runs import Run

Count = Annotated[int, typer.Option("--n", "-n", min=1, max=10_000, help="Images to draw.")]
Picture = Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")]
SampleSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the latents.")]


def show(job: options.RunName, storage: options.Storage = None, output: options.OutputOption = "table") -> None:
    """Show a job: its trials with the best first, where the best checkpoints are, and what happened to it."""
    site = api.Site(storage)
    queued = _in_queue(site, job)
    run = Run(Path(queued.folder)) if queued else Run.open(job, site.storage)
    if queued is None:
        status = run.status()
        title, events, attempts = render.state(status.state, status.reason), [], []
    else:
        reason = site.store.reasons([queued]).get(queued.id, queued.reason)
        title = render.state(queued.state, reason)
        events, attempts = list(site.store.events(queued)), list(site.store.attempts(queued))
    if output == "json":
        history = {**render.job_json(queued, reason), **render.history_json(events, attempts)} if queued else None
        console.show_json({**run.summary(), "job": history})
        return
    console.talk().print(f"{run.folder}: ", title, sep="", soft_wrap=True)
    follow.show_run(run, output=output)
    if events:
        console.show("")
        console.show(render.history_table(events))


def _in_queue(site: api.Site, name: str) -> Job | None:
    """The job of that name or run folder, unless the queue does not know it."""
    folder = Path(name)
    if (folder / "run.json").is_file():
        name = folder.resolve().name
    try:
        return site.store.find(name)
    except JobError:
        return None


def sample(
    run: options.RunName,
    count: Count = 64,
    output: Picture = Path("samples.png"),
    seed: SampleSeed = 0,
    storage: options.Storage = None,
) -> None:
    """Draw images from a run's best checkpoint, or from a best/N folder, as one PNG grid."""
    trained = api.load(run, storage=storage)
    from raygen import pictures, results

    pictures.save(pictures.grid(results.sample(trained, count, seed)), output)
    value = f"{trained.metrics['objective']} {trained.metrics['value']:.5g}"
    console.talk().print(f"{count} samples of trial {trained.metrics['trial']} ({value}) in {output}", soft_wrap=True)
