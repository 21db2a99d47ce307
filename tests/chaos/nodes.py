"""Chaos over three Ray nodes: real jobs, two dispatchers, PostgreSQL, a small disk, and a fault every ten seconds.

`python -m tests.chaos.nodes --seed 1 --minutes 5 --jobs 24` makes it, and says whether what must hold has held: every
job ended once, none lost, none run by two attempts at a time, every healthy job succeeded, no process is left, and
`raygen ls` never failed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import psutil

from raygen.cluster.ray_jobs import RayJobs
from raygen.errors import ClusterUnreachableError, QueueError
from tests.chaos import chaos
from tests.chaos.chaos import RETRIES, Chaos, wait_for
from tests.chaos.faulty_dashboard import FaultyDashboard
from tests.chaos.invariants import Fate
from tests.nodes.ray_nodes import Nodes

RAYGEN = Path(sys.executable).with_name("raygen")
NODES = 3
EPOCHS = 20
TOGETHER_S = 20.0
"""Seconds within which the driver of an attempt that is over, and could not begin, has ended."""


class Command:
    """A command that was started, as other processes are."""

    def __init__(self, arguments: Sequence[str | Path], log: Path) -> None:
        """Start it; what it prints is added to a log."""
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """What it ended with; None if it has not."""
        return self._process.poll()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)


class NodesChaos(Chaos):
    """Chaos over Ray nodes of one CPU core each, seen through a faulty dashboard."""

    cpus = NODES
    fault_every_s = 10.0
    patience_s = 900.0
    stopped_s = 45.0

    def __init__(self, folder: Path, seed: int, jobs: int, exits: contextlib.ExitStack) -> None:
        """Have a cluster too."""
        super().__init__(folder, seed, jobs, exits)
        # What jobs call `python` on these nodes, and where it finds Raygen.
        path = f"{RAYGEN.parent}:{os.environ['PATH']}"
        environment = {"RAY_AUTH_MODE": "disabled", "PATH": path, "RAYGEN_CACHE": str(folder / "cache")}
        exits.enter_context(mock.patch.dict(os.environ, environment))
        self.nodes = Nodes(NODES)
        exits.callback(self.nodes.close)
        self.nodes.wait_for_nodes()
        self.dashboard = FaultyDashboard(self.nodes.address, seed)
        exits.callback(self.dashboard.close)
        exits.enter_context(mock.patch.dict(os.environ, {"RAYGEN_ADDRESS": self.dashboard.address}))
        self.together_since: dict[str, float] = {}
        self.typed: tuple[str, Command] | None = None

    def start_dispatcher(self, number: int) -> Command:
        """Start one as a service does."""
        return Command([RAYGEN, "dispatch"], self.folder / f"dispatcher-{number}.log")

    def submit_one(self) -> None:
        """Type a command, unless one is being done still."""
        if self.typed is not None:
            return
        name = self.next_name()
        command = ["train", "ae", "--epochs", str(EPOCHS), "--cpus", "1", "--set", "training.checkpoint_every_s=1"]
        asked = ["--name", name, "--retries", str(RETRIES), "--priority", str(self.random.randint(-1, 1)), "--detach"]
        self.typed = name, Command([RAYGEN, *command, *asked], self.folder / "typed.log")
        self.fates[name] = Fate(RETRIES)

    def tend(self) -> None:
        """Look at what was typed, too."""
        super().tend()
        if self.typed is None or self.typed[1].exitcode is None:
            return
        name = self.typed[0]
        # Whether the job is there is what counts: a command may fail when all is done.
        with contextlib.suppress(QueueError):
            if name not in {job.name for job in self.queue.list()}:
                del self.fates[name]
                self.counts["not queued"] += 1
            self.typed = None

    def is_busy(self) -> bool:
        """Whether a command is being done, or a job has not ended."""
        return self.typed is not None or super().is_busy()

    def drivers(self) -> dict[str, list[int]]:
        """The processes that have begun as drivers and not ended, but for the shells that started them."""
        found: dict[str, list[int]] = {}
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if _is_driver(words) and words[-3] == self.storage.url and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.setdefault(words[-2], []).append(int(words[-1]))
        return found

    def check_drivers(self) -> None:
        """Check that no two drivers of a job are there for longer than one needs to see that it is not wanted."""
        together = {name for name, attempts in self.drivers().items() if len(attempts) > 1}
        self.together_since = {name: self.together_since.get(name, time.monotonic()) for name in together}
        for name, since in self.together_since.items():
            assert time.monotonic() - since < TOGETHER_S, f"{name} is run by attempts {self.drivers()[name]} at a time"

    def mend(self) -> None:
        """Have the dashboard be well, and all nodes be there."""
        self.dashboard.mood = "well"
        self.nodes.wait_for_nodes()
        while len(self.nodes.all) < NODES:
            self.nodes.add()

    def faults(self) -> dict[str, Callable[[], bool | None]]:
        """What can happen to a cluster, too."""
        return super().faults() | {
            "cluster silent": partial(self._be, "silent"),
            "cluster slow": partial(self._be, "slow"),
            "cluster talks rubbish": partial(self._be, "rubbish"),
            "node killed": self._kill_a_node,
            "worker killed": partial(self._kill_a_process, "TrialActor"),
            "driver killed": partial(self._kill_a_process, "raygen.cluster.driver"),
        }

    def end_processes(self) -> None:
        """Have those end, too, that commands have started in the background: they do so when no job is left."""
        super().end_processes()
        wait_for(lambda: self.queue.dispatchers() == [] and not self.drivers(), "the background to end")

    def _be(self, mood: str) -> None:
        def be_well() -> None:
            self.dashboard.mood = "well"

        self.dashboard.mood = mood
        self.later(3.0, 15.0, be_well)

    def _kill_a_node(self) -> bool:
        others = [node for node in self.nodes.all if node is not self.nodes.head]
        if len(others) < NODES - 1:
            return False
        self.nodes.kill(self.random.choice(others))
        self.later(5.0, 20.0, self._replace_a_node)
        return True

    def _replace_a_node(self) -> None:
        """Add a node as soon as Ray knows that one has gone: until then the queue would rightly count on both."""
        with contextlib.suppress(ClusterUnreachableError):
            if len(RayJobs(self.nodes.address, remote=True).node_ids()) < NODES:
                self.nodes.add()
                return
        self.later(1.0, 2.0, self._replace_a_node)

    def _kill_a_process(self, word: str) -> bool:
        found = self.nodes.processes(word)
        if found:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.random.choice(found).kill()
        return bool(found)


def _is_driver(words: Sequence[str]) -> bool:
    return len(words) > 4 and words[-5:-3] == ["-m", "raygen.cluster.driver"]


if __name__ == "__main__":
    chaos.main(NodesChaos, __doc__, minutes=5, jobs=24)
