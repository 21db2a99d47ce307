"""The training loop: it runs what a model's phases say to minimise, on any number of devices, resumably.

Three promises hold for every model. The result does not depend on how many devices share a batch: data order comes
from (seed, epoch) and noise from (seed, step, purpose), both for the global batch, and gradients are means over it.
A training that was killed and goes on from its last checkpoint ends with the same weights. No loss is used that is
not finite.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raygen import augmentation, corruption, metrics, models
from raygen.data import Dataset
from raygen.errors import (
    CheckpointError,
    DataError,
    NonFiniteLossError,
    NonFiniteObjectiveError,
    SpecError,
    UnhealthyError,
)
from raygen.models._base import Batch, ImageShape, Metrics, Model, Noise, Phase, derived_seed
from raygen.optimizer_options import OptimizerOptions
from raygen.spec import TrainSpec
from raygen.training import checkpoint, health, optimizers, order
from raygen.training.checkpoint import Best, Progress, Trained
from raygen.training.distributed import ALONE, Group
from raygen.training.evaluation import evaluate, held_out_images

STEPS_BETWEEN_SYNCS = 20
"""Steps after which losses are read from the device, a stop is heeded and a checkpoint may be written."""

RECOMPILE_LIMIT = 64
"""Forms of its networks that a model may have compiled; vaegan needs more than torch's default of 8."""

EMA_RAMP_UP = 0.05
"""A moving average looks back at most on this part of the images seen (Karras et al. 2020, StyleGAN2-ADA)."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How far a training is and how fast it goes, for whoever watches."""

    epoch: int
    step: int
    steps: int
    train_s: float
    images_per_s: float


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One finished epoch (counted from 1): means over its steps, and metrics on validation images (`val_…`)."""

    epoch: int
    step: int
    metrics: dict[str, float]
    train_s: float
    is_best: bool


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
        """The model to evaluate and to keep: the moving average where there is one."""
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


class Batches:
    """One rank's part of every batch, indexed from uint8 images that stay in memory; no work per image.

    Changed at random if the spec says so, and with what a model sees of them that learns to restore them. With
    `labels` [N] each class comes equally often.
    """

    def __init__(self, images: Tensor, spec: TrainSpec, group: Group, *, labels: Tensor | None = None) -> None:
        self.batch_size = spec.training.batch_size
        self.per_epoch = len(images) // self.batch_size
        together = spec.model.images_judged_together
        if not group.world_size * together <= self.batch_size <= len(images):
            each = f", {together} images for each" if together > 1 else ""
            raise SpecError(
                f"training.batch_size: {self.batch_size} does not fit: it must lie between the number of processes "
                f"({group.world_size}{each}) and the number of training images ({len(images)})"
            )
        self._seed = spec.seed
        self._options = spec.data
        self._rows = group.rows(self.batch_size, together=together)
        self._images = images.to(group.device)
        self._members = None if labels is None else order.by_class(labels)
        self._generator = torch.Generator(group.device)

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batches of the epoch that `step` is in, from `step` on; the last incomplete batch is left out."""
        epoch, done = divmod(step, self.per_epoch)
        positions = self._order(epoch).to(self._images.device)
        for index in range(done, self.per_epoch):
            first = index * self.batch_size
            rows = positions[first + self._rows.start : first + self._rows.stop]
            noise = self._noise(epoch * self.per_epoch + index)
            images = self._images.index_select(0, rows).to(torch.float32).div_(255)
            images = augmentation.augmented(self._options, images, noise)
            yield Batch(images=images, noise=noise, corrupted=corruption.corrupted(self._options, images, noise))

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "order", epoch))
        if self._members is None:
            return torch.randperm(len(self._images), generator=generator)
        return order.balanced(self._members, self.per_epoch * self.batch_size, generator)

    def _noise(self, step: int) -> Noise:
        return Noise(
            seed=self._seed, step=step, batch_size=self.batch_size, rows=self._rows, generator=self._generator
        )


