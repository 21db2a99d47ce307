"""How a job's devices are shared out: trials at once, processes for each, devices for each process.

Every process of a plan fits some node, so what a plan claims can be placed on the empty cluster as it is.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from raygen.capacity import ROUNDING, Capacity, Devices, count
from raygen.errors import ResourceError
from raygen.spec import Resources

RAY_PARTS = 10_000
"""Into so many parts Ray divides a GPU."""


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
        return self.processes * self.gpus_per_worker

    @property
    def cpus(self) -> int:
        """CPU cores of all trials at once."""
        return self.processes * self.cpus_per_worker

    @property
    def processes(self) -> int:
        """Processes of all trials at once."""
        return self.concurrent * self.workers

    @property
    def fewest_processes(self) -> int:
        """The processes without which the job cannot go on at all: those of one trial."""
        return self.elastic_from or self.workers

    @property
    def each(self) -> Devices:
        """What one process takes of its node."""
        return Devices(self.gpus_per_worker, self.cpus_per_worker)

    @property
    def devices_per_trial(self) -> str:
        """The devices of one trial in words."""
        if self.gpus_per_worker:
            devices = count(self.workers * self.gpus_per_worker, "GPU")
        else:
            devices = count(self.workers * self.cpus_per_worker, "CPU core")
        if self.elastic_from is not None:
            return f"{devices} in {self.elastic_from} to {self.workers} processes"
        return f"{devices} in {self.workers} processes" if self.workers > 1 and not self.gpus_per_worker else devices

    def as_json(self) -> dict[str, Any]:
        """The plan's numbers by name."""
        return asdict(self)


def plan_training(resources: Resources, capacity: Capacity) -> Plan:
    """One training on the job's GPUs, or without GPUs on the largest node.

    Raises ResourceError if no node holds one of its processes, or all nodes together too few of them.
    """
    if resources.gpus_per_trial is not None or resources.cpus_per_trial is not None:
        raise ResourceError("--gpus-per-trial and --cpus-per-trial are for searches; a training takes --gpus, --cpus")
    check_totals(resources, capacity)
    gpus = _gpus(resources, capacity)
    workers = resources.most_workers or max(gpus, 1)
    if gpus and workers > gpus:
        raise ResourceError(f"--workers {workers} needs as many GPUs, there are {gpus}; type --workers {gpus}")
    if gpus:
        cpus = _share_of_cores(resources, capacity, gpus_each=1, wanted=workers)
        each = Devices(1, cpus)
    else:
        each = Devices(0, _most_cores(resources, capacity, workers))
    _check_room(each, workers, capacity, resources, option="--workers")
    return Plan(1, workers, each.gpus, int(each.cpus), resources.elastic_from)


