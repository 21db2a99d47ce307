"""Which process a number meant when it was written down: another may have it by now, and the clock may have moved."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import psutil

PROC = Path("/proc")


def identity(pid: int) -> str | None:
    """What tells a process of this machine from every other that has its number before or after; None if it is gone.

    On Linux no setting of the clock changes it. One that has ended and is not yet forgotten has one too.
    """
    started = _started(pid)
    return None if started is None else f"{_here()}/{started}"


def is_of_here(known: str) -> bool:
    """Whether an identity was given here, where numbers of processes mean what they mean to this process.

    Another machine, or a container, may bear this one's name.
    """
    return known.rpartition("/")[0] == _here()


def is_running(pid: int, known: str) -> bool:
    """Whether the process that had that number and that identity still runs."""
    if identity(pid) != known:
        return False
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_hidden(pid: int) -> bool:
    """Whether a process has that number of which this user may know nothing else: /proc may hide others' processes."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError) and _started(pid) is None
    return False


def is_stopped(pid: int) -> bool:
    """Whether a process was suspended, as by Ctrl-Z."""
    try:
        return bool(psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP))
    except psutil.NoSuchProcess:
        return False


def _started(pid: int) -> str | None:
    """When a process was started, counted from the machine's own start if the system tells that."""
    if not (PROC / "self" / "stat").exists():
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        # Its second field, a name in brackets, may hold spaces and brackets; the 22nd is the start, in clock ticks.
        about = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return about[19]


@cache
def _here() -> str:
    """This start of this machine, and what numbers its processes: a container has its own numbers."""
    try:
        boot = (PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink(PROC / 'self' / 'ns' / 'pid')}"
    except OSError:
        return ""
