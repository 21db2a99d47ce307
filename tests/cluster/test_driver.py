"""What an attempt's driver writes down however it ends."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayError, RaySystemError
from ray.tune import TuneError, Tuner

from raygen.cluster import driver
from raygen.errors import StorageError
from raygen.record.attempt import Attempt
from raygen.spec import TrainSpec
from tests.searches import begin, create, run_of


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return begin(create(tmp_path / "runs", TrainSpec.create("ae", {}), name="run"))


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the logs of a Ray are that can be joined at once; this process answers to signals as before."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(ray, "init", lambda **options: None)
    node = SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path))
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    monkeypatch.setattr(signal, "signal", lambda number, answer: None)
    return tmp_path


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*arguments: object, **options: object) -> None:
        raise error

    return act


def problem(logs: Path) -> None:
    (logs / "raylet.err").write_text("memory is running out\n")


def test_a_signal_while_ray_is_joined_interrupts_it(
    attempt: Attempt, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Ray does it, in ray/_private/worker.py.
    monkeypatch.setattr(ray, "init", lambda **options: sys.exit(signal.SIGTERM))
    assert driver._run(attempt) == 130
    assert (attempt.status.state, attempt.status.reason) == (
        "interrupted",
        "stopped by a signal; what was trained is kept",
    )


def test_a_signal_after_a_stop_was_asked_for_says_why(
    attempt: Attempt, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(attempt).ask_to_stop(attempt.number, "by its time limit of 2 h")
    monkeypatch.setattr(ray, "init", raising(KeyboardInterrupt()))
    driver._run(attempt)
    assert attempt.status.reason == "stopped by its time limit of 2 h; what was trained is kept"


@pytest.mark.parametrize("error", [ConnectionError("no GCS"), RuntimeError("Failed to connect to GCS"), RayError("x")])
def test_a_cluster_that_cannot_be_joined_costs_an_attempt(
    error: Exception, attempt: Attempt, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", raising(error))
    driver._run(attempt)
    assert (attempt.status.state, attempt.status.cause) == ("failed", "lost")
    assert attempt.status.reason == f"the cluster at 127.0.0.1:9 cannot be joined: {error}"


def tune_error(met: Exception) -> TuneError:
    """What Tune makes of an error that it meets in a callback."""
    error = TuneError(f"Traceback\n{met}")
    error.__context__ = met
    return error


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (RaySystemError("the GCS is gone"), "lost", "the cluster was lost: System error: the GCS is gone"),
        (ConnectionError(), "lost", "the cluster was lost: ConnectionError"),
        (TuneError("Trials did not complete"), "lost", "the cluster was lost: Trials did not complete"),
        (tune_error(ConnectionError("it broke")), "lost", "the cluster was lost: it broke"),
        (tune_error(StorageError("cannot write it")), "lost", "cannot write it"),
        (tune_error(KeyError("spec")), "error", "an error in Raygen itself: `raygen logs run` shows its traceback"),
        (KeyError("spec"), "error", "an error in Raygen itself: `raygen logs run` shows its traceback"),
    ],
)
def test_a_cluster_that_is_lost_costs_an_attempt_and_what_ray_says_of_it_is_kept(
    error: Exception,
    cause: str,
    reason: str,
    attempt: Attempt,
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fit(tuner: Tuner) -> None:
        problem(logs)
        raise error

    monkeypatch.setattr(Tuner, "fit", fit)
    monkeypatch.setattr(Tuner, "__init__", lambda tuner, *arguments, **options: None)
    with pytest.raises(type(error)) if cause == "error" else contextlib.nullcontext():
        driver._run(attempt)
    assert (attempt.status.state, attempt.status.cause) == ("failed", cause)
    assert attempt.status.reason == reason
    assert "the end of Ray's raylet.err:\nmemory is running out" in capsys.readouterr().out
