"""Reads a log that grows: every line once, whole, from wherever the reader left off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


class LogTail:
    """The lines of a log file, which may not be there yet."""

    def __init__(self, path: Path, *, skip: bool = False) -> None:
        """Begin at the start of the file, or with `skip` at its present end."""
        self._path = path
        self._offset = path.stat().st_size if skip and path.exists() else 0

    def lines(self, *, ended: bool) -> Iterator[str]:
        """The lines that came since the last call; half a line waits for its end, unless the log has `ended`."""
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n") and not ended:
                    return
                self._offset += len(line)
                yield line.decode("utf-8", errors="replace").rstrip("\n")
