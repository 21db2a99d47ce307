from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raygen.data import Dataset
from raygen.models._base import Batch, ImageShape
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import ALONE, CPU
from raygen.training.evaluation import evaluate, held_out_images
from raygen.training.loop import Training, build_model, fit

MakeBatch = Callable[..., Batch]
SHAPE = ImageShape(1, 8, 8)
REAL = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))


def spec(**options: Any) -> TrainSpec:
    options = {"arch": "mlp", "hidden": [], "latent_dim": 5, **options}
    return TrainSpec.create("gan", {f"model.{name}": value for name, value in options.items()})


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
    slope = 2 * model.discriminator[-1].weight.detach()[0]  # 2: from images in [0, 1] to [-1, 1]
    norm = slope.norm().item()
    discriminator, _ = model.phases()
    loss, _ = discriminator.loss(make_batch(REAL))
    expected = fake - real.mean().item() + weight * (norm - 1) ** 2
    assert losses(model, make_batch(REAL)) == pytest.approx((expected, -fake), rel=1e-4)

    # The penalty must teach the discriminator, which takes a second derivative.
    [gradient] = torch.autograd.grad(loss, model.discriminator[-1].weight)
    of_logits = 2 * torch.linspace(-3, 3, 64).sigmoid() - 2 * REAL.flatten(1).mean(dim=0)
    of_penalty = weight * 2 * (norm - 1) * 2 * slope / norm
    torch.testing.assert_close(gradient[0], of_logits + of_penalty, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_penalty_looks_anywhere_between_real_and_fake(make_batch: MakeBatch) -> None:
    """A discriminator with a kink a quarter of the way from fake to real: of slope 0.2 before it, and 1 after."""
    model: Any = build_model(spec(loss="wgan-gp", hidden=[1]), SHAPE, CPU)
    for parameter in model.parameters():
        parameter.zero_()
    _, inner, _, outer = model.discriminator
    inner.weight.fill_(4 / 64)
    inner.bias.fill_(-1)
    outer.weight.fill_(1)
    white = torch.ones(4000, *SHAPE)  # the generator makes grey
    with torch.enable_grad():
        loss, reported = model.phases()[0].loss(make_batch(white))
    assert (reported["real_logit"].item(), reported["fake_logit"].item()) == pytest.approx((3, -0.2))
    assert (loss.item() + 3.2) / 10 == pytest.approx(0.25 * 0.8**2, abs=0.01)


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
    best = checkpoint.read_best_weights(path)
    assert best.keys() == average.keys()
    assert all(torch.equal(best[name], average[name]) for name in best)
    assert not any(torch.equal(best[name], weights[name]) for name in best)
    model = build_model(trained, SHAPE, CPU)
    model.load_state_dict(best)
    images = held_out_images(digits.held_out, trained.evaluation, CPU)
    [(name, value)] = evaluate(model, images, trained.evaluation).items()
    assert epoch.metrics[name] == pytest.approx(value, rel=1e-6)
