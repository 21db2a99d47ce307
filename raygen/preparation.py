"""Preparing jobs: from what a person set to a checked spec, and the devices that it will use.

Nothing here imports torch or Ray before a job is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raygen.capacity import Capacity
from raygen.errors import JobError, ResourceError, SpecError
from raygen.plan import Plan, plan_search, plan_training
from raygen.progress import in_words
from raygen.queue.job import Job, JobState
from raygen.record import ranking
from raygen.record.view import View

if TYPE_CHECKING:
    from raygen.data import Dataset
    from raygen.results import TrainedModel
    from raygen.spec import Resources, Settings, TrainSpec, TuneSpec

IMAGES_PART = 0.5
"""The part of a GPU's memory that images are expected to find beside a model that has not been measured yet."""


@dataclass(frozen=True)
class Prepared:
    """What would run, and on which devices; nothing has been queued yet."""

    spec: TrainSpec
    plan: Plan
    warm_weights: bytes | None = None
    """The file, safetensors, that the spec's warm start is the digest of."""

    @property
    def kind(self) -> str:
        """What made it: train or tune."""
        return "tune" if hasattr(self.spec, "search") else "train"

    @property
    def direction(self) -> str:
        """Which way the objective is better: min or max."""
        from raygen import metrics

        return metrics.find(self.spec.evaluation.objective).direction


def prepare_training(model: str, settings: Settings, capacity: Capacity) -> Prepared:
    """The job of training `model`; raises InputError where spec or devices cannot be."""
    from raygen.spec import TrainSpec

    # Devices first: they are known long before torch, which the spec needs, is imported.
    plan = _planned(partial(plan_training, _resources(settings)), capacity)
    return Prepared(TrainSpec.create(model, with_absolute_paths(settings)), plan)


def prepare_training_from(file: Path, settings: Settings, capacity: Capacity) -> Prepared:
    """The job of training what a TOML file says, with `settings` over it; raises InputError like prepare_training."""
    from raygen.spec import TrainSpec, read_file

    model, written = read_file(file)
    if "model.name" in settings:
        raise SpecError(f"model.name: {file} says that the model is {model!r}; leave it out")
    plan = _planned(partial(plan_training, _resources({**written, **settings})), capacity)
    try:
        spec = TrainSpec.create(model, with_absolute_paths(written))
    except SpecError as error:
        raise SpecError(f"{file}: {error}") from error
    return Prepared(spec.with_settings(with_absolute_paths(settings)), plan)


def start_from(name: str, autoencoder: TrainedModel, prepared: Prepared) -> Prepared:
    """The same training of a gan, whose generator begins as the decoder of the autoencoder of that name.

    Raises SpecError if it is none of a gan, or generator and decoder are not built alike; RunError and CheckpointError
    if it is no autoencoder.
    """
    from raygen import data, warm_start

    spec, weights = warm_start.from_decoder(name, autoencoder, prepared.spec, data.load(prepared.spec.data))
    return replace(prepared, spec=spec, warm_weights=weights)


def prepare_search(
    model: str,
    settings: Settings,
    capacity: Capacity,
    *,
    space: str | None = None,
    vary: Mapping[str, str] | None = None,
) -> Prepared:
    """The job of searching for the best `model`; raises InputError where spec, space or devices cannot be."""
    from raygen.spec import TuneSpec

    _planned(partial(plan_search, _resources(settings), trials=1), capacity)
    spec = TuneSpec.search_over(space, model, with_absolute_paths(settings), vary=vary)
    return Prepared(spec, _planned(partial(plan_search, spec.resources, trials=spec.search.trials), capacity))


def _planned(plan: Callable[[Capacity], Plan], capacity: Capacity) -> Plan:
    """The plan of a job, for the nodes that there are; else for those too that were lost lately and may come back."""
    try:
        return plan(capacity)
    except ResourceError as refusal:
        if not capacity.lost:
            raise
        try:
            return plan(capacity.before_losses())
        except ResourceError:
            raise refusal from None


