"""Options that say what is trained, on what images and devices, and how they become settings of a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from cli.options import DATA
from raygen.data import DataOptions
from raygen.errors import SpecError
from raygen.spec import Compile, Precision, TrainingOptions

_TRAINING, _DEVICES = "Training", "Devices"


def default(options: type[BaseModel], field: str) -> str:
    """The default of a spec's field, for the help; no option has a default of its own."""
    return str(options.model_fields[field].default)


Model = Annotated[str | None, typer.Argument(help="Model family; `raygen models` lists them.", show_default=False)]
Data = Annotated[
    str | None,
    typer.Option(
        help="Data set name, folder of images, .npy or .npz file.",
        show_default=default(DataOptions, "source"),
        rich_help_panel=DATA,
    ),
]
NormalClass = Annotated[
    int | None,
    typer.Option(
        help="Train on this class only, to find what is none.", show_default="all classes", rich_help_panel=DATA
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
CompileOption = Annotated[
    Compile | None,
    typer.Option(
        "--compile",
        help="Record and compile steps; auto: on a GPU, if it pays.",
        show_default=default(TrainingOptions, "compile"),
        rich_help_panel=_TRAINING,
    ),
]
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
GpusPerTrial = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Below 1, trials share a GPU; auto measures how many are best.",
        rich_help_panel=_DEVICES,
    ),
]
CpusPerTrial = Annotated[int | None, typer.Option(help="CPU cores of each trial.", rich_help_panel=_DEVICES)]
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
