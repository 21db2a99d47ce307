"""`raygen train`: one training."""

from __future__ import annotations

import typer

from cli import jobs, options
from raygen import api


def train(
    context: typer.Context,
    model: options.Model = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    latent_dim: options.LatentDim = None,
    precision: options.PrecisionOption = None,
    compile_: options.Compile = False,
    seed: options.Seed = None,
    objective: options.Objective = None,
    assignments: options.Set = None,
    gpus: options.Gpus = None,
    cpus: options.Cpus = None,
    workers: options.Workers = None,
    storage: options.Storage = None,
    address: options.Address = None,
    resume: options.Resume = None,
    dry_run: options.DryRun = False,
    output: options.OutputOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train one model, on one device or several."""
    settings = options.settings(context.params)
    view = jobs.View(output=output, quiet=quiet, verbose=verbose)
    if resume is not None:
        jobs.resume(resume, "train", model, settings, storage=storage, address=address, view=view)
        return
    jobs.run(
        lambda: api.prepare_training(jobs.named(model), settings, address=address),
        storage=storage,
        dry_run=dry_run,
        view=view,
    )