def fit(
    spec: TrainSpec,
    dataset: Dataset,
    checkpoint_path: Path,
    *,
    group: Group = ALONE,
    warm_weights: Path | None = None,
    on_pace: Callable[[Pace], None] = lambda pace: None,
    on_judged: Callable[[int, Model], None] = lambda epoch, model: None,
    should_stop: Callable[[], bool] = lambda: False,
    should_save: Callable[[], bool] = lambda: False,
) -> Generator[Epoch, None, None]:
    """Train as the spec says, going on from the checkpoint at `checkpoint_path`; yields each epoch.

    A training without one begins with the weights from the spec's seed, and if the spec names a warm start with those
    in the file `warm_weights`.

    Rank 0 alone judges the model, hands each epoch's number with the model that was judged to `on_judged`, and writes
    checkpoints: when one is due, or any rank asks for one at a sync. On a stop (asked for by any rank at a sync), and
    when the iterator is closed, a checkpoint is left to go on from; where a training is stopped because it has gone
    wrong, one with its best weights. Raises UnhealthyError, NonFiniteLossError or NonFiniteObjectiveError then,
    CheckpointError, and SpecError or DataError if spec and data do not fit.
    """
    spec.check_trainable()
    # Without this, cuDNN may add up in another order each time, and a resumed run would drift from the first.
    torch.backends.cudnn.deterministic = True
    labels = dataset.classes_to_balance() if spec.data.balance else None
    batches = Batches(dataset.train.images, spec, group, labels=labels)
    model = build_model(spec, ImageShape(*dataset.shape), group.device)
    if spec.warm_start is not None and not checkpoint_path.exists():
        assert warm_weights is not None, "whoever starts a training from weights says where they are"
        checkpoint.begin_with(warm_weights, spec.warm_start.digest, model)
    training = Training(spec, model, steps=spec.training.epochs * batches.per_epoch, group=group)
    progress = checkpoint.restore(checkpoint_path, training.trained)
    _check_same_start(progress.step, dataset.digest, group)
    saver = _Saver(checkpoint_path, training.trained, progress, group=group, every_s=spec.training.checkpoint_every_s)
    held_out = held_out_images(dataset.validation.images, spec.evaluation, group.device)
    inputs = corruption.corrupted_for_judging(spec.data, held_out, spec.evaluation.seed)

    while progress.step < training.steps:
        stopped = False
        try:
            for pace, stopped, wanted in _synced_steps(training, batches, progress, should_stop, should_save):
                on_pace(pace)
                if wanted:
                    saver.save_when_possible()
                if progress.step % batches.per_epoch == 0:
                    break
                if stopped:
                    saver.save()
                    return
                saver.save_if_due()
            number = progress.step // batches.per_epoch
            epoch, ailment = _finished_epoch(training, progress, held_out, inputs, number=number)
        except (NonFiniteLossError, NonFiniteObjectiveError):
            saver.save_best()
            raise
        if group.rank == 0:
            on_judged(number, training.judged)
        try:
            yield epoch
        except GeneratorExit:
            saver.save()
            raise
        if stopped:
            break
        if ailment is not None and progress.step < training.steps:
            saver.save()
            raise ailment
        saver.save_if_due()
    saver.save()


def _synced_steps(
    training: Training,
    batches: Batches,
    progress: Progress,
    should_stop: Callable[[], bool],
    should_save: Callable[[], bool],
) -> Iterator[tuple[Pace, bool, bool]]:
    """Run the rest of the epoch; at each sync add what was measured to `progress`; says whether to stop, and save."""
    pending: list[Step] = []
    first_step, epoch_s, resumed_at = progress.step, 0.0, time.perf_counter()
    for batch in batches.from_step(progress.step):
        pending += training.step(batch, progress.step)
        progress.step += 1
        if progress.step % STEPS_BETWEEN_SYNCS == 0 or progress.step % batches.per_epoch == 0:
            stop, save = _sync(pending, progress, training, asked=[should_stop(), should_save()])
            pending = []
            elapsed_s = time.perf_counter() - resumed_at
            epoch_s += elapsed_s
            progress.train_s += elapsed_s
            pace = Pace(
                epoch=(progress.step - 1) // batches.per_epoch + 1,
                step=progress.step,
                steps=training.steps,
                train_s=round(progress.train_s, 3),
                images_per_s=(progress.step - first_step) * batches.batch_size / epoch_s,
            )
            yield pace, stop, save
            # Time spent by whoever watches, or on a checkpoint, is not training.
            resumed_at = time.perf_counter()


