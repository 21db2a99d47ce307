"""Evaluation cards of really trained small models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from raygen import data, metrics
from raygen.data import DataOptions, Dataset, Part
from raygen.errors import DataError, RaygenError, SpecError
from raygen.evaluation import EvaluationCard, evaluate, suitable_metrics
from raygen.metrics import _classifier, _features
from raygen.models._base import ImageShape
from raygen.results import TrainedModel
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import CPU
from raygen.training.loop import build_model, fit

MODELS = ("ae", "vae", "gan")
CHEAP = {"images": 100, "is_samples": 20}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> dict[str, TrainedModel]:
    made = {}
    for name in MODELS:
        spec = TrainSpec.create(name, {"model.hidden": [32], "training.epochs": 3})
        path = tmp_path_factory.mktemp(name) / "trial" / "checkpoint.safetensors"
        list(fit(spec, digits, path))
        model = build_model(spec, ImageShape(1, 8, 8), CPU)
        model.load_state_dict(checkpoint.read_best_weights(path))
        made[name] = TrainedModel(model.eval().requires_grad_(False), spec, {})
    return made


def computable(model: TrainedModel) -> list[str]:
    return [name for name in suitable_metrics(model) if name != "val_modes"]


@pytest.mark.parametrize("name", MODELS)
def test_every_suitable_metric_gets_its_value_and_circumstances(
    name: str, trained: dict[str, TrainedModel], digits: Dataset
) -> None:
    model = trained[name]
    card = evaluate(model, digits, computable(model), normal_class=0, seed=3, **CHEAP)  # type: ignore[arg-type]
    assert list(card.values) == computable(model)
    assert card.data == "digits"
    assert card.model == model.spec.model.model_dump(mode="json")
    for metric, value in card.values.items():
        assert value.value is not None
        assert (value.images, value.split, value.seed) == (100, "held_out", 3)
        assert value.direction == metrics.find(metric).direction
        assert value.network == ("random" if metrics.find(metric).compare else None)
        assert value.network_facts == ({} if value.network else None)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_a_training_reports(name: str, trained: dict[str, TrainedModel], digits: Dataset) -> None:
    """Over the random network, so that a card can be put beside a run's own columns."""
    model = trained[name]
    names = [metric for metric in computable(model) if metrics.find(metric).compute and "is_log" not in metric]
    card = evaluate(model, digits, names, images=100, seed=3)
    images = digits.validation.images[:100].float() / 255
    for metric in names:
        compute = metrics.find(metric).compute
        assert compute is not None
        with torch.no_grad():
            assert card.values[metric].value == pytest.approx(compute(model.model, images, 3), rel=1e-6, abs=1e-9)


def test_a_classifier_s_accuracy_goes_with_every_value(trained: dict[str, TrainedModel], digits: Dataset) -> None:
    card = evaluate(trained["gan"], digits, ["val_frechet", "val_coverage"], network="classifier", images=100)
    facts = _classifier.trained_on(digits).as_features().facts
    for value in card.values.values():
        assert value.network == "classifier"
        assert value.network_facts == facts
    random = evaluate(trained["gan"], digits, ["val_frechet"], images=100)
    assert card.values["val_frechet"].value != random.values["val_frechet"].value


def test_the_card_is_a_file(trained: dict[str, TrainedModel], digits: Dataset, tmp_path: Path) -> None:
    card = evaluate(trained["vae"], digits, ["val_kl", "val_is_log_likelihood", "val_kl"], **CHEAP)  # type: ignore[arg-type]
    path = card.write(tmp_path)
    assert path == tmp_path / "evaluation.json"
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]
    assert EvaluationCard.model_validate_json(path.read_text()) == card
    values = json.loads(path.read_text())["values"]
    assert list(values) == ["val_kl", "val_is_log_likelihood"]
    assert len(values["val_kl"]["details"]["per_unit_nats"]) == trained["vae"].model.latent_dim
    assert values["val_is_log_likelihood"]["details"]["importance_samples"] == 20
    assert values["val_is_log_likelihood"]["details"]["pixels"] == "grey"


def test_a_value_that_is_not_finite_is_null(trained: dict[str, TrainedModel], digits: Dataset) -> None:
    spec = trained["gan"].spec
    broken = build_model(spec, ImageShape(1, 8, 8), CPU).requires_grad_(False)
    for parameter in broken.parameters():
        parameter.fill_(torch.nan)
    card = evaluate(TrainedModel(broken, spec, {}), digits, ["val_frechet", "val_kid"], images=100)
    assert [value.value for value in card.values.values()] == [None, None]
    assert '"value": null' in card.model_dump_json(indent=1)


def test_images_and_samples_pass_a_network_once(
    trained: dict[str, TrainedModel], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    features = _features.features
    monkeypatch.setattr(_features, "features", lambda *given: calls.append(len(given[0])) or features(*given))
    names = [name for name in computable(trained["gan"]) if metrics.find(name).compare]
    assert len(names) == 6
    evaluate(trained["gan"], digits, names, images=150)
    assert calls == [150, 150]


@pytest.mark.parametrize(
    ("model", "names", "options", "error", "message"),
    [
        ("ae", ["val_frechet"], {}, SpecError, "ae cannot be judged by val_frechet; it can by .*val_mse, val_psnr"),
        ("gan", ["val_fretchet"], {}, SpecError, "there is no metric 'val_fretchet'; did you mean 'val_frechet'"),
        ("gan", ["val_kid"], {"network": "vgg"}, SpecError, "no feature network 'vgg'; networks: random, classifier"),
        ("gan", ["val_kid"], {"images": 1}, SpecError, "2 held-out images or more, not 1"),
        ("vae", ["val_is_log_likelihood"], {"is_samples": 0}, SpecError, "1 importance sample or more, not 0"),
        ("ae", ["val_anomaly_auroc"], {}, DataError, "add --normal-class 0"),
        ("gan", ["val_modes"], {}, DataError, "val_modes counts the modes of stacked-digits, not of digits"),
        (
            "gan",
            ["val_kid"],
            {"network": "inception", "fid_weights": Path("/nowhere/weights.pth")},
            DataError,
            "cannot read /nowhere/weights.pth",
        ),
    ],
)
def test_refusals(
    model: str,
    names: list[str],
    options: dict[str, object],
    error: type[RaygenError],
    message: str,
    trained: dict[str, TrainedModel],
    digits: Dataset,
) -> None:
    with pytest.raises(error, match=message) as caught:
        evaluate(trained[model], digits, names, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_other_data_are_refused(trained: dict[str, TrainedModel], digits: Dataset) -> None:
    larger = data.load(DataOptions(image_size=16))
    with pytest.raises(SpecError, match="the model takes images of 8×8 with 1 channel, but digits has"):
        evaluate(trained["ae"], larger, ["val_mse"])
    unlabelled = Dataset("mine", Part(digits.train.images), Part(digits.validation.images), None, "")
    with pytest.raises(DataError, match="mine has no labels to train the classifier network on"):
        evaluate(trained["gan"], unlabelled, ["val_kid"], network="classifier")