def plan_search(resources: Resources, capacity: Capacity, *, trials: int) -> Plan:
    """As many trials at once as the job's devices hold; raises ResourceError if they do not hold one."""
    check_totals(resources, capacity)
    gpus = _gpus(resources, capacity)
    if gpus:
        return _plan_gpu_search(resources, capacity, gpus=gpus, trials=trials)
    if resources.gpus_per_trial is not None:
        share = resources.gpus_per_trial
        typed = share if share == "auto" else f"{share:g}"
        raise ResourceError(f"--gpus-per-trial {typed} needs a GPU: {capacity}; leave it out")
    workers = resources.most_workers or 1
    each = Devices(0, _cores_of_trial(resources, workers) // workers)
    room = _check_room(each, workers, capacity, resources, option="--workers")
    return Plan(min(room // workers, trials), workers, 0, int(each.cpus), resources.elastic_from)


def _plan_gpu_search(resources: Resources, capacity: Capacity, *, gpus: int, trials: int) -> Plan:
    per_trial = _gpus_per_trial(resources)
    option = "--workers" if resources.gpus_per_trial is None else "--gpus-per-trial"
    workers = _workers_of_gpus(resources, per_trial, gpus, option)
    share = per_trial / workers
    on_each_gpu = int(1 / share + ROUNDING)
    wanted = min(gpus * on_each_gpu // workers, trials) * workers
    if resources.cpus_per_trial is not None:
        cpus = _cores_of_trial(resources, workers) // workers
    else:
        cpus = _share_of_cores(resources, capacity, gpus_each=share, wanted=wanted)
    each = Devices(share, cpus)
    room = min(_check_room(each, workers, capacity, resources, option=option), wanted)
    return Plan(room // workers, workers, share, cpus, resources.elastic_from)


def _gpus_per_trial(resources: Resources) -> float:
    """The GPUs that the devices of a search are counted by; raises ResourceError for what does not go with auto."""
    if resources.gpus_per_trial != "auto":
        return resources.gpus_per_trial or resources.most_workers or 1
    if resources.most_workers not in (None, 1):
        raise ResourceError(
            "--workers goes with trials that have GPUs of their own, and with --gpus-per-trial auto they share one; "
            "type --workers 1"
        )
    if resources.cpus_per_trial is not None:
        raise ResourceError(
            "with --gpus-per-trial auto the trials on a GPU share its CPU cores; leave out --cpus-per-trial"
        )
    return 1


def packed(plan: Plan, at_once: int, *, trials: int) -> Plan:
    """The plan of trials with a GPU each, on the same devices, with as many on each GPU at once, if so many are left.

    Every process keeps a CPU core.
    """
    at_once = max(min(at_once, plan.cpus_per_worker, math.ceil(trials / plan.concurrent)), 1)
    # Ray counts in ten-thousandths of a GPU, and so many must fit into one.
    share = math.floor(RAY_PARTS / at_once) / RAY_PARTS
    return replace(
        plan,
        concurrent=max(min(plan.concurrent * at_once, trials), 1),
        gpus_per_worker=share,
        cpus_per_worker=plan.cpus_per_worker // at_once,
    )


def _workers_of_gpus(resources: Resources, per_trial: float, gpus: int, option: str) -> int:
    """The processes of a trial on so many GPUs; raises ResourceError if there are none such."""
    if per_trial > gpus:
        raise ResourceError(f"{option} {per_trial:g} is more than the search's {gpus} GPUs; type {option} {gpus}")
    if per_trial > 1 and per_trial != int(per_trial):
        raise ResourceError(
            f"--gpus-per-trial {per_trial:g} must be a whole number above 1, or a fraction below it; "
            f"type --gpus-per-trial {int(per_trial)}"
        )
    workers = max(int(per_trial), 1)
    if resources.most_workers not in (None, workers):
        raise ResourceError(
            f"--workers {resources.most_workers} does not suit {per_trial:g} GPUs a trial: one process takes one; "
            f"type --workers {workers}"
        )
    return workers


def check_totals(resources: Resources, capacity: Capacity) -> None:
    """Raise ResourceError if the cluster has fewer devices in all than the job names."""
    for name, wanted, has in (("gpus", resources.gpus, capacity.gpus), ("cpus", resources.cpus, capacity.cpus)):
        if wanted is not None and wanted > has:
            instead = f"type --{name} {has}" if has else f"leave out --{name}"
            raise ResourceError(f"--{name} {wanted} is more than there is: {capacity}; {instead}")


def _gpus(resources: Resources, capacity: Capacity) -> int:
    """The GPUs that the job may use: those it names, else all that have a core beside them."""
    return capacity.holds(Devices(1, 1)) if resources.gpus is None else resources.gpus


def _cores_of_trial(resources: Resources, workers: int) -> int:
    """CPU cores of each trial of a search; raises ResourceError if they are too few for its processes."""
    wanted = resources.cpus_per_trial or workers
    if wanted < workers:
        raise ResourceError(
            f"--cpus-per-trial {wanted} is too few for {workers} processes, which need a CPU core each; "
            f"type --cpus-per-trial {workers}"
        )
    return wanted


def _share_of_cores(resources: Resources, capacity: Capacity, *, gpus_each: float, wanted: int) -> int:
    """CPU cores beside each process's GPU: its node's cores, shared out over that node's GPUs.

    If nodes differ, it is the largest share at which as many of the `wanted` processes find room as can at all.
    """
    on_each_gpu = int(1 / gpus_each + ROUNDING)
    shares = {max(node.cpus // (node.gpus * on_each_gpu), 1) for node in capacity.possible if node.gpus} or {1}

    def worth(cpus: int) -> tuple[int, int]:
        return min(capacity.holds(Devices(gpus_each, cpus)), wanted), cpus

    room, share = max(map(worth, shares))
    if resources.cpus is None:
        return share
    return min(share, max(resources.cpus // max(room, 1), 1))


def _most_cores(resources: Resources, capacity: Capacity, workers: int) -> int:
    """The most CPU cores that each of a training's processes may have, without a GPU."""
    largest = max((node.cpus for node in capacity.possible), default=0)
    if resources.cpus is not None:
        if workers == 1 and resources.cpus > largest:
            raise ResourceError(
                f"--cpus {resources.cpus} is more than one process can use: {capacity}; type --cpus {largest}"
            )
        largest = min(largest, resources.cpus // workers)
    fitting = (cpus for cpus in range(largest, 0, -1) if capacity.holds(Devices(0, cpus)) >= workers)
    return next(fitting, 1)


def _check_room(each: Devices, workers: int, capacity: Capacity, resources: Resources, *, option: str) -> int:
    """How many of these processes find room in all; raises ResourceError if those of one trial do not.

    `option` is what decides their number, and is named with a value that would do.
    """
    room = _room(each, capacity, resources)
    if room >= workers:
        return room
    smallest = Devices(each.gpus, 1)
    room = _room(smallest, capacity, resources)
    if room == 0:
        instead = "; type --gpus 0" if each.gpus else ""
        raise ResourceError(f"a process with {smallest} fits no node: {_limit(resources, capacity)}{instead}")
    if room < workers:
        raise ResourceError(
            f"of {workers} processes with {smallest} each, there is room for {room}: {_limit(resources, capacity)}; "
            f"type {option} {room}"
        )
    smaller = (
        cpus
        for cpus in range(int(each.cpus), 0, -1)
        if _room(Devices(each.gpus, cpus), capacity, resources) >= workers
    )
    raise ResourceError(
        f"--cpus-per-trial {resources.cpus_per_trial} is more than nodes hold: {_limit(resources, capacity)}; "
        f"type --cpus-per-trial {next(smaller) * workers}"
    )


def _room(each: Devices, capacity: Capacity, resources: Resources) -> int:
    room = capacity.holds(each)
    return room if resources.cpus is None else min(room, int(resources.cpus // each.cpus))


def _limit(resources: Resources, capacity: Capacity) -> str:
    limited = f", of which --cpus allows {resources.cpus}" if resources.cpus is not None else ""
    return f"{capacity}{limited}"
