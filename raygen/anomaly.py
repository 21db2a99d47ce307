"""Anomalies by their scores: a threshold with a known rate of false alarms, a table, and a picture of the worst."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from raygen import files, inspection, pictures
from raygen.data import Dataset
from raygen.errors import RunError, SpecError
from raygen.inspection import Selection, reconstruct, select
from raygen.results import TrainedModel

WORST_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The score beyond which an image counts as an anomaly, and the number of normal images that it follows from."""

    value: float
    images: int

    def is_exceeded(self, scores: Tensor) -> Tensor:
        """Which of scores [N] lie beyond, bool [N]; what is not finite does."""
        return ~(scores <= self.value)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How strange each of the images `chosen` is: `values` [N] called `name`, higher for stranger ones."""

    name: str
    values: Tensor
    chosen: Selection
    threshold: Threshold | None = None

    @property
    def beyond_threshold(self) -> Tensor:
        """Which images count as anomalies, bool [N]: none if there is no threshold."""
        if self.threshold is None:
            return torch.zeros(len(self.values), dtype=torch.bool)
        return self.threshold.is_exceeded(self.values)

    def save(self, path: Path) -> None:
        """Write a CSV line for each image: position in the source, name, label, part, score, what it means.

        There are names if the source is a folder, in the bytes of the file system, and labels if it has classes.
        The last column is there if there is a threshold: 1 beyond it, else 0. Raises RunError if it cannot write.
        """
        chosen = self.chosen
        known = {"name": chosen.names(), "label": None if chosen.labels is None else chosen.labels.tolist()}
        columns = {
            "index": chosen.positions.tolist(),
            **{title: column for title, column in known.items() if column is not None},
            "split": chosen.part_names,
            self.name: self.values.tolist(),
        }
        if self.threshold is not None:
            columns["beyond_threshold"] = self.beyond_threshold.int().tolist()
        with (
            files.whole(path) as partial,
            partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            # Python before 3.13 quotes no carriage return otherwise, which a name may hold.
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def score(
    trained: TrainedModel, chosen: Selection, normal: Dataset | None, false_alarms: float | None, seed: int
) -> Scores:
    """Score images; with `false_alarms` also a threshold that at most this part of `normal` validation images exceeds.

    Raises as `inspection.score` and `threshold` do.
    """
    if normal is not None and false_alarms is not None:
        # What is refused is refused before the work.
        false_alarms_among(len(normal.validation.images), false_alarms)
    name, values = inspection.score(trained, chosen.images, seed)
    limit = None
    if normal is not None and false_alarms is not None:
        limit = calibrate(trained, normal, false_alarms, seed)
    return Scores(name=name, values=values, chosen=chosen, threshold=limit)


def calibrate(trained: TrainedModel, normal: Dataset, false_alarms: float, seed: int) -> Threshold:
    """The threshold that at most the part `false_alarms` of normal images exceeds, by those for validation.

    Raises as `inspection.score` and `threshold` do.
    """
    # For a model of all classes, in the order of `raygen score`, which gives each image the noise that it has there.
    scores = inspection.score(trained, select(normal, "validation").images, seed)[1]
    return threshold(scores, false_alarms)


def threshold(scores: Tensor, false_alarms: float) -> Threshold:
    """The ⌈(n + 1)(1 − α)⌉-th smallest of the scores [n] of normal images, α in (0, 1) being the false alarms.

    The score of one more such image lies beyond it with a probability of at most α, as its conformal p-value is then
    at most α (Bates et al. 2023, "Testing for outliers with conformal p-values"). Raises SpecError if that takes more
    images or α is no part, RunError for scores that are not finite.
    """
    beyond = false_alarms_among(len(scores), false_alarms)
    if not scores.isfinite().all():
        raise RunError("the scores of normal images are not finite: train with a lower --lr")
    return Threshold(value=scores.sort().values[len(scores) - beyond].item(), images=len(scores))


def false_alarms_among(count: int, part: float) -> int:
    """How many of `count` normal images lie on a threshold or beyond it that one more exceeds in `part` of all cases.

    Raises SpecError if that is less than one image, or `part` is no part.
    """
    if not 0 < part < 1:
        raise SpecError(f"--false-alarms {part:g}: name the part of normal images, such as 0.01 for 1 %")
    beyond = math.floor(part * (count + 1) + 1e-9)  # 0.29 · 100 is 28.999999999999996
    if beyond == 0:
        least_images, least_part = math.ceil(1 / part - 1e-9) - 1, math.ceil(10_000 / (count + 1)) / 10_000
        raise SpecError(
            f"--false-alarms {part:g} takes {least_images} normal validation images, not {count}: "
            f"use --false-alarms {least_part:g} or more"
        )
    return beyond


def worst(scores: Tensor) -> Tensor:
    """The rows of the highest of scores [N], the very highest first: 16, or all if they are fewer."""
    return scores.argsort(descending=True, stable=True)[:WORST_IMAGES]


def told(chosen: Selection) -> str:
    """Which images these are, in one line: their names, or if they have none their positions in the source."""
    names = chosen.names()
    if names is not None:
        return ", ".join(map(files.printable, names))
    return f"index {', '.join(map(str, chosen.positions.tolist()))}"


def picture(trained: TrainedModel, images: Tensor) -> Image.Image:
    """Images uint8 [N, C, H, W] side by side, below them their reconstructions, and where these err.

    The error is a pixel's absolute one, a mean over its channels; white is the largest of all. Raises RunError without
    an encoder.
    """
    originals, rebuilt = reconstruct(trained, images)
    errors = (rebuilt - originals).abs().mean(dim=1, keepdim=True)
    largest = errors.max()
    brightness = (errors / largest if largest > 0 else errors).expand(-1, originals.shape[1], -1, -1)
    rows = {"image": originals, "reconstruction": rebuilt, f"error, white is {largest:.2g}": brightness}
    return pictures.labelled([(label, pictures.grid(row, columns=len(row))) for label, row in rows.items()])
