"""A run and its job come to be together, under one name: if there cannot be the one, the other is not left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raygen import machine
from raygen.errors import JobError, QueueError
from raygen.queue import storages
from raygen.queue.job import Job, Request
from raygen.record.run import Run

if TYPE_CHECKING:
    from raygen.data.stored import StoredData
    from raygen.preparation import Prepared
    from raygen.queue.store import Store
    from raygen.storage import Storage


def check_free(store: Store, name: str | None) -> None:
    """Raise JobError if a job has that name, in whichever storage its run is; None is for a name that is made up."""
    if name is not None and store.has(name):
        raise JobError(f"there is a job {name!r} already; choose another --name")


def check_kept(store: Store, storage: Storage) -> None:
    """Raise StorageError if jobs of the queue have their runs in a storage that is not there now.

    A run that was made in the place where it is to be mounted would stand for all of them.
    """
    if not storage.is_marked() and (names := store.runs_in(storage.url)):
        storages.check_kept(storage, names)


def submit(
    store: Store, storage: Storage, prepared: Prepared, *, name: str | None, data: StoredData | None, **wanted: Any
) -> Job:
    """Make the run and queue its job, of whoever runs this; `wanted` are further fields of its Request.

    Raises RunError or JobError if the name is taken, StorageError and QueueError if one of both cannot be written.
    """
    while True:
        run = Run.create(
            storage,
            prepared.kind,
            prepared.spec,
            prepared.plan,
            prepared.direction,
            name=name,
            is_taken=store.has,
            warm_weights=prepared.warm_weights,
            data=data,
        )
        try:
            return store.submit(_request(run, prepared, wanted))
        except JobError:  # somebody was faster, with a run of that name in another storage
            run.remove()
            if name is not None:
                raise
        except (QueueError, KeyboardInterrupt):
            if not store.has(run.name):  # else the answer alone was lost
                run.remove()
            raise


def _request(run: Run, prepared: Prepared, wanted: dict[str, Any]) -> Request:
    spec, plan = prepared.spec, prepared.plan
    return Request(
        name=run.name,
        storage=run.storage.url,
        kind=prepared.kind,
        model=spec.model.name,
        data=spec.data.source,
        objective=spec.evaluation.objective,
        user=machine.user(),
        processes=plan.processes,
        fewest_processes=plan.fewest_processes,
        gpus_each=plan.gpus_per_worker,
        cpus_each=plan.cpus_per_worker,
        **wanted,
    )
