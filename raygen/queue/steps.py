"""Steps of the database's clock, found by this process's own, which nobody sets."""

from __future__ import annotations

import time

LEAST_STEP_S = 10.0
"""Seconds by which the two must differ: an answer of the database may come that late."""


class Steps:
    """Remembers by how much the database's clock is ahead of this process's."""

    def __init__(self) -> None:
        self._ahead_s: float | None = None

    def since_last_time(self, now: float) -> float:
        """By how many seconds the database's clock, which says `now`, was set since this was last asked."""
        ahead_s = now - time.monotonic()
        known_s = ahead_s if self._ahead_s is None else self._ahead_s
        has_stepped = abs(ahead_s - known_s) >= LEAST_STEP_S
        # Small differences add up, so that a clock which is set little by little is found out too.
        self._ahead_s = ahead_s if has_stepped else known_s
        return ahead_s - known_s if has_stepped else 0.0
