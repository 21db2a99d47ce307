"""Cards and comparisons of really trained small models."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

import raygen
from cli import cards
from cli.main import app
from raygen import comparison, data, evaluation, inspection, prior
from raygen.data import Dataset
from raygen.errors import SpecError
from raygen.evaluation_card import CARD, EvaluationCard
from raygen.protocol import Protocol
from raygen.record.run import Run
from raygen.results import TrainedModel
from raygen.storage import Storage
from tests.cli.conftest import best_folder


def judged(runner: CliRunner, command: str) -> Any:
    result = runner.invoke(app, [*command.split(), "-o", "json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def compared(runner: CliRunner, command: str) -> Result:
    result = runner.invoke(app, command.split())
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("model", ["ae", "vae", "gan", "aegan"])
def test_all_suitable_metrics_are_on_the_card(
    trained: CliRunner, trained_storage: Path, digits: Dataset, model: str
) -> None:
    run = Run(Storage(trained_storage), model)
    run.put_beside_best(CARD, b"{}")  # it may hold another test's values on the test part
    printed = judged(trained, f"evaluate {model} --images 100 --seed 3")
    card = EvaluationCard.model_validate_json(run.best_file(CARD))
    assert card.model_dump(mode="json") == printed
    loaded = raygen.load(model, storage=trained_storage)
    expected = evaluation.evaluate(loaded, digits, None, Protocol(images=100, seed=3))
    assert card == expected
    left_out = {"val_modes", "val_anomaly_auroc", "val_is_log_likelihood"}
    assert list(card.values) == [name for name in evaluation.suitable_metrics(loaded) if name not in left_out]
    assert {value.prior for value in card.values.values() if value.network} == (
        set() if model == "ae" else {"standard normal"}
    )
    [trial] = run.look().trials
    assert card.train_s == trial.train_s(loaded.metrics["epoch"])
    assert card.train_s


def test_what_is_left_out_is_said_with_what_would_have_it_in(trained: CliRunner) -> None:
    said = trained.invoke(app, ["evaluate", "vae", "--images", "50"]).stderr
    assert "val_anomaly_auroc (--normal-class 0 has it)" in said
    assert "val_is_log_likelihood (it takes minutes; --is-samples 5000 has it)" in said
    values = judged(trained, "evaluate vae --images 50 --normal-class 0 --is-samples 10")["values"]
    assert values["val_anomaly_auroc"]["details"]["normal_class"] == 0
    assert values["val_is_log_likelihood"]["details"]["importance_samples"] == 10


def test_what_needs_classes_is_left_out_without_them(trained: CliRunner) -> None:
    np.save("plain.npy", np.random.RandomState(0).randint(256, size=(200, 8, 8)).astype(np.uint8))
    for command in ("evaluate vae --images 50 --data plain.npy", "evaluate zeros"):
        result = compared(trained, command)
        assert "val_linear_probe (it needs labels of two classes or more in all parts, below 10,000)" in result.stderr
        assert not {"class_kl", "linear_probe"} & set(result.stdout.split())
    assert "val_class_kl (it needs labels of two classes or more in all parts, below 10,000)" not in result.stderr, (
        "it does not suit an ae anyway"
    )


def test_a_value_s_yardstick_stands_beside_it(trained: CliRunner) -> None:
    result = compared(trained, "evaluate vae --images 100")
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines()}
    values = judged(trained, "evaluate vae --images 100")["values"]
    for name, row in rows.items():
        value = values.get(f"val_{name}")
        if value is None:
            assert row == ["metric", "value", "compare", "with", "samples", "images"]
        elif value["baseline"]:
            assert row[3:] == ["PCA", f"{value['baseline']['value']:.4g}", "–", "100"]
        elif value["samples"]:
            assert row[3:] == ["real", f"{value['real_against_real']:.4g}", "100", str(value["images"])]
        else:
            assert row[3:] == ["–", "–", "100"]
    assert (
        "; real: 100 other images in their place; class_kl, nearest_mse, nearest_ssim: against training images, "
        "real: validation images in the place of samples; PCA: of as many dimensions as the latents, fitted on 1437 "
        "training images" in result.stderr
    )
    plain = compared(trained, "evaluate vae --images 100 --metrics compression")
    assert plain.stdout.splitlines()[0].split() == ["metric", "value", "images"]


def test_a_comparison_by_distance_to_training_images_says_so(trained: CliRunner) -> None:
    said = compared(trained, "compare vae gan --metrics nearest_mse,frechet --images 100").stderr
    values = judged(trained, "evaluate vae --metrics nearest_mse,frechet --images 100")["values"]
    mse, frechet = (values[name]["real_against_real"] for name in ("val_nearest_mse", "val_frechet"))
    assert said.startswith("100 validation images of digits, 100 samples against 100 validation images over")
    assert f"other images in their place: frechet {frechet:.4g}; nearest_mse: against training images" in said
    assert f"in the place of samples: nearest_mse {mse:.4g}\n" in said
    alone = compared(trained, "compare vae gan --metrics nearest_mse --images 100").stderr
    assert alone.startswith("validation images of digits, seed 0; nearest_mse: against training images")


def test_what_would_take_minutes_is_left_out_with_what_has_it(
    models: dict[str, TrainedModel], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "MANY_CLASSES", 9)
    monkeypatch.setattr(evaluation, "MANY_PIXELS", 90_000)
    card = evaluation.evaluate(models["vae"], digits, None, Protocol(images=20))
    assert card.left_out["val_linear_probe"].endswith("--metrics linear_probe has it")
    assert card.left_out["val_nearest_mse"].endswith("--metrics nearest_mse,nearest_ssim has it")
    assert not {"val_linear_probe", "val_nearest_mse", "val_nearest_ssim"} & set(card.values)


COMMANDS = {
    "evaluate": "evaluate vae --metrics mse --images 20",
    "compare": "compare vae gan --metrics frechet --images 20",
    "score": "score vae",
    "encode": "encode vae",
    "decode": "decode vae latents.npz -o decoded.npz",
    "sample": "sample vae -n 3",
    "map": "map vae --images 20",
    "interpolate": "interpolate vae --rows 1",
    "reconstruct": "reconstruct vae -n 3",
    "restore": "restore noisy --data damaged -o restored",
}
"""All that run a trained model."""


def test_every_command_runs_on_the_device_that_is_named(trained: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("damaged").mkdir()
    Image.new("L", (8, 8)).save("damaged/one.png")
    for command in COMMANDS.values():
        compared(trained, f"{command} --device cpu")
        shutil.rmtree("restored", ignore_errors=True)
        refused = trained.invoke(app, [*command.split(), "--device", "cuda:1"])
        assert refused.exit_code == 2
        assert "--device cuda:1: CUDA finds no GPU on this machine; use --device auto or cpu" in refused.stderr
    options = {name: {each.name for each in typer.main.get_command(app).commands[name].params} for name in COMMANDS}
    assert all("device" in found for found in options.values())


def test_a_gpu_is_named_under_the_values_that_were_found_on_it(trained: CliRunner) -> None:
    card = EvaluationCard.model_validate(judged(trained, "evaluate vae --metrics mse,frechet --images 20"))
    assert "TF32" not in cards.card_subject(card)
    found = {name: value.model_copy(update={"device": "NVIDIA H200"}) for name, value in card.values.items()}
    said = cards.card_subject(card.model_copy(update={"values": found}))
    assert said.endswith("; on NVIDIA H200 in fp32 without TF32")


def test_names_may_lack_their_prefix_and_order_and_network_are_kept(trained: CliRunner) -> None:
    card = judged(trained, "evaluate gan --metrics kid,val_coverage --network classifier --images 100")
    assert list(card["values"]) == ["val_kid", "val_coverage"]
    for value in card["values"].values():
        assert value["network"] == "classifier"
        assert value["network_facts"]["held_out_accuracy"] > 0.9


def test_an_autoencoder_with_a_mixture_is_judged_as_a_sampler(trained: CliRunner) -> None:
    plain = judged(trained, "evaluate ae --images 150")
    mixed = judged(trained, "evaluate ae --prior gmm --images 150")
    assert mixed["values"]["val_frechet"]["prior"] == "gmm of 10"
    assert {name: mixed["values"][name] for name in plain["values"]} == plain["values"]
    assert "val_frechet" not in plain["values"]
    gan = judged(trained, "evaluate gan --metrics frechet --images 150")
    assert mixed["values"]["val_frechet"]["value"] < gan["values"]["val_frechet"]["value"]


def test_a_card_of_a_file_lies_beside_it(trained: CliRunner, trained_storage: Path, tmp_path: Path) -> None:
    best = best_folder(trained_storage, "ae", tmp_path / "taken")
    for name, copy in (("model.safetensors", "mine.safetensors"), ("spec.json", "spec.json")):
        shutil.copy(best / name, tmp_path / copy)
    judged(trained, "evaluate mine.safetensors --metrics mse --images 50")
    card = EvaluationCard.model_validate_json((tmp_path / "evaluation.json").read_text())
    assert (list(card.values), card.train_s) == (["val_mse"], None)


def test_other_images_are_judged_with_data(trained: CliRunner) -> None:
    np.save("noise.npy", np.random.RandomState(0).randint(256, size=(200, 8, 8)).astype(np.uint8))
    own = judged(trained, "evaluate ae --metrics mse --images 20")
    other = judged(trained, "evaluate ae --metrics mse --images 20 --data noise.npy")
    assert (own["data"], other["data"]) == ("digits", "noise")
    assert other["values"]["val_mse"]["value"] > 2 * own["values"]["val_mse"]["value"]


def test_a_model_of_one_class_is_judged_on_it_and_finds_the_others(trained: CliRunner, digits: Dataset) -> None:
    """Only the area under the ROC curve is over all classes, and needs no option."""
    values = judged(trained, "evaluate zeros")["values"]
    assert digits.validation.labels is not None
    normal = int((digits.validation.labels == 0).sum())
    assert (values["val_mse"]["images"], values["val_anomaly_auroc"]["images"]) == (
        normal,
        len(digits.validation.images),
    )
    details = values["val_anomaly_auroc"]["details"]
    assert (details["normal_class"], details["normal_images"]) == (0, normal)
    assert values["val_anomaly_auroc"]["value"] > 0.95
    trained_on_all = judged(trained, "evaluate ae --metrics anomaly_auroc --normal-class 0")["values"]
    assert trained_on_all["val_anomaly_auroc"]["value"] < values["val_anomaly_auroc"]["value"]


def test_what_a_model_of_one_class_finds_strange(trained: CliRunner) -> None:
    """Scores are of all classes, reconstructions of the one."""
    assert trained.invoke(app, ["score", "zeros", "-o", "scores.csv"]).exit_code == 0
    with Path("scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["label"] for line in lines} == set("0123456789")
    ranked = sorted(lines, key=lambda line: float(line["reconstruction_mse"]))
    assert sum(line["label"] == "0" for line in ranked[:10]) >= 8
    said = compared(trained, "reconstruct zeros --n 100 -o pairs.png").stderr
    assert said.startswith(f"{sum(line['label'] == '0' for line in lines)} validation images")


# Comparisons


@pytest.fixture(scope="session")
def models(trained_storage: Path) -> dict[str, TrainedModel]:
    return {name: raygen.load(name, storage=trained_storage) for name in ("ae", "vae", "gan")}


def test_the_first_metric_ranks_and_what_does_not_suit_is_a_dash(trained: CliRunner) -> None:
    found = judged(trained, "compare gan ae vae --metrics mse,frechet --images 100 --seed 2")
    assert found["metrics"] == ["val_mse", "val_frechet"]
    ranking = {each["run"]: each["values"] for each in found["ranking"]}
    *able, last = ranking
    assert last == "gan"
    assert set(ranking["gan"]) == {"val_frechet"}
    assert set(ranking["ae"]) == {"val_mse"}
    values = [ranking[name]["val_mse"]["value"] for name in able]
    assert values == sorted(values)
    circumstances = {(value["images"], value["seed"]) for each in ranking.values() for value in each.values()}
    assert circumstances == {(100, 2)}
    table = compared(trained, "compare gan ae vae --metrics mse,frechet --images 100 --seed 2")
    lines = table.stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == list(ranking)
    assert lines[-1].split()[-2] == "–"
    said = "100 validation images of digits, 100 samples against 100 validation images over the network random, seed 2"
    assert said in table.stderr
    real = ranking["gan"]["val_frechet"]["real_against_real"]
    assert f"; real: 100 other images in their place: frechet {real:.4g}" in table.stderr


def test_a_comparison_on_test_images_names_its_values_so(trained: CliRunner) -> None:
    found = judged(trained, "compare vae gan --metrics frechet --split test --samples 90")
    assert found["metrics"] == ["test_frechet"]
    for each in found["ranking"]:
        value = each["values"]["test_frechet"]
        assert (value["split"], value["reference"], value["images"], value["samples"]) == ("test", "test", 180, 90)
    table = compared(trained, "compare vae gan --metrics frechet --split test --samples 90")
    assert "180 test images of digits, 90 samples against 180 test images over" in table.stderr


def test_an_evaluation_on_one_part_keeps_the_card_of_the_other(trained: CliRunner, trained_storage: Path) -> None:
    judged(trained, "evaluate gan --metrics frechet --images 60")
    said = compared(trained, "evaluate gan --metrics frechet --split test --reference train --samples 50")
    assert "gan on test images of digits" in said.stderr
    assert "50 samples against 1437 training images" in said.stderr
    assert "card in gan/best/1\n" in said.stderr
    card = EvaluationCard.model_validate_json(Run(Storage(trained_storage), "gan").best_file(CARD))
    assert {name: (value.split, value.images) for name, value in card.values.items()} == {
        "val_frechet": ("validation", 60),
        "test_frechet": ("test", 1437),
    }


def test_a_comparison_says_what_an_evaluation_says(trained: CliRunner) -> None:
    together = judged(trained, "compare vae gan --metrics coverage,kid --images 100")
    for each in together["ranking"]:
        alone = judged(trained, f"evaluate {each['run']} --metrics coverage,kid --images 100")
        assert alone["values"] == each["values"]
    values = [each["values"]["val_coverage"]["value"] for each in together["ranking"]]
    assert values == sorted(values, reverse=True), "coverage is better higher"


def test_a_difference_is_told_beside_the_spread(trained: CliRunner) -> None:
    found = judged(trained, "compare ae vae --metrics mse")["differences"]
    values = [judged(trained, f"evaluate {run} --metrics mse")["values"]["val_mse"]["value"] for run in ("ae", "vae")]
    [difference] = found
    assert difference["difference"] == pytest.approx(abs(values[0] - values[1]))
    assert 0 < difference["spread"] < difference["difference"], "an autoencoder's reconstructions are clearly better"
    assert (difference["name"], difference["within_spread"], difference["over_seeds"]) == ("val_mse", False, False)
    said = compared(trained, "compare ae vae --metrics mse").stderr
    assert "ae and vae differ by " in said
    assert " in val_mse, beyond the spread (±" in said


def test_models_alike_are_within_the_spread(trained: CliRunner, trained_storage: Path, tmp_path: Path) -> None:
    best_folder(trained_storage, "gan", tmp_path).rename("twin")
    said = compared(trained, "compare gan twin --metrics frechet").stderr
    assert "gan and twin differ by 0 in val_frechet, within the spread (±0 over images)" in said


def test_what_is_neither_a_mean_nor_a_comparison_has_no_spread(trained: CliRunner) -> None:
    assert judged(trained, "compare ae vae --metrics compression --images 100")["differences"] == []
    assert judged(trained, "compare ae vae --metrics mse --images 30")["differences"] == [], "too few images"


def test_the_spread_over_seeds_is_part_of_it(models: dict[str, TrainedModel], digits: Dataset) -> None:
    protocol = Protocol(images=100)
    over_seeds = {"val_mse": {"mean": 0.5, "spread": 0.3, "seeds": 3}}
    of_seeds = {name: replace(models[name], metrics={"over_seeds": over_seeds}) for name in ("ae", "vae")}
    mixed = {"ae": of_seeds["ae"], "vae": models["vae"]}
    told = []
    for pair in ({name: models[name] for name in ("ae", "vae")}, mixed, of_seeds):
        told += comparison.compare(pair, digits, ["val_mse"], protocol).differences
    assert [each.over_seeds for each in told] == [False, False, True]
    images = told[0].spread
    assert told[1].spread == pytest.approx(math.hypot(images, 2 * 0.3))
    assert told[2].spread == pytest.approx(math.hypot(images, 2 * 0.3 * math.sqrt(2)))
    assert told[2].is_within


def test_a_mixture_is_for_those_without_a_prior_and_the_table_says_so(trained: CliRunner) -> None:
    result = compared(trained, "compare vae ae --prior gmm --images 100 --picture all.png")
    rows = {line.split()[1]: line for line in result.stdout.splitlines()[1:]}
    assert "(ae + gmm of 10" in rows["ae"]
    assert "gmm" not in rows["vae"]
    assert "–" not in rows["ae"]
    with Image.open("all.png") as picture:
        width, height = picture.size
        assert height == 2 * 34
        assert width > 10 * 34
        labels, samples = picture.crop((0, 0, width - 340, height)), picture.crop((width - 340, 0, width, height))
        assert len(set(labels.tobytes())) > 5
        assert len(set(samples.tobytes())) > 50


def test_a_model_without_samples_has_an_empty_row_in_the_picture(trained: CliRunner) -> None:
    compared(trained, "compare ae gan --metrics mse --images 20 --picture all.png")
    with Image.open("all.png") as picture:
        samples = np.asarray(picture)[:, picture.width - 340 :]
    assert samples[:34].max() == 0
    assert samples[34:].max() > 100


def test_runs_on_other_data_are_refused(models: dict[str, TrainedModel], digits: Dataset) -> None:
    ae, vae = models["ae"], models["vae"]
    moved = TrainedModel(vae.model, vae.spec.with_settings({"data.source": "mnist"}), {})
    with pytest.raises(SpecError, match=r"ae and vae cannot be compared: their data.source is digits and mnist"):
        comparison.check_data({"ae": ae, "vae": moved})
    split = TrainedModel(vae.model, vae.spec.with_settings({"data.validation_fraction": 0.2}), {})
    with pytest.raises(SpecError, match=r"data.validation_fraction is 0.1 and 0.2"):
        comparison.check_data({"ae": ae, "vae": split})
    changed = TrainedModel(vae.model, vae.spec, {"data": {"digest": "0123"}})
    with pytest.raises(
        SpecError, match=r"ae and vae cannot be compared: they were trained on different images"
    ) as told:
        comparison.check_data({"ae": ae, "vae": changed})
    assert "\n" not in str(told.value)
    comparison.check_data(models)


def computable(model: TrainedModel) -> list[str]:
    return [name for name in evaluation.suitable_metrics(model) if name not in ("val_modes", "val_anomaly_auroc")]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_tables_fit_their_terminal(models: dict[str, TrainedModel], digits: Dataset, columns: int) -> None:
    names = ["val_frechet", "val_precision", "val_recall", "val_coverage", "val_ssim"]
    named = {f"{name}-digits-20261120-173308": model for name, model in models.items()}
    ranked = comparison.compare(named, digits, names, Protocol(network="classifier", images=50)).ranked
    console = Console(width=columns, file=io.StringIO())
    console.print(cards.comparison_table(ranked, names))
    console.print(cards.card_table(ranked[0].card))
    every = evaluation.evaluate(models["vae"], digits, computable(models["vae"]), Protocol(images=50, is_samples=10))
    if columns >= 80:
        console.print(cards.card_table(every))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= columns for line in text.splitlines())
    for each in ranked:
        for name in names:
            value = each.value(name)
            assert value is None or f"{value:.4g}" in text, "no value is cut"
    assert text.count("–") >= 2
    assert "…" not in text


# The mixture


def test_a_mixture_has_the_moments_of_the_latents(models: dict[str, TrainedModel], digits: Dataset) -> None:
    mixed = prior.with_mixture(models["ae"], digits)
    assert mixed.prior is not None
    sampler = mixed.prior.sampler
    assert isinstance(sampler, prior.MixtureSampler)
    drawn = sampler.latents(torch.randn(50_000, sampler.latent_dim, generator=torch.Generator().manual_seed(0)))
    latents = inspection.encode(models["ae"], digits.train.images)
    scale = latents.std(dim=0)
    assert ((drawn.mean(dim=0) - latents.mean(dim=0)).abs() < 0.05 * scale).all()
    assert (drawn.T.cov() - latents.T.cov()).abs().max() < 0.05 * scale.square().max()


def test_a_mixture_of_one_is_a_gaussian_and_more_fit_better(models: dict[str, TrainedModel], digits: Dataset) -> None:
    def distance(components: int) -> float:
        mixed = prior.with_mixture(models["ae"], digits, components)
        value = evaluation.evaluate(mixed, digits, ["val_frechet"], Protocol()).values["val_frechet"].value
        assert value is not None
        return value

    assert distance(20) < distance(1)


def test_latents_all_alike_are_fitted_too(models: dict[str, TrainedModel], digits: Dataset) -> None:
    same = replace(digits, train=data.Part(digits.train.images[:1].expand(40, -1, -1, -1)))
    mixed = prior.with_mixture(models["ae"], same, 3)
    assert mixed.prior is not None


def test_curves_are_drawn_from_what_epochs_showed(trained: CliRunner, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    said = compared(trained, f"compare vae gan --metrics frechet,elbo --curves {path} --against images")
    assert [line.split()[0] for line in said.stdout.splitlines()[1:]] == ["gan"], "epochs of vae show no distance"
    assert "curves of frechet, elbo in" in said.stderr
    assert path.stat().st_size > 0
    found = json.loads(compared(trained, f"compare vae gan --metrics elbo --curves {path} -o json").stdout)
    assert (found["metric"], found["against"]) == ("val_elbo", "epoch")
    [row] = found["configurations"]
    assert (row["name"], row["seeds"], row["reached"], row["best"]) == ("vae", 1, 1, found["level"])
    refused = trained.invoke(app, ["compare", "vae", "gan", "--against", "time"])
    assert (refused.exit_code, "give --curves FILE.png too" in refused.stderr) == (2, True)
