"""Jobs from Python: what the command line calls, and what a notebook may call.

    import raygen
    run = raygen.tune("vae", {"data.source": "fashion-mnist", "search.trials": 8})
    model = raygen.load(run.name).model

Nothing here imports torch or Ray before a job is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen.errors import RunError, SpecError
from raygen.plan import Plan, plan_search, plan_training
from raygen.runs import Run, default_storage

if TYPE_CHECKING:
    from raygen.cluster.launch import Driver
    from raygen.data import Dataset
    from raygen.results import TrainedModel
    from raygen.spec import Resources, TrainSpec

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """What will run, and on which devices; nothing has started yet."""

    spec: TrainSpec
    plan: Plan
    address: str | None

    @property
    def kind(self) -> str:
        """What made it: train or tune."""
        return "tune" if hasattr(self.spec, "search") else "train"

    @property
    def direction(self) -> str:
        """Which way the objective is better: min or max."""
        from raygen import metrics

        return metrics.find(self.spec.evaluation.objective).direction


def train(
    model: str, settings: Settings | None = None, *, storage: Path | None = None, address: str | None = None
) -> Run:
    """Train `model` with some fields of its spec set, and wait; raises what the job ended with, unless it finished."""
    return _run_to_the_end(prepare_training(model, settings or {}, address=address), storage)


def tune(
    model: str,
    settings: Settings | None = None,
    *,
    space: str | None = None,
    storage: Path | None = None,
    address: str | None = None,
) -> Run:
    """Search over `space` (a name or a TOML file; the model's own unless given), and wait; raises like `train`."""
    return _run_to_the_end(prepare_search(model, settings or {}, space=space, address=address), storage)


def load(run_or_path: str | Path, *, storage: Path | None = None) -> TrainedModel:
    """The best model of a run, by the run's name or folder, or the one in a best/N folder.

    Raises RunError where there is none, CheckpointError where its files are damaged.
    """
    from raygen import results

    path = Path(run_or_path)
    if (path / results.WEIGHTS).is_file():
        return results.load(path)
    return results.load(Run.open(str(run_or_path), Path(storage or default_storage())).best())


def prepare_training(model: str, settings: Settings, *, address: str | None = None) -> Job:
    """The job of training `model`; raises InputError where spec or devices cannot be."""
    from raygen.cluster.session import capacity
    from raygen.spec import TrainSpec

    # Devices first: they are known long before torch, which the spec needs, is imported.
    plan = plan_training(_resources(settings), capacity(address))
    return Job(TrainSpec.create(model, _with_absolute_paths(settings)), plan, address)


def prepare_search(model: str, settings: Settings, *, space: str | None = None, address: str | None = None) -> Job:
    """The job of searching for the best `model`; raises InputError where spec, space or devices cannot be."""
    from raygen.cluster.session import capacity
    from raygen.spec import TuneSpec

    has = capacity(address)
    plan_search(_resources(settings), has, trials=1)
    spec = TuneSpec.search_over(space or model, model, _with_absolute_paths(settings))
    return Job(spec, plan_search(spec.resources, has, trials=spec.search.trials), address)


def check_data(job: Job) -> None:
    """Decode the images if that has not been done, and raise InputError where they do not suit the job."""
    from raygen import data

    dataset = data.load(job.spec.data)
    _check_shape(job.spec, dataset)
    smallest, largest = job.spec.batch_sizes()
    if largest > len(dataset.train):
        raise SpecError(
            f"training.batch_size: {largest} is more than the {len(dataset.train)} training images of {dataset.name}"
        )
    if smallest < job.plan.workers:
        raise SpecError(f"training.batch_size: {smallest} images cannot be shared by {job.plan.workers} processes")


def create_run(job: Job, *, storage: Path | None = None) -> Run:
    """Make the job's run folder; raises RunError where that cannot be done."""
    return Run.create(Path(storage or default_storage()), job.kind, job.spec, job.plan, job.direction)


def start(run: Run, *, address: str | None = None, verbose: bool = False) -> Driver:
    """Start the process that runs what a run still lacks."""
    from raygen.cluster.launch import Driver

    return Driver(run, address, verbose=verbose)


def check_resumable(run: Run) -> None:
    """Raise RunError where a run is running now, or has no unfinished trial left."""
    if run.status().state == "running":
        raise RunError(f"{run.name} is running already; `raygen show {run.name}` shows how far it is")
    if run.is_complete():
        raise RunError(f"{run.name} has no unfinished trial left; `raygen show {run.name}` shows its result")


def _run_to_the_end(job: Job, storage: Path | None) -> Run:
    check_data(job)
    driver = start(create_run(job, storage=storage), address=job.address)
    try:
        driver.wait()
    except KeyboardInterrupt:
        driver.ask_to_stop()
    driver.check()
    return driver.run


def _resources(settings: Settings) -> Resources:
    from raygen.spec import resources

    return resources(settings)


def _with_absolute_paths(settings: Settings) -> Settings:
    """The settings with paths that hold wherever the job's processes run."""
    from raygen import data

    absolute = dict(settings)
    for key in ("data.source", "data.root"):
        path = settings.get(key)
        is_name = key == "data.source" and path in data.names()
        if isinstance(path, str | Path) and not is_name:
            absolute[key] = str(Path(path).expanduser().absolute())
    return absolute


def _check_shape(spec: TrainSpec, dataset: Dataset) -> None:
    import torch

    from raygen import models
    from raygen.models._base import ImageShape

    with torch.device("meta"):
        models.find(spec.model.name)(spec.model, ImageShape(*dataset.shape))
