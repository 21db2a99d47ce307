from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raygen.data import Dataset
from raygen.metrics import _features, frechet
from raygen.metrics.frechet import distance, statistics
from raygen.models._base import ImageShape, Model, Phase
from raygen.models._options import ModelOptions

Gaussian = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def images(digits: Dataset) -> Tensor:
    return digits.train.images[:1600].float() / 255


def gaussian(features: int, rank: int, seed: int) -> Gaussian:
    """Mean and covariance, whose rank is no more than `rank`."""
    random = torch.Generator().manual_seed(seed)
    factor = torch.randn(features, rank, dtype=torch.float64, generator=random)
    return torch.randn(features, dtype=torch.float64, generator=random), factor @ factor.T


# Between Gaussians


def test_one_dimension() -> None:
    """(μ₁ - μ₂)² + (σ₁ - σ₂)²."""

    def normal(mean: float, sigma: float) -> Gaussian:
        return torch.tensor([mean]).double(), torch.tensor([[sigma**2]]).double()

    assert distance(normal(1, 2), normal(4, 7)) == pytest.approx(9 + 25)
    assert distance(normal(1, 0), normal(1, 3)) == pytest.approx(9)


def test_covariances_that_commute() -> None:
    """Then it is the distance of the means and of the roots of the eigenvalues."""
    rotation, _ = torch.linalg.qr(gaussian(5, 5, seed=0)[1])
    mean = torch.arange(5).double()
    first, second = torch.tensor([1.0, 4, 9, 16, 25]).double(), torch.tensor([4.0, 1, 9, 0, 36]).double()
    turned = [rotation @ torch.diag(values) @ rotation.T for values in (first, second)]
    expected = 5 * 2**2 + float((first.sqrt() - second.sqrt()).square().sum())
    assert distance((mean, turned[0]), (mean + 2, turned[1])) == pytest.approx(expected)


