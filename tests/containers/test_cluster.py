"""docker/compose.yaml brought up: Ray's head, two workers, PostgreSQL, a bucket, and nothing else that they share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from raygen.storage import Storage
from tests.containers.testbed import Testbed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

READY_TIMEOUT_S = 120
RAYGEN_CONTAINERS = ("head_1", "worker_1", "worker_2", "dispatcher_1")


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    bed = Testbed()
    if (missing := bed.missing()) is not None:
        pytest.skip(f"containers cannot be run here: {missing}")
    if bed.is_up():
        pytest.skip(f"the test bed in {bed.place} is in use; `python -m tests.containers.testbed down` ends it")
    bed.make_image()
    try:
        bed.up(workers=2)
        yield bed
    finally:
        bed.down()


@pytest.fixture
def host(bed: Testbed, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What docs/clusters.md has in the environment of a shell on this machine; this process has it too."""
    for name, value in bed.environment().items():
        monkeypatch.setenv(name, value)
    return bed.environment()


def eventually(look: Callable[[], bool]) -> float:
    """Wait until something is so; returns after how many seconds it was."""
    began = time.monotonic()
    while not look():
        assert time.monotonic() - began < READY_TIMEOUT_S, "this takes too long"
        time.sleep(0.5)
    return time.monotonic() - began


def has_all_nodes(host: dict[str, str]) -> bool:
    """Whether `raygen status` on this machine shows head and workers.

    It is a process of its own, as Ray reads its token when it is imported, and this process may have done that.
    """
    command = [str(Path(sys.executable).with_name("raygen")), "status", "--output", "json"]
    printed = subprocess.run(command, env={**os.environ, **host}, capture_output=True, text=True)
    if printed.returncode:
        return False
    status = json.loads(printed.stdout)
    return status["unreachable_since"] is None and sorted(node["cpus"] for node in status["nodes"]) == [0, 1, 1]


def test_head_and_workers_become_a_cluster(bed: Testbed, host: dict[str, str]) -> None:
    waited_s = eventually(lambda: has_all_nodes(host))
    print(f"\nhead and 2 workers were alive {waited_s:.1f} s after the dispatcher worked")


def test_the_dashboard_wants_the_token(host: dict[str, str]) -> None:
    address = f"{host['RAYGEN_ADDRESS']}/api/version"
    assert requests.get(address, timeout=10).status_code == 401
    with_token = {"Authorization": f"Bearer {host['RAY_AUTH_TOKEN']}"}
    assert requests.get(address, timeout=10, headers=with_token).ok


def test_the_queue_wants_the_password(host: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    address = host["RAYGEN_DB"].replace("+psycopg", "")
    eventually(lambda: _connects(address))
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(address)


def _connects(address: str) -> bool:
    try:
        psycopg.connect(address).close()
    except psycopg.OperationalError:
        return False
    return True


def test_nodes_and_host_see_one_bucket_each_by_its_own_endpoint(bed: Testbed, host: dict[str, str]) -> None:
    storage = Storage(host["RAYGEN_STORAGE"])
    storage.probe()
    write = f"from raygen.storage import Storage; assert Storage({storage.url!r}).create('from-a-worker', b'hello')"
    bed.podman("exec", bed.container("worker_1"), "python", "-c", write)
    assert storage.get("from-a-worker") == b"hello"
    assert not storage.create("from-a-worker", b"again")


def test_no_folder_can_be_written_by_two(bed: Testbed) -> None:
    for name in RAYGEN_CONTAINERS:
        [found] = json.loads(bed.podman("inspect", bed.container(name)).stdout)
        mounts: list[dict[str, Any]] = found["Mounts"]
        assert mounts
        assert not [mount for mount in mounts if mount["RW"]], f"{name} shares a folder"


def test_all_say_that_they_are_healthy(bed: Testbed, host: dict[str, str]) -> None:
    eventually(lambda: has_all_nodes(host))
    for name in ("head_1", "worker_1", "dispatcher_1"):
        assert bed.podman("healthcheck", "run", bed.container(name), check=False).returncode == 0


def test_a_head_that_was_killed_comes_back_at_its_address_and_the_workers_to_it(
    bed: Testbed, host: dict[str, str]
) -> None:
    eventually(lambda: has_all_nodes(host))
    bed.kill("head_1")
    eventually(lambda: not has_all_nodes(host))
    waited_s = eventually(lambda: has_all_nodes(host))
    print(f"\nthe cluster was whole again {waited_s:.1f} s after it had lost its head")
