"""Judging a trained model with any metric, on what a card then says: no value without its circumstances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from raygen import files, metrics
from raygen.data import Dataset
from raygen.errors import SpecError
from raygen.metrics import Direction, Evidence, Measurement, Metric, _classifier, _features, _inception
from raygen.metrics._features import FeatureNetwork
from raygen.models._base import Model, Sampler
from raygen.results import TrainedModel, check_shape

CARD = "evaluation.json"
NETWORKS = ("random", "classifier", "inception")


class Value(BaseModel, frozen=True, extra="forbid"):
    """One metric's value; null where it is not finite. `network` and its facts are null where it needs none."""

    value: float | None
    direction: Direction
    network: str | None
    network_facts: dict[str, Any] | None
    images: int
    split: Literal["held_out"] = "held_out"
    seed: int
    details: dict[str, Any]


class EvaluationCard(BaseModel, frozen=True, extra="forbid"):
    """What a model was judged to be: its options, the data set, and each value by its metric's name.

    `prior` is what its samples were drawn from, null where it cannot be sampled; `train_s` are the seconds that it
    was trained for, null where its run does not tell.
    """

    model: dict[str, Any]
    data: str
    prior: str | None
    train_s: float | None
    values: dict[str, Value]

    def write(self, folder: Path) -> Path:
        """Write the card into `folder` as evaluation.json, whole or not at all; returns its path, raises RunError."""
        path = folder / CARD
        with files.whole(path) as partial:
            partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path


def suitable_metrics(trained: TrainedModel) -> list[str]:
    """The names of all metrics that this model can be judged by."""
    every = (metrics.find(name) for name in metrics.names())
    return [metric.name for metric in every if _judged(metric, trained) is not None]


@torch.no_grad()
def evaluate(
    trained: TrainedModel,
    dataset: Dataset,
    names: Sequence[str],
    *,
    network: str = "random",
    images: int = 2000,
    seed: int = 0,
    is_samples: int = 5000,
    normal_class: int | None = None,
    fid_weights: Path | None = None,
) -> EvaluationCard:
    """Judge a model by the named metrics on the first `images` held-out images, and as many samples.

    `dataset` is of all classes; a model that was trained on one is judged on images of that one, but by metrics
    that look for the others. `network` is one of NETWORKS, over which samples are compared; `fid_weights` is a file
    with the weights of `inception`; `is_samples` are importance samples per image; `normal_class` is the label that
    is no anomaly, that of the training unless given. Raises SpecError for a metric or network that is none or does
    not suit the model, DataError for labels or weights that are missing.
    """
    chosen = [_suitable(name, trained) for name in dict.fromkeys(names)]
    _check(dataset, trained, images, is_samples, network)
    validation = dataset.validation
    of_all_classes = Evidence(
        images=_held_out(dataset, images, trained),
        seed=seed,
        source=dataset.name,
        labels=None if validation.labels is None else validation.labels[:images],
        normal_class=_normal_class(trained, normal_class),
        is_samples=is_samples,
    )
    evidence = of_all_classes
    if trained.spec.data.normal_class is not None:
        normal = dataset.only(trained.spec.data.normal_class)
        evidence = replace(of_all_classes, images=_held_out(normal, images, trained), labels=None)
    seen = {metric.name: of_all_classes if metric.all_classes else evidence for metric in chosen}
    compared = [metric for metric in chosen if metric.compare]
    over = _network(network, dataset, fid_weights) if compared else None
    measured: dict[str, Measurement] = {}
    if over and trained.prior:
        measured |= _over_features(trained.prior.sampler, evidence, compared, over)
    for metric in chosen:
        judged = _judged(metric, trained)
        if judged is not None and not metric.compare:
            measured[metric.name] = _measured(metric, judged, seen[metric.name])
    return EvaluationCard(
        model=trained.spec.model.model_dump(mode="json"),
        data=dataset.name,
        prior=trained.prior.name if trained.prior else None,
        train_s=trained.metrics.get("train_s"),
        values={metric.name: _value(metric, measured[metric.name], seen[metric.name], over) for metric in chosen},
    )


def _normal_class(trained: TrainedModel, given: int | None) -> int | None:
    trained_on = trained.spec.data.normal_class
    if trained_on is not None and given not in (None, trained_on):
        raise SpecError(f"--normal-class {given}: the model was trained on class {trained_on}; leave it out")
    return trained_on if given is None else given


def _held_out(dataset: Dataset, images: int, trained: TrainedModel) -> Tensor:
    """The first held-out images [N, C, H, W] in [0, 1], on the model's device."""
    device = next(trained.model.parameters()).device
    return dataset.validation.images[:images].to(device=device, dtype=torch.float32).div_(255)


def _judged(metric: Metric, trained: TrainedModel) -> Model | None:
    """What the metric looks at: the model, or what draws its samples; none where there is nothing that suits."""
    candidate = trained.prior.sampler if metric.requires is Sampler and trained.prior else trained.model
    return candidate if isinstance(candidate, metric.requires) else None


def _suitable(name: str, trained: TrainedModel) -> Metric:
    metric = metrics.find(name)
    if _judged(metric, trained) is None:
        fitting = ", ".join(suitable_metrics(trained))
        gmm = ", and with --prior gmm by that too" if metric.requires is Sampler else ""
        raise SpecError(f"{trained.spec.model.name} cannot be judged by {name}; it can by {fitting}{gmm}")
    return metric


def _check(dataset: Dataset, trained: TrainedModel, images: int, is_samples: int, network: str) -> None:
    if network not in NETWORKS:
        raise SpecError(f"there is no feature network {network!r}; networks: {', '.join(NETWORKS)}")
    count = min(images, len(dataset.validation.images))
    if count < 2:
        raise SpecError(f"a model is judged on 2 held-out images or more, not {count}: use --images 2000")
    if is_samples < 1:
        raise SpecError(f"a likelihood takes 1 importance sample or more, not {is_samples}: use --is-samples 5000")
    check_shape(trained, dataset)


def _network(name: str, dataset: Dataset, fid_weights: Path | None) -> FeatureNetwork:
    if name == "classifier":
        return _classifier.trained_on(dataset).as_features()
    return _inception.load(fid_weights) if name == "inception" else _features.random_network()


def _over_features(
    model: Model, evidence: Evidence, compared: Sequence[Metric], network: FeatureNetwork
) -> dict[str, Measurement]:
    """Metrics over one feature network: images and samples pass through it once for all of them."""
    real = _features.of_real(evidence.images, network)
    made = _features.of_samples(model, len(evidence.images), evidence.seed, network)
    return {metric.name: Measurement(value=metric.compare(real, made)) for metric in compared if metric.compare}


def _measured(metric: Metric, model: Model, evidence: Evidence) -> Measurement:
    if metric.measure is not None:
        return metric.measure(model, evidence)
    assert metric.compute is not None, "a metric can be computed, compared or measured"
    return Measurement(value=metric.compute(model, evidence.images, evidence.seed))


def _value(metric: Metric, measured: Measurement, evidence: Evidence, network: FeatureNetwork | None) -> Value:
    over = network if metric.compare else None
    return Value(
        value=measured.value if math.isfinite(measured.value) else None,
        direction=metric.direction,
        network=over.name if over else None,
        network_facts=dict(over.facts) if over else None,
        images=len(evidence.images),
        seed=evidence.seed,
        details=dict(measured.details),
    )
