"""What trainings leave in the record, and what they come to if nothing disturbs them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing import spawn

from raygen import data
from raygen.record.run import Run
from raygen.record.view import Trial
from raygen.spec import TrainSpec
from raygen.training.checkpoint import MODEL, read_weights
from raygen.training.distributed import CPU, Group
from raygen.training.loop import fit


def final_weights(run: Run, trial: Trial, folder: Path) -> dict[str, Tensor]:
    """Those in a trial's newest checkpoint."""
    assert trial.progress.checkpoint is not None
    content = run.read(trial.progress.checkpoint)
    assert content is not None
    path = folder / "final.safetensors"
    path.write_bytes(content)
    return dict(read_weights(path, prefix=MODEL))


def undisturbed(spec: TrainSpec, path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and last metrics of the same training in one process, with its checkpoint at `path`."""
    *_, epoch = fit(spec, data.load(spec.data), path)
    return dict(read_weights(path, prefix=MODEL)), epoch.metrics


def undisturbed_pair(spec: TrainSpec, folder: Path) -> dict[str, Tensor]:
    """Weights of the same training in two processes, with their checkpoint in `folder`."""
    spawn(_one_of_two, args=(spec.model_dump_json(), str(folder)), nprocs=2)
    return dict(read_weights(folder / "checkpoint.safetensors", prefix=MODEL))


def _one_of_two(rank: int, spec: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    parsed = TrainSpec.model_validate_json(spec)
    for _ in fit(parsed, data.load(parsed.data), Path(folder) / "checkpoint.safetensors", group=Group.joined(CPU)):
        pass
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # as Python ends, a thread of gloo's aborts the process once in a while


def assert_equal(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each tensor is as expected, bit for bit."""
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), f"{name} differs from the undisturbed training"


def assert_close(weights: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor is as expected, but for so much of its norm."""
    for name, tensor in expected.items():
        assert (weights[name] - tensor).norm() <= tolerance * tensor.norm(), name


def training_writes(run: Run, numbers: Collection[int]) -> dict[int, list[tuple[str, str]]]:
    """Epochs, checkpoints and pictures of trials, by number: training one again would change some."""
    found = {}
    for number in numbers:
        epochs = [(str(epoch.epoch), str(epoch.train_s)) for epoch in run.look().trial(number).epochs]
        listed = [(entry.key, entry.version) for entry in run.storage.list(run.name)]
        own = [each for each in listed if f"/trials/{number:03d}/" in each[0] and not each[0].endswith(".json")]
        found[number] = epochs + own
    return found
