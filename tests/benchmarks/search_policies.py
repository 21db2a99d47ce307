"""Replay searches on recorded learning curves, to choose the policy by what it finds for what it costs.

    python -m tests.benchmarks.search_policies vae --seeds 10
    python -m tests.benchmarks.search_policies vae --seeds 50 --only "as it was" --only "the default"

A search of the product's own proposals and early stopping runs against curves/FAMILY.json (record_curves.py) on a
simulated clock: a proposal is answered by the nearest configuration not yet used, and each of its epochs takes the
seconds that it took when it was recorded. The unit of cost is one training of the family's defaults to its end. Regret
is how far the best value so far is behind the best of all that was recorded. `distance` is how far answers lay from
proposals on average, in units of the space's diagonal. `as it was` is the policy before this benchmark: Optuna's
independent TPE with ten random trials, never told of trials that diverged, under Ray's own successive halving.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import torch
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from ray.tune.schedulers.async_hyperband import _Bracket
from rich.console import Console
from rich.table import Table

from raygen.proposals import POLICIES, Policy, Proposals
from raygen.record.view import TrialRecord
from raygen.spec import TuneSpec
from raygen.stopping import EarlyStopping
from tests.benchmarks import record_curves
from tests.benchmarks.record_curves import FOLDER, RECORDINGS

COSTS = (4, 8, 16, 32)
TRIALS = 12
"""The trials of the searches that are run to their end."""
Stop = Callable[[int, list[float], list[list[float]]], bool]


class Recorded:
    """The curves of one family; values are turned round if more is better, so that the lowest is the best."""

    def __init__(self, family: str) -> None:
        document = json.loads((FOLDER / f"{family}.json").read_text(encoding="utf-8"))
        self.family = family
        self.epochs: int = document["epochs"]
        self.settings: dict[str, Any] = document["settings"]
        curves = document["curves"]
        self.parameters: list[dict[str, Any]] = [curve["parameters"] for curve in curves]
        spec = TuneSpec.search_over(family, family, {})
        self.direction = spec.search.space.direction
        sign = -1 if self.direction == "max" else 1
        self.values = [[sign * value for value in curve["values"]] for curve in curves]
        self.epoch_s = [np.diff([0.0, *curve["cpu_s"]]).tolist() for curve in curves]
        self.points = np.array([self.point(each) for each in self.parameters])
        defaults = self.parameters.index(record_curves.defaults(family))
        self.training_s = sum(self.epoch_s[defaults])
        self.defaults_value = min(self.values[defaults])
        self.best_value = min(min(values) for values in self.values if values)

    def point(self, parameters: dict[str, Any]) -> list[float]:
        """A configuration as a point of the unit cube, each parameter on its logarithmic scale."""
        recording = RECORDINGS[self.family]
        sizes = recording.batch_sizes
        batch = math.log(parameters["training.batch_size"] / sizes[0]) / math.log(sizes[-1] / sizes[0])
        rest = [
            math.log(parameters[name] / low) / math.log(high / low)
            for name, (low, high, _) in recording.ranges.items()
        ]
        return [batch, *rest]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One policy of searching: who proposes, whether the defaults come first, and what stops trials."""

    name: str
    policy: Policy = field(default_factory=lambda: POLICIES["optuna"])
    defaults_first: bool = True
    stopping: tuple[tuple[str, Any], ...] = ()
    """Fields of the search, where they are not the spec's defaults."""
    recorded_ranges: bool = False
    """The space is all that was recorded, as the spaces were before; else it is the family's own."""
    rays_rule: bool = False


@lru_cache
def spec_of(contender: Contender, family: str, epochs: int) -> TuneSpec:
    """The search that a contender stands for."""
    recording = RECORDINGS[family]
    ranges = {
        "training.batch_size": ",".join(map(str, recording.batch_sizes)),
        **{name: f"{low}..{high}" for name, (low, high, _) in recording.ranges.items()},
    }
    stopping = {f"search.{name}": value for name, value in contender.stopping}
    options = {"training.epochs": epochs, "search.defaults_first": contender.defaults_first, **stopping}
    return TuneSpec.search_over(None, family, options, vary=ranges if contender.recorded_ranges else None)


