from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import raygen
from cli import render
from raygen import metrics, pictures, results
from raygen.data import Dataset
from raygen.errors import CheckpointError, RunError
from raygen.models._base import Sampler
from raygen.plan import Plan
from raygen.runs import Run, Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.training.distributed import CPU
from raygen.training.evaluation import evaluate, held_out_images
from raygen.training.loop import fit

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
SMALL = {
    "model.arch": "mlp",
    "model.hidden": [32],
    "training.epochs": 2,
    "training.checkpoint_every_s": 0,
    "search.keep_best": 2,
}
RATES = (1e-6, 3e-3, 1e-3)  # of three trials, of which the first learns next to nothing
MODELS = ("ae", "vae", "gan")


def new_run(storage: Path, spec: TrainSpec) -> Run:
    kind = "tune" if isinstance(spec, TuneSpec) else "train"
    return Run.create(storage, kind, spec, PLAN, metrics.find(spec.evaluation.objective).direction)


def train(run: Run, number: int, parameters: dict[str, Any], digits: Dataset) -> Trial:
    spec = run.spec()
    trial = run.new_trial(number, parameters, spec.trial_spec(parameters) if isinstance(spec, TuneSpec) else spec)
    for epoch in fit(trial.spec(), digits, trial.checkpoint):
        trial.record_epoch(epoch)
    trial.set_status("finished")
    return trial


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> dict[str, Run]:
    """A search of each family, ended and collected."""
    made = {}
    for model in MODELS:
        run = made[model] = new_run(tmp_path_factory.mktemp("storage"), TuneSpec.search_over(model, model, SMALL))
        for number, lr in enumerate(RATES, start=1):
            parameters = {"optimizer.lr": lr, "training.batch_size": 64, "model.latent_dim": 4 + number}
            train(run, number, parameters, digits)
        results.collect_best(run)
    return made


@pytest.fixture(params=MODELS)
def search(request: pytest.FixtureRequest, searches: dict[str, Run]) -> Run:
    return searches[request.param]


@pytest.fixture
def small_run(storage: Path, digits: Dataset) -> Run:
    """One autoencoder's training, collected; a test may damage it."""
    settings = {name: value for name, value in SMALL.items() if not name.startswith("search.")}
    run = new_run(storage, TrainSpec.create("ae", settings))
    train(run, 1, {}, digits)
    results.collect_best(run)
    return run


# Collecting


def test_the_best_are_collected_the_very_best_first(search: Run) -> None:
    assert [place.name for place in search.best_places()] == ["1", "2"]
    found = [json.loads((place / "metrics.json").read_text()) for place in search.best_places()]
    records = search.records()
    assert [entry["trial"] for entry in found] == [record.number for record in records[:2]]
    assert [entry["value"] for entry in found] == [record.objective for record in records[:2]]
    assert metrics.find(search.objective).is_better(found[0]["value"], than=found[1]["value"])
    assert found[0]["parameters"] == records[0].parameters
    assert found[0]["objective"] == search.objective
    assert search.can_sample() == (search.spec().model.name != "ae")
    assert [entry["value"] for entry in search.summary()["best"]] == [entry["value"] for entry in found]


def test_what_is_loaded_is_what_was_judged(search: Run, digits: Dataset) -> None:
    for place in search.best_places():
        trained = results.load(place)
        assert trained.spec.model.latent_dim == trained.metrics["parameters"]["model.latent_dim"]
        assert trained.spec.optimizer.lr == trained.metrics["parameters"]["optimizer.lr"]
        images = held_out_images(digits.validation.images, trained.spec.evaluation, CPU)
        values = evaluate(trained.model, images, trained.spec.evaluation)
        assert values[search.objective] == pytest.approx(trained.metrics["value"], rel=1e-5)
        assert values == pytest.approx({name: trained.metrics["metrics"][name] for name in values}, rel=1e-5)


def test_loaded_models_are_ready_for_a_notebook(search: Run) -> None:
    trained = results.load(search.best())
    assert not trained.model.training
    assert not any(parameter.requires_grad for parameter in trained.model.parameters())


