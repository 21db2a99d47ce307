"""Run all trials of a job on Ray Tune."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raygen.cluster.search import PromotionSearcher, ReplicateSearcher, RunFolderSearcher, RungScheduler, RunSearcher
from raygen.cluster.worker import TrialActor
from raygen.errors import Cause, OutOfMemoryError, ProcessLostError
from raygen.plan import Plan
from raygen.runs import Run, Trial
from raygen.spec import TrainSpec, TuneSpec

TRIAL_FAILURES = 2
"""Times that a trial whose actor was lost goes on from its last checkpoint in one attempt before it counts as lost."""


def run_trials(run: Run, spec: TrainSpec) -> None:
    """Run every trial that the run still lacks, as many at once as its plan says; then its best on further seeds."""
    searcher = RunSearcher(run, spec)
    if not isinstance(spec, TuneSpec):
        _run(run, searcher, FIFOScheduler(), at_most=1)
        return
    _run(run, searcher, RungScheduler(run, spec, searcher), at_most=spec.search.trials)
    promotions = PromotionSearcher(run, spec)
    if promotions.promotions() and _goes_on(run):
        _run(run, promotions, RungScheduler(run, spec, promotions), at_most=spec.search.trials)
    if _goes_on(run):
        replicates = ReplicateSearcher(run)
        if replicates.number_of_trials:
            # None of these is stopped early: a mean over seeds is one over trainings of the same length.
            _run(run, replicates, FIFOScheduler(), at_most=replicates.number_of_trials)


def _goes_on(run: Run) -> bool:
    return not run.should_stop() and not lost_trials(run)


def lost_trials(run: Run) -> list[Trial]:
    """The trials whose processes were lost too often: another attempt goes on with them, from their checkpoints."""
    statuses = ((trial, trial.status()) for trial in run.trials())
    return [trial for trial, status in statuses if status.state == "failed" and status.cause == ProcessLostError.cause]


def _run(run: Run, searcher: RunFolderSearcher, scheduler: TrialScheduler, *, at_most: int) -> None:
    tuner = tune.Tuner(
        tune.with_resources(TrialActor, _actor_resources(run.plan)),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=at_most,
            max_concurrent_trials=run.plan.concurrent,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            storage_path=str(run.ray_files),
            verbose=0,
            callbacks=[_FailureRecorder(searcher)],
            # The trials write their own checkpoints, into the run folder.
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=FailureConfig(max_failures=TRIAL_FAILURES),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(run.ray_files, ignore_errors=True)


def _actor_resources(plan: Plan) -> dict[str, float]:
    if plan.workers > 1:
        # The actor only waits for its processes: a sliver of what every head node has leaves all CPUs to them.
        return {"node:__internal_head__": 0.001}
    return {"cpu": plan.cpus_per_worker, "gpu": plan.gpus_per_worker}


class _FailureRecorder(Callback):
    """Writes down that a trial failed where its own process no longer could."""

    def __init__(self, searcher: RunFolderSearcher) -> None:
        self._searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        # The end of the traceback that Tune wrote down; `get_error` reads a copy that is synced later.
        reason = Path(trial.error_file).read_text(encoding="utf-8").strip().rpartition("\n")[2]
        self._searcher.trial(trial.trial_id).set_status("failed", reason, _cause(reason))


def _cause(reason: str) -> Cause:
    """Why a trial's process ended, from the error that Ray raised for it."""
    if "OutOfMemoryError" in reason:
        return OutOfMemoryError.cause
    lost = ("ActorDiedError", "ActorUnavailableError", "NodeDiedError", "WorkerCrashedError", "The actor died")
    return ProcessLostError.cause if any(name in reason for name in lost) else "error"
