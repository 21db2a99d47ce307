"""The best models of a run: judged in full, ranked, tested, and kept."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import statistics
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from cli import render
from raygen import collection, data, metrics, results
from raygen.data import Dataset, Part
from raygen.errors import CheckpointError, RunError, RunInterruptedError, StorageError
from raygen.models._base import ImageShape
from raygen.record import ranking
from raygen.record.attempt import Attempt
from raygen.record.documents import STOPPED_EARLY, TrialState
from raygen.record.reading import Reader
from raygen.record.trial import TrialWriter
from raygen.record.view import View
from raygen.report import Report
from raygen.spec import TrainSpec, TuneSpec
from raygen.spec.settings import field_of
from raygen.storage import Storage
from raygen.training import checkpoint
from raygen.training.distributed import CPU
from raygen.training.evaluation import evaluate, held_out_images
from raygen.training.loop import fit
from raygen.training.step import build_model
from tests.searches import begin, create, run_of, train, train_trial

SMALL = {
    "model.arch": "mlp",
    "model.hidden": [32],
    "training.epochs": 2,
    "training.checkpoint_every_s": 0,
    "search.keep_best": 2,
}
TRAINING = {name: value for name, value in SMALL.items() if not name.startswith("search.")}
RATES = (1e-6, 3e-3, 1e-3)  # of three trials, of which the first learns next to nothing
NO_DEFAULTS = {"search.defaults_first": False}
MODELS = ("ae", "vae", "gan")


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> dict[str, Attempt]:
    """A search of each family, ended and collected."""
    made = {}
    for model in MODELS:
        spec = TuneSpec.search_over(model, model, SMALL)
        run = made[model] = begin(create(tmp_path_factory.mktemp("storage"), spec))
        for number, lr in enumerate(RATES, start=1):
            parameters = {"optimizer.lr": lr, "training.batch_size": 64, "model.latent_dim": 4 + number}
            train_trial(run, number, parameters, digits)
        collection.collect_best(run)
    return made


@pytest.fixture(params=MODELS)
def search(request: pytest.FixtureRequest, searches: dict[str, Attempt]) -> Attempt:
    return searches[request.param]


def model_of(run: Attempt, place: int = 1) -> results.TrainedModel:
    """One of the best models, read back."""
    return results.of_run(run_of(run), place)


def facts(run: Attempt) -> list[dict[str, Any]]:
    """What is written beside each of the best models, the very best first."""
    count = len(run.look().best)
    return [json.loads(run_of(run).best_file("metrics.json", place)) for place in range(1, count + 1)]


def on_all(run: Attempt, place: int, part: Part | None) -> dict[str, float]:
    """The metrics of a collected model on all images of a part, from the start."""
    assert part is not None
    trained = model_of(run, place)
    options = trained.spec.evaluation.model_copy(update={"images": len(part.images)})
    return evaluate(trained.model, held_out_images(part.images, options, CPU), options)


def printed(run: Attempt) -> str:
    """Table and last lines of a run, as wide as they are."""
    report = Report(run.look(), "")
    console = Console(width=250)
    with console.capture() as shown:
        console.print(render.trial_table(report, report.records))
        console.print(render.outcome(report))
    return shown.get()


def test_the_best_are_collected_the_very_best_first(search: Attempt) -> None:
    found, view = facts(search), search.look()
    records = ranking.records(view)
    assert len(found) == 2
    assert [entry["trial"] for entry in found] == [record.number for record in records[:2]]
    assert [entry["value"] for entry in found] == [record.objective for record in records[:2]]
    assert [entry["value"] for entry in found] == [pytest.approx(entry["metrics"][view.objective]) for entry in found]
    assert metrics.find(view.objective).is_better(found[0]["value"], than=found[1]["value"])
    assert found[0]["parameters"] == records[0].parameters
    assert found[0]["objective"] == view.objective
    assert view.can_sample == (view.spec().model.name != "ae")
    assert list(view.best) == run_of(search).summary()["best"] == found


def test_what_is_loaded_is_what_was_judged(search: Attempt, digits: Dataset) -> None:
    for place in (1, 2):
        trained = model_of(search, place)
        assert trained.spec.model.latent_dim == trained.metrics["parameters"]["model.latent_dim"]
        assert trained.spec.optimizer.lr == trained.metrics["parameters"]["optimizer.lr"]
        images = held_out_images(digits.validation.images, trained.spec.evaluation, CPU)
        values = evaluate(trained.model, images, trained.spec.evaluation)
        assert values[search.look().objective] == pytest.approx(trained.metrics["value"], rel=1e-5)
        assert values == pytest.approx({name: trained.metrics["metrics"][name] for name in values}, rel=1e-5)


def test_each_has_its_picture(search: Attempt) -> None:
    for place in (1, 2):
        with Image.open(io.BytesIO(run_of(search).best_file("samples.png", place))) as picture:
            assert picture.format == "PNG"
            # 64 samples in 8 rows of 8, or 32 images above their reconstructions; 8 pixels ×4 and a border of 1.
            assert picture.size == (8 * 34, 8 * 34)
            assert len(set(picture.tobytes())) > 10


def test_the_best_of_the_attempt_before_stay_until_all_of_the_new_are_there(storage: Path, digits: Dataset) -> None:
    first = begin(create(storage, TrainSpec.create("ae", {**TRAINING, "training.epochs": 1})))
    train_trial(first, 1, {}, digits)
    collection.collect_best(first)
    [before] = facts(first)
    run = run_of(first)
    run.request(reopens=False, spec=run.look().spec().with_settings({"training.epochs": 2}))
    second = begin(run)
    train(second, 1, digits)
    full = Full(storage)
    with pytest.raises(StorageError, match="no room is left"):
        collection.collect_best(Attempt(Reader(full, run.name), second.number))
    assert full.has_written, "some of the files were there already"
    assert facts(second) == [before]
    assert begin(run).look().best == (before,), "and to the attempt that comes after it"
    third = run.look().attempt
    collection.collect_best(Attempt(Reader(run.storage, run.name), third))
    assert run.look().best[0]["epoch"] == 2
    assert sorted(run.best_files()) == ["metrics.json", "model.safetensors", "samples.png", "spec.json"]


class Full(Storage):
    """A folder that has no room for the second file of a best model."""

    has_written = False

    def put(self, key: str, content: bytes | Path) -> None:
        if "/best/" in key:
            if self.has_written:
                raise StorageError("no room is left")
            self.has_written = True
        super().put(key, content)


def searched(storage: Path, digits: Dataset, model: str = "vae", **settings: Any) -> Attempt:
    """A search of three trials that did not begin with the defaults."""
    own = {**SMALL, **NO_DEFAULTS, "search.trials": 3, **settings}
    run = begin(create(storage, TuneSpec.search_over(model, model, own)))
    for number, lr in enumerate(RATES, start=1):
        train_trial(run, number, {"optimizer.lr": lr, "training.batch_size": 64, "model.latent_dim": 4}, digits)
    return run


def test_the_best_of_a_search_are_judged_and_ranked_on_all_validation_images(storage: Path, digits: Dataset) -> None:
    """What they showed on the few images of their epochs is neither told nor compared any more."""
    run = searched(storage, digits, **{"evaluation.images": 20})
    before = {record.number: record.objective for record in ranking.records(run.look())}
    collection.collect_best(run)
    found = facts(run)
    for place, entry in enumerate(found, start=1):
        values = on_all(run, place, digits.validation)
        assert (entry["validation_images"], entry["value"]) == (180, pytest.approx(values["val_elbo"]))
        assert {name: entry["metrics"][name] for name in values} == pytest.approx(values)
    assert found[0]["value"] > found[1]["value"]
    records = ranking.records(run.look())
    assert [record.number for record in records[:2]] == [entry["configuration"] for entry in found]
    for record, entry in zip(records, found, strict=False):
        assert record.objective == entry["value"] != before[record.number]
        assert (record.validation_images, record.metrics["val_elbo"]) == (180, entry["value"])
    assert (records[2].objective, records[2].validation_images) == (before[1], None)
    run.set_status("finished")
    assert ranking.best_value(run.look()) == found[0]["value"]
    assert f"val_elbo {found[0]['value']:.5g} after epoch" in printed(run)
    assert "on 180 validation images" in printed(run)


def test_the_best_is_tested_once_beside_the_defaults(storage: Path, digits: Dataset) -> None:
    run = begin(create(storage, TuneSpec.search_over("vae", "vae", {**SMALL, "search.trials": 3})))
    spec = run.look().spec_json
    defaults = {path: field_of(spec, path) for path in ("optimizer.lr", "training.batch_size", "model.latent_dim")}
    train_trial(run, 1, defaults, digits)
    for number, lr in ((2, 1e-2), (3, 3e-3)):
        train_trial(run, number, {"optimizer.lr": lr, "training.batch_size": 32, "model.latent_dim": 4}, digits)
    collection.collect_best(run)
    best, second = facts(run)
    values = on_all(run, 1, digits.test)
    assert best["test"] == {
        "images": 180,
        "metrics": pytest.approx({"test_elbo": values["val_elbo"], "test_mse": values["val_mse"]}),
    }
    assert second["test"] is None, "nothing is chosen by a test value, so the others have none"
    tested = run_of(run).summary()["test"]
    assert (tested["metric"], tested["images"]) == ("test_elbo", 180)
    assert (tested["best"]["trial"], tested["best"]["value"]) == (best["trial"], pytest.approx(values["val_elbo"]))
    assert tested["defaults"]["trial"] == 1
    assert tested["defaults"]["value"] < tested["best"]["value"], "the defaults learned too little in two epochs"
    counts = {"train": 1437, "validation": 180, "test": 180}
    assert best["data"] == {"name": "digits", "digest": digits.digest, **counts, "left_out": {}}
    line = next(line for line in printed(run).splitlines() if line.strip().startswith("test "))
    assert f"test_elbo {values['val_elbo']:.5g} on 180 test images" in line
    assert (
        f"; the defaults (trial 1, after epoch {tested['defaults']['epoch']}): {tested['defaults']['value']:.5g}"
        in line
    )


def test_a_search_that_did_not_begin_with_the_defaults_is_set_beside_nothing(storage: Path, digits: Dataset) -> None:
    run = searched(storage, digits, "ae")
    collection.collect_best(run)
    assert run.look().defaults is None
    assert run_of(run).summary()["test"]["defaults"] is None
    assert "defaults" not in printed(run)


def test_a_run_without_test_images_says_so(storage: Path, digits: Dataset) -> None:
    spec = TrainSpec.create("ae", {"data.test_fraction": 0, "training.epochs": 1, "model.arch": "mlp"})
    run = begin(create(storage, spec))
    train_trial(run, 1, {}, data.load(spec.data))
    collection.collect_best(run)
    assert run_of(run).summary()["test"] is None
    assert "test  no value: there are no test images" in printed(run)


def test_a_run_that_a_person_stopped_is_not_judged_again(storage: Path, digits: Dataset) -> None:
    run = searched(storage, digits, **{"evaluation.images": 20})
    run.ask_to_stop()
    collection.collect_best(run)
    best = facts(run)[0]
    assert (best["validation_images"], best["test"], run_of(run).summary()["test"]) == (20, None, None)
    assert "test  no value: the run was stopped before its end" in printed(run)


@pytest.mark.parametrize(
    ("looks", "images", "is_tested"), [(1, 20, False), (2, 20, False), (8, 180, False), (99, 180, True)]
)
def test_a_stop_while_the_best_are_judged_leaves_what_is_known_by_then(
    looks: int, images: int, is_tested: bool, storage: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models are judged on validation images, at three looks each, and then the best on test images."""
    run = searched(storage, digits, "ae", **{"evaluation.images": 20})
    asked = itertools.count(1)
    monkeypatch.setattr(Attempt, "has_heard_stop", lambda self: next(asked) > looks)
    collection.collect_best(run)
    best = facts(run)[0]
    assert (best["validation_images"], best["test"] is not None) == (images, is_tested)


