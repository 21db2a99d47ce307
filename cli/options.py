"""Options that several commands share, and how they become settings of a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel

from cli.durations import parse_duration_s, parse_timeout_s
from raygen import protocol
from raygen.data import DataOptions
from raygen.errors import InputError, SpecError
from raygen.queue.job import NODE_TIMEOUT_S, ON_DEMAND_NODE_TIMEOUT_S, JobState, check_time_limit
from raygen.spec import Precision, TrainingOptions

Output = Literal["table", "json"]
"""What a command prints its result as."""


def default(options: type[BaseModel], field: str) -> str:
    """The default of a spec's field, for the help; no option has a default of its own."""
    return str(options.model_fields[field].default)


def _timeout_s(text: str) -> float:
    """What an option that may be a number of seconds alone was given; raises BadParameter, which names the option."""
    try:
        return parse_timeout_s(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


_DATA, _TRAINING, _DEVICES, _RUNNING = "Data", "Training", "Devices", "Running and output"
_JUDGING = "Judging and sampling"

Model = Annotated[str | None, typer.Argument(help="Model family; `raygen models` lists them.", show_default=False)]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or the beginning of it.")]
ModelPlace = Annotated[
    str,
    typer.Argument(
        metavar="RUN|PATH",
        help="A run, RUN/best/2, a folder of `raygen get`, or a .safetensors file with its spec.json.",
    ),
]
ModelPlaces = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|PATH...", help="Two or more: runs, RUN/best/2, folders of `raygen get`, .safetensors files."
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's name, or the beginning of it.")]
WholeName = Annotated[str, typer.Argument(metavar="JOB", help="A job's whole name.")]
WholeNames = Annotated[list[str] | None, typer.Argument(metavar="JOB", help="Jobs' whole names.", show_default=False)]
States = Annotated[str | None, typer.Option("--state", metavar="STATE,…", help="Only jobs in these states.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="TIME", parser=_timeout_s, help="Wait no longer: 90s, 2h."),
]
Mine = Annotated[bool, typer.Option("--mine", help="Only jobs that I queued.")]
Force = Annotated[bool, typer.Option("--force", help="Another user's jobs, too.")]
RemoveForce = Annotated[
    bool, typer.Option("--force", help="Another user's jobs, too, and by name runs at work for another queue.")
]

Data = Annotated[
    str | None,
    typer.Option(
        help="Data set name, folder of images, .npy or .npz file.",
        show_default=default(DataOptions, "source"),
        rich_help_panel=_DATA,
    ),
]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with downloaded data sets.", rich_help_panel=_DATA)]
ImageSize = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Resize images to squares of this side.", rich_help_panel=_DATA)
]
NormalClass = Annotated[
    int | None,
    typer.Option(
        help="Train on this class only, to find what is none.", show_default="all classes", rich_help_panel=_DATA
    ),
]

OtherData = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Data set name, folder of images, .npy or .npz file.",
        show_default="what the model was trained on",
        rich_help_panel=_DATA,
    ),
]

Epochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the data.", show_default=default(TrainingOptions, "epochs"), rich_help_panel=_TRAINING
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Images of one step, all devices.", rich_help_panel=_TRAINING)]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate.", rich_help_panel=_TRAINING)]
LatentDim = Annotated[int | None, typer.Option(help="Latent (noise) dimension.", rich_help_panel=_TRAINING)]
PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="bf16: mixed precision.", rich_help_panel=_TRAINING)
]
Compile = Annotated[bool | None, typer.Option("--compile", help="Use torch.compile.", rich_help_panel=_TRAINING)]
Seed = Annotated[int | None, typer.Option(help="Of weights, data order and noise.", rich_help_panel=_TRAINING)]
Objective = Annotated[
    str | None, typer.Option(help="Metric on validation images that decides what is best.", rich_help_panel=_TRAINING)
]
Health = Annotated[
    bool | None,
    typer.Option(
        "--health/--no-health",
        help="Stop trainings that have gone wrong.",
        show_default="health",
        rich_help_panel=_TRAINING,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any field, as in model.hidden=512 (repeatable).", rich_help_panel=_TRAINING
    ),
]

