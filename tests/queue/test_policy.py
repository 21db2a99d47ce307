"""Who runs next, and what the others are told: decided from the queue alone, without a database."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf
from random import Random

import pytest
from adversary import Free, placed, room, spots
from hypothesis import event, given, settings
from hypothesis import strategies as st

from raygen.capacity import Capacity, Devices, LostNode, Node, OnDemand
from raygen.queue import policy
from raygen.queue.policy import DEPTH, GRACE_S, Cluster, choose, reasons
from raygen.queue.turns import Claim

NOW = 1_000_000.0
HOUR_S = 3600.0
FOUR = Capacity.of_machine(gpus=4, cpus=16, where="the box")


def claim(number: int, gpus: float = 1, cpus: int = 1, *, priority: int = 0, **fields: object) -> Claim:
    """A claim of one process."""
    values = {"processes": 1, "fewest": 1, "active": False, **fields}
    return Claim(id=number, name=f"job-{number}", priority=priority, each=Devices(gpus, cpus), **values)  # type: ignore[arg-type]


def running(number: int, gpus: float = 1, cpus: int = 1, *, priority: int = 0) -> Claim:
    return claim(number, gpus, cpus, priority=priority, active=True)


def chosen(claims: Sequence[Claim], capacity: Capacity = FOUR, **options: frozenset[int]) -> int | None:
    claim = choose(claims, capacity, now=NOW, **options)
    return None if claim is None else claim.id


def words(claims: Sequence[Claim], capacity: Capacity | None = FOUR, **fields: object) -> dict[int, str]:
    known = {"name": "c", "capacity": capacity, "unreachable_since": None, "problem": "", "users": ("",)}
    return reasons(claims, Cluster(**(known | fields)), now=NOW)  # type: ignore[arg-type]


def start_all(claims: Sequence[Claim], capacity: Capacity, now: float = NOW) -> list[Claim]:
    """The queue after everything that may start now has been started."""
    current = list(claims)
    while (found := choose(current, capacity, now=now)) is not None:
        assert not found.active
        current[current.index(found)] = replace(found, active=True, started_at=now)
    return current


# Order


def test_nothing_is_chosen_from_an_empty_queue() -> None:
    assert chosen([]) is None


def test_the_higher_priority_goes_first_then_the_older_whatever_order_they_are_given_in() -> None:
    claims = [claim(3, priority=5), claim(2, priority=5), claim(1), claim(4, priority=-1)]
    order = []
    while claims:
        number = chosen(claims)
        order.append(number)
        claims = [claim for claim in claims if claim.id != number]
    assert order == [2, 3, 1, 4]


def test_a_job_that_fills_the_cluster_exactly_starts() -> None:
    assert chosen([claim(1, gpus=4, cpus=16)]) == 1


@pytest.mark.parametrize("more", [{"gpus": 3}, {"cpus": 9}])
def test_a_job_waits_while_one_kind_of_device_is_short(more: dict[str, int]) -> None:
    assert chosen([running(1, gpus=2, cpus=8), claim(2, **{"gpus": 2, "cpus": 8, **more})]) is None


def test_three_thirds_fit_in_one_gpu_and_a_fourth_does_not() -> None:
    one = Capacity.of_machine(gpus=1, cpus=16, where="the box")
    after = start_all([claim(number, gpus=1 / 3) for number in range(1, 5)], one)
    assert [claim.active for claim in after] == [True, True, True, False]


def test_tenths_of_a_gpu_fill_it_in_spite_of_rounding() -> None:
    one = Capacity.of_machine(gpus=1, cpus=16, where="the box")
    after = start_all([claim(number, gpus=0.1) for number in range(1, 12)], one)
    assert sum(claim.active for claim in after) == 10


# Backfill


def test_small_jobs_behind_a_large_one_do_not_take_what_it_waits_for() -> None:
    assert chosen([running(1, gpus=1), claim(2, gpus=4), claim(3, gpus=1)]) is None


def test_a_small_job_starts_beside_what_a_large_one_will_need() -> None:
    # When job 1 has ended job 2 leaves two GPUs, and it cannot start before.
    claims = [running(1, gpus=3), claim(2, gpus=2, cpus=1), claim(3, gpus=1), claim(4, gpus=2)]
    assert chosen(claims) == 3


def test_what_a_large_job_can_do_without_only_once_all_before_it_have_ended_is_kept_for_it() -> None:
    # Job 3 could start as soon as one of the first two ends; with job 4 beside it, it would need both to end.
    assert chosen([running(1), running(2), claim(3, gpus=3), claim(4, gpus=1)]) is None


def test_jobs_without_gpus_pass_those_that_wait_for_gpus() -> None:
    assert chosen([running(1, gpus=4, cpus=4), claim(2, gpus=4, cpus=4), claim(3, gpus=0, cpus=8)]) == 3


def test_jobs_without_gpus_do_not_take_the_cores_of_those_that_wait_for_gpus() -> None:
    assert chosen([running(1, gpus=4, cpus=4), claim(2, gpus=4, cpus=8), claim(3, gpus=0, cpus=9)]) is None


def test_a_job_started_by_backfill_leaves_less_for_the_next() -> None:
    claims = [running(1, gpus=3), claim(2, gpus=2), running(3, gpus=1), claim(4, gpus=1)]
    assert chosen(claims) is None


@pytest.mark.parametrize("impossible", [{"gpus": 5}, {"cpus": 17}])
def test_a_job_that_asks_for_more_than_there_is_blocks_nobody(impossible: dict[str, int]) -> None:
    assert chosen([claim(1, **impossible), claim(2, gpus=4, cpus=16)]) == 2


def test_a_job_that_waits_to_be_tried_again_holds_no_claim_until_then() -> None:
    later, behind = claim(1, gpus=4, not_before=NOW + 5), claim(2, gpus=4)
    assert chosen([later, behind]) == 2
    assert chosen([replace(later, not_before=NOW), behind]) == 1


def test_an_excluded_job_keeps_its_place() -> None:
    claims = [claim(1, gpus=3), claim(2, gpus=2), claim(3, gpus=1)]
    assert chosen(claims, excluded=frozenset({1})) == 3
    assert chosen(claims, excluded=frozenset({1, 3})) is None


def test_a_cluster_that_shrank_under_its_jobs_starts_only_what_needs_nothing_of_what_is_short() -> None:
    shrunk = Capacity.of_machine(gpus=2, cpus=16, where="the box")
    assert chosen([running(1, gpus=4), claim(2, gpus=1)], shrunk) is None
    assert chosen([running(1, gpus=4), claim(2, gpus=0, cpus=4)], shrunk) == 2


# Time limits


def limited(claim: Claim, hours: float) -> Claim:
    """The claim with a time limit; of an active one, so long from now."""
    return replace(claim, limit_s=hours * HOUR_S, started_at=NOW if claim.active else None)


def test_a_job_that_ends_before_a_large_one_could_start_takes_what_idles_until_then() -> None:
    box = Capacity.of_machine(gpus=8, cpus=16, where="the box")
    queue = [limited(running(1), 2), claim(2, gpus=8), limited(claim(3), 3), *(limited(claim(n), 1) for n in (4, 5))]
    assert chosen(queue, box) == 4
    assert [claim.id for claim in start_all(queue, box) if claim.active] == [1, 4, 5]
    assert words(queue, box)[3] == "behind job-2, which comes first and needs 8 GPUs and 1 CPU core"


@pytest.mark.parametrize("hours", [1.99, 2, 3, None])
def test_a_job_that_could_last_longer_than_what_runs_does_not(hours: float | None) -> None:
    later = claim(3) if hours is None else limited(claim(3), hours)
    assert chosen([limited(running(1), 2), claim(2, gpus=4), later]) is None


def test_what_has_no_limit_may_end_at_any_moment_so_nothing_starts_in_its_shadow() -> None:
    assert chosen([running(1), claim(2, gpus=4), limited(claim(3), 0.1)]) is None
    # Job 3 needs one more than job 1 leaves to it, which lasts for two hours.
    two = [limited(running(1, gpus=2), 2), running(2)]
    assert chosen([*two, claim(3, gpus=3), limited(claim(4), 1)]) == 4
    assert chosen([*two, claim(3, gpus=2), limited(claim(4), 1)]) is None


def test_a_job_that_is_over_its_limit_may_end_at_any_moment() -> None:
    late = replace(running(1), started_at=NOW - 9 * HOUR_S, limit_s=HOUR_S)
    assert chosen([late, claim(2, gpus=4), limited(claim(3), 0.1)]) is None


def test_what_ends_before_a_large_job_could_start_does_not_keep_others_from_what_they_could_have_beside_it() -> None:
    # Jobs 2 and 4 fit beside each other, and beside job 3 only if nobody asks how long that lasts.
    runs = [limited(running(1, gpus=2), 9), limited(running(3, gpus=1), 1)]
    assert chosen([*runs, claim(2, gpus=3), claim(4, gpus=1)]) == 4


def test_of_jobs_that_start_together_the_longer_makes_room_for_the_shorter() -> None:
    queue = [limited(claim(1), 2), claim(2, gpus=4), limited(claim(3), 1)]
    assert [claim.active for claim in start_all(queue, FOUR)] == [True, False, True]


# What holds for every queue

amounts = st.tuples(st.sampled_from([0, 1 / 3, 0.5, 1, 1, 2, 3, 4, 5]), st.integers(1, 9))
capacities = st.builds(Capacity.of_machine, gpus=st.integers(0, 4), cpus=st.integers(1, 8), where=st.just("the box"))


@st.composite
def queues(draw: st.DrawFn) -> list[Claim]:
    drawn = draw(st.lists(st.tuples(amounts, st.integers(-1, 1), st.sampled_from([0.0, NOW + 1])), max_size=12))
    return [
        claim(number, *amount, priority=priority, not_before=not_before)
        for number, (amount, priority, not_before) in enumerate(drawn, 1)
    ]


@given(queues(), capacities)
def test_no_more_devices_are_taken_than_there_are(queue: list[Claim], capacity: Capacity) -> None:
    active = [claim for claim in start_all(queue, capacity) if claim.active]
    assert sum(claim.each.gpus for claim in active) <= capacity.gpus + 1e-4
    assert sum(claim.each.cpus for claim in active) <= capacity.cpus
    assert all(claim.not_before <= NOW for claim in active)


@given(queues(), capacities)
def test_of_jobs_that_ask_for_the_same_those_first_in_order_start(queue: list[Claim], capacity: Capacity) -> None:
    after = sorted(start_all(queue, capacity), key=lambda claim: claim.order)
    seen: dict[tuple[float, int], bool] = {}
    for claim in after:
        if claim.not_before <= NOW:
            earlier_started = seen.setdefault((claim.each.gpus, claim.each.cpus), True)
            assert earlier_started or not claim.active
            seen[claim.each.gpus, claim.each.cpus] = claim.active


@given(queues(), capacities)
def test_an_idle_cluster_starts_something_if_anything_could_run(queue: list[Claim], capacity: Capacity) -> None:
    could_run = [
        c for c in queue if c.each.gpus <= capacity.gpus and c.each.cpus <= capacity.cpus and c.not_before <= NOW
    ]
    first = choose(queue, capacity, now=NOW)
    assert first == min(could_run, key=lambda claim: claim.order, default=None)


@given(queues(), capacities)
def test_exactly_the_jobs_that_would_start_are_told_that_they_are_next(queue: list[Claim], capacity: Capacity) -> None:
    told = words(queue, capacity)
    assert set(told) == {claim.id for claim in queue}
    assert all(told.values())
    started = {claim.id for claim in start_all(queue, capacity) if claim.active}
    assert {number for number, why in told.items() if why == "next to start"} == started


@dataclass(frozen=True)
class Work:
    """A job of a simulation: when it is queued, and how long it runs, in hours; all of its limit, if it has one."""

    claim: Claim
    queued_at: int
    duration: int

    def limited(self) -> Work:
        """The same with a limit, beyond which it needs a moment to end."""
        return replace(self, claim=replace(self.claim, limit_s=self.duration * HOUR_S - GRACE_S))


def start_times(works: Sequence[Work], capacity: Capacity) -> dict[int, int]:
    """When each job starts on a cluster that decides anew whenever something was queued or has ended."""
    started: dict[int, int] = {}
    ends: dict[int, int] = {}
    by_id = {work.claim.id: work for work in works}
    moment: int | None = min((work.queued_at for work in works), default=None)
    while moment is not None:
        present = [
            replace(work.claim, active=True, started_at=NOW + started[work.claim.id] * HOUR_S)
            if work.claim.id in started
            else work.claim
            for work in works
            if work.queued_at <= moment and ends.get(work.claim.id, moment + 1) > moment
        ]
        for claim in start_all(present, capacity, NOW + moment * HOUR_S):
            if claim.active and claim.id not in started:
                started[claim.id] = moment
                ends[claim.id] = moment + by_id[claim.id].duration
        later = [time for time in (*ends.values(), *(work.queued_at for work in works)) if time > moment]
        moment = min(later, default=None)
    return started


@st.composite
def streams(draw: st.DrawFn, limited: bool = False, users: tuple[str, ...] = ("",)) -> list[Work]:
    """Jobs in their order: of one priority and queued at any times, or of several and queued together.

    Some have time limits, if asked.
    """
    together = draw(st.booleans())
    amount = st.tuples(st.sampled_from([0, 1, 1, 2, 3, 4]), st.integers(1, 4))
    drawn = draw(st.lists(st.tuples(amount, st.integers(1, 9), st.integers(0, 2), st.integers(-1, 1)), max_size=10))
    works, clock = [], 0
    for number, (amount, duration, pause, priority) in enumerate(drawn, 1):
        clock += 0 if together else pause
        its = claim(number, *amount, priority=priority if together else 0, user=draw(st.sampled_from(users)))
        work = Work(its, clock, duration)
        works.append(work.limited() if limited and draw(st.booleans()) else work)
    return sorted(works, key=lambda work: work.claim.order)


# A rule that only keeps what a job needs once all before it have ended fails in one of a few hundred such streams.
@settings(max_examples=600)
@given(
    streams() | streams(limited=True),
    st.builds(Capacity.of_machine, gpus=st.just(4), cpus=st.integers(4, 9), where=st.just("the box")),
)
def test_nobody_is_delayed_by_anybody_behind(works: list[Work], capacity: Capacity) -> None:
    everybody = start_times(works, capacity)
    for length in range(len(works)):
        alone = start_times(works[:length], capacity)
        assert alone == {number: everybody[number] for number in alone}


@settings(max_examples=300)
@given(streams(limited=True), st.data())
def test_jobs_that_end_early_delay_nobody_beyond_what_limits_promised(works: list[Work], data: st.DataObject) -> None:
    """Once a job is the first that waits it starts at the latest when limits say that it has room."""
    promised = [work.limited() for work in works]
    early = [replace(work, duration=data.draw(st.integers(1, work.duration))) for work in promised]
    started = start_times(early, FOUR)
    for number, work in enumerate(promised):
        if work.claim.id in started:
            before = [started[other.claim.id] for other in promised[:number] if other.claim.id in started]
            first_at = max([work.queued_at, *before])
            lasting = {
                other.claim.id: started[other.claim.id] + other.duration
                for other, really in zip(promised, early, strict=True)
                if other != work
                and started.get(other.claim.id, inf) <= first_at < started[other.claim.id] + really.duration
            }
            if started[work.claim.id] > first_at:
                ends = sorted(lasting.values())
                has_room = (at for at in ends if has_room_at(work.claim, at, lasting, promised))
                assert started[work.claim.id] <= next(has_room)


def has_room_at(claim: Claim, at: int, lasting: dict[int, int], works: Sequence[Work]) -> bool:
    """Whether a claim finds room on the box when what lasts until then has ended."""
    left = [work.claim.each for work in works if lasting.get(work.claim.id, 0) > at]
    gpus, cpus = sum(each.gpus for each in left), sum(each.cpus for each in left)
    return FOUR.nodes[0].devices.minus(Devices(gpus, cpus)).holds(claim.each) > 0


@given(streams() | streams(limited=True, users=("ann", "bob", "cleo")), capacities)
def test_every_job_that_fits_the_cluster_is_started(works: list[Work], capacity: Capacity) -> None:
    possible = {w.claim.id for w in works if w.claim.each.gpus <= capacity.gpus and w.claim.each.cpus <= capacity.cpus}
    assert set(start_times(works, capacity)) == possible


def test_an_endless_stream_of_small_jobs_does_not_keep_a_large_one_waiting() -> None:
    large = Work(claim(2, gpus=4, cpus=4), queued_at=1, duration=5)
    small = [Work(claim(number), queued_at=number // 3, duration=3) for number in range(3, 60)]
    works = [Work(claim(1), queued_at=0, duration=9), large, *small]
    assert start_times(works, FOUR)[large.claim.id] == 9


# Several nodes


def cluster(*nodes: tuple[int, int], on_demand: OnDemand | None = None, lost: tuple[LostNode, ...] = ()) -> Capacity:
    """Nodes with so many GPUs and CPU cores each."""
    alive = [Node(id=f"id-{number}", name=f"n{number}", gpus=g, cpus=c) for number, (g, c) in enumerate(nodes, 1)]
    return Capacity(nodes=tuple(alive), where="the cluster", on_demand=on_demand, lost=lost)


def everywhere(capacity: Capacity) -> Free:
    return tuple(node.devices for node in capacity.possible)


def number_of(claim: Claim, capacity: Capacity) -> int:
    """The processes that a claim gets: as many as it asks for, or as the empty cluster holds."""
    return min(claim.processes, capacity.holds(claim.each))


SIZES = st.builds(Devices, gpus=st.sampled_from([0, 0, 0, 0.5, 1, 1, 2]), cpus=st.sampled_from([1, 1, 2, 3, 4]))


@st.composite
def clusters(draw: st.DrawFn, most: int = 5) -> Capacity:
    nodes = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=most))
    room_for_more = most - len(nodes)
    on_demand = None
    if room_for_more and draw(st.booleans()):
        on_demand = OnDemand(most=room_for_more, gpus=draw(st.integers(0, 2)), cpus=draw(st.integers(1, 4)))
        come = sum((gpus, cpus) == (on_demand.gpus, on_demand.cpus) for gpus, cpus in nodes)
        on_demand = replace(on_demand, most=room_for_more + come)
    return cluster(*nodes, on_demand=on_demand)


@st.composite
def claims_of_several(draw: st.DrawFn, number: int, sizes: st.SearchStrategy[Devices] = SIZES) -> Claim:
    """A claim of up to six processes that waits."""
    processes = draw(st.integers(1, 6))
    return Claim(
        id=number,
        name=f"job-{number}",
        priority=draw(st.sampled_from([0, 0, 1])),
        processes=processes,
        fewest=draw(st.just(processes) | st.integers(1, processes)),
        each=draw(sizes),
        active=False,
        not_before=draw(st.sampled_from([0.0, 0.0, 0.0, NOW + 1])),
    )


def lists_of_several(first: int, most: int) -> st.SearchStrategy[list[Claim]]:
    """Lists of such claims, numbered from the first on."""
    lengths = st.integers(0, most)
    return lengths.flatmap(lambda length: st.tuples(*map(claims_of_several, range(first, first + length))).map(list))


@dataclass
class Nodes:
    """Nodes on which somebody places processes one by one, on any that has room."""

    capacity: Capacity
    random: Random

    def __post_init__(self) -> None:
        self.free = {node.id: node.devices for node in self.capacity.possible}

    def place(self, claim: Claim) -> Claim:
        """The claim with one more of its processes placed; it must find room at once."""
        with_room = [node for node, left in self.free.items() if left.holds(claim.each)]
        assert with_room, f"no node has room for one more of {claim}: {self.free}"
        node = self.random.choice(with_room)
        self.free[node] = self.free[node].minus(claim.each)
        return replace(claim, places={**claim.places, node: claim.places.get(node, 0) + 1})

    def end(self, claim: Claim) -> None:
        """Give back what a claim had."""
        for node, times in claim.places.items():
            self.free[node] = self.free[node].minus(claim.each, -times)


@settings(max_examples=300)
@given(st.data())
def test_every_process_of_what_is_started_finds_room_at_once(data: st.DataObject) -> None:
    """Whoever places them, in whatever order; some only after others have started."""
    capacity = data.draw(clusters())
    random = data.draw(st.randoms(use_true_random=False))
    nodes = Nodes(capacity, random)
    queue: list[Claim] = []
    for turn in range(3):
        queue = start_all(queue + data.draw(lists_of_several(1 + 10 * turn, most=6)), capacity)
        to_place = [claim.id for claim in queue if claim.active for _ in range(missing(claim, capacity))]
        random.shuffle(to_place)
        if turn < 2:
            to_place = to_place[: random.randint(0, len(to_place))]
        by_id = {claim.id: claim for claim in queue}
        for number in to_place:
            by_id[number] = nodes.place(by_id[number])
        for claim in list(by_id.values()):
            if claim.active and random.random() < 0.3:
                nodes.end(by_id.pop(claim.id))
        queue = list(by_id.values())
        event(f"{min(len(to_place), 4)} placed")


def missing(claim: Claim, capacity: Capacity) -> int:
    """How many processes of an active claim have no node yet."""
    return number_of(claim, capacity) - sum(claim.places.values())


def some_of(random: Random, every: list[Free], most: int) -> list[Free]:
    return every if len(every) <= most else random.sample(every, most)


def any_claim(random: Random, number: int, *, processes: int, cpus: int) -> Claim:
    """A claim of up to so many processes, with up to so many cores each."""
    processes = random.randint(1, processes)
    each = Devices(random.choice([0, 0, 0, 0.5, 1]), random.randint(1, cpus))
    fewest = random.choice([processes, 1])
    limit_s = random.choice([None, None, HOUR_S, 2 * HOUR_S, 3 * HOUR_S])
    several = claim(number, processes=processes, fewest=fewest, limit_s=limit_s)
    return replace(several, each=each, priority=random.choice([0, 0, 0, 1]))


# Chosen evenly: in what Hypothesis prefers, hardly anybody starts while others wait.
@settings(max_examples=2000)
@given(st.randoms(use_true_random=True))
def test_what_starts_delays_nobody_before_it_on_several_nodes(random: Random) -> None:
    """Nobody before it lacks room because of it, whichever of the others still run, and wherever it ended up."""
    capacity = cluster(*((random.choice([0, 0, 1, 2]), random.randint(4, 12)) for _ in range(random.randint(1, 3))))
    nodes = Nodes(capacity, random)
    queue: list[Claim] = []  # as it knows them
    really: dict[int, Claim] = {}  # with all their places
    for number in range(1, 5):
        wanted = replace(any_claim(random, number, processes=3, cpus=5), active=True)
        if wanted.fewest <= number_of(wanted, capacity) <= room(nodes.free.values(), wanted.each):
            begun = [replace(wanted, started_at=NOW)]
            for _ in range(number_of(wanted, capacity)):
                begun.append(nodes.place(begun[-1]))
            queue.append(random.choice([*begun, begun[-1]]))
            really[number] = begun[-1]
    queue += [any_claim(random, number, processes=3, cpus=9) for number in (11, 12)]
    queue += [any_claim(random, number, processes=1, cpus=2) for number in (21, 22, 23)]
    while (found := choose(queue, capacity, now=NOW)) is not None:
        before = [claim for claim in queue if is_before(claim, found, capacity)]
        event(f"{len(before)} wait before it")
        if before:
            assert_none_delayed(before, found, list(really.values()), capacity, random)
        started = replace(found, active=True, started_at=NOW)
        queue[queue.index(found)] = started
        for _ in range(number_of(found, capacity)):
            started = nodes.place(started)
        really[found.id] = started


def is_before(claim: Claim, other: Claim, capacity: Capacity) -> bool:
    """Whether a claim waits before another, and could ever run."""
    waits = not claim.active and claim.not_before <= NOW and claim.order < other.order
    return waits and number_of(claim, capacity) >= claim.fewest


def assert_none_delayed(
    before: list[Claim], found: Claim, running: list[Claim], capacity: Capacity, random: Random
) -> None:
    """Wherever the found one is, whichever of the running ones have not ended, and whoever else has started since.

    Those with limits use them up, so they end in that order, and none ends before the found one that lasts longer.
    """
    ids = [node.id for node in capacity.possible]
    numbers = {claim.id: number_of(claim, capacity) for claim in (found, *before)}

    def with_places(free: Free, claims: Sequence[Claim]) -> Free:
        for claim in claims:
            free = placed(free, claim.each, [claim.places.get(node, 0) for node in ids])
        return free

    def finds_room(claim: Claim, free: Free) -> bool:
        return room(free, claim.each) >= numbers[claim.id]

    full = with_places(everywhere(capacity), running)
    ways = some_of(random, list(spots(full, found.each, numbers[found.id])), 8)
    assert ways, "what starts finds room"
    for some in range(len(running) + 1):
        for still_running in combinations(running, some):
            ended = [claim for claim in running if claim not in still_running]
            if any(lasts_longer(over, claim) for over in ended for claim in (found, *still_running)):
                continue
            without = with_places(everywhere(capacity), still_running)
            for way in ways:
                beside = placed(without, found.each, way)
                for first in before:
                    assert finds_room(first, beside) or not finds_room(first, without), (first, still_running, way)
                for second in before:
                    for spot in some_of(random, list(spots(beside, second.each, numbers[second.id])), 3):
                        left, left_beside = (placed(free, second.each, spot) for free in (without, beside))
                        for first in before:
                            if first != second:
                                assert finds_room(first, left_beside) or not finds_room(first, left), (
                                    *(first, second, spot, still_running, way),
                                )


def lasts_longer(claim: Claim, other: Claim) -> bool:
    """Whether a claim lasts longer by its limit than another that was started together with it."""
    return claim.limit_s is not None and other.limit_s is not None and claim.limit_s > other.limit_s


def test_what_one_that_waits_could_start_beside_once_another_ends_is_kept() -> None:
    ten = Capacity.of_machine(gpus=0, cpus=10, where="the box")
    runs = [running(1, 0, 7), running(2, 0, 1)]
    # Job 4 could start when job 2 ends; with job 5 beside it, it would have to wait for job 1.
    assert chosen([*runs, claim(3, 0, 5), claim(4, 0, 3), claim(5, 0, 1)], ten) is None


@st.composite
def alike_streams(draw: st.DrawFn, limited: bool = False) -> list[Work]:
    """Jobs like those of `streams`, of one to six processes, all of one size."""
    together, each = draw(st.booleans()), draw(st.sampled_from([Devices(1, 2), Devices(0, 1), Devices(0.5, 1)]))
    works, clock = [], 0
    for number in range(1, draw(st.integers(0, 10)) + 1):
        clock += 0 if together else draw(st.integers(0, 2))
        asked = draw(claims_of_several(number, sizes=st.just(each)))
        asked = replace(asked, priority=asked.priority if together else 0, not_before=0.0)
        work = Work(asked, clock, draw(st.integers(1, 9)))
        works.append(work.limited() if limited and draw(st.booleans()) else work)
    return sorted(works, key=lambda work: work.claim.order)


@settings(max_examples=200)
@given(alike_streams() | alike_streams(limited=True), clusters(most=4))
def test_nobody_is_delayed_by_anybody_behind_if_all_processes_are_alike(works: list[Work], capacity: Capacity) -> None:
    everybody = start_times(works, capacity)
    for length in range(len(works)):
        alone = start_times(works[:length], capacity)
        assert alone == {number: everybody[number] for number in alone}


@settings(max_examples=100)
@given(alike_streams() | alike_streams(limited=True), clusters(most=4))
def test_every_job_that_fits_several_nodes_is_started(works: list[Work], capacity: Capacity) -> None:
    possible = {work.claim.id for work in works if capacity.holds(work.claim.each) >= work.claim.fewest}
    assert set(start_times(works, capacity)) == possible


# Words


def test_why_a_job_waits_names_what_is_missing_and_how_many_are_ahead() -> None:
    claims = [running(1, gpus=2), claim(2, gpus=4), claim(3, gpus=4), claim(4, gpus=4)]
    assert words(claims) == {
        2: "waiting for 2 of 4 GPUs",
        3: "waiting for 2 of 4 GPUs, behind 1 job",
        4: "waiting for 2 of 4 GPUs, behind 2 jobs",
    }


def test_a_job_that_lacks_only_cores_is_told_so() -> None:
    assert words([running(1, gpus=1, cpus=10), claim(2, gpus=1, cpus=8)]) == {2: "waiting for 2 of 8 CPU cores"}


def test_a_job_that_lacks_only_cores_is_not_told_of_gpus_because_of_rounding() -> None:
    one = Capacity.of_machine(gpus=1, cpus=4, where="the box")
    thirds = [running(1, gpus=1 / 3, cpus=1), running(2, gpus=1 / 3, cpus=1)]
    assert words([*thirds, claim(3, gpus=1 / 3 + 1e-9, cpus=3)], one) == {3: "waiting for 1 of 3 CPU cores"}


def test_a_job_that_would_fit_names_the_one_it_is_behind() -> None:
    claims = [running(1, gpus=1, cpus=1), claim(2, gpus=4, cpus=2), claim(3, gpus=0, cpus=15), claim(4, gpus=1)]
    assert words(claims) == {
        2: "waiting for 1 of 4 GPUs",
        3: "behind job-2, which comes first and needs 4 GPUs and 2 CPU cores",
        4: "behind job-2, which comes first and needs 4 GPUs and 2 CPU cores",
    }


def test_a_job_names_the_one_that_took_the_last_of_what_it_needs() -> None:
    claims = [running(1, gpus=4, cpus=1), claim(2, gpus=4, cpus=2), claim(3, gpus=0, cpus=16), claim(4, 0, cpus=3)]
    assert words(claims)[4] == "behind job-3, which comes first and needs 16 CPU cores"


def test_a_job_that_can_never_run_is_told_what_there_is() -> None:
    expected = "asks for 8 GPUs and 1 CPU core, more than there is: the box has 4 GPUs and 16 CPU cores"
    assert words([claim(1, gpus=8)]) == {1: expected}


def test_a_job_to_be_tried_again_is_told_when() -> None:
    at = NOW + 60
    assert words([claim(1, not_before=at)]) == {
        1: f"is tried again at {time.strftime('%H:%M:%S', time.localtime(at))}"
    }


def test_jobs_that_fit_are_next_to_start() -> None:
    assert words([claim(1), claim(2)]) == {1: "next to start", 2: "next to start"}


def test_only_waiting_jobs_have_a_reason() -> None:
    assert words([running(1)]) == {}


def test_without_a_dispatcher_that_is_the_reason_of_all() -> None:
    told = words([claim(1, gpus=99), claim(2)], users=())
    assert told == dict.fromkeys((1, 2), "no dispatcher runs for its cluster")


def test_an_unreachable_cluster_is_the_reason_of_all_with_the_time_and_the_problem() -> None:
    since = time.strftime("%H:%M:%S", time.localtime(NOW))
    told = words([claim(1), claim(2)], unreachable_since=NOW, problem="no route to host")
    assert told == dict.fromkeys((1, 2), f"the cluster is unreachable since {since}: no route to host")


def test_a_cluster_never_seen_is_starting() -> None:
    assert words([claim(1)], capacity=None) == {1: "the cluster is starting"}


# What several nodes start, and say


BOX = (8, 64)
"""GPUs and CPU cores of a node such as people rent."""


def several(number: int, processes: int, gpus: float, cpus: int, **fields: object) -> Claim:
    """A claim of several processes, of which all are needed unless `fewest` says less."""
    values = {"fewest": processes, "active": False, "priority": 0, **fields}
    return Claim(id=number, name=f"job-{number}", processes=processes, each=Devices(gpus, cpus), **values)  # type: ignore[arg-type]


def test_eight_jobs_of_a_gpu_each_start_at_once_on_one_node_beside_a_head_without() -> None:
    after = start_all([claim(number, 1, 8) for number in range(1, 10)], cluster((0, 32), BOX))
    assert [claim.active for claim in after] == [True] * 8 + [False]
    [told] = words(after, cluster((0, 32), BOX)).values()
    assert told == "waiting for 1 of 1 GPU"


def test_a_process_of_all_cores_starts_on_each_node() -> None:
    four = cluster(*[(0, 4)] * 4)
    assert chosen([several(1, 4, 0, 4)], four) == 1
    assert words([several(1, 5, 0, 4)], four)[1].startswith("asks for 20 CPU cores in 5 processes, more than there is")
    # 16 cores are there, but not on one node.
    assert words([claim(1, 0, 16)], four) == {
        1: "asks for 16 CPU cores, more than there is: the cluster has 0 GPUs and 16 CPU cores on 4 nodes, the "
        "largest with 0 GPUs and 4 CPU cores"
    }


def test_free_devices_that_lie_apart_are_told_to_do_so() -> None:
    four = cluster(*[(0, 4)] * 4)
    runs = several(1, 4, 0, 3, active=True, places={f"id-{number}": 1 for number in range(1, 5)})
    assert words([runs, claim(2, 0, 4)], four) == {2: "4 CPU cores are free, but no node has 4 of them"}
    assert words([runs, several(2, 2, 0, 2), claim(3, 0, 4)], four) == {
        2: "4 CPU cores are free, but on nodes with room for 0 of 2 processes with 2 CPU cores each",
        3: "4 CPU cores are free, but no node has 4 of them, behind 1 job",
    }
    aside = several(1, 1, 0, 60, active=True, places={"id-2": 1})
    busy = several(2, 1, 0, 60, active=True, places={"id-1": 1})
    assert words([aside, busy, claim(3, 1, 8)], cluster(BOX, BOX)) == {
        3: "16 GPUs are free, but not on a node with 8 free CPU cores"
    }
    assert words([replace(aside, places={"id-1": 1}), claim(2, 1, 8)], cluster((1, 64), (0, 8))) == {
        2: "1 GPU is free, but not on a node with 8 free CPU cores"
    }
    assert words([aside, several(3, 16, 1, 4)], cluster(BOX, BOX)) == {
        3: "16 GPUs are free, but on nodes with room for 9 of 16 processes with 1 GPU and 4 CPU cores each"
    }


def test_what_has_no_nodes_yet_is_not_crowded_out() -> None:
    """Only the node with the GPU holds job 1; a process without GPUs could be placed there too."""
    nodes = cluster((0, 1), (0, 1), (1, 2))
    halves, aside = several(1, 2, 0.5, 1, active=True), several(2, 2, 0, 1)
    assert words([halves, aside], nodes) == {2: "waits until all that was started has its nodes"}
    assert chosen([replace(halves, places={"id-3": 2}), aside], nodes) == 2


def test_a_small_job_passes_one_that_waits_for_a_whole_node_where_it_takes_nothing_from_it() -> None:
    busy = several(1, 1, 8, 64, active=True, places={"id-1": 1})
    nodes = cluster(BOX, (0, 32))
    assert chosen([busy, claim(2, 8, 64), claim(3, 0, 16)], nodes) is None  # it may end up on either node
    assert chosen([busy, claim(2, 8, 48), claim(3, 0, 16)], nodes) == 3


def test_jobs_start_onto_nodes_to_come() -> None:
    growing = cluster((0, 0), on_demand=OnDemand(most=2, gpus=8, cpus=64))
    queue = [several(1, 12, 1, 8), several(2, 4, 1, 8), several(3, 1, 1, 8)]
    after = start_all(queue, growing)
    assert [claim.active for claim in after] == [True, True, False]
    assert words(after, growing) == {3: "waiting for 1 of 1 GPU"}
    assert words([several(1, 17, 1, 8)], growing)[1].startswith("asks for 17 GPUs and 136 CPU cores in 17 processes")


@pytest.mark.parametrize(
    ("active", "told"),
    [
        (several(1, 16, 1, 8, active=True, pending=16), "waiting for 2 more nodes with 8 GPUs"),
        (several(1, 16, 1, 8, active=True, pending=8), "waiting for 1 more node with 8 GPUs"),
        (several(1, 2, 0, 64, active=True, pending=1), "waiting for 1 more node with 64 CPU cores"),
    ],
)
def test_a_job_that_waits_for_nodes_to_come_says_how_many(active: Claim, told: str) -> None:
    growing = cluster((0, 0), on_demand=OnDemand(most=2, gpus=8, cpus=64))
    assert words([active], growing) == {1: told}


@pytest.mark.parametrize(
    ("active", "told"),
    [
        (several(1, 1, 1, 8, active=True, pending=1), "waiting for a node with room for 1 GPU and 8 CPU cores"),
        (
            several(1, 4, 1, 8, active=True, pending=2, places={"id-1": 2}),
            "waiting for nodes with room for 2 of its 4 processes, 1 GPU and 8 CPU cores each",
        ),
        (
            several(1, 4, 0, 8, active=True, pending=4),
            "waiting for nodes with room for all of its 4 processes, 8 CPU cores each",
        ),
    ],
)
def test_a_job_whose_processes_wait_for_nodes_says_for_what(active: Claim, told: str) -> None:
    assert words([active], cluster(BOX)) == {1: told}


def test_a_job_that_can_go_on_with_fewer_processes_starts_on_a_cluster_that_shrank() -> None:
    asked = several(1, 16, 1, 8, fewest=4)
    assert chosen([asked], cluster(BOX)) == 1
    assert chosen([replace(asked, fewest=9)], cluster(BOX)) is None
    # The others of its processes have no node to wait for, so they keep none from others.
    without_nodes = replace(asked, active=True, pending=9, places={"id-1": 7})
    assert chosen([replace(without_nodes, processes=7, fewest=7), claim(2, 1, 8)], cluster(BOX)) == 2
    assert chosen([without_nodes, claim(2, 0, 8)], cluster(BOX, (0, 8))) is None  # it may land beside those


def test_an_elastic_job_counts_with_what_nodes_hold() -> None:
    """It asks for six processes and gets four; with it beside, job 3 needs all that jobs 2 and 4 could have."""
    small = cluster(*[(0, 3)] * 4)
    elastic = several(1, 6, 0, 2, fewest=1, active=True)
    other = several(2, 2, 0, 1, active=True, places={"id-1": 1, "id-2": 1})
    assert chosen([elastic, other, several(3, 4, 0, 1), claim(4, 0, 1)], small) is None


def test_a_job_for_which_a_node_was_lost_is_told_which_and_when() -> None:
    gone = LostNode(id="abcdef123", name="n2", gpus=8, cpus=64, lost_at=NOW, problem="")
    at = time.strftime("%H:%M:%S", time.localtime(NOW))
    shrunk = cluster(BOX, lost=(gone,))
    assert words([several(1, 16, 1, 8)], shrunk) == {
        1: "asks for 16 GPUs and 128 CPU cores in 16 processes, more than there is: the cluster has 8 GPUs and 64 CPU "
        f"cores, since n2 (abcdef) was lost at {at}"
    }
    assert "was lost" not in words([several(1, 17, 1, 8)], shrunk)[1], "it never could"


# Ten thousand


def test_jobs_deep_in_the_queue_are_told_how_deep() -> None:
    told = words([running(0, gpus=4), *(claim(number) for number in range(1, DEPTH + 3))])
    assert told[DEPTH] == f"waiting for 1 of 1 GPU, behind {DEPTH - 1} jobs"
    assert told[DEPTH + 1] == told[DEPTH + 2] == f"behind more than {DEPTH} jobs"


def test_a_decision_looks_at_the_first_jobs_only() -> None:
    # Only the last of these needs nothing that is short.
    full = running(0, gpus=4, cpus=1)
    assert chosen([full, *(claim(n, cpus=0) for n in range(1, DEPTH)), claim(DEPTH, gpus=0)]) == DEPTH
    assert chosen([full, *(claim(n, cpus=0) for n in range(1, DEPTH + 1)), claim(DEPTH + 1, gpus=0)]) is None


def test_a_decision_over_ten_thousand_jobs_takes_little_time() -> None:
    claims = [running(0, gpus=3), *(claim(number, gpus=4) for number in range(1, 10_001))]
    calls = 0

    def count(frame: object, event: str, about: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        assert policy.choose(claims, FOUR, now=NOW) is None
    finally:
        sys.setprofile(None)
    # Of functions, since machines differ: some for each job, many for those that are looked at.
    assert calls < 10 * len(claims)


def test_a_decision_over_a_hundred_nodes_takes_little_time() -> None:
    random = Random(0)
    nodes = cluster(*[BOX] * 100)
    free = Nodes(nodes, random)
    sizes = [Devices(random.choice([0, 0.5, 1, 1, 2, 4]), random.randint(1, 64)) for _ in range(400)]
    active = [claim(number, 5, random.randint(33, 60), active=True) for number in range(100)]
    active += [claim(number, 0, random.randint(1, 4), active=True) for number in range(100, 150)]
    waiting = [several(number, random.choice([2, 4, 8, 16, 90]), 1, 1) for number in range(1000, 1500)]
    queue = [free.place(each) for each in active] + [replace(each, each=random.choice(sizes)) for each in waiting]
    start_s = time.process_time()
    choose(queue, nodes, now=NOW)
    words(queue, nodes)
    # A bound against growth with nodes and sizes, far above what it takes.
    assert time.process_time() - start_s < 2


def test_running_jobs_are_what_was_last_seen_where_nobody_looks_after_them() -> None:
    running = claim(1, gpus=0, active=True)
    told = Cluster(name="c", capacity=None, unreachable_since=None, problem="", users=())
    assert reasons([running], told, now=0.0) == {1: "when last seen; no dispatcher runs for its cluster"}
    silent = Cluster(name="c", capacity=None, unreachable_since=0.0, problem="no route", users=("",))
    assert reasons([running], silent, now=0.0)[1].startswith("when last seen; the cluster is unreachable since ")
    seen = Cluster(
        name="c",
        capacity=Capacity.of_machine(gpus=0, cpus=2, where="here"),
        unreachable_since=None,
        problem="",
        users=("",),
    )
    assert reasons([running], seen, now=0.0) == {}
