"""Dispatchers that kill themselves, each at a point where none before it has: `lives.py STORAGE CLUSTER JOURNAL`.

Every byte `g` on standard input starts one; `m` answers when its Dispatcher was made, which waits for a `t` before it
ticks, and `k`, `e` or `x` when it was killed, has ended, or has crashed. They are forked from a process that has
imported everything and has no threads, so that the next life costs milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fake_cluster import FakeCluster
from making import CLUSTER
from sqlalchemy import event

from raygen.capacity import Capacity
from raygen.queue import dispatcher, job, store
from raygen.queue.client import Submitted
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import Job, Placement
from raygen.queue.store import Store
from raygen.storage import Storage

LEASE_S = 0.1
"""Long enough for a dispatcher that is alive, short enough to wait for after every kill."""

LONGEST_LIFE_S = 20
"""A dispatcher that has neither come to a new fault point nor ended its jobs by then never will."""

START_S, RUN_S = 0.2, 0.6


class Faults:
    """Kills this process at a fault point, unless the journal says that another ended there."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._known = set(journal.read_text().splitlines()) if journal.exists() else set()

    def at(self, point: str) -> None:
        """Be killed here, if this is new."""
        if point in self._known:
            return
        with self._journal.open("a") as journal:
            journal.write(f"{point}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def around_commits(self, queue: Store) -> None:
        """Have a fault point before and after every commit, called after what it writes."""
        threads = threading.local()  # a lease is renewed beside what else is written
        dialect: Any = queue.engine.dialect
        commit = dialect.do_commit

        def written() -> list[str]:
            threads.writes = getattr(threads, "writes", [])
            return threads.writes

        def remember(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
            verb, _, rest = statement.partition(" ")
            if verb in ("INSERT", "UPDATE", "DELETE"):
                table = rest.split()[0 if verb == "UPDATE" else 1]
                written().append(f"{verb} {table}")
                if table == "events":
                    values = context.compiled_parameters[0]
                    written()[:] = [f"job {values['job']}: {values['from_state']} → {values['to_state']}"]

        def kill_around(connection: Any) -> None:
            point = ", ".join(written()) or "nothing"
            written().clear()
            self.at(f"before writing {point}")
            commit(connection)
            self.at(f"after writing {point}")

        event.listen(queue.engine, "after_cursor_execute", remember)
        dialect.do_commit = kill_around


class FaultyClient:
    """A client with a fault point before and after every call."""

    def __init__(self, cluster: FakeCluster, faults: Faults) -> None:
        self._cluster, self._faults = cluster, faults

    def capacity(self) -> Capacity:
        """Ask for the cluster's size."""
        self._faults.at("before capacity")
        capacity = self._cluster.capacity()
        self._faults.at("after capacity")
        return capacity

    def placements(self) -> Mapping[str, Placement]:
        """Ask where processes are."""
        self._faults.at("before placements")
        placements = self._cluster.placements()
        self._faults.at("after placements")
        return placements

    def submit(self, job: Job) -> None:
        """Submit."""
        self._faults.at(f"before submit {job.submission_id}")
        self._cluster.submit(job)
        self._faults.at(f"after submit {job.submission_id}")

    def submissions(self) -> Mapping[str, Submitted]:
        """Ask for all submissions."""
        self._faults.at("before submissions")
        submissions = self._cluster.submissions()
        self._faults.at("after submissions")
        return submissions

    def stop(self, submission_id: str) -> None:
        """End a submission."""
        self._faults.at("before stop")
        self._cluster.stop(submission_id)
        self._faults.at("after stop")

    def forget(self, submission_id: str) -> None:
        """Have a submission be forgotten."""
        self._faults.at("before forget")
        self._cluster.forget(submission_id)
        self._faults.at("after forget")


def live(storage: Path, cluster: Path, journal: Path) -> None:
    """Dispatch until no job is left, or until killed."""
    signal.alarm(LONGEST_LIFE_S)
    queue = Store.open(Storage(storage))
    faults = Faults(journal)
    faults.around_commits(queue)
    client = FaultyClient(FakeCluster(cluster, start_s=START_S, run_s=RUN_S), faults)
    one = Dispatcher(queue, client, CLUSTER)
    os.write(1, b"m")
    os.read(0, 1)
    while not queue.is_idle(CLUSTER):
        one.tick()
        time.sleep(0.002)
    one.leave()


def main() -> None:
    """Start dispatchers for as long as somebody asks for them."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    store.LEASE_S = LEASE_S
    dispatcher.STOP_GRACE_S, dispatcher.FORGET_AFTER_S, job.FIRST_BACKOFF_S = 0.1, 0.0, 0.05
    while os.read(0, 1) == b"g":
        child = os.fork()
        if child == 0:
            try:
                live(*paths)
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        os.write(1, b"k" if killed else b"e" if status == 0 else b"x")


if __name__ == "__main__":
    main()
