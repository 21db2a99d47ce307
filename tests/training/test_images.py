"""Images come from the host as they come from the device."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raygen.data import Dataset
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import CPU
from raygen.training.images import OnDevice, OnHost
from raygen.training.loop import fit

IMAGES = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 3).contiguous()


@given(steps=st.integers(0, 7), rows=st.integers(1, 9), seed=st.integers(0, 9))
def test_the_host_sends_the_same_batches(steps: int, rows: int, seed: int) -> None:
    positions = torch.randint(len(IMAGES), (steps, rows), generator=torch.Generator().manual_seed(seed))
    sent = [batch.clone() for batch in OnHost(IMAGES, CPU).batches(positions)]
    there = list(OnDevice(IMAGES, CPU).batches(positions))
    assert len(sent) == len(there) == steps
    assert all(map(torch.equal, sent, there))


def test_whoever_stops_early_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    batches = OnHost(IMAGES, CPU).batches(torch.zeros(50, 4, dtype=torch.int64))
    next(batches)
    batches.close()
    assert set(threading.enumerate()) <= before


def test_what_cannot_be_gathered_is_told() -> None:
    with pytest.raises(IndexError):
        list(OnHost(IMAGES, CPU).batches(torch.full((3, 2), 60)))


@pytest.mark.parametrize("model", ["vae", "gan"])
def test_a_training_is_the_same_from_both(model: str, digits: Dataset, path: Path) -> None:
    for place in ("device", "host"):
        settings = {"training.epochs": 1, "model.hidden": [16], "model.arch": "mlp", "training.images_on": place}
        list(fit(TrainSpec.create(model, settings), digits, path.with_name(place)))
    there, sent = (checkpoint.read_weights(path.with_name(place)) for place in ("device", "host"))
    assert there.keys() == sent.keys()
    assert all(torch.equal(there[name], sent[name]) for name in there)
