"""Whether the nodes of a shared cluster can run jobs, found out before a job is queued there.

A probe runs on all nodes (`raygen.cluster.probe`). Only when it has ended without a problem is it written down which
nodes passed, so an interrupted probe counts for nothing, and a node that joined later is looked at.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import requires, version
from pathlib import Path
from typing import Protocol

from packaging.requirements import Requirement
from packaging.version import Version
from pydantic import BaseModel, ValidationError

from raygen.cluster.probe import ANSWER, ASKED
from raygen.errors import ResourceError
from raygen.files import replacing
from raygen.queue.client import Submitted
from raygen.storage import PROBE, Storage

PROBE_TIMEOUT_S = 180.0
"""Seconds that a probe may take in all; its nodes get less (probe.ANSWER_TIMEOUT_S)."""

VALID_S = 86_400.0
"""Seconds after which nodes are looked at again: what is installed on them changes without a sign."""


class Cluster(Protocol):
    """What is needed of `raygen.cluster.ray_jobs.RayJobs`; every method raises ClusterUnreachableError if silent."""

    address: str

    def node_ids(self) -> set[str]:
        """The nodes that are alive."""

    def submit_python(self, submission_id: str, arguments: list[str]) -> None:
        """Start Python with these arguments on the cluster."""

    def submissions(self) -> Mapping[str, Submitted]:
        """What the cluster says of the submissions that it knows, by their names."""

    def stop(self, submission_id: str) -> None:
        """End a submission."""

    def output(self, submission_id: str) -> str:
        """All that a submission has printed."""


class NodeFacts(BaseModel, frozen=True):
    """What the probe found on a node."""

    address: str
    no_answer: str | None = None
    """Why nothing else is known of it."""
    python: str = ""
    versions: dict[str, str | None] = {}
    """The installed version of each package that Raygen requires; None if it is missing."""
    import_problem: str | None = None
    sees_storage: bool = False
    """Whether it finds there what the submitting machine has put."""
    storage_problem: str | None = None
    """Why the storage cannot be read or written."""
    lock_problem: str | None = None
    """What is wrong with a lock that the probe held; goes on after "a file lock taken on the head …"."""


class Found(BaseModel, frozen=True):
    """What a probe found: `head` is the node that it ran on, as the drivers of all jobs will."""

    head: str
    nodes: dict[str, NodeFacts]


class Record(BaseModel, frozen=True):
    """The nodes that passed a probe, and for what."""

    raygen: str
    requirements: list[str]
    checked_at: float
    nodes: set[str]

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record, unless there is none or it cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def covers(self, node_ids: set[str], now: float) -> bool:
        """Whether these nodes passed for the Raygen that is installed here, and not long ago."""
        is_for_this = self.raygen == version("raygen") and self.requirements == own_requirements()
        return is_for_this and now - self.checked_at < VALID_S and node_ids <= self.nodes


def own_requirements() -> list[str]:
    """What the Raygen that is installed here requires; Raygen travels with jobs, so only this machine knows."""
    return requires("raygen") or []


def check(cluster: Cluster, storage: Storage, folder: Path) -> None:
    """Raise ResourceError if a node of the cluster cannot run jobs; probes only if the record in `folder` is no help.

    Raises ClusterUnreachableError if the cluster is silent, and StorageError if this machine cannot use the storage.
    """
    record = folder / f"nodes-of-{re.sub('[^A-Za-z0-9.-]+', '-', cluster.address)}.json"
    known = Record.read(record)
    if known is not None and known.covers(cluster.node_ids(), time.time()):
        return
    requirements = own_requirements()
    # Each probe has keys of its own, as another may be under way for somebody else.
    place = f"{PROBE}-{secrets.token_hex(6)}"
    try:
        storage.put(f"{place}/{ASKED}", place.encode())
        found = _probe(cluster, storage, place, requirements)
    finally:
        storage.delete_all(place)
    _refuse(cluster.address, found, problems(found, requirements, storage))
    passed = Record(
        raygen=version("raygen"), requirements=requirements, checked_at=time.time(), nodes=set(found.nodes)
    )
    with replacing(record, writer=str(os.getpid())) as partial:
        partial.write_text(passed.model_dump_json() + "\n", encoding="utf-8")


def problems(found: Found, requirements: list[str], storage: Storage) -> dict[str, str]:
    """What is wrong by node, the head first, in one line each: what, and what to do instead."""
    head = found.nodes[found.head]
    ordered = sorted(found.nodes.items(), key=lambda item: item[0] != found.head)
    judged = {node_id: _problem(node, head, requirements, storage) for node_id, node in ordered}
    return {node_id: problem for node_id, problem in judged.items() if problem is not None}


def _problem(node: NodeFacts, head: NodeFacts, requirements: list[str], storage: Storage) -> str | None:
    if node.no_answer is not None:
        return f"it did not answer ({node.no_answer}); try again, or take it out of the cluster"
    if (difference := _difference(node, head)) is not None:
        return difference
    unmet = [each for each in map(Requirement, requirements) if not _is_met(each, node.versions)]
    if unmet:
        needs = ", ".join(f"{each} (it has {node.versions[each.name] or 'none'})" for each in unmet)
        typed = " ".join(f"'{each}'" for each in unmet)
        return f"Raygen requires {needs}; type there: pip install {typed}"
    if node.import_problem is not None:
        return f"Raygen cannot be imported there ({node.import_problem}); install its dependencies there again"
    return _bucket_problem(node, storage) if storage.folder is None else _folder_problem(node, storage.folder)


def _bucket_problem(node: NodeFacts, storage: Storage) -> str | None:
    if node.storage_problem is not None:
        return (
            f"it {node.storage_problem}; let what Ray is started with there hold credentials that may read and write "
            "in that storage, or give the node a role that may"
        )
    if not node.sees_storage:
        return (
            f"it does not find in {storage.name} what this machine has just put there; name the server that both use "
            "in the address, as in --storage 's3://BUCKET/PREFIX?endpoint=https://HOST'"
        )
    return None


def _folder_problem(node: NodeFacts, folder: Path) -> str | None:
    if node.storage_problem is not None:
        return f"it {node.storage_problem}; let the user whom Ray runs as there read and write in {folder}"
    if not node.sees_storage:
        return (
            f"it does not see {folder}; name with --storage a folder that all nodes see at the same path, or a bucket"
        )
    if node.lock_problem is not None:
        return (
            f"a file lock taken on the head in {folder} {node.lock_problem}; mount it on all nodes so that locks are "
            "shared (for NFS: without nolock or local_lock), or name another folder with --storage"
        )
    return None


def _difference(node: NodeFacts, head: NodeFacts) -> str | None:
    """Where a node differs from the head in what must be the same: pickles and checkpoints go from one to the other.

    The head's versions count, not the majority's, as every job's driver runs there.
    """
    if head.no_answer is not None:
        return None
    if _minor(node.python) != _minor(head.python):
        return f"it has Python {node.python} and the head {head.python}; use Python {_minor(head.python)} on all nodes"
    for name in ("ray", "torch"):
        here, there = head.versions.get(name), node.versions.get(name)
        # A requirement that is missing is told apart. What follows the + only tells CPU and CUDA builds apart.
        if here and there and Version(here).public != Version(there).public:
            return f"it has {name} {there} and the head {here}; type there: pip install {name}=={Version(here).public}"
    return None


def _minor(python: str) -> str:
    """3.12 of 3.12.1."""
    return ".".join(python.split(".")[:2])


def _is_met(requirement: Requirement, versions: dict[str, str | None]) -> bool:
    if requirement.name not in versions:
        return True  # of an extra, or for another system
    installed = versions[requirement.name]
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def _refuse(address: str, found: Found, wrong: dict[str, str]) -> None:
    if not wrong:
        return
    node_id, problem = next(iter(wrong.items()))
    host = found.nodes[node_id].address
    is_shared = Counter(node.address for node in found.nodes.values())[host] > 1
    name = f"{host} (id {node_id[:8]})" if is_shared else host
    others = len(wrong) - 1
    more = f" (and {others} more node{'s' if others > 1 else ''})" if others else ""
    raise ResourceError(f"node {name} of {address}{more} cannot run jobs: {problem}")


def _probe(cluster: Cluster, storage: Storage, place: str, requirements: list[str]) -> Found:
    """What the nodes have; raises ResourceError if the head cannot even find that out."""
    submission_id = place.lstrip(".")
    question = [storage.url, place, json.dumps(requirements)]
    cluster.submit_python(submission_id, ["-m", "raygen.cluster.probe", *question])
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    while (submitted := cluster.submissions().get(submission_id)) is not None and submitted.state != "ended":
        if time.monotonic() > deadline:
            cluster.stop(submission_id)
            raise ResourceError(
                f"the head of {cluster.address} cannot run jobs: one that only looks around did not end within "
                f"{PROBE_TIMEOUT_S:.0f} s; see on its dashboard what job {submission_id} waits for"
            )
        time.sleep(0.2)
    lines = cluster.output(submission_id).strip().splitlines()
    answers = [line.removeprefix(ANSWER) for line in lines if line.startswith(ANSWER)]
    if not answers:
        reason = lines[-1] if lines else (submitted and submitted.message) or "it printed nothing"
        raise ResourceError(
            f"the head of {cluster.address} cannot run jobs: {reason}; install Raygen's dependencies there"
        )
    return Found.model_validate_json(answers[-1])
