"""What starts Raygen on machines without containers: `ray up` on AWS, and systemd."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.containers.tools import DOCKER, planted, run

pytestmark = pytest.mark.cluster

CLUSTER = DOCKER / "cloud" / "aws.yaml"
STORAGE = DOCKER / "cloud" / "aws-storage.yaml"
UNIT = DOCKER / "systemd" / "raygen.service"


def validate(file: Path) -> None:
    """Raise what Ray raises of a cluster's file before it starts any machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(file.read_text(encoding="utf-8"))))


def test_ray_accepts_the_cluster() -> None:
    validate(CLUSTER)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("idle_timeout_minutes: 5", "idle_timeout_minute: 5"),
        ("min_workers: 0", "min_worker: 0"),
        ("ssh_user: ubuntu", "ssh_users: ubuntu"),
    ],
)
def test_ray_finds_a_mistake_in_the_cluster(right: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(planted(CLUSTER, right, wrong, tmp_path))


def test_workers_are_spot_machines_and_know_no_key() -> None:
    types = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))["available_node_types"]
    for name in ("cpu", "gpu"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    profiles = {each["node_config"]["IamInstanceProfile"]["Name"] for each in types.values()}
    made = STORAGE.read_text(encoding="utf-8")
    assert all(f"InstanceProfileName: {name}\n" in made for name in profiles)


def test_cloudformation_accepts_bucket_and_roles() -> None:
    status, printed = run("cfn-lint", STORAGE)
    assert status == 0, printed


def test_cfn_lint_finds_a_mistake(tmp_path: Path) -> None:
    status, printed = run("cfn-lint", planted(STORAGE, "BlockPublicAcls", "BlockPublicAcl", tmp_path))
    assert status
    assert "BlockPublicAcl" in printed


@pytest.mark.parametrize(("right", "wrong"), [("OOMPolicy", "OOMPolicies"), ("oneshot", "once"), ("ExecStart=", "")])
def test_systemd_accepts_the_unit_and_finds_a_mistake(right: str, wrong: str, tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    for mistake in (False, True):
        unit = planted(UNIT, right, wrong if mistake else right, tmp_path)
        unit.write_text(unit.read_text().replace("@RAYGEN@", "/bin/true"))
        status, printed = run("systemd-analyze", "--user", "verify", unit, environment=environment)
        assert bool(status or printed) == mistake, printed
