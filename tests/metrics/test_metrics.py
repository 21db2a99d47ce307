"""What every metric promises; a new file in raygen/metrics is tested here without a change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raygen import metrics, models
from raygen.data import Dataset
from raygen.errors import SpecError
from raygen.models._base import ImageShape, Model
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from raygen.training.evaluation import evaluate
from raygen.training.step import build_model

FITTING = [
    (metric, model)
    for metric in metrics.names()
    for model in models.names()
    if issubclass(models.find(model), metrics.find(metric).requires)
]
every_pair = pytest.mark.parametrize(("metric", "model"), [pair for pair in FITTING if metrics.find(pair[0]).compute])


def untrained(model: str, metric: str) -> tuple[Model, TrainSpec]:
    options = {"model.hidden": [16], "model.width": 8, "evaluation.objective": metric, "evaluation.metrics": []}
    spec = TrainSpec.create(model, options)
    return build_model(spec, ImageShape(1, 8, 8), CPU), spec


@pytest.fixture
def images(digits: Dataset) -> Tensor:
    return digits.validation.images[:100].float() / 255


@pytest.mark.parametrize("name", metrics.names())
def test_every_metric_says_what_it_is(name: str) -> None:
    metric = metrics.find(name)
    assert name.startswith(metrics.PREFIX)
    assert metric.direction in ("min", "max")
    assert any(fitting == name for fitting, _ in FITTING), "no model can be judged by it"
    assert metric.compute or metric.measure
    assert metric.compute or not metric.compare, "what compares features needs no labels"
    better, worse = (1.0, 2.0) if metric.direction == "min" else (2.0, 1.0)
    assert metric.is_better(better, than=worse)
    assert not metric.is_better(worse, than=better)
    assert not metric.is_better(worse, than=worse)


def test_every_model_can_be_judged() -> None:
    assert {model for _, model in FITTING} == set(models.names())


@every_pair
def test_the_same_model_gets_the_same_value(metric: str, model: str, images: Tensor) -> None:
    judged, spec = untrained(model, metric)
    torch.manual_seed(1)
    first = evaluate(judged, images, spec.evaluation)
    torch.manual_seed(2)
    assert evaluate(judged, images, spec.evaluation) == first
    [(name, value)] = first.items()
    assert name == metric
    assert isinstance(value, float)
    assert math.isfinite(value)


@every_pair
def test_judging_leaves_the_model_alone(metric: str, model: str, images: Tensor) -> None:
    judged, spec = untrained(model, metric)
    before, given = {name: tensor.clone() for name, tensor in judged.state_dict().items()}, images.clone()
    evaluate(judged, images, spec.evaluation)
    assert all(torch.equal(tensor, before[name]) for name, tensor in judged.state_dict().items())
    assert torch.equal(images, given)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in judged.parameters())


def test_an_unknown_metric_gets_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="no metric 'val_elb'; did you mean 'val_elbo'"):
        metrics.find("val_elb")
    with pytest.raises(SpecError, match=f"metrics: {', '.join(metrics.names())}"):
        metrics.find("accuracy")


def test_a_training_draws_samples_once(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["val_coverage", "val_recall"]
    judged = build_model(TrainSpec.create("gan", {"model.hidden": [16]}), ImageShape(1, 8, 8), CPU)
    spec = TrainSpec.create("gan", {"evaluation.objective": "val_frechet", "evaluation.metrics": names})
    sizes, sample = [], judged.sample  # type: ignore[operator, union-attr]
    monkeypatch.setattr(judged, "sample", lambda latents: sizes.append(len(latents)) or sample(latents))
    values = evaluate(judged, images, spec.evaluation)
    assert sizes == [100]
    for name, value in values.items():
        compute = metrics.find(name).compute
        assert compute is not None
        with torch.no_grad():
            assert value == compute(judged, images, spec.evaluation.seed)
