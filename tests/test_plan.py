from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygen.capacity import Capacity, Node, OnDemand
from raygen.errors import ResourceError
from raygen.plan import Plan, plan_search, plan_training
from raygen.spec import Resources

SUGGESTION = re.compile(r"type --([a-z-]+) (\d+)")


def machine(gpus: int = 0, cpus: int = 8) -> Capacity:
    return Capacity.of_machine(gpus=gpus, cpus=cpus, where="this machine")


def searched(capacity: Capacity, trials: int = 16, **wanted: Any) -> Plan:
    return plan_search(Resources(**wanted), capacity, trials=trials)


def trained(capacity: Capacity, **wanted: Any) -> Plan:
    return plan_training(Resources(**wanted), capacity)


def refusal(capacity: Capacity, **wanted: Any) -> str:
    with pytest.raises(ResourceError) as caught:
        searched(capacity, **wanted)
    assert caught.value.exit_code == 2
    return str(caught.value)


# Searches


@pytest.mark.parametrize(
    ("capacity", "wanted", "plan"),
    [
        # One trial to a CPU core where there is no GPU.
        (machine(cpus=2), {}, Plan(2, 1, 0, 1)),
        (machine(cpus=8), {"cpus": 3}, Plan(3, 1, 0, 1)),
        (machine(cpus=8), {"cpus_per_trial": 3}, Plan(2, 1, 0, 3)),
        (machine(cpus=8), {"workers": 2}, Plan(4, 2, 0, 1)),
        (machine(cpus=8), {"workers": 2, "cpus_per_trial": 5}, Plan(2, 2, 0, 2)),
        (machine(cpus=32), {}, Plan(16, 1, 0, 1)),
        # One trial to a GPU where there are some; each takes its GPU's share of the CPU cores.
        (machine(gpus=4), {}, Plan(4, 1, 1, 2)),
        (machine(gpus=4), {"gpus": 2}, Plan(2, 1, 1, 2)),
        (machine(gpus=4), {"gpus": 0}, Plan(8, 1, 0, 1)),
        (machine(gpus=4), {"gpus_per_trial": 2}, Plan(2, 2, 1, 2)),
        (machine(gpus=5), {"gpus_per_trial": 2}, Plan(2, 2, 1, 1)),
        (machine(gpus=4), {"workers": 2}, Plan(2, 2, 1, 2)),
        (machine(gpus=4), {"cpus_per_trial": 1}, Plan(4, 1, 1, 1)),
        (machine(gpus=4), {"cpus_per_trial": 4}, Plan(2, 1, 1, 4)),
        # Trials that share a GPU never reach over to the next.
        (machine(gpus=2), {"gpus_per_trial": 0.5}, Plan(4, 1, 0.5, 2)),
        (machine(gpus=2), {"gpus_per_trial": 0.4}, Plan(4, 1, 0.4, 2)),
        (machine(gpus=1), {"gpus_per_trial": 0.25}, Plan(4, 1, 0.25, 2)),
        (machine(gpus=1), {"gpus_per_trial": 0.75}, Plan(1, 1, 0.75, 8)),
        # Whole GPUs with all their cores, which the trials will share, however many on each.
        (machine(gpus=4), {"gpus_per_trial": "auto"}, Plan(4, 1, 1, 2)),
        (machine(gpus=4), {"gpus_per_trial": "auto", "gpus": 2, "workers": 1}, Plan(2, 1, 1, 2)),
        # Where GPUs would hold more trials than there are CPU cores for their processes, the cores decide.
        (machine(gpus=8, cpus=4), {}, Plan(4, 1, 1, 1)),
        (machine(gpus=1, cpus=2), {"gpus_per_trial": 0.1}, Plan(2, 1, 0.1, 1)),
    ],
)
def test_what_a_search_occupies(capacity: Capacity, wanted: dict[str, Any], plan: Plan) -> None:
    assert searched(capacity, **wanted) == plan


def test_no_more_at_once_than_there_are_trials() -> None:
    assert searched(machine(cpus=8), trials=3).concurrent == 3
    assert searched(machine(gpus=4), trials=1) == Plan(1, 1, 1, 2)


