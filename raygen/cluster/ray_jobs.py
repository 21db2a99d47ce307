"""A Ray cluster as the dispatcher sees it: through the Jobs and state APIs of its dashboard.

What comes back may be anything: a proxy's page, an answer of another version. All of it is asked for in `_explained`
and read by the models in ray_answers.py; what is no answer to the question is silence (ClusterUnreachableError).
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import requests
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.job_submission import JobSubmissionClient
from ray.util.state import StateApiClient
from ray.util.state.common import ListApiOptions, PredicateType, StateResource

import tune_spaces
from raygen.capacity import LOST_FOR_S, Capacity
from raygen.cluster import ray_answers
from raygen.cluster.session import ENVIRONMENT
from raygen.errors import ClusterUnreachableError, JobRefusedError
from raygen.queue.client import Submitted
from raygen.queue.job import Job, Placement

TIMEOUT_S = 10
"""Seconds that the dashboard has to answer; a hung one must not hold up a dispatcher beyond its lease."""

ANSWER_BYTES = 64 * 2**20
"""What an answer may hold; a job in a list takes about 2 KiB."""

READ_BYTES = 2**16
"""What is read of an answer at once, if so much is there."""

NODES = 10_000
"""Nodes, and placement groups, that a cluster may have to be seen whole."""

OK, NOT_FOUND, SERVER_ERROR = 200, 404, 500

REFUSALS = (400, 413, 422)
"""Statuses with which a request is refused for what it holds: the same would be refused again."""

LONGEST_REASON = 200
"""Letters of an answer that a reason repeats."""


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
            nodes = ray_answers.nodes(self._listed(StateResource.NODES))
        alive = tuple(node.alive() for node in nodes if node.state == "ALIVE")
        if not alive:
            raise ClusterUnreachableError(f"no node of the cluster at {self.address} is alive")
        since = time.time() - LOST_FOR_S
        return Capacity(
            nodes=alive,
            lost=tuple(node.lost() for node in nodes if node.was_lost_after(since)),
            where=f"the cluster at {self.address}" if self._remote else "this machine",
        )

    def placements(self) -> dict[str, Placement]:
        """Where the processes of submissions are, by the name of each that `submissions` has found running."""
        with self._explained():
            groups = self._listed(StateResource.PLACEMENT_GROUPS, ("state", "!=", "REMOVED"))
            places = ray_answers.placements(groups)
        nowhere = Placement(places={}, pending=0)
        return {submission: places.get(job, nowhere) for submission, job in self._ray_jobs.items()}

    def node_ids(self) -> set[str]:
        """The nodes that are alive."""
        return {node.id for node in self.capacity().nodes}

    def submit(self, job: Job) -> None:
        """Start the driver of a job's current attempt, once however often this is called."""
        arguments = ["-u", "-m", "raygen.cluster.driver", job.storage, job.name, str(job.attempt)]
        self.submit_python(job.submission_id, arguments)

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
            except _RefusalError as error:
                if not error.is_known_already(submission_id):
                    self._refuse(error)

    def submissions(self) -> dict[str, Submitted]:
        """What the cluster says of all the submissions that it knows, by their names."""
        with self._explained():
            answer = ray_answers.submissions(self._connected().jobs())
        self._ray_jobs = {each.name: each.ray_job for each in answer if each.submitted.state == "running"}
        return {each.name: each.submitted for each in answer}

    def stop(self, submission_id: str) -> None:
        """Have Ray end the driver, and with it its actors and placement groups."""
        with self._explained(), self._known(submission_id):
            self._connected().stop_job(submission_id)

    def forget(self, submission_id: str) -> None:
        """Have Ray not list a submission that has ended any more: a listing takes 0.4 ms for each."""
        with self._explained(), self._known(submission_id):
            self._connected().delete_job(submission_id)

    def output(self, submission_id: str) -> str:
        """All that a submission has printed, as far as the cluster still knows."""
        with self._explained():
            logs: str = self._connected().get_job_logs(submission_id)
        return logs

    def _listed(self, what: StateResource, *filters: tuple[str, PredicateType, str]) -> list[Any]:
        options = ListApiOptions(limit=NODES, timeout=TIMEOUT_S, filters=list(filters), detail=True)
        found: list[Any] = _StateClient(self.address).list(what, options, raise_on_missing_output=False)
        return found

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
    def _known(self, submission_id: str) -> Iterator[None]:
        """Do something with a submission if Ray knows it."""
        try:
            yield
        except _RefusalError as error:
            if not error.is_unknown(submission_id):
                self._refuse(error)

    def _refuse(self, error: _RefusalError) -> NoReturn:
        """Raise what a refusal means: something about one job, or that nobody is there who could answer."""
        if not error.is_about_one_job:
            raise error
        for_good = error.status in REFUSALS
        raise JobRefusedError(f"{self.address} refuses it ({error.reason})", for_good=for_good) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except JobRefusedError:
            raise
        except Exception as error:
            # Ray's client raises whatever reading an answer that it did not expect comes to.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if isinstance(error, LookupError | TypeError | AttributeError):
                reason = f"it does not answer as Ray does: {type(error).__name__} {reason}"
            hint = ""
            if "auth" in reason.lower() or "token" in reason.lower():
                hint = "; set RAY_AUTH_MODE=token and have the token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
            raise ClusterUnreachableError(f"no answer from {self.address} ({reason}){hint}") from error


