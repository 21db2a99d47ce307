"""What the dispatcher needs of a cluster that runs jobs; `raygen.cluster.ray_jobs` is Ray's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from raygen.capacity import Capacity
from raygen.queue.job import Job, Placement


@dataclass(frozen=True)
class Submitted:
    """What the cluster says of a submission; `message` tells why, if it knows.

    It is unknown what a submission does if the cluster knows it, but says of it what nobody understands.
    """

    state: Literal["pending", "running", "ended", "unknown"]
    message: str = ""


class JobsClient(Protocol):
    """A cluster that runs submissions by name. Every method raises ClusterUnreachableError if it is silent.

    An answer that cannot be understood is silence, too.
    """

    def capacity(self) -> Capacity:
        """The nodes that the cluster has, and those it lost lately."""

    def submissions(self) -> Mapping[str, Submitted]:
        """All submissions that the cluster knows, by their names: it has been restarted since it took another one."""

    def placements(self) -> Mapping[str, Placement]:
        """Where the processes of submissions are, by the name of each that `submissions` has found running."""

    def submit(self, job: Job) -> None:
        """Start the job's current attempt; does nothing if the cluster knows its submission already.

        Raises JobRefusedError if the cluster does not take this job's.
        """

    def stop(self, submission_id: str) -> None:
        """End a submission and all its processes, soon; one that has ended or is unknown is left alone.

        Raises JobRefusedError if the cluster does not end this one.
        """

    def forget(self, submission_id: str) -> None:
        """Have an ended submission be unknown; raises JobRefusedError if it has not ended."""