@pytest.mark.parametrize(
    ("capacity", "wanted", "has", "instead"),
    [
        (machine(gpus=2), {"gpus": 4}, "has 2 GPUs and 8 CPU cores", "type --gpus 2"),
        (machine(), {"gpus": 4}, "has 0 GPUs and 8 CPU cores", "leave out --gpus"),
        (machine(), {"cpus": 9}, "has 0 GPUs and 8 CPU cores", "type --cpus 8"),
        (machine(), {"gpus_per_trial": 0.5}, "has 0 GPUs and 8 CPU cores", "leave it out"),
        (machine(), {"gpus_per_trial": "auto"}, "--gpus-per-trial auto needs a GPU", "leave it out"),
        (machine(gpus=2), {"gpus_per_trial": "auto", "workers": 2}, "they share one", "type --workers 1"),
        (machine(gpus=2), {"gpus_per_trial": "auto", "cpus_per_trial": 2}, "share its", "leave out --cpus-per-trial"),
        (machine(gpus=2), {"gpus_per_trial": 3}, "2 GPUs", "type --gpus-per-trial 2"),
        (machine(gpus=4), {"gpus": 2, "workers": 3}, "2 GPUs", "type --workers 2"),
        (machine(gpus=4), {"gpus_per_trial": 1.5}, "whole number", "type --gpus-per-trial 1"),
        (machine(gpus=4), {"gpus_per_trial": 2, "workers": 3}, "2 GPUs", "type --workers 2"),
        (machine(gpus=4), {"gpus_per_trial": 0.5, "workers": 2}, "0.5 GPUs", "type --workers 1"),
        (machine(cpus=2), {"cpus_per_trial": 4}, "2 CPU cores", "type --cpus-per-trial 2"),
        (machine(cpus=2), {"workers": 4}, "room for 2", "type --workers 2"),
        (machine(), {"workers": 4, "cpus_per_trial": 2}, "4 processes", "type --cpus-per-trial 4"),
        (machine(gpus=4, cpus=2), {"gpus_per_trial": 4}, "2 GPUs", "type --gpus-per-trial 2"),
    ],
)
def test_the_impossible_is_refused_with_what_there_is_and_what_to_type(
    capacity: Capacity, wanted: dict[str, Any], has: str, instead: str
) -> None:
    message = refusal(capacity, **wanted)
    assert has in message
    assert message.endswith(instead)


# Trainings


