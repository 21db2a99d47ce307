"""Options that several commands share. They import no model and no spec, which commands of the queue do without."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.durations import parse_duration_s, parse_timeout_s
from raygen.errors import InputError, SpecError
from raygen.queue.job import NODE_TIMEOUT_S, ON_DEMAND_NODE_TIMEOUT_S, JobState, check_time_limit

DATA, _RUNNING = "Data", "Running and output"
"""Headings of the help."""

Output = Literal["table", "json"]
"""What a command prints its result as."""


def _timeout_s(text: str) -> float:
    """What an option that may be a number of seconds alone was given; raises BadParameter, which names the option."""
    try:
        return parse_timeout_s(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


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
DataRoot = Annotated[Path | None, typer.Option(help="Folder with downloaded data sets.", rich_help_panel=DATA)]
ImageSize = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Resize images to squares of this side.", rich_help_panel=DATA)
]
OtherData = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Data set name, folder of images, .npy or .npz file.",
        show_default="what the model was trained on",
        rich_help_panel=DATA,
    ),
]
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
