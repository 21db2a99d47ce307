"""A search's policy as Ray Tune asks for it: which trial comes next, and which one stops early.

Both follow from the run folder alone, so that a search goes on in another process as it would have in the first.
"""

from __future__ import annotations

from typing import Any

import optuna
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raygen.proposals import Proposals
from raygen.runs import ENDED, Run, Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.stopping import EarlyStopping


class RunSearcher(Searcher):
    """Hands out the trials of a run: first those left unfinished, then new ones.

    A plain training is a search over nothing with one trial.
    """

    def __init__(self, run: Run, spec: TrainSpec) -> None:
        super().__init__(metric=run.objective, mode=run.direction)
        self._run = run
        self._spec = spec
        earlier = run.configurations()
        self._unfinished = [trial for trial in earlier if trial.status().state not in ENDED]
        self._lacking = (spec.search.trials if isinstance(spec, TuneSpec) else 1) - len(earlier)
        ended = [trial.record(run.objective) for trial in earlier if trial not in self._unfinished]
        self._proposals = Proposals(spec, ended, begun=len(earlier)) if isinstance(spec, TuneSpec) else None
        self._running: dict[str, tuple[Trial, optuna.Trial | None]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial to run, as the plain JSON that its actor is given."""
        if self._run.should_stop():
            return str(Searcher.FINISHED)
        if self._unfinished:
            trial = self._unfinished.pop(0)
            asked = self._proposals.ask_again(trial.parameters) if self._proposals else None
        elif self._lacking > 0:
            self._lacking -= 1
            trial, asked = self._new_trial()
        else:
            return str(Searcher.FINISHED)
        self._running[trial_id] = trial, asked
        return {"run": str(self._run.folder), "number": trial.number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn the trial's best value, or that it has none."""
        trial, asked = self._running[trial_id]
        if self._proposals and asked:
            self._proposals.tell(asked, trial.record(self._run.objective).epoch_objective)

    def trial(self, trial_id: str) -> Trial:
        """The trial that Tune knows by this name."""
        return self._running[trial_id][0]

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds all that a search needs to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds all that a search needs to go on."""

    def _new_trial(self) -> tuple[Trial, optuna.Trial | None]:
        number = len(self._run.trials()) + 1
        if self._proposals is None or not isinstance(self._spec, TuneSpec):
            return self._run.new_trial(number, {}, self._spec), None
        asked = self._proposals.ask()
        parameters = self._proposals.parameters(asked)
        return self._run.new_trial(number, parameters, self._spec.trial_spec(parameters)), asked


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


class RungScheduler(FIFOScheduler):
    """Stops trials early by what the run folder shows of all of them, earlier attempts and extensions included."""

    def __init__(self, run: Run, spec: TuneSpec, searcher: RunSearcher) -> None:
        super().__init__()
        self._run = run
        self._searcher = searcher
        self._stopping = EarlyStopping(spec.search, epochs=spec.training.epochs, direction=run.direction)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """STOP or CONTINUE, after an epoch of a trial."""
        mine = self._searcher.trial(trial.trial_id)
        if result["epoch"] not in self._stopping.rungs or self._is_spared(mine, result["epoch"]):
            return str(FIFOScheduler.CONTINUE)
        others = [self._curve(other) for other in self._run.configurations() if other.number != mine.number]
        stops = self._stopping.should_stop(self._curve(mine), others)
        return str(FIFOScheduler.STOP if stops else FIFOScheduler.CONTINUE)

    def _is_spared(self, trial: Trial, epoch: int) -> bool:
        """Whether nothing stops it here: the defaults, which a search must not lose to, and a trial just extended."""
        defaults = self._run.defaults()
        is_defaults = defaults is not None and defaults.number == trial.number
        return is_defaults or trial.extended_from == epoch - 1

    def _curve(self, trial: Trial) -> list[float]:
        return [line["metrics"][self._run.objective] for line in trial.epochs()]