@given(features=st.integers(1, 24), data=st.data(), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_it_is_what_scipy_s_matrix_root_says(features: int, data: st.DataObject, seed: int) -> None:
    ranks = [data.draw(st.integers(features, 2 * features)) for _ in range(2)]
    first, second = (gaussian(features, rank, seed + index) for index, rank in enumerate(ranks))
    root = scipy.linalg.sqrtm(first[1].numpy() @ second[1].numpy())
    squared = (first[0] - second[0]).square().sum() + (first[1] + second[1]).trace() - 2 * np.trace(root).real
    assert distance(first, second) == pytest.approx(float(squared), rel=1e-5, abs=1e-5)


@given(
    features=st.integers(1, 24), ranks=st.tuples(st.integers(1, 24), st.integers(1, 24)), seed=st.integers(0, 2**32)
)
@settings(max_examples=60)
def test_it_is_a_distance(features: int, ranks: tuple[int, int], seed: int) -> None:
    """Also between covariances without full rank, such as those of fewer images than features."""
    first, second = (gaussian(features, rank, seed + index) for index, rank in enumerate(ranks))
    scale = float(first[1].trace() + second[1].trace())
    assert distance(first, first) == pytest.approx(0, abs=1e-6 * scale)
    there, back = distance(first, second), distance(second, first)
    assert there == pytest.approx(back, rel=1e-6, abs=1e-6 * scale)
    assert there >= float((first[0] - second[0]).square().sum()) * (1 - 1e-9) - 1e-6 * scale


def test_what_is_not_finite_has_no_distance() -> None:
    whole = gaussian(3, 3, seed=0)
    for broken in (torch.full((3, 3), math.nan).double(), torch.full((3, 3), math.inf).double()):
        assert math.isnan(distance((whole[0], broken), whole))
        assert math.isnan(distance(whole, (whole[0], broken)))


# Between images


def test_identical_sets_have_none(images: Tensor) -> None:
    assert distance(statistics(images), statistics(images.flip(0))) == pytest.approx(0, abs=1e-6)


def test_it_grows_with_noise(images: Tensor) -> None:
    real, noise = statistics(images), torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = [distance(statistics((images + std * noise).clamp(0, 1)), real) for std in (0, 0.1, 0.2, 0.4, 0.8)]
    assert found == sorted(found)
    assert found[1] > 10 * found[0] + 1e-3


def test_it_grows_as_modes_are_lost(images: Tensor) -> None:
    """A generator that makes few images, over and over, is worse the fewer they are."""
    real = statistics(images)
    found = [
        distance(statistics(images[:kinds].repeat(1600 // kinds, 1, 1, 1)), real) for kinds in (1600, 40, 10, 2, 1)
    ]
    assert found == sorted(found)
    assert found[2] > 10 * found[0] + 1e-3


def test_two_halves_of_real_images_are_near_and_white_noise_is_far(images: Tensor) -> None:
    halves = distance(statistics(images[:800]), statistics(images[800:]))
    noise = distance(statistics(torch.rand(800, 1, 8, 8)), statistics(images[800:]))
    assert noise > 20 * halves


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 9, 11), (3, 64, 64)])
def test_any_image_will_do(shape: tuple[int, int, int]) -> None:
    mean, covariance = statistics(torch.rand(20, *shape))
    assert (mean.shape, covariance.shape) == ((256,), (256, 256))
    assert covariance.isfinite().all()


def test_grey_is_colour_with_equal_channels(images: Tensor) -> None:
    grey, colour = statistics(images), statistics(images.expand(-1, 3, -1, -1))
    assert distance(grey, colour) == pytest.approx(0, abs=1e-6)


def test_the_features_never_change() -> None:
    """A reference: if this fails, values compare with none before, and RANDOM_VERSION must say so."""
    row, column = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    pictures = torch.stack([row, column, row * column, (row - column).abs()])[:, None]
    mean, covariance = statistics(pictures)
    assert mean[:4].tolist() == pytest.approx([1.07258027, -1.45552367, 0.50457273, -1.06349044], rel=1e-5)
    assert mean.square().sum().item() == pytest.approx(184.335530, rel=1e-5)
    assert covariance.trace().item() == pytest.approx(137.036001, rel=1e-5)
    assert _features.random_network().facts == {"version": 2}


# Of a model


class Copier(Model):
    """A sampler that returns given images one after another, whatever the latents."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(ModelOptions(name="copier"), ImageShape(1, 8, 8))
        self.images = nn.Parameter(images)
        self.latents = torch.zeros(0, self.latent_dim)

    def phases(self) -> list[Phase]:
        return []

    def sample(self, latents: Tensor) -> Tensor:
        self.latents = torch.cat([self.latents, latents])
        return self.images[len(self.latents) - len(latents) : len(self.latents)]


@torch.no_grad()
def test_a_model_is_judged_by_as_many_samples_as_there_are_images(images: Tensor) -> None:
    real, made = images[:600], images[600:1500]
    model = Copier(made)
    assert frechet.compute(model, real, 0) == pytest.approx(distance(statistics(made[:600]), statistics(real)))
    assert model.latents.shape == (600, model.latent_dim)
    assert (model.latents.mean().item(), model.latents.std().item()) == pytest.approx((0, 1), abs=0.05)
    assert frechet.compute(Copier(real), real, 0) == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_the_seed_decides_the_latents(images: Tensor) -> None:
    first, again, other = (Copier(images[:50]) for _ in range(3))
    for model, seed in ((first, 3), (again, 3), (other, 4)):
        frechet.compute(model, images[:50], seed)
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)


@torch.no_grad()
def test_other_images_are_not_taken_for_those_seen_before(images: Tensor) -> None:
    """What is kept of the held-out images between two evaluations must not outlive them."""
    near = frechet.compute(Copier(images[:50]), images[:50], 0)
    far = frechet.compute(Copier(images[:50]), 1 - images[:50], 0)
    assert far > near + 1
    assert frechet.compute(Copier(images[:50]), images[:50], 0) == near
