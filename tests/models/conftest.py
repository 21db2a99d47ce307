from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from raygen import corruption
from raygen.data import DataOptions
from raygen.models._base import Batch, Noise
from tests.device import DEVICE

CLEAN = DataOptions()


@pytest.fixture(scope="module", autouse=True)
def _exact() -> Iterator[None]:
    """On a GPU float32 is float32, and the same sums are added up in the same order each time."""
    if DEVICE.type == "cpu":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        patch.setattr(torch.backends.cudnn, "deterministic", True)
        yield


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Function that makes a batch of images, or of some `rows` of them with those rows' share of the noise.

    The model sees the images as the options `data` say.
    """

    def batch(images: Tensor, *, step: int = 0, rows: slice = slice(None), data: DataOptions = CLEAN) -> Batch:
        generator = torch.Generator(images.device)
        noise = Noise(seed=0, step=step, batch_size=len(images), rows=rows, generator=generator)
        return Batch(images=images[rows], noise=noise, corrupted=corruption.corrupted(data, images[rows], noise))

    return batch
