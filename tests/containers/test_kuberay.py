"""docker/kuberay: what kustomize makes of it is what Kubernetes and KubeRay know. No API server is asked."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.containers.tools import DOCKER, planted, run

pytestmark = pytest.mark.cluster

SCHEMA = Path(__file__).parent / "kuberay" / "rayclusters.v1.json.gz"


def closed(schema: Any) -> Any:
    """The schema, refusing what it does not name, as an API server does in strict mode; otherwise typos pass."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: closed(value) for key, value in schema.items()}
    names = schema.get("properties")
    if isinstance(names, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
        if "apiVersion" in names:
            made["properties"]["metadata"] = {"type": "object"}
    if schema.get("nullable") and "type" in schema:
        made["type"] = [schema["type"], "null"]
    return made


def kustomized(folder: Path) -> list[dict[str, Any]]:
    status, printed = run("kubectl", "kustomize", folder)
    assert status == 0, printed
    return list(yaml.safe_load_all(printed))


def refused(documents: list[dict[str, Any]], folder: Path) -> str:
    """What is wrong with resources, empty if nothing is."""
    found = []
    ray = jsonschema.Draft202012Validator(closed(json.loads(gzip.decompress(SCHEMA.read_bytes()))))
    for number, document in enumerate(documents):
        if document["apiVersion"] == "ray.io/v1":
            found += [f"{error.json_path}: {error.message}" for error in ray.iter_errors(document)]
        else:
            file = folder / f"{number}.yaml"
            file.write_text(yaml.safe_dump(document), encoding="utf-8")
            status, printed = run("kubernetes-validate", "--strict", file)
            found += [printed] if status else []
    return "\n".join(found)


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_it_is_valid(overlay: str, tmp_path: Path) -> None:
    documents = kustomized(DOCKER / "kuberay" / overlay)
    assert sorted(each["kind"] for each in documents) == ["ConfigMap", "Deployment", "RayCluster"]
    assert refused(documents, tmp_path) == ""


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("cluster.yaml", "maxReplicas: 4", "maxReplica: 4"),
        ("cluster.yaml", "replicas: 0", "replicas: none"),
        ("cluster.yaml", "mode: token", "mode: tokens"),
        ("cluster.yaml", "containerPort: 6379", "containerport: 6379"),
        ("cluster.yaml", "memory: 8Gi", "memory: [8Gi]"),
        ("dispatcher.yaml", "livenessProbe:", "livenessprobe:"),
        ("dispatcher.yaml", "replicas: 1", "replicas: one"),
        ("dispatcher.yaml", "secretKeyRef:", "secretRef:"),
    ],
)
def test_a_mistake_is_found(file: str, right: str, wrong: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(DOCKER / "kuberay" / "base", base)
    planted(DOCKER / "kuberay" / "base" / file, right, wrong, base)
    assert refused(kustomized(base), tmp_path)


def test_overlays_name_one_image_everywhere() -> None:
    for overlay, tag in (("cpu", "latest"), ("gpu", "cuda")):
        text = json.dumps(kustomized(DOCKER / "kuberay" / overlay))
        assert text.count(f'"image": "REGISTRY/raygen:{tag}"') == text.count('"image":') == 3


def test_what_is_referred_to_is_made(tmp_path: Path) -> None:
    shutil.copytree(DOCKER / "kuberay" / "secrets", tmp_path / "secrets")
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["kustomization.yaml"], "a secret is committed"
    (tmp_path / "secrets" / "token.env").write_text("auth_token=abc\n")
    (tmp_path / "secrets" / "secrets.env").write_text("PGPASSWORD=def\n")
    secrets = kustomized(tmp_path / "secrets")
    assert refused(secrets, tmp_path) == ""
    made = {each["metadata"]["name"] for each in secrets} | {"raygen"}
    resources = kustomized(DOCKER / "kuberay" / "cpu")
    referred = set(_references(resources))
    assert referred == made
    [cluster] = [each for each in resources if each["kind"] == "RayCluster"]
    assert cluster["spec"]["authOptions"]["secretName"] in made


def _references(node: Any) -> list[str]:
    """The names of the secrets and settings that pods refer to."""
    if isinstance(node, list):
        return [name for each in node for name in _references(each)]
    if not isinstance(node, dict):
        return []
    own = [node[key]["name"] for key in ("secretRef", "configMapRef", "secretKeyRef") if key in node]
    return own + [name for value in node.values() for name in _references(value)]
