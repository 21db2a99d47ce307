"""Models of different families ranked by one protocol: the same metrics, images, number of samples and seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from raygen import evaluation, metrics, pictures
from raygen.data import Dataset
from raygen.errors import SpecError
from raygen.evaluation import Judge
from raygen.evaluation_card import EvaluationCard
from raygen.protocol import Protocol
from raygen.results import TrainedModel
from raygen.spread import STANDARD_ERRORS, Difference, standard_error

SAMPLES = 10
"""Samples of each model in the picture."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One model and what it was judged to be; its card lacks the metrics that do not suit it."""

    name: str
    trained: TrainedModel
    card: EvaluationCard
    without_groups: Sequence[float] | None
    """The value that decides without each group of images and samples (raygen.spread); None if it has no spread."""

    def value(self, name: str) -> float | None:
        """The value of that name on the card; none where the metric does not suit the model or is not finite."""
        judged = self.card.values.get(name)
        return judged.value if judged else None

    def as_json(self) -> dict[str, Any]:
        """The name with the card, as plain JSON."""
        return {"run": self.name, **self.card.model_dump(mode="json")}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models ranked by one protocol, the best first, and how far each lies from the next.

    `metrics` are the names of the values that were asked for; the first decided.
    """

    ranked: Sequence[Compared]
    metrics: Sequence[str]
    differences: Sequence[Difference]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {
            "metrics": list(self.metrics),
            "ranking": [each.as_json() for each in self.ranked],
            "differences": [each.as_json() for each in self.differences],
        }


def check_data(models: Mapping[str, TrainedModel]) -> None:
    """Raise SpecError naming two models that were trained on different data sets, images, splits or shapes."""
    first_name, first = next(iter(models.items()))
    for name, trained in models.items():
        for field in ("source", "image_size", "validation_fraction", "test_fraction", "normal_class"):
            ours, theirs = getattr(first.spec.data, field), getattr(trained.spec.data, field)
            if ours != theirs:
                raise SpecError(
                    f"{first_name} and {name} cannot be compared: their data.{field} is {ours} and {theirs}; "
                    "compare runs on the same data set"
                )
        ours, theirs = (model.spec.data.corruption_in_words for model in (first, trained))
        if ours != theirs:
            raise SpecError(
                f"{first_name} and {name} cannot be compared: one sees {ours or 'clean images'}, the other "
                f"{theirs or 'clean images'}; compare runs with the same data.corruption"
            )
        digests = [model.metrics.get("data", {}).get("digest") for model in (first, trained)]
        if all(digests) and len(set(digests)) > 1:
            raise SpecError(
                f"{first_name} and {name} cannot be compared: they were trained on different images under one name "
                f"({first.spec.data.source}); train one of them anew"
            )
        if trained.model.shape != first.model.shape:
            raise SpecError(
                f"{first_name} and {name} cannot be compared: their images are {first.model.shape} and "
                f"{trained.model.shape}; compare runs on the same data set"
            )


def compare(
    models: Mapping[str, TrainedModel], dataset: Dataset, names: Sequence[str], protocol: Protocol
) -> Comparison:
    """Judge every model by those of the named metrics that suit it, and rank them: the first metric decides.

    Models that it does not suit come last. Raises as a Judge does, and SpecError where no model suits.
    """
    wanted = [metrics.find(name).name for name in dict.fromkeys(names)]
    suitable = {
        name: [metric for metric in wanted if metric in evaluation.suitable_metrics(trained)]
        for name, trained in models.items()
    }
    deciding = metrics.find(wanted[0])
    if not any(deciding.name in found for found in suitable.values()):
        raise SpecError(f"none of these models can be judged by {deciding.name}: begin --metrics with another")
    judge = Judge(dataset, protocol)
    judged = [
        Compared(
            name=name,
            trained=trained,
            card=judge.judge(trained, suitable[name]),
            without_groups=judge.without_each_group(trained, wanted[0]) if wanted[0] in suitable[name] else None,
        )
        for name, trained in models.items()
    ]
    sign, deciding_value = -1 if deciding.direction == "max" else 1, metrics.reported(deciding.name, protocol.split)
    ranked = sorted(judged, key=lambda each: _rank(each.value(deciding_value), sign))
    return Comparison(
        ranked=ranked,
        metrics=[metrics.reported(name, protocol.split) for name in wanted],
        differences=_differences(ranked, deciding_value, protocol),
    )


def _differences(ranked: Sequence[Compared], name: str, protocol: Protocol) -> list[Difference]:
    """How far each model of a ranking lies from the next in the value that decided, beside what chance explains.

    Pairs of which one has no value or no spread are left out.
    """
    found = []
    for first, second in itertools.pairwise(ranked):
        ours, theirs = first.value(name), second.value(name)
        if ours is None or theirs is None or first.without_groups is None or second.without_groups is None:
            continue
        of_seeds = [_spread_over_seeds(each, name, protocol) for each in (first, second)]
        parts = [standard_error(first.without_groups, second.without_groups), *filter(None, of_seeds)]
        spread = STANDARD_ERRORS * math.hypot(*parts)
        if math.isfinite(spread):
            found.append(
                Difference(
                    first=first.name,
                    second=second.name,
                    name=name,
                    difference=abs(ours - theirs),
                    spread=spread,
                    over_seeds=None not in of_seeds,
                )
            )
    return found


def _spread_over_seeds(compared: Compared, name: str, protocol: Protocol) -> float | None:
    """The standard deviation of a value over its configuration's fresh seeds; None if it was run on one alone.

    Trainings are judged over the random network, so a value over another one has no spread over seeds.
    """
    over_seeds = compared.trained.metrics.get("over_seeds", {}).get(name, {})
    compares = compared.card.values[name].network is not None
    spread: float | None = over_seeds.get("spread")
    return None if compares and protocol.network != "random" else spread


def _rank(value: float | None, sign: int) -> tuple[bool, float]:
    return value is None, 0.0 if value is None else sign * value


def draw(ranked: Sequence[Compared], seed: int) -> Image.Image:
    """A row of samples of each model, from latents fixed by `seed`, labelled with its name."""
    rows = []
    for each in ranked:
        if each.trained.prior is None:
            label, images = f"{each.name}: cannot be sampled", torch.zeros(SAMPLES, *each.trained.model.shape)
        else:
            fitted = f" + {each.trained.prior.name}" if each.trained.fitted else ""
            label, images = f"{each.name}{fitted}", each.trained.sample(SAMPLES, seed=seed)
        rows.append((label, pictures.grid(images, columns=SAMPLES)))
    return pictures.labelled(rows)
