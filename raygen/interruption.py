"""What takes long asks now and then whether it is still wanted, however deep in it that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from raygen.errors import RunInterruptedError

_should_stop: ContextVar[Callable[[], bool]] = ContextVar("should_stop", default=lambda: False)


@contextmanager
def heeding(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Let what runs in the block end with RunInterruptedError soon after `should_stop` says so; it is asked often."""
    token = _should_stop.set(should_stop)
    try:
        yield
    finally:
        _should_stop.reset(token)


def is_wanted() -> bool:
    """Whether what runs here in this thread is to go on."""
    return not _should_stop.get()()


def check() -> None:
    """Raise RunInterruptedError if what runs here in this thread is not to go on."""
    if not is_wanted():
        raise RunInterruptedError("stopped on request")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, or raise RunInterruptedError if this is not wanted any more before the lock is free."""
    lock = FileLock(path)
    try:
        lock.acquire(cancel_check=lambda: not is_wanted())
    except Timeout:
        check()
        raise
    try:
        yield
    finally:
        lock.release()
