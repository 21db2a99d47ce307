"""The order in which an epoch draws its images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def by_class(labels: Tensor) -> list[Tensor]:
    """The positions of each class's images, of labels int64 [N]."""
    _, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
    return list(classes.argsort(stable=True).split(sizes.tolist()))


def balanced(members: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Positions [count] in a random order, of which each class has as many as any other, or one more.

    `members` are the positions of each class's images. Within a class too each image comes as often as any other, or
    once more; which classes and images these are is drawn.
    """
    shares = torch.full((len(members),), count // len(members))
    shares[torch.randperm(len(members), generator=generator)[: count % len(members)]] += 1
    drawn = []
    for positions, share in zip(members, shares.tolist(), strict=True):
        rounds = -(-share // len(positions))
        order = torch.rand(rounds, len(positions), generator=generator).argsort(dim=1).flatten()[:share]
        drawn.append(positions[order])
    return torch.cat(drawn)[torch.randperm(count, generator=generator)]
