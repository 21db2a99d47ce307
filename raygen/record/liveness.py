"""Whether the process of an attempt is alive: by a lock in a folder, by signs of life in a bucket."""

from __future__ import annotations

import os
import time

from raygen.record.documents import Status, parse_whole
from raygen.record.layout import AttemptKeys, RunKeys
from raygen.record.reading import is_locked
from raygen.storage import Storage

TIMEOUT_S = float(os.environ.get("RAYGEN_LIVENESS_S", "30"))
"""Seconds without a new sign of life after which a process counts as dead."""

BEAT_EVERY_S = TIMEOUT_S / 3


class Liveness:
    """Remembers when it saw which sign of life, on its own clock: others' clocks may be wrong."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float]] = {}

    def is_alive(self, storage: Storage, run: str, attempt: int) -> bool:
        """Whether the process of an attempt that has begun may still write.

        Of a bucket that is known only when its last sign of life has been watched for a while: until then it may.
        Raises StorageError if the storage is away.
        """
        if storage.folder is not None:
            return is_locked(storage, RunKeys(run))
        keys = RunKeys(run).attempt(attempt)
        return not self._has_ended(storage, keys) and self._has_beaten(storage, keys)

    def _has_ended(self, storage: Storage, keys: AttemptKeys) -> bool:
        content = storage.get(keys.status)
        status = None if content is None else parse_whole(Status, keys.status, content)
        return status is not None and status.state != "running"

    def _has_beaten(self, storage: Storage, keys: AttemptKeys) -> bool:
        entry = storage.entry(keys.alive)
        version, now = entry.version if entry else "", time.monotonic()
        seen = self._seen.get(keys.alive)
        if seen is None or seen[0] != version:
            self._seen[keys.alive] = version, now
            return True
        return now - seen[1] < TIMEOUT_S
