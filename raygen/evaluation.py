"""Judging a trained model with any metric, on what a card then says: no value without its circumstances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from raygen import corruption, metrics, spread
from raygen import device as devices
from raygen.data import Dataset, Part, Split
from raygen.errors import SpecError
from raygen.evaluation_card import EvaluationCard, Value
from raygen.metrics import (
    Evidence,
    HeldOut,
    Measurement,
    Metric,
    _classifier,
    _features,
    _inception,
    modes,
)
from raygen.metrics._features import FeatureNetwork
from raygen.models._base import Model, Sampler
from raygen.protocol import IS_SAMPLES, Network, Protocol
from raygen.results import TrainedModel, check_shape, held_out_part

CHUNK_IMAGES = 500
MANY_CLASSES, MANY_PIXELS = 200, 1_000_000_000
"""From here on some metrics take minutes, and are judged by only if they are named."""

FEWEST_TO_GROUP = 40
"""Images or samples below which no spread is told."""


def suitable_metrics(trained: TrainedModel) -> list[str]:
    """The names of all metrics that this model can be judged by."""
    every = (metrics.find(name) for name in metrics.names())
    return [metric.name for metric in every if _judged(metric, trained) is not None]


def evaluate(
    trained: TrainedModel, dataset: Dataset, names: Sequence[str] | None, protocol: Protocol
) -> EvaluationCard:
    """Judge a model by the named metrics, or by all that suit it and the data; raises as a Judge does."""
    judge = Judge(dataset, protocol)
    if names is not None:
        return judge.judge(trained, names)
    left_out = _left_out(trained, dataset, protocol)
    suitable = suitable_metrics(trained)
    card = judge.judge(trained, [name for name in suitable if name not in left_out])
    return card.model_copy(update={"left_out": {name: left_out[name] for name in suitable if name in left_out}})


def _left_out(trained: TrainedModel, dataset: Dataset, protocol: Protocol) -> dict[str, str]:
    """Metrics that are judged by only if they are named, with the reason and what would have them in."""
    left_out = {}
    if _normal_class(trained, protocol.normal_class) is None:
        left_out["val_anomaly_auroc"] = "--normal-class 0 has it"
    if dataset.name != modes.SOURCE:
        left_out["val_modes"] = f"it is for {modes.SOURCE}"
    if trained.spec.data.normal_class is not None or not _classifier.has_classes(dataset):
        reason = "it needs labels of two classes or more in all parts, below 10,000"
        left_out |= dict.fromkeys(("val_class_kl", "val_linear_probe"), reason)
    elif int(dataset.train.labels.max()) >= MANY_CLASSES:  # type: ignore[union-attr]
        left_out["val_linear_probe"] = "with so many classes it takes minutes; --metrics linear_probe has it"
    if dataset.train.images.numel() > MANY_PIXELS:
        reason = "with so many training images it takes minutes; --metrics nearest_mse,nearest_ssim has it"
        left_out |= dict.fromkeys(("val_nearest_mse", "val_nearest_ssim"), reason)
    if protocol.is_samples is None:
        left_out["val_is_log_likelihood"] = f"it takes minutes; --is-samples {IS_SAMPLES} has it"
    return left_out


class Judge:
    """Judges models by one protocol; real images pass through the feature network once for all of them.

    `dataset` is of all classes; a model that was trained on one is judged on images of that one, but by metrics that
    look for the others.
    """

    def __init__(self, dataset: Dataset, protocol: Protocol) -> None:
        """Raises SpecError for a protocol that cannot be."""
        _check(protocol)
        self.dataset = dataset
        self.protocol = protocol
        self._real: dict[tuple[int | None, torch.device], _RealImages] = {}
        self._made: tuple[TrainedModel, Tensor] | None = None

    def judge(self, trained: TrainedModel, names: Sequence[str]) -> EvaluationCard:
        """The card of a model, judged by the named metrics.

        Raises SpecError for a metric that is none or does not suit the model, and for images that its training may
        have seen; DataError for images, labels or weights that are missing; OutOfMemoryError for a GPU of too little
        memory.
        """
        with trained.at_work():
            return self._card(trained, names)

    def _card(self, trained: TrainedModel, names: Sequence[str]) -> EvaluationCard:
        chosen = [_suitable(name, trained) for name in dict.fromkeys(names)]
        check_shape(trained, self.dataset)
        evidence = of_all_classes = self._evidence(trained, self.dataset)
        if trained.spec.data.normal_class is not None:
            evidence = self._evidence(trained, self._of_its_class(trained))
        measured = {
            metric.name: self._measured(metric, trained, of_all_classes if metric.all_classes else evidence)
            for metric in chosen
            if metric.compare is None
        }
        compared = self._compared([metric for metric in chosen if metric.compare], trained)
        values = measured | compared
        where = {"device": devices.label(trained.device), "precision": "fp32", "tf32": False}
        return EvaluationCard(
            model=trained.spec.model.model_dump(mode="json"),
            data=self.dataset.name,
            digest=self.dataset.digest,
            train_s=trained.metrics.get("train_s"),
            corruption=trained.spec.data.corruption_in_words,
            values={
                metrics.reported(metric.name, self.protocol.split): values[metric.name].model_copy(update=where)
                for metric in chosen
            },
        )

    def without_each_group(self, trained: TrainedModel, name: str) -> list[float] | None:
        """A metric that suits the model without each group of images and samples (raygen.spread); raises as `judge`.

        None if the metric neither compares samples with images nor is a mean over images, or there are too few.
        """
        with trained.at_work():
            return self._without_each_group(trained, name)

    def _without_each_group(self, trained: TrainedModel, name: str) -> list[float] | None:
        metric = _suitable(name, trained)
        model = _judged(metric, trained)
        assert model is not None, "a metric that does not suit the model was refused"
        if metric.compare is not None:
            real = self._real_images(trained)
            made = self._features_of_samples(trained, real)
            enough = min(len(real.features), len(made)) >= FEWEST_TO_GROUP
            return spread.without_each_group(metric.compare, real.features, made) if enough else None
        evidence = self._evidence(trained, self._of_its_class(trained))
        images = evidence.images
        if not metric.mean_over_images or metric.compute is None or len(images) < FEWEST_TO_GROUP:
            return None
        return spread.mean_without_each_group(metric.compute, model, images, evidence.inputs, self.protocol.seed)

    def _of_its_class(self, trained: TrainedModel) -> Dataset:
        """The images of the class that the model was trained on, or of all."""
        normal = trained.spec.data.normal_class
        return self.dataset if normal is None else self.dataset.only(normal)

    def _evidence(self, trained: TrainedModel, dataset: Dataset) -> Evidence:
        """What a model by itself is judged by: the first images of the part."""
        protocol, part = self.protocol, held_out_part(trained, dataset, self.protocol.split)
        images = part.images[: protocol.images]
        _check_count(len(images), protocol.split)
        return Evidence(
            images=images.to(torch.float32).div_(255),
            corrupt=partial(corruption.corrupted_for_judging, trained.spec.data),
            seed=protocol.seed,
            dataset=dataset,
            labels=None if part.labels is None or dataset is not self.dataset else part.labels[: protocol.images],
            normal_class=_normal_class(trained, protocol.normal_class),
            samples=len(images) if protocol.samples is None else protocol.samples,
            is_samples=IS_SAMPLES if protocol.is_samples is None else protocol.is_samples,
        )

    def _measured(self, metric: Metric, trained: TrainedModel, evidence: Evidence) -> Value:
        model = _judged(metric, trained)
        assert model is not None, "a metric that does not suit the model was refused"
        if metric.measure is not None:
            measured = metric.measure(model, evidence)
        else:
            measured = Measurement(value=metric.value(model, evidence.images, evidence.seed, evidence.inputs))
        against = measured.against_training
        return Value(
            value=_finite(measured.value),
            direction=metric.direction,
            split=self.protocol.split,
            images=len(evidence.images) if against is None else against.train_images,
            seed=evidence.seed,
            reference=None if against is None else "train",
            samples=None if against is None else against.samples,
            prior=trained.prior.name if metric.requires is Sampler and trained.prior else None,
            real_against_real=None if against is None else _finite(against.real),
            real_samples=None if against is None else against.real_samples,
            baseline=measured.baseline,
            details=dict(measured.details),
        )

    def _compared(self, chosen: Sequence[Metric], trained: TrainedModel) -> dict[str, Value]:
        """Metrics over one feature network: the samples pass through it once for all of them."""
        if not chosen:
            return {}
        assert trained.prior is not None, "a metric that does not suit the model was refused"
        real, protocol = self._real_images(trained), self.protocol
        made = self._features_of_samples(trained, real)
        return {
            metric.name: Value(
                value=_finite(metric.compare(real.features, made)),
                direction=metric.direction,
                split=protocol.split,
                images=len(real.features),
                seed=protocol.seed,
                reference=real.part,
                samples=real.samples,
                prior=trained.prior.name,
                network=real.network.name,
                network_facts=dict(real.network.facts),
                real_against_real=real.against_real(metric),
                real_samples=len(real.others),
                details={},
            )
            for metric in chosen
            if metric.compare
        }

    def _features_of_samples(self, trained: TrainedModel, real: _RealImages) -> Tensor:
        """Features [M, F] of a model's samples; those of the latest model are kept, as `compare` asks twice."""
        if self._made is None or self._made[0] is not trained:
            assert trained.prior is not None, "a metric that does not suit the model was refused"
            made = _features.of_samples(trained.prior.sampler, real.samples, self.protocol.seed, real.network)
            self._made = trained, made
        return self._made[1]

    def _real_images(self, trained: TrainedModel) -> _RealImages:
        """What the samples of a model are compared with, in the classes that it was trained on."""
        normal = trained.spec.data.normal_class
        if (normal, trained.device) not in self._real:
            dataset, protocol = self._of_its_class(trained), self.protocol
            part: Split = protocol.reference or protocol.split
            images = (dataset.part(part) if part == "train" else held_out_part(trained, dataset, part)).images
            images = images if protocol.reference else images[: protocol.images]
            _check_count(len(images), part)
            count = len(images) if protocol.samples is None else protocol.samples
            network = _network(protocol.network, self.dataset, protocol.fid_weights)
            self._real[normal, trained.device] = _RealImages(
                part=part,
                samples=count,
                network=network,
                features=_features_of([images], network, trained.device),
                others=_features_of(_others(dataset, part, count), network, trained.device),
            )
        return self._real[normal, trained.device]


