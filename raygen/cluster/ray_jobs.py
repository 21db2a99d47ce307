"""A Ray cluster as the dispatcher sees it: through the Jobs and state APIs of its dashboard."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes, list_placement_groups
from ray.util.state.common import NodeState
from ray.util.state.exception import RayStateApiException

import tune_spaces
from raygen.capacity import LOST_FOR_S, Capacity, LostNode, Node
from raygen.cluster.session import ENVIRONMENT
from raygen.errors import ClusterUnreachableError
from raygen.queue.client import Submitted
from raygen.queue.job import Placement

TIMEOUT_S = 10
"""Seconds that the dashboard has to answer; a hung one must not hold up a dispatcher beyond its lease."""

NODES = 10_000
"""Nodes, and placement groups, that a cluster may have to be seen whole."""


class RayJobs:
    """The Ray cluster whose dashboard is at `address`; a `remote` one is sent this Raygen with every job."""

    def __init__(self, address: str, *, remote: bool) -> None:
        self.address = address
        self._remote = remote
        self._client: _Client | None = None
        logging.getLogger("ray").setLevel(logging.WARNING)  # it tells what it uploads
        self._ray_jobs: dict[str, str] = {}  # what Ray calls the running submissions that were looked at

    def capacity(self) -> Capacity:
        """The nodes that are alive, and those that were lost in the last hour."""
        with self._explained():
            # Unfiltered: filtered by Ray, the answer is taken for cut short as soon as one node has died.
            nodes = list_nodes(
                address=self.address, detail=True, limit=NODES, timeout=TIMEOUT_S, raise_on_missing_output=False
            )
        alive = tuple(_node(node) for node in nodes if node.state == "ALIVE")
        if not alive:
            raise ClusterUnreachableError(f"no node of the cluster at {self.address} is alive")
        since = time.time() - LOST_FOR_S
        return Capacity(
            nodes=alive,
            lost=tuple(_lost(node) for node in nodes if _was_lost(node) and node.end_time_ms / 1000 > since),
            where=f"the cluster at {self.address}" if self._remote else "this machine",
        )

    def placements(self) -> dict[str, Placement]:
        """Where the processes of submissions are, by the name of each that `find` has found running."""
        with self._explained():
            groups = list_placement_groups(
                address=self.address,
                filters=[("state", "!=", "REMOVED")],
                detail=True,
                limit=NODES,
                timeout=TIMEOUT_S,
                raise_on_missing_output=False,
            )
        bundles: dict[str, list[str]] = {}
        for group in groups:
            bundles.setdefault(group.creator_job_id, []).extend(_nodes_of_processes(group.bundles or []))
        return {submission: _placement(bundles.get(job, [])) for submission, job in self._ray_jobs.items()}

    def node_ids(self) -> set[str]:
        """The nodes that are alive."""
        return {node.id for node in self.capacity().nodes}

    def submit(self, submission_id: str, folder: Path, attempt: int) -> None:
        """Start the driver of a run's attempt, once however often this is called."""
        arguments = ["-u", "-m", "raygen.cluster.driver", str(folder), str(attempt)]
        self.submit_python(submission_id, arguments)

    def submit_python(self, submission_id: str, arguments: list[str]) -> None:
        """Start Python with these arguments on the cluster, once however often this is called."""
        # Elsewhere, Python is what is called so there; here it is the one that has Raygen.
        python = "python" if self._remote else sys.executable
        with self._explained():
            try:
                self._connected().submit_job(
                    entrypoint=shlex.join([python, *arguments]),
                    submission_id=submission_id,
                    runtime_env=self._runtime_environment(),
                )
            except RuntimeError as error:
                if f"{submission_id} already exists" not in str(error):
                    raise

    def find(self, submission_id: str) -> Submitted | None:
        """What the cluster says of a submission."""
        with self._explained():
            try:
                details = self._connected().get_job_info(submission_id)
            except RuntimeError as error:
                if "does not exist" in str(error):
                    return None
                raise
        if details.job_id is not None:
            self._ray_jobs[submission_id] = details.job_id
        # What follows the first comma of a failure's message is the end of the job's log.
        message = (details.message or "").strip().partition(", last available logs")[0].partition("\n")[0]
        if details.status.is_terminal():
            self._ray_jobs.pop(submission_id, None)
            return Submitted("ended", message)
        return Submitted("running" if details.status is JobStatus.RUNNING else "pending", message)

    def stop(self, submission_id: str) -> None:
        """Have Ray end the driver, and with it its actors and placement groups."""
        with self._explained():
            try:
                self._connected().stop_job(submission_id)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise

    def output(self, submission_id: str) -> str:
        """All that a submission has printed, as far as the cluster still knows."""
        with self._explained():
            logs: str = self._connected().get_job_logs(submission_id)
        return logs

    def _connected(self) -> _Client:
        if self._client is None:
            self._client = _Client(self.address)
        return self._client

    def _runtime_environment(self) -> dict[str, Any]:
        if not self._remote:
            return {}  # the head on this machine was started with all of it
        packages = [Path(__file__).parents[1], Path(tune_spaces.__path__[0])]
        return {"py_modules": [str(package) for package in packages], "env_vars": ENVIRONMENT}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (requests.RequestException, OSError, RuntimeError, RayError, RayStateApiException) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            hint = ""
            if "auth" in reason.lower() or "token" in reason.lower():
                hint = "; set RAY_AUTH_MODE=token and have the token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
            raise ClusterUnreachableError(f"no answer from {self.address} ({reason}){hint}") from error


def _node(node: NodeState) -> Node:
    return Node(id=node.node_id, name=node.node_ip, **_devices(node.resources_total or {}))


def _lost(node: NodeState) -> LostNode:
    return LostNode(
        id=node.node_id,
        name=node.node_ip,
        **_devices(node.resources_total or {}),
        lost_at=node.end_time_ms / 1000,
        problem=node.state_message or "",
    )


def _devices(resources: dict[str, float]) -> dict[str, int]:
    return {"gpus": int(resources.get("GPU", 0)), "cpus": int(resources.get("CPU", 0))}


def _was_lost(node: NodeState) -> bool:
    """Whether a node died, rather than having been let go because it was idle or no longer wanted."""
    let_go = ("Expected termination", "Terminated due to idle")
    return node.state == "DEAD" and not (node.state_message or "").startswith(let_go)


def _nodes_of_processes(bundles: Sequence[dict[str, Any]]) -> list[str]:
    """The node of each process that bundles are reserved for, empty if it has none yet."""
    return [
        bundle.get("node_id") or ""
        for bundle in bundles
        if bundle["unit_resources"].get("CPU") or bundle["unit_resources"].get("GPU")
    ]


def _placement(nodes: Sequence[str]) -> Placement:
    places = Counter(nodes)
    pending = places.pop("", 0)
    return Placement(places=dict(places), pending=pending)


class _Client(JobSubmissionClient):
    """Ray's client, which would wait for ever for a dashboard that hangs."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, **{"timeout": TIMEOUT_S, **options})
