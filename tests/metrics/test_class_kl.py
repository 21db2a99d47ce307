"""Class shares of samplers that are known, and the divergence against SciPy's."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from raygen.data import Dataset
from raygen.errors import DataError
from raygen.metrics import Evidence, Measurement, class_kl
from tests.judged import Repeating, noise

counts = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=12)


@given(counts)
def test_the_divergence_is_scipy_s(pairs: list[tuple[int, int]]) -> None:
    made, reference = zip(*pairs, strict=True)
    if not sum(made) or not sum(reference):
        return
    found = class_kl.divergence(torch.tensor(made), torch.tensor(reference))
    expected = scipy.stats.entropy(made, reference)
    assert found == pytest.approx(float(expected), abs=1e-9)


def measured(digits: Dataset, *classes: int) -> Measurement:
    """What a sampler has whose samples are the test images of these classes."""
    assert digits.test is not None
    assert digits.test.labels is not None
    shown = (digits.test.labels[:, None] == torch.tensor(classes)).any(dim=1)
    images = digits.validation.images.float() / 255
    made = Repeating(digits.test.images[shown].float() / 255)
    return class_kl.measure(made, Evidence(images=images, seed=0, dataset=digits, samples=int(shown.sum())))


@torch.no_grad()
def test_a_class_that_is_missing_shows(digits: Dataset) -> None:
    every, without_four, single = (measured(digits, *classes) for classes in (range(10), {*range(10)} - {4}, [7]))
    assert every.against_training is not None
    assert every.value < 0.06
    assert every.against_training.real < 0.06
    assert without_four.value - every.value == pytest.approx(math.log(10 / 9), abs=0.03)
    assert single.value == pytest.approx(math.log(10), abs=0.1)
    assert without_four.details["samples_of_each_class"][4] <= 1
    assert sum(without_four.details["training_images_of_each_class"]) == len(digits.train.images)
    assert every.details["classifier_accuracy"] > 0.95
    against = without_four.against_training
    assert against is not None
    assert (against.train_images, against.real_samples) == (len(digits.train.images), len(digits.validation.images))


@pytest.mark.parametrize("labels", [None, torch.zeros(10, dtype=torch.int64)])
def test_it_needs_classes(labels: torch.Tensor | None) -> None:
    images = torch.rand(10, 1, 8, 8)
    with pytest.raises(DataError, match=r"val_class_kl needs labels of two classes or more, .*; leave it out"):
        class_kl.measure(Repeating(images), Evidence(images=images, seed=0, dataset=noise(images, labels)))
