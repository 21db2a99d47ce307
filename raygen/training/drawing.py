"""What a model makes, as one picture: to watch it learn, and beside its best weights."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from raygen import corruption, pictures
from raygen.metrics import _features
from raygen.models._base import Model, Reconstructor
from raygen.spec import TrainSpec

SIDE = 8
"""Rows and columns of a picture."""

SEED = 0
"""Of the latents, and of what corrupts images: the same in all pictures of a model, so that they can be compared."""


@torch.no_grad()
def picture(model: Model, held_out: Tensor, spec: TrainSpec) -> Image.Image:
    """64 samples from fixed latents; of a model without a prior 32 images, each above what the model makes of it.

    These are the first of `held_out`, uint8 [N, C, H, W], again from the first if there are fewer, as the model sees
    them: damaged if the spec says that it restores images.
    """
    if spec.model.prior_name is not None:
        return pictures.grid(torch.cat(list(_features.samples(model, SIDE**2, SEED))), SIDE)
    assert isinstance(model, Reconstructor), "a model samples, reconstructs or both"
    chosen = held_out[torch.arange(SIDE**2 // 2) % len(held_out)]
    images = chosen.to(model.device, torch.float32).div_(255)
    corrupted = corruption.corrupted_for_judging(spec.data, images, SEED)
    inputs = images if corrupted is None else corrupted
    return pictures.pairs(inputs, model.decode(model.encode(inputs)), SIDE)
