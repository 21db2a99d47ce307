"""Whether images fit beside a model, and what is said if memory is not enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raygen.data import Dataset
from raygen.errors import OutOfMemoryError
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec
from raygen.training import memory
from raygen.training.batches import Batches
from raygen.training.distributed import ALONE, CPU
from raygen.training.loop import fit
from raygen.training.step import Training, build_model

GB = 10**9
amounts = st.integers(0, 200 * GB)


@given(images=amounts, training=amounts, free=amounts)
def test_images_lie_on_the_device_only_beside_the_training(images: int, training: int, free: int) -> None:
    found = memory.placed("auto", images, training, free)
    if found.on_device:
        assert images + training <= free
    else:
        assert images + memory.MARGIN * training > free
    assert ("do not fit" in found.words) != found.on_device


@given(images=amounts, training=amounts, free=amounts)
def test_what_a_person_says_is_done(images: int, training: int, free: int) -> None:
    assert memory.placed("device", images, training, free).on_device
    assert not memory.placed("host", images, training, free).on_device


def test_what_does_not_fit_is_told_with_its_sizes() -> None:
    assert memory.placed("auto", 12 * GB, 3 * GB, 8 * GB).words == (
        "images (12.0 GB) stay on the host: they do not fit beside a training that takes 3.0 GB, of 8.0 GB free"
    )


@pytest.mark.parametrize(
    ("filled", "advice"),
    [
        ({"images_bytes": 60 * GB}, "training images 60.0 GB"),
        ({"images_bytes": 60 * GB}, "set training.images_on=host"),
        ({"others_bytes": 60 * GB}, "wait for them, or let fewer trials share the GPU"),
        ({"model_bytes": 60 * GB}, "lower the model's size"),
        ({"images_bytes": 1 * GB}, r"lower training.batch_size \(512\)"),
    ],
)
def test_what_fills_the_memory_is_what_to_lower(filled: dict[str, int], advice: str) -> None:
    parts = {"images_bytes": 0, "others_bytes": 0, "model_bytes": 2 * GB, **filled}
    with pytest.raises(OutOfMemoryError, match=advice):
        raise OutOfMemoryError(memory.told(name="NVIDIA X", total_bytes=80 * GB, batch_size=512, **parts))


MODELS: dict[str, dict[str, Any]] = {
    "vae": {},
    "gan": {"model.r1": 1.0, "model.spectral_norm": True},
    "aegan": {},
    "vaegan": {"training.precision": "bf16"},
}


@pytest.mark.parametrize("model", MODELS)
def test_a_rehearsal_changes_nothing(model: str, digits: Dataset) -> None:
    """Not even the singular vectors of spectral norm, which follow from the number of passes."""
    spec = TrainSpec.create(model, {"model.width": 8, "training.batch_size": 10, **MODELS[model]})
    batches = Batches(digits.train.images, spec, ALONE)
    training = Training(spec, build_model(spec, ImageShape(*digits.shape), CPU), steps=10, group=ALONE)
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    training.rehearse(batches.batch(batches.blank(), batches.noise(step=0)), training.phases)
    assert all(torch.equal(before[name], tensor) for name, tensor in training.model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in training.model.parameters())
    assert not any(optimizer.state for optimizer in training.optimizers.values())


def test_the_machine_s_own_memory(digits: Dataset, path: Path) -> None:
    """What torch says if the host has no more."""
    spec = TrainSpec.create("vae", {"model.hidden": [2**40]})
    with pytest.raises(OutOfMemoryError, match=r"out of memory; lower the batch size \(128\) or the model's size"):
        list(fit(spec, digits, path))
