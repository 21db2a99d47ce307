"""Anomaly scores: how little of a model's own an image is."""

from __future__ import annotations

import torch
from torch import Tensor

from raygen.metrics import _chunks
from raygen.models._base import LikelihoodModel, Model, Reconstructor

CHUNK_IMAGES = 500


def score_name(model: Model) -> str:
    """Which score `scores` gives: the negative ELBO where the model has one, else the reconstruction error."""
    return "negative_elbo_nats" if isinstance(model, LikelihoodModel) else "reconstruction_mse"


def scores(model: Model, images: Tensor, seed: int) -> Tensor:
    """Score [N] of each of images [N, C, H, W], higher for stranger ones, in float64 on the CPU.

    Images are in [0, 1], or uint8 in 0..255; some at a time go to the model's device and become floating point.

    Negative ELBO in nats, from one posterior sample with noise fixed by `seed`, or mean squared error per pixel.
    """
    # Drawn on the CPU, so that one seed means the same noise on every device.
    noise = torch.randn(len(images), model.latent_dim, generator=torch.Generator().manual_seed(seed))
    found = []
    for part, chunk_noise in _chunks.on_device(model.device, CHUNK_IMAGES, images, noise):
        chunk = part if part.is_floating_point() else part.float().div_(255)
        if isinstance(model, LikelihoodModel):
            score = -model.elbo(chunk, chunk_noise)
        else:
            assert isinstance(model, Reconstructor)
            score = (model.decode(model.encode(chunk)).float() - chunk).square().flatten(1).mean(dim=1)
        found.append(score.double().cpu())
    return torch.cat(found)
