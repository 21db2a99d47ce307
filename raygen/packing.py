"""How many trials share one GPU: a decision over measurements, whoever takes them.

A small training leaves most of a GPU idle, and several at once finish more images in the same time, up to a number
that depends on the model, the batch size, the GPU and the CPU cores beside it. So it is measured: 1, 2, 4, 8, … at
once, for as long as all together get faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raygen.errors import RehearsalError
from raygen.progress import in_words

ENOUGH = 0.95
"""The part of the best throughput that counts as good: fewer trials at once leave a search more to choose by."""

MARGIN = 1.25
"""Times of the measured memory that a trial may take: judging, and what a search varies, may need more."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What some trials at once on one device came to.

    Images per second of all together; bytes of the one that held most; bytes that the device has for all of them.
    """

    images_per_s: float
    bytes_each: int
    room_bytes: int


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How many trials share a GPU, and a sentence about why; 1 without having been measured if that failed."""

    at_once: int
    why: str
    was_measured: bool


def choose(measure: Callable[[int], Measured], *, most: int, growth: float) -> Packing:
    """The number of trials at once on one GPU, `most` at most, which is at least 1.

    It doubles what is measured until that is no faster, fills the memory or fails with RehearsalError, and takes the
    smallest number that is nearly as fast as the fastest. A trial takes `growth` times the memory that one takes which
    is measured, if a search varies what memory depends on.
    """
    found: dict[int, Measured] = {}
    end = f"more than {most} would find no CPU core, or no trial"
    number = 1
    while number <= most:
        try:
            found[number] = measure(number)
        except RehearsalError as error:
            end = f"{number} at once failed: {error}"
            break
        if number > 1 and found[number].images_per_s <= found[number // 2].images_per_s:
            end = f"{number} at once were no faster"
            break
        number *= 2
        held = max(each.bytes_each for each in found.values())
        room = min(each.room_bytes for each in found.values())
        if number * held * growth * MARGIN > room:
            end = f"{number} would not fit: each holds {in_words(held)} of {in_words(room)}"
            break
    if not found:
        return unmeasured(end)
    best = max(each.images_per_s for each in found.values())
    chosen = next(number for number, each in found.items() if each.images_per_s >= ENOUGH * best)
    return Packing(at_once=chosen, why=_why(chosen, found, end), was_measured=True)


def unmeasured(problem: str) -> Packing:
    """What is chosen if nothing could be measured because of this problem."""
    why = f"1 trial on each GPU, as it could not be measured how many are best: {problem}"
    return Packing(at_once=1, why=why, was_measured=False)


def _why(chosen: int, found: dict[int, Measured], end: str) -> str:
    alone = found[1].images_per_s
    shown = ", ".join(f"{number} at once {each.images_per_s:,.0f}" for number, each in found.items())
    if chosen == 1:
        return f"1 trial on each GPU (images per second: {shown}; {end})"
    times = found[chosen].images_per_s / max(alone, 1e-9)
    return (
        f"{chosen} trials share each GPU: together they train {times:.1f} times the images of one "
        f"(images per second: {shown}; {end})"
    )
