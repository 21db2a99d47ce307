"""Evaluation cards of really trained small models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raygen import comparison, data, evaluation, metrics
from raygen.data import DataOptions, Dataset, Part
from raygen.errors import DataError, RaygenError, SpecError
from raygen.evaluation import Judge, suitable_metrics
from raygen.evaluation_card import EvaluationCard
from raygen.metrics import _classifier, _features
from raygen.models._base import ImageShape
from raygen.protocol import Protocol
from raygen.results import TrainedModel
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import CPU
from raygen.training.loop import fit
from raygen.training.step import build_model

MODELS = ("ae", "vae", "gan")
CHEAP = {"images": 100, "is_samples": 20}
AGAINST_TRAINING = {"val_class_kl", "val_nearest_mse", "val_nearest_ssim"}
WITH_BASELINE = {"val_linear_probe", "val_mse", "val_psnr", "val_ssim"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> dict[str, TrainedModel]:
    made = {}
    for name in MODELS:
        spec = TrainSpec.create(name, {"model.hidden": [32], "training.epochs": 3})
        path = tmp_path_factory.mktemp(name) / "trial" / "checkpoint.safetensors"
        list(fit(spec, digits, path))
        model = build_model(spec, ImageShape(1, 8, 8), CPU)
        model.load_state_dict(checkpoint.read_weights(path, prefix=checkpoint.BEST))
        made[name] = TrainedModel(model.eval().requires_grad_(False), spec, {})
    return made


def evaluate(model: TrainedModel, dataset: Dataset, names: list[str], **protocol: Any) -> EvaluationCard:
    return evaluation.evaluate(model, dataset, names, Protocol(**protocol))


def computable(model: TrainedModel) -> list[str]:
    return [name for name in suitable_metrics(model) if name != "val_modes"]


@pytest.mark.parametrize("name", MODELS)
def test_every_suitable_metric_gets_its_value_and_circumstances(
    name: str, trained: dict[str, TrainedModel], digits: Dataset
) -> None:
    model = trained[name]
    card = evaluate(model, digits, computable(model), normal_class=0, seed=3, **CHEAP)
    assert list(card.values) == computable(model)
    assert card.data == "digits"
    assert card.model == model.spec.model.model_dump(mode="json")
    for metric, value in card.values.items():
        assert value.value is not None
        is_against_training = metric in AGAINST_TRAINING
        assert (value.images, value.split, value.seed) == (1437 if is_against_training else 100, "validation", 3)
        assert value.direction == metrics.find(metric).direction
        assert value.network == ("random" if metrics.find(metric).compare else None)
        assert value.network_facts == ({"version": 2} if value.network else None)
        compared = (value.reference, value.samples, value.real_samples)
        reference = "train" if is_against_training else "validation"
        assert compared == ((reference, 100, 100) if value.network or is_against_training else (None, None, None))
        assert (value.real_against_real is None) == (value.samples is None)
        assert (value.baseline is None) == (metric not in WITH_BASELINE)


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
    card = evaluate(trained["vae"], digits, ["val_kl", "val_is_log_likelihood", "val_kl"], **CHEAP)
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
    assert calls == [150, 150, 150], "images, other real ones, and samples"


def test_models_that_are_compared_share_one_network_and_its_real_images(
    trained: dict[str, TrainedModel], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, calls = [], []
    load, features = _classifier.trained_on, _features.features
    monkeypatch.setattr(_classifier, "trained_on", lambda dataset: loaded.append(dataset) or load(dataset))
    monkeypatch.setattr(_features, "features", lambda *given: calls.append(len(given[0])) or features(*given))
    models = {name: trained[name] for name in ("vae", "gan")}
    protocol = Protocol(images=150, samples=160, network="classifier")
    comparison.compare(models, digits, ["val_frechet", "val_coverage"], protocol)
    assert (len(loaded), calls) == (1, [150, 160, 160, 160]), "images, other real ones, and each model's samples"


# Which part, and which samples


def test_each_part_has_its_values_by_name(trained: dict[str, TrainedModel], digits: Dataset) -> None:
    assert digits.test is not None
    card = evaluate(trained["vae"], digits, ["val_mse", "val_frechet"], split="test", images=1000)
    assert list(card.values) == ["test_mse", "test_frechet"]
    assert {(value.split, value.images) for value in card.values.values()} == {("test", 180)}
    assert card.digest == digits.digest
    swapped = replace(digits, validation=digits.test, test=digits.validation)
    validated = evaluate(trained["vae"], swapped, ["val_mse", "val_frechet"], images=1000)
    assert [value.value for value in card.values.values()] == [value.value for value in validated.values.values()]
    assert card.values["test_frechet"].reference == "test"


def test_a_card_holds_the_values_of_both_parts(
    trained: dict[str, TrainedModel], digits: Dataset, tmp_path: Path
) -> None:
    model = trained["vae"]

    def kept() -> dict[str, int]:
        card = EvaluationCard.model_validate_json((tmp_path / "evaluation.json").read_text())
        return {name: value.images for name, value in card.values.items()}

    evaluate(model, digits, ["val_mse"], images=10).write(tmp_path)
    evaluate(model, digits, ["val_mse", "val_psnr"], images=20, split="test").write(tmp_path)
    assert kept() == {"val_mse": 10, "test_mse": 20, "test_psnr": 20}
    evaluate(model, digits, ["val_mse"], images=30).write(tmp_path)
    evaluate(model, digits, ["val_psnr"], images=40, split="test").write(tmp_path)
    assert kept() == {"val_mse": 30, "test_psnr": 40}, "one evaluation's values of a part are all of it"
    other = replace(digits, digest="other images")
    evaluate(model, other, ["val_psnr"], images=50).write(tmp_path)
    assert kept() == {"val_psnr": 50}


def test_test_images_that_a_training_may_have_seen_are_refused(
    trained: dict[str, TrainedModel], digits: Dataset
) -> None:
    before = replace(trained["vae"], spec=trained["vae"].spec.model_copy(update={"version": 1}))
    with pytest.raises(SpecError, match=r"made before test images of digits were set apart.*use --split validation"):
        evaluate(before, digits, ["val_mse"], split="test")
    with pytest.raises(SpecError, match="made before test images"):
        evaluate(before, digits, ["val_frechet"], reference="test")
    evaluate(before, digits, ["val_mse"])
    evaluate(before, replace(digits, has_official_test=True), ["val_mse"], split="test")
    none = data.load(DataOptions(test_fraction=0))
    with pytest.raises(
        SpecError, match=r"digits has no test images \(data.test_fraction is 0\): use --split validation"
    ):
        evaluate(trained["vae"], none, ["val_mse"], split="test")


def test_samples_and_reference_images_are_counted_apart(trained: dict[str, TrainedModel], digits: Dataset) -> None:
    chosen = {"images": 50, "samples": 700, "reference": "train", "seed": 5}
    card = evaluate(trained["vae"], digits, ["val_frechet", "val_mse"], **chosen)
    frechet, mse = card.values["val_frechet"], card.values["val_mse"]
    assert (frechet.reference, frechet.images, frechet.samples) == ("train", 1437, 700)
    assert (mse.reference, mse.images, mse.samples) == (None, 50, None)
    assert frechet.real_samples == 360, "all that are no training images"
    network, images = _features.random_network(), digits.train.images.float() / 255
    made = _features.of_samples(trained["vae"].model, 700, 5, network)
    compare = metrics.find("val_frechet").compare
    assert compare is not None
    assert frechet.value == pytest.approx(compare(_features.features(images, network), made))
    few = evaluate(trained["vae"], digits, ["val_frechet"], images=50).values["val_frechet"]
    assert (few.reference, few.images, few.samples, few.real_samples) == ("validation", 50, 50, 50)


def test_the_bias_of_few_images_is_stated(trained: dict[str, TrainedModel], digits: Dataset) -> None:
    """Two sets of real images are some way apart, the fewer they are the further: a value below that is no better."""
    found = {
        count: evaluate(trained["gan"], digits, ["val_frechet"], images=count).values["val_frechet"].real_against_real
        for count in (40, 80, 180)
    }
    few, more, most = found.values()
    assert few is not None
    assert more is not None
    assert most is not None
    assert few > more > most > 0.1
    assert digits.test is not None
    network = _features.random_network()
    parts = (digits.validation.images, digits.test.images)
    real, others = (_features.features(images.float() / 255, network) for images in parts)
    compare = metrics.find("val_frechet").compare
    assert compare is not None
    assert most == pytest.approx(compare(real, others))


def test_real_images_are_looked_at_once_for_all_models(
    trained: dict[str, TrainedModel], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    features = _features.features
    monkeypatch.setattr(_features, "features", lambda *given: calls.append(len(given[0])) or features(*given))
    judge = Judge(digits, Protocol(images=150, samples=160))
    for model in (trained["gan"], trained["vae"]):
        assert judge.judge(model, ["val_frechet"]).values["val_frechet"].value is not None
    assert calls == [150, 160, 160, 160]


@pytest.mark.parametrize(
    ("model", "names", "options", "error", "message"),
    [
        ("ae", ["val_frechet"], {}, SpecError, "ae cannot be judged by val_frechet; it can by .*val_mse, val_psnr"),
        ("gan", ["val_fretchet"], {}, SpecError, "there is no metric 'val_fretchet'; did you mean 'val_frechet'"),
        ("gan", ["val_kid"], {"network": "vgg"}, SpecError, "no feature network 'vgg'; networks: random, classifier"),
        ("gan", ["val_kid"], {"images": 1}, SpecError, "2 validation images or more, not 1"),
        ("gan", ["val_kid"], {"samples": 1}, SpecError, "2 samples or more are compared, not 1"),
        ("vae", ["val_is_log_likelihood"], {"is_samples": 0}, SpecError, "1 importance sample or more, not 0"),
        ("ae", ["val_anomaly_auroc"], {}, DataError, "add --normal-class 0"),
        ("gan", ["val_linear_probe"], {}, SpecError, "gan cannot be judged by val_linear_probe"),
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
        evaluate(trained[model], digits, names, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_other_data_are_refused(trained: dict[str, TrainedModel], digits: Dataset) -> None:
    larger = data.load(DataOptions(image_size=16))
    with pytest.raises(SpecError, match="the model takes images of 8×8 with 1 channel, but digits has"):
        evaluate(trained["ae"], larger, ["val_mse"])
    unlabelled = Dataset("mine", Part(digits.train.images), Part(digits.validation.images), None, "")
    with pytest.raises(DataError, match="mine has no labels to train the classifier network on"):
        evaluate(trained["gan"], unlabelled, ["val_kid"], network="classifier")
    for name in ("val_class_kl", "val_linear_probe"):
        with pytest.raises(DataError, match=f"{name} needs labels of two classes or more"):
            evaluate(trained["vae"], unlabelled, [name])


# What stands beside a value


def test_samples_are_held_against_the_training_images(trained: dict[str, TrainedModel], digits: Dataset) -> None:
    """All of them, whatever the part is; as many samples as are asked for, and all held-out images in their place."""
    chosen = {"split": "test", "reference": "validation", "images": 90, "samples": 250}
    card = evaluate(trained["vae"], digits, sorted(AGAINST_TRAINING), **chosen)
    for value in card.values.values():
        assert (value.reference, value.images, value.samples, value.real_samples) == ("train", 1437, 250, 90)
        assert value.prior == "standard normal"
    mse = card.values["test_nearest_mse"]
    assert digits.test is not None
    pixels = [part.images.flatten(1).double() / 255 for part in (digits.test, digits.train)]
    nearest = torch.cdist(pixels[0][:90], pixels[1]).amin(dim=1).square() / 64
    assert mse.real_against_real == pytest.approx(nearest.mean().item(), rel=1e-5)


def test_a_model_of_one_class_is_held_against_that_class(digits: Dataset, tmp_path: Path) -> None:
    spec = TrainSpec.create("vae", {"model.hidden": [16], "training.epochs": 1, "data.normal_class": 3})
    model = build_model(spec, ImageShape(1, 8, 8), CPU).eval().requires_grad_(False)
    values = evaluate(TrainedModel(model, spec, {}), digits, ["val_nearest_mse", "val_mse"]).values
    threes = len(digits.only(3).train.images)
    assert values["val_nearest_mse"].images == threes
    assert values["val_mse"].baseline is not None
    assert values["val_mse"].baseline.fitted_on == threes
    for name in ("val_class_kl", "val_linear_probe"):
        with pytest.raises(DataError, match=f"{name} needs labels of two classes or more"):
            evaluate(TrainedModel(model, spec, {}), digits, [name])


def test_pca_restores_what_a_model_is_given_to_restore(digits: Dataset) -> None:
    settings = {"model.hidden": [16], "data.corruption": "noise", "data.corruption_std": 0.5}
    found = {}
    for spec in (TrainSpec.create("ae", settings), TrainSpec.create("ae", {"model.hidden": [16]})):
        model = build_model(spec, ImageShape(1, 8, 8), CPU).eval().requires_grad_(False)
        values = evaluate(TrainedModel(model, spec, {}), digits, ["val_mse", "val_linear_probe"]).values
        found[spec.data.corruption] = [each.baseline.value for each in values.values() if each.baseline]
    (noisy_mse, noisy_probe), (clean_mse, clean_probe) = found["noise"], found[None]
    assert noisy_mse > 2 * clean_mse
    assert noisy_probe < clean_probe - 0.05


def test_a_card_from_before_there_were_baselines_is_read(
    trained: dict[str, TrainedModel], digits: Dataset, tmp_path: Path
) -> None:
    card = evaluate(trained["vae"], digits, ["val_mse"], images=10)
    before = card.model_dump(mode="json")
    del before["values"]["val_mse"]["baseline"]
    (tmp_path / "evaluation.json").write_text(json.dumps(before))
    evaluate(trained["vae"], digits, ["val_mse"], images=10, split="test").write(tmp_path)
    kept = EvaluationCard.model_validate_json((tmp_path / "evaluation.json").read_text())
    assert list(kept.values) == ["val_mse", "test_mse"]
    assert kept.values["val_mse"].baseline is None


def test_a_card_says_what_each_value_was_found_on_and_older_ones_are_read(
    trained: dict[str, TrainedModel], digits: Dataset, tmp_path: Path
) -> None:
    card = evaluate(trained["vae"], digits, ["val_mse", "val_frechet", "val_nearest_mse"], images=50)
    assert {(value.device, value.precision, value.tf32) for value in card.values.values()} == {("CPU", "fp32", False)}
    before = card.model_dump(mode="json")
    for value in before["values"].values():
        for name in ("device", "precision", "tf32"):
            del value[name]
    (tmp_path / "evaluation.json").write_text(json.dumps(before))
    evaluate(trained["vae"], digits, ["val_mse"], images=10, split="test").write(tmp_path)
    kept = EvaluationCard.model_validate_json((tmp_path / "evaluation.json").read_text()).values
    assert {(value.device, value.split) for value in kept.values()} == {(None, "validation"), ("CPU", "test")}


def test_a_model_is_judged_in_exact_float32_and_the_settings_come_back(
    trained: dict[str, TrainedModel], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    decode = trained["ae"].model.decode

    def watched(latents: Tensor) -> Tensor:
        seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()))
        return decode(latents)

    monkeypatch.setattr(trained["ae"].model, "decode", watched)
    before = torch.backends.cudnn.allow_tf32
    evaluate(trained["ae"], digits, ["val_mse", "val_ssim"], images=50)
    assert seen == {("highest", False, False)}
    assert torch.backends.cudnn.allow_tf32 == before
