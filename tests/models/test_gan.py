from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raygen.data import Dataset
from raygen.errors import SpecError
from raygen.models._base import Batch, ImageShape
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import ALONE, CPU
from raygen.training.evaluation import evaluate, held_out_images
from raygen.training.loop import fit
from raygen.training.step import Training, build_model

MakeBatch = Callable[..., Batch]
SHAPE = ImageShape(1, 8, 8)
REAL = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))


def spec(**options: Any) -> TrainSpec:
    options = {"arch": "mlp", "hidden": [], "latent_dim": 5, **options}
    settings = {f"model.{name}": value for name, value in options.items()}
    return TrainSpec.create("gan", {"training.batch_size": 126, **settings})


def gan(**options: Any) -> Any:
    """One whose generator makes one image whatever the latents, and whose discriminator is one affine map."""
    model: Any = build_model(spec(**options), SHAPE, CPU)
    with torch.no_grad():
        model.generator[0].weight.zero_()
        model.generator[0].bias.copy_(torch.linspace(-3, 3, 64))
    return model


@torch.no_grad()
def judged(model: Any) -> tuple[Tensor, float]:
    """The logits [B] of the real images, and the one of the fake, by hand; images are shown in [-1, 1]."""
    layer = model.discriminator[-1]
    fake = torch.linspace(-3, 3, 64).sigmoid()
    real_logits = (2 * REAL.flatten(1) - 1) @ layer.weight[0] + layer.bias
    return real_logits, float((2 * fake - 1) @ layer.weight[0] + layer.bias)


def losses(model: Any, batch: Batch) -> tuple[float, float]:
    discriminator, generator = model.phases()
    return discriminator.loss(batch)[0].item(), generator.loss(batch)[0].item()


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("real_label", [0.9, 1.0])
def test_non_saturating(real_label: float, make_batch: MakeBatch) -> None:
    """Goodfellow et al. 2014: cross-entropy for the discriminator, -log D(G(z)) for the generator."""
    model = gan(real_label=real_label)
    real, fake = judged(model)
    smoothed = [
        real_label * math.log(sigmoid(logit)) + (1 - real_label) * math.log(1 - sigmoid(logit))
        for logit in real.tolist()
    ]
    expected = -sum(smoothed) / len(smoothed) - math.log(1 - sigmoid(fake))
    assert losses(model, make_batch(REAL)) == pytest.approx((expected, -math.log(sigmoid(fake))), rel=1e-5)


def test_minimax(make_batch: MakeBatch) -> None:
    """Goodfellow et al. 2014, equation 1: the generator minimises what the discriminator maximises."""
    model = gan(loss="minimax", real_label=1.0)
    real, fake = judged(model)
    value = sum(math.log(sigmoid(logit)) for logit in real.tolist()) / len(real) + math.log(1 - sigmoid(fake))
    assert losses(model, make_batch(REAL)) == pytest.approx((-value, math.log(1 - sigmoid(fake))), rel=1e-5)
    smoothed, other = gan(loss="minimax"), gan(loss="non-saturating")
    other.load_state_dict(smoothed.state_dict())
    assert losses(smoothed, make_batch(REAL))[0] == losses(other, make_batch(REAL))[0]
    assert smoothed.discriminator_loss_range() == other.discriminator_loss_range()


def test_least_squares(make_batch: MakeBatch) -> None:
    """Mao et al. 2017, equation 2, with targets 0 for fakes and the smoothed label for real images."""
    model = gan(loss="lsgan")
    real, fake = judged(model)
    expected = 0.5 * sum((logit - 0.9) ** 2 for logit in real.tolist()) / len(real) + 0.5 * fake**2
    assert losses(model, make_batch(REAL)) == pytest.approx((expected, 0.5 * (fake - 1) ** 2), rel=1e-5)


