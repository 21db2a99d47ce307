"""Lengths of time as people type them."""

from __future__ import annotations

import re

from raygen.errors import InputError

UNITS_S = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400}

LONGEST_S = 36_500 * UNITS_S["d"]
"""A hundred years: what lies beyond is a slip of the finger, and too much for a date."""

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_PART = re.compile(rf" ?({_NUMBER}) ?({'|'.join(UNITS_S)})")


def parse_duration_s(text: str) -> float:
    """Seconds from a text such as 30s, 90m, 2h, 1 h 30 min or 30d, at most a hundred years; raises InputError."""
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in _PART.findall(text))
    if not text or _PART.sub("", text) or seconds > LONGEST_S:
        raise InputError(
            f"{text!r} is no length of time; write numbers with s, m, h or d, such as 30s, 90m, 2h or 30d"
        )
    return seconds


def parse_timeout_s(text: str) -> float:
    """The same, and a number alone is of seconds."""
    return parse_duration_s(f"{text}s" if re.fullmatch(_NUMBER, text) else text)
