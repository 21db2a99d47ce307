"""A search's policy as Ray Tune asks for it: which trial comes next, and which one stops early.

Both follow from the run folder alone, so that a search goes on in another process as it would have in the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import optuna
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raygen.proposals import Proposals
from raygen.runs import ENDED, Run, Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.stopping import EarlyStopping


class RunFolderSearcher(Searcher, ABC):
    """Hands out trials of a run, as the plain JSON that their actors are given, and knows which ones Tune runs."""

    def __init__(self, run: Run) -> None:
        super().__init__(metric=run.objective, mode=run.direction)
        self._run = run
        self._handed_out: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial to run."""
        trial = None if self._run.should_stop() else self.next_trial(trial_id)
        if trial is None:
            return str(Searcher.FINISHED)
        self._handed_out[trial_id] = trial
        return {"run": str(self._run.folder), "number": trial.number}

    @abstractmethod
    def next_trial(self, trial_id: str) -> Trial | None:
        """The next trial to run, which Tune will call `trial_id`; None: there is no further one."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing, unless a kind of searcher learns from what trials come to."""

    def trial(self, trial_id: str) -> Trial:
        """The trial that Tune knows by this name."""
        return self._handed_out[trial_id]

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds all that a search needs to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds all that a search needs to go on."""


class RunSearcher(RunFolderSearcher):
    """Hands out the trials of a run: first those left unfinished, then new ones.

    A plain training is a search over nothing with one trial.
    """

    def __init__(self, run: Run, spec: TrainSpec) -> None:
        super().__init__(run)
        self._spec = spec
        earlier = run.configurations()
        self._unfinished = [trial for trial in earlier if trial.status().state not in ENDED]
        self._lacking = (spec.search.trials if isinstance(spec, TuneSpec) else 1) - len(earlier)
        ended = [trial.record(run.objective) for trial in earlier if trial not in self._unfinished]
        self._proposals = Proposals(spec, ended, begun=len(earlier)) if isinstance(spec, TuneSpec) else None
        self._asked: dict[str, optuna.Trial] = {}

    def next_trial(self, trial_id: str) -> Trial | None:
        """One that is to go on, else a new one."""
        asked = None
        if self._unfinished:
            trial = self._unfinished.pop(0)
            asked = self._proposals.ask_again(trial.parameters) if self._proposals else None
        elif self._lacking > 0:
            self._lacking -= 1
            trial, asked = self._new_trial()
        else:
            return None
        if asked:
            self._asked[trial_id] = asked
        return trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn the trial's best value, or that it has none."""
        if self._proposals:
            record = self.trial(trial_id).record(self._run.objective)
            self._proposals.tell(self._asked[trial_id], record.epoch_objective)

    def _new_trial(self) -> tuple[Trial, optuna.Trial | None]:
        number = len(self._run.trials()) + 1
        if self._proposals is None or not isinstance(self._spec, TuneSpec):
            return self._run.new_trial(number, {}, self._spec), None
        asked = self._proposals.ask()
        parameters = self._proposals.parameters(asked)
        return self._run.new_trial(number, parameters, self._spec.trial_spec(parameters)), asked


class PromotionSearcher(RunFolderSearcher):
    """Hands out trials that were stopped early and deserve to go on, each once, when there are no new ones left."""

    def __init__(self, run: Run, spec: TuneSpec) -> None:
        super().__init__(run)
        self._stopping = _early_stopping(run, spec)

    def promotions(self) -> list[Trial]:
        """The trials that deserve to go on, by what all have shown up to now."""
        trials = {trial.number: trial for trial in self._run.configurations()}
        curves = {number: self._run.curve(trial) for number, trial in trials.items()}
        stopped = [number for number, trial in trials.items() if trial.was_stopped_early and not trial.was_promoted]
        return [trials[number] for number in self._stopping.promotions(curves, stopped)]

    def next_trial(self, trial_id: str) -> Trial | None:
        """The most promising of them, which will not be promoted again."""
        promising = next(iter(self.promotions()), None)
        if promising is not None:
            promising.promote()
            epoch = len(promising.epochs())
            print(f"trial {promising.number} goes on: it was ahead of the best at epoch {epoch}", flush=True)
        return promising


class ReplicateSearcher(RunFolderSearcher):
    """Hands out the trials of a run that run the best configurations again, until all have ended."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        run.add_replicates()
        self._waiting = [
            trial for trial in run.trials() if trial.replicate_of is not None and trial.status().state not in ENDED
        ]
        self.number_of_trials = len(self._waiting)

    def next_trial(self, trial_id: str) -> Trial | None:
        """The next of them; nothing is chosen by what it shows."""
        return self._waiting.pop(0) if self._waiting else None


class RungScheduler(FIFOScheduler):
    """Stops trials early by what the run folder shows of all of them, earlier attempts and extensions included."""

    def __init__(self, run: Run, spec: TuneSpec, searcher: RunFolderSearcher) -> None:
        super().__init__()
        self._run = run
        self._searcher = searcher
        self._stopping = _early_stopping(run, spec)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """STOP or CONTINUE, after an epoch of a trial."""
        mine = self._searcher.trial(trial.trial_id)
        if result["epoch"] not in self._stopping.rungs or self._is_spared(mine, result["epoch"]):
            return str(FIFOScheduler.CONTINUE)
        others = [self._run.curve(other) for other in self._run.configurations() if other.number != mine.number]
        rule = self._stopping.should_stop_promoted if mine.was_promoted else self._stopping.should_stop
        return str(FIFOScheduler.STOP if rule(self._run.curve(mine), others) else FIFOScheduler.CONTINUE)

    def _is_spared(self, trial: Trial, epoch: int) -> bool:
        """Whether nothing stops it here: the defaults, which a search must not lose to, and a trial just extended."""
        defaults = self._run.defaults()
        is_defaults = defaults is not None and defaults.number == trial.number
        return is_defaults or trial.extended_from == epoch - 1


def _early_stopping(run: Run, spec: TuneSpec) -> EarlyStopping:
    return EarlyStopping(spec.search, epochs=spec.training.epochs, direction=run.direction)
