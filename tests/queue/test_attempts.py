"""Who may run a job: only an attempt that nobody has begun, sealed or gone beyond, and only while no other runs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from making import make_run

from raygen.cluster import driver
from raygen.errors import Cause, RunError
from raygen.record import reading
from raygen.record.attempt import Attempt
from raygen.record.documents import TrialState
from raygen.record.layout import RunKeys
from raygen.record.run import Run
from raygen.storage import Storage


@pytest.fixture
def run(storage: Path) -> Run:
    return make_run(Storage(storage), "job")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOCK_TIMEOUT_S", 0.05)


def begin(run: Run, number: int) -> Attempt:
    attempt = Attempt.begin(run.storage, run.name, number)
    assert attempt is not None
    return attempt


def drive(run: Run, number: int) -> int:
    return driver.main(run.storage.url, run.name, str(number))


def contents(run: Run) -> dict[str, bytes | None]:
    """Everything that was written of the run; the lock's file has nothing in it."""
    keys = [entry.key for entry in run.storage.list(run.name)]
    return {key: run.storage.get(key) for key in keys if key != RunKeys(run.name).lock}


# Who may run


@pytest.mark.parametrize("late", [1, 2])
def test_a_driver_of_an_attempt_that_has_begun_leaves_the_run_alone(
    late: int, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        begin(run, number).close()
    before = contents(run)
    assert drive(run, late) == driver.NOT_MINE
    assert contents(run) == before
    assert not reading.is_locked(run.storage, RunKeys(run.name))
    assert capsys.readouterr().err == f"attempt {late} at job is over\n"


@pytest.mark.parametrize("sealed", [1, 2])
def test_a_driver_of_an_attempt_that_was_given_up_before_it_began_leaves_the_run_alone(
    sealed: int, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, sealed):
        begin(run, number).close()
    assert run.seal(sealed)
    assert run.seal(sealed), "whoever was killed after it seals it again"
    before = run.look()
    assert drive(run, sealed) == driver.NOT_MINE
    assert run.look() == before
    assert capsys.readouterr().err == f"attempt {sealed} at job is over\n"


def test_an_attempt_that_has_begun_cannot_be_sealed(run: Run) -> None:
    begin(run, 1).close()
    assert not run.seal(1)
    assert run.look().attempt == 1


def test_a_sealed_attempt_is_passed_over(run: Run) -> None:
    with closing(begin(run, 1)) as first:
        first.new_trial(1, {}, run.look().spec())
    assert run.seal(2)
    assert run.look().attempt == 1
    begin(run, 3).close()
    assert [trial.number for trial in run.look().trials] == [1]


def test_a_driver_leaves_a_run_alone_that_another_process_holds(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(begin(run, 1)) as attempt:
        attempt.set_status("running")
        before = contents(run)
        with reading.lock(run.storage, RunKeys(run.name)):
            assert drive(run, 2) == driver.NOT_MINE
            assert contents(run) == before
            assert run.look().status.state == "running"
    assert capsys.readouterr().err == "job is being run by another process\n"


def test_a_driver_that_waits_for_the_run_asks_afterwards_whether_its_attempt_is_over(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LOCK_TIMEOUT_S", 30.0)
    with ThreadPoolExecutor() as threads:
        with reading.lock(run.storage, RunKeys(run.name)):
            late = threads.submit(drive, run, 1)
            time.sleep(0.2)  # it waits
            assert not late.done()
            begin(run, 2).close()
            before = contents(run)
        assert late.result(timeout=10) == driver.NOT_MINE
    assert contents(run) == before


def test_only_one_of_many_that_begin_the_same_attempt_at_once_runs_it(run: Run) -> None:
    with ThreadPoolExecutor(8) as threads:
        begun = list(threads.map(lambda _: Attempt.begin(run.storage, run.name, 1), range(8)))
    [attempt] = [each for each in begun if each is not None]
    attempt.close()


def test_an_attempt_whose_first_write_arrived_without_an_answer_has_begun(run: Run) -> None:
    """A bucket is asked again then, and finds what was written: it says that somebody was faster."""

    class Forgetful(Storage):
        def create(self, key: str, content: bytes) -> bool:
            super().create(key, content)
            return False

    attempt = Attempt.begin(Forgetful(run.storage.url), run.name, 1)
    assert attempt is not None
    attempt.close()
    assert Attempt.begin(Forgetful(run.storage.url), run.name, 1) is None


def test_a_run_that_is_not_there_has_no_attempt(storage: Path) -> None:
    with pytest.raises(RunError, match="there is no run 'job' in "):
        Attempt.begin(Storage(storage), "job", 1)


# What an attempt begins with


@pytest.mark.parametrize("state", ["running", "finished", "failed", "interrupted"])
def test_a_new_attempt_knows_nothing_of_how_the_last_one_ended(state: TrialState, run: Run) -> None:
    with closing(begin(run, 1)) as first:
        first.set_status(state, "because", exit_code=1, cause="lost")
    with closing(begin(run, 2)), reading.lock(run.storage, RunKeys(run.name)):
        status = run.look().status
    assert (status.state, status.reason, status.exit_code, status.cause) == ("running", "", 0, "error")
    assert run.look().attempt == 2


def test_a_new_attempt_does_not_stop_because_the_last_one_was_asked_to(run: Run) -> None:
    begin(run, 1).close()
    run.ask_to_stop(1)
    with closing(begin(run, 2)) as second:
        time.sleep(0.6)  # longer than from one look to the next
        assert not second.should_stop()
        run.ask_to_stop(2)
        deadline = time.monotonic() + 10
        while not second.should_stop() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert second.should_stop()


# Which trials go on


TRIALS: list[tuple[TrialState, Cause]] = [
    ("finished", "error"),
    ("stopped", "error"),
    ("interrupted", "error"),
    ("failed", "lost"),
    ("failed", "out of memory"),
    ("failed", "error"),
    ("running", "error"),
]


@pytest.mark.parametrize(("is_retried", "reopened"), [(False, {4, 7}), (True, {4, 5, 6, 7})])
def test_trials_that_were_lost_go_on_and_all_that_failed_if_somebody_asks(
    is_retried: bool, reopened: set[int], run: Run
) -> None:
    with closing(begin(run, 1)) as first:
        for number, (state, cause) in enumerate(TRIALS, start=1):
            first.new_trial(number, {}, run.look().spec())
            first.set_trial_state(number, state, f"reason {number}", cause)
    if is_retried:
        run.request(reopens=True)
    begin(run, 2).close()
    for trial, (state, _) in zip(run.look().trials, TRIALS, strict=True):
        expected = "interrupted" if trial.number in reopened else state
        assert (trial.state, trial.progress.reason) == (expected, f"reason {trial.number}")
    # What was asked for is done once: trials that fail again are left alone by the attempt after.
    with closing(begin(run, 3)) as third:
        third.set_trial_state(5, "failed", "again", "out of memory")
    begin(run, 4).close()
    assert run.look().trial(5).state == "failed"