def test_a_model_is_loaded_by_name_run_folder_or_best_folder(search: Run) -> None:
    storage = search.folder.parent
    first = raygen.load(search.name, storage=storage)
    for loaded in (raygen.load(search.folder), raygen.load(str(search.best())), raygen.load(search.best())):
        assert loaded.metrics == first.metrics
        weights, expected = loaded.model.state_dict(), first.model.state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert raygen.load(search.best(2)).metrics["trial"] != first.metrics["trial"]


def test_each_has_its_picture(search: Run) -> None:
    for place in search.best_places():
        with Image.open(place / "samples.png") as picture:
            assert picture.format == "PNG"
            # 64 samples in 8 rows of 8, or 16 images above their reconstructions; 8 pixels ×4 and a border of 1.
            assert picture.size == ((16 * 34, 2 * 34) if search.spec().model.name == "ae" else (8 * 34, 8 * 34))
            assert len(set(picture.tobytes())) > 10


def test_collecting_again_puts_the_new_in_the_place_of_the_old(small_run: Run) -> None:
    (small_run.best() / "left-over").touch()
    results.collect_best(small_run)
    assert sorted(path.name for path in small_run.best().iterdir()) == [
        "metrics.json",
        "model.safetensors",
        "samples.png",
        "spec.json",
    ]
    assert [path.name for path in small_run.folder.glob(".*")] == []


def test_the_best_of_a_search_are_judged_once_more_on_all_held_out_images(storage: Path, digits: Dataset) -> None:
    run = new_run(storage, TuneSpec.search_over("vae", "vae", {**SMALL, "evaluation.images": 50}))
    for number, lr in enumerate(RATES, start=1):
        train(run, number, {"optimizer.lr": lr, "training.batch_size": 64, "model.latent_dim": 4}, digits)
    results.collect_best(run)
    found = [json.loads((place / "metrics.json").read_text()) for place in run.best_places()]
    for place, entry in zip(run.best_places(), found, strict=True):
        options = run.spec().evaluation.model_copy(update={"images": len(digits.validation.images)})
        values = evaluate(results.load(place).model, held_out_images(digits.validation.images, options, CPU), options)
        assert entry["full_evaluation"]["images"] == 180
        assert entry["full_evaluation"]["metrics"] == pytest.approx(values)
        assert entry["over_seeds"] == {"mean": values["val_elbo"], "spread": None, "seeds": 1}
    assert [record.number for record in run.records()[:2]] == [entry["configuration"] for entry in found]
    assert run.records()[0].mean != run.records()[0].objective


def test_the_best_are_run_on_further_seeds_and_ranked_by_the_mean(storage: Path, digits: Dataset) -> None:
    run = new_run(storage, TuneSpec.search_over("ae", "ae", {**SMALL, "search.replicates": 3, "search.trials": 3}))
    assert run.number_of_trials == 3 + 2 * 2
    for number, lr in enumerate(RATES, start=1):
        train(run, number, {"optimizer.lr": lr, "training.batch_size": 64, "model.latent_dim": 4}, digits)
    assert not run.is_complete()
    run.add_replicates()
    run.add_replicates()  # as after a lost driver: nothing is made twice
    made = [trial for trial in run.trials() if trial.replicate_of is not None]
    assert [(trial.number, trial.replicate_of, trial.spec().seed) for trial in made] == [
        (4, 2, 1),
        (5, 2, 2),
        (6, 3, 1),
        (7, 3, 2),
    ]
    for trial in made:
        assert trial.spec() == run.trial(trial.replicate_of or 0).spec().with_settings({"seed": trial.spec().seed})
        for epoch in fit(trial.spec(), digits, trial.checkpoint):
            trial.record_epoch(epoch)
        trial.set_status("finished")
    assert run.is_complete()
    results.collect_best(run)

    values = {trial.number: trial.record("val_mse").objective or 0.0 for trial in run.trials()}
    groups = {2: [values[number] for number in (2, 4, 5)], 3: [values[number] for number in (3, 6, 7)]}
    ranked = sorted(groups, key=lambda number: statistics.fmean(groups[number]))
    for record, number in zip(run.records(), ranked, strict=False):
        assert record.number == number
        assert (record.mean, record.seeds) == (pytest.approx(statistics.fmean(groups[number])), 3)
        assert record.spread == pytest.approx(statistics.stdev(groups[number]))
    best = json.loads((run.best() / "metrics.json").read_text())
    assert best["value"] == min(groups[ranked[0]])
    assert values[best["trial"]] == best["value"]
    table = Console(width=200)
    with table.capture() as shown:
        table.print(render.trial_table(run, run.records()))
    assert " ± " in shown.get()
    assert "4 (2)" in shown.get()


