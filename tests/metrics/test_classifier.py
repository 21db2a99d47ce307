"""The classifier network, on digits: trained once, cached, never made of data without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raygen.data import Dataset, Part, cache
from raygen.errors import DataError
from raygen.metrics import _classifier, _features, frechet


@pytest.fixture
def few(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Zeros and ones only, and a cache of the test's own."""
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "cache"))
    assert digits.train.labels is not None
    assert digits.validation.labels is not None
    train, held_out = digits.train.labels < 2, digits.validation.labels < 2
    return Dataset(
        "few",
        Part(digits.train.images[train][:100], digits.train.labels[train][:100]),
        Part(digits.validation.images[held_out], digits.validation.labels[held_out]),
        test=None,
        digest="",
    )


def weights(classifier: _classifier.Classifier) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in classifier.network.state_dict().values()])


def test_it_reads_digits_it_has_not_seen(digits: Dataset) -> None:
    classifier = _classifier.trained_on(digits)
    assert classifier.accuracy > 0.95
    right = classifier.classes(digits.validation.images.float() / 255) == digits.validation.labels
    assert right.double().mean().item() == classifier.accuracy
    facts = classifier.as_features().facts
    assert (facts["trained_on"], facts["held_out_accuracy"]) == ("digits", classifier.accuracy)


def test_it_is_trained_once_and_alike(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    first = _classifier.trained_on(few)
    assert torch.equal(torch.get_rng_state(), state)
    with monkeypatch.context() as patch:
        patch.setattr(_classifier, "MOST_EPOCHS", 1)  # training anew would give other weights
        again = _classifier.trained_on(few)
    assert torch.equal(weights(again), weights(first))
    assert again.as_features().facts == first.as_features().facts
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "other"))
    torch.manual_seed(5)
    with torch.no_grad():
        assert torch.equal(weights(_classifier.trained_on(few)), weights(first))


@pytest.mark.parametrize("keep_bytes", [0, 100, 5000])
def test_a_damaged_file_is_trained_again(few: Dataset, keep_bytes: int) -> None:
    first = _classifier.trained_on(few)
    [path] = (cache.folder() / "classifiers").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:keep_bytes])
    assert torch.equal(weights(_classifier.trained_on(few)), weights(first))


def test_other_labels_are_another_classifier(few: Dataset) -> None:
    first = _classifier.trained_on(few)
    assert few.train.labels is not None
    swapped = replace(few, train=Part(few.train.images, 1 - few.train.labels))
    assert not torch.equal(weights(_classifier.trained_on(swapped)), weights(first))


def test_data_without_classes_are_refused(few: Dataset) -> None:
    with pytest.raises(DataError, match="few has no labels to train the classifier network on: use --network random"):
        _classifier.trained_on(replace(few, train=Part(few.train.images)))
    assert few.train.labels is not None
    for label in (0, 20_000):
        only = torch.full_like(few.train.labels, label)
        with pytest.raises(DataError, match="labels of 2 classes or more, below 10000"):
            _classifier.trained_on(replace(few, train=Part(few.train.images, only)))


def test_a_cache_that_cannot_be_written(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set RAYGEN_CACHE to another folder"):
        _classifier.trained_on(few)


def test_its_features_tell_classes_apart(digits: Dataset) -> None:
    """Zeros are nearer to other zeros than to ones, by more than over the random network."""
    assert digits.train.labels is not None
    images = digits.train.images.float() / 255
    zeros, ones = images[digits.train.labels == 0], images[digits.train.labels == 1]
    ratios = []
    for network in (_classifier.trained_on(digits).as_features(), _features.random_network()):
        apart = frechet.compare(_features.features(zeros, network), _features.features(ones, network))
        alike = frechet.compare(_features.features(zeros[:80], network), _features.features(zeros[80:], network))
        ratios.append(apart / alike)
    assert ratios[0] > 2 * ratios[1]