def check_data(prepared: Prepared) -> int:
    """Decode the images if that has not been done, and raise InputError where they do not suit the job.

    Returns the bytes that the training images take.
    """
    from raygen import data

    spec, plan = prepared.spec, prepared.plan
    dataset = data.load(spec.data)
    _check_shape(spec, dataset)
    if spec.data.balance:
        dataset.classes_to_balance()
    smallest, largest = spec.batch_sizes()
    training_images = len(dataset.train.images)
    if largest > training_images:
        raise SpecError(
            f"training.batch_size: {largest} is more than the {training_images} training images of {dataset.name}"
        )
    if smallest < plan.workers:
        raise SpecError(f"training.batch_size: {smallest} images cannot be shared by {plan.workers} processes")
    return dataset.train.images.nbytes


def where_images_lie(prepared: Prepared, images_bytes: int, *, memory_bytes: int | None) -> str:
    """Where the training images of a job on GPUs lie, in a line; `memory_bytes` is what the smallest of these has.

    If that is known it says what is to be expected; which it is follows from what the model takes when it is trained.
    """
    images, wish = f"{in_words(images_bytes)} of training images", prepared.spec.training.images_on
    if wish != "auto":
        return f"{images} lie on the {'GPU' if wish == 'device' else 'host'}, as asked"
    if memory_bytes is None:
        return f"{images} lie on the GPU if they fit beside the model, else on the host"
    own_bytes = int(memory_bytes * min(prepared.plan.gpus_per_worker, 1.0))
    of_it = f"{in_words(own_bytes)} of GPU memory for each process"
    if images_bytes <= IMAGES_PART * own_bytes:
        return f"{images} lie on the GPU, with {of_it}"
    return f"{images} are likely to stay on the host, with {of_it}"


def extended(job: Job, view: View, *, trials: int | None = None, epochs: int | None = None) -> TuneSpec:
    """The spec of a finished search made longer; raises like Site.extend, which it says the effect of."""
    from raygen.spec import TuneSpec

    if job.state is not JobState.SUCCEEDED:
        raise JobError(f"{job.name} is {job.state}; only a job that has succeeded can be extended")
    spec = view.spec()
    spec.check_trainable()
    if not isinstance(spec, TuneSpec):
        raise SpecError(f"{job.name} was made by `raygen {job.kind}`; only a search can be extended")
    wanted = {"search.trials": trials, "training.epochs": epochs}
    had = {"search.trials": spec.search.trials, "training.epochs": spec.training.epochs}
    settings = {path: value for path, value in wanted.items() if value is not None}
    for path, value in settings.items():
        if value < had[path]:
            option = path.rpartition(".")[2]
            raise SpecError(
                f"--{option} {value} is fewer than the {had[path]} that {view.name} has; name more of them"
            )
    if all(value == had[path] for path, value in settings.items()) and ranking.is_complete(view):
        raise SpecError(
            f"{view.name} has {had['search.trials']} trials of {had['training.epochs']} epochs already; "
            "name more of them with --trials, --epochs or both"
        )
    if settings.get("training.epochs", 0) > had["training.epochs"]:
        _check_longer(spec)
    return spec.with_settings(settings)


def _check_longer(spec: TuneSpec) -> None:
    """Raise SpecError where a training of more epochs would not have begun as the shorter one did."""
    varied = spec.search.space.parameters.keys()
    if "training.epochs" in varied:
        raise SpecError("training.epochs is what the search varies; leave out --epochs")
    if {"optimizer.schedule", "optimizer.warmup_fraction"} & varied or (
        spec.optimizer.schedule != "constant" or spec.optimizer.warmup_fraction > 0
    ):
        raise SpecError(
            "the learning rate of this search follows the number of epochs (optimizer.schedule, "
            "optimizer.warmup_fraction), so its trainings cannot be made longer; leave out --epochs"
        )


def _resources(settings: Settings) -> Resources:
    from raygen.spec import resources

    return resources(settings)


def with_absolute_paths(settings: Settings) -> Settings:
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
