"""Images on the device or on the host, in a device that is too small for all, or for the training alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raygen.data import Dataset, Part
from raygen.errors import OutOfMemoryError
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.loop import fit
from tests.checkpoints import differing
from tests.device import DEVICE
from tests.gpu.trainings import GROUP, digits, killed_from, spec_of, train

MIB = 2**20
LARGE_BYTES = 1024 * MIB
"""Of images that do not fit into the small device."""


@pytest.mark.parametrize("kind", ["ae", "vae", "gan", "aegan"])
def test_images_on_the_device_and_on_the_host_give_the_same_bits(kind: str, tmp_path: Path) -> None:
    for place in ("device", "host"):
        train(spec_of(kind, **{"training.images_on": place}), tmp_path / place)
    assert differing(*(checkpoint.read_weights(tmp_path / place) for place in ("device", "host"))) == []


def test_a_training_from_the_host_may_be_killed_anywhere(tmp_path: Path) -> None:
    spec = spec_of("gan", **{"training.images_on": "host"})
    train(spec, tmp_path / "undisturbed")
    for step in (2, 30, 50):
        train(spec, tmp_path / "killed", on_pace=killed_from(step))
    train(spec, tmp_path / "killed")
    assert differing(*(checkpoint.read_weights(tmp_path / name) for name in ("undisturbed", "killed"))) == []


def test_it_is_told_where_images_are(path: Path) -> None:
    assert "images" in set_up(spec_of("vae"), digits(), path, memory_share=1.0)


@pytest.mark.cuda
def test_images_that_do_not_fit_beside_the_model_stay_on_the_host(path: Path) -> None:
    """The share of a trial that has the device with others is a small device."""
    share = LARGE_BYTES / 2 / torch.cuda.get_device_properties(DEVICE).total_memory
    assert "on the host" in set_up(large_spec(), large_images(), path, memory_share=share)


@pytest.mark.cuda
def test_images_that_fit_lie_on_the_device(path: Path) -> None:
    assert "on the device" in set_up(large_spec(), large_images(), path, memory_share=1.0)


@pytest.mark.cuda
def test_images_that_fill_the_device_are_named(small_device: None, path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"^out of memory on .*training\.images_on=host"):
        list(fit(large_spec(**{"training.images_on": "device"}), large_images(), path, group=GROUP))


@pytest.mark.cuda
def test_what_else_fills_the_device_is_named(small_device: None, path: Path) -> None:
    spec = large_spec(**{"model.hidden": [8000, 8000]})
    with pytest.raises(OutOfMemoryError, match=r"^out of memory on .*lower (the model's size|training\.batch_size)"):
        list(fit(spec, large_images(), path, group=GROUP))


@pytest.fixture
def small_device() -> Iterator[None]:
    """This process gets no more than half of what the large images take."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(LARGE_BYTES / 2 / total, DEVICE)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    torch.cuda.empty_cache()


def set_up(spec: TrainSpec, dataset: Dataset, path: Path, *, memory_share: float) -> str:
    """What is told of a training when it has been set up; it is killed after its first step."""
    told: list[str] = []
    group = replace(GROUP, memory_share=memory_share)
    train(spec, path, dataset=dataset, group=group, on_pace=killed_from(1), on_set_up=told.append)
    return "; ".join(told)


def large_spec(**settings: object) -> TrainSpec:
    return TrainSpec.create("vae", {"model.hidden": [64], "training.epochs": 1, **settings})


def large_images() -> Dataset:
    """Black images of 64×64; a page that nobody writes to takes no memory of the host."""
    pixels = torch.zeros(LARGE_BYTES // 64**2, 1, 64, 64, dtype=torch.uint8)
    return Dataset("black", Part(pixels), Part(pixels[:100]), None, "")
