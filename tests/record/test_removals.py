"""A process that was cut off from its storage removes nothing that others have gone on with."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from raygen.errors import StorageError
from raygen.record.attempt import Attempt
from raygen.record.trial import TrialWriter
from raygen.spec import TrainSpec
from raygen.storage import Storage
from raygen.training.loop import Epoch
from tests.searches import begin, create, run_of

ROOT = Path(__file__).parents[2]


class Net:
    """What is between a process and its storage."""

    is_down = False


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    """Takes writes from the storage while it is down; looks pass, as they come from others."""
    net, put, delete = Net(), Storage.put, Storage.delete

    def put_over(storage: Storage, key: str, content: bytes | Path) -> None:
        if net.is_down:
            raise StorageError("the network is down")
        put(storage, key, content)

    def delete_over(storage: Storage, keys: Iterable[str]) -> None:
        if net.is_down:
            raise StorageError("the network is down")
        delete(storage, keys)

    monkeypatch.setattr(Storage, "put", put_over)
    monkeypatch.setattr(Storage, "delete", delete_over)
    return net


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """An attempt that has a trial."""
    spec = TrainSpec.create("ae", {})
    attempt = begin(create(tmp_path / "runs", spec))
    attempt.new_trial(1, {}, spec)
    return attempt


def train(writer: TrialWriter, steps: Iterable[int]) -> None:
    """Record epochs of one step, each with a checkpoint."""
    for step in steps:
        writer.checkpoint.unlink(missing_ok=True)
        writer.checkpoint.write_bytes(f"after {step}".encode())
        writer.record_checkpoint(step, writer.epochs_done())
        writer.record_epoch(Epoch(epoch=step, step=step, metrics={"val_mse": 1.0}, train_s=1.0, is_best=True))


def flushed(writer: TrialWriter) -> None:
    """Have all written that can be; states are written at once."""
    writer.set_state("running")


def test_an_attempt_keeps_the_checkpoint_that_it_begins_with(attempt: Attempt, net: Net) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as cut_off:
        train(cut_off, range(1, 4))
        flushed(cut_off)
        net.is_down = True
        train(cut_off, range(4, 9))
        after = begin(run_of(attempt))
        net.is_down = False
    trial = after.look().trial(1)
    assert trial.progress.checkpoint_step == 3
    assert after.checkpoint(trial) == b"after 3"


def test_the_next_start_keeps_the_checkpoint_that_it_begins_with(attempt: Attempt, net: Net) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as cut_off:
        train(cut_off, range(1, 4))
        flushed(cut_off)
        net.is_down = True
        train(cut_off, range(4, 9))
        with contextlib.closing(TrialWriter.begin(attempt.place(1))) as newest:
            net.is_down = False
            cut_off.close()
            newest.fetch_checkpoint()
            assert newest.checkpoint.read_bytes() == b"after 3"


def test_two_checkpoints_stay_of_one_that_goes_on_after_its_storage_was_away(attempt: Attempt, net: Net) -> None:
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        train(writer, range(1, 4))
        flushed(writer)
        net.is_down = True
        train(writer, range(4, 9))
        net.is_down = False
    trial = attempt.look().trial(1)
    assert attempt.checkpoint(trial) == b"after 8"
    kept = [entry.key for entry in attempt.storage.list(attempt.run) if entry.key.endswith(".safetensors")]
    assert len(kept) == 2


KILLED = """
import os, sys
from raygen.storage import Storage

storage, key = Storage(sys.argv[1]), sys.argv[2]
storage.put(key + ".before", b"")  # its folder is there
os.fsync = lambda descriptor: os._exit(9)
storage.put(key, bytes(5_000_000))
"""


def test_what_a_killed_process_was_writing_is_counted_and_goes_with_the_next_attempt(attempt: Attempt) -> None:
    run, keys = run_of(attempt), attempt.place(1).keys
    others = (f"{keys.attempt.best(1)}/evaluation.json", keys.attempt.run.request(1))
    for key in (keys.start(1).checkpoint(1), *others):
        command = [sys.executable, "-c", KILLED, str(run.storage.folder), key]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    assert run.size_bytes() > 15_000_000
    begin(run)
    assert 10_000_000 < run.size_bytes() < 11_000_000, "other processes may still write beside the best models"
    for entry in run.storage.partials(run.name):
        assert "/trials/" not in entry.key
    run.remove()
    assert run.size_bytes() == 0