def test_a_stop_before_the_images_are_read_leaves_no_best(
    storage: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = searched(storage, digits, "ae")
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "of another node"))
    run.ask_to_stop()
    with pytest.raises(RunInterruptedError, match=r"^stopped on request$"):
        collection.collect_best(run)
    assert run.look().result is None


def test_a_training_that_goes_on_is_judged_anew(storage: Path, digits: Dataset) -> None:
    first = searched(storage, digits, **{"evaluation.images": 20})
    collection.collect_best(first)
    objective = first.look().objective
    assert first.look().trial(2).record(objective).validation_images == 180
    run_of(first).request(reopens=False, spec=first.look().spec().with_settings({"training.epochs": 4}))
    run = begin(run_of(first))
    assert run.look().trial(2).record(objective).validation_images == 180, "nothing is better yet"
    record = train(run, 2, digits).record(objective)
    assert (record.best_epoch, record.validation_images) == (4, None), "better weights are judged by their epoch alone"
    collection.collect_best(run)
    record = run.look().trial(2).record(objective)
    assert (record.best_epoch, record.validation_images) == (4, 180)


def test_the_best_are_run_on_fresh_seeds_and_ranked_by_their_mean(storage: Path, digits: Dataset) -> None:
    """The seed that a configuration was found with is a lucky one, and is not among those that it is ranked by."""
    assert digits.test is not None
    run = searched(storage, digits, "ae", **{"search.replicates": 2})
    assert ranking.number_of_trials(run.look()) == 3 + 2 * 2
    assert not ranking.is_complete(run.look())
    run.add_replicates()
    run.add_replicates()  # as after a lost driver: nothing is made twice
    made = [trial for trial in run.look().trials if trial.replicate_of is not None]
    assert [(trial.number, trial.replicate_of, trial.spec().seed) for trial in made] == [
        (4, 2, 1),
        (5, 2, 2),
        (6, 3, 1),
        (7, 3, 2),
    ]
    for trial in made:
        original = run.look().trial(trial.replicate_of or 0).spec()
        assert trial.spec() == original.with_settings({"seed": trial.spec().seed})
        # The best configuration is lucky: on fresh seeds it learns as good as nothing.
        learned = trial.spec().with_settings({"optimizer.lr": 1e-7}) if trial.replicate_of == 2 else trial.spec()
        with contextlib.closing(TrialWriter.begin(run.place(trial.number))) as writer:
            for epoch in fit(learned, digits, writer.checkpoint, on_saved=writer.record_checkpoint):
                writer.record_epoch(epoch)
            writer.set_state("finished")
    assert ranking.is_complete(run.look())
    collection.collect_best(run)

    view = run.look()
    values = {trial.number: trial.record("val_mse").objective or 0.0 for trial in view.trials}
    assert values[2] < values[3], "the lucky one"
    first, second, *_ = ranking.records(view)
    assert (first.number, second.number) == (3, 2)
    assert (first.mean, first.seeds) == (pytest.approx((values[6] + values[7]) / 2), 2)
    assert first.spread == pytest.approx(statistics.stdev([values[6], values[7]]))
    assert first.objective == values[3]
    best = facts(run)[0]
    assert best["value"] == min(values[number] for number in (3, 6, 7)) == values[best["trial"]]

    tested = run_of(run).summary()["test"]["best"]
    assert tested["value"] == pytest.approx(on_all(run, 1, digits.test)["val_mse"])
    over = []
    for number in (6, 7):
        trial = view.trial(number)
        model = build_model(trial.spec(), ImageShape(1, 8, 8), CPU)
        model.load_state_dict(checkpoint.best_weights(run.checkpoint(trial)))
        images = held_out_images(digits.test.images, trial.spec().evaluation, CPU)
        over.append(evaluate(model, images, trial.spec().evaluation)["val_mse"])
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


