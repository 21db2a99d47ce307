"""How far images on their way to or from a storage are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OnProgress = Callable[[int, int], None]
"""Called with the bytes that are done, 0 at first, and those to do in all; an official test part counts anew."""

LINE_EVERY_S = 5.0


def silent(done_bytes: int, total_bytes: int) -> None:
    """Tell nobody of progress."""


_listener: ContextVar[OnProgress] = ContextVar("listener", default=silent)


def to_listener(done_bytes: int, total_bytes: int) -> None:
    """Tell the one whom `heard_by` has named, if there is one."""
    _listener.get()(done_bytes, total_bytes)


@contextmanager
def heard_by(listener: OnProgress) -> Iterator[None]:
    """Let `listener` hear of all images that are fetched in the block, however deep in it, unless others do."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def in_lines(what: str, say: Callable[[str], None], *, every_s: float = LINE_EVERY_S) -> OnProgress:
    """Progress for a log, "fetching images: 1.5 MB of 48.0 MB", say: a line in so many seconds, and one at the end."""
    said_at = time.monotonic()

    def tell(done_bytes: int, total_bytes: int) -> None:
        nonlocal said_at
        if done_bytes == total_bytes or time.monotonic() - said_at >= every_s:
            said_at = time.monotonic()
            say(f"{what}: {in_words(done_bytes)} of {in_words(total_bytes)}")

    return tell


def in_words(size_bytes: int) -> str:
    """A size such as 21.7 kB or 48.0 MB."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes / 1e3:,.1f} kB"