SpecFile = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        metavar="FILE",
        help="Fields from a TOML file, model.name among them; other options go over it.",
        rich_help_panel=_TRAINING,
    ),
]

Autoencoder = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="RUN|PATH",
        help="Let the generator of a gan begin as this autoencoder's decoder.",
        rich_help_panel=_TRAINING,
    ),
]

Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...", help="Such as frechet,ssim.", show_default="all that suit", rich_help_panel=_JUDGING
    ),
]
RankingMetrics = Annotated[
    str, typer.Option("--metrics", metavar="NAME,...", help="The first decides.", rich_help_panel=_JUDGING)
]
Network = Annotated[
    protocol.Network,
    typer.Option("--network", help="Whose features samples are compared by.", rich_help_panel=_JUDGING),
]
JudgedImages = Annotated[
    int | None,
    typer.Option(
        "--images", help="Images to judge on, at most.", show_default="all of --split", rich_help_panel=_JUDGING
    ),
]
JudgedSplit = Annotated[
    Literal["validation", "test"],
    typer.Option(
        "--split",
        help="validation: images that chose epochs and trials; test: those that chose nothing.",
        rich_help_panel=_JUDGING,
    ),
]
JudgedSamples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        help="Samples to compare with images.",
        show_default="as many as images",
        rich_help_panel=_JUDGING,
    ),
]
Reference = Annotated[
    Literal["train", "validation", "test"] | None,
    typer.Option(
        "--reference",
        help="Compare samples with all images of this part.",
        show_default="the --images of --split",
        rich_help_panel=_JUDGING,
    ),
]
JudgingSeed = Annotated[
    int, typer.Option("--seed", min=0, help="Of the samples and latents drawn.", rich_help_panel=_JUDGING)
]
FidWeights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of the inception network.", rich_help_panel=_JUDGING)
]
Prior = Annotated[
    protocol.FittedPrior | None,
    typer.Option(
        "--prior", help="gmm: a Gaussian mixture over the latents of training images.", rich_help_panel=_JUDGING
    ),
]
Components = Annotated[
    int | None,
    typer.Option(min=1, help="Of --prior gmm.", show_default=str(protocol.COMPONENTS), rich_help_panel=_JUDGING),
]

Gpus = Annotated[int | None, typer.Option(help="GPUs in all.", show_default="all", rich_help_panel=_DEVICES)]
Cpus = Annotated[int | None, typer.Option(help="CPU cores in all.", show_default="all", rich_help_panel=_DEVICES)]
Workers = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN-MAX",
        help="Processes that share each training; a range goes on with fewer while nodes are away.",
        rich_help_panel=_DEVICES,
    ),
]
GpusPerTrial = Annotated[float | None, typer.Option(help="Below 1, trials share a GPU.", rich_help_panel=_DEVICES)]
CpusPerTrial = Annotated[int | None, typer.Option(help="CPU cores of each trial.", rich_help_panel=_DEVICES)]

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="RAYGEN_STORAGE",
        help="Where runs are kept: a folder, s3://, gs:// or az://.",
        rich_help_panel=_RUNNING,
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="http://HOST:8265",
        help="A running Ray cluster; else RAYGEN_ADDRESS, else one here.",
        rich_help_panel=_RUNNING,
    ),
]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Queue the job and return at once.", rich_help_panel=_RUNNING)
]
Name = Annotated[str | None, typer.Option(help="What to call the job and its run.", rich_help_panel=_RUNNING)]
Priority = Annotated[
    int, typer.Option(min=-1_000_000, max=1_000_000, help="The higher goes first.", rich_help_panel=_RUNNING)
]
Retries = Annotated[
    int, typer.Option(min=0, help="Lost attempts that may be followed by another.", rich_help_panel=_RUNNING)
]
NodeTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="TIME",
        parser=_timeout_s,
        help="Wait again in the queue if no node has room for so long, such as 90s or 10m.",
        show_default=f"{NODE_TIMEOUT_S:g}s; {ON_DEMAND_NODE_TIMEOUT_S:g}s if nodes come on demand",
        rich_help_panel=_RUNNING,
    ),
]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="End with a checkpoint after running so long, such as 90m or 2h; its last one if the storage is away.",
        show_default="none",
        rich_help_panel=_RUNNING,
    ),
]
Resume = Annotated[
    str | None, typer.Option(metavar="RUN", help="Go on with a failed or cancelled run.", rich_help_panel=_RUNNING)
]
ResumeForce = Annotated[
    bool, typer.Option("--force", help="Go on with another user's job, too.", rich_help_panel=_RUNNING)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print plan and spec as JSON; start nothing.", rich_help_panel=_RUNNING)
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Form of the result.", rich_help_panel=_RUNNING)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.", rich_help_panel=_RUNNING)]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show what Ray and the trials print.", rich_help_panel=_RUNNING)
]


