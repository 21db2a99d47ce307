"""A CPU and the device train equally good models: their numbers are drawn otherwise, what they learn is the same."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from raygen import models
from raygen.training.distributed import CPU, Group
from tests.gpu.trainings import GROUP, spec_of, train

SEEDS = (0, 1, 2)
PLAIN = {"training.epochs": 1, "training.batch_size": 30, "health.enabled": False}
FLOOR = 0.02
"""Part of the objective that counts as no difference, if three seeds differ by less."""


def objectives(family: str, group: Group, folder: Path) -> list[float]:
    """What the objective is after an epoch, for each seed."""
    found = []
    for seed in SEEDS:
        spec = spec_of(family, **PLAIN, seed=seed)
        [metrics] = train(spec, folder / f"{group.device.type}-{seed}", group=group).values()
        found.append(metrics[spec.evaluation.objective])
    return found


@pytest.mark.cuda
@pytest.mark.parametrize("family", models.names())
def test_the_objective_after_an_epoch_lies_within_the_spread_of_three_seeds(family: str, tmp_path: Path) -> None:
    on_cpu = objectives(family, Group(device=CPU), tmp_path)
    on_device = objectives(family, GROUP, tmp_path)
    spread = max(max(values) - min(values) for values in (on_cpu, on_device))
    difference = abs(statistics.mean(on_cpu) - statistics.mean(on_device))
    assert difference <= max(spread, FLOOR * abs(statistics.mean(on_cpu))), (on_cpu, on_device)
