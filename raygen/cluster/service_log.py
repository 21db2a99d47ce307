"""What dispatchers tell of themselves: bounded, with repeats folded, and never a reason to end."""

from __future__ import annotations

import logging
import os
import time
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from raygen.cluster.background import MOST_BYTES
from raygen.files import printable

FOLD_S = 60.0
"""Seconds in which a message that comes again and again is told once."""


class RepeatFilter(logging.Filter):
    """Lets each message pass once a minute, and says then how often it came meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, tuple[float, int]] = {}  # when, and how often it came since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is told now."""
        now, message = time.monotonic(), record.getMessage()
        told_at, more = self._told.get(message, (-float("inf"), 0))
        if now - told_at < FOLD_S:
            self._told[message] = told_at, more + 1
            return False
        if more:
            record.msg, record.args = f"{message} (… {more} times more in {now - told_at:.0f} s)", ()
        recent = {key: value for key, value in self._told.items() if now - value[0] < 10 * FOLD_S}
        self._told = recent | {message: (now, 0)}
        return True


class _Printable(logging.Formatter):
    """Shows what is not printable in escapes, so that no name ends a line or moves the reader's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        record.message = printable(record.message)
        return super().formatMessage(record)


class _BoundedFile(RotatingFileHandler):
    """A log that holds all else that this process prints too, so that a full one takes that along."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
        return stream


def tell() -> None:
    """Tell on the terminal what a dispatcher in the foreground does."""
    _begin(logging.StreamHandler())


def write(log: Path) -> None:
    """Add what a dispatcher in the background does to a log of bounded size; lines that find no room are lost."""
    logging.captureWarnings(True)
    # Opened as late as possible: a log that cannot be is tried again with each line.
    _begin(_BoundedFile(log, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8", errors="replace", delay=True))


def _begin(handler: logging.Handler) -> None:
    handler.addFilter(RepeatFilter())
    handler.setFormatter(_Printable("%(asctime)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
