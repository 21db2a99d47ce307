"""The training loop: it runs what a model's phases say to minimise, on any number of devices, resumably.

Three promises hold for every model. The result does not depend on how many devices share a batch: data order comes
from (seed, epoch) and noise from (seed, step, purpose), both for the global batch, and gradients are means over it.
A training that was killed and goes on from its last checkpoint ends with the same weights. No loss is used that is
not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from raygen import corruption, interruption, metrics
from raygen.data import Dataset
from raygen.errors import (
    CheckpointError,
    DataError,
    NonFiniteLossError,
    NonFiniteObjectiveError,
    RunInterruptedError,
    UnhealthyError,
)
from raygen.models._base import ImageShape, Model
from raygen.spec import TrainSpec
from raygen.training import checkpoint, health
from raygen.training.batches import Batches
from raygen.training.checkpoint import Best, Progress
from raygen.training.distributed import ALONE, Group
from raygen.training.evaluation import evaluate, held_out_images
from raygen.training.rhythm import Rhythm
from raygen.training.saver import Saver
from raygen.training.step import Step, Training, build_model


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


def fit(
    spec: TrainSpec,
    dataset: Dataset,
    checkpoint_path: Path,
    *,
    group: Group = ALONE,
    warm_weights: Path | None = None,
    on_pace: Callable[[Pace], None] = lambda pace: None,
    on_judged: Callable[[int, Model], None] = lambda epoch, model: None,
    on_saved: Callable[[int, int], None] = lambda step, epochs: None,
    should_stop: Callable[[], bool] = lambda: False,
    should_save: Callable[[], bool] = lambda: False,
) -> Generator[Epoch, None, None]:
    """Train as the spec says, going on from the checkpoint at `checkpoint_path`; yields each epoch.

    A training without one begins with the weights from the spec's seed, and if the spec names a warm start with those
    in the file `warm_weights`.

    Rank 0 alone judges the model, hands each epoch's number with the model that was judged to `on_judged`, and writes
    checkpoints, each of which `on_saved` is told the step and how many epochs were judged before it: when one is due,
    or any rank asks for one at a sync. On a stop (asked for by any rank at a sync, or by rank 0 while it judges), and
    when the iterator is closed, a checkpoint is left to go on from; if a training is stopped because it has gone
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
    saver = Saver(
        checkpoint_path,
        training.trained,
        progress,
        group=group,
        every_s=spec.training.checkpoint_every_s,
        steps_per_epoch=batches.per_epoch,
        on_saved=on_saved,
    )
    held_out = held_out_images(dataset.validation.images, spec.evaluation, group.device)
    inputs = corruption.corrupted_for_judging(spec.data, held_out, spec.evaluation.seed)

    rhythm = Rhythm()
    while progress.step < training.steps or progress.is_unjudged(batches.per_epoch):
        try:
            if not progress.is_unjudged(batches.per_epoch):
                for pace, stopped, wanted in _synced_steps(
                    training, batches, progress, rhythm, should_stop, should_save
                ):
                    on_pace(pace)
                    if wanted:
                        saver.save_when_possible()
                    if stopped:
                        saver.save()
                        return
                    if not progress.is_unjudged(batches.per_epoch):
                        saver.save_if_due()
            number = progress.step // batches.per_epoch
            finished = _finished_epoch(training, progress, held_out, inputs, should_stop, number=number)
        except (NonFiniteLossError, NonFiniteObjectiveError):
            saver.save_best()
            raise
        if finished is None:
            saver.save()
            return
        epoch, ailment = finished
        if group.rank == 0:
            on_judged(number, training.judged)
        try:
            yield epoch
        except GeneratorExit:
            saver.save()
            raise
        if ailment is not None and progress.step < training.steps:
            saver.save()
            raise ailment
        saver.save_if_due()
    saver.save()


def _synced_steps(
    training: Training,
    batches: Batches,
    progress: Progress,
    rhythm: Rhythm,
    should_stop: Callable[[], bool],
    should_save: Callable[[], bool],
) -> Iterator[tuple[Pace, bool, bool]]:
    """Run the rest of the epoch; at each sync add what was measured to `progress`; says whether to stop, and save."""
    pending: list[Step] = []
    first_step, epoch_s, resumed_at = progress.step, 0.0, time.perf_counter()
    synced_step = first_step
    for batch in batches.from_step(progress.step):
        pending += training.step(batch, progress.step)
        progress.step += 1
        if rhythm.is_due(progress.step) or progress.step % batches.per_epoch == 0:
            stop, save = _sync(pending, progress, training, rhythm, asked=[should_stop(), should_save()])
            pending = []
            elapsed_s = time.perf_counter() - resumed_at
            rhythm.measure(progress.step - synced_step, elapsed_s)
            synced_step = progress.step
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


def _sync(
    pending: Sequence[Step], progress: Progress, training: Training, rhythm: Rhythm, *, asked: Sequence[bool]
) -> list[bool]:
    """Read the steps' global means in one transfer; returns for each thing that may be asked whether any rank does."""
    values = [value for step in pending for value in step.values.values()]
    wishes = torch.tensor([*asked, rhythm.wish], dtype=torch.float32, device=training.group.device)
    flat = torch.cat([torch.stack(values) * training.share, wishes])
    training.group.sum([flat])
    *numbers, wished_steps = flat.tolist()
    rhythm.agree(wished_steps, training.group.world_size)
    read = iter(numbers)
    for step in pending:
        for name in step.values:
            number = next(read)
            if not math.isfinite(number):
                raise NonFiniteLossError(phase=step.phase, step=step.step)
            progress.sums[name] = progress.sums.get(name, 0.0) + number
            progress.counts[name] = progress.counts.get(name, 0) + 1
    return [number > 0 for number in read]


def _finished_epoch(
    training: Training,
    progress: Progress,
    held_out: Tensor,
    inputs: Tensor | None,
    should_stop: Callable[[], bool],
    *,
    number: int,
) -> tuple[Epoch, UnhealthyError | None] | None:
    """Judge the model on rank 0, close the epoch's sums, and keep its weights if they are the best so far.

    It is judged on the images `held_out`, of which it encodes `inputs`, themselves if None.
    Says too, on every rank, what the training should be stopped for; None if a stop came before the model was judged.
    """
    values = {name: total / progress.counts[name] for name, total in progress.sums.items()}
    is_best, ailment, was_stopped = False, None, False
    objective = metrics.find(training.spec.evaluation.objective)
    if training.group.rank == 0:
        also = health.needed_metrics(training.model, training.spec)
        try:
            with interruption.heeding(should_stop):
                values |= evaluate(training.judged, held_out, training.spec.evaluation, also=also, inputs=inputs)
        except RunInterruptedError:
            was_stopped = True
    if _was_stopped(objective.name, values.get(objective.name, 0.0), training.group, was_stopped=was_stopped):
        return None
    progress.sums, progress.counts = {}, {}
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


def _was_stopped(objective: str, value: float, group: Group, *, was_stopped: bool) -> bool:
    """Every rank learns that rank 0 was stopped, or of a value that cannot be compared: so all end together."""
    total = torch.tensor([float(was_stopped), value], dtype=torch.float64, device=group.device)
    group.sum([total])
    stopped, all_values = total.tolist()
    if stopped:
        return True
    if not math.isfinite(all_values):
        raise NonFiniteObjectiveError(objective)
    return False


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