@dataclass(kw_only=True)
class _Trial:
    """A trial of a replayed search: the recorded configuration that answers it, and what it has shown so far."""

    number: int
    answer: int
    parameters: dict[str, Any]
    asked: optuna.Trial
    curve: list[float] = field(default_factory=list)
    ended: bool = False
    stopped: bool = False


class Replay:
    """One search on a simulated clock; `history` is (cost, best value so far) after each epoch."""

    def __init__(self, recorded: Recorded, contender: Contender, *, seed: int, concurrent: int) -> None:
        self._recorded = recorded
        self._contender = contender
        self._concurrent = concurrent
        self._spec = spec_of(contender, recorded.family, recorded.epochs).model_copy(update={"seed": seed})
        self._stops = _rays_rule(self._spec) if contender.rays_rule else _our_rule(self._spec)
        self._sign = -1 if recorded.direction == "max" else 1
        self._proposals = Proposals(self._spec, policy=contender.policy)
        self._free = np.ones(len(recorded.parameters), dtype=bool)
        self._due: list[tuple[float, int]] = []
        self._clock_s = 0.0
        self.trials: list[_Trial] = []
        self.history: list[tuple[float, float]] = []
        self.distances: list[float] = []

    def run(self, *, cost: float = math.inf, trials: int | None = None) -> None:
        """Go on until it has cost so much, or so many trials have ended, or every configuration was used."""
        most = len(self._recorded.parameters) if trials is None else trials
        while len(self.trials) < most and len(self._due) < self._concurrent:
            self._begin()
        while self._due and self._due[0][0] * self._concurrent / self._recorded.training_s <= cost:
            self._clock_s, number = heapq.heappop(self._due)
            self._epoch(self.trials[number])
            if self.trials[number].ended and len(self.trials) < most:
                self._begin()

    def promote(self) -> None:
        """Let stopped trials go on that deserve it, one after another."""
        rule = EarlyStopping(self._spec.search, epochs=self._recorded.epochs, direction="min")
        waiting = {trial.number for trial in self.trials if trial.stopped}
        while promoted := rule.promotions({trial.number: trial.curve for trial in self.trials}, waiting):
            waiting.remove(promoted[0])
            trial = self.trials[promoted[0]]
            for value in self._recorded.values[trial.answer][len(trial.curve) :]:
                trial.curve.append(value)
                if rule.should_stop_promoted(trial.curve, self._other_curves(trial)):
                    break

    def result(self) -> tuple[bool, float]:
        """Whether its best is better than the defaults, and what all of its trials cost, in trainings of these."""
        best = min(min(trial.curve) for trial in self.trials if trial.curve)
        spent_s = sum(sum(self._recorded.epoch_s[trial.answer][: len(trial.curve)]) for trial in self.trials)
        return best < self._recorded.defaults_value, spent_s / self._recorded.training_s

    def restart(self) -> None:
        """Let another process go on with the search, which knows what the run folder tells."""
        ended = [self._record(trial) for trial in self.trials if trial.ended]
        self._proposals = Proposals(self._spec, ended, begun=len(self.trials), policy=self._contender.policy)
        for trial in self.trials:
            if not trial.ended:
                trial.asked = self._proposals.ask_again(trial.parameters)

    def best(self, cost: float) -> float:
        """The best value for that cost; that of the defaults before there is one."""
        found = [value for spent, value in self.history if spent <= cost]
        return found[-1] if found else self._recorded.defaults_value

    def _begin(self) -> None:
        asked = self._proposals.ask()
        parameters = self._proposals.parameters(asked)
        distances = np.linalg.norm(self._recorded.points - self._recorded.point(parameters), axis=1)
        answer = int(np.where(self._free, distances, math.inf).argmin())
        self._free[answer] = False
        self.distances.append(float(distances[answer]) / math.sqrt(self._recorded.points.shape[1]))
        self.trials.append(_Trial(number=len(self.trials), answer=answer, parameters=parameters, asked=asked))
        self._await_epoch(self.trials[-1])

    def _await_epoch(self, trial: _Trial) -> None:
        recorded_s, epoch = self._recorded.epoch_s[trial.answer], len(trial.curve)
        # One that diverges in an epoch takes about as long as an epoch of the defaults.
        epoch_s = recorded_s[epoch] if epoch < len(recorded_s) else self._recorded.training_s / self._recorded.epochs
        heapq.heappush(self._due, (self._clock_s + epoch_s, trial.number))

    def _epoch(self, trial: _Trial) -> None:
        values = self._recorded.values[trial.answer]
        diverged = len(trial.curve) == len(values)
        if not diverged:
            trial.curve.append(values[len(trial.curve)])
            best = min([trial.curve[-1], *(value for _, value in self.history[-1:])])
            self.history.append((self._clock_s * self._concurrent / self._recorded.training_s, best))
        trial.ended = diverged or len(trial.curve) == self._recorded.epochs
        if not trial.ended:
            trial.ended = trial.stopped = self._stops(trial.number, trial.curve, self._other_curves(trial))
        if not trial.ended:
            self._await_epoch(trial)
        elif trial.curve or not self._contender.rays_rule:
            self._proposals.tell(trial.asked, self._sign * min(trial.curve) if trial.curve else None)

    def _other_curves(self, trial: _Trial) -> list[list[float]]:
        return [other.curve for other in self.trials if other is not trial]

    def _record(self, trial: _Trial) -> TrialRecord:
        return TrialRecord(
            number=trial.number + 1,
            parameters=trial.parameters,
            state="finished",
            reason="",
            epoch=len(trial.curve),
            epochs=self._recorded.epochs,
            train_s=0.0,
            epoch_objective=self._sign * min(trial.curve) if trial.curve else None,
        )


