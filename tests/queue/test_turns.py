"""In which order users take turns, and what `ls` says of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygen.capacity import Capacity, Devices
from raygen.queue.policy import Cluster, choose, reasons
from raygen.queue.turns import GRAIN_S, TURN_S, Claim, Turns, weight

NOW = 1_000_000.0
FOUR = Capacity.of_machine(gpus=4, cpus=16, where="the box")
ONE_GPU = Devices(1, 1)


def claim(number: int, user: str, gpus: float = 1, **fields: object) -> Claim:
    values = {"priority": 0, "processes": 1, "fewest": 1, "each": Devices(gpus, 1), "active": False, **fields}
    return Claim(id=number, name=f"job-{number}", user=user, **values)  # type: ignore[arg-type]


def order(claims: Sequence[Claim], used: dict[str, float] | None = None) -> list[int]:
    """The ids of claims as their turns come if every one takes what it asks for."""
    turns, ids = Turns(claims, used or {}), []
    for turn in turns:
        assert turn.ahead == len(ids)
        ids.append(turn.claim.id)
        turns.count(turn.claim, turn.claim.processes)
    return ids


def words(claims: Sequence[Claim], used: dict[str, float] | None = None) -> dict[int, str]:
    cluster = Cluster(name="c", capacity=FOUR, unreachable_since=None, problem="", users=("",))
    return reasons(claims, cluster, now=NOW, used=used or {})


def hours(number: float) -> float:
    """What a process on one GPU uses in so many hours."""
    return number * 3600 * weight(ONE_GPU, 1)


def test_users_who_used_the_same_take_turns_the_one_who_asked_first_before() -> None:
    assert order([claim(n, "ann") for n in (1, 2, 3)] + [claim(n, "bob") for n in (4, 5)]) == [1, 4, 2, 5, 3]


def test_who_used_less_lately_goes_first_until_their_jobs_would_have_used_as_much() -> None:
    claims = [claim(n, "ann") for n in (1, 2)] + [claim(n, "bob") for n in (3, 4, 5, 6)]
    assert order(claims, {"ann": hours(2.5)}) == [3, 4, 5, 1, 6, 2]


def test_who_used_less_by_seconds_has_used_as_much() -> None:
    assert order([claim(1, "ann"), claim(2, "bob")], {"ann": 7025.0, "bob": 7000.0}) == [1, 2]


def test_a_larger_job_takes_more_turns() -> None:
    assert order([claim(1, "ann", gpus=4), claim(2, "ann"), *(claim(n, "bob") for n in (3, 4, 5))]) == [1, 3, 4, 5, 2]


def test_a_job_with_a_short_limit_takes_less_than_a_turn() -> None:
    quick = [claim(n, "ann", limit_s=TURN_S / 4) for n in range(1, 6)]
    assert order([*quick, claim(6, "bob"), claim(7, "bob")]) == [1, 6, 2, 3, 4, 5, 7]


def test_priority_goes_before_turns() -> None:
    assert order([claim(1, "ann", priority=1), claim(2, "ann", priority=1), claim(3, "bob")]) == [1, 2, 3]
    assert order([claim(1, "ann"), claim(2, "bob"), claim(3, "ann", priority=1)]) == [3, 2, 1]


def test_what_runs_counts_at_once() -> None:
    """Nothing was used yet by what has just started, so nothing else would keep one user from all devices."""
    claims = [claim(n, "ann") for n in range(1, 9)] + [claim(n, "bob") for n in range(11, 19)]
    for _ in range(4):
        found = choose(claims, FOUR, now=NOW)
        assert found is not None
        claims[claims.index(found)] = replace(found, active=True, started_at=NOW)
    assert [claim.id for claim in claims if claim.active] == [1, 2, 11, 12]


def test_jobs_that_cannot_start_anyway_take_no_turn() -> None:
    impossible, later = claim(1, "ann", gpus=9), claim(2, "ann", not_before=NOW + 5)
    busy = claim(9, "cleo", gpus=3, active=True)
    found = choose([busy, impossible, later, claim(3, "ann"), claim(4, "bob")], FOUR, now=NOW)
    assert found is not None
    assert found.id == 3


def test_why_a_job_waits_names_who_goes_first_though_they_asked_later() -> None:
    busy = claim(9, "cleo", gpus=4, active=True)
    told = words([busy, claim(10, "ann"), claim(11, "ann"), claim(12, "bob")], {"ann": hours(1)})
    assert told == {
        12: "waiting for 1 of 1 GPU",
        10: "waiting for 1 of 1 GPU, behind 1 job; bob used less lately and goes first",
        11: "waiting for 1 of 1 GPU, behind 2 jobs; bob used less lately and goes first",
    }
    some = claim(9, "cleo", gpus=1, active=True)
    told = words([some, claim(10, "ann"), claim(12, "bob", gpus=4)], {"ann": hours(1)})
    assert told[10] == (
        "behind bob's job-12, which comes first, as bob used less lately, and needs 4 GPUs and 1 CPU core"
    )


def test_who_only_asked_later_is_not_said_to_go_first() -> None:
    busy = claim(9, "cleo", gpus=4, active=True)
    assert words([busy, claim(10, "ann"), claim(12, "bob")])[12] == "waiting for 1 of 1 GPU, behind 1 job"


# What holds for every queue

USERS = st.sampled_from(["ann", "bob", "cleo"])


@st.composite
def queues(draw: st.DrawFn, users: st.SearchStrategy[str] = USERS) -> list[Claim]:
    drawn = draw(st.lists(st.tuples(users, st.sampled_from([0, 0.5, 1, 4]), st.integers(-1, 1)), max_size=12))
    claims = [claim(n, user, gpus, priority=priority) for n, (user, gpus, priority) in enumerate(drawn, 1)]
    return draw(st.permutations(claims))


usage = st.dictionaries(USERS, st.floats(0, 1e6))


@given(queues(st.just("me")), usage | st.just({"me": 1e9}))
def test_with_one_user_the_order_is_priority_then_age(claims: list[Claim], used: dict[str, float]) -> None:
    assert order(claims, used) == [claim.id for claim in sorted(claims, key=lambda claim: claim.order)]


@given(queues(), usage)
def test_everybody_has_a_turn_by_priority_and_each_users_by_age(claims: list[Claim], used: dict[str, float]) -> None:
    by_id = {claim.id: claim for claim in claims}
    ordered = [by_id[number] for number in order(claims, used)]
    assert sorted(by_id) == sorted(claim.id for claim in ordered)
    assert [c.priority for c in ordered] == sorted((c.priority for c in claims), reverse=True)
    for user in ("ann", "bob", "cleo"):
        of_user = [claim for claim in ordered if claim.user == user]
        assert of_user == sorted(of_user, key=lambda claim: claim.order)


@given(queues(), usage)
def test_nobody_has_a_turn_while_somebody_waits_who_would_have_used_less(
    claims: list[Claim], used: dict[str, float]
) -> None:
    left, so_far = {claim.id: claim for claim in claims}, {**dict.fromkeys(("ann", "bob", "cleo"), 0.0), **used}
    for number in order(claims, used):
        chosen = left.pop(number)
        rivals = [claim for claim in left.values() if claim.priority == chosen.priority]
        assert all(so_far[chosen.user] <= so_far[rival.user] + GRAIN_S for rival in rivals)
        so_far[chosen.user] += weight(chosen.each, 1) * TURN_S


@given(usage, st.integers(1, 20), st.sampled_from([0.5, 1, 4]))
def test_an_endless_stream_of_others_starves_nobody(used: dict[str, float], hours: int, gpus: float) -> None:
    """One at a time runs, for some hours; the others' jobs never run out."""
    used = {"ann": 0.0, "bob": 0.0, **used}
    ends_after = max(used.values()) / (hours * 3600 * weight(Devices(gpus, 1), 1)) + 3
    starts = 0
    while True:
        stream = [claim(1000 + starts, "bob", gpus), claim(2000 + starts, "bob", gpus)]
        found = choose([claim(5000, "ann", 4), *stream], FOUR, now=NOW, used=used)
        assert found is not None
        if found.user == "ann":
            return
        starts += 1
        used["bob"] += hours * 3600 * weight(found.each, 1)
        assert starts <= ends_after


