from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raygen import corruption
from raygen.data import DataOptions
from raygen.models._base import Batch, Noise

CLEAN = DataOptions()


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Function that makes a batch of images, or of some `rows` of them with those rows' share of the noise.

    The model sees the images as the options `data` say.
    """

    def batch(images: Tensor, *, step: int = 0, rows: slice = slice(None), data: DataOptions = CLEAN) -> Batch:
        noise = Noise(seed=0, step=step, batch_size=len(images), rows=rows, generator=torch.Generator())
        return Batch(images=images[rows], noise=noise, corrupted=corruption.corrupted(data, images[rows], noise))

    return batch
