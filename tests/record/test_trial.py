"""What a trial's own processes write about it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from raygen.errors import CheckpointError, OutOfMemoryError, ProcessLostError, RunError, StorageError
from raygen.record import courier
from raygen.record import trial as trials
from raygen.record.attempt import Attempt
from raygen.record.documents import Progress, TrialDocument, dump, parse
from raygen.record.trial import AttemptWatch, TrialPlace, TrialWriter
from raygen.spec import TrainSpec
from raygen.storage import Storage
from raygen.training.loop import Epoch, Pace
from tests.searches import begin, create, run_of


@pytest.fixture
def attempt(place: Storage) -> Attempt:
    """An attempt with one trial that nobody has begun."""
    return made(place)


def made(storage: Storage) -> Attempt:
    attempt = begin(create(storage, TrainSpec.create("ae", {"training.epochs": 5}), name="run"))
    attempt.new_trial(1, {}, attempt.look().spec())
    return attempt


def epoch_of(number: int, value: float = 0.5) -> Epoch:
    return Epoch(epoch=number, step=10 * number, metrics={"val_mse": value}, train_s=float(number), is_best=True)


def save(writer: TrialWriter, step: int, content: bytes = b"weights") -> None:
    """A checkpoint, as a training writes it: in the place of the one before."""
    beside = writer.checkpoint.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(writer.checkpoint)
    writer.record_checkpoint(step, writer.epochs_done())


def keys(attempt: Attempt, ending: str) -> list[str]:
    return [entry.key.rpartition("/")[2] for entry in attempt.storage.list("run") if entry.key.endswith(ending)]


# Epochs


def test_epochs_and_pace_are_as_they_were_recorded(attempt: Attempt) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        writer.set_state("running")
        for number in (1, 2):
            writer.record_epoch(epoch_of(number, 1 / number))
        writer.record_pace(Pace(epoch=3, step=25, steps=50, train_s=2.5, images_per_s=1e4))
    trial = attempt.look().trial(1)
    assert [vars(epoch) for epoch in trial.epochs] == [vars(epoch_of(1, 1.0)), vars(epoch_of(2, 0.5))]
    assert (trial.state, trial.progress.pace and trial.progress.pace.step) == ("running", 25)


def test_an_epoch_that_runs_again_replaces_itself_and_what_came_after(attempt: Attempt) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        for number in (1, 2, 3, 4):
            writer.record_epoch(epoch_of(number))
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        writer.record_epoch(epoch_of(2, 0.45))
    assert [(each.epoch, each.metrics["val_mse"]) for each in attempt.look().trial(1).epochs] == [(1, 0.5), (2, 0.45)]


@given(numbers=st.lists(st.integers(1, 6), max_size=12), ends=st.sets(st.integers(0, 11)))
@settings(max_examples=15)
def test_epochs_are_always_one_after_another(
    numbers: list[int], ends: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whenever a process ends and another goes on."""
    attempt = made(Storage(tmp_path_factory.mktemp("runs")))
    expected: dict[int, float] = {}
    writer = TrialWriter.begin(attempt.place(1))
    for call, number in enumerate(numbers):
        writer.record_epoch(epoch_of(number, call / 7))
        expected = {epoch: value for epoch, value in expected.items() if epoch < number} | {number: call / 7}
        if call in ends:
            writer.close()
            assert {each.epoch: each.metrics["val_mse"] for each in attempt.look().trial(1).epochs} == expected
            writer = TrialWriter.begin(attempt.place(1))
    writer.close()
    assert {each.epoch: each.metrics["val_mse"] for each in attempt.look().trial(1).epochs} == expected


# Checkpoints and pictures


def test_two_checkpoints_are_kept_and_the_next_start_gets_the_newest(attempt: Attempt) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        writer.fetch_checkpoint()
        assert not writer.checkpoint.exists()
        for step in (10, 20, 30):
            save(writer, step, f"after {step}".encode())
    assert keys(attempt, ".safetensors") == ["0001-000000020.safetensors", "0001-000000030.safetensors"]
    for number in (2, 3):
        with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
            writer.fetch_checkpoint()
            assert writer.checkpoint.read_bytes() == f"after {10 * (number + 1)}".encode()
            save(writer, 10 * (number + 2), f"after {10 * (number + 2)}".encode())
        assert len(keys(attempt, ".safetensors")) == 2, "of all starts together"
    assert attempt.checkpoint(attempt.look().trial(1)) == b"after 50"
    second = begin(run_of(attempt))
    assert second.checkpoint(second.look().trial(1)) == b"after 50", "the next attempt goes on from there"


