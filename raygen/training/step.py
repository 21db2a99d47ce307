"""One step of a training: every phase that is due, on this rank's part of the batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raygen import models
from raygen.models._base import Batch, ImageShape, Loss, Metrics, Model, Phase, derived_seed
from raygen.optimizer_options import OptimizerOptions
from raygen.spec import TrainSpec
from raygen.training import optimizers
from raygen.training.checkpoint import Trained
from raygen.training.distributed import Group
from raygen.training.way import AS_THEY_ARE, Way

RECOMPILE_LIMIT = 64
"""Forms of its losses that a model may have compiled; torch's default of 8 is for one model a process."""

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
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if spec.training.channels_last else model


class Training:
    """A model with its optimizers, and the one step that trains it."""

    def __init__(self, spec: TrainSpec, model: Model, *, steps: int, group: Group, way: Way = AS_THEY_ARE) -> None:
        """Train `model` on this rank of the group; `steps` in all, which the learning rate's schedule follows."""
        self.spec = spec
        self.model = model
        self.steps = steps
        self.group = group
        self.way = way
        # Ranks may hold different numbers of images: each counts by its share, and the sum is the global mean.
        rows = group.rows(spec.training.batch_size, together=spec.model.images_judged_together)
        self.share = (rows.stop - rows.start) / spec.training.batch_size
        self.phases = model.phases()
        self.optimizers = {
            phase.name: optimizers.build(spec.optimizer, phase.params, recorded=way.records)
            for phase in self.phases
            if phase.optimizer_of is None
        }
        self._rates: dict[torch.optim.Optimizer, float] = {}
        self.average = copy.deepcopy(model) if spec.training.ema_half_life_images else None
        self._averaged: list[Tensor] = [] if self.average is None else list(self.average.parameters())
        self._latest: list[Tensor] = list(model.parameters())
        own = {phase.name: set(phase.params) for phase in self.phases}
        self._others = {
            name: [parameter for parameter in model.parameters() if parameter not in params]
            for name, params in own.items()
        }
        self._losses = _compiled(self.phases) if way.compiles else {phase.name: phase.loss for phase in self.phases}

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
        results = []
        for phase in self.due(step):
            self.set_learning_rate(phase, step)
            results.append(Step(phase.name, step, self.minimise(phase, batch)))
        self.update_average(step)
        return results

    def due(self, step: int) -> list[Phase]:
        """The phases that run at `step` (counted from 0), in their order."""
        return [phase for phase in self.phases if (step + 1) % phase.every == 0]

    def set_learning_rate(self, phase: Phase, step: int) -> None:
        """Have a phase's optimizer take the rate that is in force at `step`."""
        scale = learning_rate_scale(self.spec.optimizer, step=step, steps=self.steps)
        rate, optimizer = self.spec.optimizer.lr * phase.lr_scale * scale, self._optimizer(phase)
        if self._rates.get(optimizer) != rate:
            optimizers.set_learning_rate(optimizer, rate)
            self._rates[optimizer] = rate

    def minimise(self, phase: Phase, batch: Batch) -> Metrics:
        """Take one step of a phase's optimizer; returns its loss and metrics."""
        optimizer = self._optimizer(phase)
        # Before the forward pass, which then finds the old gradients' memory free and warm.
        optimizer.zero_grad(set_to_none=True)
        loss, metrics = self._differentiate(phase, self._losses[phase.name], batch)
        self.group.sum([parameter.grad for parameter in phase.params if parameter.grad is not None])
        if self.spec.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(phase.params, self.spec.optimizer.clip_norm)
        optimizer.step()
        return {name: value.detach() for name, value in {f"{phase.name}_loss": loss, **metrics}.items()}

    def rehearse(self, batch: Batch, phases: Sequence[Phase]) -> None:
        """Compute gradients of these phases, and leave everything as it was: to see what that takes and asks for."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        for phase in phases:
            self._differentiate(phase, phase.loss, batch)
            for parameter in phase.params:
                parameter.grad = None
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Take the weights after `step` into the moving average, if there is one."""
        if self.average is None:
            return
        batch_size = self.spec.training.batch_size
        half_life = min(self.spec.training.ema_half_life_images, EMA_RAMP_UP * (step + 1) * batch_size)
        weight = 1 - 0.5 ** (batch_size / half_life)
        torch._foreach_lerp_(self._averaged, self._latest, weight)
        # What is no parameter is no average either: singular vectors (spectral norm) follow the weights' own.
        for own, latest in zip(self.average.buffers(), self.model.buffers(), strict=True):
            own.copy_(latest)

    def _differentiate(self, phase: Phase, loss_of: Loss, batch: Batch) -> tuple[Tensor, Metrics]:
        """A phase's loss and metrics, and the gradients of its parameters alone."""
        others = self._others[phase.name]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            with self._precision():
                loss, metrics = loss_of(batch)
            (loss * self.share if self.group.world_size > 1 else loss).backward()
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
        return loss, metrics

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        return self.optimizers[phase.optimizer_of or phase.name]

    def _precision(self) -> AbstractContextManager[object]:
        if self.spec.training.precision == "bf16":
            return torch.autocast(self.group.device.type, torch.bfloat16)
        return nullcontext()


def _compiled(phases: Sequence[Phase]) -> dict[str, Loss]:
    """Each phase's loss, compiled as a whole at its first use."""
    # torch counts the forms of a function over all models, those of earlier trainings in this process too, and past
    # its limit runs it as it is.
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    return {phase.name: torch.compile(phase.loss, dynamic=False) for phase in phases}


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
