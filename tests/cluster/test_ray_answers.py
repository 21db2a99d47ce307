"""What Raygen makes of whatever a dashboard may answer: a real client, and a server that says what a test wants."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raygen.cluster import ray_answers
from raygen.cluster import ray_jobs as module
from raygen.cluster.ray_jobs import RayJobs
from raygen.errors import ClusterUnreachableError, JobRefusedError
from raygen.queue.client import Submitted
from raygen.queue.job import Placement

pytestmark = pytest.mark.slow

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "abc", "session_name": "session"}
JOB = {"type": "SUBMISSION", "submission_id": "a-1", "job_id": "01000000", "status": "RUNNING", "entrypoint": "python"}
NODE = {
    **{"node_id": "n1", "node_ip": "10.0.0.1", "is_head_node": True, "state": "ALIVE", "state_message": None},
    **{"node_name": "n1", "resources_total": {"CPU": 4.0, "GPU": 2.0}, "labels": {}},
    **{"start_time_ms": 1, "end_time_ms": 0},
}
GROUP = {
    **{"placement_group_id": "p", "name": "", "creator_job_id": "01000000", "state": "CREATED"},
    **{"is_detached": False, "stats": {}},
    "bundles": [
        {"bundle_id": {}, "node_id": "n1", "unit_resources": {"CPU": 1.0}},
        {"bundle_id": {}, "node_id": None, "unit_resources": {"CPU": 1.0}},
    ],
}


class Dashboard:
    """A server whose answers, by method and path, a test chooses; unless told otherwise it is a cluster with a job."""

    DRIP_S = 0.3

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.drips = False
        self.answers: dict[str, tuple[int, bytes]] = {}
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                question = f"{self.command} {self.path.partition('?')[0]}"
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                dashboard.asked.append(question)
                status, content = dashboard.answers.get(question, (404, b"404: Not Found"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                while dashboard.drips and content:
                    self.wfile.write(content[:1])
                    content = content[1:]
                    time.sleep(dashboard.DRIP_S)
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = do_PUT = answer  # noqa: N815 – the server's own names

            def log_message(self, *arguments: Any) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def says(self, question: str, answer: object, status: int = 200) -> None:
        """Answer so from now on."""
        self.answers[question] = status, answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def lists(self, kind: str, found: object) -> None:
        """Answer so when the state API is asked for all of a kind."""
        number = len(found) if isinstance(found, list) else 1
        result = {"total": number, "num_after_truncation": number, "num_filtered": number, "result": found}
        self.says(f"GET /api/v0/{kind}", {"result": True, "msg": "", "data": {"result": result}})


JOBS, NODES, GROUPS = "GET /api/jobs/", "GET /api/v0/nodes", "GET /api/v0/placement_groups"


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    dashboard = Dashboard()
    dashboard.says("GET /api/version", VERSION)
    dashboard.says(JOBS, [JOB])
    dashboard.lists("nodes", [NODE])
    dashboard.lists("placement_groups", [GROUP])
    yield dashboard
    dashboard.server.shutdown()
    dashboard.server.server_close()


@pytest.fixture
def ray_jobs(dashboard: Dashboard) -> RayJobs:
    return RayJobs(dashboard.address, remote=False)


QUESTIONS: dict[str, Callable[[RayJobs], object]] = {
    JOBS: lambda jobs: jobs.submissions(),
    NODES: lambda jobs: jobs.capacity(),
    GROUPS: lambda jobs: jobs.placements(),
    "GET /api/version": lambda jobs: jobs.submissions(),
    "POST /api/jobs/": lambda jobs: jobs.submit_python("a-1", ["-V"]),
    "POST /api/jobs/a-1/stop": lambda jobs: jobs.stop("a-1"),
    "DELETE /api/jobs/a-1": lambda jobs: jobs.forget("a-1"),
}

RUBBISH: dict[str, bytes] = {
    "nothing": b"",
    "an empty object": b"{}",
    "null": b"null",
    "a number": b"7",
    "a text": b'"ok"',
    "a page": b"<!doctype html><html>Please log in</html>",
    "half": b'[{"submission_id": "a-1", "sta',
    "bytes": b"\xff\xfe\x00",
    "something in it": b'{"result": true, "data": null}',
    "a list of nothing": b"[null]",
    "a list of lists": b"[[]]",
    "without a name": b'[{"status": "RUNNING"}]',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_no_answer_is_silence(question: str, rubbish: str, dashboard: Dashboard, ray_jobs: RayJobs) -> None:
    dashboard.says(question, RUBBISH[rubbish])
    with pytest.raises(ClusterUnreachableError, match=re.escape(f"no answer from {dashboard.address} (")) as caught:
        QUESTIONS[question](ray_jobs)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 401, 403, 404, 429, 502, 503, 504])
@pytest.mark.parametrize("question", QUESTIONS)
def test_what_somebody_else_answers_is_silence(
    question: str, status: int, dashboard: Dashboard, ray_jobs: RayJobs
) -> None:
    dashboard.says(question, b"Job a-1 does not exist or Job with submission_id a-1 already exists here", status)
    with pytest.raises(ClusterUnreachableError):
        QUESTIONS[question](ray_jobs)


def test_a_whole_answer_is_understood(ray_jobs: RayJobs) -> None:
    assert ray_jobs.submissions() == {"a-1": Submitted("running", "")}
    capacity = ray_jobs.capacity()
    assert (capacity.gpus, capacity.cpus, capacity.nodes[0].name) == (2, 4, "10.0.0.1")
    assert ray_jobs.placements() == {"a-1": Placement(places={"n1": 1}, pending=1)}


ENDS = {
    "the first line": ("Job failed.\nmore", "Job failed."),
    "before the log": ("exit code 1, last available logs (truncated):\nmuch", "exit code 1"),
    "memory": (
        "The actor died.\nTask was killed due to the node running low on memory.\nmore",
        "a process was killed, as happens if memory runs out: Task was killed due to the node running low on memory.",
    ),
    "the system's": (
        "Job entrypoint command failed with exit code -9, last available logs (truncated):\nmuch",
        "a process was killed, as happens if memory runs out: Job entrypoint command failed with exit code -9",
    ),
    "nothing": (None, ""),
}


@pytest.mark.parametrize("message", ENDS)
@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_why_a_submission_ended_is_one_line(
    status: str, message: str, dashboard: Dashboard, ray_jobs: RayJobs
) -> None:
    given, told = ENDS[message]
    dashboard.says(JOBS, [{**JOB, "status": status, "message": given}])
    assert ray_jobs.submissions() == {"a-1": Submitted("ended", told)}


ODD: dict[str, dict[str, Any]] = {
    "status 'FROZEN'": {**JOB, "status": "FROZEN"},
    "status": {key: value for key, value in JOB.items() if key != "status"},
    "message": {**JOB, "message": {"is": "odd"}},
    "job_id": {**JOB, "job_id": 7},
}


@pytest.mark.parametrize("problem", ODD)
def test_what_is_said_of_one_job_and_not_understood_is_unknown_of_that_one(
    problem: str, dashboard: Dashboard, ray_jobs: RayJobs
) -> None:
    driver = {"type": "DRIVER", "submission_id": None, "job_id": "02000000", "status": "WHATEVER"}
    dashboard.says(JOBS, [ODD[problem], {**JOB, "submission_id": "b-1", "status": "PENDING"}, driver])
    found = ray_jobs.submissions()
    assert set(found) == {"a-1", "b-1"}
    assert found["b-1"].state == "pending"
    assert found["a-1"].state == "unknown"
    assert problem in found["a-1"].message


def test_a_state_that_is_cut_short_is_no_answer(dashboard: Dashboard, ray_jobs: RayJobs) -> None:
    dashboard.lists("nodes", [{**NODE, "resources_total": "many"}])
    with pytest.raises(ClusterUnreachableError, match="resources_total"):
        ray_jobs.capacity()
    dashboard.lists("placement_groups", [{**GROUP, "bundles": [{"node_id": "n1"}]}])
    with pytest.raises(ClusterUnreachableError, match="unit_resources"):
        ray_jobs.placements()


# What the Jobs API itself says


def test_only_the_jobs_api_itself_says_that_it_does_not_know_a_submission(
    dashboard: Dashboard, ray_jobs: RayJobs
) -> None:
    dashboard.says("POST /api/jobs/a-1/stop", b"Job a-1 does not exist", 404)
    dashboard.says("DELETE /api/jobs/a-1", b"Job a-1 does not exist", 404)
    ray_jobs.stop("a-1")
    ray_jobs.forget("a-1")
    for status, text in ((404, b"404: Not Found"), (502, b"Job a-1 does not exist"), (404, b"a-1 does not exist")):
        dashboard.says("POST /api/jobs/a-1/stop", text, status)
        with pytest.raises(ClusterUnreachableError):
            ray_jobs.stop("a-1")


ALREADY = b"Traceback\n  ...\nValueError: Job with submission_id a-1 already exists. Please use a different one.\n."


@pytest.mark.parametrize("status", [400, 500])
def test_a_submission_that_is_known_is_not_submitted_again(
    status: int, dashboard: Dashboard, ray_jobs: RayJobs
) -> None:
    dashboard.says("POST /api/jobs/", ALREADY, status)
    ray_jobs.submit_python("a-1", ["-V"])
    with pytest.raises(JobRefusedError):
        ray_jobs.submit_python("a-11", ["-V"])


@pytest.mark.parametrize(("status", "for_good"), [(400, True), (413, True), (422, True), (500, False)])
def test_a_job_that_is_refused_is_told_from_a_cluster_that_is_silent(
    status: int, for_good: bool, dashboard: Dashboard, ray_jobs: RayJobs
) -> None:
    dashboard.says("POST /api/jobs/", b"Traceback\nValueError: runtime_env is odd", status)
    with pytest.raises(JobRefusedError) as caught:
        ray_jobs.submit_python("a-1", ["-V"])
    assert str(caught.value) == f"{dashboard.address} refuses it (status {status}: ValueError: runtime_env is odd)"
    assert caught.value.for_good is for_good


def test_one_list_is_all_that_is_asked_for_many_jobs(dashboard: Dashboard, ray_jobs: RayJobs) -> None:
    dashboard.says(JOBS, [{**JOB, "submission_id": f"job-{number}"} for number in range(1000)])
    ray_jobs.submissions()
    dashboard.asked.clear()
    assert len(ray_jobs.submissions()) == 1000
    ray_jobs.placements()
    assert dashboard.asked == [JOBS, GROUPS]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_dashboard_may_be_under_a_path(question: str, dashboard: Dashboard) -> None:
    for asked, answer in dict(dashboard.answers).items():
        dashboard.answers[asked.replace(" /", " /ray/")] = answer
    ray_jobs = RayJobs(f"{dashboard.address}/ray", remote=False)
    for asked, status, text, error in (
        ("POST /ray/api/jobs/", 400, b"ValueError: runtime_env is odd", JobRefusedError),
        ("POST /ray/api/jobs/a-1/stop", 500, b"ValueError: odd", JobRefusedError),
        ("DELETE /ray/api/jobs/a-1", 500, b"ValueError: odd", JobRefusedError),
    ):
        dashboard.says(asked, text, status)
        if asked == question.replace(" /", " /ray/"):
            with pytest.raises(error):
                QUESTIONS[question](ray_jobs)
            return
    QUESTIONS[question](ray_jobs)


@pytest.mark.parametrize("question", [JOBS, NODES, GROUPS])
def test_an_answer_that_takes_too_long_or_is_too_long_is_none(
    question: str, dashboard: Dashboard, ray_jobs: RayJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    QUESTIONS[question](ray_jobs)
    asked_at = time.monotonic()
    monkeypatch.setattr(module, "TIMEOUT_S", 1)
    dashboard.drips = True
    with pytest.raises(ClusterUnreachableError, match="its answer takes longer than 1 s"):
        QUESTIONS[question](ray_jobs)
    dashboard.drips = False
    assert time.monotonic() - asked_at < dashboard.DRIP_S * 20
    monkeypatch.setattr(module, "TIMEOUT_S", 10)
    monkeypatch.setattr(module, "ANSWER_BYTES", 50)
    with pytest.raises(ClusterUnreachableError, match="its answer is longer than"):
        QUESTIONS[question](ray_jobs)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*JOB, "message"]), inner, max_size=6),
    max_leaves=20,
)


@example([{"type": None, "submission_id": ""}])
@given(anything)
@settings(max_examples=300)
def test_whatever_is_listed_is_understood_or_a_value_error(answer: object) -> None:
    try:
        found = ray_answers.submissions(json.dumps(answer).encode())
    except ValueError:
        return
    assert isinstance(answer, list)
    assert all(each.name for each in found)
