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
from raygen import data, metrics, pictures, results
from raygen.data import Dataset, Part
from raygen.errors import CheckpointError, RunError
from raygen.models._base import ImageShape, Sampler
from raygen.plan import Plan
from raygen.runs import STOPPED_EARLY, Run, Trial, field_of
from raygen.spec import TrainSpec, TuneSpec
from raygen.training import checkpoint
from raygen.training.distributed import CPU
from raygen.training.evaluation import evaluate, held_out_images
from raygen.training.loop import build_model, fit

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
SMALL = {
    "model.arch": "mlp",
    "model.hidden": [32],
    "training.epochs": 2,
    "training.checkpoint_every_s": 0,
    "search.keep_best": 2,
}
RATES = (1e-6, 3e-3, 1e-3)  # of three trials, of which the first learns next to nothing
NO_DEFAULTS = {"search.defaults_first": False}
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
    assert [entry["value"] for entry in found] == [
        pytest.approx(entry["metrics"][search.objective]) for entry in found
    ]
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
            # 64 samples in 8 rows of 8, or 32 images above their reconstructions; 8 pixels ×4 and a border of 1.
            assert picture.size == (8 * 34, 8 * 34)
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


def on_all(place: Path, part: Part) -> dict[str, float]:
    """The metrics of a collected model on all images of a part, from the start."""
    trained = results.load(place)
    options = trained.spec.evaluation.model_copy(update={"images": len(part.images)})
    return evaluate(trained.model, held_out_images(part.images, options, CPU), options)


def facts(run: Run) -> list[dict[str, Any]]:
    return [json.loads((place / "metrics.json").read_text()) for place in run.best_places()]


def printed(run: Run) -> str:
    """Table and last lines of a run, as wide as they are."""
    console = Console(width=250)
    with console.capture() as shown:
        console.print(render.trial_table(run, run.records()))
        console.print(render.outcome(run, run.records(), run.status()))
    return shown.get()


def searched(storage: Path, digits: Dataset, model: str = "vae", **settings: Any) -> Run:
    """A search of three trials that did not begin with the defaults."""
    run = new_run(
        storage, TuneSpec.search_over(model, model, {**SMALL, **NO_DEFAULTS, "search.trials": 3, **settings})
    )
    for number, lr in enumerate(RATES, start=1):
        train(run, number, {"optimizer.lr": lr, "training.batch_size": 64, "model.latent_dim": 4}, digits)
    return run


def test_the_best_of_a_search_are_judged_and_ranked_on_all_validation_images(storage: Path, digits: Dataset) -> None:
    """What they showed on the few images of their epochs is neither told nor compared any more."""
    run = searched(storage, digits, **{"evaluation.images": 20})
    before = {record.number: record.objective for record in run.records()}
    results.collect_best(run)
    found = facts(run)
    for place, entry in zip(run.best_places(), found, strict=True):
        values = on_all(place, digits.validation)
        assert (entry["validation_images"], entry["value"]) == (180, pytest.approx(values["val_elbo"]))
        assert {name: entry["metrics"][name] for name in values} == pytest.approx(values)
    assert found[0]["value"] > found[1]["value"]
    records = run.records()
    assert [record.number for record in records[:2]] == [entry["configuration"] for entry in found]
    for record, entry in zip(records, found, strict=False):
        assert record.objective == entry["value"] != before[record.number]
        assert (record.validation_images, record.metrics["val_elbo"]) == (180, entry["value"])
    assert (records[2].objective, records[2].validation_images) == (before[1], None)
    run.set_status("finished")
    run.write_summary()
    assert run.best_value(ended=True) == found[0]["value"]
    assert f"val_elbo {found[0]['value']:.5g} after epoch" in printed(run)
    assert "on 180 validation images" in printed(run)


def test_the_best_is_tested_once_beside_the_defaults(storage: Path, digits: Dataset) -> None:
    assert digits.test is not None
    run = new_run(storage, TuneSpec.search_over("vae", "vae", {**SMALL, "search.trials": 3}))
    spec = run.spec_json
    defaults = {path: field_of(spec, path) for path in ("optimizer.lr", "training.batch_size", "model.latent_dim")}
    train(run, 1, defaults, digits)
    for number, lr in ((2, 1e-2), (3, 3e-3)):
        train(run, number, {"optimizer.lr": lr, "training.batch_size": 32, "model.latent_dim": 4}, digits)
    results.collect_best(run)
    best, second = facts(run)
    values = on_all(run.best(), digits.test)
    assert best["test"] == {
        "images": 180,
        "metrics": pytest.approx({"test_elbo": values["val_elbo"], "test_mse": values["val_mse"]}),
    }
    assert second["test"] is None, "nothing is chosen by a test value, so the others have none"
    tested = run.summary()["test"]
    assert (tested["metric"], tested["images"]) == ("test_elbo", 180)
    assert (tested["best"]["trial"], tested["best"]["value"]) == (best["trial"], pytest.approx(values["val_elbo"]))
    assert tested["defaults"]["trial"] == 1
    assert tested["defaults"]["value"] < tested["best"]["value"], "the defaults learned too little in two epochs"
    assert best["data"] == {"name": "digits", "digest": digits.digest, "train": 1437, "validation": 180, "test": 180}
    line = next(line for line in printed(run).splitlines() if line.strip().startswith("test "))
    assert f"test_elbo {values['val_elbo']:.5g} on 180 test images" in line
    assert (
        f"; the defaults (trial 1, after epoch {tested['defaults']['epoch']}): {tested['defaults']['value']:.5g}"
        in line
    )


