"""KL divergence, the ELBO's split, active units and the aggregate posterior, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence
from torch.distributions.categorical import Categorical

from raygen.metrics import Evidence, active_units, aggregate_posterior_kl, elbo, kl, reconstruction_log_likelihood
from raygen.models._base import ImageShape, Model, Phase
from raygen.models._options import ModelOptions
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model
from tests.judged import noise

IMAGES = torch.rand(1203, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vae(**options: Any) -> Any:
    named = {f"model.{name}": value for name, value in {"hidden": [16], "latent_dim": 3, **options}.items()}
    return build_model(TrainSpec.create("vae", named), ImageShape(1, 8, 8), CPU)


class Encoder(Model):
    """The first D pixels of an image, scaled, are its posterior's mean; one standard deviation for each unit."""

    def __init__(self, scales: list[float], sigmas: list[float]) -> None:
        super().__init__(ModelOptions(name="encoder", latent_dim=len(scales)), ImageShape(1, 8, 8))
        self.scales, self.sigmas = torch.tensor(scales), torch.tensor(sigmas)

    def phases(self) -> list[Phase]:
        return []

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = images.flatten(1)[:, : self.latent_dim] * self.scales
        return means, (2 * self.sigmas.log()).expand_as(means)


def evidence(images: Tensor, seed: int = 0) -> Evidence:
    return Evidence(images=images, seed=seed, dataset=noise(images))


@torch.no_grad()
def test_kl_is_torch_s() -> None:
    model = vae()
    mean, log_variance = model.posterior(IMAGES)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    assert kl.compute(model, IMAGES, 0) == pytest.approx(expected.sum(dim=1).mean().item(), rel=1e-5)
    measured = kl.measure(model, evidence(IMAGES))
    assert measured.value == kl.compute(model, IMAGES, 0)
    assert measured.details["per_unit_nats"] == pytest.approx(expected.mean(dim=0).tolist(), rel=1e-4, abs=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_two_parts_are_the_elbo(likelihood: str) -> None:
    model = vae(likelihood=likelihood)
    parts = reconstruction_log_likelihood.compute(model, IMAGES, 7) - kl.compute(model, IMAGES, 7)
    assert parts == pytest.approx(elbo.compute(model, IMAGES, 7), rel=1e-6)


@pytest.mark.parametrize(("scales", "active"), [([0.0, 0.0], 0), ([1.0, 0.0, 2.0], 2), ([0.3, 0.4], 1)])
def test_active_units_have_means_that_vary(scales: list[float], active: int) -> None:
    """A uniform pixel has variance 1/12, so the bound of 0.01 lies at a scale of 0.35."""
    model = Encoder(scales, [0.5] * len(scales))
    assert active_units.compute(model, IMAGES, 0) == active
    details = active_units.measure(model, evidence(IMAGES)).details
    assert details["units"] == len(scales)
    assert details["variances"] == pytest.approx([scale**2 / 12 for scale in scales], rel=0.1)


def test_one_posterior_for_all_images_is_a_gaussian() -> None:
    """Then the divergence is that of two Gaussians, and the latents say nothing about the images."""
    model = Encoder([1.0, 1.0], [0.5, 2.0])
    same = torch.full((20_000, 1, 8, 8), 0.7)
    expected = kl.compute(model, same, 0)
    measured = aggregate_posterior_kl.measure(model, evidence(same[:2000]))
    assert measured.details["mutual_information_nats"] == pytest.approx(0, abs=0.1)
    assert measured.value == pytest.approx(expected, abs=0.1)


def test_posteriors_that_make_up_the_prior_fit_it() -> None:
    """Means N(0, 1 - s²) and standard deviation s: together N(0, 1), each with information -ln s about its image."""
    sigma = 0.5
    model = Encoder([1.0], [sigma])
    images = torch.zeros(4000, 1, 8, 8)
    images[:, 0, 0, 0] = math.sqrt(1 - sigma**2) * torch.randn(4000, generator=torch.Generator().manual_seed(1))
    measured = aggregate_posterior_kl.measure(model, evidence(images))
    assert measured.value == pytest.approx(0, abs=0.02)
    assert measured.details["mutual_information_nats"] == pytest.approx(-math.log(sigma), abs=0.05)


def test_posteriors_far_apart_hold_all_the_information_there_is() -> None:
    model = Encoder([100.0], [1e-3])
    images = IMAGES[:50]
    details = aggregate_posterior_kl.measure(model, evidence(images)).details
    assert details["mutual_information_nats"] == pytest.approx(math.log(50), abs=0.3)


def test_the_mixture_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    means = torch.randn(300, 4, generator=random).double()
    log_variances = torch.randn(300, 4, generator=random).double() - 1
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(3)).double()
    draws = means + noise * (0.5 * log_variances).exp()
    parts = Independent(Normal(means, (0.5 * log_variances).exp()), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(300).double()), parts)
    prior = Independent(Normal(torch.zeros(4).double(), 1.0), 1)
    expected = (mixture.log_prob(draws) - prior.log_prob(draws)).mean().item()
    assert aggregate_posterior_kl.divergence(means, log_variances, 3) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(aggregate_posterior_kl, "CHUNK_ROWS", 7)
    assert aggregate_posterior_kl.divergence(means, log_variances, 3) == pytest.approx(expected, rel=1e-9)
