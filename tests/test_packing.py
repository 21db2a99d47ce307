"""How many trials share a GPU, by what is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygen.errors import RehearsalError
from raygen.packing import MARGIN, Measured, choose
from raygen.plan import Plan, packed

GIB = 2**30
RUNGS = (1, 2, 4, 8, 16)


def device(
    speeds: Sequence[float], *, bytes_each: int = GIB, room_bytes: int = 1000 * GIB
) -> tuple[Callable[[int], Measured], list[int]]:
    """A GPU on which 1, 2, 4, … trials at once train so many images per second, and what was measured of it."""
    asked: list[int] = []

    def measure(number: int) -> Measured:
        asked.append(number)
        speed = speeds[number.bit_length() - 1]
        return Measured(images_per_s=speed, bytes_each=bytes_each, room_bytes=room_bytes)

    return measure, asked


def test_as_many_share_a_gpu_as_raise_the_throughput() -> None:
    measure, asked = device([1000, 1900, 3500, 6100, 6000])
    chosen = choose(measure, most=16, growth=1)
    assert chosen.at_once == 8
    assert asked == [1, 2, 4, 8, 16]
    assert chosen.why == (
        "8 trials share each GPU: together they train 6.1 times the images of one (images per second: "
        "1 at once 1,000, 2 at once 1,900, 4 at once 3,500, 8 at once 6,100, 16 at once 6,000; "
        "16 at once were no faster)"
    )


def test_one_that_fills_a_gpu_stays_alone() -> None:
    measure, asked = device([1000, 990])
    chosen = choose(measure, most=16, growth=1)
    assert (chosen.at_once, asked) == (1, [1, 2])
    assert chosen.why.startswith("1 trial on each GPU (images per second: 1 at once 1,000, 2 at once 990; ")


def test_what_is_nearly_as_fast_leaves_more_to_choose_by() -> None:
    measure, _ = device([1000, 1900, 1950])
    assert choose(measure, most=4, growth=1).at_once == 2


def test_a_trial_that_could_not_be_measured_has_a_gpu_of_its_own() -> None:
    def measure(number: int) -> Measured:
        raise RehearsalError("no such device")

    chosen = choose(measure, most=16, growth=1)
    assert chosen.at_once == 1
    assert not chosen.was_measured
    assert chosen.why.endswith("could not be measured how many are best: 1 at once failed: no such device")


def test_those_that_failed_together_are_not_chosen() -> None:
    fast, _ = device([1, 2, 4, 8, 16])

    def measure(number: int) -> Measured:
        if number == 4:
            raise RehearsalError("CUDA out of memory")
        return fast(number)

    chosen = choose(measure, most=16, growth=1)
    assert chosen.at_once == 2
    assert "4 at once failed: CUDA out of memory" in chosen.why


def test_a_search_over_larger_batches_leaves_room_for_them() -> None:
    for growth, at_once in ((1, 8), (4, 2)):
        measure, _ = device([1, 2, 4, 8, 16], bytes_each=GIB, room_bytes=11 * GIB)
        chosen = choose(measure, most=16, growth=growth)
        assert chosen.at_once == at_once
        assert f"{2 * at_once} would not fit: each holds 1.1 GB of 11.8 GB" in chosen.why


@st.composite
def one_peak(draw: st.DrawFn) -> list[float]:
    """Throughputs that rise to the best number of trials at once, and fall after it."""
    speeds = draw(st.lists(st.floats(1, 1e6), min_size=len(RUNGS), max_size=len(RUNGS), unique=True))
    peak = draw(st.integers(0, len(RUNGS) - 1))
    best = max(speeds)
    others = sorted(speed for speed in speeds if speed != best)
    return [*others[:peak], best, *reversed(others[peak:])]


@given(one_peak(), st.integers(1, 20))
def test_no_number_is_much_better(speeds: list[float], most: int) -> None:
    measure, asked = device(speeds)
    chosen = choose(measure, most=most, growth=1).at_once
    possible = [speed for number, speed in zip(RUNGS, speeds, strict=True) if number <= most]
    assert speeds[RUNGS.index(chosen)] >= 0.9 * max(possible)
    assert chosen <= most
    assert asked == list(RUNGS[: len(asked)])


@given(
    st.lists(st.floats(0, 1e6), min_size=5, max_size=5),
    st.integers(1, 16),
    st.integers(1, 64 * GIB),
    st.integers(1, 64 * GIB),
)
def test_memory_holds_those_at_once(speeds: list[float], most: int, bytes_each: int, room_bytes: int) -> None:
    """Of any throughputs, noisy ones too; one trial is left to its own luck."""
    measure, asked = device(speeds, bytes_each=bytes_each, room_bytes=room_bytes)
    chosen = choose(measure, most=most, growth=1).at_once
    for number in (chosen, *asked):
        assert number == 1 or number * bytes_each * MARGIN <= room_bytes
        assert number <= most


@pytest.mark.parametrize(
    ("at_once", "trials", "plan"),
    [
        (1, 16, Plan(2, 1, 1, 8)),
        (4, 16, Plan(8, 1, 0.25, 2)),
        (8, 100, Plan(16, 1, 0.125, 1)),
        (16, 100, Plan(16, 1, 0.125, 1)),  # every process keeps a core
        (8, 5, Plan(5, 1, 0.3333, 2)),  # on both GPUs
        (8, 1, Plan(1, 1, 1, 8)),
        (8, 0, Plan(1, 1, 1, 8)),
    ],
)
def test_the_same_devices_are_shared_by_more_trials(at_once: int, trials: int, plan: Plan) -> None:
    assert packed(Plan(2, 1, 1, 8), at_once, trials=trials) == plan


@given(st.integers(1, 16), st.integers(1, 64), st.integers(1, 32), st.integers(0, 200))
def test_what_is_shared_is_no_more_than_was_claimed(gpus: int, cpus: int, at_once: int, trials: int) -> None:
    plan = Plan(gpus, 1, 1, cpus)
    shared = packed(plan, at_once, trials=trials)
    assert shared.gpus <= plan.gpus
    assert shared.cpus <= plan.cpus
    assert shared.cpus_per_worker >= 1
    assert shared.concurrent <= max(trials, 1)
    on_each = plan.each.holds(shared.each)
    assert gpus * on_each >= shared.concurrent, "all of them find room at once"
