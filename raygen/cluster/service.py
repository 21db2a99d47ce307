"""What runs in the background of this machine for a queue: dispatchers, and for this machine's own cluster its head.

`raygen up` starts them to stay. A job that finds no dispatcher for its cluster starts one that ends, and the head with
it, when no job is left. Which dispatchers there are is known from the queue; the head is known from a file.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from raygen.capacity import Capacity
from raygen.cluster import background, node_check, session
from raygen.cluster.head import Head
from raygen.cluster.local import LocalCluster
from raygen.errors import JobError, QueueError, RunError, ServiceError
from raygen.queue.client import JobsClient
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import ACTIVE, Job
from raygen.queue.store import Dispatcher as Registered
from raygen.queue.store import Store
from raygen.runs import Run

if TYPE_CHECKING:
    from raygen.cluster.ray_jobs import RayJobs

logger = logging.getLogger("raygen.service")

POLL_EVERY_S = 0.5
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
CHECKPOINT_TIMEOUT_S = 10.0
"""Seconds that running jobs get to write checkpoints before their cluster is ended."""


class Service:
    """The background of a storage folder's queue, for one cluster."""

    def __init__(self, storage: Path, address: str | None) -> None:
        """`address` is a dashboard's; None means this machine's own cluster."""
        self.storage = storage.expanduser().absolute()
        self.address = address
        self.cluster = session.cluster_name(self.address)
        self.folder = self.storage / ".service"
        self.head = Head(self.folder)

    @property
    def log(self) -> Path:
        """What background dispatchers print."""
        return self.folder / "dispatcher.log"

    def capacity(self, store: Store) -> Capacity:
        """What the cluster has in all; raises ClusterUnreachableError where it must be asked and is silent."""
        known = store.cluster(self.cluster)
        if known.capacity is not None and known.has_dispatcher and known.unreachable_since is None:
            return known.capacity
        if self.address is None:
            return self._local_capacity()
        return replace(self._client().capacity(), on_demand=known.on_demand)

    def check_nodes(self) -> None:
        """Raise ResourceError where a node of another cluster cannot run jobs, as far as that is not known already.

        Raises ClusterUnreachableError where the cluster is silent.
        """
        if self.address is not None:
            node_check.check(self._remote_jobs(), self.folder)

    def up(self, store: Store, capacity: Capacity) -> None:
        """Start head and dispatcher to stay; raises ServiceError where they do not start, or run otherwise."""
        known = store.cluster(self.cluster).capacity
        if self.head.address and known and (known.gpus, known.cpus) != (capacity.gpus, capacity.cpus):
            raise ServiceError(
                f"Ray runs here with {known.gpus} GPUs and {known.cpus} CPU cores; `raygen down` ends it first"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stay.write_text(json.dumps({"gpus": capacity.gpus, "cpus": capacity.cpus}) + "\n", encoding="utf-8")
        self.ensure(store)
        self._wait_for_cluster(store)

    def ensure(self, store: Store) -> None:
        """Start a dispatcher in the background unless one works for the cluster already.

        Raises ServiceError where it does not start.
        """
        if any(self.works(each) for each in store.dispatchers()):
            return
        with self._lock():
            if any(self.works(each) for each in store.dispatchers()):
                return
            self._start_dispatcher(store)

    def works(self, dispatcher: Registered) -> bool:
        """Whether a dispatcher is alive and this cluster's; on this machine that is known at once."""
        if dispatcher.cluster != self.cluster:
            return False
        return _runs(dispatcher) if dispatcher.host == socket.gethostname() else dispatcher.is_alive

    def ends_when_idle(self) -> bool:
        """Whether background dispatchers end when no job is left."""
        return not self._stay.exists()

    def wait_until_ended(self, store: Store) -> None:
        """Wait a while for a background that ends when no job is left, where none is."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.ends_when_idle() and store.is_idle(self.cluster) and time.monotonic() < deadline:
            if self.head.address is None and not any(self.works(each) for each in store.dispatchers()):
                return
            time.sleep(0.1)

    def dispatch(self, store: Store, *, background: bool) -> None:
        """Dispatch in this process until SIGTERM or SIGINT; in the `background` also until no job is left."""
        ending = _Ending()
        dispatcher = Dispatcher(store, self._client(), self.cluster)
        while not ending.asked:
            try:
                dispatcher.tick()
                if background and self._ended_as_idle(store, dispatcher):
                    return
            except QueueError as error:
                logger.warning("%s", error)  # a database may be away for a while
            time.sleep(POLL_EVERY_S)
        dispatcher.leave()

    def down(self, store: Store) -> tuple[int, int]:
        """End what runs in the background on this machine; returns how many dispatchers and jobs that were.

        The jobs go on from their checkpoints when there is a head again.
        """
        with self._lock():
            self._stay.unlink(missing_ok=True)
            own = [each for each in store.dispatchers() if each.host == socket.gethostname() and _runs(each)]
            _end_processes([each.pid for each in own])
            for each in own:
                store.leave(each.id)
            jobs = [job for job in store.list(states=ACTIVE) if job.cluster == session.cluster_name(None)]
            if self.head.address:
                _write_checkpoints(jobs)
            self.head.stop()
        return len(own), len(jobs)

    @property
    def _stay(self) -> Path:
        """The file that says what the head has, while it is to stay without jobs."""
        return self.folder / "up.json"

    def _client(self) -> JobsClient:
        if self.address is None:
            return LocalCluster(self.head, self._local_capacity())
        return self._remote_jobs()

    def _remote_jobs(self) -> RayJobs:
        assert self.address is not None
        os.environ.update(session.environment())
        # Ray reads the environment when it is imported.
        from raygen.cluster.ray_jobs import RayJobs

        return RayJobs(self.address, remote=True)

    def _local_capacity(self) -> Capacity:
        capacity = session.local_capacity()
        if not self._stay.exists():
            return capacity
        return Capacity.of_machine(**json.loads(self._stay.read_text(encoding="utf-8")), where=capacity.where)

    def _start_dispatcher(self, store: Store) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", __name__, str(self.storage), *([self.address] if self.address else [])]
        process = background.start(command, log=self.log, folder=self.folder, environment=session.environment())
        deadline = time.monotonic() + START_TIMEOUT_S
        while not any(self.works(each) and each.pid == process.pid for each in store.dispatchers()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"the dispatcher did not start; see {self.log}")
            time.sleep(0.05)

    def _wait_for_cluster(self, store: Store) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (cluster := store.cluster(self.cluster)).capacity is None or self.head.address is None:
            if cluster.unreachable_since is not None or time.monotonic() > deadline:
                raise ServiceError(f"Ray does not start on this machine: {cluster.problem} (see {self.head.log})")
            time.sleep(0.1)

    def _ended_as_idle(self, store: Store, dispatcher: Dispatcher) -> bool:
        """End the head where no job is left; a job that is queued meanwhile waits for the lock, and finds nobody."""
        if not self.ends_when_idle() or not store.is_idle(self.cluster):
            return False
        try:
            with self._lock(timeout_s=0):
                if not self.ends_when_idle() or not store.is_idle(self.cluster):
                    return False
                self.head.stop()
                dispatcher.leave()
                return True
        except ServiceError:
            return False  # somebody is about to queue a job, or to end us

    @contextmanager
    def _lock(self, timeout_s: float = START_TIMEOUT_S) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "lock").acquire(timeout=timeout_s):
                yield
        except Timeout as error:
            raise ServiceError(f"another process is starting or ending Ray in {self.folder}; try again") from error


class _Ending:
    """Remembers that this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _runs(dispatcher: Registered) -> bool:
    """Whether a dispatcher of this machine still runs, and its number was not given to another process."""
    try:
        process = psutil.Process(dispatcher.pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= dispatcher.started_at + 1)
    except psutil.NoSuchProcess:
        return False


def _end_processes(pids: list[int]) -> None:
    processes = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            process.terminate()
            processes.append(process)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)


def _write_checkpoints(jobs: list[Job]) -> None:
    """Have running jobs write checkpoints, and wait a while for them."""
    runs = []
    for job in jobs:
        try:
            run = Run(Path(job.folder))
            run.ask_to_stop()
            runs.append(run)
        except (RunError, JobError):
            continue
    deadline = time.monotonic() + CHECKPOINT_TIMEOUT_S
    while any(run.is_held() for run in runs) and time.monotonic() < deadline:
        time.sleep(0.1)


def main(storage: str, address: str | None = None) -> None:
    """Dispatch in the background: `python -m raygen.cluster.service STORAGE [ADDRESS]`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    service = Service(Path(storage), address)
    service.dispatch(Store.open(service.storage), background=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
