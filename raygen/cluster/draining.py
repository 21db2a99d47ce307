"""Ray's notice that the node of this process will be taken away."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable

import ray
from ray.exceptions import RayError

LOOK_EVERY_S = 2.0


class _Watch:
    """Looks in a thread of its own, so that a cluster that does not answer holds up no training."""

    def __init__(self) -> None:
        self.deadline_ms: int | None = None
        self._node = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        told = False
        while True:
            try:
                # What Ray Train itself looks at; there is no public way to ask without all processes asking together.
                self.deadline_ms = ray._private.state.state.get_draining_nodes().get(self._node)
                told = False
            except (RayError, OSError, RuntimeError) as error:
                if not told:  # once for each silence, or a long one would fill the log
                    print(f"cannot ask Ray whether this node is being drained: {error}", flush=True)
                told = True
            time.sleep(LOOK_EVERY_S)


@functools.cache
def _watch() -> _Watch:
    return _Watch()


def notices() -> Callable[[], bool]:
    """A question to ask at every sync of a training: yes once for each notice that this node will be drained."""
    watch = _watch()
    heeded: int | None = None

    def has_new_notice() -> bool:
        nonlocal heeded
        deadline_ms = watch.deadline_ms
        is_new = deadline_ms is not None and deadline_ms != heeded
        heeded = deadline_ms
        return is_new

    return has_new_notice
