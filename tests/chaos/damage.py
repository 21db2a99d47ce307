"""What happens to a run's documents: loss of power, other programs, people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from raygen.record.layout import RunKeys

What = Literal["run", "attempt", "status"]
Kind = Literal["empty", "null", "list", "object", "text", "one more key", "torn", "not UTF-8"]

RECOVERABLE: frozenset[tuple[What, Kind]] = frozenset({("attempt", "empty"), ("status", "empty")})
"""What a loss of power may leave of something that the next attempt does not need: no reason to fail."""


def damage(storage: Path, run: str, attempt: int, what: What, kind: Kind) -> bool:
    """Damage a document of a run; False if there is no such document."""
    keys = RunKeys(run)
    key = {"run": keys.document, "attempt": keys.attempt(attempt).document, "status": keys.attempt(attempt).status}
    path = storage / key[what]
    if not path.is_file():
        return False
    # In one step, as nobody writes a document of Raygen's in several.
    partial = path.with_name(f".{path.name}.damaged")
    partial.write_bytes(KINDS[kind](path.read_bytes()))
    partial.replace(path)
    return True


def _with_one_more_key(content: bytes) -> bytes:
    try:
        document = json.loads(content)
    except ValueError:
        document = {}
    return json.dumps({**document, "surprise": 1} if isinstance(document, dict) else {"surprise": 1}).encode()


KINDS: dict[Kind, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "null": lambda content: b"null",
    "list": lambda content: b"[]",
    "object": lambda content: b"{}",
    "text": lambda content: b'"[/bold] \\u001b[31m"',
    "one more key": _with_one_more_key,
    "torn": lambda content: content[: len(content) // 2],
    "not UTF-8": lambda content: b"\xff\xfe\x00" + content,
}
