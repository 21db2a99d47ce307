"""A writer that sleeps while the next one begins wakes up to find that nobody reads what it writes."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raygen.plan import Plan
from raygen.record import liveness
from raygen.record.liveness import Liveness
from raygen.record.run import Run
from raygen.record.view import View
from raygen.spec import TrainSpec
from raygen.storage import Storage
from tests.storage import servers

TIMES = 20
LIVENESS_S = 3.0
PATIENCE_S = 60.0


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A bucket of its own, and signs of life that are soon missed."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**servers.S3_ENVIRONMENT, "RAYGEN_LIVENESS_S": str(LIVENESS_S)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(liveness, "TIMEOUT_S", LIVENESS_S)
    with servers.moto() as address:
        yield Storage(f"s3://{servers.BUCKET}/{secrets.token_hex(4)}?endpoint={address}")


class Sleeper:
    """A process that runs an attempt; see sleeper.py."""

    def __init__(self, run: Run, number: int) -> None:
        self.number = number
        arguments = ["-m", "tests.record.sleeper", run.storage.url, run.name, str(number)]
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say_go(self) -> str:
        """Let it do what comes next; returns what it says to that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> None:
        """Put it to sleep, or wake it."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it, asleep or not."""
        self._process.kill()
        self._process.communicate()


def wait_for(condition: Callable[[], bool], *, every_s: float = 0.1) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never comes"
        time.sleep(every_s)


def writers(view: View) -> list[int]:
    """The attempt that wrote each epoch."""
    return [int(epoch.metrics["val_mse"]) for epoch in view.trial(1).epochs]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_read_of_a_writer_that_slept_while_the_next_began(bucket: Storage) -> None:
    plan = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
    spec = TrainSpec.create("ae", {"training.epochs": 1_000_000})
    run = Run.create(bucket, "train", spec, plan, "min", name="job")
    sleepers = [Sleeper(run, 1)]
    chance = random.Random(1)
    try:
        assert sleepers[0].say_go() == "begun"
        assert sleepers[0].say_go() == "goes on from 0"
        for number in range(1, TIMES + 1):
            old, new = sleepers[-1], Sleeper(run, number + 1)
            sleepers.append(new)
            wait_for(lambda old=old: writers(run.look())[-1:] == [old.number])  # type: ignore[misc]
            wait_for(lambda: run.look().trial(1).progress.checkpoint is not None)
            time.sleep(chance.uniform(0, 1.5))
            old.send(signal.SIGSTOP)
            sleeps_from_s, watch = time.monotonic(), Liveness()
            wait_for(lambda watch=watch, old=old: not watch.is_alive(bucket, run.name, old.number))  # type: ignore[misc]
            assert time.monotonic() - sleeps_from_s >= LIVENESS_S

            assert new.say_go() == "begun"
            begun = run.look()
            found = begun.trial(1).progress
            assert begun.attempt == new.number
            assert found.checkpoint is not None
            content = bucket.get(found.checkpoint)
            if number % 2:  # it wakes before the new one has written anything, or while it writes
                old.send(signal.SIGCONT)
                assert old.wait() == 0
                assert run.look() == begun
                assert bucket.get(found.checkpoint) == content == str(found.checkpoint_step).encode()
            assert new.say_go() == f"goes on from {found.checkpoint_step}"
            if number % 2 == 0:
                old.send(signal.SIGCONT)
                assert old.wait() == 0

            wait_for(lambda new=new: writers(run.look())[-1:] == [new.number])  # type: ignore[misc]
            view = run.look()
            kept = [epoch for epoch in found.epochs if epoch.epoch <= found.checkpoint_step]
            assert list(view.trial(1).epochs[: len(kept)]) == kept
            assert set(writers(view)[len(kept) :]) == {new.number}
            assert (view.attempt, view.status.state, view.result) == (new.number, "running", None)
            assert view.trial(1).state == "running"
            # Its checkpoints follow each other so fast that one may go between a look and a read.
            wait_for(lambda: bucket.get(run.look().trial(1).progress.checkpoint or "") is not None)
    finally:
        for sleeper in sleepers:
            sleeper.close()
