"""A Ray cluster of several nodes on this machine, and what becomes of its nodes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

from raygen.cluster.ray_jobs import RayJobs
from tests.storage.servers import free_port

PATIENCE_S = 120


def wait_until(condition: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> float:
    """Wait for something; returns the seconds that it took."""
    began_at = time.monotonic()
    while not condition():
        assert time.monotonic() - began_at < patience_s, f"waited {patience_s} s for {what}"
        time.sleep(0.1)
    return time.monotonic() - began_at


class Nodes:
    """A head and further nodes of one CPU core each: real raylets, which share this machine's address."""

    def __init__(self, number: int) -> None:
        # Ray finds free ports, also for the agent that takes jobs: other Rays of this machine hold the usual ones. Of
        # the dashboard's it insists on the usual one.
        dashboard = {"include_dashboard": True, "dashboard_port": free_port()}
        head = {"num_cpus": 1, "dashboard_agent_listen_port": None, **dashboard}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = f"http://{self._cluster.webui_url}"
        for _ in range(number - 1):
            self.add()

    @property
    def head(self) -> Node:
        return self._cluster.head_node

    @property
    def all(self) -> list[Node]:
        return self._cluster.list_all_nodes()

    @property
    def gcs_address(self) -> str:
        address: str = self._cluster.address
        return address

    def add(self, *, num_cpus: int = 1, num_gpus: int = 0) -> Node:
        """Add a node; GPUs are only pretended to Ray."""
        return self._cluster.add_node(num_cpus=num_cpus, num_gpus=num_gpus)

    def wait_for_nodes(self) -> None:
        """Wait until Ray knows of those that are there, and of those that have gone."""
        jobs = RayJobs(self.address, remote=True)
        wait_until(lambda: jobs.node_ids() == {node.node_id for node in self.all}, "Ray to know its nodes")

    def kill(self, node: Node) -> None:
        """End a node's processes with SIGKILL, as if its machine had gone."""
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Node, *, deadline_s: int) -> None:
        """Give notice, as a cloud does for a machine that it will take back."""
        command = ["drain-node", "--address", self._cluster.address, "--node-id", node.node_id]
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
        when = ["--deadline-remaining-seconds", str(deadline_s)]
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *command, *why, *when], check=True, capture_output=True
        )

    def processes(self, word: str, *nodes: Node) -> list[psutil.Process]:
        """The processes of these nodes, or of all, whose titles contain the word."""
        found = []
        for node in nodes or self.all:
            [raylet] = node.all_processes["raylet"]
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(raylet.process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if word in " ".join(process.cmdline()):
                            found.append(process)
        return found

    def with_process(self, word: str) -> list[Node]:
        """The nodes, but for the head, that have such a process."""
        return [node for node in self.all if node is not self.head and self.processes(word, node)]

    def close(self) -> None:
        self._cluster.shutdown()
