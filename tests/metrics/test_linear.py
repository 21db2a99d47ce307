"""Linear probes, and PCA as a baseline, against scikit-learn's own and where the answer is known."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from raygen import metrics
from raygen.data import Dataset
from raygen.errors import DataError
from raygen.metrics import Evidence, _pca, linear_probe, mse, psnr, ssim
from raygen.models._base import ImageShape, Model, Phase
from raygen.models._options import ModelOptions
from tests.judged import noise


class Encoding(Model):
    """A reconstructor whose latents are a given function of an image's pixels [B, 64]; it decodes to grey."""

    def __init__(self, latents: Any, latent_dim: int) -> None:
        super().__init__(ModelOptions(name="encoding", latent_dim=latent_dim), ImageShape(1, 8, 8))
        self.latents = latents

    def phases(self) -> list[Phase]:
        return []

    def encode(self, images: Tensor) -> Tensor:
        return self.latents(images.flatten(1))  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        return torch.full((len(latents), 1, 8, 8), 0.5)


def first(pixels: Tensor) -> Tensor:
    return pixels[:, 20:26] * torch.tensor([1.0, 10, 100, 0.1, 1, 1])


def inverted(images: Tensor, seed: int) -> Tensor:
    return 1 - images


def evidence(digits: Dataset, corrupt: Any = None) -> Evidence:
    part = digits.validation
    given = {} if corrupt is None else {"corrupt": corrupt}
    return Evidence(images=part.images.float() / 255, seed=0, dataset=digits, labels=part.labels, **given)


def flat(images: Tensor) -> NDArray[np.float32]:
    return (images.float() / 255).flatten(1).numpy()


def by_hand(digits: Dataset, *latents: NDArray[Any]) -> float:
    seen, held_out = ((each - latents[0].mean(axis=0)) / latents[0].std(axis=0) for each in latents)
    assert digits.train.labels is not None
    assert digits.validation.labels is not None
    probe = LogisticRegression(max_iter=1000).fit(seen, digits.train.labels.numpy())
    return float((probe.predict(held_out) == digits.validation.labels.numpy()).mean())


def test_the_probe_is_scikit_learn_s_over_latents_of_one_scale(digits: Dataset) -> None:
    measured = linear_probe.measure(Encoding(first, 6), evidence(digits))
    latents = [first(torch.from_numpy(flat(part.images))).numpy() for part in (digits.train, digits.validation)]
    assert measured.value == pytest.approx(by_hand(digits, *latents), abs=0.006)
    assert 0.3 < measured.value < 0.9
    assert measured.baseline is not None
    fitted = PCA(6).fit(flat(digits.train.images))
    components = [fitted.transform(flat(part.images)) for part in (digits.train, digits.validation)]
    assert measured.baseline.name == "PCA"
    assert measured.baseline.value == pytest.approx(by_hand(digits, *components), abs=0.006)
    assert measured.baseline.fitted_on == measured.details["fitted_on"] == 1437


def test_latents_that_tell_nothing_are_guesses(digits: Dataset) -> None:
    assert linear_probe.measure(Encoding(lambda pixels: 0 * first(pixels), 6), evidence(digits)).value < 0.2


def test_latents_that_are_not_finite_have_no_accuracy(digits: Dataset) -> None:
    measured = linear_probe.measure(Encoding(lambda pixels: first(pixels) / 0, 6), evidence(digits))
    assert math.isnan(measured.value)
    assert measured.baseline is not None
    assert measured.baseline.value > 0.7


def test_the_probe_sees_what_the_model_is_given(digits: Dataset) -> None:
    """Latents of corrupted training images and of corrupted held-out ones: inverting both alike loses nothing."""
    seen = []
    model = Encoding(lambda pixels: seen.append(pixels) or first(pixels), 6)
    inverted_value = linear_probe.measure(model, evidence(digits, inverted)).value
    expected = 1 - torch.from_numpy(np.concatenate([flat(digits.train.images), flat(digits.validation.images)]))
    torch.testing.assert_close(torch.cat(seen), expected)
    assert inverted_value == pytest.approx(linear_probe.measure(model, evidence(digits)).value, abs=0.02)


