"""What the process of an attempt writes, and what the next attempt makes of it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raygen.errors import CheckpointError
from raygen.record import ranking
from raygen.record.attempt import Attempt
from raygen.record.documents import STOPPED_EARLY, CheckpointRecord
from raygen.record.layout import RunKeys
from raygen.record.liveness import Liveness
from raygen.record.log import LogTail
from raygen.record.reading import lock
from raygen.record.run import Run
from raygen.record.trial import TrialWriter
from raygen.spec import TrainSpec, TuneSpec
from raygen.storage import Storage
from tests.searches import add_trial, begin, best_facts, create, run_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(place: Storage) -> Run:
    return create(place, TrainSpec.create("ae", {"training.epochs": 5}), name="run")


def test_an_attempt_begins_once(run: Run) -> None:
    first = begin(run)
    assert Attempt.begin(run.storage, run.name, 1) is None
    second = begin(run)
    assert (first.number, second.number) == (1, 2)
    assert Attempt.begin(run.storage, run.name, 1) is None, "nor does an earlier one after a later one"


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_a_state_is_as_it_was_written(state: Any, run: Run) -> None:
    attempt = begin(run)
    attempt.set_status(state, "because", exit_code=3, cause="out of memory")
    found = run.look().status
    assert (found.state, found.reason, found.exit_code, found.cause) == (state, "because", 3, "out of memory")
    assert attempt.status == found


def test_the_next_attempt_s_state_counts(run: Run) -> None:
    first = begin(run)
    first.set_status("failed", "the first")
    second = begin(run)
    assert run.look().status.state != "failed"
    second.set_status("finished")
    first.set_status("failed", "too late")
    assert run.look().status.state == "finished"


def test_a_run_in_a_folder_runs_while_its_process_holds_it(folder: Storage) -> None:
    run = create(folder, TrainSpec.create("ae", {}), name="run")
    attempt = begin(run)
    with lock(folder, RunKeys("run")):
        attempt.set_status("running")
        # Looking at a run does not take it from its process.
        assert [state_seen_elsewhere(folder) for _ in range(2)] == ["running", "running"]
        assert Liveness().is_alive(folder, "run", 1)
    status = run.look().status
    assert (status.state, status.exit_code, status.reason) == ("interrupted", 130, "its process ended without a word")
    assert not Liveness().is_alive(folder, "run", 1)


def test_a_run_whose_process_was_killed_is_interrupted(folder: Storage) -> None:
    run = create(folder, TrainSpec.create("ae", {}), name="run")
    program = """
import os, signal, sys
from raygen.record.attempt import Attempt
from raygen.record.layout import RunKeys
from raygen.record.reading import lock
from raygen.storage import Storage
storage = Storage(sys.argv[1])
with lock(storage, RunKeys("run")):
    Attempt.begin(storage, "run", 1).set_status("running")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program, folder.url], env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (run.look().attempt, run.look().status.state) == (1, "interrupted")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def state_seen_elsewhere(storage: Storage) -> str:
    program = """
import sys
from raygen.record.run import Run
from raygen.storage import Storage
print(Run(Storage(sys.argv[1]), "run").look().status.state)
"""
    seen = subprocess.run(
        [sys.executable, "-c", program, storage.url], env=environment(), check=True, capture_output=True, text=True
    )
    return seen.stdout.strip()


# What the next attempt goes on from


