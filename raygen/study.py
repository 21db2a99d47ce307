"""A search space and a run's trials in Optuna's terms, and what Optuna says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from raygen.space import Choice, Distribution, IntUniform, LogUniform, Quantised, Space, Uniform

if TYPE_CHECKING:
    from raygen.record.view import TrialRecord


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each varied parameter, by dotted path of the spec."""
    return {name: _distribution(distribution) for name, distribution in space.parameters.items()}


def encoded(parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """A configuration's values as Optuna takes them: those of categories are JSON texts."""
    return {
        name: json.dumps(value) if isinstance(distributions[name], CategoricalDistribution) else value
        for name, value in parameters.items()
    }


def decoded(parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The values behind those that Optuna proposed."""
    return {
        name: json.loads(value) if isinstance(distributions[name], CategoricalDistribution) else value
        for name, value in parameters.items()
    }


def observed(record: TrialRecord, distributions: Mapping[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    """What Optuna is told of a trial that has ended: its best value, or that it has none."""
    return optuna.trial.create_trial(
        params=encoded(record.parameters, distributions),
        distributions=dict(distributions),
        value=record.epoch_objective,
        state=TrialState.FAIL if record.epoch_objective is None else TrialState.COMPLETE,
    )


def importances(
    space: Space, configurations: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> dict[str, float]:
    """Each parameter's part, 0 to 1, of the variance of the configurations' values, of which two or more differ.

    By the functional ANOVA of a random forest (Hutter et al. 2014, "An efficient approach for assessing hyperparameter
    importance"), from a fixed seed.
    """
    of_space = distributions(space)
    with _quiet():
        study = optuna.create_study()
        for parameters, value in zip(configurations, values, strict=True):
            known = encoded(parameters, of_space)
            study.add_trial(optuna.trial.create_trial(params=known, distributions=of_space, value=value))
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(importance) for name, importance in found.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line about every study that is made."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _distribution(distribution: Distribution) -> BaseDistribution:
    match distribution:
        case Uniform():
            return FloatDistribution(*distribution.bounds)
        case LogUniform():
            return FloatDistribution(*distribution.bounds, log=True)
        case Quantised():
            return FloatDistribution(*distribution.bounds, step=distribution.step)
        case IntUniform():
            low, high = distribution.int
            return IntDistribution(low, high, log=distribution.log)
        case Choice():
            # Optuna's categories are plain scalars; a choice may also be a list, such as layer sizes.
            return CategoricalDistribution([json.dumps(value) for value in distribution.choice])
