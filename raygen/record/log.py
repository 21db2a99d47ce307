"""What a run printed: parts that grow one after the other, so that a follower reads only what is new."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from raygen.record import layout
from raygen.record.layout import AttemptKeys, RunKeys
from raygen.record.lookout import look_every_s
from raygen.storage import Storage

PART_BYTES = 256 * 1024
"""Beyond it the next part begins: a part is written whole whenever it has grown."""

FIRST_PARTS = LAST_PARTS = 8
"""Parts of an attempt's log that are kept: what began it and what ended it tell most, and disks are not endless."""


class LogWriter:
    """Adds lines to an attempt's log, of which the first parts stay and the last.

    `put` writes a content under a key, soon, and `delete` removes one.
    """

    def __init__(self, keys: AttemptKeys, put: Callable[[str, bytes], None], delete: Callable[[str], None]) -> None:
        self._keys = keys
        self._put = put
        self._delete = delete
        self._part = 1
        self._content = b""
        self._lines: deque[int] = deque()
        self._left_out = 0

    def add(self, line: bytes) -> None:
        """Add a line, with what ends it."""
        if len(self._content) > PART_BYTES:
            self._begin_part()
        self._content += line
        self._put(self._keys.log(self._part), self._content)

    def _begin_part(self) -> None:
        if self._part > FIRST_PARTS:
            self._lines.append(self._content.count(b"\n"))
        self._part, self._content = self._part + 1, b""
        if len(self._lines) < LAST_PARTS:
            return
        # One goes; in the place of the first that went stands how many lines are gone.
        self._left_out += self._lines.popleft()
        gone, note = self._part - LAST_PARTS, FIRST_PARTS + 1
        if gone != note:
            self._delete(self._keys.log(gone))
        # Of the same length always: who follows the log reads what has been added to a part.
        self._put(self._keys.log(note), f"({self._left_out:12,} lines are left out here)\n".encode())


class LogTail:
    """The lines that a run's attempts printed, every one once, from wherever the reader left off."""

    def __init__(self, storage: Storage, run: str, *, skip: bool = False) -> None:
        """Begin at the start of the first attempt's, or with `skip` at the present end."""
        self._storage = storage
        self._keys = RunKeys(run)
        self._offsets: dict[str, int] = {}
        self._half = b""
        self._look_at = 0.0
        if skip:
            self._offsets = {key: size_bytes for key, size_bytes in self._parts()}

    def lines(self, *, ended: bool) -> Iterator[str]:
        """The lines that came since the last call; half a line waits for its end, unless the log has `ended`.

        However often it is called before, a bucket is asked only now and then.
        """
        if not ended and time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + look_every_s(self._storage)
        for key, size_bytes in self._parts():
            offset = self._offsets.get(key, 0)
            if size_bytes <= offset:
                continue
            new = self._storage.get(key, start=offset) or b""
            self._offsets[key] = offset + len(new)
            *whole, self._half = (self._half + new).split(b"\n")
            yield from (line.decode("utf-8", errors="replace") for line in whole)
        if ended and self._half:
            yield self._half.decode("utf-8", errors="replace")
            self._half = b""

    def _parts(self) -> list[tuple[str, int]]:
        """The keys of all parts in their order, with their sizes."""
        found = [
            (int(match[1]), int(match[2]), entry)
            for entry in self._storage.list(self._keys.attempts)
            if (match := layout.LOG_PART.search(entry.key))
        ]
        return [(entry.key, entry.size_bytes) for _, _, entry in sorted(found, key=lambda each: each[:2])]
