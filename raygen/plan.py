"""How a job's devices are shared out: trials at once, processes for each, devices for each process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from raygen.errors import ResourceError
from raygen.spec import Resources


@dataclass(frozen=True)
class Capacity:
    """What a cluster has in all."""

    gpus: int
    cpus: int
    where: str

    def __str__(self) -> str:
        return f"{self.where} has {self.gpus} GPUs and {self.cpus} CPU cores"


@dataclass(frozen=True)
class Plan:
    """What a job will occupy; each trial runs in `workers` processes with these devices each.

    An elastic training goes on with fewer processes, `elastic_from` at least, while nodes are away.
    """

    concurrent: int
    workers: int
    gpus_per_worker: float
    cpus_per_worker: int
    elastic_from: int | None = None

    @property
    def gpus(self) -> float:
        """GPUs of all trials at once."""
        return self.concurrent * self.workers * self.gpus_per_worker

    @property
    def cpus(self) -> int:
        """CPU cores of all trials at once."""
        return self.concurrent * self.workers * self.cpus_per_worker

    @property
    def devices_per_trial(self) -> str:
        """The devices of one trial in words."""
        if self.gpus_per_worker:
            gpus = self.workers * self.gpus_per_worker
            return f"{gpus:g} GPU{'s' if gpus > 1 else ''}"
        cpus = self.workers * self.cpus_per_worker
        processes = f" in {self.workers} processes" if self.workers > 1 else ""
        return f"{cpus} CPU core{'s' if cpus > 1 else ''}{processes}"

    def as_json(self) -> dict[str, Any]:
        """The plan's numbers by name."""
        return asdict(self)


def allot(resources: Resources, capacity: Capacity) -> tuple[int, int]:
    """GPUs and CPU cores that a job may use; raises ResourceError where the cluster has fewer than it asks for."""
    for name, wanted, has in (("gpus", resources.gpus, capacity.gpus), ("cpus", resources.cpus, capacity.cpus)):
        if wanted is not None and wanted > has:
            instead = f"type --{name} {has}" if has else f"leave out --{name}"
            raise ResourceError(f"--{name} {wanted} is more than there is: {capacity}; {instead}")
    gpus = capacity.gpus if resources.gpus is None else resources.gpus
    cpus = capacity.cpus if resources.cpus is None else resources.cpus
    return gpus, cpus


def plan_training(resources: Resources, capacity: Capacity) -> Plan:
    """One training on all the job's devices; raises ResourceError where they do not suffice."""
    if resources.gpus_per_trial is not None or resources.cpus_per_trial is not None:
        raise ResourceError("--gpus-per-trial and --cpus-per-trial are for searches; a training takes --gpus, --cpus")
    gpus, cpus = allot(resources, capacity)
    workers = resources.workers or max(gpus, 1)
    if gpus and workers > gpus:
        raise ResourceError(f"--workers {workers} needs as many GPUs, there are {gpus}; type --workers {gpus}")
    _check_cores(workers, cpus, option="--workers")
    return Plan(concurrent=1, workers=workers, gpus_per_worker=1 if gpus else 0, cpus_per_worker=cpus // workers)


def plan_search(resources: Resources, capacity: Capacity, *, trials: int) -> Plan:
    """As many trials at once as the job's devices hold; raises ResourceError where they do not hold one."""
    gpus, cpus = allot(resources, capacity)
    if gpus:
        return _plan_gpu_search(resources, gpus=gpus, cpus=cpus, trials=trials)
    if resources.gpus_per_trial is not None:
        raise ResourceError(f"--gpus-per-trial {resources.gpus_per_trial:g} needs a GPU: {capacity}; leave it out")
    workers = resources.workers or 1
    _check_cores(workers, cpus, option="--workers")
    cpus_per_trial = _cpus_per_trial(resources, workers=workers, cpus=cpus)
    concurrent = min(cpus // cpus_per_trial, trials)
    return Plan(concurrent, workers, gpus_per_worker=0, cpus_per_worker=cpus_per_trial // workers)


def _plan_gpu_search(resources: Resources, *, gpus: int, cpus: int, trials: int) -> Plan:
    gpus_per_trial = resources.gpus_per_trial or resources.workers or 1
    option = "--workers" if resources.gpus_per_trial is None else "--gpus-per-trial"
    if gpus_per_trial > gpus:
        raise ResourceError(f"{option} {gpus_per_trial:g} is more than the search's {gpus} GPUs; type {option} {gpus}")
    if gpus_per_trial > 1 and gpus_per_trial != int(gpus_per_trial):
        raise ResourceError(
            f"--gpus-per-trial {gpus_per_trial:g} must be a whole number above 1, or a fraction below it; "
            f"type --gpus-per-trial {int(gpus_per_trial)}"
        )
    workers = max(int(gpus_per_trial), 1)
    if resources.workers not in (None, workers):
        raise ResourceError(
            f"--workers {resources.workers} does not suit {gpus_per_trial:g} GPUs a trial: one process takes one; "
            f"type --workers {workers}"
        )
    _check_cores(workers, cpus, option=option)
    cpus_per_trial = _cpus_per_trial(resources, workers=workers, cpus=cpus)
    # A fraction must fit into one GPU: 3 trials at 0.4 need two.
    concurrent = gpus // workers if gpus_per_trial >= 1 else gpus * int(1 / gpus_per_trial)
    concurrent = min(concurrent, trials, cpus // cpus_per_trial)
    if resources.cpus_per_trial is None:
        cpus_per_trial = cpus // concurrent
    return Plan(concurrent, workers, gpus_per_trial / workers, cpus_per_worker=cpus_per_trial // workers)


def _cpus_per_trial(resources: Resources, *, workers: int, cpus: int) -> int:
    """CPU cores that a trial takes at least; raises ResourceError where they are more than there are, or too few."""
    wanted = resources.cpus_per_trial or workers
    if wanted > cpus:
        raise ResourceError(
            f"--cpus-per-trial {wanted} is more than the search's {cpus} CPU cores; type --cpus-per-trial {cpus}"
        )
    if wanted < workers:
        raise ResourceError(
            f"--cpus-per-trial {wanted} is too few for {workers} processes, which need a CPU core each; "
            f"type --cpus-per-trial {workers}"
        )
    return wanted


def _check_cores(workers: int, cpus: int, *, option: str) -> None:
    if workers > cpus:
        raise ResourceError(f"{workers} processes need a CPU core each, there are {cpus}; type {option} {cpus}")
