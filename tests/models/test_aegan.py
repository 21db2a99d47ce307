from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.errors import SpecError
from raygen.models._base import Batch, ImageShape
from raygen.results import TrainedModel
from raygen.spec import TrainSpec
from raygen.training.distributed import ALONE, CPU
from raygen.training.step import Training, build_model

MakeBatch = Callable[..., Batch]
SHAPE = ImageShape(1, 8, 8)
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
every_mode = pytest.mark.parametrize("judges", ["images", "pairs"])


OBJECTIVE = {"objective": "val_mse"}
"""For models without a prior, whose samples nothing can be judged by."""


def spec(objective: str = "val_frechet", **options: Any) -> TrainSpec:
    judge_of_latents = {"latent_hidden": []} if options.get("latent_judge", True) else {}
    options = {"arch": "mlp", "hidden": [], "latent_dim": 5, **judge_of_latents, **options}
    settings = {f"model.{name}": value for name, value in options.items()}
    return TrainSpec.create("aegan", {"evaluation.objective": objective, **settings})


def aegan(**options: Any) -> Any:
    return build_model(spec(**options), SHAPE, CPU)


def flat(images: Tensor) -> Tensor:
    return (2 * images - 1).flatten(1)


def verdicts(model: Any, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """By hand, the probabilities [B] that a pair was encoded, as told by its image and as told by its latents."""
    judge = model.discriminator
    if model.discriminator.__class__.__name__ == "_Pairs":
        seen = flat(images)
        if model.options.pair_features:
            seen = F.leaky_relu(F.linear(seen, judge.images[0][1].weight, judge.images[0][1].bias), 0.2)
        logits = F.linear(torch.cat([seen, latents], dim=1), judge.pairs[0].weight, judge.pairs[0].bias)
        return logits.sigmoid()[:, 0], logits.sigmoid()[:, 0]
    of_images = F.linear(flat(images), judge.images[1].weight, judge.images[1].bias)
    if judge.latents is None:
        return of_images.sigmoid()[:, 0], torch.ones(len(images))
    of_latents = F.linear(latents, judge.latents[0].weight, judge.latents[0].bias)
    return of_images.sigmoid()[:, 0], of_latents.sigmoid()[:, 0]


@pytest.mark.parametrize("options", [{}, {"judges": "pairs"}, {"judges": "pairs", "pair_features": 0}])
@torch.no_grad()
def test_the_discriminator_tells_encoded_from_generated(options: dict[str, Any], make_batch: MakeBatch) -> None:
    """Cross-entropy, of one verdict on pairs or the mean of those on images and on latents."""
    model, batch = aegan(**options), make_batch(IMAGES)
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


def shown(model: Any, batch: Batch, phase: str, adversarial: str) -> Tensor:
    """By hand, the images [N, C, H, W] that count as generated."""
    samples = model.generator(batch.noise.normal(f"{phase} latents", 5)).sigmoid()
    reconstructions = model.generator(model.encoder(IMAGES)).sigmoid()
    of = {"samples": [samples], "reconstructions": [reconstructions], "both": [samples, reconstructions]}
    return torch.cat(of[adversarial])


@pytest.mark.parametrize("adversarial", ["samples", "reconstructions", "both"])
@pytest.mark.parametrize("latent_judge", [True, False])
@torch.no_grad()
def test_what_the_judge_of_images_is_shown(adversarial: str, latent_judge: bool, make_batch: MakeBatch) -> None:
    """Of samples and reconstructions each weighs a half; a judge of latents weighs as much as that of images."""
    model, batch = aegan(adversarial=adversarial, latent_judge=latent_judge, **OBJECTIVE), make_batch(IMAGES)
    codes, latents = model.encode(IMAGES), batch.noise.normal("discriminator latents", 5)
    of_real, of_codes = verdicts(model, IMAGES, codes)
    of_fake, _ = verdicts(model, shown(model, batch, "discriminator", adversarial), latents)
    of_images = -of_real.log().mean() - (1 - of_fake).log().mean()
    of_latents = -(of_codes.log() + (1 - verdicts(model, IMAGES, latents)[1]).log()).mean()
    loss, _ = model.phases()[0].loss(batch)
    expected = (of_images + of_latents) / 2 if latent_judge else of_images
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    of_fake, _ = verdicts(model, shown(model, batch, "autoencoder", adversarial), latents)
    error = (model.decode(codes) - IMAGES).square().mean()
    expected = 50 * error - of_fake.log().mean() - ((1 - of_codes).log().mean() if latent_judge else 0)
    loss, parts = model.phases()[1].loss(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts.keys() == {"reconstruction"}


@every_mode
@torch.no_grad()
def test_minimax(judges: str, make_batch: MakeBatch) -> None:
    """Dumoulin et al. 2017, equation 1: encoder and generator minimise what the discriminator maximises."""
    model, batch = aegan(judges=judges, loss="minimax", reconstruction=0), make_batch(IMAGES)
    latents = batch.noise.normal("autoencoder latents", 5)
    by_images, _ = verdicts(model, model.sample(latents), latents)
    _, by_latents = verdicts(model, IMAGES, model.encode(IMAGES))
    expected = (1 - by_images).log().mean() + by_latents.log().mean()
    assert model.phases()[1].loss(batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    other = aegan(judges=judges, reconstruction=0)
    other.load_state_dict(model.state_dict())
    assert other.phases()[0].loss(batch)[0].item() == model.phases()[0].loss(batch)[0].item()


@every_mode
@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_the_cycle_autoencodes_samples(judges: str, prior: str, make_batch: MakeBatch) -> None:
    """|E(G(z)) - z|², a mean over the latents, whose gradient encoder and generator both get."""
    plain, model = aegan(judges=judges, prior=prior), aegan(judges=judges, prior=prior, cycle=7.0)
    model.load_state_dict(plain.state_dict())
    batch = make_batch(IMAGES)
    latents = batch.noise.normal("autoencoder latents", 5)
    latents = 2 * torch.special.ndtr(latents) - 1 if prior == "uniform" else latents
    error = (model.encode(model.decode(latents)) - latents).square().mean()
    loss, parts = model.phases()[1].loss(batch)
    assert parts["cycle"].item() == pytest.approx(error.item(), rel=1e-5)
    assert loss.item() == pytest.approx((plain.phases()[1].loss(batch)[0] + 7 * error).item(), rel=1e-5)
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(parts["cycle"], model.phases()[1].params))


def test_reconstructions_are_judged_through_the_encoder(make_batch: MakeBatch) -> None:
    """Without any other term, so that the gradient which the encoder gets is that of the judge of images."""
    options = {"adversarial": "reconstructions", "latent_judge": False, "reconstruction": 0}
    model = aegan(**options, **OBJECTIVE)
    loss, _ = model.phases()[1].loss(make_batch(IMAGES))
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, list(model.encoder.parameters())))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"judges": "pairs", "latent_judge": False}, "model.latent_judge: one discriminator judges (x, E(x))"),
        ({"judges": "pairs", "adversarial": "both"}, "model.adversarial: one discriminator judges (x, E(x))"),
        ({"adversarial": "all"}, "model.adversarial: input should be 'samples', 'reconstructions' or 'both'"),
        ({"loss": "hinge"}, "model.loss: input should be 'non-saturating' or 'minimax'"),
        ({"cycle": -1}, "model.cycle: input should be greater than or equal to 0"),
        (
            {"adversarial": "reconstructions", "latent_judge": False, "cycle": 1.0, **OBJECTIVE},
            "model.cycle: neither samples nor latents are judged; leave it out, or set model.adversarial=both",
        ),
        ({"adversarial": "reconstructions", "latent_judge": False}, "type --objective val_mse"),
        (
            {"adversarial": "reconstructions", "latent_judge": False, "prior": "uniform", **OBJECTIVE},
            "model.prior: neither samples nor latents are judged; leave it out, or set model.adversarial=both",
        ),
        ({"latent_judge": False, "latent_hidden": [7]}, "model.latent_hidden: nothing judges latents; leave out"),
        ({"pair_features": 9}, "model.pair_features: nothing judges pairs; set model.judges=pairs"),
        ({"latent_judge": False, "reconstruction": 0}, "nothing trains the encoder; train a gan"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "prior"),
    [
        ({}, "standard normal"),
        ({"judges": "pairs", "prior": "uniform"}, "uniform"),
        ({"latent_judge": False}, "standard normal"),
        ({"adversarial": "reconstructions"}, "standard normal"),
        ({"adversarial": "reconstructions", "latent_judge": False}, None),
    ],
)
def test_a_model_has_a_prior_if_samples_or_latents_are_judged(options: dict[str, Any], prior: str | None) -> None:
    chosen = spec(**options, **OBJECTIVE)
    assert chosen.model.prior_name == prior
    trained = TrainedModel(build_model(chosen, SHAPE, CPU), chosen, {})
    assert (trained.prior.name if trained.prior else None) == prior


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
