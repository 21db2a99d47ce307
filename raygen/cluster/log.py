"""The log of a run: all that its driver prints, each line with the time at which it came."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

FLUSH_TIMEOUT_S = 5.0


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Add all that this process and its children print to the file at `path`, and still let it pass."""
    reading, writing = os.pipe()
    passed_to = os.dup(1)
    for descriptor in (1, 2):
        os.dup2(writing, descriptor)
    os.close(writing)
    thread = threading.Thread(target=_copy, args=(reading, passed_to, path), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in (1, 2):
            os.dup2(passed_to, descriptor)  # closes the pipe, unless a child that lives on holds it
        thread.join(FLUSH_TIMEOUT_S)


def _copy(reading: int, passed_to: int, path: Path) -> None:
    with os.fdopen(reading, "rb") as lines, path.open("ab", buffering=0) as log:
        for line in lines:
            os.write(passed_to, line)
            log.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} ".encode() + line.rstrip(b"\n") + b"\n")