@pytest.mark.parametrize(
    ("capacity", "wanted", "plan"),
    [
        (machine(cpus=2), {}, Plan(1, 1, 0, 2)),
        (machine(cpus=8), {"cpus": 4, "workers": 2}, Plan(1, 2, 0, 2)),
        (machine(cpus=8), {"cpus": 5, "workers": 2}, Plan(1, 2, 0, 2)),
        (machine(gpus=4), {}, Plan(1, 4, 1, 2)),
        (machine(gpus=4), {"gpus": 2}, Plan(1, 2, 1, 2)),
        (machine(gpus=4), {"gpus": 0}, Plan(1, 1, 0, 8)),
        (machine(gpus=4), {"workers": 3}, Plan(1, 3, 1, 2)),
    ],
)
def test_what_a_training_occupies(capacity: Capacity, wanted: dict[str, Any], plan: Plan) -> None:
    assert trained(capacity, **wanted) == plan


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"gpus": 2, "workers": 3}, "there are 2; type --workers 2"),
        ({"gpus": 0, "cpus": 2, "workers": 3}, "of which --cpus allows 2; type --workers 2"),
        ({"gpus": 9}, "type --gpus 4"),
        ({"gpus_per_trial": 1}, "a training takes --gpus, --cpus"),
        ({"gpus_per_trial": "auto"}, "a training takes --gpus, --cpus"),
        ({"cpus_per_trial": 1}, "a training takes --gpus, --cpus"),
    ],
)
def test_a_training_that_cannot_be(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(ResourceError) as caught:
        trained(machine(gpus=4), **wanted)
    assert str(caught.value).endswith(said)


# Both

maybe = st.none() | st.integers(1, 12)
CAPACITIES = st.builds(machine, gpus=st.integers(0, 8), cpus=st.integers(1, 32))
REQUESTS = st.fixed_dictionaries(
    {
        "gpus": st.none() | st.integers(0, 9),
        "cpus": maybe,
        "gpus_per_trial": st.none() | st.floats(0.01, 1) | st.integers(1, 9) | st.just(1 / 3) | st.just(1 / 49),
        "cpus_per_trial": maybe,
        "workers": maybe,
    }
)


def assert_fits(plan: Plan, capacity: Capacity, wanted: dict[str, Any]) -> None:
    gpus = capacity.gpus if wanted["gpus"] is None else wanted["gpus"]
    cpus = capacity.cpus if wanted["cpus"] is None else wanted["cpus"]
    assert min(plan.concurrent, plan.workers, plan.cpus_per_worker) >= 1
    assert plan.gpus <= min(gpus, capacity.gpus) + 1e-9
    assert plan.cpus <= min(cpus, capacity.cpus)
    # One process works on one device, whole or shared.
    assert plan.gpus_per_worker <= 1
    assert (plan.gpus_per_worker > 0) == (gpus > 0)
    if 0 < plan.gpus_per_worker < 1:
        assert plan.workers == 1
        assert -(-plan.concurrent // gpus) * plan.gpus_per_worker <= 1 + 1e-9, "one GPU holds more than itself"
    if wanted["workers"]:
        assert plan.workers == wanted["workers"]


@given(capacity=CAPACITIES, wanted=REQUESTS, trials=st.integers(1, 40))
def test_a_search_never_takes_more_than_there_is(capacity: Capacity, wanted: dict[str, Any], trials: int) -> None:
    """What it suggests in the place of the impossible leads to a plan, in a few steps at most."""
    for _ in range(9):
        try:
            plan = searched(capacity, trials, **wanted)
        except ResourceError as error:
            wanted = improved(wanted, str(error))
        else:
            break
    assert_fits(plan, capacity, wanted)
    assert plan.concurrent <= trials
    if wanted["gpus_per_trial"]:
        assert plan.workers * plan.gpus_per_worker == pytest.approx(wanted["gpus_per_trial"])
    if wanted["cpus_per_trial"]:
        assert plan.cpus_per_worker == wanted["cpus_per_trial"] // plan.workers


@given(capacity=CAPACITIES, wanted=REQUESTS)
def test_a_training_never_takes_more_than_there_is(capacity: Capacity, wanted: dict[str, Any]) -> None:
    wanted = {**wanted, "gpus_per_trial": None, "cpus_per_trial": None}
    for _ in range(9):
        try:
            plan = trained(capacity, **wanted)
        except ResourceError as error:
            wanted = improved(wanted, str(error))
        else:
            break
    assert_fits(plan, capacity, wanted)
    assert plan.concurrent == 1


def improved(wanted: dict[str, Any], message: str) -> dict[str, Any]:
    """The request with what the message says to type."""
    if message.endswith("leave out --gpus"):
        return {**wanted, "gpus": None}
    if message.endswith("leave it out"):
        return {**wanted, "gpus_per_trial": None}
    suggestion = SUGGESTION.search(message)
    assert suggestion, message
    return {**wanted, suggestion[1].replace("-", "_"): int(suggestion[2])}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(2, 1, 0, 1), "1 CPU core"),
        (Plan(2, 1, 0, 3), "3 CPU cores"),
        (Plan(1, 2, 0, 1), "2 CPU cores in 2 processes"),
        (Plan(2, 1, 1, 1), "1 GPU"),
        (Plan(2, 2, 1, 1), "2 GPUs"),
        (Plan(4, 1, 0.25, 1), "0.25 GPU"),
    ],
)
def test_devices_in_words(plan: Plan, words: str) -> None:
    assert plan.devices_per_trial == words


def test_a_plan_is_plain_json() -> None:
    plan = Plan(4, 1, 0.5, 2)
    assert Plan(**plan.as_json()) == plan
    assert (plan.gpus, plan.cpus) == (2, 8)


# Several nodes