@settings(max_examples=30)
@given(
    st.floats(0, 1e5),
    st.sampled_from([("bob",), ("bob", "cleo")]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([0.5, 1, 2]),
)
def test_an_endless_stream_of_others_starves_no_wide_job_behind_what_runs(
    ann_used: float, others: tuple[str, ...], lasting_h: list[int], gpus: float
) -> None:
    """Theirs run side by side and end at different times, so the devices are never free all at once by themselves."""
    used = {"ann": ann_used, **dict.fromkeys(others, 0.0)}
    wide, numbers = claim(100_000, "ann", 4), itertools.count(1)
    runs: list[tuple[int, Claim]] = []  # with the hour of their end
    # Until each of the others has used as much, all devices are theirs; then what runs ends.
    for hour in range(int(len(others) * ann_used / hours(4)) + 3 * max(lasting_h) + 3):
        runs = [(end, each) for end, each in runs if end > hour]
        waiting = [wide, *(claim(next(numbers), user, gpus) for user in others for _ in range(8))]
        while (found := choose([*(each for _, each in runs), *waiting], FOUR, now=NOW, used=used)) is not None:
            if found == wide:
                return
            waiting.remove(found)
            runs.append((hour + lasting_h[found.id % len(lasting_h)], replace(found, active=True)))
        for _, each in runs:
            used[each.user] += 3600 * weight(each.each, 1)
    raise AssertionError("it never starts")


@pytest.mark.parametrize(("gpus", "cpus", "expected"), [(1, 0, 1), (0, 8, 1), (8, 64, 16)])
def test_a_gpu_weighs_as_much_as_the_cores_that_come_with_it(gpus: float, cpus: int, expected: float) -> None:
    assert weight(Devices(gpus, cpus), 1) == expected
