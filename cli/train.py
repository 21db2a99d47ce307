"""`raygen train`: one training."""

from __future__ import annotations

import typer

from cli import jobs, options, training_options
from raygen import preparation
from raygen.api.loading import find_model
from raygen.errors import SpecError
from raygen.preparation import Prepared
from raygen.queue.job import Request
from raygen.site import Site


def train(
    context: typer.Context,
    model: training_options.Model = None,
    spec: training_options.SpecFile = None,
    autoencoder: training_options.Autoencoder = None,
    data: training_options.Data = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    normal_class: training_options.NormalClass = None,
    epochs: training_options.Epochs = None,
    batch_size: training_options.BatchSize = None,
    lr: training_options.LearningRate = None,
    latent_dim: training_options.LatentDim = None,
    precision: training_options.PrecisionOption = None,
    compile_: training_options.CompileOption = None,
    seed: training_options.Seed = None,
    objective: training_options.Objective = None,
    health: training_options.Health = None,
    assignments: training_options.Set = None,
    gpus: training_options.Gpus = None,
    cpus: training_options.Cpus = None,
    workers: training_options.Workers = None,
    storage: options.Storage = None,
    address: options.Address = None,
    name: options.Name = None,
    priority: options.Priority = Request.priority,
    retries: options.Retries = Request.retries,
    node_timeout: options.NodeTimeout = Request.node_timeout_s,
    time_limit: options.TimeLimit = None,
    detach: options.Detach = False,
    resume: options.Resume = None,
    force: options.ResumeForce = False,
    dry_run: options.DryRun = False,
    output: options.OutputOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train one model, on one device or several."""
    settings = training_options.settings(context.params)
    view = jobs.View(output=output, quiet=quiet, verbose=verbose, detach=detach)
    limit_s = options.time_limit_s(time_limit)
    site = Site(storage, address)
    if resume is not None:
        others = {option: value for option, value in {"--spec": spec, "--from": autoencoder}.items() if value}
        given = {**settings, **others, **options.of_new_jobs(context)}
        jobs.resume(resume, "train", model, given, site=site, force=force, dry_run=dry_run, view=view)
        return
    if force:
        raise SpecError("--force goes with --resume")
    if spec is not None and model is not None:
        raise SpecError(f"--spec {spec} says which model to train; leave out {model}")

    def prepare() -> Prepared:
        prepared = (
            preparation.prepare_training(jobs.named(model), settings, site.capacity())
            if spec is None
            else preparation.prepare_training_from(spec, settings, site.capacity())
        )
        if autoencoder is None:
            return prepared
        source = find_model(autoencoder, storage=storage)
        # On every machine the same weights, to the bit: the spec keeps their digest.
        return preparation.start_from(source.name, source.load("cpu"), prepared)

    jobs.run(
        prepare,
        jobs.Submission(
            site=site,
            name=name,
            priority=priority,
            retries=retries,
            node_timeout_s=node_timeout,
            time_limit_s=limit_s,
        ),
        dry_run=dry_run,
        view=view,
    )
