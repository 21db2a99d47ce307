"""Reserve one CPU on each of several nodes with Ray, hold them for a second and let them go: `python reserve.py 2`."""

from __future__ import annotations

import sys
import time

import ray
from autoscaled import GCS
from ray.util import placement_group, remove_placement_group

READY_TIMEOUT_S = 90


def main(nodes: int) -> None:
    """Print the seconds until all groups were placed."""
    ray.init(address=GCS, log_to_driver=False)
    started = time.monotonic()
    groups = [placement_group([{"CPU": 1}]) for _ in range(nodes)]
    ray.get([group.ready() for group in groups], timeout=READY_TIMEOUT_S)
    print(f"placed after {time.monotonic() - started:.1f} s")
    time.sleep(1)
    for group in groups:
        remove_placement_group(group)


if __name__ == "__main__":
    main(int(sys.argv[1]))
