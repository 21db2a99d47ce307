"""Really trained small models, in runs as a job leaves them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raygen import data, metrics
from raygen.api.loading import copy_best
from raygen.collection import collect_best
from raygen.models._base import Model
from raygen.plan import Plan
from raygen.record.attempt import Attempt
from raygen.record.run import Run
from raygen.record.trial import TrialWriter
from raygen.spec import TrainSpec
from raygen.storage import Storage
from raygen.training import drawing
from raygen.training.loop import fit

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in ("ae", "vae", "gan", "aegan")},
    "plane": ("vae", {"model.latent_dim": 2}),
    "noisy": ("ae", {"data.corruption": "noise", "model.latent_dim": 16}),
    "small": ("ae", {"data.corruption": "downsample", "data.corruption_factor": 2, "training.epochs": 2}),
    "critic": (
        "aegan",
        {"model.adversarial": "reconstructions", "model.latent_judge": False, "evaluation.objective": "val_mse"},
    ),
    "shapes": ("ae", {"model.arch": "conv", "model.latent_dim": 64, "training.epochs": 1}),
    "zeros": ("ae", {"data.normal_class": 0, "training.batch_size": 16}),
}
"""Family and settings of each run, by its name."""


def finish(folder: Path, name: str, spec: TrainSpec) -> None:
    """Train a run of one trial to its end."""
    storage = Storage(folder)
    direction = metrics.find(spec.evaluation.objective).direction
    Run.create(storage, "train", spec, PLAN, direction, name=name)
    attempt = Attempt.begin(storage, name, 1)
    assert attempt is not None
    with contextlib.closing(attempt):
        attempt.new_trial(1, {}, spec)
        with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
            _fit(writer, spec)
        collect_best(attempt)
        attempt.set_status("finished")


def _fit(writer: TrialWriter, spec: TrainSpec) -> None:
    dataset = data.load(spec.data)

    def draw(epoch: int, model: Model) -> None:
        picture = drawing.picture(model, dataset.validation.images, spec)
        writer.record_picture(epoch, picture, keeps=spec.evaluation.keeps_picture)

    for epoch in fit(spec, dataset, writer.checkpoint, on_judged=draw, on_saved=writer.record_checkpoint):
        writer.record_epoch(epoch)
    writer.set_state("finished")


def best_folder(storage: Path, name: str, folder: Path) -> Path:
    """The folder of a run's best model, taken out of the storage into `folder`."""
    copy_best(name, folder, storage=storage)
    return folder / "1"


@pytest.fixture(scope="session")
def trained_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with finished runs, and one that has not begun; only cards are written into it."""
    storage = tmp_path_factory.mktemp("trained")
    for name, (family, settings) in RUNS.items():
        spec = TrainSpec.create(
            family,
            {
                "model.arch": "mlp",
                "model.hidden": [64],
                "model.latent_dim": 6,
                "training.epochs": 20,
                "optimizer.lr": 3e-3,
                **settings,
            },
        )
        finish(storage, name, spec)
    Run.create(Storage(storage), "train", TrainSpec.create("ae", {}), PLAN, "min", name="untrained")
    return storage


@pytest.fixture
def trained(trained_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """Runs commands over that storage, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "")
    return CliRunner(env={"RAYGEN_STORAGE": str(trained_storage)})
