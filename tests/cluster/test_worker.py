"""What a trial's process leaves in the record, without a cluster."""

from __future__ import annotations

import contextlib
import errno
import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from raygen.cluster import draining, worker
from raygen.cluster.driver import conclude
from raygen.data import Dataset
from raygen.errors import ProcessLostError, StorageError
from raygen.metrics import find
from raygen.plan import Plan
from raygen.record.attempt import Attempt
from raygen.record.courier import Courier
from raygen.record.documents import STOPPED_EARLY
from raygen.record.scratch import PREFIX
from raygen.record.trial import TrialPlace, TrialWriter
from raygen.record.view import Trial
from raygen.spec import TrainSpec
from raygen.storage import Storage
from raygen.training import checkpoint
from raygen.training.distributed import Group
from raygen.training.loop import Epoch, fit
from tests.cluster.weights import final_weights, undisturbed
from tests.searches import begin, create, run_of
from tests.typed_commands import wait_until

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
SMALL = {"model.arch": "mlp", "model.hidden": [32], "model.latent_dim": 8}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is no node that could be drained, and no folder of another process."""
    monkeypatch.setattr(draining, "notices", lambda: lambda: False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def begun(storage: Path, **settings: Any) -> Attempt:
    """An attempt at a training that has a trial."""
    chosen = {name.replace("__", "."): value for name, value in settings.items()}
    spec = TrainSpec.create("vae", {**SMALL, "training.epochs": 7, **chosen})
    attempt = begin(create(Storage(storage), spec))
    attempt.new_trial(1, {}, spec)
    return attempt


def config(attempt: Attempt, trial: int = 1) -> dict[str, Any]:
    """What Tune gives an actor."""
    return {"place": attempt.place(trial).as_json(), "plan": PLAN.as_json(), "objective": attempt.look().objective}


def train(attempt: Attempt, digits: Dataset, *, until: int | None = None, is_killed: bool = False) -> list[Epoch]:
    """Train to the end, or as far as one that is stopped, or killed before it writes a checkpoint, after an epoch."""
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        writer.fetch_checkpoint()
        spec, epochs = writer.spec(), []
        on_saved = (lambda step, epochs: None) if is_killed else writer.record_checkpoint
        draw = worker.artist(writer, spec, digits.validation.images)
        for epoch in fit(spec, digits, writer.checkpoint, on_judged=draw, on_saved=on_saved):
            writer.record_epoch(epoch)
            epochs.append(epoch)
            if epoch.epoch == until:
                break
    return epochs


def trial_of(attempt: Attempt) -> Trial:
    return attempt.look().trial(1)


def contents(attempt: Attempt) -> dict[int, bytes]:
    """The trial's pictures by epoch; none is there that the record does not name."""
    keys = trial_of(attempt).progress.pictures
    found = {epoch: attempt.storage.get(key) for epoch, key in keys.items()}
    assert {entry.key for entry in attempt.storage.list(attempt.run) if entry.key.endswith(".png")} == {*keys.values()}
    return {epoch: content for epoch, content in found.items() if content is not None}


@pytest.mark.parametrize(
    ("pictures", "kept"), [("doubling", [1, 2, 4, 7]), ("all", [1, 2, 3, 4, 5, 6, 7]), ("none", [])]
)
def test_pictures_of_the_epochs_that_the_spec_says_stay(
    pictures: str, kept: list[int], storage: Path, digits: Dataset
) -> None:
    attempt = begun(storage, evaluation__pictures=pictures)
    train(attempt, digits)
    found = contents(attempt)
    assert list(found) == kept
    for content in found.values():
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.size == (8 * 34, 8 * 34)
    assert len(set(found.values())) == len(kept), "it learns"


