"""Jobs from Python: what the command line calls, and what a notebook may call.

    import raygen
    run = raygen.tune("vae", {"data.source": "fashion-mnist", "search.trials": 8})
    model = raygen.load(run.name).model

Nothing here imports torch or Ray before a job is made.
"""

from __future__ import annotations

import getpass
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen.errors import (
    JobError,
    JobFailedError,
    RaygenError,
    ResourceError,
    RunError,
    RunInterruptedError,
    SpecError,
)
from raygen.plan import Capacity, Plan, plan_search, plan_training
from raygen.queue.job import ACTIVE, ENDED, RETRIED, Job, Request, State
from raygen.runs import CHECKPOINT, Run, default_storage

if TYPE_CHECKING:
    from raygen.cluster.service import Service
    from raygen.data import Dataset
    from raygen.queue.store import Store
    from raygen.results import TrainedModel
    from raygen.spec import Resources, TrainSpec, TuneSpec

Settings = Mapping[str, Any]

POLL_EVERY_S = 0.25


@dataclass(frozen=True)
class Prepared:
    """What would run, and on which devices; nothing has been queued yet."""

    spec: TrainSpec
    plan: Plan

    @property
    def kind(self) -> str:
        """What made it: train or tune."""
        return "tune" if hasattr(self.spec, "search") else "train"

    @property
    def direction(self) -> str:
        """Which way the objective is better: min or max."""
        from raygen import metrics

        return metrics.find(self.spec.evaluation.objective).direction


