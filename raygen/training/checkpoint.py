"""Checkpoints: one safetensors file that holds the last state and the best weights, written whole or not at all.

Its tensors are `model.*`, the weights to go on from; `average.*`, their moving average where the spec asks for one;
`optimizer.<phase>.<parameter>.<moment>`; and `best.*`, the weights that were best on validation images. Its metadata
holds where the training stands. A checkpoint is written beside the old one, flushed to the disk and renamed over it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from raygen import files
from raygen.errors import CheckpointError

MODEL, AVERAGE, OPTIMIZER, BEST = "model.", "average.", "optimizer.", "best."
METADATA = "progress"

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""What safetensors says of an error of the system's."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Best:
    """The epoch with the best objective so far, with the weights that were judged."""

    epoch: int
    step: int
    metrics: dict[str, float]
    weights: Weights


@dataclass
class Progress:
    """Where a training stands between two steps; all of it is needed to go on exactly.

    `ailing_epochs` says for how many epochs, up to the last one, each ailment has been seen (rank 0 alone knows).
    """

    step: int = 0
    train_s: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    best: Best | None = None
    ailing_epochs: dict[str, int] = field(default_factory=dict)

    def is_unjudged(self, steps_per_epoch: int) -> bool:
        """Whether an epoch has had its last step, and its model is yet to be judged."""
        return self.step % steps_per_epoch == 0 and bool(self.counts)

    def epochs_judged(self, steps_per_epoch: int) -> int:
        """How many epochs are finished."""
        return self.step // steps_per_epoch - self.is_unjudged(steps_per_epoch)


@dataclass(frozen=True)
class Trained:
    """What a checkpoint saves and restores: the modules and optimizers of one training."""

    model: nn.Module
    average: nn.Module | None
    optimizers: Mapping[str, torch.optim.Optimizer]


def save(path: Path, trained: Trained, progress: Progress) -> None:
    """Write a checkpoint in the place of the old one.

    Raises CheckpointError, and MachineStorageError if a disk of this machine takes no more.
    """
    partial = path.with_name(f".{path.name}.partial")
    what = f"cannot write the checkpoint {path}"
    with explained(what), files.on_own_disk(what, "free some space there or set TMPDIR to another folder"):
        try:
            # A folder, because safetensors first writes to a name of its own, which a killed process leaves behind.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            written = partial / path.name
            _write(written, _tensors(trained, progress), json.dumps(_as_json(progress)))
            _flush_to_disk(written)
            written.replace(path)
            _flush_to_disk(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def restore(path: Path, trained: Trained) -> Progress:
    """Load the checkpoint into the modules and optimizers; a training starts anew where there is none.

    Raises CheckpointError naming the file where it is damaged.
    """
    if not path.exists():
        return Progress()
    with explained(f"cannot read the checkpoint {path}"):
        trained.model.load_state_dict(_read(path, MODEL))
        if trained.average is not None:
            trained.average.load_state_dict(_read(path, AVERAGE))
        _restore_optimizers(_read(path, OPTIMIZER), trained.optimizers)
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()[METADATA])
        if state["best"] is not None:
            state["best"] = Best(**state["best"], weights=_read(path, BEST))
        return Progress(**state)


def best_weights(content: bytes) -> Weights:
    """The best weights in the content of a checkpoint; raises what safetensors does if it is damaged."""
    return {name.removeprefix(BEST): tensor for name, tensor in load(content).items() if name.startswith(BEST)}


def read_weights(path: Path, *, prefix: str = "") -> Weights:
    """The tensors of a file whose names begin with `prefix`, which is left out; raises CheckpointError naming it."""
    with explained(f"cannot read the weights {path}"):
        return _read(path, prefix)


def digest(content: bytes) -> str:
    """Sixteen hexadecimal digits that tell a file from others."""
    return hashlib.sha256(content).hexdigest()[:16]


def begin_with(path: Path, expected: str, model: nn.Module) -> None:
    """Load a file's weights in the place of those that the model has under these names.

    Raises CheckpointError naming the file if it cannot be read, or has not the digest `expected`.
    """
    with explained(f"cannot start from the weights {path}"):
        content = path.read_bytes()
        if digest(content) != expected:
            raise ValueError(f"its digest is {digest(content)}, not {expected}, as the spec says")
        model.load_state_dict({**model.state_dict(), **load(content)})


def _tensors(trained: Trained, progress: Progress) -> Weights:
    tensors = _prefixed(MODEL, trained.model.state_dict())
    if trained.average is not None:
        tensors |= _prefixed(AVERAGE, trained.average.state_dict())
    for phase, optimizer in trained.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"{OPTIMIZER}{phase}.{index}.", moments)
    if progress.best is not None:
        tensors |= _prefixed(BEST, progress.best.weights)
    return tensors


def _write(path: Path, tensors: Weights, metadata: str) -> None:
    try:
        save_file(tensors, path, metadata={METADATA: metadata})
    except SafetensorError as error:
        if (found := OS_ERROR.search(str(error))) is None:
            raise
        raise OSError(int(found[1]), str(error)) from error


def _as_json(progress: Progress) -> dict[str, Any]:
    best = progress.best
    record = None if best is None else {name: value for name, value in vars(best).items() if name != "weights"}
    return {**vars(progress), "best": record}


def _restore_optimizers(tensors: Weights, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    for phase, optimizer in optimizers.items():
        moments: dict[int, Weights] = {}
        for key, tensor in tensors.items():
            owner, index, name = key.rsplit(".", 2)
            if owner == phase:
                moments.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        for parameter, state in optimizer.state.items():
            for name, moment in state.items():
                if moment.shape == parameter.shape:
                    # A file knows no layout, and fused optimizers take one for granted.
                    state[name] = torch.empty_like(parameter).copy_(moment)


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Weights:
    return {prefix + name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _read(path: Path, prefix: str) -> Weights:
    with safe_open(path, framework="pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise what goes wrong with a file as CheckpointError: `what`, and the reason in one line."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{what}: {reason}") from error
