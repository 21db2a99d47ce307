"""Modes on stacked digits: of generators whose modes are known."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from raygen import data
from raygen.data import DataOptions, Dataset
from raygen.errors import DataError
from raygen.metrics import Evidence, _classifier, modes
from tests.judged import Repeating, noise


@pytest.fixture(scope="module")
def stacked() -> Dataset:
    return data.load(DataOptions(source="stacked-digits"))


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [0.7, 0.2, 0.1]])
def test_kl_is_scipy_s(shares: list[float]) -> None:
    found = torch.cat([torch.full((round(1000 * share),), 37 * mode) for mode, share in enumerate(shares)])
    covered, kl = modes.coverage(found)
    assert covered == len(shares)
    assert kl == pytest.approx(scipy.stats.entropy([*shares, *[0] * (1000 - len(shares))], [0.001] * 1000))


def test_all_modes_alike_are_uniform() -> None:
    assert modes.coverage(torch.arange(1000).repeat(3)) == (1000, pytest.approx(0, abs=1e-9))
    assert modes.coverage(torch.full((50,), 999)) == (1, pytest.approx(math.log(1000)))


@torch.no_grad()
def test_the_classifier_reads_three_digits(digits: Dataset, stacked: Dataset) -> None:
    found = modes.modes(stacked.train.images[:1000].float() / 255, _classifier.trained_on(digits))
    assert stacked.train.labels is not None
    assert (found == stacked.train.labels[:1000]).double().mean() > 0.9


@torch.no_grad()
def test_a_collapsed_generator_covers_few(stacked: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "SAMPLES", 3000)
    images = stacked.train.images[:3000].float() / 255
    evidence = Evidence(images=images[:100], seed=0, dataset=stacked)
    every, few = (modes.measure(Repeating(made), evidence) for made in (images, images[:7]))
    assert every.value > 900
    assert 1 < few.value <= 7
    assert few.details["kl_to_uniform_nats"] == pytest.approx(math.log(1000 / 7), abs=0.4)
    assert every.details["kl_to_uniform_nats"] < 0.5
    assert every.details["samples"] == 3000
    assert every.details["digit_accuracy"] > 0.95


def test_other_data_have_no_such_modes() -> None:
    images = torch.rand(10, 3, 8, 8)
    evidence = Evidence(images=images, seed=0, dataset=noise(images))
    with pytest.raises(DataError, match="val_modes counts the modes of stacked-digits, not of noise"):
        modes.measure(Repeating(evidence.images), evidence)
