"""What a Ray dashboard answers, as far as the dispatcher needs it; ValueError if it is anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json
from ray.job_submission import JobStatus

from raygen.capacity import LostNode, Node
from raygen.cluster.ray_failures import killed_for_memory
from raygen.queue.client import Submitted
from raygen.queue.job import Placement


class _Answer(BaseModel):
    """A part of an answer: what else is in it may change with Ray's version."""

    model_config = ConfigDict(from_attributes=True, extra="ignore", frozen=True)


AnyAnswer = TypeVar("AnyAnswer", bound=_Answer)

LONGEST_INPUT = 60
"""Letters of an answer that a reason repeats."""


class NodeAnswer(_Answer):
    """A node that is or was part of the cluster."""

    node_id: str
    node_ip: str
    state: str
    state_message: str | None = None
    resources_total: dict[str, float] | None = None
    end_time_ms: float | None = None

    def alive(self) -> Node:
        """The node with what it has."""
        return Node(id=self.node_id, name=self.node_ip, gpus=self._has("GPU"), cpus=self._has("CPU"))

    def lost(self) -> LostNode:
        """The node with what it had."""
        return LostNode(
            id=self.node_id,
            name=self.node_ip,
            gpus=self._has("GPU"),
            cpus=self._has("CPU"),
            lost_at=(self.end_time_ms or 0) / 1000,
            problem=self.state_message or "",
        )

    def was_lost_after(self, at: float) -> bool:
        """Whether it died later than that, rather than having been let go because it was idle or no longer wanted."""
        let_go = ("Expected termination", "Terminated due to idle")
        has_died = self.state == "DEAD" and not (self.state_message or "").startswith(let_go)
        return has_died and (self.end_time_ms or 0) / 1000 > at

    def _has(self, kind: str) -> int:
        return int((self.resources_total or {}).get(kind, 0))


class _Bundle(_Answer):
    """What one process is reserved, and where, once that is known."""

    unit_resources: dict[str, float]
    node_id: str | None = None


class _Group(_Answer):
    """What the processes of a Ray job are reserved."""

    creator_job_id: str
    bundles: tuple[_Bundle, ...] | None = None


class _Listed(_Answer):
    """A job; one that was not submitted has no name, or an empty one."""

    submission_id: str | None
    job_id: str | None = None
    status: JobStatus
    message: str | None = None


class _Named(_Answer):
    """All that must be readable of a job, or it could be any."""

    submission_id: str | None


@dataclass(frozen=True)
class ListedSubmission:
    """A submission by its name, and what Ray calls the job that it runs, if it does."""

    name: str
    submitted: Submitted
    ray_job: str


def nodes(answer: Sequence[Any]) -> tuple[NodeAnswer, ...]:
    """The nodes that are or were there."""
    return tuple(_read(NodeAnswer, each) for each in answer)


def placements(answer: Sequence[Any]) -> dict[str, Placement]:
    """Where the processes of each Ray job are."""
    found: dict[str, Counter[str]] = {}
    for group in (_read(_Group, each) for each in answer):
        for bundle in group.bundles or ():
            if bundle.unit_resources.get("CPU") or bundle.unit_resources.get("GPU"):
                found.setdefault(group.creator_job_id, Counter())[bundle.node_id or ""] += 1
    return {job: Placement(pending=places.pop("", 0), places=dict(places)) for job, places in found.items()}


def submissions(answer: bytes) -> list[ListedSubmission]:
    """What is said of every submission; of one of which that cannot be read, that it is unknown."""
    listed = from_json(answer)
    if not isinstance(listed, list):
        raise ValueError(f"a list of jobs was to come, not {type(listed).__name__}")
    found = [(_read(_Named, each).submission_id, each) for each in listed]
    return [_submission(name, each) for name, each in found if name]


def _read(model: type[AnyAnswer], answer: Any) -> AnyAnswer:
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, given = ".".join(str(part) for part in first["loc"]), str(first["input"])[:LONGEST_INPUT]
        raise ValueError(f"{where} {given!r}: {first['msg']}") from error


def _submission(name: str, answer: Any) -> ListedSubmission:
    try:
        listed = _read(_Listed, answer)
    except ValueError as error:
        return ListedSubmission(
            name, Submitted("unknown", f"nobody understands what the cluster says of it: {error}"), ""
        )
    return ListedSubmission(name, Submitted(_state(listed.status), _told(listed.message or "")), listed.job_id or "")


def _state(status: JobStatus) -> Literal["pending", "running", "ended"]:
    if status.is_terminal():
        return "ended"
    return "running" if status is JobStatus.RUNNING else "pending"


def _told(message: str) -> str:
    """Why a submission is as it is, in a line: the one that speaks of memory, or the first."""
    # What follows the first comma of a failure's message is the end of the job's log.
    lines = message.strip().partition(", last available logs")[0].splitlines() or [""]
    return killed_for_memory(lines) or lines[0]
