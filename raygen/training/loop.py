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

from raygen import interruption, metrics
from raygen.data import Dataset
from raygen.errors import (
    NonFiniteLossError,
    NonFiniteObjectiveError,
    RunInterruptedError,
    UnhealthyError,
)
from raygen.models._base import Model
from raygen.spec import TrainSpec
from raygen.training import health, memory
from raygen.training.beginning import Begun, begin
from raygen.training.checkpoint import Best, Progress
from raygen.training.distributed import ALONE, Group
from raygen.training.evaluation import evaluate
from raygen.training.rhythm import Rhythm
from raygen.training.step import Step, Training


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
    on_set_up: Callable[[str], None] = lambda words: None,
    on_pace: Callable[[Pace], None] = lambda pace: None,
    on_judged: Callable[[int, Model], None] = lambda epoch, model: None,
    on_saved: Callable[[int, int], None] = lambda step, epochs: None,
    should_stop: Callable[[], bool] = lambda: False,
    should_save: Callable[[], bool] = lambda: False,
) -> Generator[Epoch, None, None]:
    """Train as the spec says, going on from the checkpoint at `checkpoint_path`; yields each epoch.

    A training without one begins with the weights from the spec's seed, and if the spec names a warm start with those
    in the file `warm_weights`.

    `on_set_up` is told in words where its images lie and how its steps run, before the first, and if that changes.
    Rank 0 alone judges the model, hands each epoch's number with the model that was judged to `on_judged`, and writes
    checkpoints, each of which `on_saved` is told the step and how many epochs were judged before it: when one is due,
    or any rank asks for one at a sync. On a stop (asked for by any rank at a sync, or by rank 0 while it judges), and
    when the iterator is closed, a checkpoint is left to go on from; if a training is stopped because it has gone
    wrong, one with its best weights. Raises UnhealthyError, NonFiniteLossError or NonFiniteObjectiveError then,
    CheckpointError, OutOfMemoryError, and SpecError or DataError if spec and data do not fit.
    """
    begun = begin(
        spec,
        dataset,
        checkpoint_path,
        group=group,
        warm_weights=warm_weights,
        on_set_up=on_set_up,
        on_saved=on_saved,
    )
    with memory.explained(spec, group, begun.training, begun.batches):
        yield from _epochs(begun, on_pace, on_judged, should_stop, should_save)


def _epochs(
    begun: Begun,
    on_pace: Callable[[Pace], None],
    on_judged: Callable[[int, Model], None],
    should_stop: Callable[[], bool],
    should_save: Callable[[], bool],
) -> Generator[Epoch, None, None]:
    """Run what is left of a training; yields each epoch, and leaves a checkpoint when it ends."""
    training, progress, saver, per_epoch = begun.training, begun.progress, begun.saver, begun.batches.per_epoch
    rhythm = Rhythm(training.group.device.type)
    while progress.step < training.steps or progress.is_unjudged(per_epoch):
        try:
            if not _run_epoch(begun, rhythm, on_pace, should_stop, should_save):
                saver.save()
                return
            finished = _finished_epoch(begun, should_stop)
        except (NonFiniteLossError, NonFiniteObjectiveError):
            saver.save_best()
            raise
        if finished is None:
            saver.save()
            return
        epoch, ailment = finished
        if training.group.rank == 0:
            on_judged(epoch.epoch, training.judged)
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


def _run_epoch(
    begun: Begun,
    rhythm: Rhythm,
    on_pace: Callable[[Pace], None],
    should_stop: Callable[[], bool],
    should_save: Callable[[], bool],
) -> bool:
    """Run the steps that an epoch still lacks; says whether they were run, or stopped before the last."""
    progress, saver, per_epoch = begun.progress, begun.saver, begun.batches.per_epoch
    if progress.is_unjudged(per_epoch):
        return True
    for pace, stopped, wanted in _synced_steps(begun, rhythm, should_stop, should_save):
        on_pace(pace)
        if wanted:
            saver.save_when_possible()
        if stopped:
            return False
        if not progress.is_unjudged(per_epoch):
            saver.save_if_due()
    return True


def _synced_steps(
    begun: Begun, rhythm: Rhythm, should_stop: Callable[[], bool], should_save: Callable[[], bool]
) -> Iterator[tuple[Pace, bool, bool]]:
    """Run the rest of the epoch; at each sync add what was measured to progress; says whether to stop, and save."""
    training, batches, progress = begun.training, begun.batches, begun.progress
    pending: list[Step] = []
    first_step, epoch_s, resumed_at = progress.step, 0.0, time.perf_counter()
    synced_step = first_step
    for pixels in batches.pixels_from(progress.step):
        pending += begun.steps.run(pixels, progress.step)
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


def _finished_epoch(begun: Begun, should_stop: Callable[[], bool]) -> tuple[Epoch, UnhealthyError | None] | None:
    """Judge the model on rank 0, close the epoch's sums, and keep its weights if they are the best so far.

    Says too, on every rank, what the training should be stopped for; None if a stop came before the model was judged.
    """
    training, progress = begun.training, begun.progress
    number = progress.step // begun.batches.per_epoch
    values = {name: total / progress.counts[name] for name, total in progress.sums.items()}
    is_best, ailment, was_stopped = False, None, False
    objective = metrics.find(training.spec.evaluation.objective)
    if training.group.rank == 0:
        also = health.needed_metrics(training.model, training.spec)
        try:
            with interruption.heeding(should_stop):
                values |= evaluate(
                    training.judged, begun.held_out, training.spec.evaluation, also=also, inputs=begun.inputs
                )
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
