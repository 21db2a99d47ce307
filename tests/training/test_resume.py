"""A run that was stopped, closed or killed anywhere ends as an undisturbed one does, bit for bit."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raygen import data
from raygen.data import Dataset
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import ALONE, CPU
from raygen.training.loop import fit
from raygen.training.step import Training, build_model

ROOT = Path(__file__).parents[2]
EPOCHS = 3
STEPS = EPOCHS * 47

# 47 steps make an epoch of digits, so that syncs fall at 1, 2, 20, 40, 47, 60, 80, 94, 100, 120, 140, 141.
SPECS: dict[str, dict[str, Any]] = {
    "ae": {"data.corruption": "noise", "data.corruption_std": 0.2, "training.ema_half_life_images": 500},
    "vae-masked": {"data.corruption": "mask"},
    "gan-augmented": {"data.augment": ["flip", "shift", "crop"], "data.balance": True},
    "vaegan-enlarging": {"data.corruption": "downsample", "data.corruption_factor": 2, "optimizer.lr": 1e-3},
    "vae": {"optimizer.schedule": "cosine", "optimizer.warmup_fraction": 0.1, "optimizer.clip_norm": 1.0},
    "gan": {"model.arch": "conv", "model.width": 8, "model.loss": "wgan-gp"},
    "gan-spectral": {
        "model.arch": "conv",
        "model.width": 8,
        "model.spectral_norm": True,
        "model.pack": 2,
        "model.r1": 1.0,
        "model.r1_every": 7,
    },
    "aegan": {"model.judges": "pairs"},
    "aegan-both": {"model.adversarial": "both", "model.loss": "minimax", "model.cycle": 2.0},
    "aegan-reconstructions": {
        "model.adversarial": "reconstructions",
        "model.latent_judge": False,
        "evaluation.objective": "val_mse",
    },
    "vaegan": {"optimizer.lr": 1e-3},
    "ae-forms": {"model.activation": "elu", "model.latent_activation": "sigmoid", "model.decoder_hidden": [16, 48]},
    "ae-rmsprop": {"optimizer.name": "rmsprop", "optimizer.momentum": 0.5},
    "ae-adadelta": {"optimizer.name": "adadelta"},
    "vae-adamw": {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1, "optimizer.warmup_fraction": 0.2},
    "gan-sgd": {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True},
    "gan-forms": {
        "model.loss": "minimax",
        "model.prior": "uniform",
        "model.activation": "gelu",
        "model.discriminator_activation": "tanh",
    },
}
every_model = pytest.mark.parametrize("model", SPECS)


def spec_of(model: str) -> TrainSpec:
    small = {"model.arch": "mlp", "model.hidden": [32], "model.latent_dim": 8, "training.batch_size": 30}
    return TrainSpec.create(model.partition("-")[0], {**small, "training.epochs": EPOCHS, **SPECS[model]})


def state(path: Path) -> dict[str, Tensor]:
    """All that a checkpoint holds: weights, their average, the optimizers' moments, the best weights."""
    return checkpoint.read_weights(path)


def step_of(path: Path, spec: TrainSpec) -> int:
    training = Training(spec, build_model(spec, ImageShape(1, 8, 8), CPU), steps=STEPS, group=ALONE)
    return checkpoint.restore(path, training.trained).step


@lru_cache
def undisturbed(model: str) -> tuple[dict[int, dict[str, float]], dict[str, Tensor]]:
    """Metrics by epoch and the final state of a run from beginning to end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        epochs = {epoch.epoch: epoch.metrics for epoch in fit(spec_of(model), data.load(data.DataOptions()), path)}
        return epochs, state(path)


def assert_as_undisturbed(model: str, epochs: dict[int, dict[str, float]], path: Path) -> None:
    expected_epochs, expected_state = undisturbed(model)
    assert epochs == expected_epochs
    final = state(path)
    assert final.keys() == expected_state.keys()
    assert [key for key in final if not torch.equal(final[key], expected_state[key])] == []


@every_model
def test_closed_after_each_epoch(model: str, digits: Dataset, path: Path) -> None:
    """As a scheduler does that pauses a trial."""
    epochs = {}
    while True:
        running = fit(spec_of(model), digits, path)
        epoch = next(running, None)
        running.close()
        if epoch is None:
            break
        epochs[epoch.epoch] = epoch.metrics
    assert_as_undisturbed(model, epochs, path)


@given(stops=st.lists(st.integers(1, 20), min_size=1, max_size=4), model=st.sampled_from(sorted(SPECS)))
@settings(max_examples=12)
def test_stopped_at_any_looks(stops: list[int], model: str) -> None:
    """`stops` counts the looks from one stop to the next: at syncs, at an epoch's end, and while a model is judged."""
    epochs: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for looks in [*stops, None]:
            left = itertools.count(1)
            for epoch in fit(
                spec_of(model),
                data.load(data.DataOptions()),
                Path(folder) / "checkpoint",
                should_stop=lambda left=left, looks=looks: next(left) == looks,
            ):
                epochs[epoch.epoch] = epoch.metrics
        assert_as_undisturbed(model, epochs, Path(folder) / "checkpoint")


CHILD = """
import sys
from pathlib import Path
from raygen import data
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import ALONE, CPU
from raygen.training.loop import fit
from raygen.training.step import Training, build_model

spec = TrainSpec.model_validate_json(sys.argv[1])
pace = lambda pace: print(pace.step, flush=True)
for _ in fit(spec, data.load(spec.data), Path(sys.argv[2]), on_pace=pace):
    pass
"""


@pytest.mark.parametrize(("model", "step"), [("ae", 80), ("gan", 94)])
def test_killed_with_minus_9(model: str, step: int, digits: Dataset, path: Path) -> None:
    spec = spec_of(model).with_settings({"training.checkpoint_every_s": 0})
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, spec.model_dump_json(), str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= step:
                break
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    # A checkpoint was due at every sync, and the last of them had come to an end before `step` was printed.
    assert step - 20 <= step_of(path, spec) < STEPS

    resumed = {epoch.epoch: epoch.metrics for epoch in fit(spec, digits, path)}
    expected, _ = undisturbed(model)
    assert resumed.items() <= expected.items()
    assert EPOCHS in resumed
    assert_as_undisturbed(model, expected, path)


def test_a_finished_run_has_nothing_left_to_do(digits: Dataset, path: Path) -> None:
    list(fit(spec_of("ae"), digits, path))
    before = path.stat()
    assert list(fit(spec_of("ae"), digits, path)) == []
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_training_time_goes_on_from_where_it_was(digits: Dataset, path: Path) -> None:
    running = fit(spec_of("ae"), digits, path)
    first = next(running)
    running.close()
    assert next(fit(spec_of("ae"), digits, path)).train_s > first.train_s