def test_hinge(make_batch: MakeBatch) -> None:
    """Lim & Ye 2017: max(0, 1 - D(x)) + max(0, 1 + D(G(z))), and -D(G(z)) for the generator."""
    for scale in (1.0, 5.0):  # within the margin, and beyond it
        model = gan(loss="hinge")
        with torch.no_grad():
            model.discriminator[-1].weight.mul_(scale)
        real, fake = judged(model)
        expected = sum(max(0, 1 - logit) for logit in real.tolist()) / len(real) + max(0, 1 + fake)
        assert losses(model, make_batch(REAL)) == pytest.approx((expected, -fake), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_wasserstein_with_gradient_penalty(weight: float, make_batch: MakeBatch) -> None:
    """Gulrajani et al. 2017, equation 3; the gradient of an affine map is its weight wherever one looks."""
    model = gan(loss="wgan-gp", gradient_penalty=weight)
    real, fake = judged(model)
    slope = model.discriminator[-1].weight.detach()[0]  # with respect to images in [-1, 1], as published
    norm = slope.norm().item()
    discriminator, _ = model.phases()
    loss, _ = discriminator.loss(make_batch(REAL))
    expected = fake - real.mean().item() + weight * (norm - 1) ** 2
    assert losses(model, make_batch(REAL)) == pytest.approx((expected, -fake), rel=1e-4)

    # The penalty must teach the discriminator, which takes a second derivative.
    [gradient] = torch.autograd.grad(loss, model.discriminator[-1].weight)
    of_logits = 2 * torch.linspace(-3, 3, 64).sigmoid() - 2 * REAL.flatten(1).mean(dim=0)
    of_penalty = weight * 2 * (norm - 1) * slope / norm
    torch.testing.assert_close(gradient[0], of_logits + of_penalty, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_penalty_looks_anywhere_between_real_and_fake(make_batch: MakeBatch) -> None:
    """A discriminator with a kink a quarter of the way from fake to real: of slope 0.2 before it, and 1 after."""
    model: Any = build_model(spec(loss="wgan-gp", hidden=[1]), SHAPE, CPU)
    for parameter in model.parameters():
        parameter.zero_()
    _, inner, _, outer = model.discriminator
    inner.weight.fill_(8 / 64)
    inner.bias.fill_(-2)
    outer.weight.fill_(1)
    white = torch.ones(4000, *SHAPE)  # the generator makes grey
    with torch.enable_grad():
        loss, reported = model.phases()[0].loss(make_batch(white))
    assert (reported["real_logit"].item(), reported["fake_logit"].item()) == pytest.approx((6, -0.4))
    assert (loss.item() + 6.4) / 10 == pytest.approx(0.25 * 0.8**2, abs=0.01)


def test_the_logits_are_reported(make_batch: MakeBatch) -> None:
    model = gan()
    real, fake = judged(model)
    _, reported = model.phases()[0].loss(make_batch(REAL))
    assert reported["real_logit"].item() == pytest.approx(real.mean().item(), rel=1e-5)
    assert reported["fake_logit"].item() == pytest.approx(fake, rel=1e-5)


def test_the_phases_train_the_two_networks() -> None:
    model = gan()
    discriminator, generator = model.phases()
    assert set(discriminator.params) == set(model.discriminator.parameters())
    assert set(generator.params) == set(model.generator.parameters())


def test_the_discriminator_does_not_see_the_generator_s_latents(make_batch: MakeBatch) -> None:
    """Two phases of one step that drew the same latents would train the generator on what was just refused."""
    model: Any = build_model(spec(loss="wgan-gp", gradient_penalty=0.0), SHAPE, CPU)
    batch = make_batch(REAL)
    (discriminator_loss, reported), (generator_loss, _) = (phase.loss(batch) for phase in model.phases())
    assert (discriminator_loss + reported["real_logit"]).item() != pytest.approx(-generator_loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"loss": "hinge"}, 1), ({"loss": "wgan-gp"}, 5), ({"loss": "wgan-gp", "discriminator_steps": 2}, 2)],
)
def test_the_generator_waits_for_the_discriminator(options: dict[str, Any], steps: int, make_batch: MakeBatch) -> None:
    training = Training(spec(**options), build_model(spec(**options), SHAPE, CPU), steps=10, group=ALONE)
    ran = [[done.phase for done in training.step(make_batch(REAL, step=step), step)] for step in range(10)]
    assert all("discriminator" in phases for phases in ran)
    assert [step for step in range(10) if "generator" in ran[step]] == list(range(steps - 1, 10, steps))