class _RefusalError(RuntimeError):
    """An answer of another status than 200 to something that was asked of the Jobs API."""

    def __init__(self, response: requests.Response, address: str) -> None:
        self.status = int(response.status_code)
        self.text = response.text.strip()
        # Of a traceback, the last line says it.
        self.reason = f"status {self.status}: {self.text.rpartition(chr(10))[2][:LONGEST_REASON]}"
        self._is_of_jobs = response.url.startswith(f"{address}/api/jobs/")
        super().__init__(self.reason)

    @property
    def is_about_one_job(self) -> bool:
        """Whether Ray itself has refused a job, rather than that somebody before it did, or of what is uploaded."""
        return self._is_of_jobs and self.status in (SERVER_ERROR, *REFUSALS)

    def is_known_already(self, submission_id: str) -> bool:
        """Whether Ray refused a submission because it knows it."""
        told = f"Job with submission_id {submission_id} already exists"
        return self.is_about_one_job and told in self.text

    def is_unknown(self, submission_id: str) -> bool:
        """Whether Ray, and nobody who stands before it, says that it does not know the submission."""
        return self.status == NOT_FOUND and self.text == f"Job {submission_id} does not exist"


class _Bounded(SubmissionClient):
    """Ray's clients, which would wait for ever for a dashboard that hangs or drips, and read whatever it sends."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        read = partial(_read, deadline=time.monotonic() + TIMEOUT_S)
        return super()._do_request(
            *arguments, **{"timeout": TIMEOUT_S, "stream": True, "hooks": {"response": read}, **options}
        )


def _read(response: requests.Response, *, deadline: float, **options: Any) -> None:
    """Read an answer whole, as far as it comes in time; raises ValueError if it does not, or is too long."""
    content = bytearray()
    while part := response.raw.read1(READ_BYTES, decode_content=True):
        content += part
        if time.monotonic() > deadline:
            raise ValueError(f"its answer takes longer than {TIMEOUT_S} s")
        if len(content) > ANSWER_BYTES:
            raise ValueError(f"its answer is longer than {ANSWER_BYTES / 2**20:.0f} MiB")
    response._content = bytes(content)  # where it would be if requests had read it


class _StateClient(_Bounded, StateApiClient):
    """The client of Ray's state API."""


class _Client(_Bounded, JobSubmissionClient):
    """The client of Ray's Jobs API, which tells nobody an answer's status."""

    def jobs(self) -> bytes:
        """All jobs, as the dashboard writes them."""
        response = self._do_request("GET", "/api/jobs/")
        if response.status_code != OK:
            self._raise_error(response)
        content: bytes = response.content
        return content

    def _raise_error(self, response: requests.Response) -> None:
        raise _RefusalError(response, self._address)