def _our_rule(spec: TuneSpec) -> Stop:
    rule = EarlyStopping(spec.search, epochs=spec.training.epochs, direction="min")

    def stops(number: int, curve: list[float], others: list[list[float]]) -> bool:
        is_defaults = number == 0 and spec.search.defaults_first
        return not is_defaults and rule.should_stop(curve, others)

    return stops


def _rays_rule(spec: TuneSpec) -> Stop:
    """Ray's own rule, which compares the latest values of the trials that it has seen itself."""
    grace = math.ceil(spec.search.grace_fraction * spec.training.epochs)
    bracket = _Bracket(min_t=grace, max_t=spec.training.epochs, reduction_factor=spec.search.reduction_factor, s=0)

    def stops(number: int, curve: list[float], others: list[list[float]]) -> bool:
        trial = SimpleNamespace(trial_id=str(number))
        return bool(bracket.on_result(trial, len(curve), -curve[-1]) == "STOP")

    return stops


def tpe(startup: int, *, multivariate: bool) -> Callable[[int], BaseSampler]:
    """Optuna's TPE with so many random trials first."""
    return lambda seed: TPESampler(seed=seed, multivariate=multivariate, n_startup_trials=startup)


def random(seed: int) -> BaseSampler:
    """Configurations at random."""
    return RandomSampler(seed=seed)


def gaussian_process(seed: int) -> BaseSampler:
    """Optuna's Gaussian process after four trials."""
    return GPSampler(seed=seed, n_startup_trials=4)


def contenders() -> list[Contender]:
    """The policy before, samplers with each way to begin, ways to stop trials, and what is the default."""
    asha = (("scheduler", "asha"), ("grace_fraction", 0.1), ("reduction_factor", 3))
    samplers: dict[str, Callable[[int], BaseSampler]] = {
        "random": random,
        "TPE": tpe(10, multivariate=False),
        "multivariate TPE": tpe(4, multivariate=True),
        "GP": gaussian_process,
    }
    found = [
        Contender(
            name="as it was",
            policy=Policy(sampler=samplers["TPE"]),
            defaults_first=False,
            stopping=asha,
            recorded_ranges=True,
            rays_rule=True,
        )
    ]
    for name, sampler in samplers.items():
        for start, defaults_first, around in (("", False, 0), (", defaults", True, 0), (", around", True, 3)):
            policy = Policy(sampler=sampler, around=around)
            found.append(
                Contender(
                    name=name + start,
                    policy=policy,
                    defaults_first=defaults_first,
                    stopping=asha,
                    recorded_ranges=True,
                )
            )
    own = POLICIES["optuna"]
    found += [
        Contender(name="no stopping", policy=own, stopping=(("scheduler", "fifo"),)),
        Contender(name="median", policy=own, stopping=(("scheduler", "median"),)),
    ]
    for fraction, factor in itertools.product((0.05, 0.1, 0.2), (2, 3, 4)):
        rule = (("scheduler", "asha"), ("grace_fraction", fraction), ("reduction_factor", factor))
        found.append(Contender(name=f"asha, grace {fraction:g}, η {factor}", policy=own, stopping=rule))
    return [*found, Contender(name="the default")]


