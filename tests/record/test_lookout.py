"""What others ask of a process is seen soon, whatever it delivers and whatever fails."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raygen.errors import StorageError
from raygen.record import lookout
from raygen.record.attempt import Attempt
from raygen.record.lookout import Lookout
from raygen.record.trial import TrialWriter
from raygen.spec import TrainSpec
from raygen.storage import Storage
from tests.record.test_trial import epoch_of, save
from tests.searches import begin, create, run_of


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks again after little time."""
    monkeypatch.setattr(lookout, "NEAR_EVERY_S", 0.02)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stop_is_heard_while_a_checkpoint_is_delivered(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    began, goes_on, put = threading.Event(), threading.Event(), Storage.put

    def slowly(storage: Storage, key: str, content: bytes | Path) -> None:
        if key.endswith(".safetensors"):
            began.set()
            goes_on.wait(30)
        put(storage, key, content)

    monkeypatch.setattr(Storage, "put", slowly)
    attempt = begin(create(folder, TrainSpec.create("ae", {}), name="run"))
    attempt.new_trial(1, {}, attempt.look().spec())
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        try:
            writer.record_epoch(epoch_of(1))
            save(writer, 10)
            assert began.wait(20)
            run_of(attempt).ask_to_stop(1)
            wait_for(writer.should_stop)
        finally:
            goes_on.set()


def test_an_attempt_shows_that_it_has_heard(place: Storage) -> None:
    run = create(place, TrainSpec.create("ae", {}), name="run")
    attempt = Attempt.begin(place, "run", 1)
    assert attempt is not None
    with contextlib.closing(attempt):
        assert not attempt.should_stop()
        assert not run.is_stopping(1)
        run.ask_to_stop(1)
        wait_for(lambda: run.is_stopping(1))
        assert attempt.has_heard_stop()


def test_it_looks_and_beats_although_the_storage_is_away_now_and_then(folder: Storage) -> None:
    looks: list[int] = []
    beats: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) % 2:
            raise StorageError("away")

    with contextlib.closing(Lookout(folder, look, beat=lambda: beats.append(1), beat_every_s=0.01)):
        wait_for(lambda: len(looks) >= 5 and len(beats) >= 5)


def test_an_error_that_nobody_expected_does_not_end_it_and_is_told_once(
    folder: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        raise KeyError("oops")

    with contextlib.closing(Lookout(folder, look)):
        wait_for(lambda: len(looks) > 2)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]


def test_a_storage_that_does_not_answer_keeps_nobody_who_ends_it(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "CLOSE_TIMEOUT_S", 0.1)
    release = threading.Event()

    def look() -> None:
        release.wait(30)

    watch = Lookout(folder, look)
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 5
    release.set()
