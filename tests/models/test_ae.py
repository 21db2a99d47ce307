from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raygen.models._base import Batch, ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.loop import build_model

MakeBatch = Callable[..., Batch]
SHAPE = ImageShape(1, 8, 8)
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))


def autoencoder(shape: ImageShape = SHAPE, **options: Any) -> Any:
    spec = TrainSpec.create("ae", {f"model.{name}": value for name, value in options.items()})
    return build_model(spec, shape, CPU)


@pytest.mark.parametrize(
    ("hidden", "sizes"),
    [([128, 64], [784, 128, 64, 32, 64, 128, 784]), ([], [784, 32, 784]), (100, [784, 100, 32, 100, 784])],
)
def test_dense_layers(hidden: list[int] | int, sizes: list[int]) -> None:
    model = autoencoder(ImageShape(1, 28, 28), hidden=hidden, latent_dim=32)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == sizes
    activations = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    assert bool(activations) == bool(hidden), "no activation on the bottleneck itself"


def test_a_decoder_of_its_own() -> None:
    model = autoencoder(ImageShape(1, 28, 28), hidden=[256], latent_dim=128, decoder_hidden=[])
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == [784, 256, 128, 784]


def test_the_bottleneck_s_own_activation() -> None:
    plain = autoencoder()
    for name, of in (("relu", torch.relu), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh)):
        model = autoencoder(latent_activation=name)
        model.load_state_dict(plain.state_dict())
        torch.testing.assert_close(model.encode(IMAGES), of(plain.encode(IMAGES)))


def test_the_deep_form_is_the_default() -> None:
    deep = autoencoder(ImageShape(1, 28, 28), hidden=[128, 64], latent_dim=32)
    assert str(autoencoder(ImageShape(1, 28, 28))) == str(deep)


@pytest.mark.parametrize("noise_std", [0.0, 2.0])
@torch.no_grad()
def test_the_target_is_the_clean_image(noise_std: float, make_batch: MakeBatch) -> None:
    """A decoder that makes one image whatever it is given shows what the loss compares with."""
    logit = 0.7
    probability = 1 / (1 + math.exp(-logit))
    cross_entropy = -(IMAGES * math.log(probability) + (1 - IMAGES) * math.log(1 - probability))
    for loss, expected in (("mse", (IMAGES - probability).square()), ("bce", cross_entropy)):
        model = autoencoder(hidden=[], loss=loss, noise_std=noise_std)
        model.decoder[0].weight.zero_()
        model.decoder[0].bias.fill_(logit)
        [phase] = model.phases()
        value, _ = phase.loss(make_batch(IMAGES))
        assert value.item() == pytest.approx(expected.mean().item(), rel=1e-5)


@torch.no_grad()
def test_noise_disturbs_the_inputs_of_training_only(make_batch: MakeBatch) -> None:
    clean, noisy = autoencoder(), autoencoder(noise_std=0.5)
    noisy.load_state_dict(clean.state_dict())
    assert torch.equal(clean.encode(IMAGES), noisy.encode(IMAGES))
    (clean_phase,), (noisy_phase,) = clean.phases(), noisy.phases()
    clean_losses, noisy_losses = (
        [phase.loss(make_batch(IMAGES, step=step))[0].item() for step in (0, 0, 1)]
        for phase in (clean_phase, noisy_phase)
    )
    assert len(set(clean_losses)) == 1
    assert noisy_losses[0] == noisy_losses[1]
    assert len({*clean_losses, *noisy_losses}) == 3
