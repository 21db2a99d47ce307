"""Nearest neighbours in feature space, a few rows of the distance matrix at a time.

Precision and recall use the third neighbour, density and coverage the fifth, as their authors chose.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from raygen import interruption

CHUNK_ROWS = 500


def radii(features: Tensor, k: int) -> Tensor:
    """Distance [N] of each row of features [N, F] to its k-th nearest other row; to the last where N ≤ k."""
    rank = min(k + 1, len(features))  # a row is its own nearest neighbour
    return torch.cat([rows.kthvalue(rank, dim=1).values for rows in distances(features, features)])


def distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """Euclidean distances between the rows of [N, F] and [M, F]: blocks [n, M], in order.

    Raises RunInterruptedError if they are not wanted any more (raygen.interruption).
    """
    for rows in first.split(CHUNK_ROWS):
        interruption.check()
        yield torch.cdist(rows, second)


def share_inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of points [N, F] that lie inside a ball of radii [M] around one of the centres [M, F]."""
    inside = [(rows < radii).any(dim=1) for rows in distances(points, centres)]
    return torch.cat(inside).double().mean().item()
