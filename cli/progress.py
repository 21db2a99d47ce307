"""A bar in the terminal while images are on their way to or from a storage; one line if nobody watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli import console
from raygen.progress import OnProgress, in_words, silent

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def shown(what: str, *, quiet: bool = False) -> Iterator[OnProgress]:
    """Draw a bar under the name `what` once something is on its way, and a line when it is there; nothing if quiet."""
    if quiet:
        yield silent
        return
    bar = _Bar(what)
    try:
        yield bar.tell
    finally:
        bar.remove()


class _Bar:
    """A bar from the first bytes to the last, then a line that stays."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_at = 0.0
        self._drawn: Progress | None = None

    def tell(self, done_bytes: int, total_bytes: int) -> None:
        """Draw how far it is."""
        if self._drawn is None:
            self._began_at = time.monotonic()
            self._drawn = _empty(self._what)
            self._drawn.start()
        self._drawn.update(self._drawn.tasks[0].id, completed=done_bytes, total=total_bytes)
        if done_bytes == total_bytes:
            self.remove()
            console.say(f"{self._what}: {in_words(total_bytes)} in {time.monotonic() - self._began_at:.1f} s")

    def remove(self) -> None:
        """Draw it no more."""
        if self._drawn is not None:
            self._drawn.stop()
            self._drawn = None


def _empty(what: str) -> Progress:
    """A bar that is drawn in a terminal only, and not yet."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    talk = console.talk()
    columns = (console.Words("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=talk, transient=True, disable=not talk.is_terminal)
    bar.add_task(what)
    return bar
