"""Room on the cluster for the processes of one training, and for those that it lacks while nodes are away."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from raygen.plan import Plan

LOOK_EVERY_S = 0.2

PATIENCE_S = 10.0
"""Seconds that an elastic training waits for room for all its processes before it goes on with fewer."""


class Room:
    """Asks for room for a training's processes, all at once, or one by one beyond the least that it goes on with.

    It is asked for with placement groups: only Ray itself knows what others occupy, and a group that waits is what its
    autoscaler adds nodes for.
    """

    def __init__(self, plan: Plan) -> None:
        devices = {"CPU": plan.cpus_per_worker, "GPU": plan.gpus_per_worker}
        self._devices = {name: number for name, number in devices.items() if number}
        self._least = plan.workers if plan.elastic_from is None else plan.elastic_from
        self._most = plan.workers
        self._asked: list[PlacementGroup] = []

    def wait(self, should_stop: Callable[[], bool]) -> int:
        """Wait for room; returns for how many processes there is, left free for them, or 0 if it is to stop."""
        while not should_stop():
            self.close()  # what waits for one more process would be given the devices that are left free below
            least = self._ask(self._least)
            while not _is_there(least) and not should_stop():
                time.sleep(LOOK_EVERY_S)
            # No sooner: two trainings that each held a part of what the other needs would wait for ever.
            more = [self._ask(1) for _ in range(self._least, self._most)]
            deadline = time.monotonic() + PATIENCE_S
            while not all(map(_is_there, more)) and time.monotonic() < deadline and not should_stop():
                time.sleep(LOOK_EVERY_S)
            found = [least, *filter(_is_there, more)]
            if _is_there(least) and not should_stop():
                self.close()
                return sum(group.bundle_count for group in found)
        return 0

    def has_grown(self, processes: int) -> bool:
        """Whether there is room by now for more than these processes; asks for it from the first call on."""
        if not self._asked:
            for _ in range(processes, self._most):
                self._ask(1)
        return any(map(_is_there, self._asked))

    def close(self) -> None:
        """Ask for nothing any more."""
        for group in self._asked:
            remove_placement_group(group)
        self._asked = []

    def _ask(self, processes: int) -> PlacementGroup:
        group = placement_group([self._devices] * processes)
        self._asked.append(group)
        return group


def _is_there(group: PlacementGroup) -> bool:
    state: str = placement_group_table(group)["state"]
    return state == "CREATED"
