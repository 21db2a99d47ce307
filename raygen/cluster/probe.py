"""Looks, from every node of a cluster, for a file in the storage and for what Raygen needs.

`python -m raygen.cluster.probe FILE` runs as a Ray job, and prints one line of JSON: what is wrong, by node.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def problem(path: str) -> str | None:
    """What keeps a job from running on this node, or None."""
    try:
        import raygen.cluster.driver  # noqa: F401
    except ImportError as error:
        return f"Raygen cannot run there: {error}"
    return None if Path(path).exists() else f"it does not see {Path(path).parent.parent}"


def main(path: str) -> None:
    """Ask every node that is alive."""
    ray.init(address=os.environ["RAY_ADDRESS"], logging_level=logging.ERROR)
    task = ray.remote(num_cpus=0)(problem)
    asked = {
        node["NodeManagerAddress"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(path)
        for node in ray.nodes()
        if node["Alive"]
    }
    answers = {address: ray.get(answer) for address, answer in asked.items()}
    print(json.dumps({address: answer for address, answer in answers.items() if answer is not None}))


if __name__ == "__main__":
    main(sys.argv[1])