def test_an_extended_run_lets_finished_trials_go_on_if_epochs_are_more(
    storage: Path, digits: Dataset, tmp_path: Path
) -> None:
    first = begin(create(storage, TuneSpec.search_over("ae", "ae", {**SMALL, "search.trials": 2})))
    for number in (1, 2):
        train_trial(first, number, {"optimizer.lr": 1e-3, "training.batch_size": 64, "model.latent_dim": 4}, digits)
    first.set_trial_state(2, "stopped", STOPPED_EARLY)
    run = run_of(first)
    assert ranking.is_complete(run.look())
    run.request(reopens=False, spec=run.look().spec().with_settings({"search.trials": 3}))
    assert not ranking.is_complete(run.look())
    assert states(begin(run).look()) == ["finished", "stopped"]
    run.request(reopens=False, spec=run.look().spec().with_settings({"training.epochs": 4}))
    third = begin(run)
    assert states(third.look()) == ["interrupted", "stopped"]
    longer = third.look().trial(1).spec()
    assert longer.training.epochs == 4
    trial = train(third, 1, digits)
    *_, undisturbed = fit(longer, digits, tmp_path / "undisturbed")
    assert trial.epochs[-1].metrics == undisturbed.metrics
    assert [epoch.epoch for epoch in trial.epochs] == [1, 2, 3, 4]


