"""What may be asked of a search that has ended, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raygen.capacity import Capacity
from raygen.errors import JobError, RunError, SpecError
from raygen.plan import Plan
from raygen.queue.job import Job, JobState, Request
from raygen.queue.store import Store
from raygen.record.run import Run
from raygen.site import Site
from raygen.spec import TrainSpec, TuneSpec
from raygen.storage import Storage

DEVICES = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)


def ended(storage: Path, settings: dict[str, Any], *, kind: str = "tune", state: JobState = JobState.SUCCEEDED) -> Job:
    """A job in the queue that has ended, after no trial at all."""
    small = {"search.trials": 4, "training.epochs": 3, **settings}
    spec = TuneSpec.search_over("ae", "ae", small) if kind == "tune" else TrainSpec.create("ae", settings)
    Run.create(Storage(storage), kind, spec, PLAN, "min", name="ended")
    store = Store.open(Storage(storage))
    about = {"kind": kind, "model": "ae", "data": "digits", "objective": "val_mse", "user": "me"}
    store.submit(Request(name="ended", storage=str(storage), cluster="here", **DEVICES, **about))
    dispatcher = store.register("here", host="here", pid=1)
    store.saw("here", Capacity.of_machine(gpus=0, cpus=1, where="here"))
    job = store.claim(dispatcher)
    assert job is not None
    return store.move(job, state)


def test_more_trials_and_epochs_are_written_down_and_the_job_is_queued(storage: Path) -> None:
    job = ended(storage, {})
    job = Site(storage).extend(job, trials=8, epochs=5)
    spec = Site(storage).run_of(job).look().spec()
    assert isinstance(spec, TuneSpec)
    assert (spec.search.trials, spec.training.epochs, job.state) == (8, 5, JobState.QUEUED)
    with pytest.raises(JobError, match="ended is queued; only a job that has succeeded can be extended"):
        Site(storage).extend(job, trials=9)


@pytest.mark.parametrize(
    ("settings", "asked", "refusal"),
    [
        ({}, {"trials": 3}, "--trials 3 is fewer than the 4 that ended has"),
        ({}, {"epochs": 2}, "--epochs 2 is fewer than the 3 that ended has"),
        ({"optimizer.schedule": "cosine"}, {"epochs": 5}, "follows the number of epochs.*leave out --epochs"),
        ({"optimizer.warmup_fraction": 0.1}, {"epochs": 5}, "follows the number of epochs.*leave out --epochs"),
    ],
)
def test_what_cannot_be_extended_is_refused_in_one_line(
    storage: Path, settings: dict[str, Any], asked: dict[str, int], refusal: str
) -> None:
    job = ended(storage, settings)
    with pytest.raises(SpecError, match=refusal):
        Site(storage).extend(job, **asked)
    assert Site(storage).run_of(job).look().requests == 0
    assert Store.open(Storage(storage)).get(job.id).state is JobState.SUCCEEDED


def test_only_a_search_that_has_succeeded_is_extended(storage: Path) -> None:
    job = ended(storage, {}, state=JobState.FAILED)
    with pytest.raises(JobError, match="ended is failed; only a job that has succeeded can be extended"):
        Site(storage).extend(job, trials=8)


@pytest.mark.parametrize("kind", ["train", "tune"])
def test_a_run_of_before_the_record_does_not_go_on(storage: Path, kind: str) -> None:
    job = ended(storage, {}, kind=kind, state=JobState.SUCCEEDED if kind == "tune" else JobState.FAILED)
    path = storage / "ended" / "run.json"
    document = json.loads(path.read_text())
    del document["format"]
    path.write_text(json.dumps(document))
    site, refusal = Site(storage), "ended/run.json was written by another version of Raygen, which alone can read it"
    with pytest.raises(RunError, match=refusal):
        site.extend(job, trials=9) if kind == "tune" else site.retry(job)
    assert Store.open(Storage(storage)).get(job.id).state is job.state


def test_a_run_of_version_2_goes_on_unless_its_inputs_had_noise(storage: Path) -> None:
    """That version differs from today's in the noise on an autoencoder's inputs alone."""
    job = ended(storage, {}, kind="train", state=JobState.FAILED)
    path = storage / "ended" / "run.json"
    document = json.loads(path.read_text())
    document["spec"]["version"] = 2
    noisy = {**document, "spec": {**document["spec"], "model": {**document["spec"]["model"], "noise_std": 0.3}}}
    path.write_text(json.dumps(noisy))
    with pytest.raises(SpecError, match=r"type a new `raygen train ae --set data.corruption=noise"):
        Site(storage).retry(job)
    assert Store.open(Storage(storage)).get(job.id).state is JobState.FAILED
    path.write_text(json.dumps(document))
    assert Site(storage).retry(job).state is JobState.QUEUED


def test_a_training_is_not_extended(storage: Path) -> None:
    job = ended(storage, {}, kind="train")
    with pytest.raises(SpecError, match="was made by `raygen train`; only a search can be extended"):
        Site(storage).extend(job, epochs=50)