def test_a_start_whose_checkpoint_is_gone_knows_that_another_went_on(attempt: Attempt) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        save(writer, 10)
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        attempt.storage.delete([attempt.look().trial(1).progress.checkpoint or ""])
        TrialWriter.begin(attempt.place(1)).close()
        with pytest.raises(ProcessLostError, match="another process went on with trial 1"):
            writer.fetch_checkpoint()


def test_pictures_are_kept_by_their_epochs(attempt: Attempt) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        for epoch in range(1, 8):
            writer.record_picture(epoch, Image.new("L", (8, 8), epoch), keeps=lambda epoch: epoch in (1, 2, 4))
    pictures = attempt.look().trial(1).progress.pictures
    assert sorted(pictures) == [1, 2, 4, 7]
    assert keys(attempt, ".png") == [f"0001-epoch-{epoch:04d}.png" for epoch in (1, 2, 4, 7)]
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        writer.record_picture(2, Image.new("L", (8, 8), 99), keeps=lambda epoch: epoch in (1, 2, 4))
    pictures = attempt.look().trial(1).progress.pictures
    assert sorted(pictures) == [1, 2], "those of epochs that run again go"
    assert keys(attempt, ".png") == ["0001-epoch-0001.png", "0002-epoch-0002.png"]


def test_weights_to_begin_with_are_brought_or_missed(place: Storage) -> None:
    create(place, TrainSpec.create("ae", {}), name="other")
    attempt = begin(create(place, TrainSpec.create("ae", {}), name="run", warm_weights=b"weights"))
    attempt.new_trial(1, {}, attempt.look().spec())
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        assert writer.fetch_warm_start().read_bytes() == b"weights"
        place.delete(["run/warm_start.safetensors"])
        with pytest.raises(CheckpointError, match=r"warm_start\.safetensors is missing"):
            writer.fetch_warm_start()


# Starts


def test_a_later_start_s_word_counts_and_the_earlier_one_is_told_to_stop(attempt: Attempt) -> None:
    first = TrialWriter.begin(attempt.place(1))
    first.set_state("running")
    first.record_epoch(epoch_of(1))
    first.set_state("running")
    second = TrialWriter.begin(attempt.place(1))
    second.record_epoch(epoch_of(2, 0.25))
    second.set_state("finished")
    first.record_epoch(epoch_of(2, 9.0))
    first.set_state("failed", "late")
    trial = attempt.look().trial(1)
    assert (trial.state, [each.metrics["val_mse"] for each in trial.epochs]) == ("finished", [0.5, 0.25])
    first._look()
    assert first.should_stop()
    second._look()
    assert not second.should_stop()
    for writer in (first, second):
        writer.close()


def test_what_the_start_before_wrote_while_the_next_one_began_counts(folder: Storage) -> None:
    attempt = made(folder)
    first = TrialWriter.begin(attempt.place(1))
    first.record_epoch(epoch_of(1))

    class Late(Storage):
        """A storage in which the earlier start's last words come when the next one has just begun."""

        def create(self, key: str, content: bytes) -> bool:
            was_created = super().create(key, content)
            if key.endswith("/0002.json"):
                first.record_epoch(epoch_of(2))
                first.set_state("interrupted")
            return was_created

    number, taken = trials.claim(Late(folder.url), attempt.place(1), lambda progress: progress)
    assert (number, [each.epoch for each in taken.progress.epochs]) == (2, [1, 2])
    assert [each.epoch for each in attempt.look().trial(1).epochs] == [1, 2]
    first.close()


def test_of_many_that_begin_at_once_each_has_a_number_of_its_own(attempt: Attempt) -> None:
    numbers = [trials.claim(attempt.storage, attempt.place(1), lambda progress: progress)[0] for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]


def test_a_group_of_processes_writes_as_one_start(attempt: Attempt) -> None:
    number, _ = trials.claim(attempt.storage, attempt.place(1), lambda progress: progress)
    with pytest.raises(RunError, match=r"0002\.json is missing: nobody has begun this start"):
        TrialWriter.join(attempt.place(1), number + 1)
    with contextlib.closing(TrialWriter.join(attempt.place(1), number)) as writer:
        writer.record_epoch(epoch_of(1))
    assert trials.newest_progress(attempt.storage, attempt.place(1)).epochs[0].epoch == 1


