"""States and times in words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cli import console

if TYPE_CHECKING:
    from rich.text import Text

STATE_STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
    "stopped": "dim",
    "waiting": "dim",
    "queued": "dim",
    "starting": "cyan",
    "recovering": "yellow",
    "succeeded": "green",
    "cancelled": "yellow",
}


def state(name: str, reason: str = "") -> Text:
    """A state in its colour, with its reason."""
    return console.text((f"{name}: {reason}" if reason else name, STATE_STYLES[name]))


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


def local_time(at: float) -> datetime:
    """A time of the clock as the person's own."""
    return datetime.fromtimestamp(at).astimezone()


def iso_time(at: float | None) -> str | None:
    """A time of the clock as JSON has it, in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
