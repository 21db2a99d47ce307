"""What the dispatcher needs of a cluster that runs jobs; `raygen.cluster.ray_jobs` is Ray's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from raygen.capacity import Capacity
from raygen.queue.job import Placement


@dataclass(frozen=True)
class Submitted:
    """What the cluster says of a submission; `message` tells why, where it knows."""

    state: Literal["pending", "running", "ended"]
    message: str = ""


class JobsClient(Protocol):
    """A cluster that runs submissions by name. Every method raises ClusterUnreachableError where it is silent."""

    def capacity(self) -> Capacity:
        """The nodes that the cluster has, and those it lost lately."""

    def placements(self) -> Mapping[str, Placement]:
        """Where the processes of submissions are, by the name of each that `find` has found running."""

    def submit(self, submission_id: str, folder: Path, attempt: int) -> None:
        """Start an attempt at the run in `folder`; does nothing where the cluster knows the submission already."""

    def find(self, submission_id: str) -> Submitted | None:
        """The submission, or None where the cluster does not know it."""

    def stop(self, submission_id: str) -> None:
        """End a submission and all its processes, soon; one that has ended or is unknown is left alone."""
