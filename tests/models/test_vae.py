from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from raygen import metrics
from raygen.models._base import Batch, ImageShape, Model
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model

MakeBatch = Callable[..., Batch]
SHAPE = ImageShape(1, 8, 8)
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)).round()
NOISE = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def vae(**options: Any) -> Model:
    """Without hidden layers, so that encoder and decoder are one affine map each."""
    options = {"hidden": [], "latent_dim": 5, **options}
    spec = TrainSpec.create("vae", {f"model.{name}": value for name, value in options.items()})
    return build_model(spec, SHAPE, CPU)


def posterior(model: Any, images: Tensor) -> Normal:
    layer = model.encoder[-1]
    mean, log_variance = F.linear(images.flatten(1), layer.weight, layer.bias).chunk(2, dim=1)
    return Normal(mean, log_variance.exp().sqrt())


def kl(model: Any, images: Tensor) -> Tensor:
    return kl_divergence(posterior(model, images), Normal(0.0, 1.0)).sum(dim=1)


def logits(model: Any, latents: Tensor) -> Tensor:
    layer = model.decoder[0]
    return F.linear(latents, layer.weight, layer.bias).view(-1, *SHAPE)


@torch.no_grad()
def test_the_bernoulli_bound_is_what_torch_distributions_says() -> None:
    model: Any = vae()
    q = posterior(model, IMAGES)
    likelihood = Bernoulli(logits=logits(model, q.mean + q.stddev * NOISE))
    expected = likelihood.log_prob(IMAGES).sum(dim=(1, 2, 3)) - kl(model, IMAGES)
    torch.testing.assert_close(model.elbo(IMAGES, NOISE), expected)


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_the_gaussian_bound_is_what_torch_distributions_says(sigma: float) -> None:
    model: Any = vae(likelihood="gaussian", sigma=sigma)
    q = posterior(model, IMAGES)
    likelihood = Normal(logits(model, q.mean + q.stddev * NOISE).sigmoid(), sigma)
    expected = likelihood.log_prob(IMAGES).sum(dim=(1, 2, 3)) - kl(model, IMAGES)
    torch.testing.assert_close(model.elbo(IMAGES, NOISE), expected)


@torch.no_grad()
def test_closed_forms() -> None:
    """A posterior that is the prior costs nothing; a decoder that knows nothing pays ln 2 for every pixel."""
    model: Any = vae()
    for parameter in model.parameters():
        parameter.zero_()
    assert model.elbo(IMAGES, NOISE).tolist() == pytest.approx([-64 * 0.6931472] * 6)
    # One dimension moved to mean 2 costs 2²/2; one narrowed to variance e⁻¹ costs (e⁻¹ - 1 + 1)/2 nats.
    model.encoder[-1].bias[0], model.encoder[-1].bias[5 + 1] = 2.0, -1.0
    assert model.elbo(IMAGES, NOISE).tolist() == pytest.approx([-64 * 0.6931472 - 2 - 0.3678794 / 2] * 6)


@torch.no_grad()
def test_the_loss_is_the_negative_bound_with_the_divergence_weighted_by_beta(make_batch: MakeBatch) -> None:
    for beta in (0.0, 1.0, 4.0):
        model: Any = vae(beta=beta)
        [phase] = model.phases()
        loss, parts = phase.loss(make_batch(IMAGES))
        assert parts["kl"].item() == pytest.approx(kl(model, IMAGES).mean().item(), rel=1e-5)
        assert loss.item() == pytest.approx((parts["reconstruction"] + beta * parts["kl"]).item(), rel=1e-6)
        noise = make_batch(IMAGES).noise.normal("posterior", 5)
        negative_elbo = -model.elbo(IMAGES, noise).mean().item()
        assert loss.item() - (beta - 1) * parts["kl"].item() == pytest.approx(negative_elbo, rel=1e-5)


@torch.no_grad()
def test_beta_does_not_enter_the_objective() -> None:
    objective = metrics.find("val_elbo")
    plain, weighted = vae(beta=1.0), vae(beta=20.0)
    weighted.load_state_dict(plain.state_dict())
    assert objective.compute(plain, IMAGES, 0) == objective.compute(weighted, IMAGES, 0)


@torch.no_grad()
def test_an_extreme_posterior_stays_finite() -> None:
    model: Any = vae()
    model.encoder[-1].weight.mul_(1e6)
    assert model.elbo(IMAGES, NOISE).isfinite().all()


@torch.no_grad()
def test_samples_are_the_decoder_s_means() -> None:
    model: Any = vae()
    torch.testing.assert_close(model.sample(NOISE), logits(model, NOISE).sigmoid())
    torch.testing.assert_close(model.encode(IMAGES), posterior(model, IMAGES).mean)
