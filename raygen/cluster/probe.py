"""Looks around on every node of a cluster: what is installed there, and what it sees of the storage.

`python -m raygen.cluster.probe STORAGE PLACE REQUIREMENTS` runs as a Ray job, and prints one line of JSON after
`ANSWER`: what each node has. `raygen.cluster.node_check` submits it, and judges. PLACE is where the keys begin that
belong to this probe alone.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ANSWER = "raygen found: "
"""How the line of the answer begins: Ray may print others, before and after."""

ASKED = "asked"
"""The key below PLACE whose content, PLACE itself, the submitting machine has put."""

ANSWER_TIMEOUT_S = 90.0
"""Seconds that nodes have to answer; one that never ran a job fetches Raygen and imports torch first."""


def look_around(storage: str, place: str, lock: str | None, requirements: list[str]) -> dict[str, Any]:
    """What this node has and sees; `lock` is a file that another process holds locked, or None to leave that out.

    It travels to nodes as code, not by name, with what it calls here: there, Raygen may be impossible to import. So
    what it needs is imported in it, and comes with Ray.
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    found: dict[str, Any] = {"python": platform.python_version(), "versions": {}}
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                found["versions"][requirement.name] = version(requirement.name)
            except PackageNotFoundError:
                found["versions"][requirement.name] = None
    try:
        import raygen.cluster.driver  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # torch without its libraries raises the latter two
        return {**found, "import_problem": first_line(error)}
    found |= try_storage(storage, place)
    # To take the lock makes its folder, which must not happen on a node that does not see the storage.
    if lock is not None and found["sees_storage"]:
        found["lock_problem"] = try_lock(lock)
    return found


def try_storage(address: str, place: str) -> dict[str, Any]:
    """Whether this node finds in the storage what was put for the probe, and can write there too."""
    import secrets

    from raygen.errors import RaygenError
    from raygen.storage import Storage

    storage = Storage(address)
    try:
        if storage.get(f"{place}/{ASKED}") != place.encode():
            return {"sees_storage": False}
        storage.create(f"{place}/{secrets.token_hex(6)}", b"")
    except RaygenError as error:
        return {"sees_storage": False, "storage_problem": first_line(error)}
    return {"sees_storage": True}


def try_lock(lock: str) -> str | None:
    """What is wrong with a lock that another process holds, as this node sees it."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return "is not seen as taken there"
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        return f"cannot be tried there ({first_line(error)})"


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def ask_all(storage: str, place: str, lock: str | None, requirements: list[str]) -> dict[str, Any]:
    """What each node that is alive has, by its id; of one that does not answer, why, as `no_answer`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look_around)
    alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = {}
    for node_id in alive:
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        asked[node_id] = task.options(scheduling_strategy=there).remote(storage, place, lock, requirements)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_TIMEOUT_S)
    # One that died meanwhile is no node of the cluster any more.
    still_alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return {
        node_id: {"address": alive[node_id], **answer_of(task)}
        for node_id, task in asked.items()
        if node_id in still_alive
    }


def answer_of(task: Any) -> dict[str, Any]:
    """What a task has found, or why it has not; does not wait for it."""
    import ray
    from ray.exceptions import GetTimeoutError, NodeDiedError, RayError, RayTaskError, TaskUnschedulableError

    try:
        answer: dict[str, Any] = ray.get(task, timeout=0)
    except GetTimeoutError:
        return {"no_answer": f"it was silent for {ANSWER_TIMEOUT_S:.0f} s"}
    except (NodeDiedError, TaskUnschedulableError):
        return {"no_answer": "it died meanwhile"}
    except RayTaskError as error:
        return {"no_answer": first_line(error.cause)}
    except RayError as error:
        return {"no_answer": first_line(error)}
    return answer


def main(storage: str, place: str, requirements: str) -> None:
    """Ask every node, while this process holds a lock if the storage is a folder, and print what they have."""
    import ray
    from filelock import FileLock

    # The output of tasks would come between the job's own lines.
    ray.init(address=os.environ["RAY_ADDRESS"], logging_level=logging.ERROR, log_to_driver=False)
    probed = Path(storage, place)
    lock = str(probed / "lock") if os.path.isdir(probed) else None  # a bucket's address is no folder
    with FileLock(lock) if lock else nullcontext():
        nodes = ask_all(storage, place, lock, json.loads(requirements))
    print(ANSWER + json.dumps({"head": ray.get_runtime_context().get_node_id(), "nodes": nodes}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