def states(view: View) -> list[TrialState]:
    return [trial.state for trial in view.trials]


def test_a_training_has_one_best_and_its_own_spec(storage: Path, digits: Dataset) -> None:
    run = begin(create(storage, TrainSpec.create("ae", TRAINING)))
    train_trial(run, 1, {}, digits)
    collection.collect_best(run)
    assert len(facts(run)) == 1
    assert model_of(run).spec == run.look().spec()


def test_a_run_without_any_value_has_no_best(storage: Path) -> None:
    run = begin(create(storage, TrainSpec.create("ae", {}), name="one"))
    run.new_trial(1, {}, run.look().spec())
    run.set_trial_state(1, "failed")
    run.set_status("failed")
    collection.collect_best(run)
    assert run.look().result is None
    with pytest.raises(RunError, match=r"^one has no best model 1 \(state: failed\)$"):
        model_of(run)


def test_a_trial_without_a_checkpoint_does_not_take_the_others_away(storage: Path, digits: Dataset) -> None:
    """One whose processes were lost, again and again, before the first checkpoint was due."""
    run = begin(create(storage, TuneSpec.search_over("ae", "ae", SMALL)))
    good = train_trial(run, 1, {"optimizer.lr": 1e-4}, digits)
    train_trial(run, 2, {"optimizer.lr": 3e-3}, digits)
    lost = {"state": "failed", "reason": "its process was lost", "checkpoints": ()}
    run.change_trial(2, lambda progress: progress.model_copy(update=lost))
    collection.collect_best(run)
    assert [entry["trial"] for entry in facts(run)] == [good.number]


