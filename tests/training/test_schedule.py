from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raygen.optimizer_options import AdamOptions
from raygen.training.step import learning_rate_scale


def scales(steps: int, **options: Any) -> list[float]:
    chosen = AdamOptions(**options)
    return [learning_rate_scale(chosen, step=step, steps=steps) for step in range(steps)]


def test_constant_is_constant() -> None:
    assert scales(7) == [1.0] * 7


def test_warm_up_rises_linearly_to_the_full_rate() -> None:
    assert scales(10, warmup_fraction=0.4) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])


def test_cosine_is_torch_s_own() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    expected = []
    for _ in range(20):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert scales(20, schedule="cosine") == pytest.approx(expected, abs=1e-9)


def test_cosine_begins_where_the_warm_up_ends() -> None:
    rates = scales(100, schedule="cosine", warmup_fraction=0.2)
    assert rates[:19] == pytest.approx([step / 20 for step in range(1, 20)])
    assert rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 79 / 80)))


@given(
    steps=st.integers(1, 400),
    schedule=st.sampled_from(["constant", "cosine"]),
    warmup=st.floats(0, 1, exclude_max=True),
)
def test_no_step_is_wasted_or_above_the_full_rate(steps: int, schedule: str, warmup: float) -> None:
    rates = scales(steps, schedule=schedule, warmup_fraction=warmup)
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
