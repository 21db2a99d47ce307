"""Fences in the run folder: only the attempt that may run the job touches it, and it begins with a clean slate."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from making import make_run

from raygen.cluster import driver
from raygen.errors import Cause, RunError
from raygen.runs import Run


@pytest.fixture
def run(storage: Path) -> Run:
    return make_run(storage, "job")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOCK_TIMEOUT_S", 0.05)


def contents(run: Run) -> dict[str, bytes]:
    """Everything in the run folder; the lock's file has nothing in it."""
    files = [path for path in run.folder.rglob("*") if path.is_file() and path.name != "driver.lock"]
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in files}


# Who may run


@pytest.mark.parametrize("late", ["1", "3"])
def test_a_driver_of_another_attempt_leaves_the_run_alone(
    late: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.begin_attempt(1)
    run.begin_attempt(2)
    before = contents(run)
    assert driver.main(str(run.folder), late) == driver.NOT_MINE
    assert contents(run) == before
    assert not run.is_held()
    assert capsys.readouterr().err == f"attempt {late} at job is over\n"


def test_a_driver_leaves_a_run_alone_that_another_process_holds(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.begin_attempt(1)
    run.set_status("running")
    before = contents(run)
    with run.lock():
        assert driver.main(str(run.folder), "1") == driver.NOT_MINE
        assert contents(run) == before
        assert run.status().state == "running"
    assert capsys.readouterr().err == "job is being run by another process\n"


def test_a_driver_that_waits_for_the_run_asks_afterwards_whether_its_attempt_is_over(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LOCK_TIMEOUT_S", 30.0)
    run.begin_attempt(1)
    with ThreadPoolExecutor() as threads:
        with run.lock():
            late = threads.submit(driver.main, str(run.folder), "1")
            time.sleep(0.2)  # it waits
            assert not late.done()
            run.begin_attempt(2)
            before = contents(run)
        assert late.result(timeout=10) == driver.NOT_MINE
    assert contents(run) == before


def test_a_run_that_was_never_handed_out_has_no_attempt(run: Run) -> None:
    with pytest.raises(RunError, match=r"attempt\.json is missing"):
        run.is_attempt(1)


# What an attempt begins with


@pytest.mark.parametrize("state", ["running", "finished", "failed", "interrupted"])
def test_a_new_attempt_knows_nothing_of_how_the_last_one_ended(state: str, run: Run) -> None:
    run.begin_attempt(1)
    run.set_status(state, "because", exit_code=1, cause="lost")  # type: ignore[arg-type]
    run.begin_attempt(2)
    status = run.status()
    assert (status.state, status.reason, status.exit_code, status.cause) == ("waiting", "", 0, "error")
    assert (run.is_attempt(1), run.is_attempt(2)) == (False, True)


def test_a_new_attempt_does_not_stop_because_the_last_one_was_asked_to(run: Run) -> None:
    run.begin_attempt(1)
    run.ask_to_stop()
    run.begin_attempt(2)
    assert not run.should_stop()


def test_an_attempt_that_is_begun_again_after_a_crash_half_way_is_whole(run: Run) -> None:
    """The dispatcher was killed when it had written the attempt's number, and nothing else yet."""
    run.begin_attempt(1)
    run.set_status("failed", "because", cause="lost")
    run.ask_to_stop()
    before = (run.folder / "attempt.json").read_text()
    (run.folder / "attempt.json").write_text(before.replace("1", "2"))
    run.begin_attempt(2)
    assert (run.status().state, run.should_stop(), run.is_attempt(2)) == ("waiting", False, True)


# Which trials go on


TRIALS: list[tuple[str, Cause]] = [
    ("finished", "error"),
    ("stopped", "error"),
    ("interrupted", "error"),
    ("failed", "lost"),
    ("failed", "out of memory"),
    ("failed", "error"),
]


@pytest.mark.parametrize(
    ("only", "reopened"),
    [("lost", {4}), ("out of memory", {5}), ("error", {6}), ("bad input", set()), (None, {4, 5, 6})],
)
def test_only_trials_that_failed_for_that_cause_go_on(only: Cause | None, reopened: set[int], run: Run) -> None:
    for number, (state, cause) in enumerate(TRIALS, start=1):
        run.new_trial(number, {}, run.spec()).set_status(state, f"reason {number}", cause=cause)  # type: ignore[arg-type]
    run.reopen(only=only)
    for number, (state, _) in enumerate(TRIALS, start=1):
        status = run.trial(number).status()
        expected = "interrupted" if number in reopened else state
        assert (status.state, status.reason) == (expected, f"reason {number}")
