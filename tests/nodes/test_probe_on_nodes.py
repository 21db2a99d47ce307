"""The nodes of a real cluster are looked at: those that are there, and those that come later."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from raygen.cluster import session
from raygen.cluster.service import Service
from raygen.errors import ResourceError
from raygen.storage import Storage
from tests.storage import servers

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.cluster

PATIENCE_S = 60


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now; all are held until the last is found, so they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, str]]:
    """A cluster of a head and one more node, and its dashboard's address."""
    # Ray reads the environment when it is imported, and its nodes must find this Python as `python`.
    for name, value in {**session.ENVIRONMENT, **servers.S3_ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    from ray.cluster_utils import Cluster

    port, agent_port = free_ports(2)
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": port}
    # This one is fixed unless named: another head on this machine may have it, and then this head starts no jobs.
    head["dashboard_agent_listen_port"] = agent_port
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1)
        yield cluster, f"http://127.0.0.1:{port}"
    finally:
        cluster.shutdown()


def test_nodes_are_looked_at_once_and_again_when_one_has_joined(
    two_nodes: tuple[Cluster, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobSubmissionClient

    from raygen.cluster.ray_jobs import RayJobs

    cluster, address = two_nodes
    monkeypatch.setenv("RAYGEN_STATE", str(tmp_path / "state"))
    storage = Storage(tmp_path / "storage")
    service = Service(storage, address)

    def passed() -> set[str]:
        [record] = service.folder.iterdir()
        assert storage.list() == [], "a probe leaves nothing there"
        return set(json.loads(record.read_text())["nodes"])

    def alive() -> set[str]:
        return RayJobs(address, remote=True).node_ids()

    def probes() -> int:
        return len(JobSubmissionClient(address).list_jobs())

    service.check_nodes()
    assert passed() == alive()
    service.check_nodes()
    assert probes() == 1

    joined = cluster.add_node(num_cpus=1)
    service.check_nodes()
    assert passed() == alive()
    assert len(passed()) == 3
    assert probes() == 2

    cluster.remove_node(joined, allow_graceful=False)
    deadline = time.monotonic() + PATIENCE_S
    while len(alive()) != 2:
        assert time.monotonic() < deadline, "the cluster did not notice that a node died"
        time.sleep(0.2)
    service.check_nodes()
    assert probes() == 2, "the others passed already"

    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(old_optuna(tmp_path))})
    with pytest.raises(ResourceError, match=r"Raygen requires optuna>=4\.5 \(it has 4\.0\.0\)"):
        service.check_nodes()
    assert len(passed()) == 3, "what was known before stays"


def test_every_node_opens_a_bucket_with_what_it_has_itself(
    two_nodes: tuple[Cluster, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address = two_nodes
    monkeypatch.setenv("RAYGEN_STATE", str(tmp_path / "state"))
    with servers.moto() as endpoint:
        bucket = Storage(f"s3://{servers.BUCKET}/runs?endpoint={endpoint}")
        service = Service(bucket, address)
        service.check_storage()
        service.check_nodes()
        assert bucket.list() == []
        [record] = [each for each in service.folder.iterdir() if each.suffix == ".json"]
        assert len(json.loads(record.read_text())["nodes"]) == 2


def old_optuna(folder: Path) -> Path:
    """A folder which, on Python's path, makes optuna look older than it is."""
    metadata = folder / "optuna-4.0.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 4.0.0\n")
    return folder
