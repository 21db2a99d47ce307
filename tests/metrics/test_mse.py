from __future__ import annotations

import numpy as np
import pytest
import torch

from raygen.metrics import mse
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model

SHAPE = ImageShape(3, 8, 9)
IMAGES = torch.rand(1203, *SHAPE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize(("model", "arch"), [("ae", "mlp"), ("ae", "conv"), ("vae", "mlp")])
def test_it_is_the_mean_over_all_pixels(model: str, arch: str) -> None:
    spec = TrainSpec.create(model, {"model.arch": arch, "model.width": 8})
    judged = build_model(spec, SHAPE, CPU)
    reconstructed = judged.decode(judged.encode(IMAGES)).numpy().astype(np.float64)
    expected = np.mean((reconstructed - IMAGES.numpy().astype(np.float64)) ** 2)
    assert mse.compute(judged, IMAGES, 0) == pytest.approx(expected, rel=1e-5)
    assert mse.compute(judged, IMAGES, 0) == mse.compute(judged, IMAGES, 1)


@torch.no_grad()
def test_the_best_constant_leaves_the_variance() -> None:
    judged = build_model(TrainSpec.create("ae", {"model.hidden": []}), SHAPE, CPU)
    judged.decoder[0].weight.zero_()
    judged.decoder[0].bias.fill_(IMAGES.mean().logit())
    assert mse.compute(judged, IMAGES, 0) == pytest.approx(IMAGES.var(correction=0).item(), rel=1e-5)