def cluster(*nodes: tuple[int, int], on_demand: OnDemand | None = None) -> Capacity:
    alive = [Node(id=f"id-{number}", name=f"n{number}", gpus=g, cpus=c) for number, (g, c) in enumerate(nodes, 1)]
    return Capacity(nodes=tuple(alive), where="the cluster", on_demand=on_demand)


BOX = (8, 64)
"""GPUs and CPU cores of a node such as people rent."""
GROWING = cluster((0, 0), on_demand=OnDemand(most=2, gpus=8, cpus=64))


@pytest.mark.parametrize(
    ("capacity", "wanted", "plan"),
    [
        (cluster(*[(0, 4)] * 4), {}, Plan(1, 1, 0, 4)),
        (cluster(*[(0, 4)] * 4), {"workers": 4}, Plan(1, 4, 0, 4)),
        (cluster(*[(0, 4)] * 4), {"workers": 5}, Plan(1, 5, 0, 2)),
        (cluster((0, 32), BOX, BOX), {}, Plan(1, 16, 1, 8)),
        (cluster((0, 32), BOX, BOX), {"gpus": 9}, Plan(1, 9, 1, 8)),
        (machine(gpus=8, cpus=64), {"gpus": 1}, Plan(1, 1, 1, 8)),
        (GROWING, {}, Plan(1, 16, 1, 8)),
        (GROWING, {"gpus": 8}, Plan(1, 8, 1, 8)),
        # A node with fewer cores to each GPU: as many processes as can be are worth more than cores.
        (cluster((8, 64), (4, 16)), {}, Plan(1, 12, 1, 4)),
        (cluster((8, 64), (4, 16)), {"gpus": 8}, Plan(1, 8, 1, 8)),
        # A GPU without a core beside it is none that a process could use.
        (cluster((4, 2), (0, 8)), {}, Plan(1, 2, 1, 1)),
        (cluster((0, 32), BOX), {"workers": "1-4"}, Plan(1, 4, 1, 8, elastic_from=1)),
        (cluster(*[(0, 4)] * 4), {"workers": "2-4"}, Plan(1, 4, 0, 4, elastic_from=2)),
    ],
)
def test_a_training_on_several_nodes(capacity: Capacity, wanted: dict[str, Any], plan: Plan) -> None:
    assert trained(capacity, **wanted) == plan
    assert capacity.holds(plan.each) >= plan.processes


def test_eight_trainings_of_a_gpu_fit_a_machine_with_eight() -> None:
    assert machine(gpus=8, cpus=64).holds(trained(machine(gpus=8, cpus=64), gpus=1).each) == 8


@pytest.mark.parametrize(
    ("capacity", "wanted", "plan"),
    [
        (cluster(*[(0, 4)] * 4), {}, Plan(16, 1, 0, 1)),
        (cluster(*[(0, 4)] * 4), {"cpus_per_trial": 3}, Plan(4, 1, 0, 3)),
        (cluster((0, 32), BOX, BOX), {}, Plan(16, 1, 1, 8)),
        (cluster((0, 32), BOX, BOX), {"gpus_per_trial": 0.5}, Plan(32, 1, 0.5, 4)),
        (cluster((0, 32), BOX, BOX), {"gpus_per_trial": 4}, Plan(4, 4, 1, 8)),
        (cluster((0, 32), BOX, BOX), {"gpus": 0, "cpus_per_trial": 32}, Plan(5, 1, 0, 32)),
        (GROWING, {}, Plan(16, 1, 1, 8)),
        (GROWING, {"workers": "1-2"}, Plan(8, 2, 1, 8, elastic_from=1)),
    ],
)
def test_a_search_on_several_nodes(capacity: Capacity, wanted: dict[str, Any], plan: Plan) -> None:
    assert searched(capacity, trials=100, **wanted) == plan
    assert capacity.holds(plan.each) >= plan.processes


