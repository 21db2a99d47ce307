"""The search policy: which configuration each trial tries, and which trials are stopped early."""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from raygen.models._base import derived_seed
from raygen.runs import ENDED, Run, Trial
from raygen.spec import SearchOptions, TrainSpec, TuneSpec
from raygen.study import decoded, distributions, encoded, observed


class RunSearcher(Searcher):
    """Proposes the trials of a run: first those left unfinished, then new ones from Optuna.

    What the run's ended trials showed is told to Optuna first, so a run can go on after its process is gone.
    A plain training is a search over nothing with one trial.
    """

    def __init__(self, run: Run, spec: TrainSpec) -> None:
        super().__init__(metric=run.objective, mode=run.direction)
        self._run = run
        self._spec = spec
        search = spec.search if isinstance(spec, TuneSpec) else None
        self._distributions = distributions(search.space) if search else {}
        earlier = run.configurations()
        self._unfinished = [trial for trial in earlier if trial.status().state not in ENDED]
        self._lacking = (search.trials if search else 1) - len(earlier)
        self._study = optuna.create_study(
            direction="maximize" if run.direction == "max" else "minimize",
            sampler=_sampler(search, seed=derived_seed(spec.seed, "search", len(earlier)) % 2**32),
        )
        self._asked: dict[str, tuple[Trial, optuna.Trial]] = {}
        for trial in earlier:
            if trial not in self._unfinished:
                self._study.add_trial(observed(trial.record(run.objective), self._distributions))

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial to run, as the plain JSON that its actor is given."""
        if self._run.should_stop():
            return str(Searcher.FINISHED)
        if self._unfinished:
            trial = self._unfinished.pop(0)
            self._study.enqueue_trial(encoded(trial.parameters, self._distributions))
            asked = self._study.ask(self._distributions)
        elif self._lacking > 0:
            self._lacking -= 1
            asked = self._study.ask(self._distributions)
            trial = self._new_trial(asked)
        else:
            return str(Searcher.FINISHED)
        self._asked[trial_id] = trial, asked
        return {"run": str(self._run.folder), "number": trial.number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna the trial's best value, or that it has none."""
        trial, asked = self._asked[trial_id]
        value = trial.record(self._run.objective).objective
        if value is None:
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._study.tell(asked, value)

    def trial(self, trial_id: str) -> Trial:
        """The trial that Tune knows by this name."""
        return self._asked[trial_id][0]

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds all that a search needs to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds all that a search needs to go on."""

    def _new_trial(self, asked: optuna.Trial) -> Trial:
        parameters = decoded(asked.params, self._distributions)
        spec = self._spec.trial_spec(parameters) if isinstance(self._spec, TuneSpec) else self._spec
        return self._run.new_trial(len(self._run.trials()) + 1, parameters, spec)


class ReplicateSearcher(Searcher):
    """Hands out the trials of a run that run the best configurations again, until all have ended."""

    def __init__(self, run: Run) -> None:
        super().__init__(metric=run.objective, mode=run.direction)
        self._run = run
        run.add_replicates()
        self._waiting = [
            trial for trial in run.trials() if trial.replicate_of is not None and trial.status().state not in ENDED
        ]
        self.number_of_trials = len(self._waiting)
        self._running: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial to run, as the plain JSON that its actor is given."""
        if self._run.should_stop() or not self._waiting:
            return str(Searcher.FINISHED)
        trial = self._running[trial_id] = self._waiting.pop(0)
        return {"run": str(self._run.folder), "number": trial.number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: nothing is chosen by what a replicate shows."""

    def trial(self, trial_id: str) -> Trial:
        """The trial that Tune knows by this name."""
        return self._running[trial_id]

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds all that a search needs to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds all that a search needs to go on."""


def scheduler(spec: TrainSpec, *, direction: str) -> TrialScheduler:
    """What stops trials early; epochs are the unit of time."""
    search = spec.search if isinstance(spec, TuneSpec) else None
    if search is None or search.scheduler == "fifo":
        return FIFOScheduler()
    grace_epochs = math.ceil(search.grace_fraction * spec.training.epochs)
    common = {"time_attr": "epoch", "metric": spec.evaluation.objective, "mode": direction}
    if search.scheduler == "median":
        return MedianStoppingRule(**common, grace_period=grace_epochs)
    return AsyncHyperBandScheduler(
        **common,
        max_t=spec.training.epochs,
        grace_period=grace_epochs,
        reduction_factor=search.reduction_factor,
    )


def _sampler(search: SearchOptions | None, *, seed: int) -> optuna.samplers.BaseSampler:
    if search is None or search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # Running trials count as bad ones, so that several at a time do not all try the same place.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