def test_what_was_lost_goes_on_and_what_failed_does_if_it_is_asked_to(run: Run) -> None:
    first = begin(run)
    add_trial(first, {}, [0.5, 0.4], state="finished")
    add_trial(first, {}, [0.5], state="running")
    add_trial(first, {}, [], state="waiting")
    add_trial(first, {}, [0.5], state="failed", cause="lost")
    add_trial(first, {}, [0.5], state="failed", cause="out of memory", reason="too large")
    add_trial(first, {}, [0.5], state="stopped", reason=STOPPED_EARLY)
    second = begin(run)
    went_on = ["finished", "interrupted", "interrupted", "interrupted", "failed", "stopped"]
    assert [trial.state for trial in second.look().trials] == went_on
    assert [len(trial.epochs) for trial in second.look().trials] == [2, 1, 0, 1, 1, 1]
    run.request(reopens=True)
    third = begin(run)
    assert [trial.state for trial in third.look().trials] == [*went_on[:4], "interrupted", "stopped"]
    third.set_trial_state(5, "failed", cause="out of memory")
    assert begin(run).look().trial(5).state == "failed", "a request is answered once"


def test_an_extended_run_lets_finished_trials_go_on_if_epochs_are_more(run: Run) -> None:
    first = begin(run)
    add_trial(first, {}, [0.5] * 5)
    add_trial(first, {}, [0.5] * 2, state="stopped", reason=STOPPED_EARLY)
    first.change_trial(1, lambda progress: progress.model_copy(update={"was_promoted": True}))
    spec = run.look().spec()
    run.request(reopens=False, spec=spec.with_settings({"training.epochs": 5, "seed": 3}))
    assert [trial.state for trial in begin(run).look().trials] == ["finished", "stopped"]
    run.request(reopens=False, spec=spec.with_settings({"training.epochs": 8}))
    longer, stopped = begin(run).look().trials
    assert (longer.state, longer.progress.reason, longer.progress.extended_from) == ("interrupted", "extended", 5)
    assert (longer.spec().training.epochs, longer.progress.was_promoted) == (8, False)
    assert (stopped.state, stopped.spec().training.epochs) == ("stopped", 5)
    assert stopped.was_stopped_early


def test_a_trial_that_was_stopped_early_goes_on_once_it_is_promoted(run: Run) -> None:
    attempt = begin(run)
    add_trial(attempt, {}, [0.5], state="stopped", reason=STOPPED_EARLY)
    promoted = attempt.promote(1)
    assert (promoted.state, promoted.progress.was_promoted, len(promoted.epochs)) == ("interrupted", True, 1)
    assert not promoted.was_stopped_early


def test_what_an_earlier_attempt_writes_is_not_read_any_more(run: Run) -> None:
    """Its process may have been cut off only: it wakes, and knows nothing of the next attempt."""
    first = begin(run)
    add_trial(first, {}, [0.5, 0.4], state="running")
    writer = TrialWriter.begin(first.place(1))
    second = begin(run)
    before = run.look()
    first.set_status("failed", "late")
    first.set_trial_state(1, "failed", "late")
    first.new_trial(2, {}, run.look().spec())
    first.put_best([(best_facts(), {"model.safetensors": b"late"})])
    with contextlib.closing(writer):
        writer.set_state("failed", "late")
    after = run.look()
    assert (after.trials, after.status, after.result) == (before.trials, before.status, None)
    assert begin(run).look().trials == second.look().trials


def test_an_attempt_that_is_replaced_is_told_to_stop(run: Run) -> None:
    first = Attempt.begin(run.storage, run.name, 1)
    assert first is not None
    with contextlib.closing(first):
        assert not first.should_stop()
        begin(run)
        wait_until(first.should_stop)


