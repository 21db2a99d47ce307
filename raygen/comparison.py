"""Models of different families ranked on the same metrics, held-out images, number of samples and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from raygen import evaluation, metrics, pictures, results
from raygen.data import Dataset
from raygen.errors import SpecError
from raygen.evaluation import EvaluationCard
from raygen.results import TrainedModel

SAMPLES = 10
"""Samples of each model in the picture."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One model and what it was judged to be; its card lacks the metrics that do not suit it."""

    name: str
    trained: TrainedModel
    card: EvaluationCard

    def value(self, metric: str) -> float | None:
        """The value of a metric; none where it does not suit the model or is not finite."""
        judged = self.card.values.get(metric)
        return judged.value if judged else None

    def as_json(self) -> dict[str, Any]:
        """The name with the card, as plain JSON."""
        return {"run": self.name, **self.card.model_dump(mode="json")}


def check_data(models: Mapping[str, TrainedModel]) -> None:
    """Raise SpecError naming two models that were trained on different data sets, splits or shapes."""
    first_name, first = next(iter(models.items()))
    for name, trained in models.items():
        for field in ("source", "image_size", "validation_fraction", "test_fraction", "normal_class"):
            ours, theirs = getattr(first.spec.data, field), getattr(trained.spec.data, field)
            if ours != theirs:
                raise SpecError(
                    f"{first_name} and {name} cannot be compared: their data.{field} is {ours} and {theirs}; "
                    "compare runs on the same data set"
                )
        if trained.model.shape != first.model.shape:
            raise SpecError(
                f"{first_name} and {name} cannot be compared: their images are {first.model.shape} and "
                f"{trained.model.shape}; compare runs on the same data set"
            )


def compare(
    models: Mapping[str, TrainedModel],
    dataset: Dataset,
    names: Sequence[str],
    *,
    network: str,
    images: int,
    seed: int,
    fid_weights: Path | None = None,
) -> list[Compared]:
    """Judge every model by those of the named metrics that suit it, and rank them: the first metric decides.

    Models that it does not suit come last. Raises as `evaluation.evaluate` does, and SpecError where no model suits.
    """
    wanted = [metrics.find(name).name for name in dict.fromkeys(names)]
    suitable = {
        name: [metric for metric in wanted if metric in evaluation.suitable_metrics(trained)]
        for name, trained in models.items()
    }
    deciding = metrics.find(wanted[0])
    if not any(deciding.name in found for found in suitable.values()):
        raise SpecError(f"none of these models can be judged by {deciding.name}: begin --metrics with another")
    judged = [
        Compared(
            name=name,
            trained=trained,
            card=evaluation.evaluate(
                trained, dataset, suitable[name], network=network, images=images, seed=seed, fid_weights=fid_weights
            ),
        )
        for name, trained in models.items()
    ]
    sign = -1 if deciding.direction == "max" else 1
    return sorted(judged, key=lambda each: _rank(each.value(deciding.name), sign))


def differences(
    ranked: Sequence[Compared],
    dataset: Dataset,
    name: str,
    *,
    network: str,
    images: int,
    seed: int,
    fid_weights: Path | None = None,
) -> list[Difference]:
    """How far each model of a ranking lies from the next in the named metric, beside what chance explains.

    The models and arguments are those of `compare`; models without a value are left out.
    """
    metric = metrics.find(name)
    valued = [each for each in ranked if each.value(name) is not None]
    over = evaluation.find_network(network, dataset, fid_weights) if metric.compare else None
    left_out = [_left_out(each, metric, dataset, network=over, images=images, seed=seed) for each in valued]
    found = []
    for (first, ours), (second, theirs) in itertools.pairwise(zip(valued, left_out, strict=True)):
        if ours is not None and theirs is not None:
            found.append(_difference(first, second, metric, spread.of_difference(ours, theirs), network))
    return found


def _left_out(
    compared: Compared, metric: Metric, dataset: Dataset, *, network: FeatureNetwork | None, images: int, seed: int
) -> list[float] | None:
    judged = evaluation.judged_model(metric, compared.trained)
    assert judged is not None, "it has a value"
    shown = evaluation.held_out_images(dataset, images, compared.trained)
    with torch.no_grad():
        return spread.left_out(judged, metric, shown, samples=len(shown), seed=seed, network=network)


def _rank(value: float | None, sign: int) -> tuple[bool, float]:
    return value is None, 0.0 if value is None else sign * value


def picture(ranked: Sequence[Compared], seed: int) -> Image.Image:
    """A row of samples of each model, from latents fixed by `seed`, labelled with its name."""
    rows = []
    for each in ranked:
        if each.trained.prior is None:
            label, images = f"{each.name}: cannot be sampled", torch.zeros(SAMPLES, *each.trained.model.shape)
        else:
            fitted = f" + {each.trained.prior.name}" if each.trained.fitted else ""
            label, images = f"{each.name}{fitted}", results.sample(each.trained, SAMPLES, seed)
        rows.append((label, pictures.grid(images, columns=SAMPLES)))
    return pictures.labelled(rows)
