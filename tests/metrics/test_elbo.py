from __future__ import annotations

from typing import Any

import pytest
import torch

from raygen.metrics import elbo
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model

IMAGES = torch.rand(1203, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vae(**options: Any) -> Any:
    named = {f"model.{name}": value for name, value in {"hidden": [16], "latent_dim": 3, **options}.items()}
    return build_model(TrainSpec.create("vae", named), ImageShape(1, 8, 8), CPU)


@torch.no_grad()
def test_it_is_the_mean_bound_over_all_images_in_nats() -> None:
    model = vae()
    noise = torch.randn(1203, 3, generator=torch.Generator().manual_seed(5))
    assert elbo.compute(model, IMAGES, 5) == pytest.approx(model.elbo(IMAGES, noise).mean().item(), rel=1e-6)
    assert elbo.compute(model, IMAGES, 6) != elbo.compute(model, IMAGES, 5)


@torch.no_grad()
def test_beta_is_1_whatever_the_model_was_trained_with() -> None:
    models = [vae(beta=beta) for beta in (0.0, 1.0, 10.0)]
    assert len({elbo.compute(model, IMAGES, 0) for model in models}) == 1


@torch.no_grad()
def test_a_better_model_has_a_higher_bound() -> None:
    """One that knows the pixels' mean beats one that knows nothing, whose bound is exactly -64 ln 2."""
    ignorant, informed = vae(), vae()
    for model in (ignorant, informed):
        for parameter in model.parameters():
            parameter.zero_()
    informed.decoder[-2].bias.copy_(IMAGES.mean(dim=0).flatten().logit())
    assert elbo.compute(ignorant, IMAGES, 0) == pytest.approx(-64 * 0.69314718, rel=1e-6)
    assert elbo.compute(informed, IMAGES, 0) > elbo.compute(ignorant, IMAGES, 0)
