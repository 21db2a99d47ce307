"""Looking at a job again and again: its queue or storage may be away for a while, which says nothing of the job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from raygen.errors import JobError, QueueError, QueueUpgradedError, RunError, StorageError
from raygen.record.log import LogTail
from raygen.storage import Storage

ASK_AGAIN_EVERY_S = 1.0

Answer = TypeVar("Answer")

logger = logging.getLogger("raygen")


class Patience:
    """Asks until there is an answer, and says once that something is away, and that it is back."""

    def __init__(
        self, storage: Storage, say: Callable[[str], object] = logger.warning, *, until: float | None = None
    ) -> None:
        """Wait for a storage and the queue of its jobs, `until` this time of the monotonic clock at most."""
        self._storage = storage
        self._say = say
        self._until = until

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer; raises what the question raises if that is no outage, or lasts too long."""
        is_away = False
        while True:
            try:
                answer = question()
            except QueueUpgradedError:
                raise
            except (QueueError, StorageError, RunError, JobError) as error:
                if not self._is_outage(error) or (self._until is not None and time.monotonic() > self._until):
                    raise
                if not is_away:
                    self._say(f"{error}; looking again until that is over")
                is_away = True
                time.sleep(ASK_AGAIN_EVERY_S)
            else:
                if is_away:
                    self._say("what was away is back")
                return answer

    def lines(self, tail: LogTail, *, ended: bool) -> list[str]:
        """The lines of a log that came since the last call; an outage loses none and repeats none."""
        found: list[str] = []
        self.ask(lambda: found.extend(tail.lines(ended=ended)))
        return found

    def _is_outage(self, error: QueueError | StorageError | RunError | JobError) -> bool:
        if isinstance(error, QueueError | StorageError):
            return True
        try:  # a storage that is not mounted has no runs, and the queue in it no jobs
            return not self._storage.is_marked()
        except StorageError:
            return True
