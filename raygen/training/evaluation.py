"""Judging a model on images that its training does not see."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from raygen import interruption, metrics, numerics
from raygen.metrics import _features
from raygen.models._base import Model
from raygen.spec import EvaluationOptions

ASKED = ("encode", "decode", "sample", "elbo", "posterior", "log_likelihood")
"""What metrics ask of a model, one batch after the other."""


def held_out_images(held_out: Tensor, options: EvaluationOptions, device: torch.device) -> Tensor:
    """The images to judge on: the first of `held_out` (uint8 [N, C, H, W]) as [M, C, H, W] in [0, 1]."""
    return held_out[: options.images].to(device=device, dtype=torch.float32).div_(255)


@torch.no_grad()
@numerics.exact()
def evaluate(
    model: Model,
    images: Tensor,
    options: EvaluationOptions,
    *,
    also: Sequence[str] = (),
    inputs: Tensor | None = None,
) -> dict[str, float]:
    """Every metric that the options or `also` name, on images [N, C, H, W] in [0, 1], in exact float32.

    The model encodes `inputs` [N, C, H, W], the images themselves if None; neither need be on its device. Raises
    RunInterruptedError between two batches, of images or of their features, if the judgement is not wanted any more
    (raygen.interruption).
    """
    model = _interruptible(model)
    chosen = [metrics.find(name) for name in dict.fromkeys((*options.all_metrics, *also))]
    # Samples are drawn and pass through the network once for all metrics that compare them with the images.
    compares = any(metric.compare for metric in chosen)
    pair = _features.random_pair(model, images, options.seed) if compares else None
    values = {}
    for metric in chosen:
        interruption.check()
        values[metric.name] = (
            metric.compare(*pair) if metric.compare and pair else metric.value(model, images, options.seed, inputs)
        )
    return values


def _interruptible(model: Model) -> Model:
    """The same model, which before each batch asks whether the judgement is still wanted."""
    watched = copy.copy(model)  # it shares all networks
    device = model.device

    def checked(ask: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(ask)
        def answer(*arguments: Any, **options: Any) -> Any:
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # or batches without end would be on their way when a stop is seen
            interruption.check()
            return ask(*arguments, **options)

        return answer

    for name in ASKED:
        if hasattr(model, name):
            setattr(watched, name, checked(getattr(model, name)))
    return watched
