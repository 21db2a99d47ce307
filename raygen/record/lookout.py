"""Looks for what others ask of a process, and shows that it lives, in a thread that delivers nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from raygen.errors import StorageError
from raygen.storage import Storage

NEAR_EVERY_S = 0.25
"""Seconds between looks into a folder."""

LOOK_EVERY_S = 2.0
"""Seconds between looks into a bucket."""

CLOSE_TIMEOUT_S = 5.0
"""Seconds that whoever ends the thread waits for a storage that does not answer."""

UNEXPECTED = "an error in Raygen itself keeps something from being seen"

logger = logging.getLogger("raygen.record")


def look_every_s(storage: Storage) -> float:
    """Seconds between two looks at a storage by whoever looks again and again."""
    return NEAR_EVERY_S if storage.folder is not None else LOOK_EVERY_S


class Lookout:
    """Calls `look` again and again, and `beat`, if any, every `beat_every_s`, whatever they raise."""

    def __init__(
        self,
        storage: Storage,
        look: Callable[[], None],
        *,
        beat: Callable[[], None] | None = None,
        beat_every_s: float = 0.0,
    ) -> None:
        self.every_s = look_every_s(storage)
        """Seconds between two looks."""
        self._look = look
        self._beat = beat
        self._beat_every_s = beat_every_s
        self._told: set[str] = set()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raygen-lookout", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, as soon as a storage that does not answer lets it."""
        self._is_closed.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        look_at = beat_at = time.monotonic()
        while not self._is_closed.is_set():
            if time.monotonic() >= look_at:
                self._survive(self._look)
                look_at = time.monotonic() + self.every_s
            if self._beat is not None and time.monotonic() >= beat_at:
                self._survive(self._beat)
                beat_at = time.monotonic() + self._beat_every_s
            due = look_at if self._beat is None else min(look_at, beat_at)
            self._is_closed.wait(max(due - time.monotonic(), 0))

    def _survive(self, act: Callable[[], None]) -> None:
        """Go on whatever happens; what is tried again and again fails alike, and is told once."""
        try:
            act()
        except StorageError:
            pass  # what cannot be seen now is seen when the storage is back
        except Exception as error:
            if repr(error) not in self._told:
                self._told.add(repr(error))
                logger.exception(UNEXPECTED)