def test_failures_are_handed_on_and_the_first_counts(attempt: Attempt) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        assert trials.failure_of(attempt.storage, attempt.place(1), 1) is None
        writer.record_failure(OutOfMemoryError("too large"))
        writer.record_failure(OutOfMemoryError("the others see it later"))
    failure = trials.failure_of(attempt.storage, attempt.place(1), 1)
    assert (str(failure), failure and failure.cause) == ("too large", "out of memory")
    assert trials.failure_of(attempt.storage, attempt.place(1), 2) is None, "the next start begins anew"


def test_a_trial_that_there_is_none_of(attempt: Attempt) -> None:
    with pytest.raises(RunError, match="run has no trial 7"):
        TrialWriter.begin(attempt.place(7))
    other = TrialPlace(storage=attempt.storage.url, run="other", attempt=1, trial=1)
    with pytest.raises(RunError, match=r"other/attempts/0001\.json is missing"):
        TrialWriter.begin(other)


def test_the_wish_to_stop_one_trial_is_heeded_by_it_alone(attempt: Attempt) -> None:
    attempt.new_trial(2, {}, attempt.look().spec())
    trials.ask_to_stop(attempt.storage, attempt.place(1), 1)
    with (
        contextlib.closing(TrialWriter.begin(attempt.place(1))) as first,
        contextlib.closing(TrialWriter.begin(attempt.place(2))) as second,
        contextlib.closing(AttemptWatch(attempt.storage, attempt.place(1))) as watch,
    ):
        assert (first.should_stop(), second.should_stop(), watch.should_stop()) == (True, False, False)
        run_of(attempt).ask_to_stop(1)
        watch._look()
        assert watch.should_stop()


def test_a_place_goes_from_process_to_process_as_json(attempt: Attempt) -> None:
    assert TrialPlace(**attempt.place(1).as_json()) == attempt.place(1)


# A storage that fails


@pytest.fixture(scope="module")
def soon() -> Iterator[None]:
    """Lets a courier deliver, and try again, after little time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NEAR_EVERY_S", "LONGEST_BACKOFF_S"):
            patch.setattr(courier, name, 0.01)
        yield


class Flaky(Storage):
    """A folder that refuses some writes, and checks after each that no document names what is not there."""

    def __init__(self, address: str | Path, faults: Iterable[bool] = ()) -> None:
        super().__init__(address)
        self.faults = iter(faults)

    def put(self, key: str, content: bytes | Path) -> None:
        if next(self.faults, False):
            raise StorageError("away")
        super().put(key, content)
        self.check()

    def delete(self, keys: Iterable[str]) -> None:
        if next(self.faults, False):
            raise StorageError("away")
        super().delete(keys)
        self.check()

    def check(self) -> None:
        for entry in self.list("run/attempts/0001/trials"):
            if not entry.key.endswith(".json") or entry.key.endswith("trial.json"):
                continue
            progress = parse(Progress, entry.key, self.get(entry.key) or b"")
            named = [*progress.pictures.values(), *([progress.checkpoint] if progress.checkpoint else [])]
            self.missing += [key for key in named if self.entry(key) is None]

    missing: list[str] = []


@pytest.mark.usefixtures("soon")
@given(seed=st.integers(0, 2**32), faults=st.lists(st.booleans(), max_size=4))
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_no_document_ever_names_what_is_not_there(
    seed: int, faults: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever fails, and in whichever order a training writes epochs, checkpoints and pictures."""
    folder = tmp_path_factory.mktemp("runs")
    attempt = made(Storage(folder))
    flaky = Flaky(folder, faults)
    flaky.missing = []
    chosen = random.Random(seed)
    document = TrialDocument(parameters={}, spec=attempt.look().spec().model_dump(mode="json"))
    number, taken = trials.claim(flaky, attempt.place(1), lambda progress: progress)
    writer = TrialWriter(flaky, attempt.place(1), attempt.place(1).keys.start(number), document, taken.progress)
    with contextlib.closing(writer):
        for step in range(1, 16):
            what = chosen.choice(["epoch", "checkpoint", "picture", "flush"])
            if what == "epoch":
                writer.record_epoch(epoch_of(step))
            elif what == "checkpoint":
                save(writer, step, str(step).encode())
            elif what == "picture":
                writer.record_picture(step, Image.new("L", (2, 2)), keeps=lambda epoch: epoch % 2 == 0)
            else:
                writer.set_state("running")
    assert flaky.missing == []
    assert dump(attempt.look().trial(1).progress) == dump(writer._progress), "all of it arrived at last"