def test_a_search_that_did_not_begin_with_the_defaults_is_set_beside_nothing(storage: Path, digits: Dataset) -> None:
    run = searched(storage, digits, "ae")
    results.collect_best(run)
    assert run.defaults() is None
    assert run.summary()["test"]["defaults"] is None
    assert "defaults" not in printed(run)


def test_a_run_without_test_images_says_so(storage: Path, digits: Dataset) -> None:
    spec = TrainSpec.create("ae", {"data.test_fraction": 0, "training.epochs": 1, "model.arch": "mlp"})
    run = new_run(storage, spec)
    train(run, 1, {}, data.load(spec.data))
    results.collect_best(run)
    assert run.summary()["test"] is None
    assert "test  no value: there are no test images" in printed(run)


def test_a_run_that_a_person_stopped_is_not_judged_again(storage: Path, digits: Dataset) -> None:
    run = searched(storage, digits, **{"evaluation.images": 20})
    run.ask_to_stop()
    results.collect_best(run)
    best = facts(run)[0]
    assert (best["validation_images"], best["test"], run.summary()["test"]) == (20, None, None)
    assert "test  no value: the run was stopped before its end" in printed(run)


def test_a_training_that_goes_on_is_judged_anew(storage: Path, digits: Dataset) -> None:
    run = searched(storage, digits, **{"evaluation.images": 20})
    results.collect_best(run)
    trial = run.trial(2)
    assert trial.record(run.objective).validation_images == 180
    spec = trial.spec().with_settings({"training.epochs": 4})
    for epoch in fit(spec, digits, trial.checkpoint):
        trial.record_epoch(epoch)
    assert trial.record(run.objective).validation_images is None, "its better weights are judged by their epoch alone"
    results.collect_best(run)
    record = trial.record(run.objective)
    assert (record.best_epoch, record.validation_images) == (4, 180)


def test_the_best_are_run_on_fresh_seeds_and_ranked_by_their_mean(storage: Path, digits: Dataset) -> None:
    """The seed that a configuration was found with is a lucky one, and is not among those that it is ranked by."""
    assert digits.test is not None
    run = searched(storage, digits, "ae", **{"search.replicates": 2})
    assert run.number_of_trials == 3 + 2 * 2
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
        original = run.trial(trial.replicate_of or 0).spec()
        # The best configuration is lucky: on fresh seeds it learns as good as nothing.
        lr = 1e-7 if trial.replicate_of == 2 else original.optimizer.lr
        assert trial.spec() == original.with_settings({"seed": trial.spec().seed})
        for epoch in fit(trial.spec().with_settings({"optimizer.lr": lr}), digits, trial.checkpoint):
            trial.record_epoch(epoch)
        trial.set_status("finished")
    assert run.is_complete()
    results.collect_best(run)

    values = {trial.number: trial.record("val_mse").objective or 0.0 for trial in run.trials()}
    assert values[2] < values[3], "the lucky one"
    first, second, *_ = run.records()
    assert (first.number, second.number) == (3, 2)
    assert (first.mean, first.seeds) == (pytest.approx((values[6] + values[7]) / 2), 2)
    assert first.spread == pytest.approx(statistics.stdev([values[6], values[7]]))
    assert first.objective == values[3]
    best = facts(run)[0]
    assert best["value"] == min(values[number] for number in (3, 6, 7)) == values[best["trial"]]

    tested = run.summary()["test"]["best"]
    assert tested["value"] == pytest.approx(on_all(run.best(), digits.test)["val_mse"])
    over = []
    for trial in made[2:]:
        model = build_model(trial.spec(), ImageShape(1, 8, 8), CPU)
        model.load_state_dict(checkpoint.read_best_weights(trial.checkpoint))
        over.append(
            evaluate(
                model, held_out_images(digits.test.images, trial.spec().evaluation, CPU), trial.spec().evaluation
            )["val_mse"]
        )
    assert (tested["mean"], tested["spread"], tested["seeds"]) == (
        pytest.approx(statistics.fmean(over)),
        pytest.approx(statistics.stdev(over)),
        2,
    )
    shown = printed(run)
    assert "fresh seeds" in shown
    assert "4 (2)" in shown
    assert (
        f"test_mse {tested['value']:.5g} ({tested['mean']:.5g} ± {tested['spread']:.2g} over 2 fresh seeds)" in shown
    )


def test_an_extended_run_lets_finished_trials_go_on_where_epochs_are_more(storage: Path, digits: Dataset) -> None:
    run = new_run(storage, TuneSpec.search_over("ae", "ae", {**SMALL, "search.trials": 2}))
    for number in (1, 2):
        train(run, number, {"optimizer.lr": 1e-3, "training.batch_size": 64, "model.latent_dim": 4}, digits)
    run.trial(2).set_status("stopped", STOPPED_EARLY)
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
            trained.sample(4, seed=0)
        return
    images = trained.sample(503, seed=1)
    assert images.shape == (503, 1, 8, 8)
    assert (images.min() >= 0, images.max() <= 1) == (True, True)
    assert len(images.flatten(1).unique(dim=0)) > 100
    torch.manual_seed(99)
    assert torch.equal(trained.sample(503, seed=1), images)
    assert not torch.equal(trained.sample(503, seed=2), images)


@pytest.mark.parametrize(("prior", "name"), [("normal", "standard normal"), ("uniform", "uniform")])
def test_a_prior_is_called_what_it_is(prior: str, name: str) -> None:
    spec = TrainSpec.create("gan", {"model.arch": "mlp", "model.prior": prior})
    own = results.TrainedModel(build_model(spec, ImageShape(1, 8, 8), CPU), spec, {}).prior
    assert own is not None
    assert own.name == name


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
