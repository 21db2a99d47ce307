"""Jobs whose storage is a bucket, a server of S3: no folder is shared between the processes that run them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygen.queue.job import JobState
from raygen.record.run import WEIGHTS, Run
from raygen.record.scratch import PREFIX
from raygen.storage import Storage
from tests.cluster.weights import assert_equal, final_weights, undisturbed, undisturbed_pair
from tests.storage import servers
from tests.typed_commands import CPUS, Queue, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


class BucketQueue(Queue):
    """Commands for a storage in a bucket; every process that they start has its temporary files in one folder."""

    def __init__(self, address: str, folder: Path) -> None:
        super().__init__(folder)
        self.bucket = Storage(address)
        self.temporary = folder
        self.environment |= {
            **servers.S3_ENVIRONMENT,
            "RAYGEN_STORAGE": address,
            "RAYGEN_DB": f"sqlite:///{folder / 'queue.sqlite'}",
            "RAYGEN_LIVENESS_S": "3",
            "TMPDIR": str(folder),
        }

    @property
    def place(self) -> Storage:
        return self.bucket


@pytest.fixture(scope="module")
def queue() -> Iterator[BucketQueue]:
    """A bucket, and a head of two CPU cores and a dispatcher for it."""
    # Ray makes sockets below, whose names are short.
    folder = Path(tempfile.mkdtemp(prefix="rg-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as environment, servers.moto() as address:
        for name, value in servers.S3_ENVIRONMENT.items():
            environment.setenv(name, value)
        environment.setenv("RAYGEN_DB", f"sqlite:///{folder / 'queue.sqlite'}")
        queue = BucketQueue(f"s3://{servers.BUCKET}/runs?endpoint={address}", folder)
        up = queue.raygen("up", "--cpus", str(CPUS))
        assert up.returncode == 0, up.stderr
        yield queue
        queue.kill_started()
        queue.raygen("down")
    shutil.rmtree(folder, ignore_errors=True)


def epochs_of(run: Run) -> dict[int, list[int]]:
    return {trial.number: [epoch.epoch for epoch in trial.epochs] for trial in run.look().trials}


def keys(run: Run) -> list[str]:
    return [entry.key for entry in run.storage.list(run.name)]


def assert_nothing_is_left(queue: BucketQueue) -> None:
    """Nothing stays on this machine when a job has ended; what a process that was killed left goes with the next."""
    wait_until(lambda: not list(queue.temporary.glob(f"{PREFIX}*")), "scratch folders to go")


def test_a_search_in_a_bucket_ends_with_models_that_load(queue: BucketQueue, tmp_path: Path) -> None:
    options = "--trials 4 --epochs 2 --scheduler fifo --cpus-per-trial 1 --name search"
    done = queue.raygen("tune", "ae", *options.split(), "-o", "json")
    assert done.returncode == 0, done.stderr
    run = queue.run("search")
    assert epochs_of(run) == {number: [1, 2] for number in range(1, 5)}
    assert [trial.state for trial in run.look().trials] == ["finished"] * 4
    for trial in run.look().trials:
        expected, _ = undisturbed(trial.spec(), tmp_path / f"alone-{trial.number}")
        assert_equal(final_weights(run, trial, tmp_path), expected)
    assert len(json.loads(done.stdout)["best"]) == 3
    assert run.best_file(WEIGHTS, 3)
    assert queue.raygen("evaluate", "search").returncode == 0
    assert queue.raygen("logs", "search").stdout
    assert_nothing_is_left(queue)


def test_two_processes_train_in_a_bucket_what_two_do_that_nobody_kills(queue: BucketQueue, tmp_path: Path) -> None:
    options = "--cpus 2 --workers 2 --epochs 60 --lr 2e-4 --set training.checkpoint_every_s=0.2 --name two --detach"
    assert queue.raygen("train", "vae", *options.split()).returncode == 0
    run = queue.run("two")
    queue.wait_for("two", JobState.RUNNING)
    wait_until(lambda: len(queue.head_processes("RayTrainWorker")) == 2, "two processes")
    wait_until(lambda: any(trial.progress.checkpoint for trial in run.look().trials), "a checkpoint")
    queue.head_processes("RayTrainWorker")[0].kill()
    job = queue.wait_for("two", JobState.SUCCEEDED, JobState.FAILED)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    [trial] = run.look().trials
    assert (trial.state, epochs_of(run)) == ("finished", {1: list(range(1, 61))})
    assert {key.rpartition("/")[2][:4] for key in keys(run) if "/trials/001/" in key} >= {"0001", "0002"}, (
        "it began again"
    )
    assert_equal(final_weights(run, trial, tmp_path), undisturbed_pair(trial.spec(), tmp_path))


def test_a_training_whose_driver_is_killed_is_recovered_and_ends_as_if_undisturbed(
    queue: BucketQueue, tmp_path: Path
) -> None:
    options = "--epochs 300 --cpus 1 --set training.checkpoint_every_s=0.5 --name orphan --detach"
    assert queue.raygen("train", "ae", *options.split()).returncode == 0
    run = queue.run("orphan")
    wait_until(lambda: any(trial.progress.checkpoint for trial in run.look().trials), "a checkpoint")
    drivers = queue.head_processes("raygen.cluster.driver", " orphan 1")
    assert drivers
    for driver in drivers:
        driver.kill()
    queue.wait_for("orphan", JobState.RECOVERING)
    job = queue.wait_for("orphan", JobState.SUCCEEDED, JobState.FAILED)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    [trial] = run.look().trials
    assert epochs_of(run) == {1: list(range(1, 301))}
    assert trial.progress.checkpoint is not None
    assert trial.progress.checkpoint.startswith("orphan/attempts/0002/"), "it was killed before its end"
    expected, _ = undisturbed(trial.spec(), tmp_path / "alone")
    assert_equal(final_weights(run, trial, tmp_path), expected)
    last = queue.raygen("train", "ae", "--epochs", "1", "--cpus", "1", "--name", "sweeper")
    assert last.returncode == 0, last.stderr
    assert_nothing_is_left(queue)