class Site:
    """Where jobs go: a storage folder with its queue, and a cluster."""

    def __init__(self, storage: Path | None = None, address: str | None = None, *, create: bool = False) -> None:
        """Open the queue; one that was never made is made only with `create`, or when a job is queued.

        Raises QueueError where it cannot be used, RunError where the storage is no folder, and ResourceError where
        `address` is no dashboard's address.
        """
        from raygen.cluster.session import dashboard_address
        from raygen.queue.store import Store

        place = storage or default_storage()
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(place)):
            raise RunError(
                f"--storage {place} is an object store's address; runs need a folder that every node sees at the same "
                "path: NFS, EFS, Filestore, or the bucket mounted"
            )
        self.storage = place.expanduser().absolute()
        self.store: Store = Store.open(self.storage, create=create)
        self._address = dashboard_address(address)

    @cached_property
    def service(self) -> Service:
        """What runs in the background for the queue; those who only look at the queue need not import it."""
        from raygen.cluster.service import Service

        return Service(self.storage, self._address)

    def capacity(self) -> Capacity:
        """What the cluster has in all; raises ClusterUnreachableError where it must be asked and is silent."""
        return self.service.capacity(self.store)

    @property
    def place(self) -> str:
        """The cluster in words."""
        from raygen.queue.store import place

        return place(self.service.cluster)

    def require_local(self, command: str) -> None:
        """Raise ResourceError where jobs would go to another cluster than this machine's own."""
        if self.service.address is not None:
            raise ResourceError(
                f"{command} is for this machine, but jobs go to {self.service.address}; unset its variable"
            )

    def status(self) -> dict[str, Any]:
        """What runs for the queue, and how many jobs are in which state, as plain JSON."""
        cluster = self.store.cluster(self.service.cluster)
        active = [job for job in self.store.list(states=ACTIVE) if job.cluster == cluster.name]
        capacity = cluster.capacity
        return {
            "cluster": self.place,
            "address": self.service.address or self.service.head.address,
            "gpus": capacity and capacity.gpus,
            "cpus": capacity and capacity.cpus,
            "gpus_in_use": sum(job.gpus for job in active),
            "cpus_in_use": sum(job.cpus for job in active),
            "unreachable_since": cluster.unreachable_since,
            "problem": cluster.problem,
            "dispatchers": [
                {"host": each.host, "pid": each.pid, "alive": self.service.works(each)}
                for each in self.store.dispatchers()
                if each.cluster == cluster.name
            ],
            "ends_when_idle": self.service.ends_when_idle(),
            "queue": self.store.address,
            "storage": str(self.storage),
            "jobs": {str(state): number for state, number in self.store.count().items()},
        }

    def submit(
        self,
        prepared: Prepared,
        *,
        name: str | None = None,
        priority: int = Request.priority,
        retries: int = Request.retries,
    ) -> Job:
        """Make the run folder, queue the job, and see to it that a dispatcher will start it.

        Raises RunError where the folder cannot be made, JobError where the name is taken, ResourceError where the
        cluster's nodes lack the storage, and ServiceError where no dispatcher starts (the job is queued then).
        """
        from raygen.queue.store import Store

        self.service.check_nodes()
        run = Run.create(self.storage, prepared.kind, prepared.spec, prepared.plan, prepared.direction, name=name)
        self.store = Store.open(self.storage)
        job = self.store.submit(
            Request(
                name=run.name,
                folder=str(run.folder),
                kind=prepared.kind,
                model=prepared.spec.model.name,
                data=prepared.spec.data.source,
                user=getpass.getuser(),
                cluster=self.service.cluster,
                priority=priority,
                retries=retries,
                gpus=prepared.plan.gpus,
                cpus=prepared.plan.cpus,
            )
        )
        self.service.ensure(self.store)
        return job

    def retry(self, job: Job) -> Job:
        """Queue a failed or cancelled job again; trials that failed go on too. Raises JobError for any other."""
        if job.state not in RETRIED:
            raise JobError(f"{job.name} is {job.state}; only a failed or cancelled job can be tried again")
        Run(Path(job.folder)).reopen()
        queued = self.store.retry(job)
        self.tend(queued)
        return queued

    def extend(self, job: Job, *, trials: int | None = None, epochs: int | None = None) -> Job:
        """Queue a finished search again, for so many trials in all, or epochs of each trial.

        Raises JobError where the job has not succeeded, and SpecError where it is no search or cannot be extended so.
        """
        run = Run(Path(job.folder))
        # A driver of an earlier attempt that is still ending writes there too.
        with run.lock():
            run.extend(extended(job, trials=trials, epochs=epochs))
        queued = self.store.extend(job)
        self.tend(queued)
        return queued

    def tend(self, job: Job) -> None:
        """See to it that a dispatcher works for the job's cluster, where this machine is the one to do so."""
        from raygen.cluster.service import Service

        if job.cluster == self.service.cluster:
            self.service.ensure(self.store)
        elif "://" in job.cluster:
            Service(self.storage, job.cluster).ensure(self.store)

    def cancel(self, job: Job) -> Job:
        """End a job, soon; raises JobError where it has ended."""
        cancelled = self.store.cancel(job)
        if cancelled.state not in ENDED:
            self.tend(job)
        return cancelled

    def remove(self, job: Job) -> None:
        """Forget a job that has ended and delete its run folder; raises JobError where it has not ended."""
        if self.store.get(job.id).state not in ENDED:
            raise JobError(f"{job.name} is {job.state}; `raygen cancel {job.name}` ends it first")
        # The folder first: where that fails, the job can still be removed again.
        try:
            shutil.rmtree(job.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RunError(f"cannot remove {job.folder}: {error.strerror}") from error
        self.store.remove(job)

    def wait(self, job: Job) -> Run:
        """Wait for the job's end; raises what it ended with, unless it succeeded."""
        while (job := self.store.get(job.id)).state not in ENDED:
            self.tend(job)
            time.sleep(POLL_EVERY_S)
        check(job)
        return Run(Path(job.folder))


def check(job: Job) -> None:
    """Raise what an ended job ended with, unless it succeeded."""
    if job.state is State.CANCELLED:
        raise RunInterruptedError(f"{job.name} was cancelled; `raygen retry {job.name}` goes on with it")
    if job.state is State.FAILED:
        failure: RaygenError = JobFailedError(f"{job.name} failed: {job.reason}")
        failure.exit_code = Run(Path(job.folder)).status().exit_code or failure.exit_code
        raise failure


def train(
    model: str, settings: Settings | None = None, *, storage: Path | None = None, address: str | None = None
) -> Run:
    """Train `model` with some fields of its spec set, and wait; raises what the job ended with unless it succeeded."""
    site = Site(storage, address)
    return _to_the_end(site, prepare_training(model, settings or {}, site.capacity()))


def tune(
    model: str,
    settings: Settings | None = None,
    *,
    space: str | None = None,
    storage: Path | None = None,
    address: str | None = None,
) -> Run:
    """Search over `space` (a name or a TOML file; the model's own unless given), and wait; raises like `train`."""
    site = Site(storage, address)
    return _to_the_end(site, prepare_search(model, settings or {}, site.capacity(), space=space))


def load(run_or_path: str | Path, *, storage: Path | None = None) -> TrainedModel:
    """The best model of a run, by the run's name or folder, the one in a best/N folder, or of a .safetensors file.

    Raises RunError where there is none, CheckpointError where its files are damaged.
    """
    from raygen import results

    return results.load(find_checkpoint(run_or_path, storage=storage))


def find_checkpoint(run_or_path: str | Path, *, storage: Path | None = None) -> Path:
    """Where the best model of a run is, or the best/N folder or .safetensors file itself; raises RunError."""
    path = Path(run_or_path)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    if (path / CHECKPOINT).is_file():
        return path
    return Run.open(str(run_or_path), Path(storage or default_storage())).best()


def load_images(
    trained: TrainedModel,
    *,
    source: str | None = None,
    root: Path | None = None,
    image_size: int | None = None,
    all_classes: bool = False,
) -> Dataset:
    """The data set that a model was trained on, or another `source`, prepared as those images were.

    `all_classes` adds to the normal class, where a model was trained on one only, the others.
    Raises SpecError and DataError where there is none, or its images are of another shape than the model's.
    """
    from raygen import data, results

    given: dict[str, Any] = {"data.source": source, "data.root": root and str(root), "data.image_size": image_size}
    settings = {path: value for path, value in given.items() if value is not None}
    if all_classes:
        settings["data.normal_class"] = None
    dataset = data.load(trained.spec.with_settings(_with_absolute_paths(settings)).data)
    results.check_shape(trained, dataset)
    return dataset


def prepare_training(model: str, settings: Settings, capacity: Capacity) -> Prepared:
    """The job of training `model`; raises InputError where spec or devices cannot be."""
    from raygen.spec import TrainSpec

    # Devices first: they are known long before torch, which the spec needs, is imported.
    plan = plan_training(_resources(settings), capacity)
    return Prepared(TrainSpec.create(model, _with_absolute_paths(settings)), plan)


def prepare_search(model: str, settings: Settings, capacity: Capacity, *, space: str | None = None) -> Prepared:
    """The job of searching for the best `model`; raises InputError where spec, space or devices cannot be."""
    from raygen.spec import TuneSpec

    plan_search(_resources(settings), capacity, trials=1)
    spec = TuneSpec.search_over(space or model, model, _with_absolute_paths(settings))
    return Prepared(spec, plan_search(spec.resources, capacity, trials=spec.search.trials))


def check_data(prepared: Prepared) -> None:
    """Decode the images if that has not been done, and raise InputError where they do not suit the job."""
    from raygen import data

    spec, plan = prepared.spec, prepared.plan
    dataset = data.load(spec.data)
    _check_shape(spec, dataset)
    smallest, largest = spec.batch_sizes()
    if largest > len(dataset.train):
        raise SpecError(
            f"training.batch_size: {largest} is more than the {len(dataset.train)} training images of {dataset.name}"
        )
    if smallest < plan.workers:
        raise SpecError(f"training.batch_size: {smallest} images cannot be shared by {plan.workers} processes")


def extended(job: Job, *, trials: int | None = None, epochs: int | None = None) -> TuneSpec:
    """The spec of a finished search made longer; raises like Site.extend, which it says the effect of."""
    from raygen.spec import TuneSpec

    if job.state is not State.SUCCEEDED:
        raise JobError(f"{job.name} is {job.state}; only a job that has succeeded can be extended")
    run = Run(Path(job.folder))
    spec = run.spec()
    if not isinstance(spec, TuneSpec):
        raise SpecError(f"{job.name} was made by `raygen {job.kind}`; only a search can be extended")
    wanted = {"search.trials": trials, "training.epochs": epochs}
    had = {"search.trials": spec.search.trials, "training.epochs": spec.training.epochs}
    settings = {path: value for path, value in wanted.items() if value is not None}
    for path, value in settings.items():
        if value < had[path]:
            option = path.rpartition(".")[2]
            raise SpecError(f"--{option} {value} is fewer than the {had[path]} that {run.name} has; name more of them")
    if all(value == had[path] for path, value in settings.items()) and run.is_complete():
        raise SpecError(
            f"{run.name} has {had['search.trials']} trials of {had['training.epochs']} epochs already; "
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


def _to_the_end(site: Site, prepared: Prepared) -> Run:
    check_data(prepared)
    try:
        return site.wait(site.submit(prepared))
    finally:
        site.service.wait_until_ended(site.store)


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
