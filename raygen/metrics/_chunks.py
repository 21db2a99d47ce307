"""Images some at a time: all of a held-out part may be more than a GPU holds beside a model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def on_device(device: torch.device, count: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of tensors [N, ...], so many at a time, on a device, wherever the whole tensors are."""
    for chunks in zip(*(tensor.split(count) for tensor in tensors), strict=True):
        yield tuple(chunk.to(device) for chunk in chunks)