def test_another_loss_brings_its_own_number_of_discriminator_steps() -> None:
    """As when a search varies the loss: what the first loss asked for must not stick."""
    changed = spec().with_settings({"model.loss": "wgan-gp"})
    assert build_model(changed, SHAPE, CPU).phases()[1].every == 5


def test_the_average_of_the_weights_is_judged_and_kept(digits: Dataset, tmp_path: Path) -> None:
    trained = TrainSpec.create("gan", {"model.arch": "mlp", "training.epochs": 1, "training.batch_size": 64})
    path = tmp_path / "checkpoint"
    [epoch] = fit(trained, digits, path)
    average, weights = (checkpoint.read_weights(path, prefix=prefix) for prefix in ("average.", "model."))
    best = checkpoint.read_weights(path, prefix=checkpoint.BEST)
    assert best.keys() == average.keys()
    assert all(torch.equal(best[name], average[name]) for name in best)
    assert not any(torch.equal(best[name], weights[name]) for name in best)
    model = build_model(trained, SHAPE, CPU)
    model.load_state_dict(best)
    images = held_out_images(digits.validation.images, trained.evaluation, CPU)
    [(name, value)] = evaluate(model, images, trained.evaluation).items()
    assert epoch.metrics[name] == pytest.approx(value, rel=1e-6)


# Priors


@pytest.mark.parametrize("name", ["gan", "aegan"])
@torch.no_grad()
def test_a_uniform_prior(name: str) -> None:
    """Generated from the same standard normal numbers as ever, through the normal distribution function."""
    options = {"model.arch": "mlp", "model.hidden": [], "model.latent_dim": 2}
    made: Any = build_model(TrainSpec.create(name, {**options, "model.prior": "uniform"}), SHAPE, CPU)
    normal = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    made.generator.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    made.sample(normal)
    [latents] = seen
    torch.testing.assert_close(latents, 2 * torch.distributions.Normal(0.0, 1.0).cdf(normal) - 1, atol=1e-6, rtol=0)
    deciles = torch.histc(latents, bins=10, min=-1, max=1) / latents.numel()
    torch.testing.assert_close(deciles, torch.full((10,), 0.1), atol=0.005, rtol=0)


# Penalties


@pytest.mark.parametrize("loss", ["non-saturating", "lsgan", "hinge"])
def test_the_gradient_penalty_goes_with_any_loss(loss: str, make_batch: MakeBatch) -> None:
    """On an affine discriminator it is (|slope| - 1)² wherever one looks."""
    plain, penalised = gan(loss=loss), gan(loss=loss, gradient_penalty=3.0)
    slope = plain.discriminator[-1].weight.detach().norm().item()
    expected, generator = losses(plain, make_batch(REAL))
    assert losses(penalised, make_batch(REAL)) == pytest.approx((expected + 3 * (slope - 1) ** 2, generator), rel=1e-4)


@pytest.mark.parametrize("every", [1, 16])
def test_r1_of_an_affine_discriminator(every: int, make_batch: MakeBatch) -> None:
    """Mescheder et al. 2018: γ/2 |∇D|², here γ/2 |w|², which stands for as many steps as it waits."""
    model = gan(r1=0.3, r1_every=every)
    weight = model.discriminator[-1].weight
    phase = model.phases()[-1]
    loss, reported = phase.loss(make_batch(REAL))
    squared = weight.detach().square().sum().item()
    assert (phase.name, phase.every) == ("r1", every)
    assert reported["squared_slope"].item() == pytest.approx(squared, rel=1e-5)
    assert loss.item() == pytest.approx(every * 0.15 * squared, rel=1e-5)
    [gradient] = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient, every * 0.3 * weight.detach())


