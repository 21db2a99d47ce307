"""A device's memory: whether training images fit in it beside the model, and what fills it if it is not enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raygen import device as devices
from raygen.errors import OutOfMemoryError
from raygen.progress import in_words as size
from raygen.spec import TrainSpec
from raygen.training.batches import Batches
from raygen.training.distributed import Group
from raygen.training.step import Training

MARGIN = 1.25
"""Times what was measured that a training is left, for pieces of memory that fit nothing, and for judging."""

ON_HOST = "can't allocate memory"
"""What torch says if the host has no more."""

COPIES_LATER = 3
"""Times the weights that are still to be allocated after a rehearsal: two moments, and the best weights."""


@dataclass(frozen=True)
class Placement:
    """Whether training images lie on the device, and in words why they do or do not."""

    on_device: bool
    words: str


def placed(
    wish: Literal["auto", "device", "host"], images_bytes: int, training_bytes: int, free_bytes: int
) -> Placement:
    """Where images go, of so many bytes, beside a training that will take so many of those that are free."""
    if wish != "auto":
        return Placement(wish == "device", f"images ({size(images_bytes)}) stay on the {wish}, as asked")
    needed = f"beside a training that takes {size(training_bytes)}, of {size(free_bytes)} free"
    if images_bytes + MARGIN * training_bytes <= free_bytes:
        return Placement(True, f"images ({size(images_bytes)}) lie on the device {needed}")
    return Placement(False, f"images ({size(images_bytes)}) stay on the host: they do not fit {needed}")


def place(batches: Batches, training: Training, group: Group) -> Placement:
    """Have a training's batches come from where its images fit best; nothing of it has run yet.

    On a GPU a step is rehearsed to learn what it takes. Raises OutOfMemoryError if that alone is too much.
    """
    wish = training.spec.training.images_on
    if group.device.type == "cpu":
        # Memory of the host is the device's.
        found = Placement(wish != "host", f"images ({size(batches.size_bytes)}) lie in memory")
    elif wish == "auto":
        taken = _rehearsed_bytes(batches, training)
        found = placed(wish, batches.size_bytes, taken, free_bytes(group))
    else:
        found = placed(wish, batches.size_bytes, 0, 0)
    try:
        batches.place(on_device=found.on_device)
    except RuntimeError as error:
        if not devices.is_full(error, group.device):
            raise
        images = f"training images ({size(batches.size_bytes)}) do not fit; set training.images_on=host"
        raise OutOfMemoryError(f"out of memory on {devices.label(group.device)}: {images}") from error
    return found


def free_bytes(group: Group) -> int:
    """What this process may still allocate on its GPU: what is free, and no more than its share of all there is.

    Others that share the GPU may not have come yet.
    """
    free, total = torch.cuda.mem_get_info(group.device)
    cached = torch.cuda.memory_reserved(group.device) - torch.cuda.memory_allocated(group.device)
    share = int(total * group.memory_share) - torch.cuda.memory_allocated(group.device)
    return max(0, min(free + cached, share))


def _rehearsed_bytes(batches: Batches, training: Training) -> int:
    """What a training allocates beyond its model, by one step on a black batch."""
    device = training.group.device
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    training.rehearse(batches.batch(batches.blank(), batches.noise(step=0)), training.phases)
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return peak + COPIES_LATER * _bytes_of(training.model)


@contextlib.contextmanager
def explained(
    spec: TrainSpec, group: Group, training: Training | None = None, batches: Batches | None = None
) -> Iterator[None]:
    """Raise OutOfMemoryError, which says what fills the memory and what to lower, if there is too little within."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(_on_host(spec)) from error
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is what cuBLAS and cuDNN raise
        if ON_HOST in str(error):
            raise OutOfMemoryError(_on_host(spec)) from error
        if not devices.is_full(error, group.device):
            raise
        raise OutOfMemoryError(_on_gpu(spec, group, training, batches)) from error


def _on_host(spec: TrainSpec) -> str:
    return f"out of memory; lower the batch size ({spec.training.batch_size}) or the model's size"


def _on_gpu(spec: TrainSpec, group: Group, training: Training | None, batches: Batches | None) -> str:
    free, total = torch.cuda.mem_get_info(group.device)
    others = max(0, total - free - torch.cuda.memory_reserved(group.device))
    return told(
        name=devices.label(group.device),
        total_bytes=total,
        others_bytes=others,
        images_bytes=batches.size_bytes if batches is not None and batches.are_on_device else 0,
        # Without a training it was the model that found no room, before any batch.
        model_bytes=total - others if training is None else _kept_bytes(training),
        batch_size=spec.training.batch_size,
    )


def told(
    *, name: str, total_bytes: int, others_bytes: int, images_bytes: int, model_bytes: int, batch_size: int
) -> str:
    """What fills a GPU's memory, and which of it to lower."""
    parts = {
        "training images": (images_bytes, "set training.images_on=host"),
        "other programs": (others_bytes, "wait for them, or let fewer trials share the GPU"),
        "the model, its average and moments": (model_bytes, "lower the model's size"),
    }
    rest = max(0, total_bytes - sum(taken for taken, _ in parts.values()))
    parts["the batch with its gradients"] = (rest, f"lower training.batch_size ({batch_size})")
    _, advice = max(parts.values(), key=lambda part: part[0])
    shares = ", ".join(f"{what} {size(taken)}" for what, (taken, _) in parts.items() if taken)
    return f"out of memory on {name}: of {size(total_bytes)}, {shares}; {advice}"


def _bytes_of(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _kept_bytes(training: Training) -> int:
    """What a model takes from step to step, with its moving average and its optimizers' moments."""
    states = [state for optimizer in training.optimizers.values() for state in optimizer.state.values()]
    moments = sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))
    return _bytes_of(training.model) + (_bytes_of(training.average) if training.average else 0) + moments
