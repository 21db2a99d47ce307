"""Chaos over a fake cluster: two dispatchers, PostgreSQL, a small disk, and a fault every two seconds.

`python -m tests.chaos.fake --seed 1 --minutes 10 --jobs 200` makes it, and says whether what must hold has held: every
job ended once, none lost, none run by two attempts at a time, every healthy job succeeded, no process is left, and
`raygen ls` never failed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from filelock import FileLock

from raygen import submission
from raygen.errors import QueueError, RaygenError
from raygen.record import reading
from raygen.record.layout import RunKeys
from raygen.storage import Storage
from tests.chaos import background, chaos, cluster_server
from tests.chaos.chaos import RETRIES, Chaos, Process, wait_for
from tests.chaos.cluster_server import RemoteCluster
from tests.chaos.invariants import Fate
from tests.queue.making import queue_job

START_S, RUN_S = 0.5, 8.0


class FakeChaos(Chaos):
    """Chaos over a fake cluster, whose drivers do to the record what real ones do."""

    cpus = 16
    fault_every_s = 2.0
    patience_s = 120.0
    stopped_s = 2 * background.LEASE_S

    def __init__(self, folder: Path, seed: int, jobs: int, exits: contextlib.ExitStack) -> None:
        """Have a cluster too."""
        super().__init__(folder, seed, jobs, exits)
        self.address = folder / "socket"
        self.start(cluster_server.serve, folder / "cluster", self.address, self.cpus, START_S, RUN_S, seed)
        self.cluster = RemoteCluster(self.address, "chaos")
        wait_for(self.address.exists, "the cluster")
        self.ghosts: dict[str, tuple[int, FileLock]] = {}

    def start_dispatcher(self, number: int) -> Process:
        """Start one that dispatches until it is asked to end."""
        return self.start(background.dispatch, self.address, self.folder / f"dispatcher-{number}.log")

    def submit_one(self) -> None:
        """Queue a job, with its run."""
        name, priority, cpus = self.next_name(), self.random.randint(-1, 1), self.random.choice([1, 1, 1, 2, 4])
        try:
            submission.check_kept(self.queue, Storage(str(self.disk.runs)))
            queue_job(self.queue, self.disk.runs, name, priority=priority, cpus_each=cpus, retries=RETRIES)
            self.fates[name] = Fate(RETRIES)
        except QueueError:
            self.unsure.add(name)
        except RaygenError:
            self.counts["not queued"] += 1

    def drivers(self) -> dict[str, list[int]]:
        """Those that the cluster knows."""
        found: dict[str, list[int]] = self.cluster.drivers()
        return found

    def check_drivers(self) -> None:
        """Check by what the cluster runs, and what it does not know any more."""
        running = self.drivers()
        for name, attempts in running.items():
            assert len(attempts) == 1, f"{name} is run by attempts {attempts} at a time"
        for name, (attempt, _) in self.ghosts.items():
            assert max(running.get(name, [attempt])) <= attempt, f"attempt {attempt} at {name} runs still"

    def mend(self) -> None:
        """Have the cluster be well."""
        self.cluster.be("well")

    def faults(self) -> dict[str, Callable[[], bool | None]]:
        """What can happen to a cluster, too."""
        return super().faults() | {
            "cluster silent": partial(self._be, "silent", 1.0, 6.0),
            "cluster slow": partial(self._be, "slow", 2.0, 8.0),
            "cluster talks rubbish": partial(self._be, "rubbish", 2.0, 6.0),
            "cluster restarted": self.cluster.restart,
            "submission's answer lost": self.cluster.lose_the_next_response,
            "driver killed": self._kill_a_driver,
            "driver forgotten": self._forget_a_driver,
        }

    def _be(self, mood: str, least_s: float, most_s: float) -> None:
        self.cluster.be(mood)
        self.later(least_s, most_s, partial(self.cluster.be, "well"))

    def _kill_a_driver(self) -> bool:
        drivers = self.drivers()
        if drivers:
            self.cluster.end_without_a_word(self.random.choice(sorted(drivers)), "killed [/x] \x1b[31m")
        return bool(drivers)

    def _forget_a_driver(self) -> bool:
        """Have the cluster not know a driver any more that lives and holds its run."""
        drivers = {name: attempts for name, attempts in self.drivers().items() if name not in self.ghosts}
        if not drivers:
            return False
        name = self.random.choice(sorted(drivers))
        held = reading.lock(self.storage, RunKeys(name))
        try:
            held.acquire(timeout=0)
        except OSError:  # the disk is away
            return False
        self.ghosts[name] = drivers[name][0], held
        self.cluster.lose_track_of(name)

        def end() -> None:
            self.check_drivers()
            self.ghosts.pop(name)[1].release()

        self.later(2.0, 8.0, end)
        return True


if __name__ == "__main__":
    chaos.main(FakeChaos, __doc__, minutes=10, jobs=200)
