"""A stop is heeded within seconds however slow a model is, and costs nothing of what was trained."""

from __future__ import annotations

import json
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from raygen import data
from raygen.metrics import elbo
from raygen.models.vae import VariationalAutoencoder
from raygen.spec import TrainSpec
from raygen.training import checkpoint, rhythm
from raygen.training.distributed import ALONE, CPU, Group
from raygen.training.loop import fit
from raygen.training.rhythm import Rhythm
from raygen.training.step import Training

WITHIN_S = 5.0
SPEC = TrainSpec.create(
    "vae",
    {
        "model.arch": "mlp",
        "model.hidden": [16],
        "model.latent_dim": 4,
        "training.batch_size": 50,
        "training.epochs": 2,
        "evaluation.metrics": ["val_is_log_likelihood"],
    },
)


def slow_steps(patch: pytest.MonkeyPatch, began_at: list[float]) -> None:
    """Half a second a step."""
    step = Training.step

    def slowly(*arguments: Any) -> Any:
        began_at.append(time.monotonic())
        time.sleep(0.5)
        return step(*arguments)

    patch.setattr(Training, "step", slowly)


def slow_judgement(patch: pytest.MonkeyPatch, began_at: list[float]) -> None:
    """Thirty batches of a second each."""
    patch.setattr(elbo, "CHUNK_IMAGES", 6)
    of_batch = VariationalAutoencoder.elbo

    def slowly(*arguments: Any) -> Tensor:
        began_at.append(time.monotonic())
        time.sleep(1)
        return of_batch(*arguments)

    patch.setattr(VariationalAutoencoder, "elbo", slowly)


SLOWED = {"steps": slow_steps, "judgement": slow_judgement}


def stop_and_go_on(group: Group, folder: Path, slowed: str) -> None:
    """Train until a stop comes in what is slow, and on from there; rank 0 writes down what came of it."""
    images = data.load(data.DataOptions())
    began_at: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        SLOWED[slowed](patch, began_at)
        wants_stop = (lambda: bool(began_at)) if group.rank == 0 else lambda: False
        before = list(fit(SPEC, images, folder / "stopped", group=group, should_stop=wants_stop))
    took_s = time.monotonic() - began_at[0] if began_at else 0.0
    group.sum([torch.zeros(1)])
    stopped_step = json.loads(metadata(folder / "stopped"))["step"] if group.rank == 0 else 0
    group.sum([torch.zeros(1)])
    after = list(fit(SPEC, images, folder / "stopped", group=group))
    whole = list(fit(SPEC, images, folder / "whole", group=group))
    if group.rank == 0:
        found = {
            "took_s": took_s,
            "stopped_step": stopped_step,
            "epochs": [epoch.metrics for epoch in [*before, *after]],
            "undisturbed": [epoch.metrics for epoch in whole],
        }
        (folder / "found.json").write_text(json.dumps(found))


def metadata(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return str(file.metadata()[checkpoint.METADATA])


def worker(rank: int, world_size: int, folder: Path, slowed: str) -> None:
    if world_size == 1:
        stop_and_go_on(ALONE, folder, slowed)
        return
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world_size)
    stop_and_go_on(Group.joined(CPU), folder, slowed)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("slowed", SLOWED)
def test_a_slow_training_is_stopped_in_time_and_ends_as_if_undisturbed(
    slowed: str, world_size: int, tmp_path: Path, processes: ForkServerContext
) -> None:
    started = [
        processes.Process(target=worker, args=(rank, world_size, tmp_path, slowed)) for rank in range(world_size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * world_size
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["took_s"] < WITHIN_S
    per_epoch = 28
    assert found["stopped_step"] == per_epoch if slowed == "judgement" else 0 < found["stopped_step"] < 10
    assert found["epochs"] == found["undisturbed"]
    assert len(found["epochs"]) == 2
    stopped, whole = (checkpoint.read_weights(tmp_path / name) for name in ("stopped", "whole"))
    assert stopped.keys() == whole.keys()
    assert all(torch.equal(stopped[name], tensor) for name, tensor in whole.items())


@given(
    speeds=st.lists(st.lists(st.floats(1e-6, 100), min_size=3, max_size=3), min_size=1, max_size=50),
)
def test_processes_of_any_speeds_agree_on_the_next_sync(speeds: list[list[float]]) -> None:
    """`speeds` are the seconds that each of three processes measures for a step, from one sync to the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rhythm, "SECONDS_BETWEEN_SYNCS", 1.0)
        group, step = [Rhythm("cpu") for _ in range(3)], 0
        for seconds in speeds:
            first = step
            while True:
                step += 1
                due = {each.is_due(step) for each in group}
                assert len(due) == 1, "all of them, or a collective operation waits for ever"
                if due.pop():
                    break
            assert step - first <= rhythm.STEPS_BETWEEN_SYNCS["cpu"]
            total = sum(each.wish for each in group)
            for each, step_s in zip(group, seconds, strict=True):
                each.agree(float(total), 3)
                each.measure(step - first, (step - first) * step_s)


@pytest.mark.parametrize(("step_s", "expected"), [(1e-4, 20), (0.049, 20), (0.1, 10), (0.5, 2), (0.9, 1), (30.0, 1)])
def test_a_sync_comes_after_a_second_or_20_steps(
    step_s: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rhythm, "SECONDS_BETWEEN_SYNCS", 1.0)
    found, synced = Rhythm("cpu"), [0]
    for step in range(1, 200):
        if found.is_due(step):
            found.agree(found.wish, 1)
            found.measure(step - synced[-1], (step - synced[-1]) * step_s)
            synced.append(step)
    assert synced[1] == 1
    assert synced[-1] - synced[-2] == expected
