"""Loops that ours is measured against, and what tables of measurements have in common."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raygen import data
from raygen.models._base import Batch, ImageShape, Noise, Phase
from raygen.spec import TrainSpec
from raygen.training.step import build_model

StepFunction = Callable[[], Tensor]
"""Takes one step and returns its last loss, on the device."""


class PlainNoise(Noise):
    """Noise from torch's global generator, tied to no seed, step or purpose."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._size, self._device = batch_size, device

    def normal(self, purpose: str, *shape: int) -> Tensor:
        return torch.randn(self._size, *shape, device=self._device)


def bare_step(spec: TrainSpec, images: Tensor, *, compiled: bool = False) -> StepFunction:
    """The step alone, on one batch of images [B, C, H, W] in [0, 1] on their device: losses, gradients, fused Adam.

    With `compiled` the losses are compiled by torch.compile(mode="reduce-overhead").
    """
    model = build_model(spec, ImageShape(*images.shape[1:]), images.device)
    batch = Batch(images=images, noise=PlainNoise(len(images), images.device))
    phases = [
        (_compiled(phase) if compiled else phase.loss, optimizer, _others(model, phase))
        for phase in model.phases()
        for optimizer in [torch.optim.Adam(phase.params, lr=spec.optimizer.lr, fused=True)]
    ]

    def step() -> Tensor:
        for loss_of, optimizer, others in phases:
            for parameter in others:
                parameter.requires_grad_(False)
            optimizer.zero_grad()
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
            loss, _ = loss_of(batch)
            loss.backward()
            optimizer.step()
            for parameter in others:
                parameter.requires_grad_(True)
        return loss.detach()

    return step


def eager_step(spec: TrainSpec, images: Tensor) -> StepFunction:
    """The step as people write it, over images float [N, C, H, W] that lie on the device, shuffled for each epoch."""
    model = build_model(spec, ImageShape(*images.shape[1:]), images.device)
    size = spec.training.batch_size
    noise = PlainNoise(size, images.device)
    phases = [(phase.loss, torch.optim.Adam(phase.params, lr=spec.optimizer.lr)) for phase in model.phases()]
    batches: list[Tensor] = []

    def step() -> Tensor:
        if not batches:
            batches.extend(torch.randperm(len(images), device=images.device).split(size)[: len(images) // size])
        batch = Batch(images=images[batches.pop()], noise=noise)
        for loss_of, optimizer in phases:
            optimizer.zero_grad()
            loss, _ = loss_of(batch)
            loss.backward()
            optimizer.step()
            loss.item()  # to add it up and print it
        return loss.detach()

    return step


def _compiled(phase: Phase) -> Callable[[Batch], tuple[Tensor, object]]:
    loss_of: Callable[[Batch], tuple[Tensor, object]] = torch.compile(phase.loss, mode="reduce-overhead")
    return loss_of


def _others(model: torch.nn.Module, phase: Phase) -> list[torch.nn.Parameter]:
    own = set(phase.params)
    return [parameter for parameter in model.parameters() if parameter not in own]


def random_pixels(count: int, side: int, *, held_out: int) -> data.Dataset:
    """Grey images of random pixels, `count` to train on and `held_out` for validation."""
    pixels = torch.randint(256, (count + held_out, 1, side, side), dtype=torch.uint8)
    return data.Dataset("random pixels", data.Part(pixels[:count]), data.Part(pixels[count:]), None, "")


def median_and_range(values: Sequence[float], form: str) -> tuple[str, str]:
    return f"{statistics.median(values):{form}}", f"{min(values):{form}}–{max(values):{form}}"


def mark(met: bool) -> str:
    return "[green]met[/]" if met else "[red]missed[/]"


def machine(device: torch.device) -> str:
    """The device and the versions of what runs on it."""
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return (
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}, Python {platform.python_version()}"
    )
