"""The first steps of each optimizer on one weight, against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from raygen.spec import TrainSpec
from raygen.training import optimizers

START = 2.0
SLOPE = 0.25


def steps(count: int, **options: Any) -> list[float]:
    """The weight after each step down a slope."""
    spec = TrainSpec.create("ae", {f"optimizer.{name}": value for name, value in options.items()})
    weight = nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = optimizers.build(spec.optimizer, [weight])
    values = []
    for _ in range(count):
        weight.grad = torch.tensor(SLOPE, dtype=torch.float64)
        optimizer.step()
        values.append(weight.item())
    return values


def test_sgd_goes_along_the_gradient() -> None:
    assert steps(2, name="sgd", lr=0.1) == pytest.approx([START - 0.1 * SLOPE, START - 0.2 * SLOPE])
    assert steps(1, name="sgd", lr=0.1, weight_decay=0.5) == pytest.approx([START - 0.1 * (SLOPE + 0.5 * START)])


def test_momentum_adds_up() -> None:
    """Sutskever et al. 2013: after steps of 1 and 1 + μ; Nesterov's form is one momentum ahead."""
    plain, ahead = (steps(2, name="sgd", lr=0.1, momentum=0.5, nesterov=nesterov) for nesterov in (False, True))
    assert plain == pytest.approx([START - 0.1 * SLOPE, START - 0.1 * SLOPE * 2.5])
    assert ahead == pytest.approx([START - 0.1 * SLOPE * 1.5, START - 0.1 * SLOPE * (1.5 + 1.75)])


def test_adam_s_first_steps_are_the_learning_rate() -> None:
    assert steps(2, name="adam", lr=0.1) == pytest.approx([START - 0.1, START - 0.2], rel=1e-6)


def test_adam_s_betas() -> None:
    """Which the first steps do not show: up a constant slope they are the same whatever the betas."""
    spec = TrainSpec.create("ae", {"optimizer.beta1": 0.3, "optimizer.beta2": 0.6})
    [group] = optimizers.build(spec.optimizer, [nn.Parameter(torch.zeros(1))]).param_groups
    assert group["betas"] == (0.3, 0.6)


def test_adamw_shrinks_the_weight_beside_the_step() -> None:
    """Loshchilov & Hutter 2019, algorithm 2."""
    assert steps(1, name="adamw", lr=0.1, weight_decay=0.5) == pytest.approx([START * (1 - 0.05) - 0.1], rel=1e-6)


def test_rmsprop_divides_by_the_root_of_the_mean_square() -> None:
    """Means begin at 0: after n steps up a constant slope they are 1 - α^n of its square."""
    first, second = (0.1 / math.sqrt(1 - 0.75**n) for n in (1, 2))
    assert steps(2, name="rmsprop", lr=0.1, alpha=0.75) == pytest.approx([START - first, START - first - second])
    [_, after] = steps(2, name="rmsprop", lr=0.1, alpha=0.75, momentum=0.5)
    assert after == pytest.approx(START - first - (0.5 * first + second))


def test_adadelta_begins_with_steps_of_eps() -> None:
    """Zeiler 2012, algorithm 1: the ratio of the roots of both means, the one of steps still at 0."""
    expected = math.sqrt(1e-2) / math.sqrt(0.25 * SLOPE**2 + 1e-2) * SLOPE
    assert steps(1, name="adadelta", rho=0.75, eps=1e-2) == pytest.approx([START - expected])
    assert steps(1, name="adadelta", rho=0.75, eps=1e-2, lr=0.5) == pytest.approx([START - expected / 2])
