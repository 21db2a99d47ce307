"""The dispatcher: starts jobs when their devices are free, and sees every one to its end.

All it knows is in the store, in the run folders and on the cluster, so it may be killed at any moment: the next one
reads the same there and goes on. What it is about to do on the cluster it writes down before; submissions are
idempotent. While the cluster is silent nothing is concluded about any job.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import Timeout

from raygen.errors import CheckpointError, ClusterUnreachableError, JobChangedError, JobError, RunError
from raygen.queue.client import JobsClient, Submitted
from raygen.queue.job import NODE_TIMEOUT_S, ON_DEMAND_NODE_TIMEOUT_S, Job, Placement, State, backoff_s
from raygen.queue.store import LEASE_S, Store
from raygen.runs import Run

STOP_GRACE_S = 6.0
"""Seconds that a job which is to end has to write its checkpoints before its processes are ended."""

logger = logging.getLogger("raygen.dispatcher")


class Dispatcher:
    """Looks after the jobs of one cluster; several may share a queue, and a cluster."""

    def __init__(self, store: Store, client: JobsClient, cluster: str) -> None:
        self._store = store
        self._client = client
        self._cluster = cluster
        self._renewed_at = time.monotonic()
        self._id = self._register()

    def leave(self) -> None:
        """Let other dispatchers adopt the jobs at once."""
        self._store.leave(self._id)

    def tick(self) -> None:
        """Look at the cluster and at every job once, and start what fits."""
        self._stay_registered()
        try:
            capacity = self._client.capacity()
            owned = self._store.owned(self._id)
            for job in owned:
                self._tend(job)
            self._see_placements(owned)
            # Only now: a cluster that answers some questions and not others is unreachable all the same.
            self._store.saw(self._cluster, capacity)
            while (claimed := self._store.claim(self._id)) is not None:
                logger.info("%s: attempt %d", claimed.name, claimed.attempt)
                self._tend(claimed)
        except ClusterUnreachableError as error:
            logger.warning("%s", error)
            self._store.lost_sight(self._cluster, str(error))

    def _see_placements(self, seen: Sequence[Job]) -> None:
        """Write down which nodes the processes of running jobs have; of one that has just changed, the next time."""
        if not seen:
            return
        placements = self._client.placements()
        for job in seen:
            self._store.saw_placed(job, placements.get(job.submission_id, Placement(places={}, pending=0)))

    def _register(self) -> int:
        return self._store.register(self._cluster, host=socket.gethostname(), pid=os.getpid())

    def _stay_registered(self) -> None:
        if time.monotonic() - self._renewed_at > LEASE_S / 3:
            if not self._store.renew(self._id):
                self._id = self._register()
            self._renewed_at = time.monotonic()
        adopted = self._store.adopt(self._id)
        if adopted:
            logger.info("adopted %d running jobs", adopted)

    def _tend(self, job: Job) -> None:
        """Do what the job's next step needs; where somebody changed it meanwhile, the next look sees that."""
        try:
            submitted = self._client.find(job.submission_id)
            if job.cancelled_at is not None:
                self._cancel(job, submitted)
            elif submitted is None and job.state is State.STARTING:
                self._submit(job)
            elif submitted is None or submitted.state == "ended":
                self._conclude(job, submitted)
            elif submitted.state == "running" and job.state is State.STARTING:
                self._move(job, State.RUNNING)
            elif (gave_up_at := self._gave_up_at(job)) is not None:
                self._end(job, gave_up_at)
        except JobChangedError as error:
            logger.info("%s", error)

    def _submit(self, job: Job) -> None:
        try:
            run = Run(Path(job.folder))
            # Where this dispatcher was asleep for so long that others went on with the job, its attempt may run by
            # now, or be long over: whoever holds the run is the only one to write there, and looks before it does.
            with run.lock().acquire(timeout=0):
                self._check(job)
                run.begin_attempt(job.attempt)
        except Timeout:
            return  # a process of an earlier attempt is still ending, or another dispatcher is at it
        except (RunError, CheckpointError, OSError) as error:
            self._move(job, State.FAILED, f"its run folder cannot be used: {error}")
            return
        self._client.submit(job.submission_id, Path(job.folder), job.attempt)

    def _check(self, job: Job) -> None:
        """Raise JobChangedError unless the job is as this dispatcher saw it, and still its own."""
        try:
            current = self._store.get(job.id)
        except JobError as error:
            raise JobChangedError(f"{job.name} was removed") from error
        if current != job:
            raise JobChangedError(f"{job.name} was changed meanwhile, or is looked after by another dispatcher")

    def _cancel(self, job: Job, submitted: Submitted | None) -> None:
        assert job.cancelled_at is not None
        if submitted is None or submitted.state == "ended":
            self._conclude_cancelled(job)
            return
        self._end(job, job.cancelled_at)

    def _end(self, job: Job, asked_at: float) -> None:
        """Have an attempt end, with its checkpoints if it heeds that soon after it was asked to."""
        _ask_to_stop(job)
        if self._store.seconds_since(asked_at) > STOP_GRACE_S:
            self._client.stop(job.submission_id)

    def _gave_up_at(self, job: Job) -> float | None:
        """When a job had waited for nodes for as long as it may, if it has."""
        if job.unplaced_since is None:
            return None
        timeout_s = job.node_timeout_s
        if timeout_s is None:
            on_demand = self._store.cluster(self._cluster).on_demand
            timeout_s = NODE_TIMEOUT_S if on_demand is None else ON_DEMAND_NODE_TIMEOUT_S
        gave_up_at = job.unplaced_since + timeout_s
        return gave_up_at if self._store.seconds_since(gave_up_at) > 0 else None

    def _conclude_cancelled(self, job: Job) -> None:
        """End a cancelled job once no process holds its run, and keep a late submission from running it."""
        try:
            run = Run(Path(job.folder))
            if run.is_held():
                return
            if run.status().state == "finished":
                self._move(job, State.SUCCEEDED, "had finished when it was to be cancelled")
                return
            run.end_attempts()
        except (RunError, CheckpointError, OSError) as error:
            logger.warning("%s: its run folder cannot be used: %s", job.name, error)
        self._move(job, State.CANCELLED, "on request")

    def _conclude(self, job: Job, submitted: Submitted | None) -> None:
        """Judge an attempt that is over for the cluster, or forgotten by it, by what its run folder says."""
        try:
            run = Run(Path(job.folder))
            if run.is_held():
                return  # its process is still ending: the next attempt must not meet it
            status = run.status()
        except RunError as error:
            self._move(job, State.FAILED, str(error))
            return
        except OSError as error:
            # What the folder is on may come back, and the other jobs have folders elsewhere.
            logger.warning("%s: its run folder cannot be read: %s", job.name, error)
            return
        if status.state == "finished":
            self._move(job, State.SUCCEEDED)
        elif status.state == "failed" and status.cause != "lost":
            self._move(job, State.FAILED, status.reason)
        elif submitted is None:
            # Only a cluster that was restarted forgets what it was given.
            self._recover(job, "the cluster was restarted and does not know it", counted=False)
        elif (gave_up_at := self._gave_up_at(job)) is not None:
            waited = f"{gave_up_at - (job.unplaced_since or gave_up_at):.0f} s"
            self._recover(job, f"no node had room for it for {waited}", counted=False)
        elif status.state == "failed":
            self._recover(job, status.reason)
        elif status.state == "interrupted":
            self._recover(job, _joined("its processes were ended", submitted.message))
        else:
            self._recover(job, _joined("it could not be started", submitted.message))

    def _recover(self, job: Job, reason: str, *, counted: bool = True) -> None:
        """Have a lost attempt followed by another, unless too many were lost."""
        losses = job.losses + counted
        if losses > job.retries:
            times = f"{losses} time{'s' if losses > 1 else ''}"
            self._move(job, State.FAILED, f"lost {times}, the last time because {reason}")
            return
        wait_s = backoff_s(losses if counted else job.attempt)
        logger.info("%s: attempt %d was lost: %s", job.name, job.attempt, reason)
        self._store.move(job, State.RECOVERING, reason=reason, losses=losses, backoff_s=wait_s)

    def _move(self, job: Job, to: State, reason: str = "") -> None:
        logger.info("%s: %s%s", job.name, to, f": {reason}" if reason else "")
        self._store.move(job, to, reason=reason)


def _ask_to_stop(job: Job) -> None:
    try:
        Run(Path(job.folder)).ask_to_stop()
    except (RunError, OSError) as error:
        logger.warning("%s cannot be asked to stop: %s", job.name, error)


def _joined(what: str, why: str) -> str:
    return f"{what} ({why})" if why else what
