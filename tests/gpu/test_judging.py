"""What is asked of a trained model is answered alike on a CPU and on the device."""

from __future__ import annotations

import pytest
import torch

import raygen
from raygen.protocol import Protocol
from raygen.results import TrainedModel
from tests.gpu.trainings import digits, spec_of, trained

NAME = "cuda" if torch.cuda.is_available() else "cpu"
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Of single latents, scores and pixels: float32 without TF32, added up in another order."""

COUNTED = {"val_precision", "val_recall", "val_density", "val_coverage", "val_active_units", "val_linear_probe"}
"""Metrics that count images, of which a few may lie on the other side of a threshold."""


@pytest.fixture(scope="module")
def models() -> dict[str, TrainedModel]:
    return {kind: trained(spec_of(kind), digits()) for kind in ("ae", "vae", "gan")}


@pytest.mark.parametrize("kind", ["ae", "vae", "gan"])
def test_evaluate(kind: str, models: dict[str, TrainedModel]) -> None:
    protocol = Protocol(images=100, is_samples=20, normal_class=0)
    on_cpu, on_device = (raygen.evaluate(models[kind], protocol, device=name) for name in ("cpu", NAME))
    assert on_cpu.values.keys() == on_device.values.keys()
    for name, value in on_cpu.values.items():
        own, tolerance = on_device.values[name], 0.03 if name in COUNTED else 5e-3
        assert value.value is not None, name
        assert own.value == pytest.approx(value.value, rel=tolerance, abs=1e-3), name
        if value.real_against_real is not None:
            assert own.real_against_real == pytest.approx(value.real_against_real, rel=tolerance, abs=1e-3), name


def test_evaluate_over_a_mixture(models: dict[str, TrainedModel]) -> None:
    """Fitted over latents that differ in their last bits, which may move single components."""
    found = [
        raygen.sample(models["ae"], 500, prior="gmm", components=3, device=name).mean(dim=0) for name in ("cpu", NAME)
    ]
    torch.testing.assert_close(*found, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_sample(kind: str, models: dict[str, TrainedModel]) -> None:
    found = [raygen.sample(models[kind], 100, device=name) for name in ("cpu", NAME)]
    assert all(images.device.type == "cpu" for images in found)
    torch.testing.assert_close(*found, rtol=RELATIVE, atol=ABSOLUTE)


@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_encode(kind: str, models: dict[str, TrainedModel]) -> None:
    found = [raygen.encode(models[kind], device=name).values for name in ("cpu", NAME)]
    torch.testing.assert_close(*found, rtol=RELATIVE, atol=ABSOLUTE)


@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_score(kind: str, models: dict[str, TrainedModel]) -> None:
    found = [raygen.score(models[kind], device=name).values for name in ("cpu", NAME)]
    torch.testing.assert_close(*found, rtol=RELATIVE, atol=ABSOLUTE)
