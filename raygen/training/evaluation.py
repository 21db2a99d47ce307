"""Judging a model on images that its training does not see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raygen import metrics
from raygen.metrics import _features
from raygen.models._base import Model
from raygen.spec import EvaluationOptions


def held_out_images(held_out: Tensor, options: EvaluationOptions, device: torch.device) -> Tensor:
    """The images to judge on: the first of `held_out` (uint8 [N, C, H, W]) as [M, C, H, W] in [0, 1]."""
    return held_out[: options.images].to(device=device, dtype=torch.float32).div_(255)


@torch.no_grad()
def evaluate(
    model: Model,
    images: Tensor,
    options: EvaluationOptions,
    *,
    also: Sequence[str] = (),
    inputs: Tensor | None = None,
) -> dict[str, float]:
    """Every metric that the options or `also` name, on images [N, C, H, W] in [0, 1] on the model's device.

    The model encodes `inputs` [N, C, H, W], the images themselves if None.
    """
    chosen = [metrics.find(name) for name in dict.fromkeys((*options.all_metrics, *also))]
    # Samples are drawn and pass through the network once for all metrics that compare them with the images.
    compares = any(metric.compare for metric in chosen)
    pair = _features.random_pair(model, images, options.seed) if compares else None
    values = {}
    for metric in chosen:
        values[metric.name] = (
            metric.compare(*pair) if metric.compare and pair else metric.value(model, images, options.seed, inputs)
        )
    return values
