"""KL divergence of the classes of samples from those of training images, in nats; 0 if their shares are the same.

Σ q(c) log (q(c) / p(c)) with the shares q of samples and p of training images that the `classifier` network takes for
class c: the direction of Srivastava et al. 2017, "VEEGAN", section 4, in which a class without samples counts without
making it infinite. The classifier's errors are in both shares. Held-out images in the place of samples (`real` on the
card) show what their number alone makes of it, about (classes − 1) / 2N.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from raygen.errors import DataError
from raygen.metrics import AgainstTraining, Evidence, Measurement, _chunks, _classifier, _features
from raygen.models._base import Model, Sampler

DIRECTION = "min"
REQUIRES = Sampler


def measure(model: Model, evidence: Evidence) -> Measurement:
    """Divergence, 0 or more, infinite for a class of no training image; raises DataError without labels."""
    if not _classifier.has_classes(evidence.dataset):
        raise DataError(
            f"val_class_kl needs labels of two classes or more, below 10,000, in all parts of "
            f"{evidence.dataset.name} that this model was trained for; leave it out"
        )
    classifier = _classifier.trained_on(evidence.dataset)
    reference = counts(_on_device(model, evidence.fitted_images), classifier)
    made = counts(_features.samples(model, evidence.samples, evidence.seed), classifier)
    real = counts(_on_device(model, evidence.images), classifier)
    return Measurement(
        value=divergence(made, reference),
        details={
            "samples_of_each_class": made.tolist(),
            "training_images_of_each_class": reference.tolist(),
            "classifier_accuracy": classifier.accuracy,
        },
        against_training=AgainstTraining(
            samples=evidence.samples,
            train_images=len(evidence.fitted_images),
            real=divergence(real, reference),
            real_samples=len(evidence.images),
        ),
    )


def _on_device(model: Model, images: Tensor) -> Iterator[Tensor]:
    return (chunk for (chunk,) in _chunks.on_device(model.device, _features.CHUNK_IMAGES, images))


def counts(chunks: Iterable[Tensor], classifier: _classifier.Classifier) -> Tensor:
    """How many images [K] of chunks [B, C, H, W] in [0, 1] the classifier takes for each of its K classes."""
    found = torch.cat([classifier.classes(chunk) for chunk in chunks]).cpu()
    return found.bincount(minlength=classifier.network.head.out_features)


def divergence(counted: Tensor, reference: Tensor) -> float:
    """KL divergence in nats of the shares that counts [K] are of their sum from those of the reference's [K]."""
    shares, expected = (each.double() / each.sum() for each in (counted, reference))
    present = shares > 0
    return (shares[present] * (shares[present] / expected[present]).log()).sum().item()
