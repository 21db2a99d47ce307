"""Samples and their nearest training images: of samplers that copy, and against a search by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raygen.data import Dataset
from raygen.metrics import Evidence, _nearest, nearest_mse, nearest_ssim, ssim
from tests.judged import Repeating, noise

RANDOM = torch.Generator().manual_seed(0)
TRAIN = (255 * torch.rand(303, 3, 9, 8, generator=RANDOM)).round() / 255
OTHERS = torch.rand(40, 3, 9, 8, generator=RANDOM)
HELD_OUT = torch.rand(30, 3, 9, 8, generator=RANDOM)


def evidence(samples: int = 40) -> Evidence:
    return Evidence(images=HELD_OUT, seed=0, dataset=noise(TRAIN), samples=samples)


def by_hand(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The nearest training row of each image and its mean squared error, one pair after another in float64."""
    errors = [[((a - b) ** 2).mean() for b in TRAIN.double().numpy()] for a in images.double().numpy()]
    return np.argmin(errors, axis=1), np.min(errors, axis=1)


@pytest.mark.parametrize("chunk_images", [1, 100, 303, 2000])
def test_the_search_is_exact(chunk_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nearest, "CHUNK_IMAGES", chunk_images)
    rows, _ = by_hand(OTHERS)
    found = _nearest.nearest(OTHERS, noise(TRAIN).train.images)
    assert found.tolist() == rows.tolist()


@torch.no_grad()
def test_values_are_those_of_the_pairs() -> None:
    sampler, given = Repeating(OTHERS), evidence()
    mse, similarity = (metric.measure(sampler, given) for metric in (nearest_mse, nearest_ssim))
    rows, errors = by_hand(OTHERS)
    real_rows, real_errors = by_hand(HELD_OUT)
    assert mse.value == pytest.approx(errors.mean(), rel=1e-5)
    assert mse.details["closest_5_percent"] == pytest.approx(np.quantile(errors, 0.05), rel=1e-5)
    assert mse.details["closest_5_percent_of_real"] == pytest.approx(np.quantile(real_errors, 0.05), rel=1e-5)
    of_samples, of_real = ssim.similarities(OTHERS, TRAIN[rows]), ssim.similarities(HELD_OUT, TRAIN[real_rows])
    assert similarity.value == pytest.approx(of_samples.mean().item(), abs=1e-6)
    assert similarity.details["closest_5_percent"] == pytest.approx(np.quantile(of_samples, 0.95), abs=1e-6)
    for measured, real in ((mse, real_errors.mean()), (similarity, of_real.mean().item())):
        against = measured.against_training
        assert against is not None
        assert against.real == pytest.approx(real, rel=1e-5)
        assert (against.samples, against.train_images, against.real_samples) == (40, 303, 30)


@torch.no_grad()
def test_copies_are_told_from_what_no_training_has_seen(digits: Dataset) -> None:
    assert digits.test is not None
    held_out, train, fresh = (part.images.float() / 255 for part in (digits.validation, digits.train, digits.test))
    for metric, copied, sign in ((nearest_mse, 0, 1), (nearest_ssim, 1, -1)):
        copying, other = (
            metric.measure(Repeating(made), Evidence(images=held_out, seed=0, dataset=digits, samples=180))
            for made in (train, fresh)
        )
        assert copying.against_training is not None
        real = copying.against_training.real
        assert copying.value == pytest.approx(copied, abs=1e-5)
        assert sign * real > sign * copied
        assert abs(real - copied) > 5 * abs(other.value - real), "fresh images are as far as held-out ones"


@torch.no_grad()
def test_a_few_copies_show_in_the_closest() -> None:
    some = torch.cat([OTHERS[:36], TRAIN[:4]])
    for metric, copied in ((nearest_mse, 0), (nearest_ssim, 1)):
        details = metric.measure(Repeating(some), evidence()).details
        assert details["closest_5_percent"] == pytest.approx(copied, abs=1e-6)
        assert abs(details["closest_5_percent_of_real"] - copied) > 0.05


@torch.no_grad()
def test_so_many_samples_and_images_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nearest, "MOST_SAMPLES", 20)
    against = nearest_mse.measure(Repeating(OTHERS), evidence(samples=300)).against_training
    assert against is not None
    assert (against.samples, against.real_samples, against.train_images) == (20, 20, 303)


@torch.no_grad()
def test_the_search_is_made_once_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    searches, nearest = [], _nearest.nearest
    monkeypatch.setattr(_nearest, "nearest", lambda *given: searches.append(len(given[0])) or nearest(*given))
    sampler, given = Repeating(OTHERS), evidence()
    for metric in (nearest_mse, nearest_ssim):
        metric.measure(sampler, given)
    assert searches == [40, 30]