def test_one_that_is_stopped_leaves_its_last_epoch_s_and_ends_with_the_same(storage: Path, digits: Dataset) -> None:
    undisturbed, stopped = begun(storage / "a"), begun(storage / "b")
    train(undisturbed, digits)
    train(stopped, digits, until=3)
    before = contents(stopped)
    assert list(before) == [1, 2, 3]
    train(stopped, digits, until=6, is_killed=True)
    assert list(contents(stopped)) == [1, 2, 4, 6]
    train(stopped, digits)
    assert contents(stopped) == contents(undisturbed)
    assert before[3] not in contents(stopped).values()


def test_a_picture_that_cannot_be_drawn_stops_no_training(
    storage: Path, digits: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = begun(storage, training__epochs=2)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("encoder error -2")

    monkeypatch.setattr(Image.Image, "save", refuse)
    assert len(train(attempt, digits)) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first == "trial 1: no picture of epoch 1: encoder error -2"
    assert "epoch 2" in second


@pytest.fixture
def actor() -> Iterator[worker.TrialActor]:
    """An actor as Tune makes one, without its process."""
    made = object.__new__(worker.TrialActor)
    yield made
    made.cleanup()


def assert_as_undisturbed(attempt: Attempt, folder: Path) -> None:
    trial = trial_of(attempt)
    expected, _ = undisturbed(trial.spec(), folder / "alone")
    found = final_weights(run_of(attempt), trial, folder)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_trial_ends_with_all_that_was_recorded_and_nothing_beside_it(
    storage: Path, digits: Dataset, tmp_path: Path, actor: worker.TrialActor
) -> None:
    attempt = begun(storage, training__epochs=3, training__checkpoint_every_s=0)
    actor.setup(config(attempt))
    results = [actor.step() for _ in range(3)]
    actor.cleanup()
    trial = trial_of(attempt)
    objective = find(attempt.look().objective).name
    assert [result["done"] for result in results] == [False, False, True]
    assert [(each.epoch, each.metrics[objective]) for each in trial.epochs] == [
        (result["epoch"], result[objective]) for result in results
    ]
    assert (trial.state, trial.progress.reason) == ("finished", "")
    assert_as_undisturbed(attempt, tmp_path)
    kept = [entry.key for entry in attempt.storage.list(attempt.run) if entry.key.endswith(".safetensors")]
    assert len(kept) == 2, "the newest checkpoint, and the one before it"
    assert trial.progress.checkpoint in kept
    assert not list((tmp_path / "tmp").glob(f"{PREFIX}*")), "nothing stays on this machine"


def test_one_that_the_scheduler_stops_leaves_a_checkpoint_from_which_a_new_attempt_ends_as_if_undisturbed(
    storage: Path, digits: Dataset, tmp_path: Path, actor: worker.TrialActor
) -> None:
    first = begun(storage, training__epochs=4)
    actor.setup(config(first))
    actor.step()
    actor.step()
    actor.cleanup()
    stopped = trial_of(first)
    assert (stopped.state, stopped.progress.reason) == ("stopped", STOPPED_EARLY)
    assert stopped.progress.checkpoint_step == stopped.epochs[-1].step
    first.promote(1)

    second = begin(run_of(first))
    actor.setup(config(second))
    assert [actor.step()["epoch"] for _ in range(2)] == [3, 4]
    assert trial_of(second).state == "finished"
    assert [each.epoch for each in trial_of(second).epochs] == [1, 2, 3, 4]
    assert_as_undisturbed(second, tmp_path)


def test_what_a_lost_process_still_writes_is_not_read_and_removes_nothing(
    storage: Path, digits: Dataset, tmp_path: Path, actor: worker.TrialActor
) -> None:
    first = begun(storage, training__epochs=5, training__checkpoint_every_s=0)
    actor.setup(config(first))
    actor.step()
    actor.step()
    wait_until(lambda: trial_of(first).progress.checkpoint_step > 0, "a checkpoint")
    second = begin(run_of(first))
    taken = trial_of(second)
    assert taken.state == "interrupted"
    for _ in range(2):
        actor.step()  # as one that was cut off
    actor.cleanup()
    assert second.look().trial(1).progress == taken.progress
    assert second.checkpoint(taken)
    train(second, digits)
    assert [each.epoch for each in trial_of(second).epochs] == [1, 2, 3, 4, 5]
    assert_as_undisturbed(second, tmp_path)


def test_an_actor_that_is_asked_to_stop_interrupts_its_trial(
    storage: Path, tmp_path: Path, actor: worker.TrialActor
) -> None:
    attempt = begun(storage, training__epochs=10_000)
    actor.setup(config(attempt))
    actor.step()
    run_of(attempt).ask_to_stop(attempt.number)
    for _ in range(10_000):
        if actor.step() == {"done": True}:
            break
    trial = trial_of(attempt)
    assert trial.state == "interrupted"
    assert trial.progress.checkpoint_step >= trial.epochs[-1].step > 0


def test_one_that_is_asked_to_stop_while_it_reads_images_is_interrupted_at_once(
    storage: Path, tmp_path: Path, actor: worker.TrialActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "of another node"))
    attempt = begun(storage, training__epochs=2)
    run_of(attempt).ask_to_stop(attempt.number)
    actor.setup(config(attempt))
    assert actor.step() == {"done": True}
    assert (trial_of(attempt).state, trial_of(attempt).progress.checkpoint) == ("interrupted", None)


