"""`raygen show`, `raygen ls` and `raygen sample`: what runs left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console, follow, options, render
from raygen import api
from raygen.errors import RunError
from raygen.runs import Run, default_storage

Count = Annotated[int, typer.Option("--n", "-n", min=1, max=10_000, help="Images to draw.")]
Picture = Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")]
SampleSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the latents.")]


def show(run: options.RunName, storage: options.Storage = None, output: options.OutputOption = "table") -> None:
    """Show a run: its trials with the best first, and where the best checkpoints are."""
    found = Run.open(run, storage or default_storage())
    if output == "table":
        status = found.status()
        title = render.state(status.state, status.reason)
        console.talk().print(f"{found.folder}: ", title, sep="", soft_wrap=True)
    follow.show_run(found, output=output)


def list_runs(storage: options.Storage = None, output: options.OutputOption = "table") -> None:
    """List the runs, the newest first."""
    place = storage or default_storage()
    summaries = []
    for run in Run.all(place, on_damaged=console.warn):
        try:
            summaries.append(run.summary())
        except RunError as error:
            console.warn(error)
    if output == "json":
        console.show_json(summaries)
    elif summaries:
        console.show(render.run_table(summaries))
    else:
        console.talk().print(f"no runs in {place}; `raygen tune vae` makes one", soft_wrap=True)


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