def damaged(run: Attempt, number: int, *, at: int = 0) -> None:
    """Leave half of a trial's newest checkpoint, or of the one before it."""
    key = run.look().trial(number).progress.checkpoints[at].key
    content = run.storage.get(key) or b""
    run.storage.put(key, content[: len(content) // 2])


def test_of_a_trial_whose_newest_checkpoint_is_damaged_the_one_before_it_counts(
    storage: Path, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run = searched(storage, digits, "ae")
    saved = run.look().trial(2).progress.checkpoints
    damaged(run, 2)
    collection.collect_best(run)
    assert capsys.readouterr().out == (
        f"trial 2: its checkpoint {saved[0].key} is damaged; that of step {saved[1].step} counts\n"
    )
    assert run.look().trial(2).progress.checkpoints == saved[1:]
    place = [entry["trial"] for entry in facts(run)].index(2) + 1
    assert facts(run)[place - 1]["epoch"] == 1
    assert facts(run)[place - 1]["value"] == pytest.approx(on_all(run, place, digits.validation)["val_mse"])


def test_a_trial_whose_checkpoints_are_all_damaged_is_lost_and_does_not_take_the_others_away(
    storage: Path, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run = searched(storage, digits, "ae")
    key = run.look().trial(2).progress.checkpoint
    damaged(run, 2)
    damaged(run, 2, at=1)
    collection.collect_best(run)
    told = f"its checkpoint {key} is damaged, and there is no other"
    assert capsys.readouterr().out == f"trial 2: {told}\n"
    assert [entry["trial"] for entry in facts(run)] == [3, 1]
    lost = run.look().trial(2).progress
    assert (lost.state, lost.reason, lost.cause) == ("failed", told, "lost")
    again = begin(run_of(run))
    assert again.look().trial(2).state == "interrupted"
    assert [each.epoch for each in train(again, 2, digits).epochs] == [1, 2], "it begins anew"
    collection.collect_best(again)
    assert [entry["trial"] for entry in facts(again)] == [2, 3]


def test_a_checkpoint_that_fits_no_model_is_named(storage: Path, digits: Dataset) -> None:
    run = begin(create(storage, TrainSpec.create("ae", TRAINING)))
    train_trial(run, 1, {}, digits)
    content = b"as it was written, and no checkpoint"
    newest, _ = run.look().trial(1).progress.checkpoints
    run.storage.put(newest.key, content)
    saved = newest.model_copy(update={"crc32": zlib.crc32(content)})
    run.change_trial(1, lambda progress: progress.model_copy(update={"checkpoints": (saved,)}))
    with pytest.raises(CheckpointError, match=f"cannot read the checkpoint {newest.key} of trial 1: "):
        collection.collect_best(run)


def test_the_value_told_is_that_of_the_weights_kept(storage: Path, digits: Dataset) -> None:
    """A trial that failed for good has epochs on record that its last checkpoint does not hold."""
    run = begin(create(storage, TuneSpec.search_over("ae", "ae", SMALL)))
    spec = run.look().spec()
    assert isinstance(spec, TuneSpec)
    run.new_trial(1, {"optimizer.lr": 3e-3}, spec.trial_spec({"optimizer.lr": 3e-3}))
    with contextlib.closing(TrialWriter.begin(run.place(1))) as writer:
        epochs = fit(writer.spec(), digits, writer.checkpoint, on_saved=writer.record_checkpoint)
        writer.record_epoch(next(epochs))
        epochs.close()  # the checkpoint of one epoch
        writer.record_epoch(next(fit(writer.spec(), digits, writer.checkpoint)))
        writer.set_state("failed", "its process was lost")
    assert [epoch.is_best for epoch in run.look().trial(1).epochs] == [True, True]
    collection.collect_best(run)
    trained = model_of(run)
    assert trained.metrics["epoch"] == 1
    images = held_out_images(digits.validation.images, trained.spec.evaluation, CPU)
    values = evaluate(trained.model, images, trained.spec.evaluation)
    assert trained.metrics["value"] == pytest.approx(values["val_mse"], rel=1e-5)
