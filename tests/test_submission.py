"""A run and its job come to be together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raygen import submission
from raygen.capacity import Capacity
from raygen.errors import JobError, QueueError, StorageError
from raygen.preparation import Prepared, prepare_training
from raygen.queue.job import Job
from raygen.queue.store import Store
from raygen.record.run import Run
from raygen.storage import Storage

Submit = Callable[..., Job]


@pytest.fixture
def prepared() -> Prepared:
    return prepare_training("ae", {}, Capacity.of_machine(gpus=0, cpus=2, where="here"))


@pytest.fixture
def queue(tmp_path: Path) -> Store:
    return Store.open(Storage(tmp_path / "queue"))


@pytest.fixture
def submit(queue: Store, prepared: Prepared) -> Submit:
    def submitted(storage: Storage, name: str | None = "job", prepared: Prepared = prepared) -> Job:
        return submission.submit(queue, storage, prepared, name=name, data=None, cluster="c", priority=3)

    return submitted


@pytest.fixture
def mine(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "mine")


@pytest.fixture
def other(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "other")


def test_a_job_has_its_run_and_what_was_wanted(submit: Submit, queue: Store, mine: Storage) -> None:
    job = submit(mine)
    assert (job.name, job.storage, job.priority, job.kind) == ("job", mine.url, 3, "train")
    assert queue.get(job.id) == job
    assert Run.open("job", mine).look().kind == "train"


def test_a_name_that_is_taken_in_another_storage_is_refused_before_anything_is_made(
    submit: Submit, queue: Store, mine: Storage, other: Storage
) -> None:
    submit(other)
    with pytest.raises(JobError, match="there is a job 'job' already; choose another --name"):
        submission.check_free(queue, "job")
    submission.check_free(queue, "jo")
    submission.check_free(queue, None)


def test_a_name_that_somebody_takes_meanwhile_leaves_no_run(submit: Submit, mine: Storage, other: Storage) -> None:
    submit(other)
    with pytest.raises(JobError, match="there is a job 'job' already; choose another --name"):
        submit(mine)
    assert mine.list() == []
    assert Run.open("job", other).look().attempt == 0


def test_a_made_up_name_that_another_storages_job_has_is_passed_over(
    submit: Submit, queue: Store, mine: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = iter(["first", "first", "second"])
    create = Run.create

    def within_one_second(*arguments: object, **options: object) -> Run:
        return create(*arguments, **{**options, "name": next(made_up)})  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "create", within_one_second)
    assert submit(other, None).name == "first"
    assert submit(mine, None).name == "second"
    assert mine.children() == ["second"]


@pytest.mark.parametrize("is_queued", [False, True])
def test_a_run_stays_if_the_queues_answer_alone_was_lost(
    submit: Submit, queue: Store, mine: Storage, monkeypatch: pytest.MonkeyPatch, is_queued: bool
) -> None:
    put = queue.submit

    def lost(request: object) -> Job:
        if is_queued:
            put(request)  # type: ignore[arg-type]
        raise QueueError("the connection was lost")

    monkeypatch.setattr(queue, "submit", lost)
    with pytest.raises(QueueError, match="the connection was lost"):
        submit(mine)
    assert mine.children() == (["job"] if is_queued else [])
    assert len(queue.list()) == is_queued


def test_a_run_whose_first_weights_cannot_be_written_is_not_left(
    submit: Submit, queue: Store, mine: Storage, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Storage, key: str, content: bytes | Path) -> None:
        raise StorageError("no space is left")

    monkeypatch.setattr(Storage, "put", full)
    with pytest.raises(StorageError, match="no space is left"):
        submit(mine, prepared=replace(prepared, warm_weights=b"weights"))
    assert mine.children() == []
    assert queue.list() == []
