"""A Ray cluster as the dispatcher sees it: through the Jobs and state APIs of its dashboard."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

import tune_spaces
from raygen.cluster.session import ENVIRONMENT
from raygen.errors import ClusterUnreachableError
from raygen.plan import Capacity
from raygen.queue.client import Submitted

TIMEOUT_S = 10
"""Seconds that the dashboard has to answer; a hung one must not hold up a dispatcher beyond its lease."""

NODES = 10_000
"""Nodes that a cluster may have to be counted whole."""


class RayJobs:
    """The Ray cluster whose dashboard is at `address`; a `remote` one is sent this Raygen with every job."""

    def __init__(self, address: str, *, remote: bool) -> None:
        self.address = address
        self._remote = remote
        self._client: _Client | None = None

    def capacity(self) -> Capacity:
        """What the nodes that are alive have in all."""
        with self._explained():
            nodes = list_nodes(address=self.address, filters=[("state", "=", "ALIVE")], limit=NODES, timeout=TIMEOUT_S)
        if not nodes:
            raise ClusterUnreachableError(f"no node of the cluster at {self.address} is alive")
        resources = [node.resources_total or {} for node in nodes]
        return Capacity(
            gpus=int(sum(each.get("GPU", 0) for each in resources)),
            cpus=int(sum(each.get("CPU", 0) for each in resources)),
            where=f"the cluster at {self.address}" if self._remote else "this machine",
        )

    def node_ids(self) -> set[str]:
        """The nodes that are alive."""
        with self._explained():
            # Ray's own filter by state fails for ever once a node has died.
            nodes = list_nodes(address=self.address, limit=NODES, timeout=TIMEOUT_S, raise_on_missing_output=False)
        return {node.node_id for node in nodes if node.state == "ALIVE"}

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
        # What follows the first comma of a failure's message is the end of the job's log.
        message = (details.message or "").strip().partition(", last available logs")[0].partition("\n")[0]
        if details.status.is_terminal():
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


class _Client(JobSubmissionClient):
    """Ray's client, which would wait for ever for a dashboard that hangs."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, **{"timeout": TIMEOUT_S, **options})
