"""One Ray cluster for all tests that need one, and the command line as a person starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from raygen.runs import Run

RAYGEN = Path(sys.executable).with_name("raygen")
CPUS = 2

RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a one-node cluster with two CPU cores."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "num_gpus": 0})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def environment(tmp_path: Path, address: str) -> dict[str, str]:
    """A command's environment: runs go to a folder of the test, jobs to the shared cluster."""
    return {**os.environ, "RAYGEN_STORAGE": str(tmp_path / "runs"), "RAY_ADDRESS": address}


@pytest.fixture
def raygen(environment: dict[str, str]) -> RunCommand:
    """Runs a command to its end and captures what it prints."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAYGEN, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    return run


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command and leaves it running; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [RAYGEN, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def only_run(environment: dict[str, str]) -> Callable[[], Run]:
    """The one run that the test made."""

    def find() -> Run:
        [run] = Run.all(Path(environment["RAYGEN_STORAGE"]), on_damaged=pytest.fail)
        return run

    return find


@pytest.fixture
def head_with_token(tmp_path: Path) -> Iterator[str]:
    """The address of a head that asks for a token, as `ray start` makes it, and nothing of it in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [RAYGEN.with_name("ray"), "start", "--head", "--block", f"--port={port}", f"--num-cpus={CPUS}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--include-dashboard=false"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        yield f"127.0.0.1:{port}"
        children = psutil.Process(process.pid).children(recursive=True)
        for each in [*children, psutil.Process(process.pid)]:
            each.kill()
        process.wait()
