"""Folders of a process on its own machine, for what is on its way to or from a storage."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from raygen import files

PREFIX = "raygen-scratch-"
LOCK = ".lock"


class Scratch:
    """A new folder that only this user can enter, removed by `close`; those of processes that were killed go too."""

    def __init__(self) -> None:
        """Raises MachineStorageError."""
        with _explained():
            _sweep()
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = FileLock(self.folder / LOCK)
            self._lock.acquire()

    def write(self, name: str, content: bytes) -> Path:
        """Write a file; raises MachineStorageError."""
        path = self.folder / name
        with _explained():
            path.write_bytes(content)
        return path

    def close(self) -> None:
        """Remove the folder."""
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _explained() -> Iterator[None]:
    with files.on_own_disk("cannot write temporary files", "free some space there or set TMPDIR to another folder"):
        try:
            yield
        except FileNotFoundError as error:  # Python finds no folder that takes a file
            raise OSError(errno.ENOSPC, str(error)) from error


def _sweep() -> None:
    """Remove this user's folders that no process holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if (folder / LOCK).exists():
                with FileLock(folder / LOCK).acquire(timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue  # in use, or another user's
