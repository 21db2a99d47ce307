"""After how many steps the processes of a training look up together, so that a stop is heeded soon at any speed."""

from __future__ import annotations

STEPS_BETWEEN_SYNCS = {"cpu": 20, "cuda": 200}
"""At most, by the kind of device; losses of so many steps are read from it in one transfer, for which a GPU waits."""

SECONDS_BETWEEN_SYNCS = 1.0
"""At most, as far as one step takes no longer."""


class Rhythm:
    """The number of steps from one sync to the next, which all processes must agree on, as a sync waits for all.

    Their clocks differ, so each has a wish from what it measured, and the mean of these, of whole numbers, counts. The
    time that a device needs is known once its results are read, so what one sync agrees on follows from the steps
    before the last one; a training begins with a sync after its first step.
    """

    def __init__(self, device_type: str) -> None:
        self._most = STEPS_BETWEEN_SYNCS[device_type]
        self._steps = 1
        self.wish = 1
        """What this process would have, told to all at a sync."""

    def is_due(self, step: int) -> bool:
        """Whether there is a sync after so many steps in all."""
        return step % self._steps == 0

    def agree(self, total: float, world_size: int) -> None:
        """Take over the mean of all wishes, of which `total` is the sum."""
        self._steps = max(1, int(total) // world_size)

    def measure(self, steps: int, elapsed_s: float) -> None:
        """Learn how long the steps since the last sync took."""
        affordable = SECONDS_BETWEEN_SYNCS * steps / max(elapsed_s, 1e-9)
        self.wish = max(1, int(min(self._most, affordable)))
