"""Jobs for the queue's tests, with runs as real ones have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from raygen.plan import Plan
from raygen.queue import schema
from raygen.queue.job import Job, Request
from raygen.queue.store import Store
from raygen.record.run import Run
from raygen.spec import TrainSpec
from raygen.storage import Storage

CLUSTER = "fake"
"""What the queue calls the cluster of these tests."""


DEVICES = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
"""What a job takes unless told otherwise."""


def make_run(storage: Storage, name: str) -> Run:
    """A run that waits to be started."""
    plan = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
    return Run.create(storage, "train", TrainSpec.create("ae", {}), plan, "min", name=name)


def queue_job(queue: Store, address: str | Path, name: str = "job", **wanted: Any) -> Job:
    """A job in the queue, for one CPU core unless told otherwise."""
    storage = Storage(address)
    make_run(storage, name)
    values = {
        "kind": "train",
        "model": "ae",
        "data": "digits",
        "objective": "val_mse",
        "user": "me",
        **DEVICES,
        **wanted,
    }
    return queue.submit(Request(name=name, storage=storage.url, cluster=CLUSTER, **values))


def let_leases_run_out(queue: Store) -> None:
    """Have so much time pass that every dispatcher has been taken for dead that does not give a sign of life."""
    with queue.engine.begin() as connection:
        connection.execute(sa.delete(schema.dispatchers))