def main() -> None:
    """Replay every contender, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(RECORDINGS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--concurrent", type=int, action="append", help="trials at a time; 2, 4 and 16 if left out")
    parser.add_argument("--only", action="append", help="a contender's name, repeatable")
    parser.add_argument("--without", action="append", default=[], help="a contender's name, repeatable")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    torch.set_num_threads(1)
    recorded = Recorded(options.family)
    chosen = [
        each
        for each in contenders()
        if (options.only is None or each.name in options.only) and each.name not in options.without
    ]
    console, columns = Console(width=120), [f"{cost}: {what}" for cost in COSTS for what in ("median", "tenth")]
    table = Table("policy", *columns, "trials", "distance", box=None, pad_edge=False)
    for contender in chosen:
        searches = []
        for concurrent, seed in itertools.product(options.concurrent or (2, 4, 16), range(options.seeds)):
            searches.append(Replay(recorded, contender, seed=seed, concurrent=concurrent))
            searches[-1].run(cost=max(COSTS))
        table.add_row(contender.name, *_regrets(recorded, searches), *_means(searches))
    behind = recorded.defaults_value - recorded.best_value
    console.print(table)
    for contender in chosen:
        console.print(_searches_to_their_end(recorded, contender, options.seeds))
    console.print(_rungs_after_restarts(recorded, options.seeds))
    console.print(f"{len(recorded.values)} configurations; the defaults' own regret is {behind:.3f}")


def _searches_to_their_end(recorded: Recorded, contender: Contender, seeds: int) -> str:
    """How often a search is better than the defaults, and its cost, before and after stopped trials were promoted."""
    searches = [Replay(recorded, contender, seed=seed, concurrent=2) for seed in range(seeds)]
    for search in searches:
        search.run(trials=TRIALS)
    told = _outcomes(searches)
    if not contender.rays_rule:
        for search in searches:
            search.promote()
        told += f"; with promotions {_outcomes(searches)}"
    return f"{contender.name}: of searches of {TRIALS} trials so many are better than the defaults: {told}"


def _outcomes(searches: Sequence[Replay]) -> str:
    better, costs = zip(*(search.result() for search in searches), strict=True)
    return f"{statistics.fmean(better):.0%} at the cost of {statistics.fmean(costs):.2f} ({max(costs):.2f} at most)"


def _rungs_after_restarts(recorded: Recorded, seeds: int) -> str:
    """Trials 6 to 21 that pass the first rung: in one search, in one extended after 5, in one killed and resumed."""
    default, rung = Contender(name="the default"), math.ceil(0.1 * recorded.epochs)
    passed = {"fresh": 0, "extended": 0, "resumed": 0}
    for seed in range(seeds):
        searches = {name: Replay(recorded, default, seed=seed, concurrent=2) for name in passed}
        searches["extended"].run(trials=5)
        searches["resumed"].run(cost=3)
        for name, search in searches.items():
            if name != "fresh":
                search.restart()
            search.run(trials=21)
            passed[name] += sum(len(trial.curve) > rung for trial in search.trials[5:])
    told = ", ".join(f"{name} {count / seeds:.2f}" for name, count in passed.items())
    return f"of trials 6 to 21, so many pass the first rung: {told}"


def _regrets(recorded: Recorded, searches: Sequence[Replay]) -> Iterator[str]:
    for cost in COSTS:
        regrets = [search.best(cost) - recorded.best_value for search in searches]
        yield f"{statistics.median(regrets):.3f}"
        yield f"{np.quantile(regrets, 0.9):.3f}"


def _means(searches: Sequence[Replay]) -> tuple[str, str]:
    trials = statistics.fmean(len(search.distances) for search in searches)
    return f"{trials:.0f}", f"{statistics.fmean(itertools.chain(*(search.distances for search in searches))):.3f}"


if __name__ == "__main__":
    main()
