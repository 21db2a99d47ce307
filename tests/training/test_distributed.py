"""One, two and three processes train the same model: `batch_size` counts the images of all of them together."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from raygen import data
from raygen.errors import DataError, NonFiniteLossError, UnhealthyError
from raygen.spec import TrainSpec
from raygen.training import rhythm
from raygen.training.distributed import ALONE, CPU, Group
from raygen.training.loop import fit
from tests.checkpoints import relative_difference, weights

SMALL = {"model.hidden": [64], "model.width": 8, "model.latent_dim": 8}

# 50 images to a batch do not divide by 3; 28 steps make an epoch of digits.
SPECS: dict[str, dict[str, Any]] = {
    "ae": {"model.arch": "conv", "data.corruption": "noise", "data.corruption_std": 0.2},
    "vae-masked": {"model.arch": "mlp", "data.corruption": "mask"},
    "vae-augmented": {"model.arch": "mlp", "data.augment": ["flip", "shift", "crop"], "data.balance": True},
    "vae": {"model.arch": "mlp", "optimizer.clip_norm": 5.0, "training.ema_half_life_images": 1000},
    "gan": {"model.arch": "conv"},
    "gan-packed": {
        "model.arch": "conv",
        "model.pack": 5,
        "model.gradient_penalty": 1.0,
        "model.r1": 1.0,
        "model.r1_every": 4,
        "model.discriminator_lr_scale": 2.0,
        "training.ema_half_life_images": 1000,
    },
    "gan-spectral": {"model.spectral_norm": True, "model.loss": "hinge", "training.ema_half_life_images": 1000},
    "aegan": {"model.judges": "images"},
    "aegan-pairs": {"model.judges": "pairs", "model.loss": "minimax", "model.cycle": 1.0},
    "aegan-joined": {"model.judges": "pairs", "model.pair_features": 0},
    "aegan-both": {"model.adversarial": "both", "model.latent_judge": False, "model.cycle": 2.0},
    "aegan-reconstructions": {"model.adversarial": "reconstructions", "training.ema_half_life_images": 1000},
    "vaegan": {"training.ema_half_life_images": 1000},
    "ae-rmsprop": {"model.arch": "mlp", "optimizer.name": "rmsprop", "optimizer.momentum": 0.5},
    "ae-adadelta": {"model.arch": "mlp", "optimizer.name": "adadelta"},
    "vae-adamw": {"model.arch": "mlp", "optimizer.name": "adamw", "optimizer.weight_decay": 0.1},
    "gan-sgd": {
        "model.arch": "mlp",
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "optimizer.nesterov": True,
    },
    "ae-forms": {
        "model.arch": "mlp",
        "model.activation": "elu",
        "model.latent_activation": "sigmoid",
        "model.decoder_hidden": [16, 48],
    },
    "gan-forms": {
        "model.arch": "mlp",
        "model.loss": "minimax",
        "model.prior": "uniform",
        "model.activation": "gelu",
        "model.discriminator_activation": "tanh",
    },
}
every_model = pytest.mark.parametrize("model", SPECS)
every_size = pytest.mark.parametrize("world_size", [2, 3])


def spec_of(model: str, **settings: Any) -> TrainSpec:
    common = {"training.batch_size": 50, "training.epochs": 1}
    return TrainSpec.create(model.partition("-")[0], {**SMALL, **common, **SPECS[model], **settings})


def train_all(group: Group, folder: Path) -> None:
    """Each model for 20 steps, whose checkpoint is set aside, and from there to the end of the epoch."""
    digits = data.load(data.DataOptions())
    for model in SPECS:
        own = folder / model
        asked = third_sync() if group.rank == 0 else lambda: False
        stopped = fit(spec_of(model), digits, own / "checkpoint", group=group, should_stop=asked)
        assert list(stopped) == []  # all processes, though one alone was asked
        wait_for_all(group)
        if group.rank == 0:
            shutil.copy(own / "checkpoint", own / "after-20-steps")
        judged: list[int] = []
        [epoch] = fit(
            spec_of(model),
            digits,
            own / "checkpoint",
            group=group,
            on_judged=lambda number, model, judged=judged: judged.append(number),
        )
        assert judged == [1] * (group.rank == 0), "a picture is drawn by one process alone"
        if group.rank == 0:
            (own / "metrics.json").write_text(json.dumps(epoch.metrics))
    if group.world_size > 1:
        others = replace(digits, digest="0" * 16) if group.rank == 0 else digits
        try:
            list(fit(spec_of("ae"), others, folder / "other-images", group=group))
        except DataError as error:
            (folder / f"images-{group.rank}").write_text(str(error))
    diverging = spec_of("vae", **{"optimizer.lr": 1e10, "optimizer.clip_norm": None})
    try:
        list(fit(diverging, digits, folder / "diverging", group=group))
    except NonFiniteLossError as error:
        (folder / f"error-{group.rank}").write_text(str(error))
    collapsed = spec_of("vae", **{"model.beta": 100, "health.grace_steps": 0, "health.patience_epochs": 1})
    try:
        list(fit(collapsed.with_settings({"training.epochs": 2}), digits, folder / "collapsed", group=group))
    except UnhealthyError as error:
        (folder / f"ailment-{group.rank}").write_text(error.ailment)


def third_sync() -> Callable[[], bool]:
    """Yes when it is asked for the third time, which is after 20 steps."""
    left = iter([False, False, True])
    return lambda: next(left)


def wait_for_all(group: Group) -> None:
    group.sum([torch.zeros(1)])


def worker(rank: int, folders: dict[int, Path]) -> None:
    """One of as many processes as the largest number asks for; the smaller groups do without the last of them."""
    rhythm.SECONDS_BETWEEN_SYNCS = math.inf  # as `steady` does in the process of the tests
    for world_size, folder in folders.items():
        if rank < world_size:
            meeting_point = f"file://{folder}/meeting-point"
            torch.distributed.init_process_group("gloo", meeting_point, rank=rank, world_size=world_size)
            train_all(Group.joined(CPU), folder)
            torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, processes: ForkServerContext) -> dict[int, Path]:
    """What 1, 2 and 3 processes left, by their number."""
    left = {size: tmp_path_factory.mktemp(f"processes-{size}") for size in (1, 2, 3)}
    shared = {size: left[size] for size in (3, 2)}
    started = [processes.Process(target=worker, args=(rank, shared)) for rank in range(3)]
    for process in started:
        process.start()
    train_all(ALONE, left[1])
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0, 0]
    return left


@every_size
@every_model
def test_weights_agree_after_20_steps(model: str, world_size: int, folders: dict[int, Path]) -> None:
    alone, shared = (weights(folders[size] / model / "after-20-steps") for size in (1, world_size))
    assert 0 < relative_difference(alone, shared) <= 1e-5


@every_size
@every_model
def test_metrics_agree_after_an_epoch(model: str, world_size: int, folders: dict[int, Path]) -> None:
    alone, shared = (json.loads((folders[size] / model / "metrics.json").read_text()) for size in (1, world_size))
    assert len(shared) >= 2
    assert shared == pytest.approx(alone, rel=1e-3)


@every_size
@every_model
def test_a_run_may_go_on_with_fewer_processes(
    model: str, world_size: int, folders: dict[int, Path], path: Path
) -> None:
    path.parent.mkdir()
    shutil.copy(folders[world_size] / model / "after-20-steps", path)
    [epoch] = fit(spec_of(model), data.load(data.DataOptions()), path)
    assert epoch.step == 28
    assert epoch.metrics == pytest.approx(json.loads((folders[1] / model / "metrics.json").read_text()), rel=1e-3)


@every_size
def test_all_processes_learn_of_a_loss_that_is_not_finite(world_size: int, folders: dict[int, Path]) -> None:
    messages = {path.read_text() for path in folders[world_size].glob("error-*")}
    assert len(list(folders[world_size].glob("error-*"))) == world_size
    assert messages == {(folders[1] / "error-0").read_text()}


@every_size
def test_processes_that_read_different_images_do_not_train(world_size: int, folders: dict[int, Path]) -> None:
    found = [path.read_text() for path in folders[world_size].glob("images-*")]
    assert len(found) == world_size
    assert all("read different images: are the same files on all nodes" in line for line in found)


@every_size
def test_all_processes_end_a_training_that_has_gone_wrong(world_size: int, folders: dict[int, Path]) -> None:
    found = [path.read_text() for path in folders[world_size].glob("ailment-*")]
    assert found == ["posterior collapse"] * world_size


def train_until_sync(rank: int, world_size: int, folder: Path) -> None:
    """One of `world_size` processes that go on with each model up to the third sync, and leave a checkpoint there."""
    rhythm.SECONDS_BETWEEN_SYNCS = math.inf
    meeting_point = f"file://{folder}/meeting-point-{world_size}"
    torch.distributed.init_process_group("gloo", meeting_point, rank=rank, world_size=world_size)
    for model in SPECS:
        spec, group = longer_spec_of(model), Group.joined(CPU)
        list(fit(spec, data.load(data.DataOptions()), folder / model, group=group, should_stop=third_sync()))
        wait_for_all(group)
    torch.distributed.destroy_process_group()


def longer_spec_of(model: str) -> TrainSpec:
    # A rate at which rounding does not grow with every step.
    return spec_of(model, **{"training.epochs": 2, "optimizer.lr": 2e-4})


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory, processes: ForkServerContext) -> Path:
    """Checkpoints of trainings by two processes for 20 steps and then by three to the end of the epoch."""
    folder = tmp_path_factory.mktemp("resized")
    for size in (2, 3):
        started = [processes.Process(target=train_until_sync, args=(rank, size, folder)) for rank in range(size)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        assert [process.exitcode for process in started] == [0] * size
    return folder


@every_model
def test_a_change_of_size_changes_nothing_but_rounding(model: str, resized: Path, path: Path) -> None:
    digits, spec = data.load(data.DataOptions()), longer_spec_of(model)
    first, second = fit(spec, digits, resized / model)
    assert first.step == 28, "the first epoch's steps are behind the three processes, and it is yet to be judged"
    *_, expected = fit(spec, digits, path)
    assert 0 < relative_difference(weights(path), weights(resized / model)) <= 1e-5
    assert second.metrics == pytest.approx(expected.metrics, rel=1e-3)
