"""Checkpoints: one directory that holds the last state and the best weights, written whole or not at all.

    step-00000120/
        state.json                 step, sums of the unfinished epoch, the best epoch's record
        model.safetensors          weights to go on from
        average.safetensors        their moving average, where the spec asks for one
        optimizer.safetensors      Adam's moments, as <phase>.<parameter>.<moment>
        best.safetensors           the weights that were best on held-out images

A checkpoint is written under another name, flushed to the disk and renamed; then its predecessor is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raygen.errors import CheckpointError

PREFIX = "step-"
BEST_WEIGHTS = "best.safetensors"

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Best:
    """The epoch with the best objective so far, and the weights that were judged."""

    epoch: int
    step: int
    metrics: dict[str, float]
    weights: Weights


@dataclass
class Progress:
    """Where a training stands between two steps; all of it is needed to go on exactly."""

    step: int = 0
    train_s: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    best: Best | None = None


@dataclass(frozen=True)
class Trained:
    """What a checkpoint saves and restores: the modules and optimizers of one training."""

    model: nn.Module
    average: nn.Module | None
    optimizers: Mapping[str, torch.optim.Optimizer]


def save(folder: Path, trained: Trained, progress: Progress) -> None:
    """Write a checkpoint into `folder` and remove the older ones; raises CheckpointError (a full disk, say)."""
    final = folder / f"{PREFIX}{progress.step:010d}"
    partial = folder / f".{final.name}.partial"
    with _explained(f"cannot write the checkpoint {final}"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _write(partial, trained, progress)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush_to_disk(folder)
        for older in _all(folder):
            if older != final:
                shutil.rmtree(older)


def restore(folder: Path, trained: Trained) -> Progress:
    """Load the last checkpoint in `folder` into the modules and optimizers; from the start where there is none."""
    checkpoint = last(folder)
    if checkpoint is None:
        return Progress()
    with _explained(f"cannot read the checkpoint {checkpoint}"):
        trained.model.load_state_dict(read_weights(checkpoint / "model.safetensors"))
        if trained.average is not None:
            trained.average.load_state_dict(read_weights(checkpoint / "average.safetensors"))
        _restore_optimizers(read_weights(checkpoint / "optimizer.safetensors"), trained.optimizers)
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if state["best"] is not None:
            state["best"] = Best(**state["best"], weights=read_weights(checkpoint / BEST_WEIGHTS))
        return Progress(**state)


def last(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, if there is one."""
    return max(_all(folder), default=None)


def read_best_weights(folder: Path) -> Weights:
    """The best weights in the last checkpoint in `folder`; raises CheckpointError where there are none."""
    checkpoint = last(folder)
    if checkpoint is None:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    return read_weights(checkpoint / BEST_WEIGHTS)


def read_weights(path: Path) -> Weights:
    """The tensors of one safetensors file; raises CheckpointError naming it where it is missing or damaged."""
    with _explained(f"cannot read the weights {path}"):
        weights: Weights = load_file(path)
        return weights


def _write(partial: Path, trained: Trained, progress: Progress) -> None:
    save_file(_plain(trained.model.state_dict()), partial / "model.safetensors")
    if trained.average is not None:
        save_file(_plain(trained.average.state_dict()), partial / "average.safetensors")
    save_file(_optimizer_tensors(trained.optimizers), partial / "optimizer.safetensors")
    state = {name: value for name, value in vars(progress).items() if name != "best"}
    state["best"] = None
    if progress.best is not None:
        save_file(_plain(progress.best.weights), partial / BEST_WEIGHTS)
        state["best"] = {name: value for name, value in vars(progress.best).items() if name != "weights"}
    (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for file in partial.iterdir():
        _flush_to_disk(file)
    _flush_to_disk(partial)


def _optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> Weights:
    return {
        f"{phase}.{index}.{name}": tensor.contiguous()
        for phase, optimizer in optimizers.items()
        for index, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def _restore_optimizers(tensors: Weights, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    for phase, optimizer in optimizers.items():
        moments: dict[int, Weights] = {}
        for key, tensor in tensors.items():
            owner, index, name = key.rsplit(".", 2)
            if owner == phase:
                moments.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _plain(weights: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.detach().contiguous() for name, tensor in weights.items()}


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{what}: {reason}") from error
