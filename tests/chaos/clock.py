"""Time that passes only when it is told to, for the queue, the record and the fake cluster alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from sqlalchemy import Connection

from raygen.queue import database

READING_S = 1e-6
"""Seconds that pass with every reading, so that whoever waits for a deadline comes to it."""


class Clock:
    """What every clock of this process says while it is `ruling`."""

    def __init__(self) -> None:
        self._began_at = time.time()
        self._passed_s = 0.0

    def let_pass(self, seconds: float) -> None:
        """Have so much time pass."""
        self._passed_s += seconds

    @contextmanager
    def ruling(self) -> Iterator[None]:
        """Have this clock be the system's and the database's; a SQLite file has no other process to agree with."""
        with (
            mock.patch.object(time, "time", self._time),
            mock.patch.object(time, "monotonic", self._monotonic),
            mock.patch.object(database, "now", self._database_time),
        ):
            yield

    def _monotonic(self) -> float:
        self._passed_s += READING_S
        return self._passed_s

    def _database_time(self, connection: Connection) -> float:
        return self._time()

    def _time(self) -> float:
        return self._began_at + self._monotonic()
