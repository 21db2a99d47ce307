from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygen.spec import Settings, TuneSpec
from raygen.stopping import EarlyStopping, rungs


def stopping(settings: Settings, *, epochs: int = 30, direction: str = "max") -> EarlyStopping:
    search = TuneSpec.search_over("vae", "vae", {f"search.{key}": value for key, value in settings.items()}).search
    return EarlyStopping(search, epochs=epochs, direction="max" if direction == "max" else "min")


def passes(trials: int, *, seed: int, epoch: int, shown: list[list[float]]) -> int:
    """How many of so many new trials of random curves pass the rung at `epoch`, beside those that were `shown`."""
    rule, draw = stopping({"grace_fraction": 0.1, "reduction_factor": 3}), random.Random(seed)
    curves, passed = list(shown), 0
    for _ in range(trials):
        curve = [draw.gauss(0, 1)] * epoch
        passed += not rule.should_stop(curve, curves)
        curves.append(curve)
    return passed


def test_rungs_are_the_grace_period_times_powers_of_the_reduction_factor() -> None:
    assert stopping({"grace_fraction": 0.1, "reduction_factor": 3}).rungs == [3, 9, 27]
    assert stopping({"grace_fraction": 0.2, "reduction_factor": 2}).rungs == [6, 12, 24]
    assert stopping({"scheduler": "fifo"}).rungs == []
    assert stopping({"scheduler": "median", "grace_fraction": 0.5}, epochs=4).rungs == [2, 3]


def test_between_rungs_nothing_is_stopped() -> None:
    rule = stopping({"grace_fraction": 0.1})
    assert rule.should_stop([-9.0] * 3, [[1.0] * 30] * 5)
    assert not rule.should_stop([-9.0] * 4, [[1.0] * 30] * 5)


@pytest.mark.parametrize(("direction", "sign"), [("max", 1.0), ("min", -1.0)])
def test_asha_goes_on_with_the_best_third(direction: str, sign: float) -> None:
    rule = stopping({"grace_fraction": 0.1, "reduction_factor": 3}, direction=direction)
    others = [[sign * value] * 3 for value in range(8)]
    goes_on = [value for value in range(-1, 10) if not rule.should_stop([sign * (value + 0.5)] * 3, others)]
    assert goes_on == [5, 6, 7, 8, 9], "third best of nine, or better"


def test_a_trial_counts_by_the_best_it_has_shown() -> None:
    rule = stopping({"grace_fraction": 0.1})
    assert not rule.should_stop([5.0, 0.0, 0.0], [[1.0] * 3] * 4)


def test_trials_that_have_not_come_so_far_do_not_count() -> None:
    rule = stopping({"grace_fraction": 0.1})
    assert not rule.should_stop([0.0] * 3, [[9.0], [9.0, 9.0], []])


def test_later_epochs_of_others_do_not_count() -> None:
    rule = stopping({"grace_fraction": 0.1})
    assert not rule.should_stop([1.0] * 3, [[0.0] * 3 + [9.0] * 20] * 5)


def test_median_stops_what_is_below_it() -> None:
    rule = stopping({"scheduler": "median", "grace_fraction": 0.1})
    others = [[value] * 10 for value in (1.0, 2.0, 3.0, 4.0)]
    assert rule.should_stop([2.4] * 5, others)
    assert not rule.should_stop([2.5] * 5, others)
    assert not rule.should_stop([0.0] * 2, others), "within the grace period"
    assert not rule.should_stop([0.0] * 5, others[:2]), "two are too few for a median"


@given(st.integers(0, 10_000))
def test_of_equal_trials_none_is_stopped(seed: int) -> None:
    rule = stopping({"reduction_factor": 2 + seed % 5})
    assert not rule.should_stop([1.0] * 3, [[1.0] * 3] * (seed % 17))


def test_trials_added_to_a_search_pass_its_first_rung_as_often_as_in_a_fresh_one() -> None:
    """The earlier trials that were stopped at the rung are on record as well as those that ran to their end."""
    fresh = extended = 0
    for seed in range(50):
        draw = random.Random(1000 + seed)
        earlier: list[list[float]] = []
        for _ in range(5):
            level = draw.gauss(0, 1)
            earlier.append([level] * 30 if level > 0 else [level] * 3)
        fresh += passes(16, seed=seed, epoch=3, shown=[])
        extended += passes(16, seed=seed, epoch=3, shown=earlier)
    assert 0.7 * fresh <= extended <= fresh


def test_rungs_lie_inside_the_training() -> None:
    for epochs in range(1, 40):
        for fraction in (0.01, 0.1, 0.5, 1.0):
            options = {"search.grace_fraction": fraction}
            found = rungs(TuneSpec.search_over("vae", "vae", options).search, epochs)
            assert all(1 <= rung < epochs for rung in found)


@pytest.mark.parametrize(("direction", "sign"), [("max", 1.0), ("min", -1.0)])
def test_what_was_ahead_of_the_best_deserves_to_go_on(direction: str, sign: float) -> None:
    rule = stopping({"grace_fraction": 0.1}, direction=direction)
    curves = {
        1: [1.0, 2.0, 3.0, 9.0],  # the best
        2: [0.5],
        3: [2.0],
        4: [1.5, 4.0, 3.5],
        5: [3.0],
        6: [1.0, 2.0],
        7: [],  # it diverged
    }
    signed = {number: [sign * value for value in curve] for number, curve in curves.items()}
    assert rule.promotions(signed, [2, 3, 4, 5, 6, 7]) == [4, 5, 3]
    assert rule.promotions(signed, [2, 3, 6]) == [3]


def test_nothing_is_promoted_past_a_best_trial_that_is_shorter_or_missing() -> None:
    rule = stopping({})
    assert rule.promotions({1: [9.0], 2: [1.0, 2.0, 3.0]}, [2]) == []
    assert rule.promotions({1: []}, [1]) == []
    assert rule.promotions({}, []) == []


@pytest.mark.parametrize(("direction", "sign"), [("max", 1.0), ("min", -1.0)])
def test_a_promoted_trial_stops_at_the_rung_at_which_it_is_behind_the_best(direction: str, sign: float) -> None:
    rule = stopping({"grace_fraction": 0.1, "reduction_factor": 3}, direction=direction)
    best, third = [sign * value for value in range(30)], [sign * 0.1] * 30

    def stops(*curve: float, others: list[list[float]]) -> bool:
        return rule.should_stop_promoted([sign * value for value in curve], others)

    assert stops(1.9, 1.9, 1.9, others=[best, third, []])
    assert not stops(2.0, 2.0, 2.0, others=[best, third])
    assert not stops(0.5, 0.5, 0.5, 0.5, others=[best, third]), "between rungs"
    assert not stops(0.0, 0.0, 0.0, others=[])
    assert not stops(0.0, 0.0, 0.0, others=[[sign * 99.0]]), "the best has not come so far"
