"""Where jobs go: a storage folder with its queue, and a cluster.

Nothing here imports torch or Ray before a job is queued.
"""

from __future__ import annotations

import getpass
import re
import shutil
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen.capacity import LOST_FOR_S, Capacity, OnDemand
from raygen.errors import (
    ClusterUnreachableError,
    JobError,
    JobFailedError,
    RaygenError,
    ResourceError,
    RunError,
    RunInterruptedError,
)
from raygen.preparation import Prepared, extended
from raygen.queue.job import ACTIVE, ENDED, RETRIED, Job, Request, State
from raygen.runs import Run, default_storage

if TYPE_CHECKING:
    from raygen.cluster.service import Service
    from raygen.queue.policy import Cluster
    from raygen.queue.store import Store

POLL_EVERY_S = 0.25


class Site:
    """Where jobs go: a storage folder with its queue, and a cluster."""

    def __init__(self, storage: Path | None = None, address: str | None = None, *, create: bool = False) -> None:
        """Open the queue; one that was never made is made only with `create`, or when a job is queued.

        Raises QueueError where it cannot be used, RunError where the storage is no folder, and ResourceError where
        `address` is no dashboard's address.
        """
        from raygen.cluster.session import dashboard_address
        from raygen.queue.store import Store

        place = storage or default_storage()
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(place)):
            raise RunError(
                f"--storage {place} is an object store's address; runs need a folder that every node sees at the same "
                "path: NFS, EFS, Filestore, or the bucket mounted"
            )
        self.storage = place.expanduser().absolute()
        self.store: Store = Store.open(self.storage, create=create)
        self._address = dashboard_address(address)

    @cached_property
    def service(self) -> Service:
        """What runs in the background for the queue; those who only look at the queue need not import it."""
        from raygen.cluster.service import Service

        return Service(self.storage, self._address)

    def capacity(self) -> Capacity:
        """What the cluster has in all; raises ClusterUnreachableError where it must be asked and is silent."""
        return self.service.capacity(self.store)

    @property
    def place(self) -> str:
        """The cluster in words."""
        from raygen.queue.store import place

        return place(self.service.cluster)

    def require_local(self, command: str) -> None:
        """Raise ResourceError where jobs would go to another cluster than this machine's own."""
        if self.service.address is not None:
            raise ResourceError(
                f"{command} is for this machine, but jobs go to {self.service.address}; unset its variable"
            )

    def status(self) -> dict[str, Any]:
        """What runs for the queue, and how many jobs are in which state, as plain JSON."""
        cluster = self._seen_cluster()
        active = [job for job in self.store.list(states=ACTIVE) if job.cluster == cluster.name]
        nodes, lost = (cluster.capacity.nodes, cluster.capacity.lost) if cluster.capacity else ((), ())
        return {
            "cluster": self.place,
            "address": self.service.address or self.service.head.address,
            "nodes": [
                {**vars(node), "jobs": {job.name: job.places[node.id] for job in active if node.id in job.places}}
                for node in nodes
            ],
            "lost_nodes": [vars(node) for node in lost if self.store.seconds_since(node.lost_at) < LOST_FOR_S],
            "on_demand": cluster.on_demand and vars(cluster.on_demand),
            "gpus": sum(node.gpus for node in nodes) if cluster.capacity else None,
            "cpus": sum(node.cpus for node in nodes) if cluster.capacity else None,
            "gpus_in_use": sum(sum(job.places.values()) * job.gpus_each for job in active),
            "cpus_in_use": sum(sum(job.places.values()) * job.cpus_each for job in active),
            "unreachable_since": cluster.unreachable_since,
            "problem": cluster.problem,
            "dispatchers": [
                {"host": each.host, "pid": each.pid, "alive": self.service.works(each)}
                for each in self.store.dispatchers()
                if each.cluster == cluster.name
            ],
            "ends_when_idle": self.service.ends_when_idle(),
            "queue": self.store.address,
            "storage": str(self.storage),
            "jobs": {str(state): number for state, number in self.store.count().items()},
        }

    def _seen_cluster(self) -> Cluster:
        """The cluster as its dispatcher last saw it; another machine's that has no dispatcher is looked at now."""
        cluster = self.store.cluster(self.service.cluster)
        if cluster.has_dispatcher or self.service.address is None:
            return cluster
        try:
            return replace(cluster, capacity=self.capacity(), unreachable_since=None, problem="")
        except ClusterUnreachableError as error:
            return replace(cluster, unreachable_since=cluster.unreachable_since or time.time(), problem=str(error))

    def declare_on_demand(self, on_demand: OnDemand | None) -> None:
        """Have jobs planned for nodes that the cluster's autoscaler can add; None: for none such.

        Raises ResourceError if jobs go to this machine's own cluster, which has no autoscaler.
        """
        if self.service.address is None:
            raise ResourceError(
                "this machine's own cluster gets no more nodes; name one that has an autoscaler with --address"
            )
        from raygen.queue.store import Store

        self.store = Store.open(self.storage)
        self.store.set_on_demand(self.service.cluster, on_demand)

    def submit(
        self,
        prepared: Prepared,
        *,
        name: str | None = None,
        priority: int = Request.priority,
        retries: int = Request.retries,
        node_timeout_s: float | None = Request.node_timeout_s,
    ) -> Job:
        """Make the run folder, queue the job, and see to it that a dispatcher will start it.

        Raises RunError where the folder cannot be made, JobError where the name is taken, ResourceError where a
        node of the cluster cannot run jobs, and ServiceError where no dispatcher starts (the job is queued then).
        """
        from raygen.queue.store import Store

        self.service.check_nodes()
        run = Run.create(
            self.storage,
            prepared.kind,
            prepared.spec,
            prepared.plan,
            prepared.direction,
            name=name,
            warm_weights=prepared.warm_weights,
        )
        self.store = Store.open(self.storage)
        job = self.store.submit(
            Request(
                name=run.name,
                folder=str(run.folder),
                kind=prepared.kind,
                model=prepared.spec.model.name,
                data=prepared.spec.data.source,
                user=getpass.getuser(),
                cluster=self.service.cluster,
                priority=priority,
                retries=retries,
                node_timeout_s=node_timeout_s,
                processes=prepared.plan.processes,
                fewest_processes=prepared.plan.fewest_processes,
                gpus_each=prepared.plan.gpus_per_worker,
                cpus_each=prepared.plan.cpus_per_worker,
            )
        )
        self.service.ensure(self.store)
        return job

    def retry(self, job: Job) -> Job:
        """Queue a failed or cancelled job again; trials that failed go on too.

        Raises JobError for any other, and RunError if an earlier version made its run.
        """
        if job.state not in RETRIED:
            raise JobError(f"{job.name} is {job.state}; only a failed or cancelled job can be tried again")
        run = Run(Path(job.folder))
        run.check_goes_on()
        run.reopen()
        queued = self.store.retry(job)
        self.tend(queued)
        return queued

    def extend(self, job: Job, *, trials: int | None = None, epochs: int | None = None) -> Job:
        """Queue a finished search again, for so many trials in all, or epochs of each trial.

        Raises JobError where the job has not succeeded, RunError if an earlier version made its run, and SpecError
        where it is no search or cannot be extended so.
        """
        run = Run(Path(job.folder))
        # A driver of an earlier attempt that is still ending writes there too.
        with run.lock():
            run.extend(extended(job, trials=trials, epochs=epochs))
        queued = self.store.extend(job)
        self.tend(queued)
        return queued

    def tend(self, job: Job) -> None:
        """See to it that a dispatcher works for the job's cluster, where this machine is the one to do so."""
        from raygen.cluster.service import Service

        if job.cluster == self.service.cluster:
            self.service.ensure(self.store)
        elif "://" in job.cluster:
            Service(self.storage, job.cluster).ensure(self.store)

    def cancel(self, job: Job) -> Job:
        """End a job, soon; raises JobError where it has ended."""
        cancelled = self.store.cancel(job)
        if cancelled.state not in ENDED:
            self.tend(job)
        return cancelled

    def remove(self, job: Job) -> None:
        """Forget a job that has ended and delete its run folder; raises JobError where it has not ended."""
        if self.store.get(job.id).state not in ENDED:
            raise JobError(f"{job.name} is {job.state}; `raygen cancel {job.name}` ends it first")
        # The folder first: where that fails, the job can still be removed again.
        try:
            shutil.rmtree(job.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RunError(f"cannot remove {job.folder}: {error.strerror}") from error
        self.store.remove(job)

    def wait(self, job: Job) -> Run:
        """Wait for the job's end; raises what it ended with, unless it succeeded."""
        while (job := self.store.get(job.id)).state not in ENDED:
            self.tend(job)
            time.sleep(POLL_EVERY_S)
        check(job)
        return Run(Path(job.folder))


def check(job: Job) -> None:
    """Raise what an ended job ended with, unless it succeeded."""
    if job.state is State.CANCELLED:
        raise RunInterruptedError(f"{job.name} was cancelled; `raygen retry {job.name}` goes on with it")
    if job.state is State.FAILED:
        failure: RaygenError = JobFailedError(f"{job.name} failed: {job.reason}")
        failure.exit_code = Run(Path(job.folder)).status().exit_code or failure.exit_code
        raise failure
