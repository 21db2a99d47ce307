"""What a failure comes to, by the words in which Ray tells of it.

Tune writes down an error's text without its class. What a process raised is a traceback there; all else are Ray's own
words of a process that is gone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from raygen import errors
from raygen.errors import Cause, OutOfMemoryError, ProcessLostError

MEMORY = ("running low on memory", "OutOfMemoryError", "exit code -9", "exit code 137")
"""What is in Ray's words if a process was killed for memory; the system itself kills by signal 9."""

FAILURE = re.compile(r"^Failure # .*\n", re.MULTILINE)
"""The line above each error of a trial in the file that Tune adds them to."""

FRAME = re.compile(r'  File ".*", line [0-9]')

LONGEST_REASON = 200
"""Letters of Ray's words that a reason repeats."""


def last_failure(text: str) -> tuple[str, Cause]:
    """Why a trial's process ended the last time, in a line and as a cause, by the file of its errors."""
    lines = FAILURE.split(text)[-1].strip().splitlines() or [""]
    frames = [place for place, line in enumerate(lines) if FRAME.match(line)]
    if not frames:
        return _told(lines)[:LONGEST_REASON], ProcessLostError.cause
    raised = next((line for line in lines[frames[-1] + 1 :] if line[:1].strip()), lines[-1])
    return raised, _cause(*raised.partition(":")[0].rpartition(".")[::2])


def _cause(package: str, name: str) -> Cause:
    """What an error comes to that a process raised: Ray's own are of others that are gone."""
    if package == "ray.exceptions":
        return ProcessLostError.cause
    own = getattr(errors, name, None) if package == errors.__name__ else None
    if isinstance(own, type) and issubclass(own, errors.RaygenError):
        return own.cause
    return OutOfMemoryError.cause if name == "OutOfMemoryError" else "error"


def killed_for_memory(lines: Sequence[str]) -> str | None:
    """The line of Ray's words that speaks of memory, as a reason; None if there is none."""
    of_memory = next((line for line in lines if any(sign in line for sign in MEMORY)), None)
    return None if of_memory is None else f"a process was killed, as happens if memory runs out: {of_memory.strip()}"


def _told(lines: Sequence[str]) -> str:
    """The line that says most: the one that speaks of memory, or the one after what happened and its details."""
    whole = [line for line in lines if not line[:1].isspace()]
    return killed_for_memory(lines) or (whole[1:] or whole or lines)[0]