def test_epochs_that_a_lost_process_showed_count_no_more_once_they_run_again(storage: Path, digits: Dataset) -> None:
    """One was the best then; the checkpoint that a stop leaves before it is judged again has older weights as such."""
    attempt = begun(storage, training__epochs=3)
    train(attempt, digits, until=1)
    train(attempt, digits, until=2, is_killed=True)
    assert len(trial_of(attempt).epochs) == 2
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        writer.fetch_checkpoint()
        stop = [False]
        looks = {
            "on_pace": lambda pace: stop.append(pace.step == 2 * pace.steps // 3),
            "should_stop": lambda: stop[-1],
        }
        assert list(fit(writer.spec(), digits, writer.checkpoint, on_saved=writer.record_checkpoint, **looks)) == []
    trial = trial_of(attempt)
    assert trial.saved_best == trial.epochs[-1]
    assert [each.epoch for each in trial.epochs] == [1]
    train(attempt, digits)
    assert [each.epoch for each in trial_of(attempt).epochs] == [1, 2, 3]


def test_one_that_cannot_go_on_says_why(
    storage: Path, capsys: pytest.CaptureFixture[str], actor: worker.TrialActor
) -> None:
    attempt = begun(storage, optimizer__lr=1e30)
    actor.setup(config(attempt))
    assert actor.step() == {"done": True}
    trial = trial_of(attempt)
    assert (trial.state, trial.progress.cause) == ("failed", "non-finite loss")
    assert "the vae loss is not finite at step" in trial.progress.reason
    assert f"trial 1 failed: {trial.progress.reason}" in capsys.readouterr().out


def own_threads(others: set[threading.Thread]) -> list[str]:
    """The names of Raygen's threads that were not there before."""
    names = (thread.name for thread in set(threading.enumerate()) - others)
    return sorted(name for name in names if name.startswith("raygen-"))


def refused(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_one_whose_last_checkpoint_finds_no_room_ends_all_the_same_and_harms_no_other(
    storage: Path,
    capsys: pytest.CaptureFixture[str],
    actor: worker.TrialActor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    attempt = begun(storage)
    attempt.new_trial(2, {}, attempt.look().spec())
    others = set(threading.enumerate())
    actor.setup(config(attempt))
    actor.step()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", refused)
        assert actor.reset_config(config(attempt, 2)), "or Tune would give the second trial up"
    assert "trial 1: cannot write the checkpoint" in capsys.readouterr().out
    assert [trial.state for trial in attempt.look().trials] == ["stopped", "running"]
    assert trial_of(attempt).progress.reason == STOPPED_EARLY
    assert own_threads(others) == ["raygen-courier", "raygen-lookout"], "those of the second trial alone"
    assert len(list((tmp_path / "tmp").glob(f"{PREFIX}*"))) == 1
    assert actor.step()["epoch"] == 1


def test_one_that_ends_while_its_storage_is_away_leaves_nothing_on_this_machine(
    storage: Path, actor: worker.TrialActor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempt = begun(storage)
    attempt.new_trial(2, {}, attempt.look().spec())
    others = set(threading.enumerate())
    actor.setup(config(attempt))
    actor.step()

    def away(*_: object) -> None:
        raise StorageError("cannot write: away")

    flush = Courier.flush
    monkeypatch.setattr(Courier, "flush", lambda self: flush(self, timeout_s=0.1))
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", away)
        with pytest.raises(StorageError):  # of the second trial, which Tune begins again
            actor.reset_config(config(attempt, 2))
    assert not list((tmp_path / "tmp").glob(f"{PREFIX}*"))
    assert own_threads(others) == []
    assert trial_of(attempt).state == "running", "it could not be told"
    with pytest.raises(ProcessLostError, match="ended without a word"):
        conclude(attempt)


def test_whatever_ends_ray_train_loses_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Controller:
        """Ray Train whose controller finds no space on its disk."""

        def __init__(self, *arguments: Any, **options: Any) -> None: ...

        def fit(self) -> None:
            raise OSError(28, "No space left on device")

    class Always:
        """Room for two processes."""

        def __init__(self, plan: Plan) -> None: ...

        def wait(self, should_stop: object) -> int:
            return 2

        def close(self) -> None: ...

    monkeypatch.setattr(worker, "POLL_EVERY_S", 0.01)
    monkeypatch.setattr(worker, "Room", Always)
    monkeypatch.setattr(worker.ray.train.torch, "TorchTrainer", Controller)
    attempt = begun(tmp_path)
    actor = worker.TrialActor.__new__(worker.TrialActor)
    actor.setup({**config(attempt), "plan": replace(PLAN, workers=2).as_json()})
    assert actor.step() == {"done": True}
    actor.cleanup()
    [trial] = attempt.look().trials
    assert (trial.state, trial.progress.cause) == ("failed", "lost")
    assert "No space left on device" in trial.progress.reason


def test_an_elastic_training_that_has_ended_does_not_begin_again_in_the_room_that_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_with, room_asked = [], threading.Event()

    class Controller:
        """Ray Train that takes its time to end its processes, whose devices are free by then."""

        def __init__(self, function: object, *, train_loop_config: dict[str, Any], **options: Any) -> None:
            self.config = train_loop_config

        def fit(self) -> None:
            begun_with.append(self.config["start"])
            with contextlib.closing(
                TrialWriter.join(TrialPlace(**self.config["place"]), self.config["start"])
            ) as writer:
                assert list(worker.train(writer, Group()))
            assert room_asked.wait(60)

    class Grows:
        """Room for two processes, and for a third as soon as the training has ended."""

        def __init__(self, plan: Plan) -> None: ...

        def wait(self, should_stop: object) -> int:
            return 2

        def has_grown(self, processes: int) -> bool:
            if trial_of(attempt).epochs[1:]:
                room_asked.set()
            return room_asked.is_set()

        def close(self) -> None: ...

    for name, value in {"POLL_EVERY_S": 0.01, "RESIZE_AFTER_S": 0.0, "Room": Grows}.items():
        monkeypatch.setattr(worker, name, value)
    monkeypatch.setattr(worker.ray.train.torch, "TorchTrainer", Controller)
    attempt = begun(tmp_path, training__epochs=2)
    actor = worker.TrialActor.__new__(worker.TrialActor)
    plan = replace(PLAN, workers=3, elastic_from=1)
    actor.setup({**config(attempt), "plan": plan.as_json()})
    while not actor.step()["done"]:
        pass
    actor.cleanup()
    assert (len(begun_with), trial_of(attempt).state) == (1, "finished")
