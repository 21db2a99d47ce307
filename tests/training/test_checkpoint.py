from __future__ import annotations

import errno
import json
import os
import platform
import random
import resource
import signal
import time
from itertools import count
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raygen.errors import CheckpointError, MachineStorageError
from raygen.models._base import Batch, ImageShape, Noise
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.checkpoint import Best, Progress, Trained
from raygen.training.distributed import ALONE, CPU
from raygen.training.step import Training, build_model

SHAPE = ImageShape(1, 8, 8)


def trained(value: float = 0.0, **settings: Any) -> Trained:
    """An autoencoder after one step, all of whose weights are then set to `value`."""
    options = {"model.hidden": [16], "training.batch_size": 4, "training.ema_half_life_images": 100, **settings}
    spec = TrainSpec.create("ae", options)
    training = Training(spec, build_model(spec, SHAPE, CPU), steps=10, group=ALONE)
    noise = Noise(seed=0, step=0, batch_size=4, rows=slice(None), generator=torch.Generator())
    training.step(Batch(images=torch.rand(4, *SHAPE), noise=noise), 0)
    fill(training.trained, value)
    return training.trained


@torch.no_grad()
def fill(state: Trained, value: float) -> None:
    for parameter in state.model.parameters():
        parameter.fill_(value)


def progress(step: int, value: float = 0.0) -> Progress:
    best = Best(epoch=1, step=step, metrics={"val_mse": value}, weights={"weight": torch.full((3,), value)})
    return Progress(step=step, train_s=1.5, sums={"loss": 0.1}, counts={"loss": 2}, best=best)


def restored(path: Path) -> tuple[Progress, float]:
    """What a new process finds: progress, and the value that fills the weights."""
    state = trained(value=-1.0)
    found = checkpoint.restore(path, state)
    [value] = {value for parameter in state.model.parameters() for value in parameter.flatten().tolist()}
    return found, value


def test_what_is_saved_is_restored(path: Path) -> None:
    saved = trained(value=2.0)
    checkpoint.save(path, saved, progress(7, value=0.25))
    state = trained(value=-1.0)
    found = checkpoint.restore(path, state)
    assert (found.step, found.train_s, found.sums, found.counts) == (7, 1.5, {"loss": 0.1}, {"loss": 2})
    assert found.best is not None
    assert (found.best.epoch, found.best.step, found.best.metrics) == (1, 7, {"val_mse": 0.25})
    assert found.best.weights["weight"].tolist() == [0.25] * 3
    assert checkpoint.read_weights(path, prefix=checkpoint.BEST)["weight"].tolist() == [0.25] * 3
    for before, after in ((saved.model, state.model), (saved.average, state.average)):
        assert before is not None
        assert after is not None
        assert all(map(torch.equal, before.state_dict().values(), after.state_dict().values()))
    for phase, optimizer in saved.optimizers.items():
        moments = optimizer.state_dict()["state"]
        assert moments
        for index, tensors in state.optimizers[phase].state_dict()["state"].items():
            assert tensors.keys() == moments[index].keys()
            assert all(torch.equal(tensors[name], moments[index][name]) for name in tensors)


def test_without_a_checkpoint_it_is_the_start(path: Path) -> None:
    assert restored(path) == (Progress(), -1.0)
    with pytest.raises(CheckpointError, match=f"cannot read the weights {path}: "):
        checkpoint.read_weights(path, prefix=checkpoint.BEST)


def test_one_file_is_kept(path: Path) -> None:
    for step in (9, 10, 100, 1000):
        checkpoint.save(path, trained(value=step), progress(step))
    assert list(path.parent.iterdir()) == [path]
    assert restored(path)[1] == 1000