def test_an_extended_run_lets_finished_trials_go_on_where_epochs_are_more(storage: Path, digits: Dataset) -> None:
    run = new_run(storage, TuneSpec.search_over("ae", "ae", {**SMALL, "search.trials": 2}))
    for number in (1, 2):
        train(run, number, {"optimizer.lr": 1e-3, "training.batch_size": 64, "model.latent_dim": 4}, digits)
    run.trial(2).set_status("stopped", "by the scheduler")
    spec = run.spec()
    assert isinstance(spec, TuneSpec)
    run.extend(spec.with_settings({"search.trials": 3}))
    assert [trial.status().state for trial in run.trials()] == ["finished", "stopped"]
    assert not Run(run.folder).is_complete()
    run.extend(spec.with_settings({"training.epochs": 4}))
    assert [trial.status().state for trial in run.trials()] == ["interrupted", "stopped"]
    longer = run.trial(1).spec()
    assert longer.training.epochs == 4
    for epoch in fit(longer, digits, run.trial(1).checkpoint):
        run.trial(1).record_epoch(epoch)
    *_, undisturbed = fit(longer, digits, storage / "undisturbed")
    assert run.trial(1).epochs()[-1]["metrics"] == undisturbed.metrics
    assert [line["epoch"] for line in run.trial(1).epochs()] == [1, 2, 3, 4]


def test_a_training_has_one_best_and_its_own_spec(small_run: Run) -> None:
    assert len(small_run.best_places()) == 1
    assert results.load(small_run.best()).spec == small_run.spec()


def test_a_run_without_any_value_has_no_best(storage: Path) -> None:
    run = new_run(storage, TrainSpec.create("ae", {}))
    run.new_trial(1, {}, run.spec()).set_status("failed")
    results.collect_best(run)
    assert run.best_places() == []
    with pytest.raises(RunError, match="has no best checkpoint 1"):
        raygen.load(run.name, storage=storage)


def lose_checkpoint(trial: Trial) -> None:
    """As of a trial whose processes were lost, again and again, before the first checkpoint was due."""
    trial.checkpoint.unlink()
    trial.set_status("failed", "its process was lost")


def test_a_trial_without_a_checkpoint_does_not_take_the_others_away(storage: Path, digits: Dataset) -> None:
    run = new_run(storage, TuneSpec.search_over("ae", "ae", SMALL))
    good = train(run, 1, {"optimizer.lr": 1e-4}, digits)
    lose_checkpoint(train(run, 2, {"optimizer.lr": 3e-3}, digits))
    results.collect_best(run)
    assert [results.load(place).metrics["trial"] for place in run.best_places()] == [good.number]


def test_the_value_told_is_that_of_the_weights_kept(storage: Path, digits: Dataset) -> None:
    """A trial that failed for good has epochs on record that its last checkpoint does not hold."""
    run = new_run(storage, TuneSpec.search_over("ae", "ae", SMALL))
    spec = run.spec()
    assert isinstance(spec, TuneSpec)
    trial = run.new_trial(1, {"optimizer.lr": 3e-3}, spec.trial_spec({"optimizer.lr": 3e-3}))
    epochs = fit(trial.spec(), digits, trial.checkpoint)
    trial.record_epoch(next(epochs))
    epochs.close()  # the checkpoint of one epoch
    kept = trial.checkpoint.read_bytes()
    trial.record_epoch(next(fit(trial.spec(), digits, trial.checkpoint)))
    trial.checkpoint.write_bytes(kept)
    trial.set_status("failed", "its process was lost")
    results.collect_best(run)
    trained = results.load(run.best())
    images = held_out_images(digits.validation.images, trained.spec.evaluation, CPU)
    values = evaluate(trained.model, images, trained.spec.evaluation)
    assert trained.metrics["value"] == pytest.approx(values["val_mse"], rel=1e-5)


# Sampling


