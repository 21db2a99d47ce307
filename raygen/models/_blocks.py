"""Layers that the families share: dense and convolutional encoders and decoders for any image size.

GroupNorm everywhere: it looks at one image at a time, so a batch may be split over any number of devices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from raygen.models._base import SMALLEST_SIDE, ImageShape
from raygen.models._options import ModelOptions

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    # The slope of Radford et al. 2016 (DCGAN).
    "leaky-relu": partial(nn.LeakyReLU, 0.2),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def named_activation(name: str) -> nn.Module:
    """The layer that an option calls `name`."""
    return _ACTIVATIONS[name]()


def from_prior(name: str, normal: Tensor) -> Tensor:
    """Latents [B, D] from standard normal numbers [B, D]: these themselves, or numbers uniform in (-1, 1).

    The normal distribution function Φ makes a standard normal number uniform in (0, 1), and 2 Φ(z) - 1 = erf(z / √2).
    """
    return torch.erf(normal / math.sqrt(2)) if name == "uniform" else normal


def encoder(
    options: ModelOptions, shape: ImageShape, outputs: int, activation: nn.Module, *, normalised: bool = True
) -> nn.Sequential:
    """A network from images [B, C, H, W] to [B, outputs], dense or convolutional as the options say.

    `normalised` puts GroupNorm behind every convolution but the first (Radford et al. 2016 leave it out there).
    """
    if options.arch == "mlp":
        return nn.Sequential(nn.Flatten(), *_dense([math.prod(shape), *options.hidden, outputs], activation))
    sizes, channels = _pyramid(shape, options.width)
    layers: list[nn.Module] = []
    for level, (outer, inner) in enumerate(itertools.pairwise(channels)):
        layers += [nn.Conv2d(outer, inner, kernel_size=4, stride=2, padding=1)]
        layers += [_norm(inner)] if normalised and level > 0 else []
        layers += [activation]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * math.prod(sizes[-1]), outputs))


def decoder(options: ModelOptions, shape: ImageShape, activation: nn.Module) -> nn.Sequential:
    """A network from latents [B, D] to image logits [B, C, H, W]: the encoder's layers backwards.

    Dense ones may be of other sizes (`decoder_hidden`).
    """
    if options.arch == "mlp":
        sizes = [options.latent_dim, *options.decoder_sizes, math.prod(shape)]
        return nn.Sequential(*_dense(sizes, activation), nn.Unflatten(1, tuple(shape)))
    pyramid, channels = _pyramid(shape, options.width)
    smallest = (channels[-1], *pyramid[-1])
    layers: list[nn.Module] = [nn.Linear(options.latent_dim, math.prod(smallest)), nn.Unflatten(1, smallest)]
    for level in range(len(pyramid) - 1, 0, -1):
        # An odd side was rounded down on the way in: the transposed convolution adds the lost row or column.
        lost = (pyramid[level - 1][0] % 2, pyramid[level - 1][1] % 2)
        layers += [_norm(channels[level]), activation]
        layers += [
            nn.ConvTranspose2d(
                channels[level], channels[level - 1], kernel_size=4, stride=2, padding=1, output_padding=lost
            )
        ]
    return nn.Sequential(*layers)


def add_spectral_norm(network: nn.Module) -> None:
    """Divide the weight of every layer by its largest singular value, with a convolution's as [outputs, the rest].

    Miyato et al. 2018, algorithm 1: each forward pass in training mode is one step of the power iteration, whose
    vectors are buffers. They follow from the weights and the number of passes, not from the data, so they are the
    same on every process, and a checkpoint holds them.
    """
    for layer in list(network.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.utils.parametrizations.spectral_norm(layer)


def dense(sizes: Sequence[int], activation: nn.Module) -> nn.Sequential:
    """Linear layers from [B, sizes[0]] to [B, sizes[-1]] with the activation between them."""
    return nn.Sequential(*_dense(sizes, activation))


def _dense(sizes: Sequence[int], activation: nn.Module) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation]
    return layers[:-1]


def _pyramid(shape: ImageShape, width: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Sides and channels at each level, halving the sides while both are at least 8 (28 → 14 → 7)."""
    sides = [(shape.height, shape.width)]
    channels = [shape.channels]
    while min(sides[-1]) >= SMALLEST_SIDE:
        sides.append((sides[-1][0] // 2, sides[-1][1] // 2))
        channels.append(min(width * 2 ** (len(sides) - 2), width * 8))
    return sides, channels


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
