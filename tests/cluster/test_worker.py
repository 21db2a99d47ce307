"""The pictures that a training leaves in its trial's folder, without a cluster."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raygen.cluster.worker import artist
from raygen.data import Dataset
from raygen.plan import Plan
from raygen.runs import Run, Trial
from raygen.spec import TrainSpec
from raygen.training.loop import Epoch, fit

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)


def new_trial(storage: Path, **settings: Any) -> Trial:
    small = {"model.arch": "mlp", "model.hidden": [32], "model.latent_dim": 8, "training.epochs": 7}
    chosen = {name.replace("__", "."): value for name, value in settings.items()}
    spec = TrainSpec.create("vae", {**small, **chosen})
    return Run.create(storage, "train", spec, PLAN, "max").new_trial(1, {}, spec)


def train(trial: Trial, digits: Dataset, *, until: int | None = None) -> list[Epoch]:
    """Train to the end, or as far as one that is killed right after an epoch."""
    spec, epochs = trial.spec(), []
    for epoch in fit(spec, digits, trial.checkpoint, on_judged=artist(trial, spec, digits.validation.images)):
        epochs.append(epoch)
        if epoch.epoch == until:
            break
    return epochs


def contents(trial: Trial) -> dict[int, bytes]:
    return {epoch: path.read_bytes() for epoch, path in trial.pictures().items()}


@pytest.mark.parametrize(
    ("pictures", "kept"), [("doubling", [1, 2, 4, 7]), ("all", [1, 2, 3, 4, 5, 6, 7]), ("none", [])]
)
def test_pictures_of_the_epochs_that_the_spec_says_stay(
    pictures: str, kept: list[int], storage: Path, digits: Dataset
) -> None:
    trial = new_trial(storage, evaluation__pictures=pictures)
    train(trial, digits)
    assert list(trial.pictures()) == kept
    for path in trial.pictures().values():
        with Image.open(path) as picture:
            assert picture.size == (8 * 34, 8 * 34)
    assert len(set(contents(trial).values())) == len(kept), "it learns"


def test_one_that_is_stopped_leaves_its_last_epoch_s_and_ends_with_the_same(storage: Path, digits: Dataset) -> None:
    undisturbed, stopped = new_trial(storage), new_trial(storage)
    train(undisturbed, digits)
    train(stopped, digits, until=3)
    assert list(stopped.pictures()) == [1, 2, 3]
    before = contents(stopped)[3]
    shutil.copy(stopped.checkpoint, stopped.folder / "after-3")
    train(stopped, digits, until=6)
    assert list(stopped.pictures()) == [1, 2, 4, 6]
    shutil.copy(stopped.folder / "after-3", stopped.checkpoint)  # as if killed before it wrote another
    train(stopped, digits)
    assert contents(stopped) == contents(undisturbed)
    assert before not in contents(stopped).values()


def test_a_picture_that_cannot_be_written_stops_no_training(
    storage: Path, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = new_trial(storage, training__epochs=2)
    (trial.folder / "samples").touch()
    assert len(train(trial, digits)) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"trial 1: no picture of epoch 1: cannot write into {trial.folder}/samples: ")
    assert "epoch 2" in second
