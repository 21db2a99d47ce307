from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from raygen.data import DataOptions
from raygen.models._base import Batch, ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model

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


@pytest.mark.parametrize("corruption", [None, "noise", "mask", "downsample"])
@torch.no_grad()
def test_the_target_is_the_clean_image(
    corruption: Literal["noise", "mask", "downsample"] | None, make_batch: MakeBatch
) -> None:
    """A decoder that makes one image whatever it is given shows what the loss compares with."""
    logit = 0.7
    probability = 1 / (1 + math.exp(-logit))
    cross_entropy = -(IMAGES * math.log(probability) + (1 - IMAGES) * math.log(1 - probability))
    for loss, expected in (("mse", (IMAGES - probability).square()), ("bce", cross_entropy)):
        model = autoencoder(hidden=[], loss=loss)
        model.decoder[0].weight.zero_()
        model.decoder[0].bias.fill_(logit)
        [phase] = model.phases()
        value, _ = phase.loss(make_batch(IMAGES, data=DataOptions(corruption=corruption, corruption_std=2.0)))
        assert value.item() == pytest.approx(expected.mean().item(), rel=1e-5)


@torch.no_grad()
def test_what_is_encoded_is_corrupted_anew_in_each_step(make_batch: MakeBatch) -> None:
    [phase] = autoencoder().phases()
    clean, noisy = (
        [phase.loss(make_batch(IMAGES, step=step, data=data))[0].item() for step in (0, 0, 1)]
        for data in (DataOptions(), DataOptions(corruption="noise"))
    )
    assert len(set(clean)) == 1
    assert noisy[0] == noisy[1]
    assert len({*clean, *noisy}) == 3
