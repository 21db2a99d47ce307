"""Small trainings of every family on the device under test, with what may go wrong on a GPU among their options."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raygen import data
from raygen.models._base import ImageShape
from raygen.results import TrainedModel
from raygen.spec import TrainSpec
from raygen.training import checkpoint, rhythm
from raygen.training.distributed import CPU, Group
from raygen.training.loop import Pace, fit
from raygen.training.step import build_model
from tests.device import DEVICE

ON_GPU = DEVICE.type == "cuda"
GROUP = Group(device=DEVICE)

# On a GPU more steps than repay recording: 5 epochs of 47. On a CPU 3 of 23.
EPOCHS, BATCH_SIZE, STEPS = (5, 30, 235) if ON_GPU else (3, 60, 69)

SMALL: dict[str, Any] = {"model.hidden": [32], "model.width": 8, "model.latent_dim": 8}
KINDS: dict[str, dict[str, Any]] = {
    "ae": {"model.arch": "conv", "data.corruption": "noise", "training.ema_half_life_images": 500},
    "vae": {
        "model.arch": "mlp",
        "data.augment": ["flip", "shift", "crop"],
        "data.balance": True,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_fraction": 0.1,
        "optimizer.clip_norm": 1.0,
    },
    "vae-bf16": {"model.arch": "conv", "training.precision": "bf16", "data.corruption": "mask"},
    "gan": {
        "model.arch": "conv",
        "model.loss": "hinge",
        "model.spectral_norm": True,
        "model.pack": 2,
        "model.r1": 1.0,
        "model.r1_every": 7,
    },
    "gan-penalty": {"model.arch": "mlp", "model.loss": "wgan-gp"},
    "aegan": {"model.arch": "conv", "model.judges": "pairs", "training.ema_half_life_images": 500},
    "vaegan": {"model.arch": "conv", "optimizer.lr": 1e-3, "training.precision": "bf16"},
}


class KilledError(Exception):
    """What ends a training at once, without a checkpoint, as a killed process ends."""


def keep_steady() -> None:
    """Have syncs come after 1, 2, 20, 40, … steps in this process, however fast the device is."""
    rhythm.SECONDS_BETWEEN_SYNCS = math.inf
    rhythm.STEPS_BETWEEN_SYNCS = dict.fromkeys(rhythm.STEPS_BETWEEN_SYNCS, 20)


def spec_of(kind: str, **settings: Any) -> TrainSpec:
    common = {"training.batch_size": BATCH_SIZE, "training.epochs": EPOCHS, "training.checkpoint_every_s": 0}
    return TrainSpec.create(kind.partition("-")[0], {**SMALL, **common, **KINDS[kind], **settings})


def digits() -> data.Dataset:
    return data.load(data.DataOptions())


def train(
    spec: TrainSpec,
    path: Path,
    *,
    dataset: data.Dataset | None = None,
    group: Group = GROUP,
    on_pace: Callable[[Pace], None] = lambda pace: None,
    on_set_up: Callable[[str], None] = lambda words: None,
) -> dict[int, dict[str, float]]:
    """Train, on digits unless another data set is given; returns each epoch's metrics.

    Ends early if `on_pace` raises KilledError.
    """
    epochs = {}
    with contextlib.suppress(KilledError):
        for epoch in fit(spec, dataset or digits(), path, group=group, on_pace=on_pace, on_set_up=on_set_up):
            epochs[epoch.epoch] = epoch.metrics
    return epochs


def killed_from(step: int) -> Callable[[Pace], None]:
    """What ends a training at the first sync from `step` on."""

    def look(pace: Pace) -> None:
        if pace.step >= step:
            raise KilledError

    return look


def trained(spec: TrainSpec, dataset: data.Dataset) -> TrainedModel:
    """The best model of a training on the device, on the CPU as one that is read back from a run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint")
        list(fit(spec, dataset, path, group=GROUP))
        model = build_model(spec, ImageShape(*dataset.shape), CPU)
        model.load_state_dict(checkpoint.read_weights(path, prefix=checkpoint.BEST))
    return TrainedModel(model.eval().requires_grad_(False), spec, {})
