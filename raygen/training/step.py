"""One step of a training: every phase that is due, on this rank's part of the batch."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from raygen import models
from raygen.models._base import Batch, ImageShape, Metrics, Model, Phase, derived_seed
from raygen.optimizer_options import OptimizerOptions
from raygen.spec import TrainSpec
from raygen.training import optimizers
from raygen.training.checkpoint import Trained
from raygen.training.distributed import Group

RECOMPILE_LIMIT = 64
"""Forms of its networks that a model may have compiled; vaegan needs more than torch's default of 8."""

EMA_RAMP_UP = 0.05
"""A moving average looks back at most on this part of the images seen (Karras et al. 2020, StyleGAN2-ADA)."""


class Step(NamedTuple):
    """One phase's loss and metrics in one step: means over this rank's images, still on the device."""

    phase: str
    step: int
    values: Metrics


def build_model(spec: TrainSpec, shape: ImageShape, device: torch.device) -> Model:
    """The spec's model with initial weights from its seed, the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(spec.seed, "weights"))
        model = models.find(spec.model.name)(spec.model, shape)
    return model.to(device)


class Training:
    """A model with its optimizers, and the one step that trains it."""

    def __init__(self, spec: TrainSpec, model: Model, *, steps: int, group: Group) -> None:
        """Train `model` on this rank of the group; `steps` in all, which the learning rate's schedule follows."""
        self.spec = spec
        self.model = model
        self.steps = steps
        self.group = group
        # Ranks may hold different numbers of images: each counts by its share, and the sum is the global mean.
        rows = group.rows(spec.training.batch_size, together=spec.model.images_judged_together)
        self.share = (rows.stop - rows.start) / spec.training.batch_size
        self.phases = model.phases()
        self.optimizers = {
            phase.name: optimizers.build(spec.optimizer, phase.params)
            for phase in self.phases
            if phase.optimizer_of is None
        }
        self.average = copy.deepcopy(model) if spec.training.ema_half_life_images else None
        own = {phase.name: set(phase.params) for phase in self.phases}
        self._others = {
            name: [parameter for parameter in model.parameters() if parameter not in params]
            for name, params in own.items()
        }
        if spec.training.compile:
            _compile(model)

    @property
    def judged(self) -> Model:
        """The model to evaluate and to keep: the moving average if there is one."""
        return self.model if self.average is None else self.average

    @property
    def trained(self) -> Trained:
        """What a checkpoint of this training holds."""
        return Trained(model=self.model, average=self.average, optimizers=self.optimizers)

    def step(self, batch: Batch, step: int) -> list[Step]:
        """Run every phase that is due at `step` (counted from 0) on this rank's part of the batch."""
        results = [
            Step(phase.name, step, self._minimise(phase, batch, step))
            for phase in self.phases
            if (step + 1) % phase.every == 0
        ]
        if self.average is not None:
            self._update_average(self.average, step)
        return results

    def _minimise(self, phase: Phase, batch: Batch, step: int) -> Metrics:
        optimizer = self.optimizers[phase.optimizer_of or phase.name]
        for parameter in self._others[phase.name]:
            parameter.requires_grad_(False)
        # Before the forward pass, which then finds the old gradients' memory free and warm.
        optimizer.zero_grad(set_to_none=True)
        with self._precision():
            loss, metrics = phase.loss(batch)
        (loss * self.share if self.group.world_size > 1 else loss).backward()
        for parameter in self._others[phase.name]:
            parameter.requires_grad_(True)
        self.group.sum([parameter.grad for parameter in phase.params if parameter.grad is not None])
        if self.spec.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(phase.params, self.spec.optimizer.clip_norm)
        scale = learning_rate_scale(self.spec.optimizer, step=step, steps=self.steps)
        optimizer.param_groups[0]["lr"] = self.spec.optimizer.lr * phase.lr_scale * scale
        optimizer.step()
        return {name: value.detach() for name, value in {f"{phase.name}_loss": loss, **metrics}.items()}

    def _precision(self) -> AbstractContextManager[object]:
        if self.spec.training.precision == "bf16":
            return torch.autocast(self.group.device.type, torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def _update_average(self, average: Model, step: int) -> None:
        batch_size = self.spec.training.batch_size
        half_life = min(self.spec.training.ema_half_life_images, EMA_RAMP_UP * (step + 1) * batch_size)
        weight = 1 - 0.5 ** (batch_size / half_life)
        torch._foreach_lerp_(list(average.parameters()), list(self.model.parameters()), weight)
        # What is no parameter is no average either: singular vectors (spectral norm) follow the weights' own.
        for own, latest in zip(average.buffers(), self.model.buffers(), strict=True):
            own.copy_(latest)


def _compile(model: Model) -> None:
    """Compile each network in place, at its first use."""
    # A network is compiled anew for every set of tensors that need a gradient. torch counts that over all networks,
    # those of earlier trainings in this process too, and past its limit of 8 runs them as they are.
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for network in model.children():
        network.compile()


def learning_rate_scale(options: OptimizerOptions, *, step: int, steps: int) -> float:
    """Part of the learning rate in force at `step` (from 0) of `steps`: linear warm-up, then the schedule."""
    warmup_steps = options.warmup_fraction * steps
    if step + 1 < warmup_steps:
        return (step + 1) / warmup_steps
    if options.schedule == "constant":
        return 1.0
    # The step that ends the warm-up may lie before `warmup_steps`, which need not be whole.
    done = max(step - warmup_steps, 0) / (steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))