def test_samples_are_images_that_depend_on_the_seed_alone(search: Run) -> None:
    trained = results.load(search.best())
    if not isinstance(trained.model, Sampler):
        with pytest.raises(RunError, match="'ae' cannot be sampled: it has no prior"):
            results.sample(trained, 4, seed=0)
        return
    images = results.sample(trained, 503, seed=1)
    assert images.shape == (503, 1, 8, 8)
    assert (images.min() >= 0, images.max() <= 1) == (True, True)
    assert len(images.flatten(1).unique(dim=0)) > 100
    torch.manual_seed(99)
    assert torch.equal(results.sample(trained, 503, seed=1), images)
    assert not torch.equal(results.sample(trained, 503, seed=2), images)


# Folders that cannot be read


def test_a_folder_that_is_no_result(tmp_path: Path, storage: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path} holds no checkpoint"):
        results.load(tmp_path)
    with pytest.raises(RunError, match="there is no run"):
        raygen.load(tmp_path, storage=storage)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_damaged_weights_are_named(kept: int, small_run: Run) -> None:
    weights = small_run.best() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=str(weights)):
        results.load(small_run.best())


@pytest.mark.parametrize("damage", ["spec.json", "metrics.json", "no spec.json", "weights of another model"])
def test_other_damage_is_a_checkpoint_error(damage: str, small_run: Run) -> None:
    best = small_run.best()
    if damage == "no spec.json":
        (best / "spec.json").unlink()
    elif damage == "weights of another model":
        spec = small_run.spec().with_settings({"model.hidden": [5]})
        (best / "spec.json").write_text(spec.model_dump_json())
    else:
        (best / damage).write_text("{")
    with pytest.raises(CheckpointError, match=str(best)):
        results.load(best)


# Pictures


def numbered(count: int, channels: int = 1, height: int = 32, width: int = 32) -> Tensor:
    """Images of which each is filled with its own grey value."""
    values = torch.arange(1, count + 1) / 255
    return values[:, None, None, None].expand(count, channels, height, width)


@pytest.mark.parametrize(
    ("count", "columns", "rows_and_columns"),
    [(1, None, (1, 1)), (4, None, (2, 2)), (5, None, (2, 3)), (64, None, (8, 8)), (7, 7, (1, 7)), (7, 3, (3, 3))],
)
def test_images_stand_in_rows(count: int, columns: int | None, rows_and_columns: tuple[int, int]) -> None:
    rows, across = rows_and_columns
    pixels = np.asarray(pictures.grid(numbered(count), columns))
    assert pixels.shape == (rows * 34, across * 34)
    centres = pixels[17::34, 17::34].flatten().tolist()
    assert centres == [*range(1, count + 1), *[0] * (rows * across - count)]
    # A border of one pixel around each keeps them apart.
    assert (pixels[::34] == 0).all()
    assert (pixels[:, ::34] == 0).all()


@pytest.mark.parametrize(
    ("side", "shown"), [(8, 32), (9, 36), (14, 28), (16, 32), (28, 28), (32, 32), (64, 64), (178, 178)]
)
def test_small_images_are_enlarged_by_a_whole_factor(side: int, shown: int) -> None:
    assert pictures.grid(numbered(1, height=side, width=side)).size == (shown + 2, shown + 2)


def test_colours_and_sides_stay_where_they_are() -> None:
    image = torch.zeros(1, 3, 32, 48)
    image[:, 0, :, :24] = 1.0
    image[:, 2, :, 24:] = 0.5
    picture = pictures.grid(image)
    assert (picture.mode, picture.size) == ("RGB", (50, 34))
    assert picture.getpixel((5, 5)) == (255, 0, 0)
    assert picture.getpixel((40, 5)) == (0, 0, 128)


def test_values_beyond_the_range_are_cut_off() -> None:
    image = torch.tensor([-0.5, 1.5, math.inf]).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    assert np.asarray(pictures.grid(image, columns=3))[17, 17::34].tolist() == [0, 255, 255]


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    picture = pictures.grid(numbered(1))
    pictures.save(picture, tmp_path / "grid.picture")
    with Image.open(tmp_path / "grid.picture") as written:
        assert written.format == "PNG"
    with pytest.raises(RunError, match=f"cannot write {tmp_path}/no/grid.png: No such file or directory"):
        pictures.save(picture, tmp_path / "no" / "grid.png")
