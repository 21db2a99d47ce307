"""Really trained small models, in run folders as a job leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raygen import data, metrics, results
from raygen.data import Dataset
from raygen.models._base import Model
from raygen.plan import Plan
from raygen.runs import Run, Trial
from raygen.spec import TrainSpec
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
        direction = metrics.find(spec.evaluation.objective).direction
        run = Run.create(storage, "train", spec, PLAN, direction, name=name)
        trial = run.new_trial(1, {}, spec)
        dataset = data.load(spec.data)

        def draw(epoch: int, model: Model, trial: Trial = trial, dataset: Dataset = dataset) -> None:
            spec = trial.spec()
            picture = drawing.picture(model, dataset.validation.images, spec)
            trial.record_picture(epoch, picture, keeps=spec.evaluation.keeps_picture)

        for epoch in fit(spec, dataset, trial.checkpoint, on_judged=draw):
            trial.record_epoch(epoch)
        trial.set_status("finished")
        run.set_status("finished")
        results.collect_best(run)
    Run.create(storage, "train", TrainSpec.create("ae", {}), PLAN, "min", name="untrained")
    return storage


@pytest.fixture
def trained(trained_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """Runs commands over that storage, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "")
    return CliRunner(env={"RAYGEN_STORAGE": str(trained_storage)})
