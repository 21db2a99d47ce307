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

import heapq
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import torch
from ray.tune.schedulers.async_hyperband import _Bracket

from raygen.proposals import Policy, Proposals
from raygen.spec import TuneSpec
from raygen.stopping import EarlyStopping
from tests.benchmarks.record_curves import FOLDER, RECORDINGS

COSTS = (8, 16, 32)
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
        # The first configuration that was recorded is that of the defaults.
        self.training_s = sum(self.epoch_s[0])
        self.defaults_value = min(self.values[0])
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


@dataclass
class Replay:
    """What one search showed: (cost, best value so far) after each epoch, and how far answers lay from proposals."""

    history: list[tuple[float, float]] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    

    def best(self, cost: float, otherwise: float) -> float:
        """The best value for that cost."""
        found = [value for spent, value in self.history if spent <= cost]
        return found[-1] if found else otherwise


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


def replay(recorded: Recorded, contender: Contender, *, seed: int, concurrent: int, cost: float) -> Replay:
    """One search, until its trainings have cost so much or every configuration was used."""
    spec = spec_of(contender, recorded.family, recorded.epochs).model_copy(update={"seed": seed})
    proposals = Proposals(spec, policy=contender.policy)
    stops = _ray_asha(spec) if contender.rays_rule else _our_rule(spec)
    found, best = Replay(), math.inf
    sign = -1 if recorded.direction == "max" else 1
    curves: list[list[float]] = []
    free = np.ones(len(recorded.parameters), dtype=bool)
    running: list[tuple[float, int, int, int, optuna.Trial]] = []
    clock_s = 0.0

    def begin() -> None:
        asked = proposals.ask()
        distances = np.linalg.norm(recorded.points - recorded.point(proposals.parameters(asked)), axis=1)
        index = int(np.where(free, distances, math.inf).argmin())
        free[index] = False
        found.distances.append(float(distances[index]) / math.sqrt(recorded.points.shape[1]))
        curves.append([])
        # One that diverged in its first epoch took about as long as an epoch takes.
        first_s = recorded.epoch_s[index][0] if recorded.values[index] else recorded.training_s / recorded.epochs
        heapq.heappush(running, (clock_s + first_s, len(curves) - 1, index, 0, asked))

    for _ in range(concurrent):
        begin()
    while running:
        clock_s, number, index, epoch, asked = heapq.heappop(running)
        spent = clock_s * concurrent / recorded.training_s
        if spent > cost:
            break
        values = recorded.values[index]
        if epoch < len(values):
            curves[number].append(values[epoch])
            best = min(best, values[epoch])
            found.history.append((spent, best))
        curve = curves[number]
        diverged = epoch + 1 >= len(values) < recorded.epochs
        stopped = not diverged and stops(number, curve, curves[:number] + curves[number + 1 :])
        if stopped or diverged or len(curve) == recorded.epochs:
            if not (contender.rays_rule and not curve):
                proposals.tell(asked, sign * min(curve) if curve else None)
            if free.any():
                begin()
        else:
            heapq.heappush(running, (clock_s + recorded.epoch_s[index][epoch + 1], number, index, epoch + 1, asked))
    return found


def _our_rule(spec: TuneSpec) -> Stop:
    rule = EarlyStopping(spec.search, epochs=spec.training.epochs, direction="min")

    def stops(number: int, curve: list[float], others: list[list[float]]) -> bool:
        is_defaults = number == 0 and spec.search.defaults_first
        return not is_defaults and rule.should_stop(curve, others)

    return stops


def _ray_asha(spec: TuneSpec) -> Stop:
    """Ray's own rule, which compares the latest values of the trials that it has seen itself."""
    grace = math.ceil(spec.search.grace_fraction * spec.training.epochs)
    bracket = _Bracket(min_t=grace, max_t=spec.training.epochs, reduction_factor=spec.search.reduction_factor, s=0)

    def stops(number: int, curve: list[float], others: list[list[float]]) -> bool:
        trial = SimpleNamespace(trial_id=str(number))
        return bracket.on_result(trial, len(curve), -curve[-1]) == "STOP"

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
    for fraction, factor in itertools.product((0.05, 0.1, 0.2, 0.3), (2, 3, 4)):
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
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    torch.set_num_threads(1)
    recorded = Recorded(options.family)
    chosen = [each for each in contenders() if options.only is None or each.name in options.only]
    console, columns = Console(width=120), [f"{cost}: {what}" for cost in COSTS for what in ("median", "worst tenth")]
    table = Table("policy", *columns, "trials", "distance", box=None, pad_edge=False)
    for contender in chosen:
        searches = [
            replay(recorded, contender, seed=seed, concurrent=concurrent, cost=max(COSTS))
            for concurrent in options.concurrent or (2, 4, 16)
            for seed in range(options.seeds)
        ]
        table.add_row(contender.name, *_regrets(recorded, searches), *_means(searches))
    behind = recorded.defaults_value - recorded.best_value
    console.print(table)
    console.print(f"{len(recorded.values)} configurations; the defaults' own regret is {behind:.3f}")


def _regrets(recorded: Recorded, searches: Sequence[Replay]) -> Iterator[str]:
    for cost in COSTS:
        regrets = [search.best(cost, recorded.defaults_value) - recorded.best_value for search in searches]
        yield f"{statistics.median(regrets):.3f}"
        yield f"{np.quantile(regrets, 0.9):.3f}"


def _means(searches: Sequence[Replay]) -> tuple[str, str]:
    trials = statistics.fmean(len(search.distances) for search in searches)
    return f"{trials:.0f}", f"{statistics.fmean(itertools.chain(*(search.distances for search in searches))):.3f}"


if __name__ == "__main__":
    main()