def test_training_images_have_noise_of_their_own(digits: Dataset) -> None:
    given = evidence(digits, lambda images, seed: torch.full_like(images, seed))
    assert not torch.equal(given.fitted_inputs[:180], given.inputs)


@pytest.mark.parametrize("labels", [None, torch.zeros(10, dtype=torch.int64)])
def test_it_needs_classes(labels: Tensor | None) -> None:
    images = torch.rand(10, 1, 8, 8)
    given = Evidence(images=images, seed=0, dataset=noise(images, labels), labels=labels)
    with pytest.raises(DataError, match=r"val_linear_probe needs labels of two classes or more, .*; leave it out"):
        linear_probe.measure(Encoding(first, 6), given)


# PCA beside reconstructions


@pytest.mark.parametrize("corrupt", [None, inverted])
def test_pca_is_scikit_learn_s_cut_off_at_black_and_white(digits: Dataset, corrupt: Any) -> None:
    """Fitted on clean images, and given what the model is given."""
    fitted = PCA(5).fit(flat(digits.train.images))
    clean = flat(digits.validation.images)
    made = fitted.inverse_transform(fitted.transform(clean if corrupt is None else 1 - clean)).clip(0, 1)
    errors = ((made - clean) ** 2).mean(axis=1)
    pair = (torch.from_numpy(each).reshape(-1, 1, 8, 8) for each in (made, clean))
    expected = {
        mse: errors.mean(),
        psnr: (-10 * np.log10(errors)).mean(),
        ssim: ssim.similarities(*pair).mean(),
    }
    given = evidence(digits, corrupt)
    for metric, value in expected.items():
        measured = metric.measure(Encoding(first, 5), given)
        assert measured.baseline is not None
        assert measured.baseline.value == pytest.approx(float(value), rel=1e-3, abs=1e-6)
        assert measured.value == metric.compute(Encoding(first, 5), given.images, 0)


def test_as_many_components_as_pixels_lose_nothing(digits: Dataset) -> None:
    baseline = mse.measure(Encoding(first, 64), evidence(digits)).baseline
    assert baseline is not None
    assert baseline.value < 1e-9
    assert mse.measure(Encoding(first, 65), evidence(digits)).baseline is None
    few = noise(torch.rand(30, 1, 8, 8))
    given = Evidence(images=few.train.images.float() / 255, seed=0, dataset=few)
    assert mse.measure(Encoding(first, 31), given).baseline is None
    assert mse.measure(Encoding(first, 30), given).baseline is not None


def test_pca_is_fitted_once_for_all_metrics_on_some_of_the_images(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, fit = [], PCA.fit
    monkeypatch.setattr(PCA, "fit", lambda self, rows: fits.append(len(rows)) or fit(self, rows))
    monkeypatch.setattr(metrics, "FITTED_IMAGES", 700)
    given = evidence(digits)
    for metric in (mse, psnr, ssim):
        assert metric.measure(Encoding(first, 6), given).baseline == _pca.baseline(
            lambda linear, metric=metric: metric.compute(linear, given.images, 0),  # type: ignore[misc]
            Encoding(first, 6),
            given,
        )
    assert fits == [700]


def test_large_images_are_fitted_on_fewer(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FITTED_PIXELS", 64 * 90 + 10)
    assert evidence(digits).fitted_images.shape == (90, 1, 8, 8)
    measured = linear_probe.measure(Encoding(first, 6), evidence(digits))
    assert measured.details["fitted_on"] == 90


def test_images_that_are_all_the_same_have_a_baseline_too(digits: Dataset) -> None:
    same = noise(torch.full((60, 1, 8, 8), 0.5))
    given = Evidence(images=same.train.images.float() / 255, seed=0, dataset=same)
    baseline = mse.measure(Encoding(first, 6), given).baseline
    assert baseline is not None
    assert baseline.value < 1e-9


def test_nothing_of_an_evaluation_outlives_it(digits: Dataset) -> None:
    model, given = Encoding(first, 6), evidence(digits)
    mse.measure(model, given)
    alive = [weakref.ref(given), weakref.ref(model), weakref.ref(given.fitted_images)]
    del model, given
    gc.collect()
    assert not any(each() is not None for each in alive)
