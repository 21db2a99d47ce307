"""docker/Dockerfile: what hadolint says, and what goes into the image."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.containers.tools import DOCKER, ROOT, planted, run

pytestmark = pytest.mark.cluster

DOCKERFILE = DOCKER / "Dockerfile"


def test_the_dockerfile_is_clean() -> None:
    assert run("hadolint", DOCKERFILE) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("USER 1000", "USER root", "DL3002"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ("FROM ${PYTHON_IMAGE}\n", "FROM python:latest\n", "DL3007"),
        ("CMD [", "CMD raygen dispatch [", "DL3025"),
    ],
)
def test_hadolint_finds_what_is_wrong(right: str, wrong: str, rule: str, tmp_path: Path) -> None:
    status, printed = run("hadolint", planted(DOCKERFILE, right, wrong, tmp_path))
    assert status
    assert rule in printed


def test_only_what_the_image_is_made_of_is_sent_to_its_build() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    sent = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert all((ROOT / path).exists() for path in sent)
    assert "docker" not in sent, "docker/.env holds secrets"


class Healthy(BaseHTTPRequestHandler):
    """Ray's agent on a node, as far as the health check asks it."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def check_health(of: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DOCKER / "healthcheck.py", of], capture_output=True, text=True, env=environment
    )


def test_a_node_is_healthy_as_long_as_rays_agent_says_so() -> None:
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        environment = {"RAY_AGENT_PORT": str(server.server_port)}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert check_health("node", environment).returncode == 0
        server.shutdown()
    done = check_health("node", environment)
    assert done.returncode == 1
    assert done.stderr.startswith("unhealthy: ")


@pytest.mark.parametrize(
    ("host", "alive", "healthy"),
    [(socket.gethostname(), True, True), (socket.gethostname(), False, False), ("b", True, False)],
)
def test_a_dispatcher_is_healthy_if_one_of_this_host_is_alive(
    host: str, alive: bool, healthy: bool, tmp_path: Path
) -> None:
    status = json.dumps({"dispatchers": [{"host": host, "pid": 1, "alive": alive}]})
    (tmp_path / "raygen").write_text(f"#!/bin/sh\necho '{status}'\n")
    (tmp_path / "raygen").chmod(0o755)
    done = check_health("dispatcher", {"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert done.returncode == (not healthy), done.stderr
