"""Files in a storage's state folder that say which dispatchers are its own: the queue knows those of others too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raygen import processes
from raygen.errors import ServiceError
from raygen.queue.job import RegisteredDispatcher

PREFIX = "dispatcher-"


class Marks:
    """The dispatchers of one state folder, each by a file with its process's identity."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def marked(self) -> Iterator[None]:
        """This process is a dispatcher meanwhile; raises ServiceError if that cannot be written."""
        self._remove_old()
        mark = self._mark(os.getpid())
        try:
            mark.write_text(processes.identity(os.getpid()) or "", encoding="utf-8")
        except OSError as error:
            raise ServiceError(f"cannot write {mark}: {error.strerror}") from error
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def has(self, dispatcher: RegisteredDispatcher) -> bool:
        """Whether a dispatcher of this machine is one, and not one to which a dead one's number went."""
        try:
            return self._mark(dispatcher.pid).read_text(encoding="utf-8", errors="replace") == dispatcher.process
        except FileNotFoundError:
            return False

    def remove(self, dispatcher: RegisteredDispatcher) -> None:
        """Remove the file of one that was ended."""
        self._mark(dispatcher.pid).unlink(missing_ok=True)

    def _mark(self, pid: int) -> Path:
        return self._folder / f"{PREFIX}{pid}"

    def _remove_old(self) -> None:
        """Remove the files of those that were killed."""
        for mark in self._folder.glob(f"{PREFIX}*"):
            pid = mark.name.removeprefix(PREFIX)
            with suppress(OSError):
                known = mark.read_text(encoding="utf-8", errors="replace") if pid.isdigit() else ""
                if processes.is_of_here(known) and not processes.is_running(int(pid), known):
                    mark.unlink()