@pytest.mark.parametrize(
    ("capacity", "wanted", "said"),
    [
        (GROWING, {"gpus": 17}, "type --gpus 16"),
        (cluster((4, 0), (0, 8)), {"gpus": 1}, "type --gpus 0"),
        (cluster(*[(0, 4)] * 4), {"cpus": 17}, "type --cpus 16"),
        (cluster(*[(0, 4)] * 4), {"cpus_per_trial": 8}, "type --cpus-per-trial 4"),
        (cluster(*[(0, 4)] * 4), {"workers": 17}, "type --workers 16"),
    ],
)
def test_what_no_node_holds_is_refused_with_the_largest_node(
    capacity: Capacity, wanted: dict[str, Any], said: str
) -> None:
    message = refusal(capacity, **wanted)
    assert message.endswith(said)
    assert re.search(r" on [0-9]+ nodes, the largest with ", message)


def test_one_process_has_no_more_cores_than_the_largest_node() -> None:
    with pytest.raises(ResourceError, match=r"on 4 nodes, the largest with .* and 4 CPU cores; type --cpus 4$"):
        trained(cluster(*[(0, 4)] * 4), cpus=5)


def test_an_elastic_plan_can_go_on_with_fewer_processes() -> None:
    plan = trained(cluster(BOX), workers="1-4")
    assert (plan.elastic_from, plan.workers, plan.fewest_processes, plan.processes) == (1, 4, 1, 4)
    assert plan.devices_per_trial == "4 GPUs in 1 to 4 processes"
    assert trained(cluster(BOX), workers=4).fewest_processes == 4
    assert searched(cluster(BOX), workers=4).fewest_processes == 4, "those of one trial"


AMOUNTS = st.lists(st.tuples(st.sampled_from([0, 0, 1, 2, 4, 8]), st.integers(0, 32)), min_size=1, max_size=6)
ON_DEMAND = st.none() | st.builds(OnDemand, most=st.integers(1, 3), gpus=st.integers(0, 8), cpus=st.integers(1, 32))
CLUSTERS = st.builds(lambda nodes, on_demand: cluster(*nodes, on_demand=on_demand), AMOUNTS, ON_DEMAND).filter(
    lambda capacity: capacity.cpus > 0
)
WORKERS = maybe | st.tuples(st.integers(1, 3), st.integers(3, 12))


def improved_until_planned(plan: Any, wanted: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan after doing what up to eight refusals say, and what was wanted then."""
    for _ in range(9):
        try:
            return plan(**wanted), wanted
        except ResourceError as error:
            wanted = improved(wanted, str(error))
    raise AssertionError(f"no plan after eight steps: {wanted}")


def assert_fits_nodes(plan: Plan, capacity: Capacity, wanted: dict[str, Any]) -> None:
    assert min(plan.concurrent, plan.workers, plan.cpus_per_worker) >= 1
    assert any(node.devices.holds(plan.each) for node in capacity.possible)
    assert capacity.holds(plan.each) >= plan.processes
    if wanted["gpus"] is not None:
        assert plan.gpus <= wanted["gpus"] + 1e-9
    if wanted["cpus"] is not None:
        assert plan.cpus <= wanted["cpus"]
    if isinstance(wanted["workers"], tuple):
        fewest, most = wanted["workers"]
        assert (plan.elastic_from or most, plan.workers) == (fewest, most)
    elif wanted["workers"]:
        assert plan.workers == wanted["workers"]


@given(capacity=CLUSTERS, wanted=REQUESTS, workers=WORKERS, trials=st.integers(1, 40))
def test_a_search_fits_the_nodes(capacity: Capacity, wanted: dict[str, Any], workers: Any, trials: int) -> None:
    def plan(**wanted: Any) -> Plan:
        return searched(capacity, trials, **wanted)

    found, wanted = improved_until_planned(plan, {**wanted, "workers": workers})
    assert_fits_nodes(found, capacity, wanted)
    assert found.concurrent <= trials


@given(capacity=CLUSTERS, wanted=REQUESTS, workers=WORKERS)
def test_a_training_fits_the_nodes(capacity: Capacity, wanted: dict[str, Any], workers: Any) -> None:
    def plan(**wanted: Any) -> Plan:
        return trained(capacity, **wanted)

    wanted = {**wanted, "gpus_per_trial": None, "cpus_per_trial": None, "workers": workers}
    found, wanted = improved_until_planned(plan, wanted)
    assert_fits_nodes(found, capacity, wanted)
    assert found.concurrent == 1
