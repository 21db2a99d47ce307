"""Processes that outlive whoever starts them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


def start(
    command: Sequence[str], *, log: Path, folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that no terminal ends it; what it prints is added to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=folder,
            env=environment,
        )
    # Where it ends first, somebody must take note of that, or it stays as a zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    return process
