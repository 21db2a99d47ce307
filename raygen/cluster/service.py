"""What runs in the background of this machine for a queue: dispatchers, and for this machine's own cluster its head.

`raygen up` starts them to stay. A job that finds no dispatcher for its cluster starts one that ends, and the head with
it, when no job is left. Which dispatchers there are is known from the queue; the head is known from a file.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from raygen import machine
from raygen.capacity import Capacity
from raygen.cluster import background, dispatchers, node_check, service_log, session
from raygen.cluster.head import Head
from raygen.cluster.local import LocalCluster
from raygen.cluster.marks import Marks
from raygen.cluster.standing import Standing
from raygen.errors import QueueError, QueueUpgradedError, RaygenError, ServiceError
from raygen.queue.client import JobsClient
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import ACTIVE, EVERYBODY, Job, RegisteredDispatcher
from raygen.queue.policy import Cluster
from raygen.queue.storages import Storages
from raygen.queue.store import Store
from raygen.record.liveness import Liveness
from raygen.record.run import Run
from raygen.storage import Storage

if TYPE_CHECKING:
    from raygen.cluster.ray_jobs import RayJobs

logger = logging.getLogger("raygen.service")

POLL_EVERY_S = 0.5
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
CHECKPOINT_TIMEOUT_S = 10.0
"""Seconds that running jobs get to write checkpoints before their cluster is ended."""


@dataclass(frozen=True)
class Ended:
    """What was ended: how many dispatchers and jobs, and whether there was a head."""

    dispatchers: int
    jobs: int
    head: bool


class Service:
    """The background of a storage's queue on this machine, for one cluster."""

    def __init__(self, storage: Storage, address: str | None) -> None:
        """`address` is a dashboard's; None means this machine's own cluster."""
        self.storage = storage
        self.address = address
        self.cluster = session.cluster_name(self.address)
        self.folder = machine.state_folder(storage)
        self.head = Head(self.folder)
        self.standing = Standing(self.folder)
        self._marks = Marks(self.folder)

    @property
    def log(self) -> Path:
        """What background dispatchers of this cluster print."""
        return self.folder / ("-".join(["dispatcher", *re.findall("[A-Za-z0-9.]+", self.address or "")]) + ".log")

    def capacity(self, store: Store) -> Capacity:
        """What the cluster has in all; raises ClusterUnreachableError where it must be asked and is silent."""
        known = store.cluster(self.cluster)
        if known.capacity is not None and known.has_dispatcher and known.unreachable_since is None:
            return known.capacity
        if self.address is None:
            return self.standing.capacity()
        return replace(self._client().capacity(), on_demand=known.on_demand)

    def check_storage(self) -> None:
        """Raise StorageError if the storage cannot hold runs; one that could once is not tried again."""
        machine.make_private(self.folder)
        passed = self.folder / "storage-passed"
        if not passed.exists():
            self.storage.probe()
            passed.touch()

    def check_nodes(self) -> None:
        """Raise ResourceError where a node of another cluster cannot run jobs, as far as that is not known already.

        Raises ClusterUnreachableError where the cluster is silent.
        """
        if self.address is not None:
            machine.make_private(self.folder)
            node_check.check(self._remote_jobs(), self.storage, self.folder)

    def up(self, store: Store, capacity: Capacity, *, all_users: bool = False) -> None:
        """Start head and dispatcher to stay, for this user's jobs or everybody's.

        Raises ServiceError where they do not start, or run otherwise.
        """
        with self._lock():  # a dispatcher that is about to end with its head is waited for
            if others := [each for each in store.dispatchers() if self.works(each) and not self._marks.has(each)]:
                raise ServiceError(_told_of(others[0]))
            runs = self.head.capacity
            if runs is not None and not _same(runs, capacity):
                raise ServiceError(
                    f"Ray runs here with {runs.gpus} GPUs and {runs.cpus} CPU cores; `raygen down` ends it first"
                )
            before = store.cluster(self.cluster)
            self.standing.begin(capacity, all_users=all_users)
        self.ensure(store)
        self._wait_for_cluster(store, capacity, before)

    def ensure(self, store: Store) -> None:
        """Start a dispatcher in the background unless one works for the cluster already.

        What it is to do is in the queue before: one that ends when idle leaves first, and then looks once more whether
        it has anything to do. So one that is found here sees it. Raises ServiceError where none starts.
        """
        if any(self.works(each) for each in store.dispatchers()):
            return
        with self._lock():
            if any(self.works(each) for each in store.dispatchers()):
                return
            self._start_dispatcher(store)

    @property
    def user(self) -> str:
        """Whose jobs the dispatchers in the background start: those of whoever runs this, or EVERYBODY's."""
        return EVERYBODY if self.standing.is_for_all() else machine.user()

    def works(self, dispatcher: RegisteredDispatcher) -> bool:
        """Whether a dispatcher is alive, this cluster's, and starts the jobs that this background is for."""
        return dispatcher.cluster == self.cluster and dispatcher.serves(self.user) and self.runs(dispatcher)

    def runs(self, dispatcher: RegisteredDispatcher) -> bool:
        """Whether a dispatcher is alive, whosever it is; on this machine that is known at once."""
        return dispatchers.runs(dispatcher)

    def ends_when_idle(self) -> bool:
        """Whether background dispatchers end when no job is left."""
        return not self.standing.holds()

    def wait_until_ended(self, store: Store) -> None:
        """Wait a while for a background that ends when no job is left, where none is."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._is_idle(store) and time.monotonic() < deadline:
            if self.head.address is None and not any(self.works(each) for each in store.dispatchers()):
                return
            time.sleep(0.1)

    def dispatch(self, store: Store, *, background: bool, all_users: bool = False) -> None:
        """Dispatch in this process until SIGTERM or SIGINT; in the `background` also until no job is left.

        The jobs are those of whoever runs this, or with `all_users` everybody's.
        """
        if background:
            service_log.write(self.log)
        else:
            service_log.tell()
        ending = _Ending()
        machine.make_private(self.folder)
        with self._marks.marked():
            begin = partial(
                Dispatcher, store, self._client(), self.cluster, user=EVERYBODY if all_users else self.user
            )
            dispatcher = begin()
            while not ending.asked:
                try:
                    dispatcher.tick()
                    if background and self._is_idle(store):
                        going_on = self._unless_idle(store, dispatcher, begin)
                        if going_on is None:
                            return
                        dispatcher = going_on
                except QueueUpgradedError:
                    raise  # its jobs are for a dispatcher of the newer Raygen
                except QueueError as error:
                    logger.warning("%s", error)  # a database may be away for a while
                except Exception:
                    # Nobody foresaw it; the next look may do without it, and the next dispatcher may not.
                    logger.exception("an error in Raygen itself")
                time.sleep(POLL_EVERY_S)
            dispatcher.leave()

    def down(self, store: Store) -> Ended:
        """End what runs for the storage on this machine.

        The jobs go on from their checkpoints when there is a head again. If the queue has dispatchers of other
        storages on this machine, those go on, and so do their heads and jobs.
        """
        with self._lock():
            user = self.user
            self.standing.end()
            running = [each for each in store.dispatchers() if dispatchers.runs_here(each)]
            own = [each for each in running if self._marks.has(each)]
            others = {each.id for each in running} - {each.id for each in own}
            processes_of_own = dispatchers.ask_to_end(own)
            for each in own:
                store.leave(each.id)  # so that nobody counts on it: who queues a job now waits for the lock
            dispatchers.end(processes_of_own)
            for each in own:
                self._marks.remove(each)
            here = session.cluster_name(None)
            active = store.list(states=ACTIVE)
            own_jobs = [job for job in active if user in (EVERYBODY, job.user)]
            jobs = [job for job in own_jobs if job.cluster == here and job.owner not in others]
            has_head = self.head.address is not None
            try:
                if has_head:
                    _write_checkpoints(jobs)
            finally:
                self.head.stop()
        return Ended(dispatchers=len(own), jobs=len(jobs), head=has_head)

    def _client(self) -> JobsClient:
        if self.address is None:
            return LocalCluster(self.head, self.standing)
        return self._remote_jobs()

    def _remote_jobs(self) -> RayJobs:
        assert self.address is not None
        os.environ.update(session.environment())
        # Ray reads the environment when it is imported.
        from raygen.cluster.ray_jobs import RayJobs

        return RayJobs(self.address, remote=True)

    def _start_dispatcher(self, store: Store) -> None:
        command = [sys.executable, "-m", __name__, self.storage.url, *([self.address] if self.address else [])]
        log_began = background.size(self.log)
        process = background.start(command, log=self.log, folder=self.folder, environment=session.environment())
        deadline = time.monotonic() + START_TIMEOUT_S
        while not any(self.works(each) and each.pid == process.pid for each in store.dispatchers()):
            if process.poll() is not None or time.monotonic() > deadline:
                reason = background.last_line(self.log, log_began)
                if process.returncode == 0 and not reason:
                    return  # it found nothing to do any more
                raise ServiceError(f"the dispatcher did not start: {reason or 'it said nothing'} (see {self.log})")
            time.sleep(0.05)

    def _wait_for_cluster(self, store: Store, capacity: Capacity, before: Cluster) -> None:
        """Wait until the dispatcher has seen a head that has what was asked for, or could not start it since."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            cluster = store.cluster(self.cluster)
            is_silent = cluster.unreachable_since is not None
            if self.head.address and cluster.capacity and not is_silent and _same(cluster.capacity, capacity):
                return
            is_news = (cluster.unreachable_since, cluster.problem) != (before.unreachable_since, before.problem)
            if (is_silent and is_news) or time.monotonic() > deadline:
                raise ServiceError(cluster.problem or f"Ray did not start on this machine (see {self.head.log})")
            time.sleep(0.1)

    def _is_idle(self, store: Store) -> bool:
        return self.ends_when_idle() and store.is_idle(self.cluster, user=self.user)

    def _unless_idle(self, store: Store, dispatcher: Dispatcher, begin: Callable[[], Dispatcher]) -> Dispatcher | None:
        """Leave and end the head if no job is left; the dispatcher that goes on if there is one.

        It leaves first, and looks once more after: a job that was queued before is seen then, and whoever queues one
        later finds nobody, and waits for the lock to start another.
        """
        with suppress(ServiceError), self._lock(timeout_s=0):  # held by one who starts a dispatcher, or ends them
            dispatcher.leave()
            if not self._is_idle(store):
                return begin()
            try:
                self.head.stop()
            except ServiceError as error:
                logger.warning("%s", error)
            return None
        return dispatcher

    @contextmanager
    def _lock(self, timeout_s: float = START_TIMEOUT_S) -> Iterator[None]:
        machine.make_private(self.folder)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise ServiceError(f"another command starts or ends a dispatcher in {self.folder}; try again") from error
        except OSError as error:
            raise ServiceError(f"cannot write in {self.folder}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()


class _Ending:
    """Remembers that this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _told_of(other: RegisteredDispatcher) -> str:
    """Why a dispatcher of this machine that works already keeps another from being started, and what to do."""
    owner = dispatchers.owner(other)
    if owner in (None, machine.user()):
        return "this machine already runs the queue's jobs for another storage; type `raygen down` for that one first"
    return f"{owner} runs everybody's jobs on this machine, yours too; they can end that with `raygen down`"


def _same(one: Capacity, other: Capacity) -> bool:
    return (one.gpus, one.cpus) == (other.gpus, other.cpus)


def _write_checkpoints(jobs: list[Job]) -> None:
    """Have running jobs write checkpoints, and wait a while for them; a storage that is away holds up no other's."""
    storages, liveness = Storages(), Liveness()
    deadline = time.monotonic() + CHECKPOINT_TIMEOUT_S
    waits = []
    for job in jobs:
        try:
            storages.ask(job.storage, ("stop", job.id), partial(_ask_to_stop, job))
            waits.append(job)
        except RaygenError as error:
            logger.warning("%s cannot be asked to stop: %s", job.name, error)
    while waits and time.monotonic() < deadline:
        with suppress(RaygenError):
            if not storages.ask(waits[0].storage, ("alive", waits[0].id), partial(_is_alive, waits[0], liveness)):
                waits.pop(0)
                continue
        time.sleep(0.1)


def _ask_to_stop(job: Job, storage: Storage) -> None:
    Run(storage, job.name).ask_to_stop(job.attempt)


def _is_alive(job: Job, liveness: Liveness, storage: Storage) -> bool:
    return liveness.is_alive(storage, job.name, job.attempt)


def main(storage: str, address: str | None = None) -> None:
    """Dispatch in the background: `python -m raygen.cluster.service STORAGE [ADDRESS]`."""
    place = Storage(storage)
    try:
        Service(place, address).dispatch(Store.open(place), background=True)
    except QueueUpgradedError as error:
        logger.warning("%s", error)  # the next command starts another


if __name__ == "__main__":
    main(*sys.argv[1:])
