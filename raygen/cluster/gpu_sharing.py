"""How many trials of a search share each GPU, if that is left to measurements: a task of the cluster, before them."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raygen import packing
from raygen.packing import Packing
from raygen.plan import Plan, packed
from raygen.record.attempt import Attempt
from raygen.record.documents import ENDED
from raygen.record.view import View
from raygen.spec import TrainSpec, TuneSpec
from raygen.training import rehearsal
from raygen.training.rehearsal import Wanted

WARM_UP_S = 3.0
SPAN_S = 8.0
"""Seconds for which so many trials are trained, and then measured; the processes take longer to begin."""

LOOK_EVERY_S = 0.5


def shared(attempt: Attempt, view: View, spec: TrainSpec, *, device: str) -> Plan:
    """The plan by which the attempt's trials run, on the devices of the one that the run was planned with.

    If the spec says so it is measured, once for all attempts, how many trials share a GPU; that is said in the log.
    """
    if not isinstance(spec, TuneSpec) or spec.resources.gpus_per_trial != "auto":
        return view.plan
    lacking = _lacking(view, spec)
    most = min(math.ceil(lacking / view.plan.concurrent), view.plan.cpus_per_worker)
    if most <= 1:
        return view.plan
    if view.packing is not None:
        print(view.packing.why, flush=True)
        return packed(view.plan, view.packing.at_once, trials=lacking)
    chosen = _chosen(attempt, _wanted(attempt, view, spec, device), view.plan, most=most, growth=_growth(spec))
    print(chosen.why, flush=True)
    if chosen.was_measured:
        attempt.keep_packing(chosen.at_once, chosen.why)
    return packed(view.plan, chosen.at_once, trials=lacking)


def _lacking(view: View, spec: TuneSpec) -> int:
    """The configurations that have not been tried to their end; if there are none, the trainings on fresh seeds."""
    ended = sum(trial.state in ENDED for trial in view.configurations)
    return max(spec.search.trials - ended, 0) or spec.search.replicates * spec.search.keep_best


def _growth(spec: TuneSpec) -> float:
    """Times of the memory of a trial with the spec's batch size that one with the largest takes, at most."""
    return max(spec.batch_sizes()[1] / spec.training.batch_size, 1.0)


def _wanted(attempt: Attempt, view: View, spec: TuneSpec, device: str) -> Wanted:
    """What one process trains, with all cores that belong to its GPU: the spec as it stands."""
    return Wanted(
        spec=spec.trial_spec({}),
        device=device,
        threads=view.plan.cpus_per_worker,
        at_once=1,
        warm_up_s=WARM_UP_S,
        span_s=SPAN_S,
        storage=attempt.storage.url,
        images=view.document.data,
    )


def _chosen(attempt: Attempt, wanted: Wanted, plan: Plan, *, most: int, growth: float) -> Packing:
    """What the task comes to; if it is lost, or the attempt is stopped meanwhile, nothing was measured."""
    print("measuring by short trainings how many trials are best on each GPU", flush=True)
    devices = {"GPU": plan.gpus_per_worker, "CPU": plan.cpus_per_worker}
    # A placement group shows everybody that the job's devices are taken; without it the task ends too.
    group = placement_group([devices])
    try:
        task = ray.remote(
            num_gpus=plan.gpus_per_worker,
            num_cpus=plan.cpus_per_worker,
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )(_rehearse)
        found = task.remote(wanted.model_dump(mode="json"), most, growth)
        while not ray.wait([found], timeout=LOOK_EVERY_S)[0]:
            if attempt.has_heard_stop():
                return packing.unmeasured("the attempt was stopped")
        return Packing(**ray.get(found))
    except RayError as error:
        return packing.unmeasured(str(error).strip().rpartition("\n")[2])
    finally:
        remove_placement_group(group)


def _rehearse(wanted: dict[str, Any], most: int, growth: float) -> dict[str, Any]:
    """Measure on the node and the GPU that the task is given; returns the Packing's fields."""
    one = Wanted.model_validate(wanted)

    def measure(number: int) -> packing.Measured:
        threads = max(one.threads // number, 1)
        return rehearsal.measure(one.model_copy(update={"at_once": number, "threads": threads}))

    return asdict(packing.choose(measure, most=most, growth=growth))