@dataclass(frozen=True, kw_only=True)
class _RealImages:
    """Features [N, F] of the images that samples are compared with, and [M, F] of other real images, M ≤ `samples`."""

    part: Split
    samples: int
    network: FeatureNetwork
    features: Tensor
    others: Tensor
    _known: dict[str, float | None] = field(default_factory=dict)

    def against_real(self, metric: Metric) -> float | None:
        """The metric's value with the other real images in the place of samples."""
        assert metric.compare is not None
        if metric.name not in self._known:
            self._known[metric.name] = (
                _finite(metric.compare(self.features, self.others)) if len(self.others) > 1 else None
            )
        return self._known[metric.name]


def _others(dataset: Dataset, part: Split, count: int) -> Iterator[Tensor]:
    """So many real images (uint8) that are not of the part, in pieces; fewer if there are no more.

    Those of the other held-out part come first: a classifier network has been trained on the training images.
    """
    order: dict[Split, tuple[Part | None, ...]] = {
        "train": (dataset.validation, dataset.test),
        "validation": (dataset.test, dataset.train),
        "test": (dataset.validation, dataset.train),
    }
    for other in order[part]:
        if other is None or count <= 0:
            continue
        yield other.images[:count]
        count -= len(other.images)


def _features_of(pieces: Iterable[Tensor], network: FeatureNetwork, device: torch.device) -> Tensor:
    """Features [N, F], on a device, of images uint8 [n, C, H, W] in pieces, a few of them as floats at a time."""
    chunks = (chunk for piece in pieces for chunk in piece.split(CHUNK_IMAGES))
    found = [_features.features(chunk.to(device=device, dtype=torch.float32).div_(255), network) for chunk in chunks]
    return torch.cat(found) if found else torch.empty(0, 1, dtype=torch.float64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _normal_class(trained: TrainedModel, given: int | None) -> int | None:
    trained_on = trained.spec.data.normal_class
    if trained_on is not None and given not in (None, trained_on):
        raise SpecError(f"--normal-class {given}: the model was trained on class {trained_on}; leave it out")
    return trained_on if given is None else given


def _judged(metric: Metric, trained: TrainedModel) -> Model | None:
    """What the metric looks at: the model, or what draws its samples; none where there is nothing that suits."""
    if metric.requires is Sampler:
        return trained.prior.sampler if trained.prior else None
    return trained.model if isinstance(trained.model, metric.requires) else None


def _suitable(name: str, trained: TrainedModel) -> Metric:
    metric = metrics.find(name)
    if _judged(metric, trained) is None:
        fitting = ", ".join(suitable_metrics(trained))
        gmm = ", and with --prior gmm by that too" if metric.requires is Sampler else ""
        raise SpecError(f"{trained.spec.model.name} cannot be judged by {name}; it can by {fitting}{gmm}")
    return metric


def _check(protocol: Protocol) -> None:
    networks = get_args(Network)
    if protocol.network not in networks:
        raise SpecError(f"there is no feature network {protocol.network!r}; networks: {', '.join(networks)}")
    for given, known in ((protocol.split, get_args(HeldOut)), (protocol.reference, (None, *get_args(Split)))):
        if given not in known:
            raise SpecError(f"there is no such part {given!r}; parts: {', '.join(filter(None, known))}")
    if protocol.images is not None:
        _check_count(protocol.images, protocol.split)
    if protocol.samples is not None and protocol.samples < 2:
        raise SpecError(f"2 samples or more are compared, not {protocol.samples}: use --samples 2000, or leave it out")
    if protocol.is_samples is not None and protocol.is_samples < 1:
        raise SpecError(
            f"a likelihood takes 1 importance sample or more, not {protocol.is_samples}: use --is-samples 5000"
        )


def _check_count(count: int, part: Split) -> None:
    if count < 2:
        raise SpecError(f"a model is judged on 2 {part} images or more, not {count}: leave out --images")


def _network(name: str, dataset: Dataset, fid_weights: Path | None) -> FeatureNetwork:
    if name == "classifier":
        return _classifier.trained_on(dataset).as_features()
    return _inception.load(fid_weights) if name == "inception" else _features.random_network()