def test_r1_looks_at_real_images_only(make_batch: MakeBatch) -> None:
    """A discriminator with a kink: flat where the fakes are, of slope 1 in each pixel where the real images are."""
    model: Any = build_model(spec(r1=2.0, hidden=[1]), SHAPE, CPU)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    _, inner, _, outer = model.discriminator
    nn.init.ones_(inner.weight)
    nn.init.constant_(inner.bias, -1)
    nn.init.ones_(outer.weight)
    for images, slope in ((torch.ones(3, *SHAPE), 1.0), (torch.zeros(3, *SHAPE), 0.2)):
        _, reported = model.phases()[-1].loss(make_batch(images))
        assert reported["squared_slope"].item() == pytest.approx(64 * slope**2, rel=1e-5)


def test_r1_shares_the_discriminator_s_optimizer(make_batch: MakeBatch) -> None:
    """So its weight counts beside the adversarial loss; Adam takes no notice of the scale of a loss of its own."""
    chosen = spec(r1=10.0, r1_every=2)
    training = Training(chosen, build_model(chosen, SHAPE, CPU), steps=10, group=ALONE)
    assert set(training.optimizers) == {"discriminator", "generator"}
    ran = [[done.phase for done in training.step(make_batch(REAL, step=step), step)] for step in range(4)]
    assert ran == [["discriminator", "generator"], ["discriminator", "generator", "r1"]] * 2
    [moments, *_] = training.optimizers["discriminator"].state.values()
    assert moments["step"].item() == 6


@pytest.mark.parametrize("weight", [1.0, 100.0])
def test_r1_flattens_the_discriminator(weight: float, make_batch: MakeBatch) -> None:
    def slope(**options: Any) -> float:
        chosen = spec(hidden=[32], r1_every=4, **options)
        training = Training(chosen, build_model(chosen, SHAPE, CPU), steps=100, group=ALONE)
        for step in range(100):
            training.step(make_batch(REAL, step=step), step)
        model: Any = training.model
        return model._slope(REAL).norm(dim=1).mean().item()

    assert slope(r1=weight) < 0.8 * slope()


# Two time-scales


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_discriminator_s_rate_is_in_units_of_the_generator_s(scale: float, make_batch: MakeBatch) -> None:
    """Adam's first step moves each weight by the learning rate, whatever the gradient."""
    chosen = spec(discriminator_lr_scale=scale, hidden=[4])
    training = Training(chosen, build_model(chosen, SHAPE, CPU), steps=10, group=ALONE)
    model: Any = training.model
    layers = {"discriminator": model.discriminator[-1].weight, "generator": model.generator[-2].weight}
    before = {name: weight.detach().clone() for name, weight in layers.items()}
    training.step(make_batch(REAL), 0)
    moved = {name: (weight.detach() - before[name]).abs().max().item() for name, weight in layers.items()}
    assert moved == pytest.approx({"discriminator": 1e-3 * scale, "generator": 1e-3}, rel=1e-2)


# Packing