def wait_until(holds: Any, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_wish_to_stop_is_the_attempt_s_and_reaches_its_trials(run: Run) -> None:
    attempt = Attempt.begin(run.storage, run.name, 1)
    assert attempt is not None
    with contextlib.closing(attempt):
        attempt.new_trial(1, {}, run.look().spec())
        with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
            assert not writer.should_stop()
            attempt.ask_to_stop()
            assert attempt.should_stop()
            wait_until(writer.should_stop)
    with contextlib.closing(TrialWriter.begin(begin(run).place(1))) as writer:
        assert not writer.should_stop(), "the next attempt goes on"


def test_a_person_s_wish_to_stop_is_seen(run: Run) -> None:
    attempt = Attempt.begin(run.storage, run.name, 1)
    assert attempt is not None
    with contextlib.closing(attempt):
        run.ask_to_stop(1)
        wait_until(attempt.should_stop)


def test_what_tune_writes_down_of_it_holds_no_credentials_and_no_threads(run: Run) -> None:
    assert pickle.loads(pickle.dumps(begin(run))).__dict__ == {"run": "run", "number": 1}


# Trials


def test_a_trial_knows_its_spec_and_parameters(run: Run) -> None:
    attempt = begin(run)
    spec = run.look().spec().with_settings({"optimizer.lr": 0.25, "training.epochs": 9})
    made = attempt.new_trial(3, {"optimizer.lr": 0.25}, spec)
    trial = run.look().trial(3)
    assert trial == made
    assert trial.spec() == spec
    assert (trial.number, trial.parameters, trial.progress.epochs_wanted) == (3, {"optimizer.lr": 0.25}, 9)
    assert (trial.state, trial.replicate_of) == ("waiting", None)


def test_trials_are_listed_in_order(run: Run) -> None:
    attempt = begin(run)
    for number in (2, 10, 1, 1000):
        attempt.new_trial(number, {}, run.look().spec())
    assert [trial.number for trial in run.look().trials] == [1, 2, 10, 1000]
    assert [trial.number for trial in begin(run).look().trials] == [1, 2, 10, 1000]


def test_replicates_are_made_of_the_best_and_never_twice(place: Storage) -> None:
    spec = TuneSpec.search_over("ae", "ae", {"search.trials": 3, "search.replicates": 2, "search.keep_best": 2})
    attempt = begin(create(place, spec, name="run"))
    for value in (0.3, 0.1, 0.2):
        add_trial(attempt, {"optimizer.lr": value}, [value])
    for begins_anew in (False, False, True):
        writer = begin(run_of(attempt)) if begins_anew else attempt
        writer.add_replicates()
        made = [trial for trial in writer.look().trials if trial.replicate_of]
        assert [(trial.number, trial.replicate_of, trial.spec().seed) for trial in made] == [
            (4, 2, 1),
            (5, 2, 2),
            (6, 3, 1),
            (7, 3, 2),
        ]
        assert ranking.lacking_replicates(writer.look()) == []


def test_a_checkpoint_that_is_gone_is_named(run: Run) -> None:
    attempt = begin(run)
    trial = add_trial(attempt, {}, [0.5], checkpoints=(CheckpointRecord(key="run/gone", step=1, epochs=1, crc32=0),))
    with pytest.raises(CheckpointError, match=r"^the checkpoint run/gone of trial 1 is gone$"):
        attempt.checkpoint(trial)


# The best and the log


def test_the_best_stay_until_a_later_attempt_has_others(run: Run) -> None:
    first = begin(run)
    add_trial(first, {}, [0.5])
    facts = [best_facts(place=place) for place in range(1, 13)]
    first.put_best([(each, {"model.safetensors": bytes([each["place"]])}) for each in facts])
    for _ in range(2):  # an attempt that leaves none, and one after it
        second = begin(run)
        assert list(run.look().best) == facts
        assert [run.best_file("model.safetensors", place) for place in (1, 2, 11)] == [b"\1", b"\2", b"\13"]
    second.put_best([(best_facts(), {"model.safetensors": b"new"})])
    assert run.best_files() == {"model.safetensors": b"new"}
    run.put_beside_best("card.json", b"{}")
    assert run.best_files().keys() == {"card.json", "model.safetensors"}


def test_the_log_of_all_attempts_is_one(run: Run) -> None:
    for number in (1, 2):
        attempt = Attempt.begin(run.storage, run.name, number)
        assert attempt is not None
        with contextlib.closing(attempt):
            attempt.add_to_log(f"attempt {number}\n".encode())
    assert list(LogTail(run.storage, run.name).lines(ended=True)) == ["attempt 1", "attempt 2"]
