"""A search's policy as Ray Tune asks for it: which trial comes next, and which one stops early.

Both follow from the record alone, so that a search goes on in another process as it would have in the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import optuna
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raygen.plan import Plan
from raygen.proposals import Proposals
from raygen.record.attempt import Attempt
from raygen.record.documents import ENDED
from raygen.record.view import Trial, View
from raygen.spec import TrainSpec, TuneSpec
from raygen.stopping import EarlyStopping


class RecordSearcher(Searcher, ABC):
    """Hands out trials of a run, as the plain JSON that their actors are given, and knows which ones Tune runs.

    What they show is heard from Tune: the record has it a moment later.
    """

    def __init__(self, attempt: Attempt, plan: Plan, view: View) -> None:
        super().__init__(metric=view.objective, mode=view.direction)
        self.attempt = attempt
        self.direction = view.direction
        self._plan = plan
        self._objective = view.objective
        self._handed_out: dict[str, Trial] = {}
        self.curves = {trial.number: trial.curve(view.objective) for trial in view.configurations}
        """What each configuration has shown of the objective, epoch by epoch, by its number."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial to run."""
        trial = None if self.attempt.should_stop() else self.next_trial(trial_id)
        if trial is None:
            return str(Searcher.FINISHED)
        self._handed_out[trial_id] = trial
        return {
            "place": self.attempt.place(trial.number).as_json(),
            "plan": self._plan.as_json(),
            "objective": self._objective,
        }

    @abstractmethod
    def next_trial(self, trial_id: str) -> Trial | None:
        """The next trial to run, which Tune will call `trial_id`; None: there is no further one."""

    def hear(self, trial_id: str, result: dict[str, Any]) -> None:
        """Learn what a trial has shown after an epoch."""
        number = self.number(trial_id)
        # A trial whose actor was lost shows some epochs again.
        earlier = self.curves.get(number, [])[: result["epoch"] - 1]
        self.curves[number] = [*earlier, result[self._objective]]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Learn what a trial has shown, unless the scheduler has told it before."""
        if "epoch" in result:
            self.hear(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing, unless a kind of searcher learns from what trials come to."""

    def number(self, trial_id: str) -> int:
        """The number of the trial that Tune knows by this name."""
        return self._handed_out[trial_id].number

    def trial(self, trial_id: str) -> Trial:
        """The trial that Tune knows by this name, as it was when it was handed out."""
        return self._handed_out[trial_id]

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the record holds all that a search needs to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the record holds all that a search needs to go on."""


class RunSearcher(RecordSearcher):
    """Hands out the trials of a run: first those left unfinished, then new ones.

    A plain training is a search over nothing with one trial.
    """

    def __init__(self, attempt: Attempt, spec: TrainSpec, plan: Plan) -> None:
        view = attempt.look()
        super().__init__(attempt, plan, view)
        self._spec = spec
        earlier = view.configurations
        self._unfinished = [trial for trial in earlier if trial.state not in ENDED]
        self._lacking = (spec.search.trials if isinstance(spec, TuneSpec) else 1) - len(earlier)
        self._next_number = max((trial.number for trial in view.trials), default=0) + 1
        ended = [trial.record(view.objective) for trial in earlier if trial.state in ENDED]
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
            shown = self.curves.get(self.number(trial_id), [])
            best = max if self.direction == "max" else min
            self._proposals.tell(self._asked[trial_id], best(shown) if shown else None)

    def _new_trial(self) -> tuple[Trial, optuna.Trial | None]:
        number = self._next_number
        self._next_number += 1
        if self._proposals is None or not isinstance(self._spec, TuneSpec):
            return self.attempt.new_trial(number, {}, self._spec), None
        asked = self._proposals.ask()
        parameters = self._proposals.parameters(asked)
        return self.attempt.new_trial(number, parameters, self._spec.trial_spec(parameters)), asked


class PromotionSearcher(RecordSearcher):
    """Hands out trials that were stopped early and deserve to go on, each once, when there are no new ones left."""

    def __init__(self, attempt: Attempt, spec: TuneSpec, plan: Plan) -> None:
        view = attempt.look()
        super().__init__(attempt, plan, view)
        self._stopping = _early_stopping(view.direction, spec)
        self._stopped = {
            trial.number: trial
            for trial in view.configurations
            if trial.was_stopped_early and not trial.progress.was_promoted
        }

    def promotions(self) -> list[Trial]:
        """The trials that deserve to go on, by what all have shown up to now."""
        return [self._stopped[number] for number in self._stopping.promotions(self.curves, list(self._stopped))]

    def next_trial(self, trial_id: str) -> Trial | None:
        """The most promising of them, which will not be promoted again."""
        promising = next(iter(self.promotions()), None)
        if promising is None:
            return None
        del self._stopped[promising.number]
        promoted = self.attempt.promote(promising.number)
        print(f"trial {promoted.number} goes on: it was ahead of the best at epoch {len(promoted.epochs)}", flush=True)
        return promoted


class ReplicateSearcher(RecordSearcher):
    """Hands out the trials of a run that run the best configurations again, until all have ended."""

    def __init__(self, attempt: Attempt, plan: Plan) -> None:
        attempt.add_replicates()
        view = attempt.look()
        super().__init__(attempt, plan, view)
        self._waiting = [trial for trial in view.trials if trial.replicate_of is not None and trial.state not in ENDED]
        self.number_of_trials = len(self._waiting)

    def next_trial(self, trial_id: str) -> Trial | None:
        """The next of them; nothing is chosen by what it shows."""
        return self._waiting.pop(0) if self._waiting else None


class RungScheduler(FIFOScheduler):
    """Stops trials early by what all of them have shown, in earlier attempts and before extensions too."""

    def __init__(self, searcher: RecordSearcher, spec: TuneSpec) -> None:
        super().__init__()
        self._searcher = searcher
        self._begins_with_defaults = spec.search.defaults_first
        self._stopping = _early_stopping(searcher.direction, spec)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """STOP or CONTINUE, after an epoch of a trial."""
        mine = self._searcher.trial(trial.trial_id)
        self._searcher.hear(trial.trial_id, result)
        if result["epoch"] not in self._stopping.rungs or self._is_spared(mine, result["epoch"]):
            return str(FIFOScheduler.CONTINUE)
        curves = self._searcher.curves
        others = [curve for number, curve in curves.items() if number != mine.number]
        promoted = mine.progress.was_promoted
        rule = self._stopping.should_stop_promoted if promoted else self._stopping.should_stop
        return str(FIFOScheduler.STOP if rule(curves[mine.number], others) else FIFOScheduler.CONTINUE)

    def _is_spared(self, trial: Trial, epoch: int) -> bool:
        """Whether nothing stops it here: the defaults, which a search must not lose to, and a trial just extended."""
        is_defaults = self._begins_with_defaults and trial.number == 1
        return is_defaults or trial.progress.extended_from == epoch - 1


def _early_stopping(direction: Literal["min", "max"], spec: TuneSpec) -> EarlyStopping:
    return EarlyStopping(spec.search, epochs=spec.training.epochs, direction=direction)
