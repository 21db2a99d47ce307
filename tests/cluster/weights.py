"""What trainings leave in the record, and what they come to if nothing disturbs them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from raygen import data
from raygen.record.run import Run
from raygen.record.view import Trial
from raygen.spec import TrainSpec
from raygen.training.checkpoint import MODEL, read_weights
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