PATHS = {
    "data": "data.source",
    "data_root": "data.root",
    "image_size": "data.image_size",
    "normal_class": "data.normal_class",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "precision": "training.precision",
    "compile_": "training.compile",
    "lr": "optimizer.lr",
    "latent_dim": "model.latent_dim",
    "seed": "seed",
    "objective": "evaluation.objective",
    "health": "health.enabled",
    "trials": "search.trials",
    "replicates": "search.replicates",
    "search": "search.sampler",
    "defaults_first": "search.defaults_first",
    "scheduler": "search.scheduler",
    "gpus": "resources.gpus",
    "cpus": "resources.cpus",
    "gpus_per_trial": "resources.gpus_per_trial",
    "cpus_per_trial": "resources.cpus_per_trial",
    "workers": "resources.workers",
}
"""The field of the spec that each option sets, by the name of the command's parameter."""


EXAMPLES = {"--set": "model.hidden=512", "--vary": "model.latent_dim=4,8,16"}


def settings(parameters: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted path, from a command's options and its `--set KEY=VALUE`; raises SpecError on a clash."""
    given = {PATHS[name]: value for name, value in parameters.items() if name in PATHS and value is not None}
    for path, text in by_path("--set", parameters["assignments"] or []).items():
        if path in given:
            raise SpecError(f"{path} is set twice, by --set and by another option")
        given[path] = _value(text)
    return given


def of_new_jobs(context: typer.Context) -> dict[str, object]:
    """What was typed of the options that only a new job takes, by option."""
    names = ("name", "priority", "retries", "node_timeout", "time_limit")
    sources = {name: context.get_parameter_source(name) for name in names}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return {f"--{name.replace('_', '-')}": context.params[name] for name in typed}


def states(names: str | None) -> list[JobState]:
    """The states that `--state` names; raises SpecError if there is no such state."""
    wanted = [name.strip() for name in names.split(",")] if names is not None else []
    for name in wanted:
        if name not in set(JobState):
            raise SpecError(f"--state {names}: there is no state {name!r}; type {', '.join(JobState)}")
    return [JobState(name) for name in wanted]


def seconds(option: str, text: str | None) -> float | None:
    """The length of time that an option was given, if it was; raises SpecError if it is none."""
    try:
        return None if text is None else parse_duration_s(text)
    except InputError as error:
        raise SpecError(f"{option}: {error}") from error


def time_limit_s(text: str | None) -> float | None:
    """The time that a job may run; raises SpecError if that is none at all."""
    limit_s = seconds("--time-limit", text)
    check_time_limit(limit_s)
    return limit_s


def by_path(option: str, assignments: list[str]) -> dict[str, str]:
    """The texts of `KEY=VALUE` by dotted path; raises SpecError if one is of another form, or a key comes twice."""
    found: dict[str, str] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise SpecError(f"{option} {assignment}: write KEY=VALUE, such as {option} {EXAMPLES[option]}")
        if path in found:
            raise SpecError(f"{path} is named twice by {option}")
        found[path] = text
    return found


def _value(text: str) -> Any:
    """JSON where the text is JSON, else the text itself: 512, [128, 64], true, null, conv."""
    try:
        return json.loads(text)
    except ValueError:
        return text
