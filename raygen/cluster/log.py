"""The log of a run: all that its driver prints, each line with the time at which it came."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

FLUSH_TIMEOUT_S = 5.0

LONGEST_LINE_BYTES = 64 * 1024
"""What is longer, such as a bar that is drawn over and over, counts as several lines."""

PASSED_BYTES = 4 * 2**20
"""How much is passed to where it would have gone: what comes then is in the run's log alone."""

MOST_WARNINGS = 1000
"""Warnings that are remembered to tell whether one repeats."""

WARNING = re.compile(rb"warn(?:ing)?(?=[:\s\])]|$)", re.IGNORECASE)
"""A warning says so; the word in the name of a file does not count."""

DIGITS = re.compile(rb"\d+")


@contextmanager
def kept(add: Callable[[bytes], None]) -> Iterator[None]:
    """Hand each line that this process and its children print to `add`, and still let it pass as far as it can.

    Of what repeats, the first line is kept and then the 10th, 100th and so on.
    """
    reading, writing = os.pipe()
    passed_to = os.dup(1)
    for descriptor in (1, 2):
        os.dup2(writing, descriptor)
    os.close(writing)
    thread = threading.Thread(target=_copy, args=(reading, passed_to, add), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in (1, 2):
            os.dup2(passed_to, descriptor)  # closes the pipe, unless a child that lives on holds it
        thread.join(FLUSH_TIMEOUT_S)


class Folding:
    """Tells of the same warning again and again, or the same line several times in a row, only now and then.

    Warnings are the same if they differ in numbers alone, such as the time.
    """

    def __init__(self) -> None:
        self._warnings: dict[bytes, int] = {}
        self._previous = b""
        self._in_a_row = 0

    def folded(self, line: bytes) -> bytes | None:
        """The line as it is to be kept, without its end; None if it is left out."""
        times = self._times(line)
        if times == 1:
            return line
        is_told = times >= 10 and str(times).strip("0") == "1"
        return line + f" (repeated {times:,} times)".encode() if is_told else None

    def _times(self, line: bytes) -> int:
        """How often this has come by now."""
        self._in_a_row = self._in_a_row + 1 if line == self._previous else 1
        self._previous = line
        if not WARNING.search(line):
            return self._in_a_row
        if len(self._warnings) >= MOST_WARNINGS:
            self._warnings.clear()
        warning = DIGITS.sub(b"", line)
        self._warnings[warning] = self._warnings.get(warning, 0) + 1
        return self._warnings[warning]


class _Passing:
    """Passes lines on until that cannot be done any more, which must not end who prints them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left_bytes = PASSED_BYTES

    def on(self, line: bytes) -> str:
        """Pass a line on, with its end; returns why no more are passed on when it is the last, once."""
        if self._left_bytes <= 0:
            return ""
        try:
            self._left_bytes -= len(line)
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            self._left_bytes = 0
            return f"what is printed from here on is in this log alone: {error.strerror}"
        if self._left_bytes > 0:
            return ""
        return f"what is printed from here on is in this log alone: it is more than {PASSED_BYTES / 2**20:g} MB"


def _copy(reading: int, passed_to: int, add: Callable[[bytes], None]) -> None:
    folding, passing = Folding(), _Passing(passed_to)
    with os.fdopen(reading, "rb") as pipe:
        for printed in iter(partial(pipe.readline, LONGEST_LINE_BYTES), b""):
            line = folding.folded(printed.removesuffix(b"\n"))
            if line is None:
                continue
            _add(add, line)
            if problem := passing.on(line + b"\n"):
                _add(add, problem.encode())


def _add(add: Callable[[bytes], None], line: bytes) -> None:
    add(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} ".encode() + line + b"\n")
