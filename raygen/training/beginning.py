"""From a spec to a training that is ready for its next step: new, or going on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from raygen import corruption, numerics
from raygen.data import Dataset
from raygen.errors import CheckpointError, DataError
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec
from raygen.training import checkpoint, memory, way
from raygen.training.batches import Batches
from raygen.training.checkpoint import Progress
from raygen.training.distributed import Group
from raygen.training.evaluation import held_out_images
from raygen.training.recorded import PlainSteps, StepsInPlace
from raygen.training.saver import Saver
from raygen.training.step import Training, build_model


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A training, where it stands, and what it is judged on: images [M, C, H, W] in [0, 1], encoded as `inputs`."""

    training: Training
    batches: Batches
    steps: PlainSteps | StepsInPlace
    progress: Progress
    saver: Saver
    held_out: Tensor
    inputs: Tensor | None


def begin(
    spec: TrainSpec,
    dataset: Dataset,
    checkpoint_path: Path,
    *,
    group: Group,
    warm_weights: Path | None,
    on_set_up: Callable[[str], None],
    on_saved: Callable[[int, int], None],
) -> Begun:
    """Make all that a training needs; its arguments, and what it raises, are those of `fit`."""
    spec.check_trainable()
    with memory.explained(spec, group):
        if group.device.type == "cuda":
            torch.cuda.set_device(group.device.index or 0)
            numerics.training(tf32=spec.training.tf32, cudnn_benchmark=spec.training.cudnn_benchmark)
        labels = dataset.classes_to_balance() if spec.data.balance else None
        batches = Batches(dataset.train.images, spec, group, labels=labels)
        training = _training(spec, dataset, checkpoint_path, batches, group=group, warm_weights=warm_weights)
    with memory.explained(spec, group, training, batches):
        # First, as training images go to the device if they fit beside all else.
        held_out = held_out_images(dataset.validation.images, spec.evaluation, group.device)
        inputs = corruption.corrupted_for_judging(spec.data, held_out, spec.evaluation.seed)
        placement = memory.place(batches, training, group)
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
        on_set_up(f"{placement.words}; {training.way.words}")
        return Begun(
            training=training,
            batches=batches,
            steps=_steps(training, batches, on_set_up),
            progress=progress,
            saver=saver,
            held_out=held_out,
            inputs=inputs,
        )


def _training(
    spec: TrainSpec,
    dataset: Dataset,
    checkpoint_path: Path,
    batches: Batches,
    *,
    group: Group,
    warm_weights: Path | None,
) -> Training:
    """The training with the weights that a new one begins with."""
    model = build_model(spec, ImageShape(*dataset.shape), group.device)
    if spec.warm_start is not None and not checkpoint_path.exists():
        assert warm_weights is not None, "whoever starts a training from weights says where they are"
        checkpoint.begin_with(warm_weights, spec.warm_start.digest, model)
    steps = spec.training.epochs * batches.per_epoch
    return Training(spec, model, steps=steps, group=group, way=way.chosen(spec, group, steps))


def _steps(training: Training, batches: Batches, on_set_up: Callable[[str], None]) -> PlainSteps | StepsInPlace:
    if training.way.records or training.way.compiles:
        return StepsInPlace(training, batches, on_set_up)
    return PlainSteps(training, batches)


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
