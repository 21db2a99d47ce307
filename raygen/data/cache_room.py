"""The bound of the cached images: what was used longest ago makes room, but never what a process has mapped.

A process that maps images keeps their file locked, shared, for as long as it does; the system ends such a lock with
the process. An entry of the cache is all the files of one source, NAME-<16 digits>.*; it was used last when its images
were mapped last.
"""

import fcntl
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from raygen.errors import DataError

VARIABLE = "RAYGEN_CACHE_GB"
DEFAULT_GB = 50.0


def bound_bytes() -> int:
    """Bytes that cached images may have on disk in all; raises DataError if the environment says no number."""
    text = os.environ.get(VARIABLE) or str(DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise DataError(f"{VARIABLE}={text}: write the gigabytes that cached images may take, such as {DEFAULT_GB:g}")
    return round(gigabytes * 1e9)


def hold(file: IO[bytes]) -> None:
    """Lock an open file of images as in use until it is closed, its maps included.

    Raises FileNotFoundError if it was removed after it had been opened.
    """
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:
        raise FileNotFoundError(file.name)
    with suppress(OSError):  # of another user, say: then its owner's uses count
        os.utime(file.name)


def make(path: Path, size_bytes: int) -> None:
    """Remove other entries, those used longest ago first, until so many bytes at `path` fit, or all others are in use.

    The caller holds the lock of `path`.
    """
    others = [entry for entry in entries(path.parent) if entry.path != path]
    excess = size_bytes + sum(entry.size_bytes for entry in others) - bound_bytes()
    for entry in sorted(others, key=lambda entry: entry.used_at_ns):
        if excess <= 0:
            return
        if entry.remove():
            excess -= entry.size_bytes


@dataclass
class CachedSource:
    """The files of one source, `path` that of its images, be it there or not."""

    path: Path
    files: list[Path] = field(default_factory=list)
    size_bytes: int = 0
    used_at_ns: int = 0

    def add(self, file: os.DirEntry[str]) -> None:
        """Count a file in."""
        own = file.stat(follow_symlinks=False)
        found = file.stat() if os.path.exists(file.path) else own  # a link is used if its images are
        self.files.append(Path(file.path))
        self.size_bytes += own.st_size
        self.used_at_ns = max(self.used_at_ns, found.st_mtime_ns)

    def remove(self) -> bool:
        """Whether it could be removed: not if somebody writes it or has mapped its images."""
        try:
            with FileLock(f"{self.path}.lock", timeout=0):
                self._remove_unused()
        except (Timeout, OSError):
            return False
        return True

    def _remove_unused(self) -> None:
        # Open for writing, though nothing is written: NFS gives exclusive locks of no other files.
        with suppress(FileNotFoundError), self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path.unlink()  # first: without its images, whatever else is there is no entry
        for each in self.files:
            each.unlink(missing_ok=True)


def entries(folder: Path) -> Iterator[CachedSource]:
    """What is in the folder of cached images; raises FileNotFoundError if there is none."""
    found: dict[str, CachedSource] = {}
    with os.scandir(folder) as files:
        for file in files:
            name = re.match(r"\.?(.*-[0-9a-f]{16})\.", file.name)  # those that are being written are hidden
            if name and not file.name.endswith(".lock"):
                with suppress(OSError):  # removed meanwhile, or in a folder that only names can be read of
                    found.setdefault(name[1], CachedSource(folder / f"{name[1]}.npy")).add(file)
    yield from found.values()
