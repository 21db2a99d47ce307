from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from raygen.models._base import Batch, ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model

MakeBatch = Callable[..., Batch]
SHAPE = ImageShape(1, 8, 8)
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))


def vaegan(**options: Any) -> Any:
    """Of one affine map for each network, but for a hidden layer of the discriminator, whose features are 7."""
    options = {"arch": "mlp", "hidden": [], "latent_dim": 5, **options}
    spec = TrainSpec.create("vaegan", {f"model.{name}": value for name, value in options.items()})
    model: Any = build_model(spec, SHAPE, CPU)
    torch.manual_seed(0)
    model.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.LeakyReLU(0.2))
    model.verdict = nn.Linear(7, 1)
    return model


def posterior(model: Any) -> Normal:
    mean, log_variance = model.encoder(IMAGES).chunk(2, dim=1)
    return Normal(mean, log_variance.exp().sqrt())


def made(model: Any, batch: Batch, phase: str) -> tuple[Tensor, Tensor]:
    """Reconstructions and samples by hand."""
    q = posterior(model)
    latents = q.mean + q.stddev * batch.noise.normal(f"{phase} posterior", 5)
    prior = batch.noise.normal(f"{phase} latents", 5)
    return model.decoder(latents).sigmoid(), model.decoder(prior).sigmoid()


def features(model: Any, images: Tensor) -> Tensor:
    return F.leaky_relu((2 * images - 1).flatten(1) @ model.features[1].weight.T + model.features[1].bias, 0.2)


def probability(model: Any, images: Tensor) -> Tensor:
    return model.verdict(features(model, images)).sigmoid().squeeze(1)


def feature_error(model: Any, reconstructions: Tensor) -> Tensor:
    """What -log N(features; reconstruction's features, 1) is beyond its constant."""
    likelihood = Normal(features(model, reconstructions), 1.0).log_prob(features(model, IMAGES)).sum(dim=1)
    return (-likelihood - 7 * 0.5 * math.log(2 * math.pi)).mean()


@torch.no_grad()
def test_the_discriminator_s_loss(make_batch: MakeBatch) -> None:
    """Algorithm 1: real images against reconstructions and samples."""
    model, batch = vaegan(), make_batch(IMAGES)
    reconstructions, samples = (probability(model, images) for images in made(model, batch, "discriminator"))
    expected = -(probability(model, IMAGES).log() + (1 - reconstructions).log() + (1 - samples).log()).mean()
    loss, _ = model.phases()[0].loss(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("gamma", [0.0, 1.0, 20.0])
def test_the_decoder_s_loss(gamma: float, make_batch: MakeBatch) -> None:
    """Algorithm 1: γ weighs what the discriminator's features miss against what it is to believe."""
    model, batch = vaegan(gamma=gamma), make_batch(IMAGES)
    reconstructions, samples = made(model, batch, "decoder")
    believed = -(probability(model, reconstructions).log() + probability(model, samples).log()).mean()
    loss, _ = model.phases()[1].loss(batch)
    assert loss.item() == pytest.approx((gamma * feature_error(model, reconstructions) + believed).item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_encoder_s_loss(beta: float, make_batch: MakeBatch) -> None:
    """Algorithm 1: the divergence that torch.distributions computes, plus the feature error; no adversarial loss."""
    model, batch = vaegan(beta=beta), make_batch(IMAGES)
    kl = kl_divergence(posterior(model), Normal(0.0, 1.0)).sum(dim=1).mean()
    reconstructions, _ = made(model, batch, "encoder")
    loss, parts = model.phases()[2].loss(batch)
    assert parts["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert loss.item() == pytest.approx((beta * kl + feature_error(model, reconstructions)).item(), rel=1e-5)


def test_each_network_has_its_phase() -> None:
    model = vaegan()
    discriminator, decoder, encoder = model.phases()
    assert set(discriminator.params) == {*model.features.parameters(), *model.verdict.parameters()}
    assert set(decoder.params) == set(model.decoder.parameters())
    assert set(encoder.params) == set(model.encoder.parameters())


@pytest.mark.parametrize(("arch", "count"), [("mlp", 32), ("conv", 2 * 8 * 7 * 7)])
def test_features_are_those_of_the_first_dense_layer_or_the_last_convolution(arch: str, count: int) -> None:
    options = {"model.arch": arch, "model.hidden": [32, 16], "model.width": 8}
    model: Any = build_model(TrainSpec.create("vaegan", options), ImageShape(1, 28, 28), CPU)
    seen = model._seen(torch.rand(2, 1, 28, 28))
    assert seen.shape == (2, count)
    assert seen.min() < 0 < seen.max(), "behind the activation, which lets a fifth of what is negative through"


@torch.no_grad()
def test_what_the_encoder_gives_are_means() -> None:
    model = vaegan()
    torch.testing.assert_close(model.encode(IMAGES), posterior(model).mean)


@torch.no_grad()
def test_an_extreme_posterior_stays_finite(make_batch: MakeBatch) -> None:
    model = vaegan()
    model.encoder[-1].weight.mul_(1e6)
    for phase in model.phases():
        assert phase.loss(make_batch(IMAGES))[0].isfinite()
