"""What Ray's own processes on the driver's node wrote into their logs while an attempt ran.

Workers' output comes to the driver anyway. That a node's memory ran out, or that the cluster's head lost a node, is in
these files alone, and they go with Ray's session.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FILES = ("gcs_server.err", "gcs_server.out", "raylet.err", "raylet.out")
LAST_LINES = 20
LAST_BYTES = 64 * 1024

PROBLEM = re.compile(r"^\[[^\]]* [WEFC] ")
"""How a line begins that says more than how things go: a warning, an error, or the last word."""


class SessionLogs:
    """Ray's logs in a folder, from where they end when this is made."""

    def __init__(self, folder: Path) -> None:
        """The files may come and go."""
        self._begun_at = {folder / name: _size_bytes(folder / name) for name in FILES}

    def problems(self) -> Iterator[str]:
        """The last lines about problems that were added since, below the name of their file."""
        for path, begun_at in self._begun_at.items():
            lines = _lines(path, max(begun_at, _size_bytes(path) - LAST_BYTES))
            found = lines if path.suffix == ".err" else [line for line in lines if PROBLEM.match(line)]
            if found:
                yield f"the end of Ray's {path.name}:"
                yield from found[-LAST_LINES:]


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _lines(path: Path, start: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
