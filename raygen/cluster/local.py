"""This machine's own cluster, whose head is started when it is needed, and again when it has died."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from raygen.capacity import Capacity
from raygen.cluster.head import Head
from raygen.errors import ClusterUnreachableError, ServiceError
from raygen.queue.client import Submitted
from raygen.queue.job import Placement

if TYPE_CHECKING:
    from raygen.cluster.ray_jobs import RayJobs

NODE_TIMEOUT_S = 30.0


class LocalCluster:
    """The jobs of the head on this machine; every use begins with `capacity`, which sees to it that there is one."""

    def __init__(self, head: Head, capacity: Capacity) -> None:
        self._head = head
        self._capacity = capacity
        self._jobs = self._connected(self._head.address or "")

    def capacity(self) -> Capacity:
        """What the head has; starts it where it does not run."""
        try:
            address = self._head.ensure(self._capacity)
        except ServiceError as error:
            raise ClusterUnreachableError(str(error)) from error
        if address != self._jobs.address:
            self._jobs = self._connected(address)
            self._wait_for_node()
        return self._jobs.capacity()

    def placements(self) -> dict[str, Placement]:
        """Where the processes of running submissions are."""
        return self._jobs.placements()

    def submit(self, submission_id: str, folder: Path, attempt: int) -> None:
        """Start an attempt at the run in `folder`."""
        self._jobs.submit(submission_id, folder, attempt)

    def find(self, submission_id: str) -> Submitted | None:
        """What the head says of a submission."""
        return self._jobs.find(submission_id)

    def stop(self, submission_id: str) -> None:
        """End a submission."""
        self._jobs.stop(submission_id)

    def _wait_for_node(self) -> None:
        """A head's dashboard answers some moments before its node is there."""
        deadline = time.monotonic() + NODE_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                self._jobs.capacity()
            except ClusterUnreachableError:
                time.sleep(0.1)
            else:
                return

    def _connected(self, address: str) -> RayJobs:
        os.environ.update(self._head.environment())
        os.environ.pop("RAY_ADDRESS", None)
        # Ray reads the environment when it is imported.
        from raygen.cluster.ray_jobs import RayJobs

        return RayJobs(address, remote=False)
