from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.models._base import Batch, ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import ALONE, CPU
from raygen.training.loop import Training, build_model

MakeBatch = Callable[..., Batch]
SHAPE = ImageShape(1, 8, 8)
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
every_mode = pytest.mark.parametrize("judges", ["images", "pairs"])


def spec(**options: Any) -> TrainSpec:
    options = {"arch": "mlp", "hidden": [], "latent_dim": 5, "latent_hidden": [], **options}
    return TrainSpec.create("aegan", {f"model.{name}": value for name, value in options.items()})


def aegan(**options: Any) -> Any:
    return build_model(spec(**options), SHAPE, CPU)


def flat(images: Tensor) -> Tensor:
    return (2 * images - 1).flatten(1)


def verdicts(model: Any, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """By hand, the probabilities [B] that a pair was encoded, as told by its image and as told by its latents."""
    judge = model.discriminator
    if model.discriminator.__class__.__name__ == "_Pairs":
        seen = F.leaky_relu(F.linear(flat(images), judge.images[0][1].weight, judge.images[0][1].bias), 0.2)
        logits = F.linear(torch.cat([seen, latents], dim=1), judge.pairs[0].weight, judge.pairs[0].bias)
        return logits.sigmoid()[:, 0], logits.sigmoid()[:, 0]
    of_images = F.linear(flat(images), judge.images[1].weight, judge.images[1].bias)
    of_latents = F.linear(latents, judge.latents[0].weight, judge.latents[0].bias)
    return of_images.sigmoid()[:, 0], of_latents.sigmoid()[:, 0]


@every_mode
@torch.no_grad()
def test_the_discriminator_tells_encoded_from_generated(judges: str, make_batch: MakeBatch) -> None:
    """Cross-entropy, of one verdict on pairs or the mean of those on images and on latents."""
    model, batch = aegan(judges=judges), make_batch(IMAGES)
    latents = batch.noise.normal("discriminator latents", 5)
    encoded = verdicts(model, IMAGES, model.encode(IMAGES))
    generated = verdicts(model, model.sample(latents), latents)
    both = [-(yes.log() + (1 - no).log()).mean() for yes, no in zip(encoded, generated, strict=True)]
    loss, _ = model.phases()[0].loss(batch)
    assert loss.item() == pytest.approx(torch.stack(both).mean().item(), rel=1e-5)


@every_mode
@pytest.mark.parametrize("weight", [0.0, 7.0])
@torch.no_grad()
def test_the_autoencoder_reconstructs_and_deceives(judges: str, weight: float, make_batch: MakeBatch) -> None:
    """The generator by its images, the encoder by its latents; the error is the mean square over pixels."""
    model, batch = aegan(judges=judges, reconstruction=weight), make_batch(IMAGES)
    latents = batch.noise.normal("autoencoder latents", 5)
    codes = model.encode(IMAGES)
    by_images, _ = verdicts(model, model.sample(latents), latents)
    _, by_latents = verdicts(model, IMAGES, codes)
    error = (model.decode(codes) - IMAGES).square().mean()
    expected = weight * error - (by_images.log() + (1 - by_latents).log()).mean()
    loss, parts = model.phases()[1].loss(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["reconstruction"].item() == pytest.approx(error.item(), rel=1e-5)


@every_mode
def test_only_pairs_are_judged_by_how_their_parts_go_together(judges: str) -> None:
    """Swapping the latents of two images changes the sum of the verdicts only where pairs are judged."""
    model = aegan(judges=judges, latent_hidden=[32])
    latents = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, swapped = (model.discriminator(IMAGES, codes).sum().item() for codes in (latents, latents.flip(0)))
    assert (abs(together - swapped) > 1e-3) == (judges == "pairs")


@torch.no_grad()
def test_the_discriminator_sees_uniform_latents_where_the_prior_is(make_batch: MakeBatch) -> None:
    model, batch = aegan(judges="pairs", prior="uniform"), make_batch(IMAGES)
    seen: list[Tensor] = []
    model.discriminator.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    for phase, purpose, call in ((0, "discriminator latents", 1), (1, "autoencoder latents", 0)):
        seen.clear()
        model.phases()[phase].loss(batch)
        uniform = 2 * torch.special.ndtr(batch.noise.normal(purpose, 5)) - 1
        torch.testing.assert_close(seen[call], uniform, atol=1e-6, rtol=0)


def test_without_reconstruction_pairs_are_a_bigan(make_batch: MakeBatch) -> None:
    """Then the loss of encoder and generator has no term that compares an image with its reconstruction."""
    model, batch = aegan(judges="pairs", reconstruction=0.0), make_batch(IMAGES)
    before = model.phases()[1].loss(batch)[0].item()
    codes = model.encode(IMAGES)
    model.decode = lambda latents: (
        torch.zeros(len(latents), *SHAPE) if latents.requires_grad else model_decode(latents)
    )
    model_decode = type(model).decode.__get__(model)
    assert codes.requires_grad
    assert model.phases()[1].loss(batch)[0].item() == pytest.approx(before, rel=1e-6)


@every_mode
def test_the_latents_come_to_follow_the_prior(judges: str, make_batch: MakeBatch) -> None:
    """Images that differ in the brightness of two halves, encoded far from the prior and close together at first."""
    chosen = spec(judges=judges, latent_dim=2, hidden=[32], latent_hidden=[64]).with_settings({"optimizer.lr": 2e-3})
    training = Training(chosen, build_model(chosen, SHAPE, CPU), steps=400, group=ALONE)
    model: Any = training.model
    halves = torch.rand(128, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    images = F.interpolate(halves, size=(8, 8))
    nn.init.constant_(model.encoder[-1].bias, 3.0)
    for step in range(400):
        training.step(make_batch(images, step=step), step)
    with torch.no_grad():
        codes = model.encode(images)
    assert codes.mean(dim=0).abs().max() < 0.5
    assert codes.std(dim=0).min() > 0.5
    assert codes.std(dim=0).max() < 1.5
