"""This machine's own cluster, whose head is started when it is needed, and again when it has died."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from raygen.capacity import Capacity
from raygen.cluster.head import Head
from raygen.cluster.standing import Standing
from raygen.errors import ClusterUnreachableError, ServiceError
from raygen.queue.client import Submitted
from raygen.queue.job import Job, Placement

if TYPE_CHECKING:
    from raygen.cluster.ray_jobs import RayJobs

NODE_TIMEOUT_S = 30.0

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 300.0
"""Seconds after which a head that did not start, or died soon, is started again; they double each time."""

STEADY_S = 30.0
"""Seconds after which a head counts as one that works: its death is no reason to wait before the next."""


class LocalCluster:
    """The jobs of the head on this machine; every use begins with `capacity`, which sees to it that there is one."""

    def __init__(self, head: Head, standing: Standing) -> None:
        """`standing` says which devices a head is started with."""
        self._head = head
        self._starts = _Starts(standing)
        self._jobs = self._connected(self._head.address or "")

    def capacity(self) -> Capacity:
        """What the head has; starts it where it does not run.

        Raises ClusterUnreachableError with the reason while that cannot be, or be known.
        """
        try:
            address = self._address()
            if address != self._jobs.address:
                self._jobs = self._connected(address)
                self._wait_for_node()
        except ServiceError as error:
            raise ClusterUnreachableError(str(error)) from error
        except OSError as error:  # the state folder may be in a home that is away for a while
            raise ClusterUnreachableError(f"Ray's state on this machine cannot be read: {error}") from error
        return self._jobs.capacity()

    def placements(self) -> dict[str, Placement]:
        """Where the processes of running submissions are."""
        return self._jobs.placements()

    def submit(self, job: Job) -> None:
        """Start the job's current attempt."""
        self._jobs.submit(job)

    def submissions(self) -> dict[str, Submitted]:
        """What the head says of all the submissions that it knows."""
        return self._jobs.submissions()

    def stop(self, submission_id: str) -> None:
        """End a submission."""
        self._jobs.stop(submission_id)

    def forget(self, submission_id: str) -> None:
        """Have an ended submission be unknown, and what it printed with it."""
        self._jobs.forget(submission_id)
        self._head.remove_log(submission_id)

    def _address(self) -> str:
        address = self._head.address
        if address is None:
            return self._starts.start(self._head)
        self._starts.lives()
        return address

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


class _Starts:
    """Starts heads, each time later if they do not start or soon die: what keeps them from it lasts, as a rule."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._asked_at = standing.asked_at()
        self._wait_s = FIRST_BACKOFF_S
        self._started_at = self._next_at = -float("inf")
        self._problem = ""

    def lives(self) -> None:
        """Take note that a head runs."""
        if time.monotonic() - self._started_at > STEADY_S:
            self._wait_s, self._next_at = FIRST_BACKOFF_S, -float("inf")

    def start(self, head: Head) -> str:
        """Start a head that does not run; raises ClusterUnreachableError with the reason while that cannot be."""
        if self._asked_at != self._standing.asked_at():  # `raygen up` was typed meanwhile
            self._asked_at = self._standing.asked_at()
            self._wait_s, self._next_at = FIRST_BACKOFF_S, -float("inf")
        if time.monotonic() < self._next_at:
            raise ClusterUnreachableError(self._problem)
        try:
            address = head.ensure(self._standing.capacity())
        except ServiceError as error:
            self._wait_longer(str(error))
            raise ClusterUnreachableError(self._problem) from error
        self._started_at = time.monotonic()
        # Unless it lives on.
        self._wait_longer(f"Ray ended on this machine soon after it was started (see {head.log})")
        return address

    def _wait_longer(self, problem: str) -> None:
        """Before the next start, for which there is then this reason."""
        self._next_at = time.monotonic() + self._wait_s
        self._problem = f"{problem}; it is started again after {self._wait_s:.0f} s, or by `raygen up`"
        self._wait_s = min(2 * self._wait_s, LONGEST_BACKOFF_S)
