"""Epochs in which every class comes equally often."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raygen import data
from raygen.data import DataOptions, Dataset
from raygen.errors import DataError, SpecError
from raygen.plan import Plan
from raygen.preparation import Prepared, check_data
from raygen.spec import TrainSpec
from raygen.training import order
from raygen.training.batches import Batches
from raygen.training.distributed import ALONE, Group
from raygen.training.loop import fit
from tests.batches import batches_from

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
uneven_labels = st.lists(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 1, 7, 300]), min_size=1, max_size=120).map(torch.tensor)


def drawn(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    return order.balanced(order.by_class(labels), count, torch.Generator().manual_seed(seed))


def batches_of(labels: Tensor, group: Group = ALONE, **settings: Any) -> Batches:
    """Batches of images that are filled with their own number."""
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    return Batches(images, TrainSpec.create("ae", {"data.balance": True, **settings}), group, labels=labels)


def numbers(batches: Batches, step: int = 0) -> list[list[int]]:
    return [(batch.images[:, 0, 0, 0] * 255).round().int().tolist() for batch in batches_from(batches, step)]


@given(labels=uneven_labels, count=st.integers(1, 300), seed=st.integers(0, 99))
def test_classes_and_within_them_images_come_equally_often(labels: Tensor, count: int, seed: int) -> None:
    """To within one."""
    positions = drawn(labels, count, seed)
    assert len(positions) == count
    times = positions.bincount(minlength=len(labels))
    shares = []
    for label in labels.unique():
        own = times[labels == label]
        assert own.max() - own.min() <= 1
        shares.append(own.sum().item())
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1
    assert torch.equal(drawn(labels, count, seed), positions)


def test_what_comes_once_more_and_the_order_are_drawn() -> None:
    labels = torch.tensor([0] * 90 + [1] * 7 + [2] * 3)
    orders = [drawn(labels, 100, seed) for seed in range(60)]
    assert len({tuple(positions.tolist()) for positions in orders}) == 60
    larger = [labels[positions].bincount().argmax().item() for positions in orders]
    assert set(larger) == {0, 1, 2}, "of 100 in three classes one has 34"
    assert torch.stack(orders).unique().tolist() == list(range(100)), "no image is left out for ever"
    first = [labels[positions[:50]].bincount(minlength=3) for positions in orders]
    assert torch.stack(first).float().mean(dim=0).tolist() == pytest.approx([50 / 3] * 3, abs=1.5), "mixed"


@given(labels=uneven_labels.filter(lambda labels: len(labels) >= 10), epoch=st.integers(0, 3))
def test_an_epoch_is_as_long_as_without_and_shared_by_processes(labels: Tensor, epoch: int) -> None:
    settings = {"training.batch_size": 10}
    alone = batches_of(labels, **settings)
    assert alone.per_epoch == len(labels) // 10
    first = epoch * alone.per_epoch
    whole = numbers(alone, first)
    assert [len(batch) for batch in whole] == [10] * alone.per_epoch
    times = labels[torch.tensor(whole).flatten()].bincount()[labels.unique()]
    assert times.max() - times.min() <= 1
    ranks = [numbers(batches_of(labels, Group(rank=rank, world_size=3), **settings), first) for rank in range(3)]
    assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == whole
    assert numbers(alone, first + alone.per_epoch - 1) == whole[-1:], "as a training that goes on"


def uneven(folder: Path, *, labelled: bool = True) -> str:
    """A source whose class 1 has a tenth of its images."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
    labels = (np.arange(300) % 10 == 0).astype(np.int64)
    np.savez(folder / "uneven.npz", images=images, **({"labels": labels} if labelled else {}))
    return str(folder / "uneven.npz")


def test_a_training_draws_balanced_batches(tmp_path: Path) -> None:
    """So it ends with other weights than one that is not balanced, though it takes as many steps."""
    settings = {"data.source": uneven(tmp_path), "training.batch_size": 20, "training.epochs": 1}
    spec = TrainSpec.create("ae", {**settings, "data.balance": True})
    check_data(Prepared(spec, PLAN))
    dataset = data.load(spec.data)
    [balanced] = fit(spec, dataset, tmp_path / "balanced")
    [plain] = fit(spec.with_settings({"data.balance": False}), dataset, tmp_path / "plain")
    assert balanced.step == plain.step == 12
    assert balanced.metrics != plain.metrics


def test_images_without_classes_cannot_be_balanced(tmp_path: Path) -> None:
    spec = TrainSpec.create("ae", {"data.source": uneven(tmp_path, labelled=False), "data.balance": True})
    with pytest.raises(DataError, match=r"data\.balance: uneven has no classes to draw equally often; leave it out"):
        check_data(Prepared(spec, PLAN))
    with pytest.raises(DataError, match="no classes to draw equally often"):
        next(fit(spec, data.load(spec.data), tmp_path / "checkpoint"))


def test_one_class_cannot_be_balanced() -> None:
    with pytest.raises(SpecError, match=r"data\.balance: with data\.normal_class there is one class alone"):
        TrainSpec.create("ae", {"data.balance": True, "data.normal_class": 0})


def test_what_judges_is_not_balanced(digits: Dataset) -> None:
    assert data.load(DataOptions(balance=True)).digest == digits.digest
    assert torch.equal(data.load(DataOptions(balance=True)).validation.images, digits.validation.images)
