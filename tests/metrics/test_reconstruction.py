"""PSNR, SSIM and compression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from raygen.metrics import Evidence, compression, psnr, ssim
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model
from tests.judged import noise

SHAPE = ImageShape(3, 12, 13)
IMAGES = torch.rand(503, *SHAPE, generator=torch.Generator().manual_seed(0))


def autoencoder(shape: ImageShape = SHAPE, **options: Any) -> Any:
    named = {f"model.{name}": value for name, value in {"hidden": [16], "latent_dim": 4, **options}.items()}
    return build_model(TrainSpec.create("ae", named), shape, CPU)


class Adding:
    """A reconstructor that adds a constant to every pixel."""

    device = torch.device("cpu")

    def __init__(self, error: float) -> None:
        self.error = error

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents + self.error


@torch.no_grad()
def test_psnr_is_the_mean_of_torchmetrics_over_images() -> None:
    model = autoencoder()
    made = model.decode(model.encode(IMAGES))
    each = [peak_signal_noise_ratio(one, real, data_range=1.0) for one, real in zip(made, IMAGES, strict=True)]
    assert psnr.compute(model, IMAGES, 0) == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("error", "decibels"), [(0.1, 20), (0.01, 40), (0.0, 100)])
def test_psnr_of_a_known_error(error: float, decibels: float) -> None:
    assert psnr.compute(Adding(error), IMAGES, 0) == pytest.approx(decibels, abs=1e-3)  # type: ignore[arg-type]


def numpy_ssim(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Structural similarity of two planes [H, W] as in the paper, one window after another."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(window, window) / window.sum() ** 2
    first_padded, second_padded = np.pad(first, 5, "reflect"), np.pad(second, 5, "reflect")
    found = []
    for row in range(first.shape[0]):
        for column in range(first.shape[1]):
            area = np.s_[row : row + 11, column : column + 11]
            x, y = first_padded[area], second_padded[area]
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            both = (weights * (x - mean_x) * (y - mean_y)).sum()
            found.append(
                (2 * mean_x * mean_y + 0.01**2)
                * (2 * both + 0.03**2)
                / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2))
            )
    return float(np.mean(found))


@pytest.mark.parametrize("sides", [(14, 12), (11, 20), (8, 8)])
def test_ssim_is_that_of_the_paper(sides: tuple[int, int]) -> None:
    random = np.random.RandomState(0)
    real = random.rand(3, 3, *sides)
    made = np.clip(real + 0.2 * random.standard_normal(real.shape), 0, 1)
    expected = [
        np.mean([numpy_ssim(a, b) for a, b in zip(x, y, strict=True)]) for x, y in zip(made, real, strict=True)
    ]
    found = ssim.similarities(torch.from_numpy(made), torch.from_numpy(real))
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@torch.no_grad()
def test_ssim_is_a_mean_over_all_images() -> None:
    model = autoencoder()
    expected = ssim.similarities(model.decode(model.encode(IMAGES)), IMAGES).mean().item()
    assert ssim.compute(model, IMAGES, 0) == pytest.approx(expected, rel=1e-5)
    assert ssim.compute(Adding(0.0), IMAGES, 0) == pytest.approx(1, abs=1e-5)  # type: ignore[arg-type]


def test_compression_is_values_and_bytes() -> None:
    model = autoencoder(latent_dim=6)
    assert compression.compute(model, IMAGES, 0) == 3 * 12 * 13 / 6
    measured = compression.measure(model, Evidence(images=IMAGES, seed=0, dataset=noise(IMAGES)))
    assert measured.value == 78
    assert measured.details == {
        "image_values": 468,
        "latent_values": 6,
        "image_bytes": 468,
        "latent_bytes": 24,
        "bytes_ratio": 19.5,
    }
