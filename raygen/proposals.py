"""Which configuration a search tries next: the defaults, some around them, then what earlier ones make likely.

The policy was chosen by replaying recorded trainings: docs/decisions/015-search-policy.md has the table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from raygen import metrics, study
from raygen.models._base import derived_seed
from raygen.record.view import TrialRecord
from raygen.space import Choice, Distribution, IntUniform, LogUniform, Quantised, Uniform
from raygen.spec import Settings, TuneSpec
from raygen.spec.settings import field_of


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How configurations are chosen: how many are drawn around the defaults first, how wide, and by whom the others.

    `width` is the standard deviation of these draws, in units of each parameter's range on its own scale.
    """

    sampler: Callable[[int], BaseSampler]
    around: int = 0
    width: float = 0.25


POLICIES = {
    # Running trials count as bad ones, so that several at a time do not all try the same place.
    "optuna": Policy(sampler=lambda seed: TPESampler(seed=seed, multivariate=True, n_startup_trials=4), around=3),
    "random": Policy(sampler=lambda seed: RandomSampler(seed=seed)),
    # A grid leaves nothing to choose.
    "grid": Policy(sampler=lambda seed: RandomSampler(seed=seed)),
}


class Proposals:
    """Proposes the configurations of a search, and learns what each comes to.

    `earlier` are the trials that have ended; `begun` counts those too that are to go on.
    """

    def __init__(
        self, spec: TuneSpec, earlier: Sequence[TrialRecord] = (), *, begun: int = 0, policy: Policy | None = None
    ) -> None:
        search = spec.search
        self._spec = spec
        self._policy = policy or POLICIES[search.sampler]
        self._distributions = study.distributions(search.space)
        maximises = metrics.find(spec.evaluation.objective).direction == "max"
        self._worst = -math.inf if maximises else math.inf
        seed = derived_seed(spec.seed, "search", begun) % 2**32
        self._random = np.random.RandomState(seed)
        self._grid = grid(spec) if search.sampler == "grid" else []
        self._study = optuna.create_study(
            direction="maximize" if maximises else "minimize", sampler=self._policy.sampler(seed)
        )
        for record in earlier:
            told = record if record.epoch_objective is not None else replace(record, epoch_objective=self._worst)
            self._study.add_trial(study.observed(told, self._distributions))

    def ask(self) -> optuna.Trial:
        """The next configuration to try."""
        planned = self._planned(len(self._study.trials))
        if planned is not None:
            self._study.enqueue_trial(study.encoded(planned, self._distributions))
        return self._study.ask(self._distributions)

    def ask_again(self, parameters: Settings) -> optuna.Trial:
        """A configuration that was begun before and goes on."""
        self._study.enqueue_trial(study.encoded(parameters, self._distributions))
        return self._study.ask(self._distributions)

    def parameters(self, asked: optuna.Trial) -> dict[str, Any]:
        """The configuration's values, by dotted path."""
        return study.decoded(asked.params, self._distributions)

    def tell(self, asked: optuna.Trial, value: float | None) -> None:
        """The best value that a configuration reached; None, if it never had one, counts as worse than any."""
        self._study.tell(asked, self._worst if value is None else value)

    def _planned(self, number: int) -> dict[str, Any] | None:
        """The configuration that is tried as the trial of that number, counted from 0, whatever others have shown."""
        search = self._spec.search
        if search.sampler == "grid":
            return self._grid[number]
        if not search.defaults_first:
            return None
        if number == 0:
            return defaults(self._spec)
        if number <= self._policy.around:
            return self._near_defaults()
        return None

    def _near_defaults(self) -> dict[str, Any]:
        encoded = study.encoded(defaults(self._spec), self._distributions)
        drawn = {
            name: _near(encoded[name], distribution, self._policy.width, self._random)
            for name, distribution in self._distributions.items()
        }
        return study.decoded(drawn, self._distributions)


def defaults(spec: TuneSpec) -> dict[str, Any]:
    """The spec as it stands: the value of each varied parameter, moved inside the bounds of the space."""
    values = spec.model_dump(mode="json", exclude={"search"})
    return {
        path: _moved_inside(field_of(values, path), distribution)
        for path, distribution in spec.search.space.parameters.items()
    }


def grid(spec: TuneSpec) -> list[dict[str, Any]]:
    """Every configuration of a space that lists its values; that of the defaults comes first, unless not wanted."""
    parameters = spec.search.space.parameters
    values = [distribution.values() for distribution in parameters.values()]
    points = [dict(zip(parameters, point, strict=True)) for point in itertools.product(*values)]
    first = defaults(spec) if spec.search.defaults_first else points[0]
    return sorted(points, key=lambda point: point != first)


def _moved_inside(value: Any, distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return _nearest_choice(value, distribution.choice)
    low, high = distribution.bounds
    inside: float = _middle(distribution) if value is None else min(max(value, low), high)
    if isinstance(distribution, Quantised):
        return min(distribution.values(), key=lambda step: abs(step - inside))
    return round(inside) if isinstance(distribution, IntUniform) else float(inside)


def _middle(distribution: Uniform | LogUniform | Quantised | IntUniform) -> float:
    low, high = distribution.bounds
    return math.sqrt(low * high) if distribution.is_log else (low + high) / 2


def _nearest_choice(value: Any, choices: Sequence[Any]) -> Any:
    """The choice that is the value or, among numbers, nearest to it; else the first."""
    value = tuple(value) if isinstance(value, list) else value
    numbers = [choice for choice in choices if isinstance(choice, int | float) and not isinstance(choice, bool)]
    if value in choices:
        nearest = value
    elif numbers and isinstance(value, int | float):
        nearest = min(numbers, key=lambda choice: abs(choice - value))
    else:
        nearest = choices[0]
    return list(nearest) if isinstance(nearest, tuple) else nearest


def _near(value: Any, distribution: BaseDistribution, width: float, random: np.random.RandomState) -> Any:
    """A draw around a value: normal on the range's own scale and inside it; among choices by their order."""
    if isinstance(distribution, CategoricalDistribution):
        last = len(distribution.choices) - 1
        drawn_index = distribution.choices.index(value) + round(random.normal(scale=width * (last + 1)))
        return distribution.choices[min(max(drawn_index, 0), last)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = (math.log(bound) if distribution.log else bound for bound in (distribution.low, distribution.high))
    centre = math.log(value) if distribution.log else value
    drawn = math.inf
    while not low <= drawn <= high:
        drawn = random.normal(centre, width * (high - low))
    found = math.exp(drawn) if distribution.log else drawn
    if isinstance(distribution, IntDistribution):
        return round(found)
    step = distribution.step
    return distribution.low + step * round((found - distribution.low) / step) if step else found
