"""Takes what a process has to write to its storage in a thread, so that no training step waits for it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from raygen.errors import StorageError
from raygen.storage import Storage

NEAR_EVERY_S = 0.25
"""Seconds between deliveries to a folder."""

PUT_EVERY_S = 1.0
"""Seconds between deliveries to a bucket."""

LONGEST_BACKOFF_S = 10.0

GIVE_UP_AFTER_S = 60.0
"""Seconds of a storage's silence after which somebody who waits for a delivery is told."""

CLOSE_TIMEOUT_S = 5.0
"""Seconds that whoever ends the thread waits for a storage that does not answer."""

Content: TypeAlias = bytes | Path | Callable[[], bytes]
"""What is to be written: bytes, those of a file which nobody changes, or what a function returns when it is time."""


UNEXPECTED = "an error in Raygen itself keeps something from being written"

logger = logging.getLogger("raygen.record")


class Courier:
    """Delivers the newest content of each key, in the order in which they were given.

    What is to go goes last, so that nothing which stays names it, and only if `may_remove` says so then: while the
    storage was away somebody else may have gone on with it. Until it is back all that was given is kept, and tried
    again.
    """

    def __init__(self, storage: Storage, *, may_remove: Callable[[], bool] = lambda: True) -> None:
        self._storage = storage
        self._may_remove = may_remove
        self._put_every_s = NEAR_EVERY_S if storage.folder is not None else PUT_EVERY_S
        self._waiting: dict[str, Content] = {}
        self._obsolete: dict[str, None] = {}
        self._in_hand: dict[str, Content] = {}
        self._delivered: set[str] = set()
        self._problem: StorageError | None = None
        self._told: set[str] = set()
        self._changed = threading.Condition()
        self._hurried = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="raygen-courier", daemon=True)
        self._thread.start()

    def put(self, key: str, content: Content) -> None:
        """Have a content written soon, in the place of one that waits; a file is removed when it was."""
        with self._changed:
            self._drop(key)
            self._obsolete.pop(key, None)
            self._waiting[key] = content
            self._changed.notify_all()

    def delete(self, key: str) -> None:
        """Have a content removed, or not written at all if it waits still."""
        with self._changed:
            is_there = key not in self._waiting or key in self._in_hand or key in self._delivered
            self._drop(key)
            if is_there:
                self._obsolete[key] = None
            self._changed.notify_all()

    def flush(self, timeout_s: float = GIVE_UP_AFTER_S) -> None:
        """Wait until all that was given is written.

        Raises StorageError if the storage stays silent for so long, or nothing is written any more.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()
            try:
                while waiting := [*self._waiting, *self._obsolete]:
                    if self._is_closed or time.monotonic() >= deadline:
                        raise self._problem or StorageError(f"cannot write {waiting[0]}: no answer")
                    self._changed.wait(max(deadline - time.monotonic(), 0))
            finally:
                self._hurried -= 1

    def close(self) -> None:
        """End the thread, as soon as a storage that does not answer lets it; what was not flushed may be lost."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _drop(self, key: str) -> None:
        content = self._waiting.pop(key, None)
        if isinstance(content, Path) and self._in_hand.get(key) is not content:
            _remove_file(content)

    def _run(self) -> None:
        put_at = time.monotonic()
        backoff_s = self._put_every_s
        while True:
            with self._changed:
                while not self._is_closed and (wait_s := self._wait_s(put_at)) != 0:
                    self._changed.wait(wait_s)
                if self._is_closed:
                    return
                due, obsolete = dict(self._waiting), list(self._obsolete)
                self._in_hand = due
            delivered = self._deliver(due, obsolete)
            backoff_s = self._put_every_s if delivered else min(2 * backoff_s, LONGEST_BACKOFF_S)
            put_at = time.monotonic() + backoff_s

    def _wait_s(self, put_at: float) -> float | None:
        """Seconds until something is to be delivered; None if there is nothing."""
        if not self._waiting and not self._obsolete:
            return None
        if self._hurried and self._problem is None:
            return 0
        return max(put_at - time.monotonic(), 0)

    def _deliver(self, due: dict[str, Content], obsolete: list[str]) -> bool:
        """Write what is due, and then remove what is obsolete; says whether all of it was."""
        try:
            for key, content in due.items():
                if isinstance(content, Path) and not content.exists():
                    # Nothing brings it back, and what comes after it must not wait for ever.
                    logger.error("%s cannot be written: %s is gone", key, content)
                    self._let_go(key, content)
                    continue
                self._storage.put(key, content() if callable(content) else content)
                self._has_delivered(key, content)
            if obsolete:
                self._remove(obsolete)
        except StorageError as error:
            with self._changed:
                self._problem = error
            return False
        except Exception as error:
            if repr(error) not in self._told:  # what is tried again and again fails alike
                self._told.add(repr(error))
                logger.exception(UNEXPECTED)
            with self._changed:
                self._problem = StorageError(f"{UNEXPECTED} ({type(error).__name__}: {error})")
            return False
        finally:
            self._put_down(due)
        return True

    def _has_delivered(self, key: str, content: Content) -> None:
        with self._changed:
            self._problem = None
            self._delivered.add(key)
        self._let_go(key, content)

    def _let_go(self, key: str, content: Content) -> None:
        with self._changed:
            if self._waiting.get(key) is content:
                del self._waiting[key]
            self._changed.notify_all()

    def _put_down(self, due: dict[str, Content]) -> None:
        """Remove the files that are delivered, or were replaced or dropped meanwhile."""
        with self._changed:
            self._in_hand = {}
            for key, content in due.items():
                if isinstance(content, Path) and self._waiting.get(key) is not content:
                    _remove_file(content)

    def _remove(self, obsolete: list[str]) -> None:
        if self._may_remove():
            self._storage.delete(obsolete)
        with self._changed:
            self._problem = None
            for key in obsolete:
                self._obsolete.pop(key, None)
            self._changed.notify_all()


def _remove_file(file: Path) -> None:
    """Remove a file that is delivered; one that stays, as its disk lets nothing go, goes with its folder."""
    with contextlib.suppress(OSError):
        file.unlink()
