"""A queue on a disk that is full or read-only: what can be looked at and removed, and what is said of the rest."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from raygen import machine
from raygen.plan import Plan
from raygen.queue import schema
from raygen.queue.job import Job, JobState, Request
from raygen.queue.store import Store
from raygen.record.run import Run
from raygen.spec import TrainSpec
from raygen.storage import Storage


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, with a queue of two jobs that have ended and of one that waits."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "raygen-test", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs root and the right to mount")
    try:
        store = Store.open(Storage(folder))
        for name, state in (("old", JobState.SUCCEEDED), ("new", JobState.FAILED), ("waiting", JobState.QUEUED)):
            _add(store, Storage(folder), name, state)
        Storage(folder).put("old/model", bytes(500_000))
        store.engine.dispose()
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _add(store: Store, storage: Storage, name: str, state: JobState) -> Job:
    plan = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
    Run.create(storage, "train", TrainSpec.create("ae", {}), plan, "min", name=name)
    about = {"kind": "train", "model": "ae", "data": "digits", "objective": "val_mse", "cluster": "here"}
    devices = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
    job = store.submit(Request(name=name, storage=storage.url, user=machine.user(), **about, **devices))
    with store.engine.begin() as connection:
        connection.execute(sa.update(schema.jobs).where(schema.jobs.c.id == job.id).values(state=state))
    return store.get(job.id)


def fill(disk: Path) -> None:
    with (disk / "fill").open("wb", buffering=0) as file:
        while _grows(file.fileno()):
            pass


def _grows(file: int) -> bool:
    try:
        return os.write(file, bytes(4096)) > 0
    except OSError:
        return False


def type_in(disk: Path, command: str) -> Result:
    return CliRunner(env={"RAYGEN_STORAGE": str(disk), "RAY_ADDRESS": ""}).invoke(app, command.split())


def test_on_a_full_disk_all_is_shown_and_rm_makes_room(disk: Path) -> None:
    fill(disk)
    for command in ("ls", "show old", "status", "wait old"):
        assert type_in(disk, command).exit_code == 0, command
    full = type_in(disk, "cancel waiting")
    assert (full.exit_code, "its disk is full: `raygen rm` makes room" in full.stderr) == (1, True)
    removed = type_in(disk, "rm old --yes")
    assert (removed.exit_code, "old removed" in removed.stderr) == (0, True), removed.output
    assert [job.name for job in Store.open(Storage(disk)).list()] == ["waiting", "new"]
    assert type_in(disk, "cancel waiting").exit_code == 0


def test_those_who_look_at_a_full_disk_at_the_same_time_wait_for_moments_alone(disk: Path) -> None:
    fill(disk)

    def look() -> list[int]:
        store = Store.open(Storage(disk))
        return [len(store.list()) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(look) for _ in range(4)]
    assert [each.result() for each in looks] == [[3] * 20] * 4


def test_what_is_open_when_the_disk_is_full_goes_on_beside_others(disk: Path) -> None:
    store = Store.open(Storage(disk))
    store.list()
    fill(disk)
    assert type_in(disk, "ls").exit_code == 0
    assert len(store.list()) == 3


def test_a_read_only_file_system_is_named_as_what_it_is(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused = type_in(disk, "cancel waiting")
    assert (refused.exit_code, "its file system is read-only" in refused.stderr) == (1, True), refused.output
    assert "chmod" not in refused.stderr
