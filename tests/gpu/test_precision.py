"""Mixed precision trains on the device."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from raygen.training import checkpoint
from tests.gpu.trainings import ON_GPU, spec_of, train

FAMILIES = ("ae", "vae", "aegan", "vaegan") if ON_GPU else ("vae", "aegan")
"""Of those that reconstruct, on a CPU two: a GAN's losses need not fall."""


def reconstruction_errors(family: str, precision: str, path: Path) -> list[float]:
    spec = spec_of(family, **{"training.precision": precision, "evaluation.metrics": ["val_mse"]})
    epochs = train(spec, path)
    assert all(math.isfinite(value) for metrics in epochs.values() for value in metrics.values())
    return [metrics["val_mse"] for metrics in epochs.values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_learns_what_fp32_learns(family: str, tmp_path: Path) -> None:
    halves, singles = (reconstruction_errors(family, name, tmp_path / name) for name in ("bf16", "fp32"))
    assert halves[-1] < halves[0]
    assert halves[-1] == pytest.approx(singles[-1], rel=0.1)


def test_weights_and_moments_stay_fp32(path: Path) -> None:
    train(spec_of("vae-bf16"), path)
    assert {tensor.dtype for tensor in checkpoint.read_weights(path).values()} == {torch.float32}
