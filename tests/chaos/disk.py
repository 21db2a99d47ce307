"""A small disk that can be full, read-only, unmounted, or gone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

SIZE_MB = 192


class Disk:
    """A file system of `SIZE_MB` at `folder`, with the storage `runs` in it; without root a plain folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filler = folder / "filler"
        self.runs = folder / "runs"
        self._away = folder / "runs-away"
        folder.mkdir()
        self._is_mounted = os.geteuid() == 0 and _try("mount", "-t", "tmpfs", f"-osize={SIZE_MB}m", "tmpfs", folder)
        self.runs.mkdir()

    @property
    def faults(self) -> dict[str, Callable[[], bool | None]]:
        """What can happen to it, by its name; `mend` ends it."""
        faults: dict[str, Callable[[], bool | None]] = {
            "storage missing": self.hide,
            "storage unmounted": self.unmount,
        }
        if self._is_mounted:
            faults |= {"storage read-only": self.protect, "storage full": self.fill}
        return faults

    def hide(self) -> None:
        """Have no storage."""
        self.runs.rename(self._away)

    def unmount(self) -> None:
        """Have an empty folder in the storage's place, as a file system leaves that is not mounted."""
        self.hide()
        self.runs.mkdir()

    def protect(self) -> bool:
        """Be read-only; False if it cannot be, as somebody has a file open to write."""
        return _try("mount", "-o", "remount,ro", self._folder)

    def fill(self) -> None:
        """Have no space left."""
        with self._filler.open("wb", buffering=0) as filler:
            block = b"\0" * (1 << 20)
            while block:
                try:
                    filler.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    def mend(self) -> None:
        """Be as before."""
        if self._is_mounted:
            subprocess.run(["mount", "-o", "remount,rw", self._folder], check=True)
        self._filler.unlink(missing_ok=True)
        if self._away.exists():
            # What was written meanwhile to the empty folder is covered by what is mounted there.
            shutil.rmtree(self.runs, ignore_errors=True)
            self._away.rename(self.runs)

    def close(self) -> None:
        """Have it no more."""
        if self._is_mounted:
            subprocess.run(["umount", "--lazy", self._folder], check=True)


def _try(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
