"""Where jobs go: a storage with its queue, and a cluster.

Nothing here imports torch or Ray before a job is queued, nor specs and records before one is looked at closely: who
only lists jobs need not wait for them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property, partial
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
    StorageError,
)
from raygen.history import History
from raygen.patience import Patience
from raygen.progress import OnProgress, silent
from raygen.queue import changes
from raygen.queue.job import (
    ACTIVE,
    ENDED,
    EVERYBODY,
    UNFINISHED,
    Event,
    Job,
    JobState,
    Request,
    check_time_limit,
)
from raygen.record.log import LogTail as LogTail
from raygen.record.lookout import look_every_s
from raygen.storage import Storage, default_storage

if TYPE_CHECKING:
    from raygen.cluster.service import Ended, Service
    from raygen.preparation import Prepared
    from raygen.queue.policy import Cluster
    from raygen.queue.store import Store
    from raygen.record.run import Run
    from raygen.report import Report
    from raygen.spec import TuneSpec

POLL_EVERY_S = 0.25


class Site:
    """Where jobs go: a storage with its queue, and a cluster."""

    def __init__(self, storage: str | Path | None = None, address: str | None = None, *, create: bool = False) -> None:
        """Open the queue; one that was never made is made only with `create`, or when a job is queued.

        Raises QueueError and ServiceError if it cannot be used, InputError if `storage` is no storage's address, and
        ResourceError if `address` is no dashboard's.
        """
        from raygen.cluster.session import dashboard_address
        from raygen.queue.store import Store

        self.storage = Storage(storage or default_storage())
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
    def address(self) -> str:
        """The storage in a few words."""
        return self.storage.name.rstrip("/")

    @property
    def look_every_s(self) -> float:
        """Seconds between two looks at runs by whoever looks again and again."""
        return look_every_s(self.storage)

    @property
    def place(self) -> str:
        """The cluster in words."""
        from raygen.queue.claims import place

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
            **{key: getattr(cluster, key) for key in ("name", "unreachable_since", "problem", "held_at", "held_by")},
            "dispatchers": [
                {
                    **{"host": each.host, "pid": each.pid, "user": each.user, "alive": self.service.runs(each)},
                    "away": each.away.get(self.storage.url, ""),
                }
                for each in self.store.dispatchers()
                if each.cluster == cluster.name
            ],
            "ends_when_idle": self.service.ends_when_idle(),
            "queue": self.store.address,
            "storage": self.storage.url,
            "jobs": {str(state): number for state, number in self.store.count().items()},
        }

    def _seen_cluster(self) -> Cluster:
        """The cluster as its dispatcher last saw it; another machine's that has no dispatcher is looked at now."""
        cluster = self.store.cluster(self.service.cluster)
        if cluster.has_dispatcher or self.service.address is None:
            return cluster
        now = self.store.seconds_since(0.0)
        try:
            return replace(cluster, capacity=self.capacity(), unreachable_since=None, problem="")
        except ClusterUnreachableError as error:
            return replace(cluster, unreachable_since=cluster.unreachable_since or now, problem=str(error))

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
        time_limit_s: float | None = Request.time_limit_s,
        on_progress: OnProgress = silent,
    ) -> Job:
        """Send images along if need be, make the run, queue the job, and see to it that a dispatcher will start it.

        Raises StorageError if the storage cannot hold runs, RunError or JobError if the name is taken, SpecError if
        the time limit is none, ResourceError if a node of the cluster cannot run jobs, and ServiceError if no
        dispatcher starts (the job is queued then).
        """
        from raygen import data, submission
        from raygen.queue.store import Store
        from raygen.record.run import check_name

        check_name(name)
        check_time_limit(time_limit_s)
        self.service.check_storage()
        self.service.check_nodes()
        self.store = Store.open(self.storage)
        submission.check_kept(self.store, self.storage)
        submission.check_free(self.store, name)  # before images are sent along
        options = prepared.spec.data
        travels = data.travels(options, self.service.address)
        job = submission.submit(
            self.store,
            self.storage,
            prepared,
            name=name,
            data=data.upload(self.storage, options, on_progress=on_progress) if travels else None,
            cluster=self.service.cluster,
            priority=priority,
            retries=retries,
            node_timeout_s=node_timeout_s,
            time_limit_s=time_limit_s,
        )
        self.service.ensure(self.store)
        return job

    def retry(self, job: Job) -> Job:
        """Queue a failed or cancelled job again; trials that failed go on too.

        Raises JobError for any other, and SpecError if its training cannot go on any more.
        """
        changes.check(job, "retry")
        run = self.run_of(job)
        run.look().spec().check_trainable()
        run.request(reopens=True)
        queued = self.store.retry(job)
        self.tend(queued)
        return queued

    def extend(self, job: Job, *, trials: int | None = None, epochs: int | None = None) -> Job:
        """Queue a finished search again, for so many trials in all, or epochs of each trial.

        Raises JobError if the job has not succeeded, and SpecError if it is no search or cannot be extended so.
        """
        spec = self.extended_spec(job, trials=trials, epochs=epochs)
        self.run_of(job).request(reopens=False, spec=spec)
        queued = self.store.extend(job)
        self.tend(queued)
        return queued

    def extended_spec(self, job: Job, *, trials: int | None = None, epochs: int | None = None) -> TuneSpec:
        """The spec that `extend` would go on with; raises as it does."""
        from raygen.preparation import extended

        return extended(job, self.run_of(job).look(), trials=trials, epochs=epochs)

    def tend(self, job: Job) -> None:
        """See to it that a dispatcher works for the job, where this machine and this user are the ones to do so."""
        from raygen.cluster.service import Service

        if self.service.user not in (EVERYBODY, job.user):
            return
        if job.cluster == self.service.cluster:
            self.service.ensure(self.store)
        elif "://" in job.cluster:
            Service(self.storage, job.cluster).ensure(self.store)

    def cancel(self, job: Job, *, among: Collection[JobState] = UNFINISHED) -> Job:
        """End a job, soon; raises JobError if it has ended, or is in none of the states that are meant."""
        cancelled = self.store.cancel(job, among=among)
        if cancelled.state not in ENDED:
            self.tend(job)
        return cancelled

    def remove(self, job: Job) -> None:
        """Forget a job that has ended and remove its run; raises JobError if it goes on, or did since it was seen."""
        changes.check_unchanged(job, self.store.get(job.id))
        changes.check(job, "remove")
        # The run first: if that fails, the job can still be removed again.
        self.run_of(job).remove()
        self.store.remove(job)

    def wait(self, job: Job) -> Run:
        """Wait for the job's end, through outages; raises what it ended with, unless it succeeded."""
        patience = Patience(self.storage)
        while (job := patience.ask(partial(self.now, job))).state not in ENDED:
            patience.ask(partial(self.tend, job))
            time.sleep(POLL_EVERY_S)
        self.check(job)
        return self.run_of(job)

    def check(self, job: Job) -> None:
        """Raise what an ended job ended with, unless it succeeded."""
        if job.state is JobState.CANCELLED:
            raise RunInterruptedError(
                f"{job.name} was cancelled: {job.reason}; `raygen retry {job.name}` goes on with it"
            )
        if job.state is JobState.FAILED:
            failure: RaygenError = JobFailedError(f"{job.name} failed: {job.reason}")
            with contextlib.suppress(RunError, StorageError):
                failure.exit_code = self.run_of(job).look().status.exit_code or failure.exit_code
            raise failure

    def wait_until_ended(self) -> None:
        """Wait a while for a background that ends when no job is left, if none is."""
        self.service.wait_until_ended(self.store)

    # What people look at

    def find(self, name: str) -> Job:
        """The job of that name, or whose name alone begins so; raises JobError if there is none or several."""
        return self.store.find(name)

    def now(self, job: Job) -> Job:
        """The job as it is now; raises JobError if it was removed."""
        return self.store.get(job.id)

    def jobs(
        self, *, states: Collection[JobState] = (), user: str | None = None, limit: int | None = None
    ) -> Sequence[Job]:
        """Jobs, the newest first."""
        return self.store.list(states=states, user=user, limit=limit)

    def reasons(self, jobs: Sequence[Job]) -> dict[int, str]:
        """Why each of these jobs waits, by id; active ones have a reason if nobody looks after them."""
        return self.store.reasons(jobs)

    def best_value(self, job: Job) -> float | None:
        """The best value of the objective so far; of a job that has ended the queue knows it.

        Raises RunError and StorageError if it must be read and cannot.
        """
        if job.state in ENDED or job.attempt == 0:
            return job.best_value
        from raygen.record import ranking

        return ranking.best_value(self.run_of(job).look())

    def time_left_s(self, jobs: Sequence[Job]) -> dict[int, float]:
        """Seconds that jobs with a time limit may still run, by id."""
        now = self.store.seconds_since(0.0) if any(job.time_limit_s for job in jobs) else 0.0
        return {job.id: left_s for job in jobs if (left_s := job.time_left_s(now)) is not None}

    def events(self, job: Job) -> Sequence[Event]:
        """What happened to a job, the oldest first."""
        return self.store.events(job)

    def set_priority(self, job: Job, priority: int) -> Job:
        """Change a job's place in the queue; raises JobError if it has ended."""
        return self.store.set_priority(job, priority)

    def hold(self, job: Job) -> Job:
        """Keep a waiting job from being started; raises JobError if it does not wait."""
        return self.store.hold(job)

    def release(self, job: Job) -> Job:
        """Let a held job start again; raises JobError if it has ended."""
        return self.store.release(job)

    def run_of(self, job: Job) -> Run:
        """The run of a job, which may be in another storage than this one."""
        from raygen.record.run import Run

        return Run(self.storage if job.storage == self.storage.url else Storage(job.storage), job.name)

    def report(self, run: Run) -> Report:
        """A run as it is shown to people, as it is now; raises RunError if it is damaged."""
        from raygen.report import Report

        return Report(run.look(), run.address)

    def log(self, job: Job, *, skip: bool = False) -> LogTail:
        """What a job's processes printed, from the beginning or with `skip` from now on."""
        return LogTail(Storage(job.storage), job.name, skip=skip)

    def history(self, name: str) -> History:
        """A run and what the queue knows of it, if it does; raises RunError if there is no such run."""
        try:
            job = self.store.find(name)
        except JobError:
            from raygen.record.run import Run

            return History(run=Run.open(name, self.storage))
        return History(
            run=self.run_of(job),
            job=job,
            reason=self.reasons([job]).get(job.id, job.reason),
            events=self.store.events(job),
            attempts=self.store.attempts(job),
        )

    # What runs in the background of this machine

    @property
    def queue_address(self) -> str:
        """Where the queue is, without a password."""
        return self.store.address

    def up(self, capacity: Capacity, *, all_users: bool = False) -> None:
        """Start this machine's head and dispatcher to stay, for one's own jobs or everybody's.

        Raises ServiceError if they do not start.
        """
        self.service.up(self.store, capacity, all_users=all_users)

    def down(self) -> Ended:
        """End what runs in the background on this machine."""
        return self.service.down(self.store)

    def dispatch(self, *, all_users: bool = False) -> None:
        """Dispatch one's own jobs, or everybody's, in this process until it is asked to end."""
        self.service.dispatch(self.store, background=False, all_users=all_users)
