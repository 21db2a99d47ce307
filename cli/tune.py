"""`raygen tune`: a search over hyperparameters."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from cli import jobs, options, training_options
from raygen import preparation
from raygen.errors import SpecError
from raygen.queue.job import Request
from raygen.site import Site
from raygen.spec import Sampler, Scheduler, SearchOptions

_SEARCH = "Search"

Space = Annotated[
    str | None,
    typer.Option(help="Search space: a name or a TOML file.", show_default="the model's own", rich_help_panel=_SEARCH),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUES",
        help="Vary only this: model.latent_dim=4,8,16 or optimizer.lr=1e-4..1e-2 (repeatable).",
        rich_help_panel=_SEARCH,
    ),
]
DefaultsFirst = Annotated[
    bool | None,
    typer.Option(
        "--defaults-first/--no-defaults-first",
        help="Begin with the spec as it stands.",
        show_default="defaults-first",
        rich_help_panel=_SEARCH,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        help="Configurations to try.",
        show_default=training_options.default(SearchOptions, "trials"),
        rich_help_panel=_SEARCH,
    ),
]
Replicates = Annotated[
    int | None,
    typer.Option(
        help="Fresh seeds that the best configurations are run on too.",
        show_default=training_options.default(SearchOptions, "replicates"),
        rich_help_panel=_SEARCH,
    ),
]
Search = Annotated[
    Sampler | None,
    typer.Option(
        "--search",
        help="Source of configurations.",
        show_default=training_options.default(SearchOptions, "sampler"),
        rich_help_panel=_SEARCH,
    ),
]
Extend = Annotated[
    str | None,
    typer.Option(
        metavar="RUN", help="Go on with a finished search: --trials and --epochs in all.", rich_help_panel=_SEARCH
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="|".join(get_args(Scheduler)),
        help="Early stopping.",
        show_default=training_options.default(SearchOptions, "scheduler"),
        rich_help_panel=_SEARCH,
    ),
]


def tune(
    context: typer.Context,
    model: training_options.Model = None,
    space: Space = None,
    vary: Vary = None,
    trials: Trials = None,
    replicates: Replicates = None,
    search: Search = None,
    scheduler: SchedulerOption = None,
    defaults_first: DefaultsFirst = None,
    objective: training_options.Objective = None,
    data: training_options.Data = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    normal_class: training_options.NormalClass = None,
    epochs: training_options.Epochs = None,
    precision: training_options.PrecisionOption = None,
    compile_: training_options.CompileOption = None,
    seed: training_options.Seed = None,
    health: training_options.Health = None,
    assignments: training_options.Set = None,
    gpus: training_options.Gpus = None,
    cpus: training_options.Cpus = None,
    gpus_per_trial: training_options.GpusPerTrial = None,
    cpus_per_trial: training_options.CpusPerTrial = None,
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
    extend: Extend = None,
    force: options.ResumeForce = False,
    dry_run: options.DryRun = False,
    output: options.OutputOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Search for the best learning rate, batch size and latent dimension of a model."""
    settings = training_options.settings(context.params)
    varied = training_options.by_path("--vary", vary or [])
    view = jobs.View(output=output, quiet=quiet, verbose=verbose, detach=detach)
    limit_s = options.time_limit_s(time_limit)
    site = Site(storage, address)
    others = {option: value for option, value in {"--space": space, "--vary": vary}.items() if value}
    chosen = {**settings, **others, **options.of_new_jobs(context)}
    if extend is not None:
        if resume is not None:
            raise SpecError("--resume and --extend are two ways to go on; type one of them")
        jobs.extend(extend, model, chosen, site=site, force=force, dry_run=dry_run, view=view)
        return
    if resume is not None:
        jobs.resume(resume, "tune", model, chosen, site=site, force=force, dry_run=dry_run, view=view)
        return
    if force:
        raise SpecError("--force goes with --resume and --extend")
    jobs.run(
        lambda: preparation.prepare_search(jobs.named(model), settings, site.capacity(), space=space, vary=varied),
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