def _sync(pending: Sequence[Step], progress: Progress, training: Training, *, asked: Sequence[bool]) -> list[bool]:
    """Read the steps' global means in one transfer; returns for each thing that may be asked whether any rank does."""
    values = [value for step in pending for value in step.values.values()]
    wishes = torch.tensor(asked, dtype=torch.float32, device=training.group.device)
    flat = torch.cat([torch.stack(values), wishes]) * training.share
    training.group.sum([flat])
    read = iter(flat.tolist())
    for step in pending:
        for name in step.values:
            number = next(read)
            if not math.isfinite(number):
                raise NonFiniteLossError(phase=step.phase, step=step.step)
            progress.sums[name] = progress.sums.get(name, 0.0) + number
            progress.counts[name] = progress.counts.get(name, 0) + 1
    return [number > 0 for number in read]


def _finished_epoch(
    training: Training, progress: Progress, held_out: Tensor, inputs: Tensor | None, *, number: int
) -> tuple[Epoch, UnhealthyError | None]:
    """Close the epoch's sums, judge the model on rank 0, and keep its weights if they are the best so far.

    It is judged on the images `held_out`, of which it encodes `inputs`, themselves if None.
    Says too, on every rank, what the training should be stopped for.
    """
    values = {name: total / progress.counts[name] for name, total in progress.sums.items()}
    progress.sums, progress.counts = {}, {}
    is_best, ailment = False, None
    objective = metrics.find(training.spec.evaluation.objective)
    if training.group.rank == 0:
        also = health.needed_metrics(training.model, training.spec)
        values |= evaluate(training.judged, held_out, training.spec.evaluation, also=also, inputs=inputs)
    _check_finite(objective.name, values.get(objective.name, 0.0), training.group)
    if training.group.rank == 0:
        best = progress.best
        is_best = best is None or objective.is_better(values[objective.name], than=best.metrics[objective.name])
        if is_best:
            weights = {name: tensor.detach().clone() for name, tensor in training.judged.state_dict().items()}
            progress.best = Best(epoch=number, step=progress.step, metrics=values, weights=weights)
        ailment = health.examine(training.model, training.spec.health, progress, values, improved=is_best)
    epoch = Epoch(
        epoch=number, step=progress.step, metrics=values, train_s=round(progress.train_s, 3), is_best=is_best
    )
    return epoch, health.told_to_all(ailment, training.group)


def _check_finite(objective: str, value: float, group: Group) -> None:
    """Every rank learns of a value that cannot be compared, so that all end the training together."""
    total = torch.tensor([value], dtype=torch.float64, device=group.device)
    group.sum([total])
    if not math.isfinite(total.item()):
        raise NonFiniteObjectiveError(objective)


def _check_same_start(step: int, digest: str, group: Group) -> None:
    """Every process must have read the same checkpoint and images, or they would train different models together."""
    images = int(digest[:8] or "0", base=16)
    total = torch.tensor([step, images], dtype=torch.float64, device=group.device)
    group.sum([total])
    steps, all_images = total.tolist()
    if steps != step * group.world_size:
        raise CheckpointError(
            "the processes of this training found different checkpoints: is --storage shared by all nodes?"
        )
    if all_images != images * group.world_size:
        raise DataError(
            "the processes of this training read different images: are the same files on all nodes, and the same "
            "version of Pillow?"
        )


class _Saver:
    """Writes checkpoints from rank 0, when something is new."""

    def __init__(self, path: Path, trained: Trained, progress: Progress, *, group: Group, every_s: float) -> None:
        self._path = path
        self._trained = trained
        self._progress = progress
        self._writes = group.rank == 0
        self._every_s = every_s
        self._saved_step = progress.step
        self._saved_at = time.monotonic()
        self._wanted = False

    def save(self) -> None:
        self._wanted = False
        if self._writes and self._progress.step != self._saved_step:
            checkpoint.save(self._path, self._trained, self._progress)
            self._saved_step = self._progress.step
            self._saved_at = time.monotonic()

    def save_best(self) -> None:
        """Save even a training that cannot go on, so that its best weights are kept."""
        if self._progress.best is not None:
            self.save()

    def save_when_possible(self) -> None:
        """Take a checkpoint as due; one at the end of an epoch has to wait until the epoch is judged."""
        self._wanted = True

    def save_if_due(self) -> None:
        if self._wanted or time.monotonic() - self._saved_at >= self._every_s:
            self.save()
