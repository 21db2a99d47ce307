"""The importance-sampled log-likelihood against a closed form, a plain-numpy twin and the ELBO."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor, nn

from raygen.metrics import Evidence, elbo, is_log_likelihood
from raygen.models._base import ImageShape, Model, Phase
from raygen.models._options import ModelOptions
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model
from tests.judged import noise

GREY = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
BINARY = (GREY > 0.5).float()


def vae(**options: Any) -> Any:
    named = {f"model.{name}": value for name, value in {"hidden": [16], "latent_dim": 3, **options}.items()}
    return build_model(TrainSpec.create("vae", named), ImageShape(1, 8, 8), CPU).eval()


class LinearGaussian(Model):
    """Probabilistic PCA, x = W z + σ ε, with its exact posterior of two dimensions widened by a factor."""

    def __init__(self, widened: float) -> None:
        super().__init__(ModelOptions(name="ppca", latent_dim=2), ImageShape(1, 8, 8))
        # Orthogonal columns make the posterior's covariance diagonal.
        basis, _ = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
        self.weight = nn.Parameter(basis * torch.tensor([2.0, 0.5]))
        self.sigma = 0.7
        self.widened = widened

    def phases(self) -> list[Phase]:
        return []

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        variance = self.sigma**2 / (self.weight.square().sum(dim=0) + self.sigma**2)
        mean = images.flatten(1) @ self.weight / self.sigma**2 * variance
        return mean, (variance * self.widened**2).log().expand_as(mean)

    def log_likelihood(self, images: Tensor, latents: Tensor) -> Tensor:
        errors = (images.flatten(1) - latents @ self.weight.T) / self.sigma
        return (-0.5 * errors.square() - math.log(self.sigma * math.sqrt(2 * math.pi))).sum(dim=1)


@torch.no_grad()
@pytest.mark.parametrize(("widened", "samples", "tolerance"), [(1.0, 1, 1e-4), (1.0, 7, 1e-4), (1.5, 3000, 0.1)])
def test_it_is_the_marginal_of_a_linear_gaussian_model(widened: float, samples: int, tolerance: float) -> None:
    """N(0, WWᵀ + σ²I): with the exact posterior every weight is p(x), so a single sample is exact."""
    model = LinearGaussian(widened)
    weight = model.weight.double().numpy()
    marginal = scipy.stats.multivariate_normal(cov=weight @ weight.T + model.sigma**2 * np.eye(64))
    expected = marginal.logpdf(GREY.flatten(1).double().numpy())
    found = is_log_likelihood.log_likelihoods(model, GREY, 0, samples)
    assert found.numpy() == pytest.approx(expected, abs=tolerance)


def numpy_twin(model: Any, images: Tensor, samples: int, seed: int) -> NDArray[Any]:
    """The same estimate in plain numpy with draws of its own, from the weights of a VAE with one hidden layer."""
    random = np.random.RandomState(seed)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def dense(inputs: NDArray[Any], part: str) -> NDArray[Any]:
        indices = sorted({int(name.split(".")[1]) for name in weights if name.startswith(part)})
        for layer in indices:
            inputs = inputs @ weights[f"{part}.{layer}.weight"].T + weights[f"{part}.{layer}.bias"]
            inputs = inputs if layer == indices[-1] else np.maximum(inputs, 0)
        return inputs

    pixels = images.flatten(1).double().numpy()
    mean, log_variance = np.split(dense(pixels, "encoder"), 2, axis=1)
    sigma = np.exp(0.5 * log_variance)
    logs = []
    for _ in range(samples):
        latents = mean + sigma * random.standard_normal(mean.shape)
        probability = 1 / (1 + np.exp(-dense(latents, "decoder")))
        if model.likelihood == "bernoulli":
            log_pixel = pixels * np.log(probability) + (1 - pixels) * np.log1p(-probability)
        else:
            log_pixel = scipy.stats.norm(probability, model.sigma).logpdf(pixels)
        log_prior = scipy.stats.norm.logpdf(latents).sum(axis=1)
        log_posterior = scipy.stats.norm(mean, sigma).logpdf(latents).sum(axis=1)
        logs.append(log_pixel.sum(axis=1) + log_prior - log_posterior)
    found: NDArray[Any] = logsumexp(logs, axis=0) - np.log(samples)
    return found


@torch.no_grad()
@pytest.mark.parametrize(("likelihood", "images"), [("bernoulli", BINARY), ("bernoulli", GREY), ("gaussian", GREY)])
def test_it_is_what_the_numpy_twin_says(likelihood: str, images: Tensor) -> None:
    model = vae(likelihood=likelihood, sigma=0.5)
    found = is_log_likelihood.log_likelihoods(model, images, 0, 400).numpy()
    twins = np.stack([numpy_twin(model, images, 400, seed) for seed in range(3)])
    spread = np.abs(twins - twins.mean(axis=0)).max() + 1e-3
    assert np.abs(found - twins.mean(axis=0)).max() < 3 * spread
    assert found.mean() == pytest.approx(twins.mean(), abs=spread)


@torch.no_grad()
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_it_is_no_less_than_the_elbo(likelihood: str) -> None:
    model = vae(likelihood=likelihood, sigma=0.3)
    model.encoder[-1].bias.add_(1.0)  # a posterior that is far from the true one: the bounds differ
    bound = sum(elbo.compute(model, GREY, seed) for seed in range(30)) / 30
    assert is_log_likelihood.log_likelihoods(model, GREY, 0, 1000).mean() > bound + 0.5


@torch.no_grad()
def test_it_rises_with_the_samples() -> None:
    model = LinearGaussian(2.0)
    bounds = [is_log_likelihood.compute(model, GREY, 0)]
    bounds += [is_log_likelihood.log_likelihoods(model, GREY, 0, samples).mean().item() for samples in (1, 4, 2000)]
    assert bounds[1] < bounds[2] < bounds[0] < bounds[3] + 0.02


@torch.no_grad()
def test_memory_is_bounded_by_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other blocks draw other noise, so the estimates are alike but not equal; the number of samples is the same."""
    model = LinearGaussian(1.0)
    whole = is_log_likelihood.log_likelihoods(model, GREY, 0, 50)
    sizes = []
    likelihood = model.log_likelihood
    monkeypatch.setattr(
        model, "log_likelihood", lambda images, latents: sizes.append(len(images)) or likelihood(images, latents)
    )
    monkeypatch.setattr(is_log_likelihood, "BLOCK_NUMBERS", 64 * 50 * 7)
    assert is_log_likelihood.log_likelihoods(model, GREY, 0, 50).tolist() == pytest.approx(whole.tolist(), abs=1e-3)
    assert max(sizes) == 7 * 50
    assert sum(sizes) == 50 * len(GREY)


@torch.no_grad()
def test_weights_that_underflow_are_summed_all_the_same() -> None:
    model = vae(likelihood="gaussian", sigma=0.001)
    found = is_log_likelihood.log_likelihoods(model, GREY, 0, 20)
    assert found.isfinite().all()
    assert found.max() < -1e5


@torch.no_grad()
@pytest.mark.parametrize(("images", "pixels"), [(BINARY, "binarised"), (GREY, "grey")])
def test_the_card_says_what_was_measured(images: Tensor, pixels: str) -> None:
    model = vae()
    evidence = Evidence(images=images, seed=4, dataset=noise(images), is_samples=30)
    measured = is_log_likelihood.measure(model, evidence)
    each = is_log_likelihood.log_likelihoods(model, images, 4, 30)
    assert measured.value == each.mean().item()
    assert measured.details == {
        "importance_samples": 30,
        "pixels": pixels,
        "standard_error_nats": pytest.approx(each.numpy().std(ddof=1) / math.sqrt(len(images))),
    }
