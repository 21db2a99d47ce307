"""Anomaly detection: area under the ROC curve of the anomaly score, images of one class being normal.

The chance that an image of another class scores higher than one of the normal class (Hanley & McNeil 1982, "The
meaning and use of the area under a ROC curve"); 0.5 is guessing. The score is the negative ELBO, or the
reconstruction error where a model has no ELBO. It says something of models trained on the normal class only
(`data.normal_class`).
"""

from __future__ import annotations

import math

from torch import Tensor

from raygen.errors import DataError
from raygen.metrics import Evidence, Measurement, _anomaly
from raygen.models._base import Model, Reconstructor

DIRECTION = "max"
REQUIRES = Reconstructor
ALL_CLASSES = True


def measure(model: Model, evidence: Evidence) -> Measurement:
    """Area in [0, 1]; raises DataError without labels, a normal class or images of both kinds."""
    if evidence.labels is None:
        raise DataError(f"{evidence.dataset.name} has no labels, which val_anomaly_auroc needs; leave it out")
    if evidence.normal_class is None:
        raise DataError("val_anomaly_auroc needs the class that is normal: add --normal-class 0")
    anomalous = (evidence.labels != evidence.normal_class).cpu()
    if anomalous.all() or not anomalous.any():
        classes = ", ".join(map(str, evidence.labels.unique().tolist()[:20]))
        raise DataError(
            f"--normal-class {evidence.normal_class}: the held-out images of {evidence.dataset.name} must be of this "
            f"and of other classes; theirs are {classes}"
        )
    scores = _anomaly.scores(model, evidence.images, evidence.seed)
    details = {
        "score": _anomaly.score_name(model),
        "normal_class": evidence.normal_class,
        "normal_images": int((~anomalous).sum()),
        "anomalous_images": int(anomalous.sum()),
    }
    return Measurement(value=area(scores, anomalous), details=details)


def area(scores: Tensor, positive: Tensor) -> float:
    """Area in [0, 1] under the ROC curve of scores [N] for positive [N] (bool); ties count half; NaN if a score is."""
    if not scores.isfinite().all():
        return math.nan
    _, positions, counts = scores.unique(return_inverse=True, return_counts=True)
    last_rank = counts.cumsum(dim=0).double()
    ranks = (last_rank - (counts.double() - 1) / 2)[positions]
    hits, misses = int(positive.sum()), int((~positive).sum())
    return (float(ranks[positive].sum()) - hits * (hits + 1) / 2) / (hits * misses)
