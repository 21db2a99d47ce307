"""Feature networks: what Fréchet distance, KID and the neighbour metrics compare images by.

A value means something only together with its network. `random` is a frozen random network, for any image: three
strided 3×3 convolutions with GroupNorm and fixed random orthogonal weights, and a fixed random projection of the last
two to 256 features, as Naeem et al. 2020, "Reliable fidelity and diversity metrics", argue for domains far from
ImageNet (how well it ranks: docs/decisions/016-the-random-network.md). `classifier` (`_classifier.py`) is trained on
the data set's labels; `inception` (`_inception.py`) is that of published FIDs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen import interruption
from raygen.metrics import _chunks
from raygen.models._base import Model, Sampler

CHUNK_IMAGES = 500
SIDE = 32
RANDOM_CHANNELS = (3, 32, 64, 128)
RANDOM_LAYERS = 2
RANDOM_GROUPS = 8
RANDOM_FEATURES = 256
RANDOM_SEED = 0
SMALLEST_VARIANCE = 1e-3  # added to a group's variance, so that a plain image's rounding errors are not enlarged
RANDOM_VERSION = 2
"""Of the random network: values over one version compare with no value over another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """A named network; `extract` maps images [B, C, H, W] in [0, 1] to features [B, F] on the same device.

    `facts` are what a reader needs to know to compare values over it: accuracy, digest of the weights.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    chunk_images: int = CHUNK_IMAGES
    facts: Mapping[str, Any] = field(default_factory=dict)


def features(images: Tensor, network: FeatureNetwork, device: torch.device | None = None) -> Tensor:
    """Features [N, F] of images [N, C, H, W] in [0, 1], in float64, on a device, or the images' own if None.

    Raises RunInterruptedError if they are not wanted any more (raygen.interruption).
    """
    found = []
    for (chunk,) in _chunks.on_device(device or images.device, network.chunk_images, images):
        interruption.check()
        found.append(network.extract(chunk).double())
    return torch.cat(found)


def of_samples(model: Model, count: int, seed: int, network: FeatureNetwork) -> Tensor:
    """Features [count, F] of samples from latents fixed by `seed`, in float64 on the model's device."""
    return torch.cat([features(chunk, network) for chunk in samples(model, count, seed)])


def samples(model: Model, count: int, seed: int) -> Iterator[Tensor]:
    """Samples [B, C, H, W] in [0, 1] on the model's device, `count` in all, in chunks, of latents fixed by `seed`."""
    assert isinstance(model, Sampler)
    # Drawn on the CPU, so that one seed means the same latents on every device.
    latents = torch.randn(count, model.latent_dim, generator=torch.Generator().manual_seed(seed))
    for (chunk,) in _chunks.on_device(model.device, CHUNK_IMAGES, latents):
        yield model.sample(chunk).float()


@lru_cache(maxsize=1)
def of_real(images: Tensor, network: FeatureNetwork, device: torch.device) -> Tensor:
    """The same as `features`; the held-out images of a training are one tensor, and one pass serves all epochs."""
    return features(images, network, device)


def random_pair(model: Model, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Features [N, F] of images [N, C, H, W] in [0, 1] and of as many samples, over the random network.

    They are on the model's device, as is what compares them.
    """
    return of_real(images, random_network(), model.device), of_samples(model, len(images), seed, random_network())


def prepared(images: Tensor) -> Tensor:
    """Images [N, C, H, W] in [0, 1] to [N, 3, 32, 32] in [-1, 1]."""
    resized = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return 2 * resized.expand(-1, 3, -1, -1) - 1


@lru_cache(maxsize=1)
def random_network() -> FeatureNetwork:
    """The frozen random network; what changes it raises RANDOM_VERSION, which every value's card has."""
    network = RandomNetwork(RANDOM_CHANNELS, RANDOM_FEATURES, layers=RANDOM_LAYERS, groups=RANDOM_GROUPS)

    def extract(images: Tensor) -> Tensor:
        found: Tensor = network.to(images.device)(images)
        return found

    return FeatureNetwork(name="random", extract=extract, facts={"version": RANDOM_VERSION})


class RandomNetwork(nn.Module):
    """Images [B, C, H, W] in [0, 1] to features [B, `features`] by strided convolutions that are never trained.

    The outputs of the last `layers` convolutions, side by side, are projected. With `groups`, each is normalised over
    so many groups of channels (Wu & He 2018, "Group normalization"): an image then counts by its shapes more than by
    its contrast, which a blurred one lacks everywhere.
    """

    def __init__(self, channels: Sequence[int], features: int, *, layers: int, groups: int | None) -> None:
        super().__init__()
        # RandomState's stream is frozen by NumPy's policy, so the weights are the same in every version.
        random = np.random.RandomState(RANDOM_SEED)
        convolutions = [
            _with_orthogonal_weight(nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False), random)
            for inputs, outputs in itertools.pairwise(channels)
        ]
        sides = [SIDE // 2 ** (place + 1) for place in range(len(convolutions))]
        sizes = [width * side**2 for width, side in zip(channels[1:], sides, strict=True)]
        self.convolutions = nn.ModuleList(convolutions)
        self.projection = _with_orthogonal_weight(nn.Linear(sum(sizes[-layers:]), features, bias=False), random)
        self.layers = layers
        self.groups = groups
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F]."""
        outputs = [prepared(images)]
        for convolution in self.convolutions:
            found = convolution(outputs[-1])
            if self.groups is not None:
                found = F.group_norm(found, self.groups, eps=SMALLEST_VARIANCE)
            outputs.append(F.leaky_relu(found, 0.2))
        projected: Tensor = self.projection(torch.cat([each.flatten(1) for each in outputs[-self.layers :]], dim=1))
        return projected


def _with_orthogonal_weight(layer: nn.Conv2d | nn.Linear, random: np.random.RandomState) -> nn.Conv2d | nn.Linear:
    """The layer with rows or columns orthonormal, scaled by √2 to keep variance through the activations."""
    rows, columns = len(layer.weight), layer.weight[0].numel()
    basis, triangle = np.linalg.qr(random.standard_normal((max(rows, columns), min(rows, columns))))
    # Fixing the signs makes the decomposition unique, whichever LAPACK computed it.
    basis = basis * np.sign(np.diag(triangle))
    weight = basis if rows >= columns else basis.T
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.sqrt(2) * weight).reshape(layer.weight.shape))
    return layer
