"""Run all trials of a job on Ray Tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raygen.cluster.ray_failures import last_failure
from raygen.cluster.search import PromotionSearcher, RecordSearcher, ReplicateSearcher, RungScheduler, RunSearcher
from raygen.cluster.worker import TrialActor
from raygen.errors import ProcessLostError, StorageError
from raygen.plan import Plan
from raygen.record.attempt import Attempt
from raygen.record.scratch import Scratch
from raygen.record.trial import newest_progress
from raygen.record.view import Trial, View
from raygen.spec import TrainSpec, TuneSpec

TRIAL_FAILURES = 2
"""Times in a row, without a new checkpoint, that a trial goes on whose actor was lost before it counts as lost."""


def run_trials(attempt: Attempt, spec: TrainSpec, plan: Plan) -> None:
    """Run every trial that the run still lacks, as many at once as its plan says; then its best on further seeds."""
    searcher = RunSearcher(attempt, spec, plan)
    if not isinstance(spec, TuneSpec):
        _run(attempt, plan, searcher, FIFOScheduler(), at_most=1)
        return
    _run(attempt, plan, searcher, RungScheduler(searcher, spec), at_most=spec.search.trials)
    promotions = PromotionSearcher(attempt, spec, plan)
    if promotions.promotions() and _goes_on(attempt):
        _run(attempt, plan, promotions, RungScheduler(promotions, spec), at_most=spec.search.trials)
    if _goes_on(attempt):
        replicates = ReplicateSearcher(attempt, plan)
        if replicates.number_of_trials:
            # None of these is stopped early: a mean over seeds is one over trainings of the same length.
            _run(attempt, plan, replicates, FIFOScheduler(), at_most=replicates.number_of_trials)


def _goes_on(attempt: Attempt) -> bool:
    return not attempt.should_stop() and not lost_trials(attempt.look())


def lost_trials(view: View) -> list[Trial]:
    """The trials that another attempt goes on with, from their checkpoints, as told when nothing runs any more.

    Their processes were lost too often, or could not write down how they ended.
    """
    lost = ("failed", ProcessLostError.cause)
    silent = ("waiting", "running")
    return [trial for trial in view.trials if (trial.state, trial.progress.cause) == lost or trial.state in silent]


def _run(attempt: Attempt, plan: Plan, searcher: RecordSearcher, scheduler: TrialScheduler, *, at_most: int) -> None:
    scratch = Scratch()
    tuner = tune.Tuner(
        tune.with_resources(TrialActor, _actor_resources(plan)),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=at_most,
            max_concurrent_trials=plan.concurrent,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            storage_path=str(scratch.folder),
            verbose=0,
            callbacks=[FailureRecorder(attempt, searcher)],
            # The trials write their own checkpoints, into the record.
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=FailureConfig(max_failures=TRIAL_FAILURES),
        ),
    )
    try:
        tuner.fit()
    finally:
        scratch.close()


def _actor_resources(plan: Plan) -> dict[str, float]:
    if plan.workers > 1:
        # The actor only waits for its processes: a sliver of what every head node has leaves all CPUs to them.
        return {"node:__internal_head__": 0.001}
    return {"cpu": plan.cpus_per_worker, "gpu": plan.gpus_per_worker}


class FailureRecorder(Callback):
    """Writes down that a trial failed where its own process no longer could, and forgives losses that cost little."""

    def __init__(self, attempt: Attempt, searcher: RecordSearcher) -> None:
        self._attempt = attempt
        self._searcher = searcher
        self._checkpoints: dict[int, str | None] = {}  # of each trial, at its last failure

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Let the failures of a trial count anew if it has a new checkpoint since the one before."""
        handed_out = self._searcher.trial(trial.trial_id)
        before = self._checkpoints.get(handed_out.number, handed_out.progress.checkpoint)
        try:
            now = newest_progress(self._attempt.storage, self._attempt.place(handed_out.number)).checkpoint
        except StorageError:
            return  # it is not known: the failure counts
        self._checkpoints[handed_out.number] = now
        if now != before:
            trial.run_metadata.num_failures = 0

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        # What Tune wrote down; `get_error` reads a copy that is synced later.
        reason, cause = last_failure(Path(trial.error_file).read_text(encoding="utf-8", errors="replace"))
        number = self._searcher.number(trial.trial_id)
        try:
            self._attempt.set_trial_state(number, "failed", reason, cause)
        except ProcessLostError as error:
            print(f"trial {number}: {error}", flush=True)  # nothing is known of it any more
