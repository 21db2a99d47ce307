"""Processes that outlive whoever starts them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from raygen.errors import ServiceError

MOST_BYTES = 2**20
"""A log that is longer makes room for a new one, in the place of the one before it."""

REASON_BYTES = 16 * 1024
"""The end of a log, in which the reason is looked for if a command does not start."""


def start(
    command: Sequence[str], *, log: Path, folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that no terminal ends it; what it prints is added to `log`.

    A log that cannot be written does not keep it from running. Raises ServiceError if it cannot be started.
    """
    with suppress(OSError):
        if log.stat().st_size > MOST_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
    try:
        with _open(log) as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=folder,
                env=environment,
            )
    except OSError as error:
        raise ServiceError(f"cannot start {command[0]}: {error.strerror}") from error
    # Where it ends first, somebody must take note of that, or it stays as a zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def size(log: Path) -> int:
    """Bytes that a log has now, to tell `last_line` what was there before."""
    with suppress(OSError):
        return log.stat().st_size
    return 0


def last_line(log: Path, began: int) -> str:
    """The last line that was added to a log since it had so many bytes; empty if there is none."""
    with suppress(OSError), log.open("rb") as file:
        now = file.seek(0, os.SEEK_END)
        file.seek(max(began if began <= now else 0, now - REASON_BYTES))  # it may have begun anew
        lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


def _open(log: Path) -> IO[bytes]:
    try:
        return log.open("ab")
    except OSError:
        return open(os.devnull, "ab")
