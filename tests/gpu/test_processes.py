"""Two processes that share the device train what one trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from raygen.training.distributed import Group
from tests.checkpoints import relative_difference, weights
from tests.device import DEVICE, ROUNDING
from tests.gpu.trainings import keep_steady, killed_from, spec_of, train

KINDS = ("vae", "gan", "aegan")


def after_20_steps(kind: str, group: Group, path: Path) -> None:
    """Train until the sync that follows the one after 20 steps, which leaves their checkpoint.

    Without TF32, and at a rate at which rounding does not grow with every step.
    """
    exact = {"training.tf32": False, "training.compile": "off", "optimizer.lr": 2e-4}
    train(spec_of(kind, **exact), path, group=group, on_pace=killed_from(21))


def one_of_two(rank: int, folder: Path) -> None:
    keep_steady()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting-point", rank=rank, world_size=2)
    for kind in KINDS:
        after_20_steps(kind, Group.joined(DEVICE), folder / kind)
    torch.distributed.barrier()  # nobody leaves while another still waits for something
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that two processes left."""
    folder = tmp_path_factory.mktemp("by-two")
    spawn(one_of_two, args=(folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_on_one_device_train_what_one_does(kind: str, by_two: Path, path: Path) -> None:
    after_20_steps(kind, Group(device=DEVICE), path)
    assert 0 < relative_difference(weights(path), weights(by_two / kind)) <= ROUNDING
