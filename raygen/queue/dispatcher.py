"""The dispatcher: starts jobs when their devices are free, and sees every one to its end.

All it knows is in the store, in the records of runs and on the cluster, so it may be killed at any moment: the next
one reads the same there and goes on. What it is about to do on the cluster it writes down before; submissions are
idempotent. While the cluster is silent nothing is concluded about any job, while a storage is away nothing about the
jobs in it. What is wrong with one job is written down as its reason, and keeps no other waiting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from raygen import files
from raygen.errors import (
    ClusterUnreachableError,
    JobChangedError,
    JobError,
    JobRefusedError,
    QueueError,
    RaygenError,
    RunError,
    StorageError,
)
from raygen.queue.claims import place
from raygen.queue.client import JobsClient, Submitted
from raygen.queue.job import EVERYBODY, NODE_TIMEOUT_S, ON_DEMAND_NODE_TIMEOUT_S, Job, JobState, Placement
from raygen.queue.registration import Registration
from raygen.queue.steps import Steps
from raygen.queue.storages import Storages
from raygen.queue.store import Store
from raygen.queue.verdict import Facts, Verdict, is_for_want_of_room, judge, time_limit, unreadable
from raygen.record import liveness, ranking
from raygen.record.documents import ON_REQUEST, Status
from raygen.record.liveness import Liveness
from raygen.record.run import Run
from raygen.storage import Storage

STOP_GRACE_S = 10.0
"""Seconds that a job has to show that it has heard that it is to end, before its processes are ended."""

BUCKET_STOP_GRACE_S = 20.0
"""The same for a run in a bucket, into which processes look now and then."""

LONGEST_STOP_S = 60.0
"""Seconds from when it is asked that a job has to write its checkpoints, if it has heard."""

FORGET_AFTER_S = 300.0
"""Seconds for which the cluster is left to tell people of an attempt that was judged."""

logger = logging.getLogger("raygen.dispatcher")


class Dispatcher:
    """Looks after the jobs of one cluster; several may share a queue, and a cluster."""

    def __init__(self, store: Store, client: JobsClient, cluster: str, *, user: str = EVERYBODY) -> None:
        """It starts the jobs of `user`."""
        self._store = store
        self._client = client
        self._cluster = cluster
        self._liveness = Liveness()
        self._storages = Storages()
        self._asked_at: dict[str, float] = {}  # when which submissions were first to stop, on the monotonic clock
        self._heard: set[str] = set()  # those of them whose record says so
        self._judged_at: dict[str, float] = {}  # when which submissions were, on the monotonic clock
        self._recalls_at = 0.0  # when it looks for those that others have judged
        self._was_silent = False  # the cluster, at the last look
        self._steps = Steps()
        self._registration = Registration(store, cluster, user)
        self._told: tuple[int, Mapping[str, str]] = (self._registration.id, {})

    def leave(self) -> None:
        """Let other dispatchers adopt the jobs at once."""
        self._registration.leave()

    def tick(self) -> None:
        """Look at the cluster and at every job once, and start what fits."""
        with self._registration.kept():
            adopted = self._store.adopt(self._registration.id)
            if adopted:
                logger.info("adopted %d running jobs", adopted)
            try:
                self._look()
            except ClusterUnreachableError as error:
                logger.warning("%s", error)
                self._store.lost_sight(self._cluster, str(error))
                self._was_silent = True
            else:
                if self._was_silent:
                    logger.info("%s answers again", place(self._cluster))
                self._was_silent = False

    def _look(self) -> None:
        capacity = self._client.capacity()
        if step_s := self._steps.since_last_time(self._store.seconds_since(0.0)):
            logger.warning("the queue's clock was set by %+.0f s", step_s)
            self._store.saw_step(self._registration.id, step_s)
        owned = self._store.owned(self._registration.id)
        # Asked for later, it holds all that was submitted before.
        submissions = self._client.submissions()
        self._storages.check(self._store.runs_by_storage(self._registration.id))
        for job in owned:
            self._look_after(job, submissions.get(job.submission_id))
        self._see_placements(owned)
        # Only now: a cluster that answers some questions and not others is unreachable all the same.
        self._store.saw(self._cluster, capacity)
        self._tell_of_storages()
        while (claimed := self._store.claim(self._registration.id)) is not None:
            logger.info("%s: attempt %d", claimed.name, claimed.attempt)
            self._look_after(claimed, None)
        self._forget_stops(owned)
        self._forget_judged(submissions)

    def _tell_of_storages(self) -> None:
        """Write down in which storages no job can start, if that has changed."""
        if (told := (self._registration.id, dict(self._storages.closed))) != self._told:
            for problem in told[1].values():
                logger.warning("%s", problem)
            self._store.saw_away(*told)
            self._told = told

    def _see_placements(self, seen: Sequence[Job]) -> None:
        """Write down which nodes the processes of running jobs have; of one that has just changed, the next time."""
        if not seen:
            return
        placements = self._client.placements()
        for job in seen:
            self._store.saw_placed(job, placements.get(job.submission_id, Placement(places={}, pending=0)))

    def _look_after(self, job: Job, submitted: Submitted | None) -> None:
        """Do what the job's next step needs, or say why that cannot be done now.

        Raises ClusterUnreachableError and QueueError, as these concern all jobs.
        """
        try:
            self._tend(job, submitted)
        except JobChangedError as error:
            logger.info("%s", error)  # the next look sees what others have done
        except (ClusterUnreachableError, QueueError):
            raise
        except RaygenError as error:
            self._note(job, str(error))
        except Exception as error:
            reason = files.storable(f"an error in Raygen itself ({type(error).__name__}: {error})")
            if job.reason != reason:
                logger.exception("%s", job.name)
            self._note(job, reason)

    def _tend(self, job: Job, submitted: Submitted | None) -> None:
        is_over = submitted is None or submitted.state == "ended"
        is_new = job.state is JobState.STARTING and not job.is_over
        if submitted is None and is_new and job.cancelled_at is None:
            self._submit(job)
        elif (why := self._why_to_stop(job)) is not None:
            # First of all, and also if its processes are gone for the cluster: one that is cut off from it hears.
            self._ask_to_stop(job, why)
            if is_over:
                self._conclude(job, submitted)
            elif self._has_had_its_time(job):
                self._client.stop(job.submission_id)
        elif is_over:
            self._conclude(job, submitted)
        elif submitted is not None and submitted.state == "unknown":
            self._note(job, submitted.message)
        elif submitted is not None and submitted.state == "running" and job.state is JobState.STARTING:
            logger.info("%s: %s", job.name, JobState.RUNNING)
            self._store.move(job, JobState.RUNNING)
        elif job.state is JobState.RUNNING:
            self._note(job, "")

    def _submit(self, job: Job) -> None:
        # If this dispatcher was asleep for so long that others went on with the job, its attempt may run by now, or be
        # long over: an attempt begins but once, and not at all after a later one.
        self._check(job)
        if job.storage in self._storages.closed:
            self._store.saw_over(job)
            raise StorageError(self._storages.closed[job.storage])
        try:
            self._client.submit(job)
        except JobRefusedError as error:
            if not error.for_good:
                raise
            self._conclude(job, Submitted("ended", str(error)))

    def _check(self, job: Job) -> None:
        """Raise JobChangedError unless the job is as this dispatcher saw it, and still its own."""
        if not self._registration.holds:
            raise JobChangedError(f"{job.name} may be another's by now: the lease of this dispatcher has run out")
        try:
            current = self._store.get(job.id)
        except JobError as error:
            raise JobChangedError(f"{job.name} was removed") from error
        if current != job:
            raise JobChangedError(f"{job.name} was changed meanwhile, or is looked after by another dispatcher")

    def _why_to_stop(self, job: Job) -> str | None:
        """Why an attempt is to end, as its record says it; None if it may go on."""
        if job.cancelled_at is not None:
            return ON_REQUEST
        if self._unplaced_s(job) is not None:
            return "as no node had room for it"
        limit_s = job.time_limit_s
        if limit_s is not None and job.state is JobState.RUNNING and self._ran_s(job) >= limit_s:
            return f"by {time_limit(job)}"
        return None

    def _ask_to_stop(self, job: Job, why: str) -> None:
        """Write down that an attempt is to end; if that cannot be done now, say why, and try again next time."""
        submission = job.submission_id
        self._asked_at.setdefault(submission, time.monotonic())
        if submission in self._heard:
            return
        try:
            self._storages.ask(
                job.storage, (submission, "stop"), lambda storage: Run(storage, job.name).ask_to_stop(job.attempt, why)
            )
            self._heard.add(submission)
        except (StorageError, RunError) as error:
            self._note(job, str(error))

    def _has_had_its_time(self, job: Job) -> bool:
        """Whether a job that was asked to end is not waited for any longer."""
        asked_s = time.monotonic() - self._asked_at[job.submission_id]
        if not _grace_s(job) < asked_s <= LONGEST_STOP_S:
            return asked_s > LONGEST_STOP_S
        try:
            is_stopping = self._storages.ask(
                job.storage,
                (job.submission_id, "stopping"),
                lambda storage: Run(storage, job.name).is_stopping(job.attempt),
            )
        except (StorageError, RunError):
            return True
        return not is_stopping

    def _forget_stops(self, owned: Sequence[Job]) -> None:
        current = {job.submission_id for job in owned}
        self._heard &= current
        self._asked_at = {each: at for each, at in self._asked_at.items() if each in current}

    def _forget_judged(self, submissions: Mapping[str, Submitted]) -> None:
        """Have the cluster forget what nobody needs any more: what it lists at each look would grow for ever."""
        now = time.monotonic()
        if now >= self._recalls_at:
            # Those that another dispatcher judged, or an earlier one of this machine.
            ended = [name for name, each in submissions.items() if each.state == "ended"]
            self._judged_at = {**dict.fromkeys(self._store.judged(ended), now), **self._judged_at}
            self._recalls_at = now + FORGET_AFTER_S
        for submission in [each for each, at in self._judged_at.items() if now - at > FORGET_AFTER_S]:
            if submission in submissions:
                with suppress(JobRefusedError):
                    self._client.forget(submission)
            del self._judged_at[submission]

    def _ran_s(self, job: Job) -> float:
        """How long the job has run since it was queued."""
        return job.ran_s + job.runs_s(self._store.seconds_since(0.0))

    def _unplaced_s(self, job: Job) -> float | None:
        """How long no node had room for the job, if that is as long as it may wait."""
        if job.unplaced_since is None:
            return None
        timeout_s = job.node_timeout_s
        if timeout_s is None:
            on_demand = self._store.cluster(self._cluster).on_demand
            timeout_s = NODE_TIMEOUT_S if on_demand is None else ON_DEMAND_NODE_TIMEOUT_S
        return timeout_s if self._store.seconds_since(job.unplaced_since) > timeout_s else None

    def _conclude(self, job: Job, submitted: Submitted | None) -> None:
        """Judge an attempt that is over for the cluster, or forgotten by it, by what its record says.

        Its process may still be alive, and the next attempt must not meet it: then it waits for that. While its
        storage is away it waits too, and its devices are for others.
        """
        try:
            found = self._storages.ask(job.storage, (job.submission_id, "end"), partial(self._ended, job))
        except RunError as error:
            self._apply(job, unreadable(job, str(error)))
            return
        except StorageError:
            self._store.saw_over(job)
            raise
        if found.holder:
            self._note(job, f"over for the cluster, but {found.holder}")
            return
        if is_for_want_of_room(found.status):
            self._storages.ran_full(job.storage, found.room_bytes)
        began_at = self._store.attempts(job)[-1].started_at
        facts = Facts(
            status=found.status,
            submitted=submitted,
            ran_s=self._ran_s(job),
            unplaced_s=self._unplaced_s(job),
            storage_was_away=self._storages.was_away_within(job.storage, self._store.seconds_since(began_at)),
        )
        self._apply(job, judge(job, facts), found.best_value)

    def _ended(self, job: Job, storage: Storage) -> _Ended:
        """What the record says of an attempt that is over, or can never begin; or which process holds it."""
        run = Run(storage, job.name)
        if not run.seal(job.attempt) and self._liveness.is_alive(storage, job.name, job.attempt):
            return _Ended(Status(state="running"), holder=_holder(run, job.attempt))
        view = run.look()
        status = view.status if view.attempt == job.attempt else Status(state="waiting")
        return _Ended(status=status, best_value=ranking.best_value(view), room_bytes=storage.room_bytes())

    def _apply(self, job: Job, verdict: Verdict, best_value: float | None = None) -> None:
        told = f"{verdict.to}: {verdict.reason}" if verdict.reason else verdict.to
        logger.info("%s: attempt %d: %s", job.name, job.attempt, told)
        self._store.move(
            job,
            verdict.to,
            reason=verdict.reason,
            losses=verdict.losses,
            restarts=verdict.restarts,
            backoff_s=verdict.wait_s,
            best_value=best_value,
        )
        self._judged_at[job.submission_id] = time.monotonic()

    def _note(self, job: Job, reason: str) -> None:
        """Say what a job waits for, or that it waits for nothing any more; told once, it stays so."""
        if job.reason == files.storable(reason):  # as it is kept
            return
        logger.info("%s: %s", job.name, reason or "goes on")
        with suppress(JobChangedError):
            self._store.note(job, reason)


@dataclass(frozen=True)
class _Ended:
    """What the record says of an attempt; `holder` is what still runs it, and then nothing else is known."""

    status: Status
    best_value: float | None = None
    room_bytes: int | None = None
    holder: str = ""


def _grace_s(job: Job) -> float:
    return STOP_GRACE_S if Storage(job.storage).folder is not None else BUCKET_STOP_GRACE_S


def _holder(run: Run, attempt: int) -> str:
    """Why an attempt's process counts as alive, for people."""
    process = run.process(attempt)
    if run.storage.folder is not None:
        return f"{process} still holds the run"
    return f"{process} counts as alive until it has given no sign of life for {liveness.TIMEOUT_S:g} s"