def test_packs_are_judged_as_one_input_of_more_channels(make_batch: MakeBatch) -> None:
    """Lin et al. 2018: with an affine discriminator the logit of a pack is the sum over its images' own weights."""
    model = gan(pack=3, loss="hinge")
    layer = model.discriminator[-1]
    assert layer.in_features == 3 * 64
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(3))
    flat = (2 * images - 1).flatten(1)
    real = [torch.cat(list(flat[first : first + 3])) @ layer.weight[0] + layer.bias for first in (0, 3)]
    fake = (2 * torch.linspace(-3, 3, 64).sigmoid() - 1).repeat(3) @ layer.weight[0] + layer.bias
    _, reported = model.phases()[0].loss(make_batch(images))
    assert reported["real_logit"].item() == pytest.approx(torch.stack(real).mean().item(), rel=1e-4)
    assert reported["fake_logit"].item() == pytest.approx(fake.item(), rel=1e-4)


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_a_packed_discriminator_tells_a_collapsed_generator_from_images_that_differ(
    arch: str, make_batch: MakeBatch
) -> None:
    """Black and white images in equal parts against packs of one colour: no image gives that away, a pack does."""

    def gap(pack: int) -> float:
        chosen = spec(pack=pack, arch=arch, hidden=[32], width=8, loss="hinge").with_settings({"optimizer.lr": 3e-3})
        training = Training(chosen, build_model(chosen, SHAPE, CPU), steps=200, group=ALONE)
        training.phases = training.phases[:1]
        colour = torch.arange(16) % 2.0
        training.model.sample = lambda latents: collapsed  # type: ignore[attr-defined, method-assign]
        for step in range(200):
            collapsed = torch.full((16, *SHAPE), float(step % 2))
            [done] = training.step(make_batch(colour[:, None, None, None].expand(-1, *SHAPE), step=step), step)
        return float(done.values["real_logit"] - done.values["fake_logit"])

    assert gap(2) > 1.5
    assert gap(1) < 0.5


def test_packs_must_fill_the_batch() -> None:
    with pytest.raises(SpecError) as caught:
        TrainSpec.create("gan", {"model.pack": 3, "training.batch_size": 128})
    assert str(caught.value) == (
        "training.batch_size: 128 is no multiple of the 3 images that gan judges together; type 126"
    )
    assert TrainSpec.create("gan", {"model.pack": 3, "training.batch_size": 126}).model.images_judged_together == 3


# Spectral norm


def singular_values(model: Any) -> list[float]:
    """The largest singular value of each of the discriminator's weights, as [outputs, the rest]."""
    layers = [layer for layer in model.discriminator if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)) for layer in layers]


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_spectral_norm_bounds_each_layer(arch: str, make_batch: MakeBatch) -> None:
    """Miyato et al. 2018; also after steps at a high rate, which the power iteration must follow."""

    def trained(spectral_norm: bool) -> Any:
        chosen = spec(spectral_norm=spectral_norm, arch=arch, hidden=[32, 16], width=8, loss="hinge")
        chosen = chosen.with_settings({"optimizer.lr": 3e-3})
        training = Training(chosen, build_model(chosen, ImageShape(1, 16, 16), CPU), steps=50, group=ALONE)
        images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        for step in range(50):
            training.step(make_batch(images, step=step), step)
        return training

    training, free = trained(True), trained(False)
    assert all(0.9 < value < 1.1 for value in singular_values(training.model))
    assert any(abs(value - 1) > 0.1 for value in singular_values(free.model))
    # The average of the weights is divided by its own norm, which the latest weights' vectors still find.
    training.average.eval()
    assert all(0.9 < value < 1.1 for value in singular_values(training.average))


def test_spectral_norm_takes_the_place_of_group_norm() -> None:
    """Which would undo the bound: it divides by a deviation that may be small."""
    for spectral_norm in (False, True):
        model: Any = build_model(spec(spectral_norm=spectral_norm, arch="conv"), ImageShape(1, 28, 28), CPU)
        norms = [module for module in model.discriminator.modules() if isinstance(module, nn.GroupNorm)]
        assert bool(norms) != spectral_norm


# Options that need a second derivative


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"loss": "wgan-gp"}, "wgan-gp"),
        ({"gradient_penalty": 1.0}, "gradient_penalty"),
        ({"loss": "hinge", "r1": 1.0}, "r1"),
        ({"loss": "wgan-gp", "gradient_penalty": 0.0}, None),
        ({"r1": 0.0, "pack": 2, "spectral_norm": True}, None),
    ],
)
def test_what_differentiates_twice_is_not_compiled(options: dict[str, Any], culprit: str | None) -> None:
    if culprit is None:
        assert spec(**options).with_settings({"training.compile": "on"}).training.compile == "on"
    else:
        with pytest.raises(SpecError, match=f"which {culprit} needs: leave out --compile"):
            spec(**options).with_settings({"training.compile": "on"})