# A save that fails


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "replace"), (Path, "mkdir")])
def test_a_save_that_fails_leaves_the_one_before(
    owner: Any, call: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint.save(path, trained(value=1.0), progress(10))
    state = trained(value=2.0)
    with monkeypatch.context() as patched:
        patched.setattr(owner, call, no_space)
        with pytest.raises(MachineStorageError) as caught:
            checkpoint.save(path, state, progress(20))
    message = str(caught.value)
    assert message.startswith(f"cannot write the checkpoint {path} on {platform.node()}")
    assert "No space left on device" in message
    assert "\n" not in message
    found, value = restored(path)
    assert (found.step, value) == (10, 1.0)
    assert list(path.parent.iterdir()) == [path], "half a file still takes its space"
    checkpoint.save(path, trained(value=3.0), progress(30))
    assert restored(path)[1] == 3.0


def test_a_disk_that_takes_no_more_bytes(path: Path) -> None:
    """The real thing: the system itself refuses to let the file grow."""
    checkpoint.save(path, trained(value=1.0), progress(10))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = trained(value=2.0, **{"model.hidden": [4096]})
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(MachineStorageError, match="cannot write the checkpoint"):
            checkpoint.save(path, large, progress(20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found, value = restored(path)
    assert (found.step, value) == (10, 1.0)
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=f"cannot write the checkpoint {tmp_path}/file/checkpoint"):
        checkpoint.save(tmp_path / "file" / "checkpoint", trained(), progress(1))


def save_for_ever(path: Path) -> None:
    state = trained()
    for step in count(checkpoint.restore(path, state).step + 1):
        fill(state, step)
        checkpoint.save(path, state, progress(step, value=step))


def test_killed_at_any_moment_of_a_save(path: Path, processes: ForkServerContext) -> None:
    """What is found is whole, and what half a checkpoint left is gone after the next one."""
    chance = random.Random(0)
    for _ in range(6):
        before = path.stat().st_ino if path.exists() else None
        process = processes.Process(target=save_for_ever, args=(path,))
        process.start()
        while process.is_alive() and (not path.exists() or path.stat().st_ino == before):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it had ended by itself"
        found, value = restored(path)
        assert value == found.step > 0
        assert found.best is not None
        assert found.best.weights["weight"][0] == found.step
    checkpoint.save(path, trained(), progress(1))
    assert list(path.parent.iterdir()) == [path]


# A checkpoint that cannot be read


@pytest.mark.parametrize("kept", [0, 5, 8, 300, -1])
def test_a_damaged_file_is_named(kept: int, path: Path) -> None:
    checkpoint.save(path, trained(), progress(10))
    path.write_bytes(path.read_bytes()[:kept])
    for read in (restored, checkpoint.read_weights):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_bytes_that_are_no_checkpoint(path: Path) -> None:
    path.parent.mkdir()
    for content in (b"\xff" * 1000, b"\0" * 1000, b'{"a": 1}'):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"cannot read the checkpoint {path}: "):
            restored(path)


def test_progress_that_cannot_be_read(path: Path) -> None:
    checkpoint.save(path, trained(), progress(10))
    tensors = load_file(path)
    for metadata in (None, {}, *({"progress": text} for text in ("", "[]", "{}", '{"best": null, "unknown": 1}'))):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=f"cannot read the checkpoint {path}: "):
            restored(path)


def test_a_checkpoint_without_the_average_that_the_spec_asks_for(path: Path) -> None:
    checkpoint.save(path, trained(**{"training.ema_half_life_images": 0}), progress(10))
    with pytest.raises(CheckpointError, match=f"cannot read the checkpoint {path}: "):
        restored(path)


def test_weights_of_another_model_are_refused(path: Path) -> None:
    checkpoint.save(path, trained(), progress(10))
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        checkpoint.restore(path, trained(**{"model.hidden": [8]}))


def test_progress_is_plain_json(path: Path) -> None:
    """So a person can read where a training stands without torch."""
    checkpoint.save(path, trained(), progress(10))
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert json.loads(header["__metadata__"]["progress"])["step"] == 10
