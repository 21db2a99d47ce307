"""docker/compose.yaml: valid, with no password in it, and not seen beyond this machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.tools import DOCKER, ROOT, planted, run

pytestmark = pytest.mark.cluster

FILE = DOCKER / "compose.yaml"
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN")


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What the line of docs/clusters.md makes."""
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^\(umask .* > docker/\.env\)$", page, flags=re.MULTILINE)
    (tmp_path / "docker").mkdir()
    subprocess.run(["sh", "-euc", line], cwd=tmp_path, check=True)
    return tmp_path / "docker" / ".env"


def rendered(file: Path, secrets: Path) -> dict[str, Any]:
    status, printed = run("podman-compose", f"--env-file={secrets}", "-f", file, "config", environment={})
    assert status == 0, printed
    services: dict[str, Any] = yaml.safe_load(printed)["services"]
    return services


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_it_is_valid(name: str) -> None:
    status, printed = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name)
    assert status == 0, printed


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("command: [server, /data]", "comand: [server, /data]"),
        ("shm_size: 1gb", "shm_size: [1gb]"),
        ("condition: service_healthy", "condition: service_well"),
        ("restart: on-failure", "restart: [on-failure]"),
    ],
)
def test_a_mistake_is_found(right: str, wrong: str, tmp_path: Path) -> None:
    copy = planted(FILE, right, wrong, tmp_path)
    status, _ = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", copy)
    assert status


def test_secrets_that_are_missing_are_asked_for() -> None:
    status, printed = run("podman-compose", "--env-file=/dev/null", "-f", FILE, "config", environment={})
    assert status
    assert "make docker/.env first, as docs/clusters.md says" in printed


def test_no_secret_is_in_the_file(secrets: Path) -> None:
    made = dict(line.split("=") for line in secrets.read_text().splitlines())
    assert len(set(made.values())) == 3
    assert secrets.stat().st_mode & 0o077 == 0, "others could read it"
    for service in rendered(FILE, secrets).values():
        for name, value in (service.get("environment") or {}).items():
            if SECRET.search(name):
                assert value in made.values(), f"{name} is not from docker/.env"
            else:
                assert not any(secret in str(value) for secret in made.values()), f"{name} tells a secret"


def test_nothing_is_published_beyond_this_machine(secrets: Path) -> None:
    ports = [port for service in rendered(FILE, secrets).values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_the_host_reaches_what_is_published(secrets: Path) -> None:
    script = f"set -a; . {secrets}; . {DOCKER / 'host.env'}; exec env"
    printed = subprocess.run(["env", "-i", "sh", "-euc", script], capture_output=True, text=True, check=True).stdout
    host = dict(line.split("=", 1) for line in printed.splitlines())
    services = rendered(FILE, secrets)
    dispatcher = services["dispatcher"]["environment"]
    assert host["RAYGEN_ADDRESS"] == dispatcher["RAYGEN_ADDRESS"], "the queue tells clusters by their addresses"
    for name in ("RAYGEN_STORAGE", "RAY_AUTH_TOKEN", "PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert host[name] == dispatcher[name], name
    published = {str(port).rpartition(":")[0] for service in services.values() for port in service.get("ports", [])}
    for name in ("RAYGEN_ADDRESS", "RAYGEN_DB", "AWS_ENDPOINT_URL"):
        assert re.search(r"127\.0\.0\.1:\d+", host[name])[0] in published, name
